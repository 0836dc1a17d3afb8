"""Lines, each with its error and its chance level; and measures side by side as bars."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from interp.plots import style
from interp.plots.panels import EDGE, Axis, Panel, lay_out
from interp.results.result import Result, rounded

BAND = 0.22  # opacity of one standard error
# Pixels.
HEIGHT = 310
BAR, MEASURE_GAP, READING_WIDTH = 24.0, 16.0, 116.0

Along = Float64[np.ndarray, " point"]


@dataclass(frozen=True)
class Line:
    """One curve; names are plain text.

    Args:
        name: what hovering shows; "" shows nothing.
        x: where it is known.
        y: as many values; a line has a gap where one is unknown.
        error: the band around it, or with `is_dotted` bars.
        colour: also the band's.
        width: in pixels.
        dash: plotly's.
        legend: "" where it shares its colour with one that is named.
        band: what the legend calls the band, if anything.
        readings: what hovering shows after the name; else value and error.
        is_dotted: a mark at each point.
    """

    name: str
    x: Along
    y: Along
    error: Along | None = None
    colour: str = style.QUIET
    width: float = 2
    dash: str = "solid"
    legend: str = ""
    band: str = ""
    readings: Sequence[str] | None = None
    is_dotted: bool = False


@dataclass(frozen=True)
class Lines:
    """A panel of curves over one axis of values."""

    lines: Sequence[Line]
    x: Axis
    y: Axis
    title: str = ""
    chance: Sequence[Line] = field(default=())

    @property
    def all(self) -> list[Line]:
        """What the panel is about, then chance."""
        return [*self.lines, *self.chance]


def in_panels(
    result: Result, panels: Sequence[Lines], height: float = HEIGHT, **heading: Any
) -> go.Figure:
    """Panels of curves one above the other, each curve named once in the legend.

    Args:
        result: gives name and origin.
        panels: from the top.
        height: of a panel, in pixels.
        heading: further arguments of `lay_out`.
    """
    every = [line for panel in panels for line in panel.all]
    names = dict.fromkeys(name for line in every for name in (line.legend, line.band) if name)
    places = [Panel(panel.x, panel.y, height, title=panel.title) for panel in panels]
    figure, axes = lay_out(result, places, legend=[*names], hovermode="x unified", **heading)
    named: set[str] = set()
    for panel, place in zip(panels, axes, strict=True):
        for line in panel.all:
            _draw(figure, line, place, line.legend not in named)
            named.add(line.legend)
    return figure


def _draw(figure: go.Figure, line: Line, axes: dict[str, str], is_first: bool) -> None:
    error = np.full_like(line.y, np.nan) if line.error is None else line.error
    known = np.isfinite(line.y)
    sure = known & np.isfinite(error)
    group = style.text(line.legend)
    if sure.sum() > 1 and not line.is_dotted:
        edges = [(line.y + error)[sure], (line.y - error)[sure][::-1]]
        figure.add_scatter(
            x=np.concatenate([line.x[sure], line.x[sure][::-1]]),
            y=np.concatenate(edges),
            fill="toself",
            fillcolor=style.faded(line.colour, BAND),
            line={"width": 0},
            mode="lines",
            name=style.text(line.band),
            legendgroup=style.text(line.band) or group,
            showlegend=bool(line.band),
            hoverinfo="skip",
            **axes,
        )
    marks = line.is_dotted or known.sum() == 1
    bars: dict[str, Any] = {"array": error, "thickness": 1.5, "width": 4, "color": style.QUIET}
    figure.add_scatter(
        x=line.x,
        y=line.y,
        name=style.text(line.legend or line.name),
        legendgroup=group,
        showlegend=bool(line.legend) and is_first,
        legendrank=2000 if line.legend == "chance" else None,
        mode="lines+markers" if marks else "lines",
        line={"color": line.colour, "width": line.width, "dash": line.dash},
        error_y=bars if line.is_dotted else None,
        text=line.readings or [rounded(*at) for at in zip(line.y, error, strict=True)],
        hovertemplate="%{text}" if line.name else None,
        hoverinfo="skip" if not line.name else None,
        **axes,
    )


def chances(x: Along, series: Sequence[Result], most: int = 2) -> list[Line]:
    """A dashed line for each chance level there is; of more than a few, none."""
    levels = {tuple(one.chance): one.chance for one in series if one.chance is not None}
    return [
        Line("chance", x, level, width=1.5, dash="dash", legend="chance")
        for level in (levels.values() if len(levels) <= most else ())
    ]


def colour(number: int) -> str:
    """The colours of curves in turn."""
    return style.SERIES[number % len(style.SERIES)]


def numbers(title: str, **look: Any) -> Axis:
    """A horizontal axis of numbers under curves."""
    return Axis(title, look={"showgrid": False, "showline": True, "linecolor": style.FAINT} | look)


def curve(result: Result) -> go.Figure:
    """A line over "position" in a band of one standard error; chance is a dashed line.

    Args:
        result: an axis "position" whose labels are numbers; another axis gives one line per label.

    Raises:
        ValueError: one axis too many, or a position that is no number.
    """
    series = list(style.series(result, "position"))
    positions = result.labels["position"]
    if any(isinstance(position, str) for position in positions):
        raise ValueError(f"{result.name}: positions must be numbers, they are {positions[:3]}, ...")
    named = len(series) > 1 or result.chance is not None
    x = np.array(positions, dtype=np.float64)
    lines = [
        Line(label, x, part.values, part.standard_error, colour(number), legend=label * named)
        for number, (name, part) in enumerate(series)
        for label in [style.plain(name or result.name)]
    ]
    levels = chances(x, [part for _, part in series], most=len(series))
    unit = Axis(style.unit_of(result))
    return in_panels(result, [Lines(lines, numbers("position"), unit, chance=levels)])


def measures(result: Result) -> go.Figure:
    """A bar per measure with its standard error; a diamond marks chance.

    Each unit has a panel of its own: nats and fractions share no axis.

    Args:
        result: an axis "measure"; another axis gives each measure one bar per label.

    Raises:
        ValueError: one axis too many.
    """
    groups = list(style.series(result, "measure"))
    units: dict[str, list[str]] = {}
    for name in map(str, result.labels["measure"]):
        units.setdefault(style.unit_of(result, name), []).append(name)
    step = len(groups) * BAR + MEASURE_GAP
    panels = [
        bar_panel(
            [style.plain(name) for name in names], step, unit, (np.arange(len(names)) + 0.5) * step
        )
        for unit, names in units.items()
    ]
    legend = [name for name, _ in groups if len(groups) > 1]
    legend += ["chance"] if result.chance is not None else []
    figure, axes = lay_out(result, panels, legend=legend, sides=(EDGE, READING_WIDTH))
    for number, (names, panel, place) in enumerate(zip(units.values(), panels, axes, strict=True)):
        for index, (name, group) in enumerate(groups):
            part = group.sel(measure=names)
            aside = (index - (len(groups) - 1) / 2) * BAR
            heights = np.asarray(panel.y.places) + aside
            drawn = bars(part.values, style.errors(part), heights, BAR - 4, colour(index))
            drawn[0].update(name=style.words(name))
            for trace in (*drawn, *_chance_marks(part, heights)):
                first = number == 0 and (index == 0 or trace.name != "chance")
                trace.update(legendgroup=None if trace.name == "chance" else style.text(name))
                figure.add_trace(trace.update(place, showlegend=bool(trace.name) and first))
    return figure


def bar_panel(names: Sequence[str], step: float, unit: str, places: np.ndarray) -> Panel:
    """A panel of horizontal bars, from the top, whose names stand at the left."""
    height = len(names) * step
    zero = {"zeroline": True, "zerolinecolor": style.QUIET, "zerolinewidth": 1}
    values = {"rangemode": "tozero", "fixedrange": True, "nticks": 5, **zero}
    limits = (places[-1] + places[0], 0) if places[0] > 0 else (len(names) - 0.5, -0.5)
    return Panel(
        Axis(style.plain(unit), look=values),
        Axis(names=names, places=places, look={"range": limits, "ticklabelstandoff": 8}),
        height,
    )


def bars(
    values: np.ndarray,
    errors: np.ndarray,
    places: np.ndarray,
    width: float,
    colours: str | Sequence[str],
) -> tuple[go.Bar, go.Scatter]:
    """Horizontal bars with their errors, and the readings beside them."""
    across = go.Bar(
        x=values,
        y=places,
        orientation="h",
        width=width,
        marker={"color": colours, "opacity": 0.8, "line": {"width": 0}, "cornerradius": 3},
        error_x={"array": errors, "thickness": 1.5, "width": 4, "color": style.QUIET},
        hoverinfo="skip",
    )
    # A bar's own text would lie under its error bar; left of zero it would meet the names.
    beside = go.Scatter(
        x=np.maximum(values + np.nan_to_num(errors), 0.0),
        y=places,
        mode="text",
        text=[f"  {rounded(*pair)}" for pair in zip(values, errors, strict=True)],
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )
    return across, beside


def _chance_marks(part: Result, heights: np.ndarray) -> list[go.Scatter]:
    if part.chance is None:
        return []
    edge = {"width": 1.5, "color": style.INK}
    return [
        go.Scatter(
            x=part.chance,
            y=heights,
            mode="markers",
            marker={"symbol": "diamond", "size": 10, "color": "white", "line": edge},
            name="chance",
            legendrank=2000,
            cliponaxis=False,
            **style.hovering([f"chance {rounded(chance)}" for chance in part.chance]),
        )
    ]
