"""What develops while a model trains: curves against tokens, and loss by position as a map."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from interp.plots import style
from interp.plots.curves import Along, Line, Lines, chances, colour, in_panels, numbers
from interp.plots.panels import Axis, Panel, lay_out
from interp.plots.registry import Order, draws
from interp.plots.scales import SEQUENTIAL, Scale
from interp.results.result import Result, clock, over_samples, rounded, tokens_at

MAP_HEIGHT, PANEL, ONE_PANEL = 306, 210, 330  # pixels
THIN, CURVE = 0.9, 2.0  # widths of lines
FAINT = 0.45

Later = Float64[np.ndarray, " later"]


def clock_axis(result: Result, **look: Any) -> Axis:
    """The time of training: tokens, or steps where those are unknown, on a logarithmic axis.

    Step 0 has no place there, and the title says so.
    """
    title = clock(result) + ", step 0 left out" * (result.labels["step"][:1] == (0,))
    return numbers(title, **COUNTS, type="log", dtick=1, **look)


COUNTS = {"exponentformat": "SI", "showexponent": "all", "nticks": 6}


def after_zero(x: Along, values: Along, error: Along | None) -> tuple[Later, Later, Later | None]:
    """What is known of a curve and has a place on a logarithmic axis."""
    later = (x > 0) & np.isfinite(values)
    return x[later], values[later], None if error is None else error[later]


def chance_levels(x: Along, series: Sequence[Result]) -> list[Line]:
    """The chance levels of curves against a logarithmic clock."""
    later = x > 0
    levels = chances(x, series)
    return [replace(line, x=line.x[later], y=line.y[later]) for line in levels]


def stacked(result: Result, panels: Sequence[Lines], **heading: Any) -> go.Figure:
    """Panels one above the other, which share a clock that only the lowest shows."""
    silent = {"showticklabels": False}
    *upper, lowest = panels
    upper = [
        replace(panel, x=replace(panel.x, title="", look={**panel.x.look, **silent}))
        for panel in upper
    ]
    figure = in_panels(result, [*upper, lowest], PANEL if upper else ONE_PANEL, **heading)
    for number in range(1, len(panels)):
        figure.update_layout({f"xaxis{number + 1}": {"matches": "x"}})
    return figure


@draws("step", order=Order.CLOCK)
def steps(result: Result) -> go.Figure:
    """How a result develops, against the logarithm of the tokens read, or of the steps.

    Over "position" it is a map of steps and positions. Anything else is drawn as curves in bands of
    one standard error: one for each label of a further axis, in a panel for each label of a second
    one; measures have a panel for each unit. Of many heads the highest few are in colour.

    Args:
        result: an axis "step", and at most two others; an axis "sample" is averaged.

    Raises:
        ValueError: more axes than can be drawn; choose with sel().
    """
    return with_notes(result, ())


def with_notes(result: Result, notes: Sequence[str]) -> go.Figure:
    """The figure of `steps`, with further lines under its title."""
    mean = over_samples(result)
    others = [axis for axis in mean.axes if axis != "step"]
    if "position" in others:
        return by_position(mean)
    what = 'curves over "step" are drawn for at most two others; choose the rest with sel()'
    style.require(result, len(others) <= 2, what)
    panels = list(_panels(mean, others))
    return stacked(mean, panels, notes=[style.origin(mean), *notes])


def _panels(result: Result, others: Sequence[str]) -> Iterator[Lines]:
    if len(others) == 2:
        across = "measure" if "measure" in others else others[0]
        for label in result.labels[across]:
            yield _panel(result.sel(**{across: label}), style.plain(label))
    elif others == ["measure"] and not isinstance(result.unit, str):
        first = 0
        for unit in dict.fromkeys(result.unit.values()):
            names = [name for name in result.labels["measure"] if result.unit[str(name)] == unit]
            yield _panel(result.sel(measure=names), unit=unit, first=first, is_named=True)
            first += len(names)
    else:
        yield _panel(result)


def _panel(
    part: Result, title: str = "", unit: str = "", first: int = 0, is_named: bool = False
) -> Lines:
    """The curves of one panel, whose colours begin with this one; of many, the highest have one."""
    x, series = tokens_at(part), list(style.series(part, "step"))
    peaks = [np.nanmax(line.values, initial=-np.inf) for _, line in series]
    highest = sorted(np.argsort(peaks)[::-1][: len(style.SERIES)].tolist())
    grey, coloured = [], []
    for number, (name, line) in enumerate(series):
        words = style.plain(name) or style.plain(part.name)
        if number not in highest:
            curve = after_zero(x, line.values, None)
            grey.append(Line(words, *curve, colour=style.faded(style.QUIET, FAINT), width=THIN))
            continue
        curve = after_zero(x, line.values, line.standard_error)
        legend = words if is_named or len(series) > 1 else ""
        ink = colour(first + highest.index(number))
        coloured.append(Line(words, *curve, colour=ink, width=CURVE, legend=legend))
    return Lines(
        [*grey, *coloured],
        clock_axis(part),
        Axis(style.plain(unit) or style.unit_of(part), look={"nticks": 6}),
        title,
        chance_levels(x, [line for _, line in series]),
    )


def by_position(result: Result) -> go.Figure:
    """The map of Olsson et al. 2022: tokens read across, position upwards, the loss in colour.

    Both axes are logarithmic. When induction heads form, late positions become cheaper than early
    ones within a short time. What costs more than chance has the colour of chance.

    Args:
        result: a value over "step" and "position".

    Raises:
        ValueError: other axes, or fewer than two steps or positions.
    """
    if set(result.axes) != {"step", "position"} or min(result.values.shape) < 2:
        raise ValueError(
            f"{result.name} has the axes {result.axes} of lengths {result.values.shape}; a map is "
            'drawn of "step" and "position", two or more of each: choose the rest with sel()'
        )
    result = result.sel(step=[step for step in result.labels["step"] if step != 0])
    values = np.moveaxis(result.values, result.axes.index("step"), 1)
    chance = np.inf if result.chance is None else float(np.nanmax(result.chance))
    low, high = float(np.nanmin(values)), min(float(np.nanmax(values)), chance)
    upwards = Axis("position", look={"type": "log", "dtick": 1, "showgrid": False})
    panel = Panel(clock_axis(result), upwards, MAP_HEIGHT)
    scale = Scale(low, high, SEQUENTIAL, style.unit_of(result))
    figure, _ = lay_out(result, [panel], scales=[scale])
    figure.add_heatmap(
        x=_edges(tokens_at(result)),
        y=_edges(np.array(result.labels["position"], dtype=np.float64)),
        z=values,
        coloraxis="coloraxis",
        **style.hovering(_readings(result)),
    )
    return figure


def _readings(result: Result) -> list[list[str]]:
    frame = result.to_frame()
    readings = [
        f"step {step}, position {position}: {rounded(value, error)}"
        for step, position, value, error in zip(
            frame["step"], frame["position"], frame["value"], frame["standard_error"], strict=True
        )
    ]
    cells = np.reshape(np.array(readings, dtype=object), result.values.shape)
    return np.moveaxis(cells, result.axes.index("step"), 1).tolist()


def _edges(centres: Float64[np.ndarray, " centre"]) -> Float64[np.ndarray, " edge"]:
    """Where tiles around these places meet, half-way on a log scale."""
    logs = np.log(centres)
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp([logs[0] - (middle[0] - logs[0]), *middle, logs[-1] + (logs[-1] - middle[-1])])


def training(result: Result) -> go.Figure:
    """Loss in training and on held-out text in one panel, the accuracy there in another.

    Against steps, which are not logarithmic here. The training loss is drawn thin, as it is noisy.

    Args:
        result: over "step" and "measure", as `interp.analysis.training_curves` gives it.

    Raises:
        ValueError: other axes.
    """
    both = set(result.axes) == {"step", "measure"}
    style.require(result, both, 'training is drawn of "step" and "measure"')
    x = np.array(result.labels["step"], dtype=np.float64)
    units: dict[str, list[Line]] = {}
    for number, measure in enumerate(map(str, result.labels["measure"])):
        part = result.sel(measure=measure)
        words = style.plain(measure)
        known = np.isfinite(part.values)
        error = None if part.standard_error is None else part.standard_error[known]
        width = THIN if measure.startswith("train") else CURVE
        line = Line(words, x[known], part.values[known], error, colour(number), width, legend=words)
        units.setdefault(style.unit_of(part), []).append(line)
    across = numbers("step", **COUNTS, rangemode="tozero")
    return stacked(result, [Lines(lines, across, Axis(unit)) for unit, lines in units.items()])
