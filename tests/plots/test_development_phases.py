"""Phase changes shaded and in rows, and when each kind of model gets to a score."""

import math
import re

import numpy as np
import pytest

from interp.analysis import phase_change, tokens_to_reach
from interp.plots import figure
from interp.plots.phases import intervals, shaded
from interp.plots.runs import ARCHITECTURES
from tests.plots.curves_of_runs import over_steps, run


def plain(text: str) -> str:
    """The words of a text without its markup, in one line."""
    return re.sub(r"(<[^>]*>)+", " ", text)


class TestPhases:
    rise = run("attn", [0, 0.05, 0.3, 0.9, 1], standard_error=np.full(5, 0.03))

    def test_the_window_is_shaded_and_paler_the_intervals_of_its_ends(self):
        change = phase_change(self.rise)
        drawn = shaded(self.rise, change)
        window, *ends = drawn.layout.shapes
        estimate = change.sel(interval="estimate")
        start, end = (float(estimate.sel(measure=name)) for name in ("start", "end"))
        assert (window.x0, window.x1) == (start, end)
        low = float(change.sel(interval="low", measure="start"))
        high = float(change.sel(interval="high", measure="end"))
        assert [(shape.x0, shape.x1) for shape in ends] == [(low, start), (end, high)]
        assert window.fillcolor != ends[0].fillcolor
        # Of 1, 0.8 is held from 0.1 on: a fifth of the way from 0.05 to 0.3, between 10 and 100.
        assert f"from {10 * 10**0.2:.3g} to 1k tokens" in drawn.layout.title.text

    def test_no_phase_change_is_said_and_not_shaded(self):
        flat = run("attn", [0.5] * 5)
        drawn = shaded(flat, phase_change(flat))
        assert not drawn.layout.shapes
        text = plain(drawn.layout.title.text)
        assert "no phase change: the score changes by 0.000, not" in text

    def test_a_single_measure_is_shaded_too(self):
        icl = over_steps(
            -self.rise.values[:, None], axes=("measure",), labels={"measure": ("icl",)}, unit="nats"
        )
        assert len(shaded(icl, phase_change(icl)).layout.shapes) == 1

    def test_only_one_score_can_be_shaded(self):
        heads = over_steps(np.zeros((5, 2)), axes=("head",), labels={"head": ("L0H0", "L0H1")})
        with pytest.raises(ValueError, match="one phase change is drawn"):
            shaded(self.rise, phase_change(heads))
        with pytest.raises(ValueError, match="one score over"):
            shaded(heads, phase_change(self.rise))

    def test_a_row_for_each_heads_window(self):
        values = np.stack([self.rise.values, np.zeros(5)], axis=1)
        heads = over_steps(
            values, axes=("head",), labels={"head": ("L0H0", "L0H1")},
            standard_error=np.full((5, 2), 0.01),
        )  # fmt: skip
        change = phase_change(heads)
        drawn = change.plot()
        bar, start, end = drawn.data
        assert tuple(bar.x) == tuple(change.sel(head="L0H0", interval="estimate").values[:2])
        assert tuple(start.x) == tuple(
            change.sel(head="L0H0", measure="start", interval=["low", "high"]).values
        )
        assert end.x[1] >= end.x[0] >= start.x[0]
        names = [text.split("<br>")[0] for text in drawn.layout.yaxis.ticktext]
        assert names == ["L0H0", "L0H1"]
        assert "no phase change" in drawn.layout.yaxis.ticktext[1]

    def test_a_row_for_each_kind_with_its_runs(self):
        reached = [run("conv-attn", [0, 0, 1, 1, 1]), run("conv-attn", [0, 0, 0, 1, 1], seed=1)]
        found = tokens_to_reach([*reached, run("attn", [0] * 5), run("attn", [0] * 5, seed=1)], 1.0)
        drawn = figure(found)
        line, dots, estimate, later, never = drawn.data
        assert tuple(line.x) == tuple(
            found.sel(member="conv-attn", interval=["low", "high"]).values
        )
        np.testing.assert_allclose(dots.x, [100, 1000])
        np.testing.assert_allclose(estimate.x, [math.sqrt(100 * 1000)])
        assert never.marker.symbol == "triangle-right"
        conv, attn = drawn.layout.yaxis.ticktext
        assert "conv-attn" in conv
        assert "316 (" in conv
        assert "95 %" in conv
        assert later.x[0] == 10_000  # the last checkpoint: it is later than that
        assert "not reached by 2 of 2 runs within 10k" in plain(attn)
        assert "95" not in attn
        assert estimate.marker.color == ARCHITECTURES["conv-attn"]

    def test_a_kind_that_got_there_in_part(self):
        some = [run("attn", [0, 0, 1, 1, 1], seed=s) for s in range(2)] + [
            run("attn", [0] * 5, seed=9)
        ]
        drawn = intervals(tokens_to_reach(some, 1.0))
        (row,) = drawn.layout.yaxis.ticktext
        assert "100 (100 or more, 75 %); not reached by 1 of 3 runs" in plain(row)
        right = 10 ** drawn.layout.xaxis.range[1]
        assert drawn.data[0].x[1] == pytest.approx(right)

    def test_other_axes_are_refused(self):
        with pytest.raises(ValueError, match="one more axis"):
            intervals(self.rise)
