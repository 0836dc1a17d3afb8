"""Tables that runs wrote while they trained, read back as results."""

import math
from importlib import resources

import numpy as np
import pandas as pd
import pytest

from interp.analysis import (
    best_head,
    phase_change,
    recorded,
    suite,
    suite_table,
    tokens_to_reach,
    training_curves,
)
from interp.analysis.development import training_tables

STEPS = (0, 1, 10, 100)
MEMBERS = ("conv-attn", "attn")


def rows(run: int, member: str, corpus: str) -> list[dict]:
    name, labels = f"{member}-{corpus}-seed{run}", ("L1H0", "L1H1")
    table = []
    for place, step in enumerate(STEPS):
        origin = {
            "run": name, "member": member, "architecture": "Hooked", "corpus": corpus,
            "positions": "none", "seed": run, "parameters": 1000, "step": step,
            "tokens": 64 * step, "n_sequences": 50, "standard_error": 0.01,
        }  # fmt: skip
        for head, label in enumerate(labels):
            value = (place + 10 * head) * (member == "conv-attn") + run / 10
            more = {
                "measure": "induction",
                "axis": "head",
                "label": label,
                "unit": "probability",
                "chance": 0.02,
            }
            table.append({**origin, **more, "value": value})
        for label, value in (("1", 5.0), ("2-3", 4.0), ("4-7", 3.0)):
            more = {
                "measure": "loss",
                "axis": "position",
                "label": label,
                "unit": "nats",
                "chance": math.nan,
            }
            table.append({**origin, **more, "value": value - place})
        more = {"measure": "drop", "axis": "", "label": "", "unit": "nats", "chance": 0.0}
        table.append({**origin, **more, "value": place})
    return table


@pytest.fixture
def table() -> pd.DataFrame:
    every = [
        row
        for corpus in ("docs", "prose")
        for member in MEMBERS
        for seed in (0, 1)
        for row in rows(seed, member, corpus)
    ]
    # Nobody has promised an order of the rows.
    return pd.DataFrame(every).sample(frac=1, random_state=0)


def test_one_result_for_each_run(table):
    runs = suite("drop", table=table)
    assert len(runs) == 8
    for run in runs:
        assert (run.name, run.axes, run.unit) == ("drop", ("step",), "nats")
        assert run.labels["step"] == STEPS
        assert run.values.tolist() == [0, 1, 2, 3]
        assert run.standard_error.tolist() == [0.01] * 4
        assert run.chance.tolist() == [0] * 4


def test_a_run_says_where_it_comes_from(table):
    [run] = suite("drop", table=table, member="attn", corpus="prose", seed=1)
    assert dict(run.provenance) == {
        "model": "attn-prose-seed1", "run": "attn-prose-seed1", "member": "attn",
        "architecture": "Hooked", "corpus": "prose", "positions": "none", "training_seed": 1,
        "parameters": 1000, "n_sequences": 50, "tokens_per_step": 64,
    }  # fmt: skip


def test_several_values_choose_several_runs(table):
    runs = suite("drop", table=table, member=MEMBERS, seed=[0, 1], corpus="docs")
    assert len(runs) == 4
    assert {run.provenance["corpus"] for run in runs} == {"docs"}


def test_labels_become_heads(table):
    [run] = suite("induction", table=table, run="conv-attn-docs-seed1")
    assert run.axes == ("step", "head")
    assert sorted(run.labels["head"]) == ["L1H0", "L1H1"]
    np.testing.assert_allclose(run.sel(head="L1H1").values, [10.1, 11.1, 12.1, 13.1])
    np.testing.assert_array_equal(run.chance, np.full((4, 2), 0.02))


def test_labels_become_positions_in_the_middle_of_their_bins(table):
    [run] = suite("loss", table=table, run="attn-docs-seed0")
    assert run.labels["position"] == (1, 2.5, 5.5)
    np.testing.assert_array_equal(run.sel(position=2.5).values, [4, 3, 2, 1])
    assert run.chance is None


def test_a_step_at_which_a_head_was_not_measured_is_nan(table):
    lost = (table["step"] == 10) & (table["label"] == "L1H1")
    [run] = suite("induction", table=table[~lost], run="attn-docs-seed0")
    assert np.isnan(run.sel(step=10, head="L1H1").values)
    assert np.isfinite(run.sel(step=10, head="L1H0").values)


def test_other_labels_keep_their_names():
    frame = pd.DataFrame(rows(0, "conv-attn", "docs")).replace(
        {"label": {"L1H0": "L0 lag 0", "L1H1": "L0 lag 1"}, "axis": {"head": "lag"}}
    )
    [run] = suite("induction", table=frame)
    assert run.labels["lag"] == ("L0 lag 0", "L0 lag 1")
    [run] = suite("induction", table=frame.drop(columns="axis"))
    assert run.labels["label"] == ("L0 lag 0", "L0 lag 1")


def test_a_table_from_before_the_column_axis_is_read_by_its_analyses(table):
    before = table.drop(columns="axis").assign(
        analysis=table["measure"].map(
            {"induction": "head_scores", "loss": "loss_by_position", "drop": "drop"}
        )
    )
    resumed = before.assign(axis=table["axis"].where(table["step"] > 1))
    for measure in ("induction", "loss", "drop"):
        for frame in (before, resumed):
            runs, expected = suite(measure, table=frame), suite(measure, table=table)
            assert [run.axes for run in runs] == [run.axes for run in expected]
            for run, same in zip(runs, expected, strict=True):
                axes = {axis: sorted(labels) for axis, labels in same.labels.items()}
                np.testing.assert_array_equal(run.sel(**axes).values, same.sel(**axes).values)


def test_values_on_two_axes_under_one_name_are_refused(table):
    twice = table.replace({"measure": {"loss": "induction"}})
    with pytest.raises(ValueError, match="for each head and for each position"):
        suite("induction", table=twice)


def test_what_comes_out_can_be_compared(table):
    runs = [best_head(run) for run in suite("induction", table=table, corpus="docs")]
    found = tokens_to_reach(runs, 12.05)
    assert set(found.labels["member"]) == set(MEMBERS)
    assert found.provenance["never"] == {"conv-attn": 0, "attn": 2}
    change = phase_change(suite("drop", table=table, seed=0)[0])
    assert change.unit["start"] == "tokens"


@pytest.mark.parametrize(
    ("measure", "which", "message"),
    [
        ("inductoin", {}, "no measure is 'inductoin'; there are .*induction"),
        ("drop", {"member": "convattn"}, "no member is 'convattn'; there are .*conv-attn"),
        ("drop", {"seed": [0, 7]}, "no seed is 7"),
        ("drop", {"colour": "blue"}, "no column 'colour'; it has .*member"),
    ],
)
def test_what_the_table_does_not_have_is_refused(table, measure, which, message):
    with pytest.raises(ValueError, match=message):
        suite(measure, table=table, **which)


def test_steps_of_changing_size_are_refused(table):
    table.loc[table["step"] == 100, "tokens"] = 7000
    with pytest.raises(ValueError, match="reads 64 to 70 tokens in a step"):
        suite("drop", table=table)


def test_errors_on_text_that_were_left_blank_are_unknown(table):
    """And not 0: nothing is drawn or resampled of them, and the result says why."""
    text = table.assign(analysis="in_context_learning_score")
    [run] = suite("drop", table=text, run="attn-docs-seed0")
    assert run.provenance["sequences"] == "taken as independent"
    drawn = len(run.plot().data)
    [run] = suite("drop", table=text.assign(standard_error=np.nan), run="attn-docs-seed0")
    assert run.standard_error is None
    assert run.provenance["errors"].startswith("unknown")
    assert "sequences" not in run.provenance
    figure = run.plot()
    assert "errors unknown" in figure.layout.title.text
    assert len(figure.data) == drawn - 1  # all but the band
    assert phase_change(run, least=0).provenance["interval"] == "none: no standard errors"
    [grouped] = suite("drop", table=text.assign(n_groups=7), run="attn-docs-seed0")
    assert grouped.provenance["errors"] == "over group means"


def test_an_installation_without_a_suite_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(training_tables.resources, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"checkpoints/suite\.parquet"):
        suite_table()


def test_the_suite_is_read_from_the_package(monkeypatch, tmp_path, table):
    (tmp_path / "checkpoints").mkdir()
    table.to_parquet(tmp_path / "checkpoints" / "suite.parquet")
    monkeypatch.setattr(training_tables.resources, "files", lambda package: tmp_path)
    assert len(suite_table()) == len(table)
    assert len(suite("drop")) == 8


@pytest.mark.skipif(
    not (resources.files("interp") / "checkpoints" / "suite.parquet").is_file(),
    reason="the suite has not been collected yet",
)
def test_the_suite_that_ships_holds_what_the_figures_need():
    assert {"conv-attn", "attn-attn", "smeared-attn", "attn"} <= set(suite_table()["member"])
    for measure in ("induction", "second_copy_loss", "in_context_learning_score", "loss"):
        for run in suite(measure):
            assert run.provenance["tokens_per_step"] > 0


# ------------------------------------------------------------------------------- a run's directory


@pytest.fixture
def directory(tmp_path):
    frame = pd.DataFrame(rows(0, "conv-attn", "docs"))
    own = ["step", "tokens", "measure", "label", "value", "standard_error", "chance", "unit"]
    frame[own].to_parquet(tmp_path / "development.parquet")
    (tmp_path / "recipe.toml").write_text('architecture = "HookedConvAttn"\nseed = 5\n')
    lines = ["step,tokens,metric,value", "10,640,loss,6.5", "10,640,grad_norm,0.7"]
    lines += ["20,1280,loss,5.5", "20,1280,eval_loss,5.25", "20,1280,eval_accuracy,0.125"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_run_is_read_from_its_own_table(directory):
    run = recorded(directory, "drop")
    assert run.values.tolist() == [0, 1, 2, 3]
    facts = {"model": directory.name, "run": directory.name, "architecture": "HookedConvAttn"}
    assert dict(run.provenance) == {**facts, "training_seed": 5, "tokens_per_step": 64}
    with pytest.raises(ValueError, match="no measure is 'norm'"):
        recorded(str(directory), "norm")


def test_training_curves_are_what_was_logged(directory):
    curves = training_curves(directory)
    assert curves.axes == ("step", "measure")
    assert curves.labels["step"] == (10, 20)
    assert curves.sel(measure="train_loss").values.tolist() == [6.5, 5.5]
    np.testing.assert_array_equal(curves.sel(measure="validation_loss").values, [np.nan, 5.25])
    assert float(curves.sel(measure="validation_accuracy", step=20)) == 0.125
    assert curves.unit["validation_accuracy"] == "fraction"
    assert curves.standard_error is None


def test_a_directory_without_tables_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no development\.parquet; train with a recipe"):
        recorded(tmp_path, "drop")
    with pytest.raises(FileNotFoundError, match=r"no metrics\.csv"):
        training_curves(tmp_path)
