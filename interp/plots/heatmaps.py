"""Which heads have a score: one cell per head, layer 0 at the top, as TransformerLens draws it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from interp.plots import style
from interp.results.result import Result, rounded

HEAD = re.compile(r"L(\d+)H(\d+)")

# Pixels. A cell keeps a readable size whatever the number of heads; the figure grows instead.
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 88, 92
PLOT_WIDTH, PLOT_HEIGHT = 900, 520
PANEL_WIDTH, COLUMN_GAP, ROW_GAP, PANEL_TITLE = 200, 30, 104, 20
CELL_WIDTH, CELL_HEIGHT = (17.0, 54.0), (15.0, 36.0)
FIGURE_WIDTH = 460
WIDTH_FOR_TEXT, WIDTH_FOR_LARGE_TEXT = 24, 34


@dataclass(frozen=True)
class _Grid:
    """Where the panels of a figure are, in pixels."""

    n_layers: int
    n_heads: int
    columns: int
    rows: int
    cell_width: float
    cell_height: float

    @classmethod
    def around(cls, places: Sequence[tuple[int, int]], n_panels: int) -> "_Grid":
        """As many panels side by side as fit with readable cells, the others below them."""
        n_layers, n_heads = (1 + max(place[i] for place in places) for i in (0, 1))
        narrowest = max(PANEL_WIDTH, n_heads * CELL_WIDTH[0])
        fitting = int((PLOT_WIDTH + COLUMN_GAP) // (narrowest + COLUMN_GAP))
        columns = min(n_panels, max(1, fitting))
        room = (PLOT_WIDTH + COLUMN_GAP) / columns - COLUMN_GAP
        widest = max(CELL_WIDTH[1], PANEL_WIDTH / n_heads)
        return cls(
            n_layers,
            n_heads,
            columns,
            rows=-(-n_panels // columns),
            cell_width=min(max(room / n_heads, CELL_WIDTH[0]), widest),
            cell_height=min(max(PLOT_HEIGHT / n_layers, CELL_HEIGHT[0]), CELL_HEIGHT[1]),
        )

    @property
    def width(self) -> float:
        """Of all panels and the gaps between them."""
        return self.columns * (self.n_heads * self.cell_width + COLUMN_GAP) - COLUMN_GAP

    @property
    def height(self) -> float:
        """Of all panels and the gaps between them."""
        return self.rows * (self.n_layers * self.cell_height + ROW_GAP) - ROW_GAP

    def domains(self, panel: int) -> tuple[list[float], list[float]]:
        """The share of width and of height, from below, that a panel takes."""
        left = panel % self.columns * (self.n_heads * self.cell_width + COLUMN_GAP)
        top = panel // self.columns * (self.n_layers * self.cell_height + ROW_GAP)
        right = left + self.n_heads * self.cell_width
        bottom = top + self.n_layers * self.cell_height
        x = [left / self.width, min(1.0, right / self.width)]
        return x, [max(0.0, 1 - bottom / self.height), 1 - top / self.height]


def heads(result: Result) -> go.Figure:
    """A heatmap of layers x heads; several scores stand in panels that share one colour scale.

    Layer 0 is at the top. Grey is a place without a head: a convolution layer has none, and layers
    may have different numbers of them. Values from 0 to 1 are coloured on that range, others up to
    their largest, and values of both signs symmetrically around 0, or around a chance level that
    all share. A cell has its value written in it where there is room; hovering tells it with its
    standard error and chance level.

    Args:
        result: an axis "head" with labels such as "L1H3", and at most one other axis.

    Raises:
        ValueError: one axis too many, no head at all, or a label that names no head.
    """
    panels = list(style.series(result, "head"))
    places = [_place(str(label), result.name) for label in result.labels["head"]]
    if not places or not panels:
        raise ValueError(f"{result.name} holds no head to draw")
    grid = _Grid.around(places, len(panels))
    scale = _Scale.of(result.values, _chance_of_all(result))
    width = max(FIGURE_WIDTH, LEFT + grid.width + RIGHT)
    top = TOP + PANEL_TITLE * (len(panels) > 1)
    figure = go.Figure(
        layout=style.layout(
            result,
            width=width,
            height=top + grid.height + BOTTOM,
            margin={"l": LEFT, "r": width - LEFT - grid.width, "t": top, "b": BOTTOM},
            coloraxis=scale.axis(),
        )
    )
    for number, (name, panel) in enumerate(panels):
        _draw(figure, number, grid, scale, _Cells.of(panel, places, grid))
        x, y = grid.domains(number)
        figure.add_annotation(
            text=_caption(name, panel), showarrow=False, align="left",
            x=x[0], xref="paper", xanchor="left", y=y[1], yref="paper", yanchor="bottom", yshift=3,
        )  # fmt: skip
    return figure


@dataclass(frozen=True)
class _Scale:
    """From value to colour."""

    low: float
    high: float
    colours: tuple[str, ...]

    @classmethod
    def of(cls, values: np.ndarray, middle: float = 0.0) -> "_Scale":
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        if low < 0:
            reach = max(middle - low, high - middle)
            return cls(middle - reach, middle + reach, style.DIVERGING)
        return cls(0.0, 1.0 if high <= 1 else high, style.SEQUENTIAL)

    def axis(self) -> dict[str, Any]:
        ticks = [self.low, (self.low + self.high) / 2, self.high]
        bar = {
            "orientation": "h", "len": 200, "lenmode": "pixels", "thickness": 9, "outlinewidth": 0,
            "x": 0, "xref": "paper", "xanchor": "left", "xpad": 0,
            "y": 0, "yref": "container", "yanchor": "bottom", "ypad": 8,
            "tickvals": ticks, "tickformat": ".2~f", "tickfont": {"size": 11},
        }  # fmt: skip
        return {"cmin": self.low, "cmax": self.high, "colorscale": self.colours, "colorbar": bar}

    def ink_on(self, values: np.ndarray) -> list[str]:
        """For each value the colour of text, dark or white, that stands out more from its tile."""
        shares = ((values - self.low) / (self.high - self.low)).clip(0, 1)
        tiles = np.array(sample_colorscale(list(self.colours), shares, colortype="tuple"))
        linear = np.where(tiles <= 0.04045, tiles / 12.92, ((tiles + 0.055) / 1.055) ** 2.4)
        luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
        # Here the contrasts (WCAG 2) with white and with the ink, of luminance 0.018, are equal.
        return [style.INK if bright else "white" for bright in luminance > 0.217]


def _chance_of_all(result: Result) -> float:
    chances = [] if result.chance is None else np.unique(result.chance)
    return float(chances[0]) if len(chances) == 1 and np.isfinite(chances[0]) else 0.0


def _place(label: str, name: str) -> tuple[int, int]:
    match = HEAD.fullmatch(label)
    if match is None:
        raise ValueError(f'{name}: the label {label!r} names no head; heads are written "L1H3"')
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class _Cells:
    """One panel as layers x heads: NaN where there is no head, and where a value is unknown."""

    values: np.ndarray
    hover: np.ndarray

    @classmethod
    def of(cls, panel: Result, places: Sequence[tuple[int, int]], grid: _Grid) -> "_Cells":
        shape = (grid.n_layers, grid.n_heads)
        cells = cls(np.full(shape, np.nan), np.full(shape, "no head", object))
        for place, row in zip(places, panel.to_frame().to_dict("records"), strict=True):
            chance = "" if math.isnan(row["chance"]) else f"<br>chance {rounded(row['chance'])}"
            reading = rounded(row["value"], row["standard_error"])
            cells.values[place] = row["value"]
            cells.hover[place] = f"<b>{row['head']}</b>  {reading}{chance}"
        return cells


def _draw(figure: go.Figure, number: int, grid: _Grid, scale: _Scale, cells: _Cells) -> None:
    suffix = str(number + 1) if number else ""
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    tiles = {"xgap": 1.5, "ygap": 1.5, "hoverongaps": False, **axes}
    tiles |= {"text": cells.hover, "hovertemplate": "%{text}<extra></extra>"}
    grey = [[0, style.FAINT], [1, style.FAINT]]
    known = ~np.isnan(cells.values)
    # Grey tiles first: a value that is unknown gets one too, and tells its head when hovered over.
    figure.add_heatmap(z=np.where(known, np.nan, 0.0), colorscale=grey, showscale=False, **tiles)
    figure.add_heatmap(z=cells.values, coloraxis="coloraxis", **tiles)
    if grid.cell_width >= WIDTH_FOR_TEXT:
        layers, heads = np.nonzero(known)
        values = cells.values[known]
        figure.add_scatter(
            x=heads,
            y=layers,
            mode="text",
            text=[f"{value:.2f}" for value in values],
            textfont={
                "size": 12 if grid.cell_width >= WIDTH_FOR_LARGE_TEXT else 9,
                "color": scale.ink_on(values),
            },
            hoverinfo="skip",
            showlegend=False,
            **axes,
        )
    x, y = grid.domains(number)
    first = number % grid.columns == 0
    figure.update_layout(
        {
            f"xaxis{suffix}": _ticks(
                "head",
                grid.n_heads,
                domain=x,
                anchor=f"y{suffix}",
                range=(-0.5, grid.n_heads - 0.5),
            ),
            f"yaxis{suffix}": _ticks(
                "layer" if first else "",
                grid.n_layers,
                domain=y,
                anchor=f"x{suffix}",
                range=(grid.n_layers - 0.5, -0.5),
                showticklabels=first,
            ),
        }
    )


def _ticks(title: str, count: int, **more: Any) -> dict[str, Any]:
    step = 1 if count <= 12 else 5
    return style.axis(title, showgrid=False, tick0=0, dtick=step, fixedrange=True, **more)


def _caption(name: str, panel: Result) -> str:
    """The panel's name, and in small print its best head and the chance level, if there is one."""
    facts = []
    if not np.isnan(panel.values).all():
        best = panel.best()
        facts.append(f"highest {best} {rounded(float(panel.sel(head=best)))}")
    if panel.chance is not None and len(set(panel.chance.tolist())) == 1:
        facts.append(f"chance {rounded(panel.chance[0])}")
    title = f"<b>{style.words(name)}</b><br>" if name else ""
    return title + style.small(", ".join(facts))
