"""Values along positions, and measures side by side, each with its error and its chance level."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.results.result import Label, Result, rounded

LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
BAND = 0.22  # opacity of one standard error
# Pixels.
CURVE_HEIGHT, TOP, LEGEND_HEIGHT, BOTTOM = 400, 66, 26, 58
BAR_HEIGHT, MEASURE_GAP, PANEL_GAP, READING_WIDTH = 24.0, 16.0, 62.0, 116.0


def curve(result: Result) -> go.Figure:
    """A line over "position" in a band of one standard error; chance is a dashed line.

    Args:
        result: an axis "position" whose labels are numbers; another axis gives one line per label.

    Raises:
        ValueError: one axis too many, or a position that is no number.
    """
    lines = list(style.series(result, "position"))
    positions = result.labels["position"]
    if any(isinstance(position, str) for position in positions):
        raise ValueError(f"{result.name}: positions must be numbers, they are {positions[:3]}, ...")
    named = len(lines) > 1 or result.chance is not None
    figure = go.Figure(
        layout=style.layout(
            result,
            height=CURVE_HEIGHT,
            margin={"l": 66, "r": 24, "t": TOP + LEGEND_HEIGHT * named, "b": BOTTOM},
            xaxis=style.axis("position", showgrid=False, showline=True, linecolor=style.FAINT),
            yaxis=style.axis(style.words(str(result.unit))),
            hovermode="x unified",
            showlegend=named,
            legend=LEGEND,
        )
    )
    for number, (name, line) in enumerate(lines):
        colour = style.SERIES[number % len(style.SERIES)]
        _add_line(figure, positions, line, style.words(name or result.name), colour)
    _add_chances(figure, positions, [line for _, line in lines])
    return figure


def _add_line(
    figure: go.Figure, positions: Sequence[Label], line: Result, name: str, colour: str
) -> None:
    x = np.array(positions, dtype=np.float64)
    error = np.full_like(x, np.nan) if line.standard_error is None else line.standard_error
    known = np.isfinite(line.values) & np.isfinite(error)
    if known.any():
        upper, lower = (line.values + error)[known], (line.values - error)[known]
        figure.add_scatter(
            x=np.concatenate([x[known], x[known][::-1]]),
            y=np.concatenate([upper, lower[::-1]]),
            fill="toself",
            fillcolor=style.faded(colour, BAND),
            line={"width": 0},
            mode="lines",
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=x,
        y=line.values,
        name=name,
        legendgroup=name,
        mode="lines+markers" if len(x) == 1 else "lines",
        line={"color": colour, "width": 2},
        text=[rounded(*point) for point in zip(line.values, error, strict=True)],
        hovertemplate="%{text}",
    )


def _add_chances(figure: go.Figure, positions: Sequence[Label], lines: Sequence[Result]) -> None:
    different = dict.fromkeys(tuple(line.chance) for line in lines if line.chance is not None)
    for number, chance in enumerate(different):
        figure.add_scatter(
            x=positions,
            y=chance,
            name="chance",
            mode="lines",
            line={"color": style.QUIET, "width": 1.5, "dash": "dash"},
            hoverinfo="skip",
            showlegend=number == 0,
        )


def measures(result: Result) -> go.Figure:
    """A bar per measure with its standard error; a diamond marks chance.

    Each unit has a panel of its own: nats and fractions share no axis.

    Args:
        result: an axis "measure"; another axis gives each measure one bar per label.

    Raises:
        ValueError: one axis too many.
    """
    groups = list(style.series(result, "measure"))
    panels = _panels(result, len(groups))
    plot_height = sum(panel.height for panel in panels) + PANEL_GAP * (len(panels) - 1)
    named = len(groups) > 1 or result.chance is not None
    top = TOP + LEGEND_HEIGHT * named
    figure = go.Figure(
        layout=style.layout(
            result,
            height=top + plot_height + BOTTOM,
            margin={"l": 24, "r": READING_WIDTH, "t": top, "b": BOTTOM},
            showlegend=named,
            legend=LEGEND,
        )
    )
    for number, panel in enumerate(panels):
        axes = _add_axes(figure, number, panel, plot_height)
        for index, (name, group) in enumerate(groups):
            part = group.sel(measure=panel.names)
            heights = panel.places + (index - (len(groups) - 1) / 2) * BAR_HEIGHT
            bars = _bars(part, heights, name, style.SERIES[index % len(style.SERIES)])
            for trace in (*bars, *_chance_marks(part, heights)):
                first = number == 0 and (index == 0 or trace.name != "chance")
                figure.add_trace(trace.update(axes, showlegend=bool(trace.name) and first))
    return figure


@dataclass(frozen=True)
class _Panel:
    """The measures of one unit; pixels count down from the top of the plot."""

    unit: str
    names: list[str]
    top: float
    height: float
    places: np.ndarray


def _panels(result: Result, bars: int) -> list[_Panel]:
    names = [str(name) for name in result.labels["measure"]]
    unit = result.unit
    units = {name: unit if isinstance(unit, str) else unit[name] for name in names}
    step = bars * BAR_HEIGHT + MEASURE_GAP
    panels, top = [], 0.0
    for shared in dict.fromkeys(units.values()):
        members = [name for name in names if units[name] == shared]
        places = (np.arange(len(members)) + 0.5) * step
        panels.append(_Panel(shared, members, top, len(members) * step, places))
        top += len(members) * step + PANEL_GAP
    return panels


def _add_axes(figure: go.Figure, number: int, panel: _Panel, plot_height: float) -> dict[str, str]:
    suffix = str(number + 1) if number else ""
    ceiling = 1 - panel.top / plot_height
    floor = max(0.0, 1 - (panel.top + panel.height) / plot_height)
    figure.update_layout(
        {
            f"xaxis{suffix}": style.axis(
                style.words(panel.unit), anchor=f"y{suffix}", rangemode="tozero",
                zeroline=True, zerolinecolor=style.QUIET, zerolinewidth=1, fixedrange=True,
            ),
            f"yaxis{suffix}": style.axis(
                domain=(floor, ceiling), anchor=f"x{suffix}", range=(panel.height, 0),
                tickvals=panel.places, ticktext=[style.words(name) for name in panel.names],
                showgrid=False, fixedrange=True, ticklabelstandoff=10,
            ),
        }
    )  # fmt: skip
    return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}


def _bars(part: Result, heights: np.ndarray, name: str, colour: str) -> tuple[go.Bar, go.Scatter]:
    values = part.values
    errors = np.full_like(values, np.nan) if part.standard_error is None else part.standard_error
    bars = go.Bar(
        x=values,
        y=heights,
        orientation="h",
        width=BAR_HEIGHT - 4,
        marker={"color": style.faded(colour, 0.8), "line": {"width": 0}, "cornerradius": 3},
        error_x={"array": errors, "thickness": 1.5, "width": 4, "color": style.QUIET},
        name=style.words(name),
        legendgroup=name,
        hoverinfo="skip",
    )
    # A bar's own text would lie under its error bar; left of zero it would meet the names.
    beside = go.Scatter(
        x=np.maximum(values + np.nan_to_num(errors), 0.0),
        y=heights,
        mode="text",
        text=[f"  {rounded(*pair)}" for pair in zip(values, errors, strict=True)],
        textposition="middle right",
        cliponaxis=False,
        legendgroup=name,
        hoverinfo="skip",
    )
    return bars, beside


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
            text=[f"chance {rounded(chance)}" for chance in part.chance],
            cliponaxis=False,
            hovertemplate="%{text}<extra></extra>",
        )
    ]
