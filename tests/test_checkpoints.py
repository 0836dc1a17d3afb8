"""The reference models are what their cards say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import interp
from interp.models.hub import bundled
from interp.results.result import rounded
from interp.training import Recipe
from interp.training.loss import NextTokenLoss
from interp.views import WrappedModel

FLOOR = {"conv-attn": 0.6, "smeared-attn": 0.5, "attn-attn": 0.5, "inkling": 0.5}
"""What the best head's induction score is at least."""
DROP = {"conv-attn": 3, "smeared-attn": 4, "attn-attn": 2, "inkling": 4}
"""What the second copy costs less than the first at least, in nats."""
CONTROL = "attn"


@pytest.fixture(params=[*FLOOR, CONTROL])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def directory(name: str) -> Path:
    return bundled()[name]


def test_one_of_each_architecture_ships():
    assert set(interp.available()) == {*FLOOR, CONTROL}


def test_each_is_small(directory: Path):
    assert (directory / "model.safetensors").stat().st_size < 3_000_000
    rest = [file for file in directory.iterdir() if file.suffix != ".safetensors"]
    assert sum(file.stat().st_size for file in rest) < 100_000


def test_no_path_of_a_machine_ships(directory: Path):
    for file in directory.iterdir():
        if file.suffix != ".safetensors":  # weights may hold any bytes
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w./])/(home|root|tmp|usr|Users)/", text)


@pytest.mark.parametrize("formed", FLOOR)
def test_an_induction_head_formed_on_text_alone(formed: str):
    model = interp.load(formed)
    assert interp.induction_score(model).values.max() >= FLOOR[formed]
    repeated = interp.repeated_sequence_loss(model)
    assert float(repeated.sel(measure="drop")) >= DROP[formed]


def test_none_formed_in_the_control():
    model = interp.load(CONTROL)
    scores = interp.induction_score(model)
    assert scores.chance is not None
    assert (scores.values < 3 * scores.chance).all()
    drop = interp.repeated_sequence_loss(model).sel(measure="drop")
    assert abs(float(drop)) < 0.1


def test_its_untrained_twin_is_at_chance(name: str):
    recipe = Recipe.load(name)
    untrained = interp.load(name).tokenizer
    twin = NextTokenLoss.of(recipe.build(len(untrained), untrained)).analysable
    scores = interp.induction_score(twin)
    # Positions alone tilt attention a little before any training: to near tokens, or far ones.
    assert scores.values == pytest.approx(scores.chance, abs=0.01)


def test_the_card_repeats_what_is_measured_now(name: str, directory: Path):
    numbers, card = (
        json.loads((directory / "scores.json").read_text()),
        (directory / "README.md").read_text(),
    )
    model = interp.load(name)
    scores = interp.induction_score(model)
    assert numbers["best_head"] == scores.best()
    assert numbers["induction_score"] == pytest.approx(scores.values.max(), abs=1e-4)
    repeated = interp.repeated_sequence_loss(model)
    for measure in repeated.labels["measure"]:
        assert numbers[measure] == pytest.approx(float(repeated.sel(measure=measure)), abs=1e-3)
    for result in (scores.sel(head=scores.best()), repeated.sel(measure="second_copy_accuracy")):
        assert rounded(float(result), np.asarray(result.standard_error).item()) in card
    assert numbers["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_recipe_beside_it_is_the_one_that_ships(name: str, directory: Path):
    assert Recipe.load(directory / "recipe.toml") == Recipe.load(name)


def test_text_goes_in_and_comes_out(name: str):
    model = interp.load(name)
    if isinstance(model, WrappedModel):
        pytest.skip("it reads tokens, and its own class generates: tests/models/test_hub.py")
    assert (
        model.to_string(model.to_tokens("Return the number", prepend_bos=False)[0])
        == "Return the number"
    )
    assert model.to_str_tokens("a")[0] == model.tokenizer.bos_token
    continued = model.generate("Return the", 5, seed=1)
    assert len(model.tokenizer(continued)["input_ids"]) >= 5
