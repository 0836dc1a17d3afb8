"""What every analysis returns: labelled numbers with their error, chance level and origin."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float64

from interp.public import provided
from interp.results import storage, tables
from interp.results.provenance import json_copy, versions
from interp.results.sampling import Groups, Sampling
from interp.results.storage import write_whole
from interp.results.tables import rounded

__all__ = ["Label", "Result", "over_samples", "rounded", "versions", "write_whole"]

Label = str | int | float | np.number


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Values on named axes, with their standard error, their chance level and where they come from.

    Args:
        name: what was measured ("induction_score").
        values: one float64 per combination of labels; read-only afterwards.
        axes: the name of each dimension of `values`: "head", "score", "position", "measure", ...
        labels: for every axis, one label per entry. A head is written "L1H3".
        standard_error: of each value, in the shape of `values`; NaN where unknown.
        chance: what chance would give; whatever broadcasts to the shape of `values`.
        unit: "probability", "nats", ...; or one unit for each label of the axis "measure".
        provenance: model, seed, number of sequences, variant, versions: whatever JSON can hold.

    Raises:
        ValueError: axes, labels and shapes disagree; the message names both sides.
        TypeError: the provenance holds something that JSON cannot.

    >>> labels = {"head": ("L1H0", "L1H1")}
    >>> scores = Result("induction_score", np.array([0.02, 0.91]), ("head",), labels)
    >>> scores.best()
    'L1H1'
    >>> float(scores.sel(head="L1H1"))
    0.91
    """

    name: str
    values: np.ndarray
    axes: tuple[str, ...]
    labels: Mapping[str, Sequence[Label]]
    standard_error: np.ndarray | None = None
    chance: np.ndarray | None = None
    unit: str | Mapping[str, str] = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        axes = tuple(self.axes)
        labels = {axis: tuple(map(_plain, names)) for axis, names in self.labels.items()}
        if sorted(labels) != sorted(axes):
            raise ValueError(f"{self.name}: the axes are {axes}, but labels name {tuple(labels)}")
        for axis, names in labels.items():
            if len(set(names)) != len(names):
                raise ValueError(f"{self.name}: axis {axis!r} repeats a label: {names}")
        measures = labels.get("measure", ())
        if not isinstance(self.unit, str) and set(self.unit) != set(measures):
            raise ValueError(
                f"{self.name}: units are given for {tuple(self.unit)}, the measures are "
                f"{measures}; give one unit for each, or one string for all"
            )
        shape = tuple(len(labels[axis]) for axis in axes)
        frozen = {
            "axes": axes,
            "labels": MappingProxyType({axis: labels[axis] for axis in axes}),
            "values": self._float64("values", self.values, shape),
            "unit": self.unit if isinstance(self.unit, str) else MappingProxyType(dict(self.unit)),
            "provenance": MappingProxyType(json_copy(self.name, self.provenance)),
        }
        if self.standard_error is not None:
            frozen["standard_error"] = self._float64("standard_error", self.standard_error, shape)
        if self.chance is not None:
            frozen["chance"] = self._float64("chance", self.chance, shape)
        for attribute, value in frozen.items():
            object.__setattr__(self, attribute, value)

    def _float64(self, what: str, given: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
        array = np.array(given, dtype=np.float64)
        if what == "chance":
            with suppress(ValueError):  # the shapes are compared below
                array = np.broadcast_to(array, shape).copy()
        if array.shape != shape:
            raise ValueError(f"{self.name}: {what} has shape {array.shape}, labels say {shape}")
        array.setflags(write=False)
        return array

    @classmethod
    def from_samples(
        cls,
        name: str,
        samples: npt.ArrayLike,
        axes: tuple[str, ...],
        *,
        groups: Groups | Sampling | None = None,
        **details: Any,
    ) -> "Result":
        """Mean and standard error over the first dimension of `samples`, which runs over sequences.

        The standard error is the sample deviation (ddof = 1) over the root of the number of
        sequences; with `groups`, a label for each sequence, it is that of the groups' means, of
        whatever sizes (`RunningMean` has the formula). Of one sequence, or of one group, it is NaN,
        never 0. `details` are `labels`, `chance`, `unit` and `provenance`, to which n_sequences is
        added, and n_groups.

        >>> r = Result.from_samples("loss", [[1.0], [3.0]], ("head",), labels={"head": ("L0H0",)})
        >>> float(r), float(r.standard_error[0]), r.provenance["n_sequences"]
        (2.0, 1.0, 2)
        """
        array = np.asarray(samples, dtype=np.float64)
        if array.ndim != len(axes) + 1 or not len(array):
            raise ValueError(
                f"{name}: samples have shape {array.shape}; expected one or more sequences x {axes}"
            )
        sampling = Sampling.of(groups, len(array))
        mean, error = sampling.mean_and_error(array)
        details["provenance"] = {**details.get("provenance", {}), **sampling.origin}
        if details.get("chance") is not None:
            details["chance"] = np.asarray(details["chance"], dtype=np.float64)
        return cls(name, mean, axes, standard_error=error, **details)

    @property
    def degrees_of_freedom(self) -> int:
        """Those of the standard errors, for intervals: one fewer than n_groups, or n_sequences.

        Raises:
            ValueError: the provenance has neither.
        """
        for name in ("n_groups", "n_sequences"):
            if name in self.provenance:
                return int(self.provenance[name]) - 1
        raise ValueError(
            f"{self.name}: the provenance does not say over how many sequences the errors are"
        )

    def sel(self, **labels: Label | Iterable[Label]) -> "Result":
        """The part with these labels: one label drops its axis, several labels keep it.

        A label for every axis leaves no axis: `float(scores.sel(score="induction", head="L1H3"))`.

        Raises:
            KeyError: no such axis or label; the message lists those there are.
        """
        part = self
        for axis, wanted in labels.items():
            if isinstance(wanted, Label):
                part = part._along(axis, [wanted], keep=False)
            else:
                part = part._along(axis, wanted, keep=True)
        return part

    def _along(self, axis: str, wanted: Iterable[Any], keep: bool) -> "Result":
        if axis not in self.axes:
            raise KeyError(f"{self.name} has no axis {axis!r}; its axes are {self.axes}")
        chosen = [_plain(label) for label in wanted]
        there = self.labels[axis]
        for label in chosen:
            if label not in there:
                raise KeyError(f"{self.name} has no {axis} {label!r}; there are {_listed(there)}")
        labels = {name: names for name, names in self.labels.items() if name != axis or keep}
        if keep:
            labels[axis] = tuple(chosen)
        unit = self.unit
        if axis == "measure" and not isinstance(unit, str):
            unit = {str(label): unit[str(label)] for label in chosen}
            unit = unit if keep else unit[str(chosen[0])]
        rows = [there.index(label) for label in chosen]

        def cut(array: np.ndarray) -> np.ndarray:
            part = np.take(array, rows if keep else rows[0], axis=self.axes.index(axis))
            return np.asarray(part)

        return replace(
            self,
            values=cut(self.values),
            axes=tuple(name for name in self.axes if name in labels),
            labels=labels,
            standard_error=None if self.standard_error is None else cut(self.standard_error),
            chance=None if self.chance is None else cut(self.chance),
            unit=unit,
        )

    def best(self) -> Any:
        """The label with the highest value: `scores.sel(score="induction").best()` is "L1H3".

        With several axes, a tuple of labels in their order. NaN never wins.
        Raises ValueError when there is no number, or no axis, to choose from.
        """
        if not self.axes or np.isnan(self.values).all():
            raise ValueError(
                f"{self.name} has no highest value among {self.values.size} on {self.axes}"
            )
        where = np.unravel_index(np.nanargmax(self.values), self.values.shape)
        names = tuple(self.labels[axis][int(i)] for axis, i in zip(self.axes, where, strict=True))
        return names[0] if len(names) == 1 else names

    def to_frame(self) -> pd.DataFrame:
        """Tidy table, a row per value: its labels, then value, standard_error, chance and unit."""
        frame = pd.DataFrame(list(product(*self.labels.values())), columns=list(self.axes))
        for column in ("value", "standard_error", "chance"):
            array = getattr(self, "values" if column == "value" else column)
            frame[column] = np.full(self.values.size, np.nan) if array is None else array.ravel()
        unit = self.unit
        frame["unit"] = unit if isinstance(unit, str) else [unit[m] for m in frame["measure"]]
        return frame

    def plot(self) -> Any:
        """A figure to suit the axes: a curve over "position", a heatmap of "head", "measure" bars.

        Attention by "head", "query" and "key" is a view to click through, of circuitsvis; all else
        a figure of plotly.

        Raises:
            ValueError: the result has none of these axes.
        """
        return provided("figure")(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON file, whole or not at all, from which `load` gives back every bit."""
        write_whole(path, storage.to_json(self._fields()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Result":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no saved Result, is damaged, or comes from a newer version.
        """
        try:
            return cls(**storage.from_json(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} is not a saved Result: {error}") from error

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __reduce__(self) -> tuple[Any, ...]:
        # The read-only mappings cannot be pickled: copies travel as JSON.
        return _from_json, (storage.to_json(self._fields()),)

    def __float__(self) -> float:
        if self.values.size != 1:
            raise TypeError(f"{self.name} holds {self.values.size} values; choose one with sel()")
        return float(self.values.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        origin = ", ".join(f"{key} {value}" for key, value in self.provenance.items())
        return "\n".join(filter(None, (self._title(), self._table().to_string(), origin)))

    def _repr_html_(self) -> str:
        return tables.as_html(self._title(), self._table(), self.provenance)

    def _title(self) -> str:
        sizes = ", ".join(f"{axis}: {len(names)}" for axis, names in self.labels.items())
        unit = f" [{self.unit}]" if self.unit and isinstance(self.unit, str) else ""
        return f"{self.name}{unit}" + (f" ({sizes})" if sizes else "")

    def _table(self) -> pd.DataFrame:
        return tables.grid(self.to_frame(), self.axes)


def over_samples(result: Result) -> Result:
    """A result with its axis "sample" averaged, and the standard error over the samples.

    Where the provenance has `sample_groups`, a group for each sample, it is over their means.

    >>> labels = {"step": (0, 10), "sample": (0, 1)}
    >>> each = Result("score", np.array([[1, 3], [2, 2]]), ("step", "sample"), labels)
    >>> over_samples(each).values.tolist(), over_samples(each).standard_error.tolist()
    ([2.0, 2.0], [1.0, 0.0])
    """
    if "sample" not in result.axes:
        return result
    where = result.axes.index("sample")
    axes = tuple(axis for axis in result.axes if axis != "sample")
    mean = Result.from_samples(
        result.name,
        np.moveaxis(result.values, where, 0),
        axes,
        labels={axis: result.labels[axis] for axis in axes},
        chance=None if result.chance is None else result.chance.mean(where),
        unit=result.unit,
        groups=result.provenance.get("sample_groups"),
    )
    return replace(mean, provenance=result.provenance)


def clock(result: Result) -> str:
    """What `tokens_at` counts."""
    return "tokens" if "tokens_per_step" in result.provenance else "steps"


def tokens_at(result: Result) -> Float64[np.ndarray, " step"]:
    """The tokens read by each step of a result; the steps themselves where that is not known."""
    steps = np.array(result.labels["step"], dtype=np.float64)
    return steps * result.provenance.get("tokens_per_step", 1)


def reading(result: Result) -> str:
    """A single value with its standard error, for reading."""
    error = result.standard_error
    return rounded(float(result), math.nan if error is None else error.item())


def _from_json(text: str) -> Result:
    return Result(**storage.from_json(text))


def _plain(label: Any) -> Label:
    plain = label.item() if isinstance(label, np.generic) else label
    if not isinstance(plain, str | int | float):
        raise TypeError(f"a label must be a string or a number, not {label!r}")
    return plain


def _listed(names: Sequence[Label]) -> str:
    return ", ".join(map(repr, names[:16])) + (", ..." if len(names) > 16 else "")
