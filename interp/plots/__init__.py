"""Figures and pages from results. Everything here is read offline: no figure looks anything up."""

from plotly.graph_objects import Figure

from interp.plots import (
    attention,
    attribution,
    circuits,
    composition,
    development,
    effects,
    heatmaps,
    induction_circuit,
    lags,
    lens,
    phases,
    pictures,
)
from interp.plots.attention import AttentionView
from interp.results.result import Result

__all__ = ["AttentionView", "Figure", "figure"]


def figure(result: Result) -> Figure | AttentionView:
    """The figure that suits a result's axes; `Result.plot()` is this function.

    What runs over "step" against tokens, an "interval" as a row, grids and tables of lags,
    circuits of tokens, composition from "source" to "target", a circuit's every "edge", a view of
    each "head" by "query" and "key", a curve over "position", effects of interventions, bars of
    each "measure", else a heatmap of "head".

    Raises:
        ValueError: the result has none of these axes.
    """
    for axis, draw in (
        ("step", development.steps),
        ("interval", phases.intervals),
        ("edge", induction_circuit.graph),
        ("part", attribution.parts),
        ("path", attribution.parts),
        ("choice", lens.table),
        ("layer", lens.curves),
        ("query_lag", lags.pairs),
        ("value_lag", circuits.of_values),
        ("conv", lags.convolutions),
        ("rank", lags.spectra),
        ("lag", pictures.weights),
        ("channel", lags.smears),
        ("query_token", circuits.entries),
        ("query_position", circuits.entries),
        ("source_token", circuits.entries),
        ("distance", circuits.by_distance),
        ("source", composition.scores),
        ("query", attention.of),
        ("position", effects.by_position),
        ("measure", effects.by_unit),
        ("head", heatmaps.heads),
    ):
        if axis in result.axes:
            return draw(result)
    raise ValueError(
        f"no figure suits the axes {result.axes} of {result.name}; one of 'head', 'position', "
        "'measure' or 'step' is needed, or use to_frame()"
    )
