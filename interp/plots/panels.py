"""Panels one above the other, which share a clock: what a run has read, in tokens or in steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from interp.plots import style
from interp.plots.curves import BAND, BOTTOM, LEGEND_HEIGHT, TOP
from interp.results.result import Result, rounded

# Pixels.
PANEL_HEIGHT, PANEL_GAP, PANEL_TITLE, ONE_PANEL = 210, 58, 22, 330

Along = Float64[np.ndarray, " point"]
Later = Float64[np.ndarray, " later"]


@dataclass(frozen=True)
class Line:
    """One curve of a panel; `legend` is "" where it shares its colour with one that is named."""

    name: str
    x: Along
    y: Along
    error: Along | None = None
    colour: str = style.QUIET
    width: float = 2
    dash: str = "solid"
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis of values."""

    title: str
    unit: str
    lines: Sequence[Line]
    chance: Sequence[Line] = field(default=())


@dataclass(frozen=True)
class Clock:
    """How the time of training is shown: tokens, or steps where those are unknown."""

    title: str
    is_log: bool = True

    @classmethod
    def of(cls, result: Result) -> "Clock":
        """A result's own. Step 0 has no place on a logarithmic axis, and the title says so."""
        unit = "tokens" if "tokens_per_step" in result.provenance else "steps"
        zero = result.labels["step"][:1] == (0,)
        return cls(f"{unit}, step 0 left out" if zero else unit)

    def axis(self, **more: Any) -> dict[str, Any]:
        """The axis of the lowest panel."""
        scale = {"type": "log", "dtick": 1} if self.is_log else {"rangemode": "tozero"}
        shown = {"exponentformat": "SI", "showexponent": "all", "nticks": 6}
        quiet = {"showgrid": False, "showline": True, "linecolor": style.FAINT}
        return style.axis(self.title, **quiet, **shown, **scale, **more)


def tokens_at(result: Result) -> Along:
    """Tokens read by each step, or the steps where the provenance does not tell."""
    steps = np.array(result.labels["step"], dtype=np.float64)
    return steps * result.provenance.get("tokens_per_step", 1)


def chances(x: np.ndarray, series: Sequence[tuple[str, Result]]) -> list[Line]:
    """One dashed line for each chance level there is; of more than a few, none."""
    different = {tuple(line.chance): line.chance for _, line in series if line.chance is not None}
    levels = list(different.values()) if len(different) < 3 else []
    return [
        Line("chance", *after_zero(x, level, None), width=1.5, dash="dash", legend="chance")
        for level in levels
    ]


def after_zero(x: Along, values: Along, error: Along | None) -> tuple[Later, Later, Later | None]:
    """The part of a curve that has a place on a logarithmic axis."""
    later = x > 0
    return x[later], values[later], None if error is None else error[later]


def stacked(
    result: Result, panels: Sequence[Panel], clock: Clock, title: str | None = None
) -> go.Figure:
    """The figure of all panels, under the name and origin of a result, or under a title."""
    height = PANEL_HEIGHT if len(panels) > 1 else ONE_PANEL
    step = height + PANEL_GAP
    plot_height = step * len(panels) - PANEL_GAP
    named = any(line.legend for panel in panels for line in (*panel.lines, *panel.chance))
    top = TOP + PANEL_TITLE * bool(panels[0].title)
    figure = go.Figure(
        layout=style.layout(
            result,
            height=top + plot_height + BOTTOM + LEGEND_HEIGHT * named,
            margin={"l": 70, "r": 24, "t": top, "b": BOTTOM + LEGEND_HEIGHT * named},
            hovermode="x unified",
            showlegend=named,
            # Below, where it may take as many lines as it needs; above it would meet the title.
            legend={"orientation": "h", "x": 0, "y": -BOTTOM / plot_height, "yanchor": "top"},
        )
    )
    if title is not None:
        figure.update_layout(title={"text": title})
    shown: set[str] = set()
    for number, panel in enumerate(panels):
        ceiling, floor = (1 - (number * step + down) / plot_height for down in (0, height))
        axes = _add_axes(figure, number, panel, clock, (max(0.0, floor), ceiling), len(panels))
        for line in (*panel.lines, *panel.chance):
            _draw(figure, line, axes, line.legend not in shown)
            shown.add(line.legend)
    return figure


def _add_axes(
    figure: go.Figure, number: int, panel: Panel, clock: Clock, domain: tuple[float, float], n: int
) -> dict[str, str]:
    suffix = str(number + 1) if number else ""
    lowest = number == n - 1
    below = clock.axis(anchor=f"y{suffix}", matches="x" if number else None)
    if not lowest:
        below |= {"showticklabels": False, "title": {"text": ""}}
    figure.update_layout(
        {
            f"xaxis{suffix}": below,
            f"yaxis{suffix}": style.axis(
                style.words(panel.unit), domain=domain, anchor=f"x{suffix}", nticks=6
            ),
        }
    )
    if panel.title:
        figure.add_annotation(
            text=f"<b>{panel.title}</b>", showarrow=False, align="left",
            x=0, xref="paper", xanchor="left", y=domain[1], yref="paper", yanchor="bottom",
        )  # fmt: skip
    return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}


def _draw(figure: go.Figure, line: Line, axes: dict[str, str], is_first: bool) -> None:
    error = np.full_like(line.y, np.nan) if line.error is None else line.error
    known = np.isfinite(line.y)
    sure = known & np.isfinite(error)
    if sure.sum() > 1:
        edges = [(line.y + error)[sure], (line.y - error)[sure][::-1]]
        figure.add_scatter(
            x=np.concatenate([line.x[sure], line.x[sure][::-1]]),
            y=np.concatenate(edges),
            fill="toself",
            fillcolor=style.faded(line.colour, BAND),
            line={"width": 0},
            mode="lines",
            legendgroup=line.legend,
            showlegend=False,
            hoverinfo="skip",
            **axes,
        )
    readings = zip(line.y[known], error[known], strict=True)
    figure.add_scatter(
        x=line.x[known],
        y=line.y[known],
        name=line.legend or line.name,
        legendgroup=line.legend,
        showlegend=bool(line.legend) and is_first,
        legendrank=2000 if line.legend == "chance" else None,
        mode="markers+lines" if known.sum() == 1 else "lines",
        line={"color": line.colour, "width": line.width, "dash": line.dash},
        text=[f"{line.name} {rounded(*reading)}" for reading in readings],
        hovertemplate="%{text}<extra></extra>",
        hoverinfo="skip" if not line.name else None,
        **axes,
    )
