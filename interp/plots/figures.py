"""Which picture suits a result: looked up in the registry, once all modules have entered theirs."""

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from interp.plots.registry import PICTURES, Picture
from interp.results.result import Result


def pictures() -> list[Picture]:
    """All that are registered, in their order; of one order, those that need most axes first."""
    _import_all()
    return sorted(PICTURES.values(), key=lambda picture: (picture.order, -len(picture.axes)))


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
