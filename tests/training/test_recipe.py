"""A recipe is data: it survives TOML, and a wrong one is refused before any work."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.training import Recipe


@given(
    steps=st.integers(1, 10**7),
    rate=st.floats(1e-8, 10, allow_nan=False),
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20),
    depthwise=st.booleans(),
)
def test_toml_both_ways(steps: int, rate: float, name: str, depthwise: bool):
    recipe = Recipe(
        name=name, steps=steps, learning_rate=rate, model={"depthwise": depthwise, "n_heads": 2}
    )
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "HookedConv"}, ["architecture", "HookedConv", "HookedConvAttn"]),
        ({"vocab_size": 255}, ["vocab_size", "255", "258"]),
        ({"n_ctx": 4}, ["n_ctx", "4", "8"]),
        ({"steps": 0}, ["steps", "0", "at least 1"]),
        ({"learning_rate": -1e-3}, ["learning_rate", "-0.001", "above 0"]),
        ({"warmup_ratio": 1.0}, ["warmup_ratio", "1.0"]),
        ({"held_out": 0.0}, ["held_out", "0.0", "between"]),
        ({"weight_decay": -0.1}, ["weight_decay", "-0.1"]),
        ({"tokenizer": "words"}, ["tokenizer", "words", "bpe"]),
        ({"model": {"n_ctx": 64}}, ["model.n_ctx", "leave it out"]),
    ],
)
def test_a_bad_value_is_named_with_its_bound(change: dict, words: list[str]):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        Recipe(**change)


def test_an_unknown_key_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown key 'learning_rte'.*'learning_rate'"):
        Recipe.from_toml("learning_rte = 0.1")


def test_a_model_that_does_not_fit_its_preset_is_refused():
    with pytest.raises(ValueError, match=r"HookedAttn.*lags"):
        Recipe(architecture="HookedAttn", model={"lags": 2}).build(300)
    with pytest.raises(ValueError, match=r"d_model=30.*n_heads=4"):
        Recipe(model={"d_model": 30, "n_heads": 4}).build(300)


def test_a_missing_file_names_the_bundled_recipes(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="conv-attn"):
        Recipe.load(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("steps = = 3")
    with pytest.raises(ValueError, match=r"broken\.toml is not TOML"):
        Recipe.load(tmp_path / "broken.toml")


def test_every_field_says_what_it_is():
    assert all(len(item.metadata["help"]) > 10 for item in fields(Recipe))


@pytest.mark.parametrize("name", ["conv-attn", "smeared-attn"])
def test_bundled_recipes_build_their_models(name: str):
    recipe = Recipe.load(name)
    assert recipe.name == name
    model = recipe.build(recipe.vocab_size)
    assert type(model).__name__ == recipe.architecture
    assert model.config.n_ctx == recipe.n_ctx


def test_the_seed_decides_the_initial_weights():
    recipe = Recipe(model={"d_model": 16, "n_heads": 2})
    same, other = recipe.build(300), recipe.replace(seed=1).build(300)
    assert (recipe.build(300).W_E == same.W_E).all()
    assert not (same.W_E == other.W_E).any()
