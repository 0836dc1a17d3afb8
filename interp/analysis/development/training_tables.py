"""What runs measured and wrote down while they trained: read again, and nothing trained or run."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.analysis.probes.probe import TAKEN_AS_INDEPENDENT
from interp.results.result import Label, Result
from interp.views.revisions import told_by_recipe

TABLE, METRICS = "development.parquet", "metrics.csv"
ORIGIN = {
    "run": "run",
    "member": "member",
    "architecture": "architecture",
    "corpus": "corpus",
    "positions": "positions",
    "training_seed": "seed",
    "parameters": "parameters",
    "flops_per_token": "flops_per_token",
    "n_sequences": "n_sequences",
    "n_groups": "n_groups",
}
"""Names in a provenance, and the columns they are read from, where a table has them."""
CURVES = {
    "train_loss": ("loss", "nats"),
    "validation_loss": ("eval_loss", "nats"),
    "validation_accuracy": ("eval_accuracy", "fraction"),
}
ON_TEXT = ("text", "in_context_learning_score", "loss_by_position")
"""Analyses in a table that were made on blocks of text."""
UNKNOWN = "unknown: the groups of the text were not kept"
"""What a result says of errors on text that a table leaves blank."""
AXES = {
    "head_scores": "head",
    "smear": "head",
    "loss_by_position": "position",
    "conv": "lag",
}
"""What the labels of an analysis are labels of, for tables without the column "axis"."""


def suite_table() -> pd.DataFrame:
    """The development of every run of the reference suite, as one tidy table.

    A row is one number of one run at one step: `run`, `member` (what the suite calls this kind of
    model), `architecture`, `corpus`, `seed`, ..., `step`, `tokens`, `measure`, `axis` ("head",
    "position", "lag", or nothing), `label` on it, `value`, `standard_error`, ... Errors of what was
    measured on text are NaN where the groups of its blocks are not known: neighbouring blocks are
    not independent.

    Raises:
        FileNotFoundError: this installation has no suite.
    """
    path = Path(str(resources.files("interp"))) / "checkpoints" / "suite.parquet"
    if not path.is_file():
        raise FileNotFoundError(
            "this installation of interp has no checkpoints/suite.parquet; install it anew, or "
            "read a run of your own with recorded()"
        )
    return pd.read_parquet(path)


def suite(
    measure: str, *, table: pd.DataFrame | None = None, **which: Label | Sequence[Label]
) -> tuple[Result, ...]:
    """How one measure developed in the runs of the reference suite.

    Args:
        measure: such as "induction", "second_copy_loss" or "in_context_learning_score".
        table: another table of the same columns than the bundled one.
        which: the runs to take, by the columns `member`, `corpus`, `seed`, ...; a value or several.
            All are taken by default.

    Returns:
        One Result for each run: over "step", and "head", "position" or "lag" where the measure has
        a value for each. Its provenance names run, member, corpus, training seed, ...

    Raises:
        ValueError: a measure, column or value that the table does not have; the message lists
            those there are.

    >>> table = pd.DataFrame({"run": "attn-seed0", "member": "attn", "seed": 0, "step": [0, 10],
    ...     "tokens": [0, 80], "measure": "drop", "axis": "", "label": "", "value": [0.0, 0.1],
    ...     "standard_error": [0.1, 0.2]})
    >>> [run] = suite("drop", table=table, member="attn")
    >>> run.values.tolist(), run.provenance["tokens_per_step"]
    ([0.0, 0.1], 8)
    """
    rows = _having(suite_table() if table is None else table, "measure", measure)
    for column, wanted in which.items():
        rows = _having(rows, column, wanted)
    return tuple(_result(run) for _, run in rows.groupby("run", sort=False))


def recorded(directory: str | Path, measure: str) -> Result:
    """How one measure developed in a run, as it was measured while the model trained.

    Faster than `development`, which measures the run's snapshots again, and anything.

    Args:
        directory: a run's, whose recipe asked for snapshots.
        measure: such as "induction" or "validation_loss".

    Raises:
        FileNotFoundError: the directory holds no such table.
        ValueError: a measure that was not taken; the message lists those that were.
    """
    path = Path(directory) / TABLE
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} holds no {TABLE}; train with a recipe that keeps snapshots"
        )
    rows = _having(pd.read_parquet(path), "measure", measure)
    result = _result(rows.assign(run=Path(directory).resolve().name))
    return replace(result, provenance={**told_by_recipe(Path(directory)), **result.provenance})


def training_curves(directory: str | Path) -> Result:
    """Loss in training and on held-out text, and the accuracy there, as a run logged them.

    Args:
        directory: a run's.

    Returns:
        A Result over "step" and "measure": `train_loss` and `validation_loss` in nats,
        `validation_accuracy` as the share of tokens that are the likeliest prediction. It is NaN at
        steps at which a measure was not taken.

    Raises:
        FileNotFoundError: the directory holds no metrics.
    """
    path = Path(directory) / METRICS
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no {METRICS}; give the directory of a run")
    table = pd.read_csv(path)
    measures = {logged: measure for measure, (logged, _) in CURVES.items()}
    rows = table.loc[table["metric"].isin(measures)].rename(columns={"metric": "label"})
    rows = rows.replace({"label": measures})
    rows = rows.assign(run=Path(directory).resolve().name, measure="training_curves")
    units = {name: CURVES[name][1] for name in rows["label"].unique()}
    return _result(rows, axis="measure", unit=units)


def _having(table: pd.DataFrame, column: str, wanted: Label | Sequence[Label]) -> pd.DataFrame:
    """The rows with one of these values; a value that no row has is refused."""
    if column not in table:
        raise ValueError(f"the table has no column {column!r}; it has {', '.join(table.columns)}")
    values = [wanted] if isinstance(wanted, Label) else list(wanted)
    there = table[column].unique().tolist()
    for value in values:
        if value not in there:
            raise ValueError(f"no {column} is {value!r}; there are {', '.join(map(str, there))}")
    return table.loc[table[column].isin(values)]


def _result(rows: pd.DataFrame, axis: str | None = None, unit: Any = None) -> Result:
    """The rows of one run and one measure, over "step" and what their labels name."""
    steps, names = sorted(set(rows["step"].tolist())), list(dict.fromkeys(rows["label"]))
    axis = axis or _axis(rows)
    labels: dict[str, Label] = {name: name for name in names}
    if axis == "position":
        labels = dict(sorted(zip(names, map(_middle, names), strict=True), key=lambda one: one[1]))
        names = list(labels)

    def grid(column: str) -> np.ndarray:
        cells = rows.pivot(index="step", columns="label", values=column)
        return cells.loc[steps, names].to_numpy(dtype=np.float64)

    def known(column: str) -> np.ndarray | None:
        cells = grid(column) if column in rows else np.array([])
        return None if np.isnan(cells).all() else cells

    error = known("standard_error")
    result = Result(
        str(rows["measure"].iloc[0]),
        grid("value"),
        ("step", axis),
        labels={"step": steps, axis: [*labels.values()]},
        standard_error=error,
        chance=known("chance"),
        unit=unit or (str(rows["unit"].iloc[0]) if "unit" in rows else ""),
        provenance=_origin(rows, error is not None),
    )
    return result.sel(label="") if names == [""] else result


def _axis(rows: pd.DataFrame) -> str:
    """What the rows say that their labels are labels of; else what their analysis has."""
    said = rows.reindex(columns=["axis", "analysis"]).drop_duplicates().to_numpy().tolist()
    found = {AXES.get(analysis, "") if pd.isna(axis) else axis for axis, analysis in said}
    axes = sorted(found - {""})
    if len(axes) > 1:
        raise ValueError(
            f"{rows['measure'].iloc[0]} has values for each {axes[0]} and for each {axes[1]}; "
            "give a table with those of one"
        )
    return axes[0] if axes else "label"


def _middle(label: str) -> Label:
    """The position in "17", or the middle of those that were taken together, as in "17-18"."""
    first, _, last = label.partition("-")
    return (int(first) + int(last)) / 2 if last else int(first)


def _origin(rows: pd.DataFrame, has_errors: bool) -> dict[str, Any]:
    """What all rows say alike of their run, and how many tokens a step of it read."""
    first = rows.iloc[0]
    origin = {ours: first[column] for ours, column in ORIGIN.items() if column in rows}
    later = rows.loc[rows["step"] > 0]
    rates = sorted({n / step for n, step in zip(later["tokens"], later["step"], strict=True)})
    if len(rates) > 1:
        raise ValueError(
            f"run {first['run']!r} reads {rates[0]:g} to {rates[-1]:g} tokens in a step; it must "
            "be as many at every step"
        )
    origin["tokens_per_step"] = rates[0] if rates else None
    known = {name: _plain(value) for name, value in origin.items() if pd.notna(value)}
    if "n_groups" in known:
        known["errors"] = "over group means"
    elif first.get("analysis") in ON_TEXT:
        if has_errors:
            known["sequences"] = TAKEN_AS_INDEPENDENT
        else:
            known["errors"] = UNKNOWN
    return {"model": str(first["run"]), **known}


def _plain(value: Any) -> Any:
    """What JSON takes, and a whole number as one."""
    plain = value.item() if isinstance(value, np.generic) else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain
