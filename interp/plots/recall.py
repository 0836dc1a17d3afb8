"""Associative recall: each measure by query, or by how far back the key was read."""

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.curves import Line, Lines, chances, colour, in_panels, numbers
from interp.plots.panels import Axis
from interp.plots.registry import draws
from interp.results.result import Result

ALONG = {
    "query": "queries of a sequence, in their order",
    "distance": "distance from key to query, in tokens",
}


@draws(("measure", "query"), ("measure", "distance"))
def recall(result: Result) -> go.Figure:
    """A point for each query or distance, with its error, in a panel per unit; chance is dashed.

    Raises:
        ValueError: other axes than "measure" and one of these.
    """
    along = next((axis for axis in ALONG if result.axes == ("measure", axis)), None)
    if along is None:
        raise ValueError(
            f"{result.name} has the axes {result.axes}; a picture of recall takes measure, and "
            "query or distance"
        )
    x = np.array(result.labels[along], dtype=np.float64)
    units: dict[str, list[str]] = {}
    for name in map(str, result.labels["measure"]):
        units.setdefault(style.unit_of(result, name), []).append(name)
    panels, number = [], 0
    for unit, names in units.items():
        parts = [result.sel(measure=name) for name in names]
        lines = []
        for name, part in zip(names, parts, strict=True):
            label = style.plain(name)
            errors = part.standard_error
            lines.append(
                Line(label, x, part.values, errors, colour(number), legend=label, is_dotted=True)
            )
            number += 1
        is_last = len(panels) == len(units) - 1
        look = {"tickvals": x} if len(x) <= 12 else {}
        levels = chances(x, parts, most=len(parts))
        panels.append(
            Lines(
                lines, numbers(ALONG[along] if is_last else "", **look), Axis(unit), chance=levels
            )
        )
    return in_panels(result, panels)
