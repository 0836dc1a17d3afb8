"""Tables and matrices as coloured cells: what heatmaps of every kind are drawn with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.panels import Axis, Panel, coloraxis, lay_out
from interp.plots.scales import DIVERGING, Scale
from interp.results.result import Result

SIZES = 12, 10, 9
"""Of what is written in a cell: the largest that fits."""
BESIDE = 3  # pixels beside what is written
BLOCK = 8  # pixels: smaller cells have no line between them


@dataclass(frozen=True)
class Tiles:
    """One panel of cells.

    Args:
        values: by row and column.
        rows: the axis at the left, row 0 at the top.
        columns: the axis below.
        hover: from a cell's row and column to its markup, or one template of plotly's for all.
        title: plain text over the panel.
        note: small print under the title.
        unit: panels of one unit share one scale and its bar.
        written: what stands in the cells, if it fits.
        shades: from -1 to 1, what colours the cells where values of several kinds stand side by
            side; there is no bar then.
        is_grey: a cell whose value is unknown is grey and can be hovered over; else it is empty.
        at: x and y of the cells, where they are not 0, 1, 2, ...
    """

    values: np.ndarray
    rows: Axis
    columns: Axis
    hover: Callable[[int, int], str] | str
    title: str = ""
    note: str = ""
    unit: str = ""
    written: npt.ArrayLike | None = None
    shades: np.ndarray | None = None
    is_grey: bool = False
    at: Mapping[str, Any] = field(default_factory=dict)

    def panel(self, cell: tuple[float | None, float]) -> Panel:
        """The place it takes with cells of this size; without a width it takes the page's."""
        n_rows, n_columns = self.values.shape
        across, down = (
            replace(axis, look={**limits, **axis.look})
            for axis, limits in (
                (self.columns, {} if self.at else _limits(-0.5, n_columns - 0.5)),
                (self.rows, {} if "y" in self.at else _limits(n_rows - 0.5, -0.5)),
            )
        )
        width = None if cell[0] is None else cell[0] * n_columns
        return Panel(across, down, cell[1] * n_rows, width, self.title, self.note)


def _limits(first: float, last: float) -> dict[str, Any]:
    return {"range": (first, last), "showgrid": False, "fixedrange": True}


def drawn(
    result: Result,
    tiles: Sequence[Tiles | Sequence[Tiles]],
    cell: tuple[float | None, float],
    middle: float = 0.0,
    **heading: Any,
) -> go.Figure:
    """The figure of all panels, or rows of panels, with cells of this size in pixels.

    Args:
        result: what is drawn.
        tiles: wrapped into rows that fit the page, or rows of them.
        cell: width and height; without a width they fill the page's.
        middle: of a scale for values of both signs.
        heading: further arguments of `lay_out`.
    """
    flat = [one for row in tiles for one in ([row] if isinstance(row, Tiles) else row)]
    scales = scales_of(flat, middle)
    panels = [
        row.panel(cell) if isinstance(row, Tiles) else [one.panel(cell) for one in row]
        for row in tiles
    ]
    bars = [] if flat[0].shades is not None else [*scales.values()]
    figure, axes = lay_out(result, panels, scales=bars, **heading)
    for one, place in zip(flat, axes, strict=True):
        draw(figure, one, place, scales, cell)
    if not bars:
        figure.update_layout(coloraxis=next(iter(scales.values())).axis() | {"showscale": False})
    return figure


def scales_of(tiles: Sequence[Tiles], middle: float = 0.0) -> dict[str, Scale]:
    """A scale for each unit; for shades one from -1 to 1."""
    if tiles[0].shades is not None:
        return {one.unit: Scale(-1.0, 1.0, DIVERGING) for one in tiles}
    return Scale.by_unit(((one.unit, one.values) for one in tiles), middle)


def draw(
    figure: go.Figure,
    tiles: Tiles,
    axes: Mapping[str, str],
    scales: Mapping[str, Scale],
    cell: tuple[float | None, float],
) -> None:
    """Add one panel's cells, on these axes."""
    known = np.isfinite(tiles.values)
    shown = tiles.values if tiles.shades is None else tiles.shades
    width = cell[0] or np.inf
    common: dict[str, Any] = {"hoverongaps": False, "xgap": gap(width), "ygap": gap(cell[1])}
    common |= {**axes, **tiles.at}
    if isinstance(tiles.hover, str):
        common |= {"hovertemplate": f"{tiles.hover}<extra></extra>"}
    else:
        rows, columns = map(range, tiles.values.shape)
        texts = [[tiles.hover(row, column) for column in columns] for row in rows]
        common |= style.hovering(texts)
    if tiles.is_grey and not known.all():
        # First: it says why its value is unknown.
        grey = [[0, style.FAINT], [1, style.FAINT]]
        z = np.where(known, np.nan, 0.0)
        figure.add_heatmap(z=z, colorscale=grey, showscale=False, **common)
    number = [*scales].index(tiles.unit) if tiles.shades is None else 0
    figure.add_heatmap(z=np.where(known, shown, np.nan), coloraxis=coloraxis(number), **common)
    if tiles.written is not None:
        _write(figure, tiles, axes, scales[tiles.unit].ink_on(shown.ravel()), width)


def gap(size: float) -> float:
    """The line between cells of this size."""
    return 1.5 if size > 2 * BLOCK else 1 if size > BLOCK else 0


def _write(
    figure: go.Figure, tiles: Tiles, axes: Mapping[str, str], inks: Sequence[str], width: float
) -> None:
    texts = np.asarray(tiles.written, dtype=object).ravel()
    longest = max(texts, key=style.width_of, default="")
    sizes = [size for size in SIZES if style.width_of(longest, size) + BESIDE <= width]
    if not sizes:
        return
    rows, columns = np.indices(tiles.values.shape).reshape(2, -1)
    known = np.isfinite(tiles.values).ravel()
    figure.add_scatter(
        x=columns,
        y=rows,
        mode="text",
        text=[style.text(text) for text in texts],
        textfont={
            "size": sizes[0],
            "color": [ink if k else style.QUIET for ink, k in zip(inks, known, strict=True)],
        },
        hoverinfo="skip",
        showlegend=False,
        **axes,
    )


def written(value: float) -> str:
    """A number as a cell has room for."""
    if np.isnan(value):
        return "–"
    return f"{value:z.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
