"""Models at log-spaced steps, what is measured of them, and that no row is there twice."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

import interp
from interp.analysis import stretches
from interp.training import Recipe, train
from interp.training.snapshots import (
    append,
    measured,
    position_bins,
    snapshot_steps,
)
from interp.training.text import Text, spread, text_of

STEPS = (0, 1, 3, 6, 16, 40)


@pytest.fixture(scope="module")
def kept(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with six snapshots."""
    directory = tmp_path_factory.mktemp("kept") / "run"
    # 40 blocks of held-out text, and so 10 to train on.
    return train(recipe.replace(snapshots=6, snapshot_blocks=40), directory)


@pytest.fixture(scope="module")
def table(kept: Path) -> pd.DataFrame:
    return pd.read_parquet(kept / "development.parquet")


@pytest.mark.parametrize(
    ("n", "last", "expected"),
    [
        (2, 1000, (0, 1000)),
        (3, 1000, (0, 10, 1000)),
        (4, 100, (0, 1, 10, 100)),
        # Ratios of 10^(1/3): 1, 2.15, 4.64, 10, 21.5, 46.4, 100.
        (8, 100, (0, 1, 2, 5, 10, 22, 46, 100)),
        (4, 2000, (0, 20, 200, 2000)),  # the first hundredth of a run shows nothing
        # Ratios of 1.58 below 3: 1, 1.58 and 2.51 round to 1, 2, 3; then 3.98, 6.3, 10.
        (7, 10, (0, 1, 2, 3, 4, 6, 10)),
        # 1, 1.26, 1.58, 2, ..., 5.0, 6.3, 7.9, 10: whole numbers run out, so each is taken.
        (11, 10, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
        (20, 3, (0, 1, 2, 3)),
        (2, 1, (0, 1)),
    ],
)
def test_steps_by_hand(n: int, last: int, expected: tuple[int, ...]):
    assert snapshot_steps(n, last) == expected


@pytest.mark.parametrize("last", [1, 2, 5, 13, 100, 2000])
@pytest.mark.parametrize("n", [2, 3, 5, 20, 40])
def test_steps_are_as_many_as_asked_for_and_rise(n: int, last: int):
    steps = snapshot_steps(n, last)
    assert len(steps) == min(n, last + 1)
    assert (steps[0], steps[-1]) == (0, last)
    assert list(steps) == sorted(set(steps))


def test_positions_are_each_in_one_bin():
    bins = position_bins(256)
    assert [position for first, last in bins for position in range(first, last + 1)] == list(
        range(1, 256)
    )
    assert bins[:8] == [(n, n) for n in range(1, 8)] + [(8, 9)]
    assert len(bins) < 45


def test_blocks_come_from_all_over_the_text():
    blocks = Dataset.from_dict({"input_ids": [[n] for n in range(101)]}).with_format("torch")
    assert spread(blocks, 5).tokens.flatten().tolist() == [0, 25, 50, 75, 100]
    assert len(spread(blocks, 1000).tokens) == 101


def test_blocks_bring_their_groups():
    names = ["numpy"] * 60 + ["torch"] * 41
    columns = {"input_ids": [[n] for n in range(101)], "group": names}
    blocks = Dataset.from_dict(columns).with_format("torch")
    assert spread(blocks, 5).groups == ["numpy"] * 3 + ["torch"] * 2
    assert text_of(blocks).groups == names
    before = blocks.select_columns("input_ids")  # as packed before blocks had groups
    assert spread(before, 40).groups == stretches(40)


def test_every_snapshot_is_a_model(kept: Path):
    names = {path.name for path in (kept / "snapshots").iterdir()}
    assert names == {f"step{step}" for step in STEPS}
    first, last = (interp.load(str(kept / "snapshots" / f"step{step}")) for step in (0, 40))
    final = interp.load(str(kept))
    assert torch.equal(last.W_E, final.W_E)
    fresh = Recipe.load(kept / "recipe.toml").build(first.config.d_vocab)
    assert torch.equal(first.W_E, fresh.W_E)


def test_snapshots_are_a_run_for_development(kept: Path):
    assert interp.Checkpoints.from_run(kept).steps == STEPS


def test_the_table_holds_every_number_of_every_snapshot(table: pd.DataFrame):
    assert tuple(sorted(table["step"].unique())) == STEPS
    assert (table["tokens"] == table["step"] * 8 * 32).all()
    counts = table.groupby("step").size()
    assert counts.nunique() == 1
    assert not table.duplicated(["step", "analysis", "measure", "label"]).any()
    assert set(table["measure"]) == {
        *("induction", "previous_token", "duplicate_token", "first_token"),
        *("first_copy_loss", "second_copy_loss", "drop", "second_copy_accuracy"),
        *("validation_loss", "validation_accuracy", "train_loss", "train_accuracy"),
        *("in_context_learning_score", "loss", "norm"),
    }


def test_the_table_agrees_with_the_analyses_of_the_kept_models(kept: Path, table: pd.DataFrame):
    text = interp.load_corpus(Recipe.load(kept / "recipe.toml").corpus, held_out=0.3)
    for step in (1, 40):
        model = interp.load(str(kept / "snapshots" / f"step{step}"))
        rows = table[table["step"] == step].set_index(["measure", "label"])
        blocks = interp.pack(text.split("validation"), model.tokenizer, 32, kept / "again")
        tokens, groups = spread(blocks, 40)
        icl = interp.in_context_learning_score(model, tokens, groups=groups)
        loss = interp.loss_by_position(model, tokens)
        heads = interp.head_scores(model, n=15)
        copies = interp.repeated_sequence_loss(model, n=15)
        one = rows.loc[("in_context_learning_score", "")]
        assert one["value"] == pytest.approx(float(icl), abs=1e-6)
        assert one["standard_error"] == pytest.approx(float(icl.standard_error[0]), abs=1e-6)
        assert rows.loc[("loss", "3"), "value"] == pytest.approx(loss.values[2], abs=1e-6)
        assert rows.loc[("loss", "8-9"), "value"] == pytest.approx(loss.values[7:9].mean())
        whole = rows.loc[("validation_loss", ""), "value"]
        assert whole == pytest.approx(loss.values.mean(), abs=1e-6)
        for head in ("L1H0", "L1H1"):
            expected = heads.sel(score="induction", head=head)
            assert rows.loc[("induction", head), "value"] == pytest.approx(float(expected))
            assert rows.loc[("induction", head), "chance"] == float(expected.chance)
        assert rows.loc[("drop", ""), "value"] == pytest.approx(float(copies.sel(measure="drop")))
        assert rows.loc[("norm", "L0 lag 1"), "value"] == pytest.approx(
            model.conv(0).W_conv[1].norm().item()
        )
        assert rows.loc[("validation_loss", ""), "n_sequences"] == 40
        assert rows.loc[("train_loss", ""), "n_sequences"] == 10
        assert one["n_groups"] == icl.provenance["n_groups"] == len(set(groups)) > 1
        assert pd.isna(rows.loc[("drop", ""), "n_groups"])


def test_accuracy_is_the_share_of_likeliest_tokens():
    model = interp.HookedSmearedAttn(d_vocab=60, d_model=16, n_heads=2, n_ctx=32)
    generator = torch.Generator().manual_seed(0)
    text, other = torch.randint(60, (2, 20, 32), generator=generator)
    parts = {"validation": Text(text, range(20)), "train": Text(other, range(20))}
    rows = measured(model, parts).set_index(["measure", "label"])
    logits = model(text)
    hits = (logits[:, :-1].argmax(-1) == text[:, 1:]).float().mean(1)
    row = rows.loc[("validation_accuracy", "")]
    assert row["value"] == pytest.approx(hits.mean().item())
    assert row["standard_error"] == pytest.approx(hits.std().item() / np.sqrt(20))
    assert rows.loc[("share", "L0H1"), "value"] == 0.5  # sigmoid(0)


def test_measuring_changes_nothing():
    model = interp.HookedGPT(d_vocab=60, d_model=16, n_heads=2, n_layers=1, n_ctx=32, dropout=0.5)
    model.train()
    text = torch.randint(60, (4, 32), generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    parts = dict.fromkeys(("validation", "train"), Text(text, stretches(4)))
    first, second = measured(model, parts), measured(model, parts)
    pd.testing.assert_frame_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_resumed_run_has_the_same_table(kept: Path, table: pd.DataFrame, tmp_path: Path):
    cut_short = tmp_path / "run"
    shutil.copytree(kept, cut_short)
    shutil.rmtree(cut_short / "checkpoints" / "checkpoint-40")
    # Killed after its last snapshot, before its last checkpoint: those rows are measured again.
    table.assign(value=table["value"].where(table["step"] < 40)).to_parquet(
        cut_short / "development.parquet"
    )
    recipe = Recipe.load(kept / "recipe.toml")
    train(recipe, cut_short, resume=True)
    again = pd.read_parquet(cut_short / "development.parquet")
    pd.testing.assert_frame_equal(again, table)


def test_rows_of_the_same_or_later_steps_give_way(tmp_path: Path):
    path = tmp_path / "table.parquet"
    for step in (0, 5, 9, 5):
        append(pd.DataFrame({"step": [step, step], "value": [0.0, 1.0]}), path)
    assert pd.read_parquet(path)["step"].tolist() == [0, 0, 5, 5]
    assert [item.name for item in tmp_path.iterdir()] == ["table.parquet"]
