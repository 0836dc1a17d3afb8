"""When it happens: a curve with its phase change shaded, and intervals in tokens, row by row."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from interp.plots import style
from interp.plots.development import with_notes
from interp.plots.panels import Axis, Panel, lay_out
from interp.plots.registry import Order, draws
from interp.plots.runs import kind_of, looks_of
from interp.results.result import Result

WINDOW, SPREAD = 0.26, 0.10  # opacity of the window, and of what its ends' intervals add
ROW = 62  # pixels
MOMENTS = ("start", "end")


def shaded(result: Result, change: Result) -> go.Figure:
    """A score against tokens with its phase change shaded, and paler the intervals of its ends.

    Args:
        result: one score over "step", and perhaps "sample".
        change: what `interp.phase_change` says of it.

    Raises:
        ValueError: axes other than these, or a phase change of several scores.

    >>> import numpy as np
    >>> curve = Result("score", np.array([0, 0, 1]), ("step",), {"step": (1, 10, 100)})
    >>> from interp.analysis import phase_change
    >>> len(shaded(curve, phase_change(curve)).layout.shapes)
    1
    """
    is_one = set(change.axes) == {"interval", "measure"}
    style.require(change, is_one, "one phase change is drawn: choose it with sel()")
    if len(result.labels.get("measure", ())) == 1:
        result = result.sel(measure=result.labels["measure"][0])
    is_score = {"step"} <= set(result.axes) <= {"step", "sample"}
    style.require(result, is_score, 'one score over "step" is shaded: choose it with sel()')
    times = {name: _times(change.sel(measure=name)) for name in MOMENTS}
    (start, first, _), (end, _, last) = times["start"], times["end"]
    if math.isnan(start):
        note = f"no phase change: {change.provenance.get('no_change', 'none was found')}"
        return with_notes(result, [note])
    note = f"80 % of the change from {_short(start)} to {_short(end)} {_clock(change)}"
    figure = with_notes(result, [note])
    spans = ((start, end, WINDOW), (first, start, SPREAD), (end, last, SPREAD))
    for left, right, opacity in spans:
        if left < right:
            _shade(figure, left, right, opacity)
    return figure


def _shade(figure: go.Figure, left: float, right: float, opacity: float) -> None:
    figure.add_shape(
        type="rect", x0=left, x1=right, y0=0, y1=1, yref="y domain", layer="below",
        fillcolor=style.faded(style.SERIES[5], opacity), line={"width": 0},
    )  # fmt: skip


def _times(part: Result) -> tuple[float, float, float]:
    estimate, low, high = (float(part.sel(interval=which)) for which in ("estimate", "low", "high"))
    return estimate, low, high


def _clock(result: Result) -> str:
    return result.unit if isinstance(result.unit, str) else result.unit["start"]


def _short(number: float) -> str:
    """A count of tokens to three digits; of infinitely many, "not reached".

    >>> _short(1234567), _short(45.25), _short(2e9)
    ('1.23M', '45.2', '2B')
    """
    if math.isinf(number):
        return "not reached"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


@draws("interval", order=Order.CLOCK)
def intervals(result: Result) -> go.Figure:
    """When each kind of model gets there, or when each curve changes: a row each, on a log axis.

    Of `tokens_to_reach`, a diamond on the line of its interval, and a dot for every run; a run that
    never got there is a triangle at the edge. Of `phase_change`, the window as a bar, and the
    intervals of its two ends as lines.

    Args:
        result: what one of these two returned; `phase_change` of at most one further axis.

    Raises:
        ValueError: other axes.
    """
    others = [axis for axis in result.axes if axis not in ("interval", "measure")]
    what = 'rows are drawn of "interval" and one more axis: choose the rest with sel()'
    style.require(result, "interval" in result.axes and len(others) <= 1, what)
    labels = result.labels[others[0]] if others else ("",)
    parts = [result.sel(**{others[0]: label}) if others else result for label in labels]
    left, right = _limits(result)
    if "measure" in result.axes:
        rows = [_window(*row) for row in enumerate(parts)]
    else:
        names = [str(label) for label in labels]
        colours = [colour for colour, _ in looks_of([kind_of(name) for name in names])]
        drawn = zip(range(len(names)), parts, names, colours, strict=True)
        rows = [_reaching(*row, edge=right) for row in drawn]
    panel = Panel(
        _axis(_clock(result), left, right),
        Axis(
            names=[style.plain(label) for label in labels],
            notes=[row.reading for row in rows],
            look={"range": (len(rows) - 0.5, -0.5), "ticklabelstandoff": 10},
        ),
        ROW * len(rows),
    )
    known = result.provenance
    about = style.plain(f"{known['measure']} of {known['score']:g}") if "score" in known else ""
    figure, _ = lay_out(result, [panel], unit="", notes=[about or style.origin(result)])
    figure.add_traces([trace for row in rows for trace in row.traces])
    return figure


class _Row(NamedTuple):
    """What is drawn of one row, and what is written beside it."""

    traces: list[go.Scatter]
    reading: str


def _window(row: int, part: Result) -> _Row:
    start, *start_bounds = _times(part.sel(measure="start"))
    end, *end_bounds = _times(part.sel(measure="end"))
    if math.isnan(start):
        return _Row([], "no phase change")
    colour = style.SERIES[0]
    bar = _marks([start, end], row, style.faded(colour, 0.45), width=14)
    ends = [_marks(bounds, row, colour, width=2) for bounds in (start_bounds, end_bounds)]
    return _Row([bar, *ends], f"{_short(start)} to {_short(end)}")


def _reaching(row: int, part: Result, name: str, colour: str, edge: float) -> _Row:
    estimate, low, high = _times(part)
    each = part.provenance.get("each", {}).get(name, {})
    there = [tokens for tokens in each.values() if tokens is not None]
    never = len(each) - len(there)
    traces = [_marks([low, min(high, edge)], row, colour, width=2)] if low < edge else []
    traces += [_marks(there, row, style.faded(colour, 0.6), size=7)] if there else []
    traces += [_marks([edge], row, colour, size=9, symbol="triangle-right")] if never else []
    if math.isfinite(estimate):
        traces.append(_marks([estimate], row, colour, size=10, symbol="diamond"))
    return _Row(traces, _reading(part, name, (estimate, low, high), never, len(each)))


def _reading(
    part: Result, name: str, times: tuple[float, float, float], never: int, runs: int
) -> str:
    """The estimate and its interval, with the share of such intervals that holds the truth."""
    estimate, low, high = map(_short, times)
    coverage = part.provenance.get("coverage", {}).get(name)
    if runs and never == runs:
        last = min(part.provenance.get("last", {}).get(name, {"": times[1]}).values())
        return f"not reached by {never} of {runs} runs within {_short(last)}"
    reading = estimate
    if not math.isnan(times[1]):
        share = "" if coverage is None else f", {100 * coverage:.0f}\N{NO-BREAK SPACE}%"
        between = f"{low} or more" if math.isinf(times[2]) else f"{low} to {high}"
        reading += f" ({between}{share})"
    return f"{reading}; not reached by {never} of {runs} runs" if never else reading


def _marks(
    x: Sequence[float],
    row: int,
    colour: str,
    *,
    width: float = 0,
    size: float = 0,
    symbol: str = "circle",
) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=[row] * len(x),
        mode="markers" if size else "lines",
        line={"color": colour, "width": width},
        marker={"color": colour, "size": size, "symbol": symbol},
        cliponaxis=False,
        **style.hovering([_short(place) for place in x]),
    )


def _limits(result: Result) -> tuple[float, float]:
    """The ends of the axis: what is finite with room around it, and more room for what is not."""
    part = result.sel(measure=MOMENTS) if "measure" in result.axes else result
    runs = (run for each in result.provenance.get("each", {}).values() for run in each.values())
    times = [*part.values.ravel(), *(run for run in runs if run is not None)]
    known = [time for time in times if math.isfinite(time)] or [1.0, 10.0]
    return min(known) / 1.5, max(known) * (3 if math.inf in times else 1.5)


def _axis(title: str, left: float, right: float) -> Axis:
    """A logarithmic axis of counts, with as many numbers as have room."""
    low, high = math.log10(left), math.log10(right)
    decades = high - low
    steps = (1,) if decades > 3 else (1, 3) if decades > 1.5 else (1, 2, 5)
    steps = steps if decades > 0.7 else range(1, 10)
    powers = range(math.floor(low), math.ceil(high))
    places = [digit * 10.0**power for power in powers for digit in steps]
    texts = [_short(place) for place in places]
    return Axis(
        title, look={"type": "log", "range": (low, high), "tickvals": places, "ticktext": texts}
    )
