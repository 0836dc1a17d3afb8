"""A small corpus and one short run, shared by the tests of training."""

import random
from pathlib import Path

import pytest

from interp.training import Recipe, train

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty files of random words, of which about a third are held out."""
    directory = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        choose = random.Random(number)
        words = " ".join(choose.choice(WORDS) for _ in range(400))
        (directory / f"{number:02}.txt").write_text(f"File {number}. {words}.")
    return str(directory / "*.txt")


@pytest.fixture(scope="session")
def recipe(corpus: str) -> Recipe:
    return Recipe(
        name="tiny",
        corpus=corpus,
        held_out=0.3,
        vocab_size=300,
        n_ctx=32,
        model={"d_model": 32, "n_heads": 2},
        steps=40,
        learning_rate=1e-2,
        probe_steps=20,
        save_steps=20,
    )


@pytest.fixture(scope="session")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    return train(recipe, tmp_path_factory.mktemp("runs") / "tiny")
