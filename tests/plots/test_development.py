"""Curves against tokens, runs side by side, maps: they show the numbers that they are given."""

import math

import numpy as np
import pytest

from interp.analysis import Result
from interp.plots.development import by_position, training
from interp.plots.runs import ARCHITECTURES, looks_of, runs
from tests.plots.curves_of_runs import lines, over_steps, run


class TestSteps:
    def test_a_score_against_the_logarithm_of_the_tokens(self):
        result = over_steps(
            [0, 1, 2, 3, 4], standard_error=np.full(5, 0.5), unit="nats",
            provenance={"tokens_per_step": 2048},
        )  # fmt: skip
        drawn = result.plot()
        (line,) = lines(drawn)
        assert tuple(line.x) == (2048, 20480, 204800, 2048000)
        assert tuple(line.y) == (1, 2, 3, 4)
        assert "1.000 ± 0.500" in line.text[0]
        assert drawn.layout.xaxis.type == "log"
        assert drawn.layout.xaxis.title.text == "tokens, step 0 left out"
        assert drawn.layout.yaxis.title.text == "nats"
        (band,) = (t for t in drawn.data if t.fill == "toself")
        np.testing.assert_allclose(band.y, [1.5, 2.5, 3.5, 4.5, 3.5, 2.5, 1.5, 0.5])

    def test_without_tokens_the_clock_counts_steps(self):
        drawn = over_steps([1, 2, 3], (1, 2, 3)).plot()
        assert drawn.layout.xaxis.title.text == "steps"
        assert tuple(lines(drawn)[0].x) == (1, 2, 3)

    def test_samples_are_averaged(self):
        result = over_steps(
            [[1, 3]] * 5, axes=("sample",), labels={"sample": (0, 1)}, provenance={"n_sequences": 2}
        )
        drawn = result.plot()
        assert tuple(lines(drawn)[0].y) == (2, 2, 2, 2)
        (band,) = (t for t in drawn.data if t.fill == "toself")
        assert set(band.y) == {3, 1}  # the deviation, sqrt 2, over the root of two samples

    def test_a_line_for_each_head_and_a_dashed_one_for_chance(self):
        heads = {"head": ("L1H0", "L1H1")}
        result = over_steps(
            np.arange(10).reshape(5, 2), axes=("head",), labels=heads, chance=np.array(0.02)
        )
        drawn = result.plot()
        assert tuple(lines(drawn, name="L1H1")[0].y) == (3, 5, 7, 9)
        (chance,) = lines(drawn, name="chance")
        assert chance.line.dash == "dash"
        assert set(chance.y) == {0.02}

    def test_of_many_heads_the_highest_are_coloured_and_drawn_last(self):
        names = tuple(f"L0H{head}" for head in range(20))
        values = np.tile(np.random.default_rng(0).permutation(20), (5, 1))
        drawn = over_steps(values, axes=("head",), labels={"head": names}).plot()
        named = [line for line in lines(drawn) if line.showlegend]
        highest = [name for name, value in zip(names, values[0], strict=True) if value >= 14]
        assert [line.name for line in named] == highest
        assert lines(drawn)[-6:] == named
        assert len({line.line.color for line in named}) == 6

    def test_a_panel_for_each_score(self):
        labels = {"score": ("induction", "previous_token"), "head": ("L0H0", "L0H1")}
        values = np.arange(20).reshape(5, 2, 2)
        drawn = over_steps(values, axes=("score", "head"), labels=labels).plot()
        assert [a.text for a in drawn.layout.annotations] == [
            "<b>induction</b>",
            "<b>previous token</b>",
        ]
        upper, lower = lines(drawn, name="L0H1")
        assert (upper.yaxis, lower.yaxis) == ("y", "y2")
        assert tuple(lower.y) == (7, 11, 15, 19)
        assert (upper.showlegend, lower.showlegend) == (True, False)
        assert drawn.layout.yaxis.domain[0] > drawn.layout.yaxis2.domain[1]
        assert drawn.layout.xaxis2.matches == "x"

    def test_a_panel_for_each_unit_of_measures(self):
        labels = {"measure": ("first_copy_loss", "second_copy_loss", "accuracy")}
        units = {"first_copy_loss": "nats", "second_copy_loss": "nats", "accuracy": "fraction"}
        values = np.arange(15).reshape(5, 3)
        drawn = over_steps(values, axes=("measure",), labels=labels, unit=units).plot()
        (accuracy,) = lines(drawn, name="accuracy")
        assert accuracy.yaxis == "y2"
        assert tuple(accuracy.y) == (5, 8, 11, 14)
        colours = {line.line.color for line in lines(drawn)}
        assert len(colours) == 3
        assert (drawn.layout.yaxis.title.text, drawn.layout.yaxis2.title.text) == (
            "nats",
            "fraction",
        )

    def test_more_axes_are_refused(self):
        labels = {"a": (0,), "b": (0,), "c": (0,)}
        with pytest.raises(ValueError, match=r"at most two others; choose the rest with sel"):
            over_steps(np.zeros((5, 1, 1, 1)), axes=("a", "b", "c"), labels=labels).plot()


class TestRuns:
    def test_a_thin_line_for_each_run_and_the_bold_median_of_a_kind(self):
        seeds = [run("conv-attn", [9, s, s, s, s], seed=s) for s in (1, 2, 6)]
        drawn = runs({"Best head": [*seeds, run("attn", [0, 0, 0, 0, 0])]})
        thin = lines(drawn, showlegend=False)
        assert [tuple(line.y) for line in thin] == [(s,) * 4 for s in (1, 2, 6, 0)]
        conv, attn = lines(drawn, showlegend=True)
        assert tuple(conv.y) == (2, 2, 2, 2)
        assert tuple(conv.x) == (10, 100, 1000, 10000)
        assert conv.line.width > 2 * thin[0].line.width
        assert (conv.line.color, attn.line.color) == (
            ARCHITECTURES["conv-attn"],
            ARCHITECTURES["attn"],
        )
        assert "4 runs" in drawn.layout.title.text

    def test_the_median_is_drawn_where_every_run_was_measured(self):
        short, long = (
            run("attn", [1, 3], steps=(1, 100)),
            run("attn", [1, 2, 3], steps=(10, 100, 1000)),
        )
        (median,) = lines(runs({"x": [short, long]}), showlegend=True)
        assert tuple(median.x) == (100, 1000)
        # Half-way from 1 to 100 on a log scale is 10, where the short run is at 2.
        np.testing.assert_allclose(median.y, [1.5, 2.5])

    def test_an_architecture_has_one_colour_in_every_figure(self):
        kinds = ["conv-attn", "attn-attn", "smeared-attn", "attn"]
        assert looks_of(kinds) == list(reversed(looks_of(kinds[::-1])))
        assert len({colour for colour, _ in looks_of(kinds)}) == 4
        classes = [
            over_steps([0, 1, 2, 3, 4], provenance={"architecture": name})
            for name in ("HookedConvAttn", "HookedAttnAttn", "HookedSmearedAttn", "HookedAttn")
        ]
        drawn = lines(runs({"x": classes}), showlegend=True)
        assert {line.name: line.line.color for line in drawn} == ARCHITECTURES

    def test_a_variant_has_its_architectures_colour_and_a_dash(self):
        looks = looks_of(["conv-attn", "conv-attn-one-lag", "conv-attn-depthwise", "mamba", "rwkv"])
        assert {colour for colour, _ in looks[:3]} == {ARCHITECTURES["conv-attn"]}
        assert len({dash for _, dash in looks[:3]}) == 3
        assert len({colour for colour, _ in looks}) == 3

    def test_no_two_kinds_look_alike(self):
        kinds = ["conv-attn", "attn", *"abcdefgh"]
        looks = looks_of(kinds)
        assert len(set(looks)) == len(kinds)
        assert [dash for _, dash in looks] == ["solid"] * 6 + ["dot"] * 4

    def test_each_panel_has_its_unit_and_chance(self):
        score = run("attn", [0] * 5, chance=np.array(0.02))
        loss = over_steps([7] * 5, unit="nats", chance=np.array(6.9), provenance=score.provenance)
        drawn = runs({"Best head": [score], "Second copy": [loss]})
        assert [a.text for a in drawn.layout.annotations] == [
            "<b>Best head</b>",
            "<b>Second copy</b>",
        ]
        assert drawn.layout.yaxis2.title.text == "nats"
        assert [set(line.y) for line in lines(drawn, name="chance")] == [{0.02}, {6.9}]
        assert [line.showlegend for line in lines(drawn, name="chance")] == [True, False]

    @pytest.mark.parametrize(
        ("panels", "message"),
        [
            ({}, "no runs to draw"),
            ({"x": []}, "no runs to draw"),
            ({"x": [over_steps([0] * 5)]}, "with 'architecture' in its provenance"),
            ({"x": [over_steps(np.zeros((5, 1)), axes=("head",), labels={"head": ("L0H0",)})]},
             r"axes \('step', 'head'\)"),
        ],
    )  # fmt: skip
    def test_what_is_no_run_is_refused(self, panels, message):
        with pytest.raises(ValueError, match=message):
            runs(panels)


class TestMap:
    def losses(self) -> Result:
        values = np.array([[9, 8, 7], [6, 5, 4], [3, 2, 1], [0.9, 0.5, 0.1], [0.8, 0.4, 0.0]])
        return over_steps(
            values, axes=("position",), labels={"position": (1, 2, 4)}, unit="nats",
            chance=np.array(5.5), provenance={"tokens_per_step": 10},
        )  # fmt: skip

    def test_tokens_across_positions_upwards(self):
        drawn = self.losses().plot()
        (tiles,) = drawn.data
        np.testing.assert_array_equal(tiles.z, self.losses().values[1:].T)
        assert (drawn.layout.xaxis.type, drawn.layout.yaxis.type) == ("log", "log")

    def test_tiles_meet_half_way_on_a_log_scale(self):
        (tiles,) = by_position(self.losses()).data
        half = math.sqrt(10)
        np.testing.assert_allclose(tiles.x, np.array([10, 100, 1000, 10_000, 100_000]) / half)
        np.testing.assert_allclose(tiles.y, np.array([1, 2, 4, 8]) / math.sqrt(2))

    def test_what_costs_more_than_chance_has_its_colour(self):
        scale = by_position(self.losses()).layout.coloraxis
        assert (scale.cmin, scale.cmax) == (0, 5.5)

    def test_a_tile_tells_its_step_and_position(self):
        (tiles,) = by_position(self.losses()).data
        assert tiles.text[2][0] == "step 1, position 4: 4.000"

    def test_other_axes_are_refused(self):
        with pytest.raises(ValueError, match=r"two or more of each"):
            by_position(self.losses().sel(step=[10]))
        cube = over_steps(
            np.zeros((5, 2, 2)), axes=("model", "position"),
            labels={"model": ("a", "b"), "position": (1, 2)},
        )  # fmt: skip
        with pytest.raises(ValueError, match=r"choose the rest with sel"):
            cube.plot()


class TestTraining:
    def curves(self) -> Result:
        names = ("train_loss", "validation_loss", "validation_accuracy")
        units = dict(zip(names, ("nats", "nats", "fraction"), strict=True))
        nan = np.nan
        return over_steps(
            [[6, nan, nan], [5, 5.5, 0.1], [4, nan, nan], [3, 4.5, 0.2]], (10, 20, 30, 40),
            axes=("measure",), labels={"measure": names}, unit=units,
        )  # fmt: skip

    def test_losses_in_one_panel_and_the_accuracy_in_another(self):
        drawn = training(self.curves())
        train, validation, accuracy = lines(drawn)
        assert tuple(train.x) == (10, 20, 30, 40)
        assert (tuple(validation.x), tuple(validation.y)) == ((20, 40), (5.5, 4.5))
        assert (train.yaxis, validation.yaxis, accuracy.yaxis) == ("y", "y", "y2")
        assert drawn.layout.xaxis.type is None  # not logarithmic
        assert train.line.width < validation.line.width

    def test_other_axes_are_refused(self):
        with pytest.raises(ValueError, match='training is drawn of "step" and "measure"'):
            training(self.curves().sel(measure="train_loss"))


def test_no_figure_offers_to_upload_its_data():
    rise = run("attn", [0, 0, 0, 1, 1])
    for drawn in (rise.plot(), runs({"x": [rise]}), TestMap().losses().plot()):
        assert "sendChartToCloud" in drawn.layout.modebar.remove


def test_names_are_text_not_markup():
    odd = over_steps([0, 1, 2, 3, 4], provenance={"architecture": "<i>x"})
    drawn = runs({"<b>y": [odd]}, title="<u>z")
    assert "&lt;u&gt;z" in drawn.layout.title.text
    assert drawn.layout.annotations[0].text == "<b>&lt;b&gt;y</b>"
    assert lines(drawn, showlegend=True)[0].name == "&lt;i&gt;x"
