"""Figures and pages from results. Everything here is read offline: no figure looks anything up."""

from plotly.graph_objects import Figure

from interp.analysis.result import Result
from interp.plots import attention, curves, heatmaps
from interp.plots.attention import AttentionView

__all__ = ["AttentionView", "Figure", "figure"]


def figure(result: Result) -> Figure | AttentionView:
    """The figure that suits a result's axes; `Result.plot()` is this function.

    A view of each "head" by "query" and "key", a curve over "position", bars of each "measure",
    else a heatmap of "head".

    Raises:
        ValueError: the result has none of these axes.
    """
    for axis, draw in (
        ("query", attention.of),
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
