"""A short run, looked at from all sides: what it writes, what it measures, how it resumes."""

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.data.blocks import open_table
from interp.training import Recipe, train
from interp.training import run as run_module
from interp.training import trainer as trainer_module


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


def test_held_out_loss_and_accuracy_are_those_of_all_held_out_tokens(run: Path):
    names = json.loads((run / "blocks.json").read_text())
    text = open_table(run / "data" / names["held_out"])[:]["input_ids"]
    assert len(text) % 32  # the last batch of an evaluation is smaller
    logits, loss = interp.load(str(run))(text, return_type="both")
    accuracy = (logits[:, :-1].argmax(-1) == text[:, 1:]).double().mean()
    assert history(run, "eval_loss")[40] == pytest.approx(loss.item(), abs=1e-5)
    assert history(run, "eval_accuracy")[40] == pytest.approx(float(accuracy), abs=1e-7)


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
    names = json.loads((run / "blocks.json").read_text())
    groups = open_table(run / "data" / names["held_out"])[:]["group"]
    assert f"over the {len(set(groups))} groups" in card
    assert numbers["induction_score"] == pytest.approx(scores.values.max(), abs=1e-6)
    assert numbers["tokens_read"] == recipe.tokens == 40 * 8 * 32
    assert f"{numbers['held_out_loss']:.3f} nats" in card
    assert recipe.to_toml().strip() in card


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_resuming_ends_with_the_same_weights_and_numbers(run: Path, recipe: Recipe, tmp_path: Path):
    cut_short = tmp_path / "run"
    shutil.copytree(run, cut_short)
    shutil.rmtree(cut_short / "checkpoints" / "checkpoint-40")
    (cut_short / "model.safetensors").unlink()
    train(recipe, cut_short, resume=True)
    assert same_weights(run, cut_short)
    assert (cut_short / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def test_resuming_from_between_two_logs_changes_no_logged_mean(recipe: Recipe, tmp_path: Path):
    recipe = recipe.replace(steps=12, probe_steps=60, save_steps=4)  # logged every 6 steps
    whole, cut_short = (train(recipe, tmp_path / name) for name in ("whole", "cut"))
    shutil.rmtree(cut_short / "checkpoints" / "checkpoint-12")
    train(recipe, cut_short, resume=True)
    assert set(history(whole, "loss")) == {4, 6, 8, 12}
    assert history(whole, "loss") == history(cut_short, "loss")


def test_resuming_a_run_that_has_no_checkpoint_begins_it(
    run: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(recipe, tmp_path / "run", resume=True)
    assert "tiny: no checkpoint yet, beginning at step 0" in capsys.readouterr().err
    assert same_weights(run, tmp_path / "run")


def test_resuming_a_run_that_is_through_writes_what_is_missing(
    run: Path, recipe: Recipe, tmp_path: Path
):
    done = tmp_path / "run"
    shutil.copytree(run, done)
    for name in ("model.safetensors", "history.json", "README.md"):
        (done / name).unlink()
    train(recipe, done, resume=True)
    assert same_weights(run, done)
    assert (done / "metrics.csv").read_text() == (run / "metrics.csv").read_text()
    assert history(done, "loss") == history(run, "loss")
    assert {path.name for path in (done / "checkpoints").iterdir()} == {
        ".lock",
        "checkpoint-20",
        "checkpoint-40",
    }
    interp.load(str(done))


def test_resuming_on_other_text_is_refused(recipe: Recipe, tmp_path: Path):
    shutil.copytree(Path(recipe.corpus).parent, tmp_path / "text")
    recipe = recipe.replace(corpus=str(tmp_path / "text" / "*.txt"), steps=1)
    directory = train(recipe, tmp_path / "run")
    (tmp_path / "text" / "00.txt").write_text("Something else. " * 100)
    train(recipe, directory, resume=True)  # the blocks are still there
    shutil.rmtree(directory / "data")
    with pytest.raises(ValueError, match="trained on other blocks: they are gone"):
        train(recipe, directory, resume=True)


def test_a_run_that_diverges_ends_and_says_so(recipe: Recipe, tmp_path: Path):
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: .* lower learning_rate"):
        train(recipe.replace(learning_rate=1e30), tmp_path / "run")
    assert ",loss,nan" in (tmp_path / "run" / "metrics.csv").read_text()


def test_every_checkpoint_is_a_model(run: Path):
    halfway = interp.load(str(run / "checkpoints" / "checkpoint-20"))
    final = interp.load(str(run))
    assert not torch.equal(halfway.W_E, final.W_E)


def test_the_global_random_state_is_given_back(recipe: Recipe, tmp_path: Path):
    def state() -> list:
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002 (the Trainer uses it)
        return [random.getstate(), numpy, torch.get_rng_state().tolist()]

    short = recipe.replace(steps=2)  # beartype draws random numbers to check it
    before = state()
    train(short, tmp_path / "run")
    assert state() == before


def test_a_batch_that_two_processes_cannot_share_is_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module, "processes", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="batch_size is 7, which 2 processes cannot share equally"):
        train(recipe.replace(batch_size=7), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trainer_module, "get_available_reporting_integrations", lambda: ["wandb"])
    with pytest.raises(ValueError, match="'trackio', which is not installed; pip install trackio"):
        train(recipe, tmp_path / "run", report_to="trackio")
    assert not (tmp_path / "run").exists()


def test_a_tracker_gets_what_is_logged(run: Path, recipe: Recipe, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(recipe.replace(steps=20), tmp_path / "run", report_to="tensorboard", data=run / "data")
    (events,) = (tmp_path / "run" / "runs").glob("*/events.*")
    found = EventAccumulator(str(events)).Reload()
    for tag, name in (("train/loss", "loss"), ("train/best_induction", "best_induction")):
        logged = {event.step: event.value for event in found.Scalars(tag)}
        assert logged == pytest.approx(history(tmp_path / "run", name))
    assert [event.step for event in found.Scalars("eval/accuracy")] == [20]


def test_refusals_come_before_any_work(run: Path, recipe: Recipe, tmp_path: Path):
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(recipe, run)
    with pytest.raises(ValueError, match="differs from the recipe"):
        train(recipe.replace(learning_rate=0.5), run, resume=True)
    with pytest.raises(ValueError, match=r"report_to is 'tensorbord'.*no tracker"):
        train(recipe, tmp_path / "tracked", report_to="tensorbord")
    assert not (tmp_path / "tracked").exists()
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
