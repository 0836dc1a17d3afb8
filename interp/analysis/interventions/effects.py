"""From what was measured to a `Result`: effects, their errors, and what chance would do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interp.analysis.interventions.units import Unit
from interp.results.result import Result
from interp.results.sampling import Sampling

Row = tuple[np.ndarray, np.ndarray]
"""A measure's value for every unit, and its standard error."""


def mean_and_error(samples: np.ndarray, sampling: Sampling) -> Row:
    """Over the second axis, that of the sequences."""
    return sampling.mean_and_error(np.moveaxis(samples, 1, 0))


def effect_rows(
    clean: np.ndarray,
    changed: np.ndarray,
    controls: Sequence[Sequence[int]],
    sampling: Sampling,
) -> dict[str, Row]:
    """Each unit's effect and the clean value; mean, lowest and highest effect of its controls.

    Args:
        clean: `[sequence ...]`.
        changed: `[change sequence ...]`; the units' own changes come first.
        controls: for each unit, which changes it is compared with.
        sampling: which sequences belong together; effects are paired first.
    """
    n_units = len(controls)
    differences = changed - clean
    rows = {
        "effect": mean_and_error(differences[:n_units], sampling),
        "clean": mean_and_error(np.broadcast_to(clean, (n_units, *clean.shape)), sampling),
    }
    if any(controls):
        rows |= control_rows(differences.mean(1), controls)
    return rows


def control_rows(means: np.ndarray, controls: Sequence[Sequence[int]]) -> dict[str, Row]:
    """Mean, lowest and highest over the draws that each unit is compared with."""
    unknown = np.full((len(controls), *means.shape[1:]), np.nan)
    return {
        name: (_over_draws(summary, means, controls), unknown)
        for name, summary in (("random", np.mean), ("random_low", np.min), ("random_high", np.max))
    }


def _over_draws(summary: Any, means: np.ndarray, controls: Sequence[Sequence[int]]) -> np.ndarray:
    nothing = np.full(means.shape[1:], np.nan)
    return np.stack([summary(means[list(c)], axis=0) if c else nothing for c in controls])


def effects(
    name: str,
    rows: Mapping[str, Row],
    axes: Mapping[str, Sequence[Any]],
    unit: str | Mapping[str, str],
    provenance: Mapping[str, Any],
) -> Result:
    """A Result over "measure" and these axes; chance is what the random draws do on average."""
    shape = (len(rows), *(len(labels) for labels in axes.values()))
    values = np.stack([value for value, _ in rows.values()]).reshape(shape)
    errors = np.stack([error for _, error in rows.values()]).reshape(shape)
    chance = None
    if "random" in rows:
        chance = np.full(shape, np.nan)
        chance[list(rows).index("effect")] = values[list(rows).index("random")]
    return Result(
        name,
        values,
        ("measure", *axes),
        labels={"measure": tuple(rows), **{axis: tuple(x) for axis, x in axes.items()}},
        standard_error=errors,
        chance=chance,
        unit=unit,
        provenance=dict(provenance),
    )


def unit_axes(units: Sequence[Unit], measured: Sequence[int] | None) -> dict[str, Sequence[Any]]:
    """The axes of these units, of which a metric measures one or several positions.

    Units at single positions make a grid with an axis "position", where they are all there.
    """
    labels, names = [unit.label for unit in units], [unit.name for unit in units]
    axis = "head" if all(unit.is_head for unit in units) else "component"
    if measured is None and (positions := _grid(units)):
        return {axis: list(dict.fromkeys(names)), "position": positions}
    axis = axis if names == labels else "component"
    return {axis: labels} if measured is None else {axis: labels, "position": measured}


def _grid(units: Sequence[Unit]) -> list[int]:
    """The positions, where units are everything at each of the same positions, of several."""
    names = dict.fromkeys(unit.name for unit in units)
    positions = list({str(unit.position): unit.position for unit in units}.values())
    whole = [position for position in positions if isinstance(position, int)]
    grid = [(name, position) for name in names for position in whole]
    many = len(whole) == len(positions) > 1 and grid == [(u.name, u.position) for u in units]
    return whole if many else []
