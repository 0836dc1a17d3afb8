"""Any analysis over the models of a run: the same numbers as one by one, one model at a time."""

import gc
import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from interp.analysis import (
    Result,
    best_head,
    development,
    head_scores,
    induction_score,
    loss_by_position,
    over_samples,
    repeated_sequence_loss,
)
from interp.models import HookedConvAttn
from tests.analysis import measured, planted
from tests.analysis.bridges import D_VOCAB, N, attentions, bridged, hugging_face, probe

SIZES = {"d_vocab": 40, "d_model": 8, "n_heads": 2, "n_ctx": 64}
SHORT = partial(head_scores, n=9, n_sequences=3)


def model(seed: int, **sizes: int) -> HookedConvAttn:
    return HookedConvAttn(**(SIZES | sizes), seed=seed)


def pairs(*steps: int) -> list[tuple[int, HookedConvAttn]]:
    return [(step, model(step)) for step in steps]


def score(values: list[float], **provenance: object) -> Result:
    steps = tuple(range(len(values)))
    return Result("score", np.array(values), ("step",), {"step": steps}, provenance=provenance)


# --------------------------------------------------------------------------------- what it gives


@pytest.mark.parametrize(
    "analysis",
    [
        SHORT,
        partial(repeated_sequence_loss, n=9, n_sequences=3),
        partial(loss_by_position, tokens=torch.arange(36).reshape(3, 12)),
    ],
)
def test_every_step_has_what_the_analysis_says_of_its_model(analysis):
    grown = development(pairs(0, 3, 50), analysis)
    assert grown.axes == ("step", *analysis(model(0)).axes)
    assert grown.labels["step"] == (0, 3, 50)
    for step in (0, 3, 50):
        alone, there = analysis(model(step)), grown.sel(step=step)
        for what in ("values", "standard_error", "chance"):
            np.testing.assert_array_equal(getattr(there, what), getattr(alone, what))
        assert (there.name, there.unit, there.labels) == (alone.name, alone.unit, alone.labels)
        assert there.provenance == alone.provenance


def test_a_planted_head_grows_as_its_weights_say():
    # A query at position t of the second copy pays its match E / (E + t), with E = exp(gain).
    gains, n = {1: 0.0, 10: 2.0, 100: 5.0, 1000: 40.0}, 10
    run = (
        (step, planted.induction_conv_attn(d_vocab=60, n_ctx=64, head=1, gain=gain))
        for step, gain in gains.items()
    )
    grown = development(run, partial(induction_score, n=n, n_sequences=3))
    second = range(n + 1, 2 * n + 1)
    by_hand = [
        math.fsum(math.exp(gain) / (math.exp(gain) + t) for t in second) / n
        for gain in gains.values()
    ]
    np.testing.assert_allclose(grown.sel(head="L1H1").values, by_hand, rtol=0, atol=1e-12)
    np.testing.assert_allclose(best_head(grown).values, by_hand, rtol=0, atol=1e-12)
    assert by_hand[-1] > 0.999 > 0.1 > by_hand[0]


def test_a_sequence_of_bridges_has_hugging_faces_own_attentions():
    scales = {0: 0.5, 1000: 1.0, 143000: 2.0}

    def built(scale):
        model = hugging_face("neox")
        with torch.no_grad():
            for layer in model.gpt_neox.layers:
                layer.attention.query_key_value.weight.mul_(scale)
        return model

    run = [(step, lambda scale=scale: bridged(built(scale))) for step, scale in scales.items()]
    grown = development(run, partial(induction_score, n=N, n_sequences=3, seed=2))
    second = np.arange(N + 1, 2 * N + 1)
    for step, scale in scales.items():
        patterns, _ = attentions(built(scale), probe(N))
        by_hand = patterns[:, :, second, second - N + 1].mean((0, 2))
        np.testing.assert_allclose(grown.sel(step=step).values, by_hand, rtol=0, atol=1e-6)
    assert np.ptp(grown.values, axis=0).min() > 1e-3
    assert grown.provenance["model"] == "tiny (GPTNeoXForCausalLM)"
    assert D_VOCAB == 60


def test_what_differs_between_steps_is_told_for_each():
    def analysis(model):
        result = SHORT(model)
        facts = {**result.provenance, "positive": [float(model.W_E.detach().sum()) > 0]}
        return Result(result.name, result.values, result.axes, result.labels, provenance=facts)

    grown = development(pairs(1, 2), analysis, tokens_per_step=512)
    assert grown.provenance["tokens_per_step"] == 512
    assert grown.provenance["n_sequences"] == 3
    signs = [[float(model(step).W_E.detach().sum()) > 0] for step in (1, 2)]
    expected = signs[0] if signs[0] == signs[1] else {"1": signs[0], "2": signs[1]}
    assert grown.provenance["positive"] == expected
    assert grown.standard_error is None


def test_an_error_that_is_known_at_some_steps_only_is_nan_at_the_others():
    results = iter(
        [score([1.0]).sel(step=0), Result("score", np.array(2.0), (), {}, np.array(0.1))]
    )
    grown = development(pairs(0, 1), lambda model: next(results))
    np.testing.assert_array_equal(grown.values, [1, 2])
    np.testing.assert_array_equal(grown.standard_error, [np.nan, 0.1])


# ------------------------------------------------------------------------------------------ lazily


@pytest.mark.parametrize("how", ["generator", "loaders"])
def test_one_model_is_in_memory_at_a_time(how):
    alive: list[weakref.ref] = []
    most = 0

    def make(step):
        nonlocal most
        gc.collect()
        most = max(most, sum(there() is not None for there in alive))
        fresh = model(step)
        alive.append(weakref.ref(fresh))
        return fresh

    steps = (0, 1, 10, 100)
    if how == "generator":
        run = ((step, make(step)) for step in steps)
    else:
        run = [(step, partial(make, step)) for step in steps]
    grown = development(run, SHORT)
    assert grown.labels["step"] == steps
    assert len(alive) == 4
    assert most == 0


def test_nothing_is_loaded_before_its_turn():
    made, measured_steps = [], []

    def load(step):
        made.append(step)
        return model(step)

    def analysis(model):
        measured_steps.append(made[-1])
        assert len(made) == len(measured_steps)
        return SHORT(model)

    development([(step, partial(load, step)) for step in (0, 7, 9)], analysis)
    assert made == measured_steps == [0, 7, 9]


# ----------------------------------------------------------------------------------------- samples


def test_samples_are_an_axis_of_their_own():
    analysis = partial(induction_score, n=9, n_sequences=1)
    grown = development(pairs(0, 5), analysis, samples={"seed": range(4)})
    assert grown.axes == ("step", "sample", "head")
    for step in (0, 5):
        for seed in range(4):
            alone = analysis(model(step), seed=seed)
            np.testing.assert_array_equal(grown.sel(step=step, sample=seed).values, alone.values)
    assert grown.provenance["n_sequences"] == 4
    assert grown.provenance["samples"] == "4 values of seed"
    assert "seed" not in grown.provenance


def test_single_sequences_as_samples_are_what_the_analysis_averages():
    text = torch.randint(40, (6, 12), generator=torch.Generator().manual_seed(0))
    each = development(pairs(0, 5), loss_by_position, samples={"tokens": text.split(1)})
    whole = development(pairs(0, 5), partial(loss_by_position, tokens=text))
    mean = over_samples(each)
    assert mean.axes == ("step", "position")
    np.testing.assert_allclose(mean.values, whole.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mean.standard_error, whole.standard_error, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mean.chance, whole.chance)
    assert mean.provenance["n_sequences"] == 6
    assert over_samples(whole) is whole


# --------------------------------------------------------------------------------------- best head


def test_the_best_head_is_the_highest_of_each_step():
    labels = {"step": (0, 1, 2), "head": ("L0H0", "L0H1")}
    heads = Result(
        "score", np.array([[0.1, 0.2], [0.5, np.nan], [0.3, 0.4]]), ("step", "head"), labels,
        standard_error=np.array([[1.0, 2], [3, 4], [5, 6]]), unit="probability",
        provenance={"run": "x"},
    )  # fmt: skip
    best = best_head(heads)
    np.testing.assert_array_equal(best.values, [0.2, 0.5, 0.4])
    np.testing.assert_array_equal(best.standard_error, [2, 3, 6])
    assert (best.axes, best.unit, dict(best.provenance)) == (("step",), "probability", {"run": "x"})


def test_the_best_head_of_samples_is_one_head_for_all_of_them():
    values = np.array([[[0.9, 0.4], [0.0, 0.6]]])  # means: 0.45 and 0.5
    labels = {"step": (0,), "sample": (0, 1), "head": ("L0H0", "L0H1")}
    best = best_head(Result("score", values, ("step", "sample", "head"), labels))
    np.testing.assert_array_equal(best.values, [[0.4, 0.6]])


def test_a_best_head_needs_heads():
    with pytest.raises(ValueError, match=r"axes \('step',\).*choose the rest with sel"):
        best_head(score([1, 2]))


# ---------------------------------------------------------------------------------------- refusals


def refuse(*args):
    raise AssertionError("work before the refusal")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((0, 10, 10), "step 10 is there twice"),
        ((0, 20, 10), "step 10 comes after step 20"),
        ((-1, 2), "step -1 is not a whole number"),
        ((0, 1.5), "step 1.5 is not a whole number"),
        ((), "there are no checkpoints"),
    ],
)
def test_steps_out_of_order_are_refused_before_any_work(unchecked, steps, message):
    with pytest.raises(ValueError, match=message):
        development([(step, refuse) for step in steps], refuse)


def test_a_generator_is_refused_at_the_step_that_is_wrong():
    given = []
    with pytest.raises(ValueError, match="step 5 comes after step 7"):
        development(iter(pairs(7, 5)), lambda model: given.append(model) or SHORT(model))
    assert len(given) == 1
    with pytest.raises(ValueError, match="there are no checkpoints"):
        development(iter([]), refuse)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": {}}, r"samples name 0 arguments"),
        ({"samples": {"seed": range(3), "n": range(3)}}, r"samples name 2 arguments"),
        ({"samples": {"seed": [1]}}, r"samples give 'seed' 1 value"),
        ({"tokens_per_step": 0}, "tokens_per_step=0 must be above 0"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        development([(0, refuse)], refuse, **options)


def test_results_must_be_alike():
    with pytest.raises(ValueError, match=r"at step 3 the labels of 'head' are .*L1H2.*at step 0"):
        development([(0, model(0)), (3, model(0, n_heads=4))], SHORT)
    answers = iter([SHORT(model(0)).sel(score="induction"), SHORT(model(0))])
    with pytest.raises(ValueError, match=r"at step 1 the axes is \('score', 'head'\)"):
        development(pairs(0, 1), lambda model: next(answers))
    with pytest.raises(ValueError, match="has an axis 'step' of its own"):
        development(pairs(0), lambda model: score([1, 2]))


def test_an_analysis_returns_a_result(unchecked):
    with pytest.raises(TypeError, match=r"the analysis returned 0\.5; it must return a Result"):
        development(pairs(0, 1), lambda model: 0.5)


def test_the_model_and_the_random_state_are_left_as_they_were():
    network = measured.build("conv-attn").train()
    before = torch.get_rng_state()
    development([(0, network)], SHORT, samples={"seed": range(2)})
    assert network.training
    assert torch.equal(torch.get_rng_state(), before)
