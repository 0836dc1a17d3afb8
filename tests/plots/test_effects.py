"""Effects of interventions: a row per unit, a grid per pair of axes, bars for a few."""

import numpy as np
import pytest

from interp.analysis import Result, ablate, attribution_patch, patch, path_patch
from interp.plots import effects, figure, style
from interp.plots.panels import NARROWEST
from tests.analysis import measured
from tests.analysis.interventions.test_patching import DIFFERENCE, two_inputs


def effect_of(axes, measures, values=None, error=0.5, unit="nats"):
    labels = {"measure": measures, **axes}
    shape = tuple(len(names) for names in labels.values())
    values = np.arange(np.prod(shape), dtype=float).reshape(shape) if values is None else values
    return Result(
        "effect_of_it",
        values,
        tuple(labels),
        labels,
        standard_error=np.full(shape, error),
        unit=unit,
        provenance={"model": "m"},
    )


def units(n):
    return tuple(f"L0H{head}" for head in range(n))


def points(drawn):
    return [trace for trace in drawn.data if trace.type == "scatter"]


def heatmaps(drawn):
    return [trace for trace in drawn.data if trace.type == "heatmap"]


# ----------------------------------------------------------------------------------- a row per unit


def test_a_few_units_are_bars_and_many_are_rows():
    few = figure(effect_of({"head": units(effects.FEW)}, ("effect", "clean")))
    assert len([trace for trace in few.data if trace.type == "bar"]) == effects.FEW
    many = figure(effect_of({"head": units(effects.FEW + 1)}, ("effect", "clean")))
    assert [trace.type for trace in many.data] == ["scatter"]
    assert many.layout.yaxis.ticktext == units(7)
    assert many.layout.yaxis.range == (6.5, -0.5)


def test_a_point_is_an_effect_with_its_error_and_hovering_tells_the_rest():
    result = effect_of({"component": units(8)}, ("effect", "clean"))
    (drawn,) = points(figure(result))
    assert list(drawn.x) == [*range(8)]
    assert list(drawn.error_x.array) == [0.5] * 8
    assert drawn.text[3] == "<b>L0H3</b><br>effect 3.000 ± 0.500<br>clean 11.000 ± 0.500"
    assert figure(result).layout.title.text.startswith("<b>effect of it</b>, nats<br>")


def test_the_estimate_stands_beside_the_exact_effect_and_is_named():
    result = effect_of({"component": units(8)}, ("estimate", "exact", "error"))
    drawn = figure(result)
    estimate, exact = points(drawn)
    assert (estimate.name, exact.name, drawn.layout.showlegend) == ("estimate", "exact", True)
    assert all(a < b for a, b in zip(estimate.y, exact.y, strict=True))
    assert estimate.marker.color != exact.marker.color


def test_what_is_not_known_is_not_drawn():
    values = np.arange(24.0).reshape(3, 8)
    values[1:] = np.nan
    result = effect_of({"component": units(8)}, ("estimate", "exact", "error"), values)
    (estimate,) = points(figure(result))
    assert estimate.name == "estimate"
    assert estimate.text[0] == "<b>L0H0</b><br>estimate 0.000 ± 0.500"


def test_the_band_is_the_range_of_the_random_draws():
    values = np.zeros((3, 8))
    values[1], values[2] = -1, 2
    values[1:, 5] = np.nan
    measures = ("effect", "random_low", "random_high")
    bands = figure(effect_of({"component": units(8)}, measures, values)).layout.shapes
    assert [(band.x0, band.x1) for band in bands] == [(-1, 2)] * 7
    assert [(band.y0 + band.y1) / 2 for band in bands] == [0, 1, 2, 3, 4, 6, 7]
    assert {band.fillcolor for band in bands} == {style.FAINT}


def test_what_is_removed_one_after_the_other_is_joined_by_a_line():
    drawn = figure(effect_of({"removed": units(3)}, ("effect", "clean")))
    assert points(drawn)[0].mode == "lines+markers"
    assert drawn.layout.yaxis.ticktext == ("L0H0", "and L0H1", "and L0H2")


# ------------------------------------------------------------------------------------------- grids


def test_units_at_positions_are_a_grid():
    positions = tuple(range(40))
    result = effect_of({"component": ("L0", "L1"), "position": positions}, ("effect", "clean"))
    drawn = figure(result)
    (heatmap,) = heatmaps(drawn)
    np.testing.assert_array_equal(heatmap.z, result.sel(measure="effect").values)
    assert heatmap.text[1][3] == "<b>L1 at 3</b><br>effect 43.000 ± 0.500<br>clean 123.000 ± 0.500"
    assert drawn.layout.yaxis.range == (1.5, -0.5)  # as in the result, from the top
    shown = drawn.layout.xaxis.tickvals
    assert 1 < len(shown) < 40
    assert list(drawn.layout.xaxis.ticktext) == [str(position) for position in shown]


def test_several_measures_share_their_colours_and_lie_apart():
    axes = {"component": units(3), "position": tuple(range(5))}
    drawn = figure(effect_of(axes, ("estimate", "exact", "error")))
    notes = [note.text for note in drawn.layout.annotations]
    assert notes == ["<b>estimate</b>", "<b>exact</b>", "nats"]  # the last beside the colour bar
    assert {heatmap.coloraxis for heatmap in heatmaps(drawn)} == {"coloraxis"}
    upper, lower = drawn.layout.yaxis.domain, drawn.layout.yaxis2.domain
    assert 0 <= lower[0] < lower[1] < upper[0] < upper[1] <= 1
    plot = drawn.layout.height - drawn.layout.margin.t - drawn.layout.margin.b
    assert (upper[1] - upper[0]) * plot == pytest.approx((lower[1] - lower[0]) * plot)


@pytest.mark.parametrize("n_positions", [1, 8, 100, 512])
def test_grids_of_any_length_have_their_place(n_positions):
    axes = {"component": units(4), "position": tuple(range(n_positions))}
    layout = figure(effect_of(axes, ("effect",))).layout
    width = layout.width - layout.margin.l - layout.margin.r
    assert width / n_positions >= 3
    assert layout.width >= NARROWEST
    labelled = len(layout.xaxis.tickvals)
    assert labelled == 1 or width / labelled >= 18


def test_a_result_with_an_axis_too_many_says_which_to_choose():
    axes = {"sender": units(2), "receiver": units(2), "position": (0, 1)}
    with pytest.raises(ValueError, match="choose the rest with sel"):
        figure(effect_of(axes, ("effect",)))
    assert heatmaps(figure(effect_of(axes, ("effect",)).sel(sender="L0H0")))


def test_a_curve_stays_a_curve():
    result = Result("loss", np.ones(5), ("position",), {"position": tuple(range(5))}, unit="nats")
    assert figure(result).data[0].mode == "lines"


# --------------------------------------------------------------------------------- the real things


@pytest.mark.parametrize(
    "made",
    [
        lambda model, *runs: patch(model, *runs, "resid_pre@*", DIFFERENCE),
        lambda model, *runs: attribution_patch(model, *runs, "L*H*@*", DIFFERENCE),
        lambda model, *runs: attribution_patch(model, *runs, "L*H*.q", DIFFERENCE),
        lambda model, *runs: path_patch(model, "L0H*", "L1H*.k", *runs, DIFFERENCE),
        lambda model, *runs: patch(model, *runs, "heads", "loss_per_token"),
        lambda model, *runs: ablate(model, runs[0], "heads", pairs=True, control="none"),
        lambda model, *runs: ablate(model, runs[0], "heads", cumulative=True, n_random=2),
        lambda model, *runs: ablate(model, runs[0], ["L*H*", "L*"], n_random=2),
    ],
)
def test_every_intervention_plots(made):
    result = made(measured.build("attn-attn"), *two_inputs(40))
    drawn = result.plot()
    assert drawn.data
    assert drawn.layout.title.text.startswith(f"<b>{result.name.replace('_', ' ')}</b>")
