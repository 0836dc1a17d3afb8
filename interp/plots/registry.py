"""Which picture suits a result: every module of this package registers what it draws."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib import import_module
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


_PICTURES: dict[frozenset[str], Picture] = {}


def draws(*axes: str | tuple[str, ...], order: Order = Order.OWN) -> Callable[[Draw], Draw]:
    """Say that a function draws results which have one of these axes.

    Args:
        axes: their names; several in a tuple are needed together.
        order: what comes first where a result has the axes of several pictures.

    Raises:
        ValueError: another function has registered for one of these axes; a module that is loaded
            anew may register again.

    >>> [picture.draw.__name__ for picture in pictures() if "edge" in picture.axes]
    ['graph']
    """

    def register(draw: Draw) -> Draw:
        for axis in axes:
            needed = frozenset([axis] if isinstance(axis, str) else axis)
            other = _PICTURES[needed].draw if needed in _PICTURES else draw
            if (other.__module__, other.__name__) != (draw.__module__, draw.__name__):
                raise ValueError(
                    f"the axis {axis!r} is drawn by {other.__module__}.{other.__name__} already"
                )
            _PICTURES[needed] = Picture(needed, order, draw)
        return draw

    return register


def pictures() -> list[Picture]:
    """All that are registered, in their order; of one order, those that need most axes first."""
    _import_all()
    return sorted(_PICTURES.values(), key=lambda picture: (picture.order, -len(picture.axes)))


@cache
def _import_all() -> None:
    package = "interp.plots"
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        import_module(module.name)


def figure(result: Result) -> Any:
    """The figure that suits a result's axes; `Result.plot()` is this function.

    What runs over "step" against tokens, an "interval" as a row, grids and tables of lags,
    circuits of tokens, composition from "source" to "target", a circuit's every "edge", a view of
    each "head" by "query" and "key", a curve over "position", effects of interventions, bars of
    each "measure", else a heatmap of "head".

    Raises:
        ValueError: the result has none of these axes.
    """
    for picture in pictures():
        if picture.axes <= set(result.axes):
            return picture.draw(result)
    raise ValueError(
        f"no figure suits the axes {result.axes} of {result.name}; one of 'head', 'position', "
        "'measure' or 'step' is needed, or use to_frame()"
    )
