"""Small tables as coloured tiles: a panel each, with its numbers written in."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.heatmaps import _Scale as Scale
from interp.results.result import Result, rounded

# Pixels.
TOP, LEFT, RIGHT = 96, 84, 24
PLOT_WIDTH, NARROWEST = 860, 440
GAP, TITLE, COLORBAR = 30, 26, 40
SLANTED, LEVEL = 92, 48
"""What the labels below a panel take."""


@dataclass(frozen=True)
class Table:
    """One panel: `values` by row and column, and what hovering tells.

    `shades` colour the tiles where values of several kinds stand side by side, without a bar.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    hover: np.ndarray
    shades: np.ndarray | None = field(default=None)

    @property
    def shown(self) -> np.ndarray:
        """What gives a tile its colour."""
        return self.values if self.shades is None else self.shades


@dataclass(frozen=True)
class Tiles:
    """How tables are drawn: the size of a tile in pixels, and the names of the two axes."""

    width: int
    height: int
    across: str = ""
    down: str = ""
    slanted: bool = False

    def figure(self, result: Result, tables: Sequence[Table], scale: Scale) -> go.Figure:
        """All tables, as many side by side as fit, under the result's title."""
        place = _Places.of(tables, self)
        with_bar = tables[0].shades is None
        below = (COLORBAR if with_bar else 0) + (SLANTED if self.slanted else LEVEL)
        width = max(NARROWEST, LEFT + place.width + RIGHT)
        figure = go.Figure(
            layout=style.layout(
                result,
                width=width,
                height=TOP + place.height + below,
                margin={"l": LEFT, "r": width - LEFT - place.width, "t": TOP, "b": below},
                showlegend=False,
                coloraxis=scale.axis() | {"showscale": with_bar},
            )
        )
        for number, table in enumerate(tables):
            _draw(figure, number, table, scale)
            self._add_axes(figure, number, table, place)
        return figure

    def _add_axes(self, figure: go.Figure, number: int, table: Table, place: "_Places") -> None:
        suffix, (x, y) = _suffix(number), place.domains(number)
        first = number % place.columns == 0
        quiet = {"showgrid": False, "fixedrange": True, "tickmode": "array"}
        figure.update_layout(
            {
                f"xaxis{suffix}": style.axis(
                    self.across, tickvals=[*range(len(table.columns))], ticktext=table.columns,
                    range=(-0.5, len(table.columns) - 0.5), domain=x, anchor=f"y{suffix}",
                    tickangle=-35 if self.slanted else 0, **quiet,
                ),
                f"yaxis{suffix}": style.axis(
                    self.down if first else "", tickvals=[*range(len(table.rows))],
                    ticktext=table.rows, range=(len(table.rows) - 0.5, -0.5), domain=y,
                    anchor=f"x{suffix}", showticklabels=first, **quiet,
                ),
            }
        )  # fmt: skip
        figure.add_annotation(
            text=f"<b>{html.escape(table.title)}</b>", showarrow=False, x=x[0], xref="paper",
            xanchor="left", y=y[1], yref="paper", yanchor="bottom", yshift=3,
        )  # fmt: skip


def reading(result: Result) -> str:
    """A single value with its standard error, and its chance level where there is one."""
    error = np.nan if result.standard_error is None else float(result.standard_error)
    text = rounded(float(result), error)
    if result.chance is None or np.isnan(result.chance):
        return text
    return f"{text}, chance {rounded(float(result.chance))}"


def written(value: float) -> str:
    """A number as a tile has room for."""
    if np.isnan(value):
        return "–"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


@dataclass(frozen=True)
class _Places:
    """Where panels stand; one with fewer columns is narrower, with tiles of the same size."""

    widths: Sequence[int]
    panel_height: int
    row_gap: int
    columns: int
    rows: int

    @classmethod
    def of(cls, tables: Sequence[Table], tiles: Tiles) -> "_Places":
        widths = [tiles.width * len(table.columns) for table in tables]
        height = tiles.height * max(len(table.rows) for table in tables)
        row_gap = TITLE + (SLANTED if tiles.slanted else LEVEL)
        columns = min(len(tables), max(1, (PLOT_WIDTH + GAP) // (max(widths) + GAP)))
        return cls(widths, height, row_gap, columns, -(-len(tables) // columns))

    @property
    def panel_width(self) -> int:
        """The widest panel's."""
        return max(self.widths)

    @property
    def width(self) -> int:
        """Of all panels and the gaps between them."""
        return self.columns * (self.panel_width + GAP) - GAP

    @property
    def height(self) -> int:
        """Of all panels and the gaps between them."""
        return self.rows * (self.panel_height + self.row_gap) - self.row_gap

    def domains(self, panel: int) -> tuple[list[float], list[float]]:
        """The share of width and, from below, of height that a panel takes."""
        left = panel % self.columns * (self.panel_width + GAP)
        top = panel // self.columns * (self.panel_height + self.row_gap)
        right, bottom = left + self.widths[panel], top + self.panel_height
        x = [left / self.width, min(1.0, right / self.width)]
        return x, [max(0.0, 1 - bottom / self.height), 1 - top / self.height]


def _suffix(number: int) -> str:
    return str(number + 1) if number else ""


def _draw(figure: go.Figure, number: int, table: Table, scale: Scale) -> None:
    axes = {"xaxis": f"x{_suffix(number)}", "yaxis": f"y{_suffix(number)}"}
    tiles = {"xgap": 1.5, "ygap": 1.5, "hoverongaps": False, "text": table.hover, **axes}
    tiles |= {"hovertemplate": "%{text}<extra></extra>"}
    known = ~np.isnan(table.values)
    grey = [[0, style.FAINT], [1, style.FAINT]]
    # Grey tiles first: a value that is unknown gets one too, and tells why when hovered over.
    figure.add_heatmap(z=np.where(known, np.nan, 0.0), colorscale=grey, showscale=False, **tiles)
    figure.add_heatmap(z=np.where(known, table.shown, np.nan), coloraxis="coloraxis", **tiles)
    rows, columns = np.indices(table.values.shape).reshape(2, -1)
    inks = scale.ink_on(np.nan_to_num(table.shown).ravel())
    figure.add_scatter(
        x=columns,
        y=rows,
        mode="text",
        text=[written(value) for value in table.values.flat],
        textfont={
            "size": 12,
            "color": [i if k else style.QUIET for i, k in zip(inks, known.flat, strict=True)],
        },
        hoverinfo="skip",
        **axes,
    )
