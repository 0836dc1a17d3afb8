"""Figures and pages from results. Everything here is read offline: no figure looks anything up."""

from plotly.graph_objects import Figure

from interp.analysis.result import Result
from interp.plots import curves, heatmaps

__all__ = ["Figure", "figure"]


def figure(result: Result) -> Figure:
    """The figure that suits a result's axes; `Result.plot()` is this function.

    A curve over "position", bars of each "measure", else a heatmap of "head".

    Raises:
        ValueError: the result has none of these axes.
    """
    for axis, draw in (
        ("position", curves.curve),
        ("measure", curves.measures),
        ("head", heatmaps.heads),
    ):
        if axis in result.axes:
            return draw(result)
    raise ValueError(
        f"no figure suits the axes {result.axes} of {result.name}; one of 'head', 'position' or "
        "'measure' is needed, or use to_frame()"
    )
