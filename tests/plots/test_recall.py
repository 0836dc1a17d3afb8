"""Recall is drawn by query or by distance, each unit in a panel of its own."""

import numpy as np
import pytest

from interp.plots import figure
from interp.results.result import Result

MEASURES = ("accuracy", "accuracy_among_values", "loss")
UNITS = dict(zip(MEASURES, ("fraction", "fraction", "nats"), strict=True))
VALUES = np.array([[0.5, np.nan, 0.3], [0.9, np.nan, 0.8], [2.0, np.nan, 4.0]])


def recalled(along="distance"):
    return Result(
        "mqar",
        VALUES,
        ("measure", along),
        {"measure": MEASURES, along: (2, 4, 8)},
        standard_error=VALUES / 10,
        chance=np.array([[0.01], [0.25], [4.6]]),
        unit=UNITS,
    )


def lines(drawn, name):
    return [trace for trace in drawn.data if trace.name == name]


@pytest.mark.parametrize("along", ["query", "distance"])
def test_each_measure_is_a_line_of_points_with_errors_in_its_units_panel(along):
    drawn = recalled(along).plot()
    for number, name in enumerate(("accuracy", "accuracy among values", "loss")):
        (line,) = lines(drawn, name)
        assert tuple(line.x) == (2, 4, 8)
        np.testing.assert_array_equal(line.y, VALUES[number])
        np.testing.assert_array_equal(line.error_y.array, VALUES[number] / 10)
    one, other, loss = (lines(drawn, n)[0] for n in ("accuracy", "accuracy among values", "loss"))
    assert one.yaxis == other.yaxis != loss.yaxis
    assert {trace.y[0] for trace in lines(drawn, "chance")} == {0.01, 0.25, 4.6}
    assert {drawn.layout.yaxis.title.text, drawn.layout.yaxis2.title.text} == {"fraction", "nats"}
    titles = [drawn.layout.xaxis.title.text, drawn.layout.xaxis2.title.text]
    assert len([title for title in titles if title and along[:4] in title]) == 1


def test_other_axes_are_refused():
    values = np.zeros((1, 1, 1))
    labels = {"measure": ("loss",), "query": (1,), "head": ("L0H0",)}
    with pytest.raises(ValueError, match="a picture of recall takes measure, and query or dist"):
        figure(Result("x", values, tuple(labels), labels))
