"""Circuits as heatmaps: values in cells, tokens visible, and what positions say by distance."""

import numpy as np
import pytest

from interp.plots import figure
from interp.plots.circuits import by_distance, entries
from interp.plots.style import INK, token
from interp.results.result import Result


def circuit(rows, columns, values=None, **provenance) -> Result:
    values = np.linspace(-2, 5, len(rows) * len(columns)) if values is None else values
    return Result(
        "qk_circuit",
        np.reshape(values, (len(rows), len(columns))),
        ("query_token", "key_token"),
        {"query_token": rows, "key_token": columns},
        unit="unscaled attention score",
        provenance={"model": "conv-attn", "head": "L1H0", **provenance},
    )


def test_values_stand_where_their_labels_say_and_tell_both_words():
    drawn = entries(circuit([" the", "a"], ["x", "\n", "z"], [1, -2, 3, 4, 5, 6]))
    (tiles,) = (trace for trace in drawn.data if trace.type == "heatmap")
    np.testing.assert_array_equal(tiles.z, [[1, -2, 3], [4, 5, 6]])
    assert tiles.text[0][1] == "query token <b>␣the</b><br>key token <b>↵</b><br>-2.000"
    assert drawn.layout.yaxis.range[0] > drawn.layout.yaxis.range[1]  # the first row at the top
    assert drawn.layout.xaxis.ticktext == ("x", "↵", "z")
    assert (drawn.layout.coloraxis.cmin, drawn.layout.coloraxis.cmax) == (-6, 6)


def test_values_are_written_where_there_is_room():
    small = entries(circuit(["a", "b"], ["c"], [0.123, -40.0]))
    (text,) = (trace for trace in small.data if trace.type == "scatter")
    assert text.text == ("0", "-40")
    assert entries(circuit(["a"], ["c"], [-0.2])).data[1].text == ("-0.20",)
    assert entries(circuit(["a"], ["b", "c"], [-0.2, 30.0])).data[1].text == ("0", "30")
    assert text.textfont.color == (INK, "white")
    large = entries(circuit([str(i) for i in range(50)], [str(i) for i in range(50)]))
    assert {trace.type for trace in large.data} == {"heatmap"}


def test_many_labels_are_left_to_hovering_and_the_figure_stays_a_screen():
    names = [f"token {i}" for i in range(150)]
    drawn = entries(circuit(names, names[:90]))
    assert not drawn.layout.xaxis.showticklabels
    assert drawn.data[0].text is None
    assert "%{y}" in drawn.data[0].hovertemplate
    assert drawn.layout.yaxis.ticktext[149] == "token 149"
    assert drawn.layout.height < 900
    assert drawn.layout.width < 800


def test_tokens_are_text_not_markup_and_short():
    assert token("<b>") == "&lt;b&gt;"
    assert token("  ") == "␣␣"
    assert token(" x") == "␣x"
    assert token("a" * 99, 22) == "a" * 21 + "…"
    drawn = entries(circuit(["a" * 30], ["b"]))
    assert drawn.layout.yaxis.ticktext == ("a" * 21 + "…",)
    assert "a" * 30 in drawn.data[0].text[0][0]
    assert token(3) == "3"


def test_lags_and_distance_stand_in_the_title():
    text = entries(circuit(["a"], ["b"], query_lag=0, key_lag=1, distance=4)).layout.title.text
    assert "qk circuit of L1H0" in text
    assert "key lag 1" in text
    assert "query lag" not in text
    assert "distance 4" in text


@pytest.mark.parametrize("axes", [("query_token", "key_token"), ("source_token", "predicted_token"),
                                  ("query_position", "key_position")])  # fmt: skip
def test_the_door_opens_for_every_circuit(axes):
    result = Result("c", np.eye(2), axes, dict.fromkeys(axes, (0, 1)))
    assert figure(result).data[0].type == "heatmap"


def test_other_axes_are_refused():
    result = Result(
        "c", np.eye(2), ("query_token", "head"), {"query_token": (0, 1), "head": (0, 1)}
    )
    with pytest.raises(ValueError, match="query_token and key_token"):
        entries(result)
    line = circuit(["a", "b"], ["c"]).sel(key_token="c")
    with pytest.raises(ValueError, match="two"):
        entries(line)


def distances() -> Result:
    labels = {"term": ("positions", "tokens"), "distance": (0, 1, 2)}
    return Result(
        "positional_circuit",
        np.array([[0.0, 3.0, -1.0], [0.5, 0.4, np.nan]]),
        ("term", "distance"),
        labels,
        unit="attention score",
        provenance={"model": "m", "head": "L0H1", "share": 0.75},
    )


def test_positions_are_a_line_in_the_band_of_what_tokens_add():
    drawn = figure(distances())
    band, line = drawn.data
    np.testing.assert_allclose(line.y, [0, 3, -1])
    np.testing.assert_allclose(band.y, [0.5, 3.4, 2.6, -0.5])
    assert line.text[1] == "3.000, tokens ± 0.400"
    assert "share 0.750" in drawn.layout.title.text
    with pytest.raises(ValueError, match="together"):
        by_distance(distances().sel(term="tokens"))


def test_copying_by_value_lag_is_a_panel_per_lag():
    labels = {"value_lag": ("lag 0", "lag 1"), "head": ("L1H0", "L1H1")}
    result = Result("copying_score", np.eye(2), ("value_lag", "head"), labels)
    captions = [note.text for note in figure(result).layout.annotations]
    assert [caption.partition("<br>")[0] for caption in captions] == [
        "<b>lag 0</b>",
        "<b>lag 1</b>",
    ]


def test_copying_is_coloured_from_its_chance_level():
    labels = {"value_lag": ("lag 0",), "head": ("L0H0", "L0H1")}
    chance = np.asarray(-0.92)
    values = np.array([[-0.95, -0.32]])
    result = Result("copying_score", values, ("value_lag", "head"), labels, chance=chance)
    scale = figure(result).layout.coloraxis
    assert (scale.cmin, scale.cmax) == pytest.approx((-1.52, -0.32))
