"""A short run, looked at from all sides: what it writes, what it measures, how it resumes."""

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.training import Recipe, train


def history(run: Path, key: str) -> dict[int, float]:
    return {
        row["step"]: row[key]
        for row in json.loads((run / "history.json").read_text())
        if key in row
    }


def test_the_model_is_saved_whole(run: Path, recipe: Recipe):
    model = interp.load(str(run))
    assert isinstance(model, interp.HookedConvAttn)
    assert model.config.n_ctx == recipe.n_ctx
    assert model.tokenizer.decode(model.tokenizer("alpha beta")["input_ids"]) == "alpha beta"
    assert Recipe.load(run / "recipe.toml") == recipe


def test_the_loss_falls_and_the_held_out_loss_with_it(run: Path):
    losses = history(run, "loss")
    assert losses[min(losses)] == pytest.approx(math.log(300), abs=0.6)
    assert losses[40] < losses[min(losses)] - 1.5
    assert history(run, "eval_loss")[40] == pytest.approx(losses[40], abs=0.5)


def test_every_probe_stands_in_the_history(run: Path):
    for key in (
        "best_induction",
        "first_copy_loss",
        "second_copy_accuracy",
        "in_context_learning_score",
    ):
        assert set(history(run, key)) == {20, 40}


def test_the_history_holds_what_the_model_scores(run: Path):
    model = interp.load(str(run))
    scores = interp.head_scores(model, n=15, n_sequences=32)
    assert history(run, "best_induction")[40] == pytest.approx(
        scores.sel(score="induction").values.max(), abs=1e-6
    )


def test_the_card_says_what_was_measured(run: Path, recipe: Recipe):
    card, numbers = (run / "README.md").read_text(), json.loads((run / "scores.json").read_text())
    model = interp.load(str(run))
    scores = interp.head_scores(model, n=15).sel(score="induction")
    assert numbers["best_head"] == scores.best()
    assert numbers["induction_score"] == pytest.approx(scores.values.max(), abs=1e-6)
    assert numbers["tokens_read"] == recipe.tokens == 40 * 8 * 32
    assert f"{numbers['held_out_loss']:.3f} nats" in card
    assert recipe.to_toml().strip() in card


def test_resuming_ends_with_the_same_weights(run: Path, recipe: Recipe, tmp_path: Path):
    cut_short = tmp_path / "run"
    shutil.copytree(run, cut_short)
    shutil.rmtree(cut_short / "checkpoints" / "checkpoint-40")
    (cut_short / "model.safetensors").unlink()
    train(recipe, cut_short, resume=True)
    before, after = load_file(run / "model.safetensors"), load_file(cut_short / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_checkpoint_is_a_model(run: Path):
    halfway = interp.load(str(run / "checkpoints" / "checkpoint-20"))
    final = interp.load(str(run))
    assert not torch.equal(halfway.W_E, final.W_E)


def test_the_global_random_state_is_given_back(recipe: Recipe, tmp_path: Path):
    def state() -> list:
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002 (the Trainer uses it)
        return [random.getstate(), numpy, torch.get_rng_state().tolist()]

    before = state()
    train(recipe.replace(steps=2), tmp_path / "run")
    assert state() == before


def test_refusals_come_before_any_work(run: Path, recipe: Recipe, tmp_path: Path):
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(recipe, run)
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume"):
        train(recipe, tmp_path / "empty", resume=True)
    with pytest.raises(ValueError, match="differs from the recipe"):
        train(recipe.replace(learning_rate=0.5), run, resume=True)
    with pytest.raises(ValueError, match="fewer than batch_size=100000"):
        train(recipe.replace(batch_size=100_000), tmp_path / "large")


@pytest.mark.parametrize("architecture", ["HookedSmearedAttn", "HookedAttnAttn", "HookedGPT"])
def test_other_presets_train_too(architecture: str, recipe: Recipe, tmp_path: Path):
    directory = train(
        recipe.replace(architecture=architecture, steps=4, probe_steps=4), tmp_path / "run"
    )
    assert type(interp.load(str(directory))).__name__ == architecture


def test_characters_and_tied_embeddings(recipe: Recipe, tmp_path: Path):
    model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "tied": True}
    changes = {
        "architecture": "HookedGPT",
        "tokenizer": "characters",
        "vocab_size": 64,
        "model": model,
    }
    directory = train(recipe.replace(**changes, steps=4, probe_steps=4), tmp_path / "run")
    loaded = interp.load(str(directory))
    assert loaded.tokenizer.decode(loaded.tokenizer("alpha")["input_ids"]) == "alpha"
    assert torch.equal(loaded.W_U, loaded.W_E.T)


@pytest.mark.slow
def test_compiled_training_is_the_same_training(recipe: Recipe, tmp_path: Path):
    short = recipe.replace(steps=4, probe_steps=4)
    eager = train(short, tmp_path / "eager")
    # In a process of its own: dynamo cannot trace the shape checks that the tests run under.
    (tmp_path / "compiled.toml").write_text(short.replace(compile=True).to_toml())
    compiled = tmp_path / "compiled"
    command = [sys.executable, "-m", "interp.cli", "train", tmp_path / "compiled.toml"]
    subprocess.run([*command, "--out", compiled], check=True, capture_output=True)
    losses = history(eager, "eval_loss")
    assert history(compiled, "eval_loss")[4] == pytest.approx(losses[4], abs=1e-4)
    assert type(interp.load(str(compiled))) is interp.HookedConvAttn
