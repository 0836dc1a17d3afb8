"""Boxes in rows and the lines between them: where each stands, so that every label can be read.

A line leaves a box at its head and enters another at its foot, in a slot of its own, where its
label stands too. Where it passes a row in between it has a place of its own in that row.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from interp.plots.style import bezier

# Pixels; y counts upwards.
WIDTH, HEIGHT, GAP, PASSAGE = 104.0, 52.0, 12.0, 10.0
SLOT = 26.0
STEM, CURVE = 46.0, 62.0
ROW = HEIGHT + STEM + CURVE
LABEL_HEIGHTS = (16.0, 32.0)
"""Under the foot, in turn: a label is wider than a slot."""
LABEL_ROOM = 9.0
LEAVING = 9.0
"""Between the lines that leave the same box, where it is wide enough."""


@dataclass(frozen=True)
class Link:
    """From the head of a box to the foot of one in a higher row, to one of its channels."""

    sender: str
    receiver: str
    channel: str = ""


@dataclass(eq=False)
class Box:
    """A box by its centre, or the passage of a line; its channels by the middle of their slots."""

    width: float
    x: float = 0.0
    y: float = 0.0
    channels: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Line:
    """A line in two pieces, with its label in the gap between them."""

    below: np.ndarray
    above: np.ndarray
    label: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Layered:
    """All places, in pixels from the lower left."""

    boxes: Mapping[str, Box]
    lines: Sequence[Line]
    width: float
    height: float


def layered(
    links: Sequence[Link], depth: Callable[[str], float], channels: Sequence[str]
) -> Layered:
    """Place what is linked.

    Args:
        links: each goes upwards.
        depth: the row of a box, counted from below; only the order matters.
        channels: the order of a box's entrances; a box that has one of them has them all.
    """
    names = dict.fromkeys(end for link in links for end in (link.sender, link.receiver))
    heights = {value: row for row, value in enumerate(sorted({depth(name) for name in names}))}
    rows: list[list[str]] = [[] for _ in heights]
    for name in names:
        rows[heights[depth(name)]].append(name)
    chains = []
    for number, link in enumerate(links):
        between = range(heights[depth(link.sender)] + 1, heights[depth(link.receiver)])
        passages = [f"{number} past {row}" for row in between]
        for row, passage in zip(between, passages, strict=True):
            rows[row].append(passage)
        chains.append([link.sender, *passages, link.receiver])
    slots = {name: _slots(name, links, channels) for name in names}
    boxes = {name: Box(PASSAGE) for row in rows for name in row}
    boxes |= {name: Box(max(WIDTH, SLOT * sum(slots[name].values()))) for name in names}
    rows = _ordered(rows, chains, links, channels)
    width = _place(rows, boxes)
    height = (len(rows) - 1) * ROW + HEIGHT if rows else 0.0
    lines = _lines(links, chains, boxes, slots)
    return Layered({name: boxes[name] for name in names}, lines, width, height)


def _slots(name: str, links: Sequence[Link], channels: Sequence[str]) -> dict[str, int]:
    """How many slots each channel of a box has: at least one, where the box has channels."""
    entering = [link.channel for link in links if link.receiver == name]
    if not any(entering):
        return {"": len(entering)}
    return {channel: max(1, entering.count(channel)) for channel in channels}


def _ordered(
    rows: Sequence[Sequence[str]],
    chains: Sequence[Sequence[str]],
    links: Sequence[Link],
    channels: Sequence[str],
) -> list[list[str]]:
    """Each row sorted by where its lines go, from the top down: fewer lines cross."""
    above: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for chain, link in zip(chains, links, strict=True):
        for lower, upper in pairwise(chain):
            aside = channels.index(link.channel) - len(channels) / 2 + 0.5 if link.channel else 0
            above[lower].append((upper, aside / 4 if upper == link.receiver else 0.0))
    place: dict[str, float] = {}
    ordered = []
    for row in reversed(rows):
        aims = {
            name: float(np.mean([place[up] + aside for up, aside in above[name]] or [0.0]))
            for name in row
        }
        row = sorted(row, key=lambda name: aims[name])
        place |= {name: number - (len(row) - 1) / 2 for number, name in enumerate(row)}
        ordered.append(row)
    return ordered[::-1]


def _place(rows: Sequence[Sequence[str]], boxes: Mapping[str, Box]) -> float:
    """Put each row in the middle; the width of the widest."""
    widths = [sum(boxes[name].width + GAP for name in row) - GAP for row in rows]
    widest = max(widths, default=0.0)
    for height, (row, width) in enumerate(zip(rows, widths, strict=True)):
        left = (widest - width) / 2
        for name in row:
            box = boxes[name]
            box.x, box.y = left + box.width / 2, HEIGHT / 2 + height * ROW
            left += box.width + GAP
    return widest


def _lines(
    links: Sequence[Link],
    chains: Sequence[Sequence[str]],
    boxes: Mapping[str, Box],
    slots: Mapping[str, Mapping[str, int]],
) -> list[Line]:
    ends: dict[int, tuple[float, float]] = {}
    for name, counts in slots.items():
        ends |= _entrances(name, boxes[name], counts, links, chains, boxes)
    starts = _exits(links, chains, boxes, ends)
    return [
        _line(starts[number], [boxes[name] for name in chain[1:]], *ends[number])
        for number, chain in enumerate(chains)
    ]


def _entrances(
    name: str,
    box: Box,
    counts: Mapping[str, int],
    links: Sequence[Link],
    chains: Sequence[Sequence[str]],
    boxes: Mapping[str, Box],
) -> dict[int, tuple[float, float]]:
    """Where each line enters a box, and how far under its foot the label stands."""
    slot = box.width / max(1, sum(counts.values()))
    left, ends = box.x - box.width / 2, {}
    for channel, count in counts.items():
        box.channels[channel] = left + slot * count / 2
        entering = [
            number
            for number, link in enumerate(links)
            if link.receiver == name and link.channel == channel
        ]
        for place, number in enumerate(sorted(entering, key=lambda n: boxes[chains[n][-2]].x)):
            below = LABEL_HEIGHTS[len(ends) % 2]
            ends[number] = (left + slot * (place + 0.5), below)
        left += slot * count
    return ends


def _exits(
    links: Sequence[Link],
    chains: Sequence[Sequence[str]],
    boxes: Mapping[str, Box],
    ends: Mapping[int, tuple[float, float]],
) -> dict[int, float]:
    """Where each line leaves its box, in the order of where it goes."""
    leaving: dict[str, list[int]] = defaultdict(list)
    for number, link in enumerate(links):
        leaving[link.sender].append(number)
    starts = {}
    for name, numbers in leaving.items():
        box = boxes[name]
        step = min(LEAVING, (box.width - 2 * LEAVING) / len(numbers))
        goals = {n: boxes[chains[n][1]].x if len(chains[n]) > 2 else ends[n][0] for n in numbers}
        for place, number in enumerate(sorted(numbers, key=lambda n: goals[n])):
            starts[number] = box.x + step * (place - (len(numbers) - 1) / 2)
    return starts


def _line(start: float, upwards: Sequence[Box], x: float, below: float) -> Line:
    *passages, end = upwards
    foot = end.y - HEIGHT / 2
    points = [np.array([[start, upwards[0].y - ROW + HEIGHT / 2]])]
    for passage in passages:
        points.append(_curve(points[-1][-1], (passage.x, passage.y - HEIGHT / 2)))
        points.append(np.array([[passage.x, passage.y + HEIGHT / 2]]))
    points.append(_curve(points[-1][-1], (x, foot - STEM)))
    middle = foot - below
    points.append(np.array([[x, middle - LABEL_ROOM]]))
    above = np.array([[x, middle + LABEL_ROOM], [x, foot]])
    return Line(np.concatenate(points), above, (x, middle))


def _curve(start: np.ndarray, end: tuple[float, float]) -> np.ndarray:
    """Leaving and arriving upright."""
    last = np.array(end)
    lift = np.array([0.0, 0.5 * (last[1] - start[1])])
    return bezier(start, start + lift, last - lift, last)
