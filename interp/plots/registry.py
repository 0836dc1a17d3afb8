"""The registry of pictures: every module of this package enters what it draws."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from interp.results.result import Result

Draw = Callable[[Result], Any]


class Order(IntEnum):
    """Of several axes that a result has, the first of these decides."""

    CLOCK = 0
    """The course of training: whatever runs over it is drawn against it."""
    OWN = 1
    """An axis that one analysis has: its picture knows all that stands beside it."""
    SHARED = 2
    """An axis of several analyses, where none has one of its own."""
    POSITION = 3
    MEASURE = 4
    HEAD = 5


@dataclass(frozen=True)
class Picture:
    """A function that draws whatever has all of these axes."""

    axes: frozenset[str]
    order: Order
    draw: Draw


PICTURES: dict[frozenset[str], Picture] = {}
"""What is entered so far; `interp.plots.figures` brings in the modules that do so."""


def draws(*axes: str | tuple[str, ...], order: Order = Order.OWN) -> Callable[[Draw], Draw]:
    """Say that a function draws results which have one of these axes.

    Args:
        axes: their names; several in a tuple are needed together.
        order: what comes first where a result has the axes of several pictures.

    Raises:
        ValueError: another function has registered for one of these axes; a module that is loaded
            anew may register again.

    >>> from interp.plots.figures import pictures
    >>> [picture.draw.__name__ for picture in pictures() if "edge" in picture.axes]
    ['graph']
    """

    def register(draw: Draw) -> Draw:
        for axis in axes:
            needed = frozenset([axis] if isinstance(axis, str) else axis)
            other = PICTURES[needed].draw if needed in PICTURES else draw
            if (other.__module__, other.__name__) != (draw.__module__, draw.__name__):
                raise ValueError(
                    f"the axis {axis!r} is drawn by {other.__module__}.{other.__name__} already"
                )
            PICTURES[needed] = Picture(needed, order, draw)
        return draw

    return register
