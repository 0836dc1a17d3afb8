"""Curves and bars show value, error and chance level, each unit on an axis of its own."""

import numpy as np
import plotly.graph_objects as go
import pytest

from interp.plots import figure
from interp.plots.curves import curve, measures
from interp.results.result import Result

MEASURES = ("first_copy_loss", "second_copy_loss", "second_copy_accuracy")
UNITS = {"first_copy_loss": "nats", "second_copy_loss": "nats", "second_copy_accuracy": "fraction"}


def losses() -> Result:
    return Result(
        "loss_by_position",
        np.array([[3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]),
        ("model", "position"),
        {"model": ("a", "b"), "position": (1, 2, 10)},
        standard_error=np.array([[0.3, np.nan, 0.1], [0.4, 0.3, 0.2]]),
        chance=np.array(6.9),
        unit="nats",
    )


def repeated() -> Result:
    return Result(
        "repeated_sequence_loss",
        np.array([9.0, 5.0, 0.4]),
        ("measure",),
        {"measure": MEASURES},
        standard_error=np.array([0.1, np.nan, 0.02]),
        chance=np.array([6.9, 6.9, 0.001]),
        unit=UNITS,
    )


def traces(figure: go.Figure, **wanted: object) -> list[go.Scatter]:
    return [t for t in figure.data if all(k in t and t[k] == v for k, v in wanted.items())]


class TestCurve:
    def test_one_line_per_label_at_its_positions(self):
        drawn = curve(losses())
        (line,) = traces(drawn, name="b")
        assert tuple(line.x) == (1, 2, 10)
        assert tuple(line.y) == (4, 3, 2)
        assert line.text == ("4.000 ± 0.400", "3.000 ± 0.300", "2.000 ± 0.200")
        assert drawn.layout.yaxis.title.text == "nats"

    def test_the_band_is_one_standard_error_where_that_is_known(self):
        band = traces(curve(losses()), fill="toself")[0]
        # Out along the upper edge, back along the lower; position 2 has no known error.
        np.testing.assert_allclose(band.x, [1, 10, 10, 1])
        np.testing.assert_allclose(band.y, [3.3, 1.1, 0.9, 2.7])

    def test_a_shared_chance_is_one_dashed_line(self):
        (dashed,) = traces(curve(losses()), name="chance")
        assert dashed.line.dash == "dash"
        assert set(dashed.y) == {6.9}

    def test_a_lone_line_needs_neither_band_nor_legend(self):
        drawn = curve(Result("loss", np.array([2.0, 1.0]), ("position",), {"position": (0, 1)}))
        assert len(drawn.data) == 1
        assert not drawn.layout.showlegend

    def test_positions_are_numbers(self):
        with pytest.raises(ValueError, match="must be numbers"):
            curve(Result("loss", np.array([2.0]), ("position",), {"position": ("first",)}))


class TestMeasures:
    def test_each_unit_has_its_own_axis(self):
        drawn = measures(repeated())
        nats, fraction = (trace for trace in drawn.data if trace.type == "bar")
        assert tuple(nats.x) == (9, 5)
        assert tuple(fraction.x) == (0.4,)
        assert nats.xaxis != fraction.xaxis
        assert drawn.layout.xaxis.title.text == "nats"
        assert drawn.layout.xaxis2.title.text == "fraction"
        assert drawn.layout.yaxis.domain[0] > drawn.layout.yaxis2.domain[1]
        assert drawn.layout.yaxis.ticktext == ("first copy loss", "second copy loss")
        assert tuple(drawn.layout.yaxis.tickvals) == tuple(nats.y)

    def test_errors_and_chance_stand_at_their_bars(self):
        drawn = measures(repeated())
        bar = traces(drawn, type="bar")[0]
        chance = traces(drawn, name="chance")[0]
        np.testing.assert_array_equal(bar.error_x.array, [0.1, np.nan])
        assert tuple(chance.x) == (6.9, 6.9)
        assert tuple(chance.y) == tuple(bar.y)
        assert traces(drawn, mode="text")[0].text == ("  9.000 ± 0.100", "  5.000")

    def test_bars_of_several_models_lie_side_by_side(self):
        values = np.stack([repeated().values, repeated().values / 2])
        labels = {"model": ("a", "b"), "measure": MEASURES}
        result = Result("loss", values, ("model", "measure"), labels, chance=values, unit="nats")
        drawn = measures(result)
        one, other = traces(drawn, type="bar")
        assert min(abs(np.subtract.outer(one.y, other.y)).ravel()) >= one.width
        assert [trace.name for trace in drawn.data if trace.showlegend] == ["a", "chance", "b"]

    def test_a_negative_value_does_not_write_over_the_names(self):
        result = Result("x", np.array([-2.0]), ("measure",), {"measure": ("drop",)})
        (text,) = traces(measures(result), mode="text")
        assert tuple(text.x) == (0,)
        assert text.text == ("  -2.000",)


def test_the_axes_choose_the_figure():
    assert {trace.type for trace in losses().plot().data} == {"scatter"}
    assert "bar" in {trace.type for trace in repeated().plot().data}
    head = Result("x", np.zeros(1), ("head",), {"head": ("L0H0",)})
    assert "heatmap" in {trace.type for trace in figure(head).data}
    with pytest.raises(ValueError, match="no figure suits"):
        repeated().sel(measure="first_copy_loss").plot()


def test_no_figure_offers_to_upload_its_data():
    for result in (losses(), repeated(), Result("x", np.zeros(1), ("head",), {"head": ("L0H0",)})):
        assert "sendChartToCloud" in figure(result).layout.modebar.remove
