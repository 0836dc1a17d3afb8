"""One layout for all figures: panels in rows, with room for every text around them.

A panel says its size and what stands around it. From that follow the rows, the margins and the
height of the figure, so that no text is cut off or lies on another. All text here is plain: it is
escaped where it is handed to plotly, in `interp.plots.style`.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.scales import Scale
from interp.results.result import Result

# Pixels.
PAGE, NARROWEST = 900, 352
"""Panels take this much side by side; a phone shows this much without scrolling."""
EDGE, GAP, ROW_GAP = 16, 30, 26
TITLE_TOP, TITLE_LINE, NOTE_LINE, BELOW_TITLE = 16, 22, 17, 16
CAPTION_LINE, NAME_SIZE, LINE = 16, 12, 14
AXIS_TITLE, NUMBERS_BELOW, NUMBERS_LEFT = 24, 24, 46
LEGEND_LINE, LEGEND_MARK = 24, 46
BUTTONS = 50
LONGEST_NAME, NOTE_WIDTH = 40, 180


@dataclass(frozen=True)
class Axis:
    """One side of a panel: numbers, or the names of what is counted.

    `look` is plotly's. Without `shown` the names are there for hovering alone.
    """

    title: str = ""
    names: Sequence[object] | None = None
    places: Sequence[float] | np.ndarray | None = None
    shown: bool = True
    look: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """Small print under each name."""

    @property
    def texts(self) -> list[str]:
        """The names as plain text."""
        return [style.shortened(str(name), LONGEST_NAME) for name in self.names or ()]

    @property
    def widest(self) -> float:
        """The width of the longest name or note."""
        notes = [line for note in self.notes for line in wrapped(note, NOTE_WIDTH)]
        return max((style.width_of(text) for text in (*self.texts, *notes)), default=0.0)


@dataclass(frozen=True)
class Panel:
    """A plot's size in pixels and what stands around it; without a width it takes the page's."""

    x: Axis
    y: Axis
    height: float
    width: float | None = None
    title: str = ""
    note: str = ""
    above: float = 0
    """Further room over the title."""

    @property
    def captions(self) -> list[str]:
        """The lines over the panel, wrapped to its width."""
        room = (self.width or NARROWEST - 2 * EDGE) + GAP - 8
        bold = [style.bold(line) for line in wrapped(self.title, room, 13 * 1.1)]
        return bold + [style.small(line) for line in wrapped(self.note, room)]

    @property
    def upright(self) -> str:
        """The title at the left, in lines that the panel's height has room for."""
        return "\n".join(wrapped(self.y.title, self.height, 13))

    @property
    def caption_height(self) -> float:
        """Of these lines."""
        return self.above + len(self.captions) * CAPTION_LINE + 4 * bool(self.captions)

    def across(self) -> dict[str, Any]:
        """How the names below stand: level, slanted or upright, all of them or every few."""
        names, widest = self.x.texts, self.x.widest
        if self.x.names is None:
            return {}
        cell = self.width / max(1, len(names)) if self.width else widest + 8
        angle, every = 0, 1
        if all(isinstance(name, int | np.integer) for name in self.x.names):
            every = rounded_up((widest + 8) / cell)
        elif widest + 6 > cell:
            angle = -35 if cell >= 24 else -90
            every = rounded_up(LINE / cell)
        return {"tickangle": angle, **self._ticks(self.x, every)}

    def down(self) -> dict[str, Any]:
        """The names at the left, all of them or every few."""
        if self.y.names is None:
            return {}
        cell = self.height / max(1, len(self.y.names))
        return self._ticks(self.y, rounded_up(LINE * (1 + bool(self.y.notes)) / cell))

    @staticmethod
    def _ticks(axis: Axis, every: int) -> dict[str, Any]:
        names = [style.text(text) for text in axis.texts]
        if axis.notes:
            lines = [map(style.small, wrapped(note, NOTE_WIDTH)) for note in axis.notes]
            pairs = zip(names, lines, strict=True)
            names = ["<br>".join(filter(None, [name, *small])) for name, small in pairs]
        places = [*range(len(names))] if axis.places is None else [*axis.places]
        every = every if axis.shown else 1
        return {
            "tickmode": "array",
            "tickvals": places[::every],
            "ticktext": names[::every],
            "showticklabels": axis.shown,
            "showgrid": False,
            "fixedrange": True,
        }

    def below(self) -> float:
        """Room under the panel."""
        title = AXIS_TITLE * bool(self.x.title)
        if self.x.names is None:
            return title + NUMBERS_BELOW * self.x.look.get("showticklabels", True)
        if not self.x.shown:
            return title + 8
        lean = math.radians(-self.across()["tickangle"])
        return title + 10 + self.x.widest * math.sin(lean) + NAME_SIZE * math.cos(lean)

    def left(self) -> float:
        """Room at the left."""
        title = AXIS_TITLE * bool(self.y.title) + LINE * self.upright.count("\n")
        if self.y.names is None:
            names = NUMBERS_LEFT * self.y.look.get("showticklabels", True)
        else:
            names = (12 + self.y.widest) * self.y.shown
        lean = math.radians(-self.across().get("tickangle", 0))
        leaning = 0.0
        if 0 < lean < 1.5 and self.width:  # slanted names begin left of their place
            cell = self.width / len(self.x.texts)
            leaning = max(
                style.width_of(text) * math.cos(lean) - cell * (place + 0.5)
                for place, text in enumerate(self.x.texts)
            )
        return max(title + names, leaning)


def lay_out(
    result: Result,
    panels: Sequence[Panel | Sequence[Panel]],
    *,
    name: str | None = None,
    unit: str | None = None,
    notes: Sequence[str] | None = None,
    scales: Sequence[Scale] = (),
    legend: Sequence[str] = (),
    sides: tuple[float, float] = (EDGE, EDGE),
    **layout: Any,
) -> tuple[go.Figure, list[dict[str, str]]]:
    """An empty figure with a place for each panel, and each panel's axes for its traces.

    Args:
        result: gives name, unit and origin, where these are not given.
        panels: in the order of reading, wrapped into rows that fit the page, or rows of them.
        name: in bold.
        unit: after it.
        notes: lines of small print below.
        scales: those whose bars stand at the foot, for "coloraxis", "coloraxis2", ...
        legend: the names in it.
        sides: least room at the left, and room at the right.
        layout: more of plotly's layout.
    """
    rows = _rows(panels)
    leads = [[_lead(row, place) for place in range(len(row))] for row in rows]
    edge, right = sides
    left = edge + max((row[0] for row in leads), default=0.0)
    plot = max([_across(row, lead) for row, lead in zip(rows, leads, strict=True)], default=0.0)
    whole = None
    if all(panel.width for row in rows for panel in row):
        bars = sum(scale.width for scale in scales)
        whole = max(NARROWEST, left + max(plot, bars) + right)
    lines = _title(result, name, unit, notes, (whole or NARROWEST) - 2 * edge)
    top = TITLE_TOP + BELOW_TITLE + sum(height for _, height in lines)
    top += LEGEND_LINE * _legend_lines(legend, (whole or NARROWEST) - left - right)
    tops, height = _heights(rows)
    below = max((panel.below() for panel in rows[-1]), default=0.0) if rows else 0.0
    bottom = below + 12 + max((scale.height for scale in scales), default=0)
    figure = go.Figure(
        layout=style.layout(
            title={
                "text": "<br>".join(line for line, _ in lines),
                "font": {"size": 16}, "x": 0, "xref": "container", "xanchor": "left",
                "y": 1, "yref": "container", "yanchor": "top", "pad": {"l": edge, "t": TITLE_TOP},
            },
            width=whole,
            height=top + height + bottom,
            margin={
                "l": left, "r": whole - left - plot if whole else right, "t": top, "b": bottom,
            },
            legend={
                "orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
                "traceorder": "normal",
            },
            showlegend=bool(legend),
        )
    )  # fmt: skip
    figure.update_layout(layout)
    axes = []
    for row, lead, above in zip(rows, leads, tops, strict=True):
        x = -lead[0]
        for panel, room in zip(row, lead, strict=True):
            x += room
            across = (x / plot, min(1.0, (x + panel.width) / plot)) if panel.width else (0.0, 1.0)
            down = (max(0.0, 1 - (above + panel.height) / height), 1 - above / height)
            axes.append(
                _place(figure, len(axes), panel, (across, down), panel is row[0] or room > 0)
            )
            x += (panel.width or 0.0) + GAP
    aside = 0.0
    for number, scale in enumerate(scales):
        x = aside / max(plot, 1.0)
        figure.update_layout({coloraxis(number): scale.axis(x)})
        if scale.unit:
            figure.add_annotation(scale.name(x, bottom))
        aside += scale.width
    return figure, axes


def coloraxis(number: int) -> str:
    """What plotly calls the colour axis of a scale."""
    return f"coloraxis{_suffix(number)}"


def wrapped(text: str, room: float, size: float = 12) -> list[str]:
    """Plain text in lines that fit."""
    letters = max(8, int(room / (size * style.LETTER)))
    lines = textwrap.wrap(text, letters, break_long_words=True, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def rounded_up(every: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ...

    >>> rounded_up(0.3), rounded_up(3), rounded_up(60)
    (1, 5, 100)
    """
    power = 10 ** math.floor(math.log10(max(1.0, every)))
    return next(int(step * power) for step in (1, 2, 5, 10) if step * power >= every - 1e-9)


def _suffix(number: int) -> str:
    return str(number + 1) if number else ""


def _rows(panels: Sequence[Panel | Sequence[Panel]]) -> list[list[Panel]]:
    """As many side by side as fit the page; what is a row already stays one."""
    rows: list[list[Panel]] = []
    is_open = False
    for panel in panels:
        if not isinstance(panel, Panel):
            rows.append([*panel])
            is_open = False
            continue
        longer = [*rows[-1], panel] if is_open else [panel]
        leads = [_lead(longer, place) for place in range(len(longer))]
        if is_open and all(one.width for one in longer) and _across(longer, leads) <= PAGE + 0.5:
            rows[-1] = longer
        else:
            rows.append([panel])
        is_open = True
    return rows


def _lead(row: Sequence[Panel], place: int) -> float:
    """Room left of a panel: none for names that stand at its neighbour already."""
    panel = row[place]
    if (
        place
        and panel.y.texts == row[place - 1].y.texts
        and panel.y.title == row[place - 1].y.title
    ):
        return 0.0
    return panel.left()


def _across(row: Sequence[Panel], leads: Sequence[float]) -> float:
    """The width of a row, from the left edge of its first panel."""
    return sum(panel.width or 0.0 for panel in row) + sum(leads[1:]) + GAP * (len(row) - 1)


def _heights(rows: Sequence[Sequence[Panel]]) -> tuple[list[float], float]:
    """Where the panels of each row begin, and the height down to the foot of the last."""
    tops, foot, under = [], 0.0, 0.0
    for row in rows:
        top = foot + under + max(panel.caption_height for panel in row)
        tops.append(top)
        foot = top + max(panel.height for panel in row)
        under = max(panel.below() for panel in row) + ROW_GAP
    return tops, foot or 1.0


def _title(
    result: Result, name: str | None, unit: str | None, notes: Sequence[str] | None, room: float
) -> list[tuple[str, float]]:
    """Lines of markup with their heights: the name in bold, its unit, the notes in small print."""
    head = style.plain(result.name if name is None else name)
    unit = style.plain(style.unit_of(result) if unit is None else unit)
    beside = room - BUTTONS
    bold = wrapped(head, beside, 16 * 1.1)
    lines: list[tuple[str, float]] = [(style.bold(line), TITLE_LINE) for line in bold]
    if unit and lines:
        if style.width_of(f"{bold[-1]}, {unit}", 16) <= beside:
            lines[-1] = (f"{lines[-1][0]}, {style.text(unit)}", TITLE_LINE)
        else:
            lines += [(style.text(line), TITLE_LINE) for line in wrapped(unit, beside, 16)]
    for note in [style.origin(result)] if notes is None else notes:
        lines += [(style.small(line), NOTE_LINE) for line in wrapped(note, room)]
    return lines


def _legend_lines(names: Sequence[str], room: float) -> int:
    """How many lines plotly needs: one, or else columns as wide as the widest name."""
    widths = [LEGEND_MARK + style.width_of(name, 13) for name in names]
    if not widths or sum(widths) <= room:
        return len(widths[:1])
    return math.ceil(len(widths) / max(1, int(room / max(widths))))


def _place(
    figure: go.Figure,
    number: int,
    panel: Panel,
    domains: tuple[tuple[float, float], tuple[float, float]],
    is_named: bool,
) -> dict[str, str]:
    """Add a panel's axes and the lines over it."""
    suffix, (across, down) = _suffix(number), domains
    x, y = (f"{letter}{suffix}" for letter in "xy")
    fixed: dict[str, Any] = {"automargin": False} if panel.width else {}
    x_look = {**fixed, **panel.across(), **panel.x.look}
    y_look = {**fixed, **panel.down(), **panel.y.look}
    y_look |= {} if is_named else {"showticklabels": False}
    figure.update_layout(
        {
            f"xaxis{suffix}": style.axis(panel.x.title, domain=across, anchor=y, **x_look),
            f"yaxis{suffix}": style.axis(
                panel.upright if is_named else "", domain=down, anchor=x, **y_look
            ),
        }
    )
    if panel.captions:
        figure.add_annotation(
            text="<br>".join(panel.captions), showarrow=False, align="left",
            x=across[0], xref="paper", xanchor="left", xshift=-1,
            y=down[1], yref="paper", yanchor="bottom", yshift=2,
        )  # fmt: skip
    return {"xaxis": x, "yaxis": y}
