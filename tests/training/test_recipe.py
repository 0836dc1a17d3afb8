"""A recipe is data: it survives TOML, and a wrong one is refused before any work."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.training import Recipe, train


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
        ({"tokenizer": "characters", "vocab_size": 3}, ["vocab_size", "3", "at least 4"]),
        ({"learning_rate": math.nan}, ["learning_rate", "nan", "above 0"]),
        ({"learning_rate": math.inf}, ["learning_rate", "inf"]),
        ({"max_grad_norm": 0.0}, ["max_grad_norm", "0.0"]),
        ({"weight_decay": math.nan}, ["weight_decay", "nan"]),
        ({"adam_beta2": 1.0}, ["adam_beta2", "1.0"]),
        ({"batch_size": 0}, ["batch_size", "0", "at least 1"]),
        ({"probe_steps": 0}, ["probe_steps", "0"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"optimizer": "sgd"}, ["optimizer", "sgd", "adamw or muon"]),
        ({"optimizer": "muon", "matrix_learning_rate": 0.0}, ["matrix_learning_rate", "0.0"]),
        ({"matrix_learning_rate": 0.02}, ["matrix_learning_rate", "0.02", "not muon"]),
        ({"epochs": 0.0}, ["epochs", "0.0", "above 0"]),
        ({"epochs": 2.0, "steps": 10}, ["steps is 10", "epochs is 2.0", "one of them"]),
        ({"epochs": 2.0, "streaming": True}, ["epochs", "2.0", "stream"]),
        ({"snapshots": 1}, ["snapshots", "1", "0 for none"]),
        ({"snapshots": -3}, ["snapshots", "-3"]),
        ({"snapshot_blocks": 0}, ["snapshot_blocks", "0"]),
        ({"held_out_documents": 0}, ["held_out_documents", "0"]),
        ({"initial_weights": "small"}, ["initial_weights", "small", "course"]),
        ({"model": {"n_ctx": 64}}, ["model.n_ctx", "leave it out"]),
    ],
)
def test_a_bad_value_is_named_with_its_bound(change: dict, words: list[str]):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        Recipe(**change)


def test_an_unknown_key_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown key 'learning_rte'.*'learning_rate'"):
        Recipe.from_toml("learning_rte = 0.1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('steps = "many"', ["steps", "'many'", "a whole number"]),
        ("steps = 2.5", ["steps", "2.5", "a whole number"]),
        ("steps = true", ["steps", "True", "a whole number"]),
        ('compile = "yes"', ["compile", "'yes'", "true or false"]),
        ("compile = 1", ["compile", "1", "true or false"]),
        ("corpus = 3", ["corpus", "3", "text"]),
        ('learning_rate = "fast"', ["learning_rate", "'fast'", "a number"]),
        ('held_at_zero = "W_conv"', ["held_at_zero", "'W_conv'", "a list"]),
        ("model = 3", ["model", "3", "a table"]),
        ("steps = 2000\nepochs = 3", ["steps and epochs", "one of them"]),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(text: str, words: list[str]):
    with pytest.raises(ValueError, match="recipe: .*" + ".*".join(map(re.escape, words))):
        Recipe.from_toml(text)


def test_a_whole_number_will_do_for_a_number():
    assert Recipe.from_toml("learning_rate = 1\nepochs = 3").epochs == 3.0


def test_steps_and_epochs_take_each_others_place():
    by_epochs = Recipe(steps=100).replace(epochs=2.0, batch_size=4)
    assert by_epochs.epochs == 2.0
    assert "\nsteps" not in by_epochs.to_toml()
    assert Recipe.from_toml(by_epochs.to_toml()) == by_epochs
    with pytest.raises(ValueError, match=r"epochs is 2\.0; the corpus decides"):
        _ = by_epochs.tokens
    settled = by_epochs.settled(n_blocks=21)  # five whole batches of four, twice
    assert (settled.steps, settled.epochs, settled.tokens) == (10, None, 10 * 4 * 256)
    assert settled.replace(epochs=2.0) == by_epochs
    assert by_epochs.replace(epochs=0.01).settled(n_blocks=21).steps == 1


def test_muons_rate_is_written_down():
    recipe = Recipe().replace(optimizer="muon")
    assert "matrix_learning_rate = 0.02" in recipe.to_toml()
    assert recipe.replace(optimizer="adamw") == Recipe()
    assert recipe.replace(matrix_learning_rate=0.01).matrix_learning_rate == 0.01


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ("books/*.txt", "corpus is 'books/.*no file matches"),
        ("a.txt", "corpus is 'a.txt': no file"),
        ("hf:./nowhere", "corpus is 'hf:./nowhere': no directory"),
        ("wikipedia", "corpus is 'wikipedia': unknown source"),
        ("hf:", "corpus is 'hf:'.*names no dataset"),
    ],
)
def test_a_corpus_that_is_not_there_is_refused_before_any_work(
    corpus: str, words: str, tmp_path: Path
):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        train(Recipe(corpus=corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_corpus_too_small_is_refused_before_training(tmp_path: Path):
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(f"{number} " * 40)
    recipe = Recipe(
        corpus=str(tmp_path / "*.txt"), vocab_size=300, held_out=0.4, model={"d_model": 16}
    )
    with pytest.raises(ValueError, match=r"corpus is .*hold \d+ tokens.*n_ctx=256"):
        train(recipe, tmp_path / "one")
    with pytest.raises(ValueError, match=r"gives \d+ blocks of n_ctx=8, fewer than batch_size=999"):
        train(recipe.replace(n_ctx=8, batch_size=999), tmp_path / "two")
    (tmp_path / "0.txt").write_text("")
    with pytest.raises(ValueError, match=r"corpus is .*0\.txt is empty"):
        train(recipe, tmp_path / "three")


def test_layers_can_be_given_one_by_one():
    text = """
    architecture = "HookedSequenceModel"
    n_ctx = 16
    [model]
    d_model = 12
    norm = "none"
    [[model.layers]]
    kind = "conv"
    lags = 3
    [[model.layers]]
    kind = "attention"
    n_heads = 2
    d_head = 6
    mlp = { d_mlp = 24 }
    """
    recipe = Recipe.from_toml(text)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    config = recipe.build(300).config
    assert config.layers == (interp.Conv(lags=3), interp.Attention(2, 6, mlp=interp.MLP(24)))
    assert (config.norm, config.n_ctx, config.d_vocab) == ("none", 16, 300)
    with pytest.raises(ValueError, match=r"no layers; give \[\[model.layers\]\]"):
        recipe.replace(model={"d_model": 12}).build(300)
    with pytest.raises(ValueError, match=r"\[model\].*unknown key 'lag'"):
        recipe.replace(model={**recipe.model, "layers": [{"kind": "conv", "lag": 3}]}).build(300)
    with pytest.raises(ValueError, match=r"\[model\].*lags=17.*n_ctx=16"):
        recipe.replace(model={**recipe.model, "layers": [{"kind": "conv", "lags": 17}]}).build(300)


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


def test_the_seed_decides_the_initial_weights():
    recipe = Recipe(model={"d_model": 16, "n_heads": 2})
    same, other = recipe.build(300), recipe.replace(seed=1).build(300)
    assert (recipe.build(300).W_E == same.W_E).all()
    assert not (same.W_E == other.W_E).any()
