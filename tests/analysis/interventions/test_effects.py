"""From samples to effects: paired with the clean run, and beside their controls."""

import numpy as np
import pytest

from interp.analysis import ablate
from interp.analysis.interventions.effects import effect_rows, effects
from interp.results.sampling import Sampling
from tests.analysis import measured
from tests.analysis.interventions.by_hand import tokens_for

N_SEQUENCES, N_UNITS = 5, 3
CONTROLS = [[3, 4], [], [5, 3, 4, 6]]
"""Which of the four changes after the units' own each unit is compared with."""


@pytest.mark.parametrize("measured_at", [(), (2,), (7,)], ids=str)
def test_effects_and_their_controls_are_those_of_each_sequence(measured_at):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(N_SEQUENCES, *measured_at))
    changed = rng.normal(1, 1, size=(N_UNITS + 4, N_SEQUENCES, *measured_at))
    rows = effect_rows(clean, changed, CONTROLS, Sampling.of(None, N_SEQUENCES))
    assert list(rows) == ["effect", "clean", "random", "random_low", "random_high"]
    for unit, controls in enumerate(CONTROLS):
        apart = changed[unit] - clean
        for name, samples in (("effect", apart), ("clean", clean)):
            value, error = (row[unit] for row in rows[name])
            np.testing.assert_allclose(value, samples.mean(0))
            np.testing.assert_allclose(error, samples.std(0, ddof=1) / N_SEQUENCES**0.5)
        draws = [changed[draw].mean(0) - clean.mean(0) for draw in controls]
        nothing = np.full(measured_at, np.nan)
        for name, summary in (("random", np.mean), ("random_low", np.min), ("random_high", np.max)):
            value, error = (row[unit] for row in rows[name])
            np.testing.assert_allclose(value, summary(draws, axis=0) if draws else nothing)
            np.testing.assert_array_equal(error, nothing)
    axes = {"head": ("a", "b", "c"), **({"position": range(*measured_at)} if measured_at else {})}
    result = effects("ablation", rows, axes, "nats", {})
    np.testing.assert_array_equal(result.sel(measure="effect").chance, rows["random"][0])
    others = [name for name in rows if name != "effect"]
    assert np.isnan(result.sel(measure=others).chance).all()


def test_nothing_is_compared_where_nothing_was_drawn():
    clean, changed = np.zeros(2), np.ones((1, 2))
    rows = effect_rows(clean, changed, [[]], Sampling.of(None, 2))
    assert list(rows) == ["effect", "clean"]
    assert effects("ablation", rows, {"head": ["a"]}, "nats", {}).chance is None


def test_two_positions_are_a_grid():
    model = measured.build("gpt")
    tokens = tokens_for(model, n_pos=2)
    grid = ablate(model, tokens, "positions", "mean", control="none")
    assert grid.axes == ("measure", "component", "position")
    assert grid.labels["position"] == (0, 1)
    names = [f"{name}@{place}" for name in grid.labels["component"] for place in (0, 1)]
    found = ablate(model, tokens, names, "mean", control="none")
    np.testing.assert_array_equal(found.values.ravel(), grid.values.ravel())
