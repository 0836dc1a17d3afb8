"""The reference models are what their cards say."""

import json
import re
from pathlib import Path

import pytest

import interp
from interp.models.hub import bundled
from interp.training import Recipe

FLOOR = {"conv-attn": 0.5, "smeared-attn": 0.6}


@pytest.fixture(params=FLOOR)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def directory(name: str) -> Path:
    return bundled()[name]


def test_both_ship():
    assert set(FLOOR) <= set(interp.available())


def test_each_is_small(directory: Path):
    assert sum(file.stat().st_size for file in directory.iterdir()) < 3_000_000


def test_no_path_of_a_machine_ships(directory: Path):
    for file in directory.iterdir():
        if file.suffix != ".safetensors":  # weights may hold any bytes
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w./])/(home|root|tmp|usr|Users)/", text)


def test_an_induction_head_formed_on_text_alone(name: str):
    model = interp.load(name)
    scores = interp.induction_score(model)
    assert scores.values.max() >= FLOOR[name]
    repeated = interp.repeated_sequence_loss(model)
    assert float(repeated.sel(measure="drop")) >= 3


def test_its_untrained_twin_is_at_chance(name: str):
    recipe = Recipe.load(name)
    untrained = interp.load(name).tokenizer
    scores = interp.induction_score(recipe.build(len(untrained), untrained))
    assert scores.values == pytest.approx(scores.chance, abs=0.005)


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
    assert f"{numbers['induction_score']:.3f} ±" in card
    assert f"{numbers['second_copy_accuracy']:.3f} ±" in card
    assert numbers["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_recipe_beside_it_is_the_one_that_ships(name: str, directory: Path):
    assert Recipe.load(directory / "recipe.toml") == Recipe.load(name)


def test_text_goes_in_and_comes_out(name: str):
    model = interp.load(name)
    assert (
        model.to_string(model.to_tokens("Return the number", prepend_bos=False)[0])
        == "Return the number"
    )
    assert model.to_str_tokens("a")[0] == model.tokenizer.bos_token
    continued = model.generate("Return the", 5, seed=1)
    assert len(model.tokenizer(continued)["input_ids"]) >= 5
