"""A circuit as a graph: what each part reads through which channel, the embedding at the bottom."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.layered import HEIGHT, Box, Line, Link, layered
from interp.plots.panels import NARROWEST, Axis, Panel, lay_out
from interp.plots.registry import draws
from interp.results.result import Result

CHANNELS = ("q", "k", "v")

# Opaque, with white text on them: they hide the lines behind, on a light page and on a dark one.
INDUCTION, HELPER, OTHER = "#0062A0", "#00775A", "#6B6F78"
COLOURS = {"q": style.SERIES[1], "k": style.SERIES[2], "v": style.SERIES[3], "": style.QUIET}

SIDE = 8  # pixels
WIDEST_LINE, NARROWEST_LINE = 6.0, 1.5

READING = (
    "Cutting a line changes the induction score by so much; "
    "at logits and an induction head's v, the loss in nats."
)


@dataclass(frozen=True)
class _Edge:
    """A direct path and what cutting it does."""

    link: Link
    change: float
    size: float
    hover: str


@draws("edge")
def graph(result: Result) -> go.Figure:
    """Boxes for the parts and lines for the paths, as wide as what cutting them does.

    Queries, keys and values have a colour each. On a line stands by how much cutting it changes the
    induction score, for queries and keys and all that helpers read, or the loss in nats, for an
    induction head's values and the logits. Hovering shows the 95 % interval and what random
    directions do.

    Raises:
        ValueError: the provenance does not say in which layer every part is.
    """
    edges = _edges(result)
    layers = result.provenance.get("layers", {})
    depth = {**layers, "logits": math.inf}
    if unplaced := {end for e in edges for end in (e.link.sender, e.link.receiver)} - {*depth}:
        raise ValueError(
            f"{result.name}: the provenance names no layer of {min(unplaced)!r} under 'layers', "
            "where induction_circuit writes it; find the circuit again"
        )
    places = layered([edge.link for edge in edges], depth.__getitem__, CHANNELS)
    aside = max(0.0, (NARROWEST - 2 * SIDE - places.width) / 2)
    across, up = (
        Axis(look={"visible": False, "showticklabels": False, "fixedrange": True, "range": limits})
        for limits in ((-aside, places.width + aside), (0, places.height))
    )
    panel = Panel(across, up, places.height, places.width + 2 * aside)
    notes = [style.origin(result), READING]
    figure, _ = lay_out(result, [panel], unit="", notes=notes, sides=(SIDE, SIDE))
    for edge, line in zip(edges, places.lines, strict=True):
        _draw_edge(figure, edge, line)
    for label, box in places.boxes.items():
        _draw_box(figure, box, *_look(label, result))
    return figure


def _edges(result: Result) -> list[_Edge]:
    frame = {str(name): result.sel(measure=name).values for name in result.labels["measure"]}
    tops = {name: float(np.nanmax(np.abs([*frame[name], 1e-9]))) for name in ("score", "loss")}
    edges = []
    for index, label in enumerate(result.labels["edge"]):
        sender, _, end = str(label).partition("->")
        receiver, _, channel = end.partition(".")
        row = {name: float(values[index]) for name, values in frame.items()}
        judged = "loss" if math.isnan(row["score"]) else "score"
        size = abs(row[judged]) / tops[judged]
        hover = "<br>".join([style.bold(label), *_readings(row)])
        edges.append(_Edge(Link(sender, receiver, channel), row[judged], size, hover))
    return edges


def _readings(row: Mapping[str, float]) -> list[str]:
    """What hovering over an edge shows, line by line."""
    lines = []
    for name, unit in (("score", "induction score"), ("loss", "loss, nats")):
        value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
        if math.isnan(value):
            continue
        lines.append(f"{unit}: {value:+.3f} (95 %: {low:+.3f} to {high:+.3f})")
        low, high = (row[f"{name}_random_{end}"] for end in ("low", "high"))
        if not math.isnan(low):
            lines.append(f"as many random directions: {low:+.3f} to {high:+.3f}")
    if not math.isnan(z := row["composition_z"]):
        lines.append(f"weights compose {z:.0f} deviations above random rotations")
    return [line.replace("-", "−") for line in lines]


def _look(label: str, result: Result) -> tuple[str, str]:
    """What stands in a box, and its colour."""
    known = result.provenance
    heads, helpers, lags = (known.get(name, {}) for name in ("heads", "helpers", "lags"))
    note, colour = {"embed": "current token", "logits": "prediction"}.get(label, ""), OTHER
    if label in heads:
        note, colour = f"induction {heads[label]:.2f}", INDUCTION
    elif label in helpers:
        where, share = helpers[label]
        note, colour = f"{where.split()[0]} {share:.2f}", HELPER
    elif label in lags:
        back = {0: "current token", 1: "token before"}
        note, colour = back.get(lags[label], f"{lags[label]} tokens back"), HELPER
    elif label in (keys := known.get("keys", {})):
        note = "key before" if keys[label] == 1 else f"{keys[label]} keys back"
    return style.bold(label) + (f"<br>{style.text(note)}" if note else ""), colour


def _draw_edge(figure: go.Figure, edge: _Edge, line: Line) -> None:
    for part in (line.below, line.above):
        figure.add_scatter(
            x=part[:, 0],
            y=part[:, 1],
            mode="lines",
            line={
                "color": COLOURS[edge.link.channel],
                "width": NARROWEST_LINE + edge.size * (WIDEST_LINE - NARROWEST_LINE),
            },
            **style.hovering([edge.hover] * len(part)),
        )
    x, y = line.label
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="text",
        text=[f"{edge.change:+.2f}".replace("-", "−")],
        textfont={"size": 11},
        hovertext=[edge.hover],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _draw_box(figure: go.Figure, box: Box, text: str, colour: str) -> None:
    figure.add_shape(
        type="rect",
        x0=box.x - box.width / 2,
        x1=box.x + box.width / 2,
        y0=box.y - HEIGHT / 2,
        y1=box.y + HEIGHT / 2,
        fillcolor=colour,
        line={"width": 0},
        layer="above",
    )
    letters = {channel: x for channel, x in box.channels.items() if channel}
    plain = {"showarrow": False, "align": "center"}
    middle, white = box.y + (6 if letters else 0), {"color": "white", "size": 12}
    figure.add_annotation(x=box.x, y=middle, text=text, font=white, **plain)
    for channel, x in letters.items():
        small = {"color": "white", "size": 10}
        figure.add_annotation(x=x, y=box.y - HEIGHT / 2 + 7, text=channel, font=small, **plain)
