"""Attribution patching is the derivative of patching: exact where that is a straight line."""

import math

import numpy as np
import pytest
import torch

from interp.analysis import (
    InductionScore,
    LogitDifference,
    attribution_patch,
    patch,
    repeated_tokens,
)
from interp.models import HookedAttn, HookedAttnAttn, HookedConvAttn, HookedSmearedAttn
from tests.analysis import measured, planted
from tests.analysis.bridges import N, bridged, hugging_face, probe
from tests.analysis.interventions import by_hand
from tests.analysis.interventions.by_hand import put
from tests.analysis.interventions.test_patching import (
    ALL,
    DIFFERENCE,
    channel_of,
    difference,
    two_inputs,
)
from tests.models.test_transformer_lens import their_model, with_the_weights_of

CLOSE = {"rtol": 0, "atol": 1e-10}


def values(result, measure="estimate"):
    return result.sel(measure=measure).values


# -------------------------------------------------------------------------- planted in the weights

D_VOCAB, COPY = 30, 10
LAST = 2 * COPY - 1
GAIN, LOGIT_GAIN = 20.0, 10.0
PLANTED = {
    "conv": planted.induction_conv_attn,
    "smeared": planted.induction_smeared_attn,
    "attn": planted.induction_attn_attn,
}


def once_more_and_not():
    """[BOS] + r + r without its last token, and the same ending in a token that is new there."""
    clean = repeated_tokens(COPY, d_vocab=D_VOCAB, bos=planted.BOS, n_sequences=4).tokens[:, :-1]
    corrupted = clean.clone()
    for row in corrupted:
        row[-1] = min(set(range(1, D_VOCAB)) - set(row.tolist()))
    return clean, corrupted


def predicted(clean):
    """The token after the last one's first occurrence; and one that is there twice."""
    return LogitDifference(clean[:, COPY], clean[:, 3])


def build(kind, **gains):
    options = {"d_vocab": D_VOCAB, "n_ctx": LAST + 1, "head": 1}
    return PLANTED[kind](**options, **{"gain": GAIN, "logit_gain": LOGIT_GAIN, **gains})


def whole_effect(gain):
    """With a match, it gets E / (E + t) and any other key 1 / (E + t); without, each as much."""
    e = math.exp(gain)
    return LOGIT_GAIN * ((e - 2) / (e + LAST) + 1 / (LAST + 1))


@pytest.mark.parametrize("kind", PLANTED)
def test_the_planted_head_brings_everything_back_and_no_other_does(kind):
    clean, corrupted = once_more_and_not()
    result = attribution_patch(build(kind), clean, corrupted, "heads", predicted(clean))
    head = "L0H1" if kind == "smeared" else "L1H1"
    expected = [whole_effect(GAIN) * (label == head) for label in result.labels["head"]]
    np.testing.assert_allclose(values(result), expected, **CLOSE)
    np.testing.assert_allclose(values(result, "exact"), expected, **CLOSE)
    np.testing.assert_allclose(values(result, "error"), 0, **CLOSE)


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("gain", [1.0, 5.0])
def test_queries_are_estimated_by_the_softmaxs_slope(kind, gain):
    """At uniform attention a = 1 / (t + 1): gain (a (1 - a) + 2 a a) of the logit."""
    clean, corrupted = once_more_and_not()
    model = build(kind, gain=gain)
    head = "L0H1.q" if kind == "smeared" else "L1H1.q"
    result = attribution_patch(model, clean, corrupted, [head], predicted(clean))
    a = 1 / (LAST + 1)
    slope = LOGIT_GAIN * gain * (a * (1 - a) + 2 * a * a)
    assert values(result).item() == pytest.approx(slope, abs=1e-10)
    assert values(result, "exact").item() == pytest.approx(whole_effect(gain), abs=1e-10)


def test_where_a_softmax_is_saturated_the_estimate_is_nothing_and_the_error_says_so():
    clean, corrupted = once_more_and_not()
    model = build("conv", gain=planted.SURE)
    result = attribution_patch(model, clean, corrupted, ["L1H1.q"], predicted(clean), "noise")
    assert abs(values(result).item()) < 1e-10
    assert values(result, "exact").item() == pytest.approx(-whole_effect(planted.SURE), abs=1e-10)
    assert values(result, "error").item() == pytest.approx(whole_effect(planted.SURE), abs=1e-10)


@pytest.mark.parametrize("preset", [HookedAttn, HookedSmearedAttn, HookedConvAttn, HookedAttnAttn])
def test_random_weights_bring_nothing_back(preset):
    clean, corrupted = once_more_and_not()
    found = []
    for seed in range(20):
        model = preset(d_vocab=D_VOCAB, d_model=32, n_heads=4, n_ctx=LAST + 1, seed=seed)
        result = attribution_patch(model, clean, corrupted, "heads", predicted(clean), exact=None)
        found.append(values(result))
    found = np.array(found)
    assert np.abs(found).max() < 0.05 * whole_effect(GAIN)
    of_one = found.mean(1)  # independent from one initialisation to the next
    assert abs(of_one.mean()) < 2.86 * of_one.std(ddof=1) / math.sqrt(20)  # 99 %, 19 degrees


def test_equal_inputs_have_no_effect():
    clean, _ = two_inputs(40)
    result = attribution_patch(measured.build("conv-attn"), clean, clean, "heads", DIFFERENCE)
    assert (result.values == 0).all()
    assert result.provenance["correlation"] is None


# ----------------------------------------------------------------------- brute force: differences


def slope(model, run, name, where, before, after):
    """Each sequence's metric, a little further and a little less towards the other run."""
    step = 1e-4
    further, less = (
        difference(
            by_hand.logits_under(model, run, put(name, where, before + e * (after - before)))
        ).numpy()
        for e in (step, -step)
    )
    return (further - less) / (2 * step)


UNITS = [
    ("conv-attn", "L0.lag1", "blocks.0.conv.hook_lags", (ALL, 1)),
    ("conv-attn", "L0.lag0@4", "blocks.0.conv.hook_lags", (ALL, 0, 4)),
    ("conv-attn", "L0.conv", "blocks.0.hook_conv_out", (ALL,)),
    ("conv-attn", "L1H1", "blocks.1.attn.hook_z", (ALL, ALL, 1)),
    ("conv-attn", "L1H1.pattern", "blocks.1.attn.hook_pattern", (ALL, 1)),
    ("conv-attn", "L1H0.k@2:6", "blocks.1.attn.hook_k", (ALL, slice(2, 6), 0)),
    ("smeared", "L0H1.k", "blocks.0.attn.hook_k", (ALL, ALL, 1)),
    ("rotary", "L1H0.q", "blocks.1.attn.hook_q", (ALL, ALL, 0)),
    ("output taps", "L0H1", "blocks.0.attn.hook_z", (ALL, ALL, 1)),
    ("output taps", "L0.attn.lag1", "blocks.0.attn.hook_out_lags", (ALL, 1)),
    ("output taps", "L0.mlp.lag1", "blocks.0.mlp.hook_out_lags", (ALL, 1)),
    ("output taps", "L1H0.k.lag1", "blocks.1.attn.hook_k_lags", (ALL, 1, ALL, 0)),
    ("gpt", "L0.mlp", "blocks.0.hook_mlp_out", (ALL,)),
    ("gpt", "L1.resid_pre@3", "blocks.1.hook_resid_pre", (ALL, 3)),
    ("gpt", "embed", "hook_embed", (ALL,)),
    ("gpt", "L1.resid_post", "blocks.1.hook_resid_post", (ALL,)),
]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("kind", "unit", "name", "where"), UNITS)
def test_an_estimate_is_the_slope_towards_the_other_run(kind, unit, name, where, direction):
    model = measured.build(kind)
    clean, corrupted = two_inputs(40)
    run, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    before, after = (by_hand.activations(model, tokens)[name] for tokens in (run, source))
    samples = slope(model, run, name, where, before, after)
    result = attribution_patch(model, clean, corrupted, [unit], DIFFERENCE, direction)
    row = result.sel(measure="estimate")
    assert row.values.item() == pytest.approx(samples.mean(), abs=1e-5)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert row.standard_error is not None
    assert row.standard_error.item() == pytest.approx(error, abs=1e-5)
    assert abs(samples.mean()) > 1e-3


@pytest.mark.parametrize("channel", ["q", "k", "v"])
def test_of_a_path_what_reaches_the_receiver_is_exact_and_what_follows_is_a_slope(channel):
    model = measured.build("conv-attn")
    clean, corrupted = two_inputs(40)
    cache, other = (by_hand.activations(model, tokens) for tokens in (corrupted, clean))
    terms, name = "blocks.0.conv.hook_lags", f"blocks.1.attn.hook_{channel}"
    stream = cache["blocks.1.hook_resid_pre"] + other[terms][:, 1] - cache[terms][:, 1]
    with torch.no_grad():
        arriving = cache[name].clone()
        arriving[:, :, 1] = channel_of(model, 1, channel.upper(), stream)[:, :, 1]
    samples = slope(model, corrupted, name, (ALL, ALL, 1), cache[name], arriving)
    result = attribution_patch(model, clean, corrupted, [f"L0.lag1->L1H1.{channel}"], DIFFERENCE)
    assert values(result).item() == pytest.approx(samples.mean(), abs=1e-5)
    assert abs(samples.mean()) > 1e-3


def test_the_exact_effect_is_that_of_patch_and_the_error_their_difference():
    model = measured.build("gpt")
    clean, corrupted = two_inputs(40)
    for units in ("heads", "resid_pre@*", ["L0H0->L1H1.k", "embed->logits"]):
        result = attribution_patch(model, clean, corrupted, units, DIFFERENCE)
        effect = patch(model, clean, corrupted, units, DIFFERENCE).sel(measure="effect")
        exact = result.sel(measure="exact")
        assert exact.axes == effect.axes
        assert exact.labels == effect.labels
        np.testing.assert_allclose(exact.values, effect.values, **CLOSE)
        np.testing.assert_allclose(exact.standard_error, effect.standard_error, **CLOSE)
        missed = values(result) - values(result, "exact")
        np.testing.assert_allclose(values(result, "error"), missed, **CLOSE)
        assert np.abs(missed).max() > 1e-3


def test_several_at_once_are_the_sum():
    model = measured.build("conv-attn")
    clean, corrupted = two_inputs(40)
    units = ["L1H0", "L1H1", "L1H0+L1H1"]
    one, other, both = values(attribution_patch(model, clean, corrupted, units, DIFFERENCE))
    assert both == pytest.approx(one + other, abs=1e-10)


# ------------------------------------------------------------------------------- TransformerLens


def their_estimates(bridge, clean, corrupted, place):
    """By the bridge's own cache and backward hooks."""
    names = [f"blocks.{layer}.attn.hook_{place}" for layer in range(2)]
    slopes = {}

    def keep(name):
        return lambda gradient, hook: slopes.update({name: gradient.double()})

    with bridge.hooks(bwd_hooks=[(name, keep(name)) for name in names]):
        difference(bridge(corrupted)).sum().backward()
    (_, before), (_, after) = map(bridge.run_with_cache, (corrupted, clean))
    products = [(after[name] - before[name]).detach().double() * slopes[name] for name in names]
    return torch.cat([product.sum((1, 3)).mean(0) for product in products]).numpy()


@pytest.mark.parametrize("place", ["z", "q", "k", "v"])
@pytest.mark.parametrize("kind", ["GPT", "rotary"])
def test_a_bridge_and_our_twin_of_it(kind, place):
    bridge = their_model(kind)
    clean, corrupted = two_inputs()
    expected = their_estimates(bridge, clean, corrupted, place)
    for model in (bridge, with_the_weights_of(bridge, kind)):
        result = attribution_patch(model, clean, corrupted, place, DIFFERENCE)
        # Their rotations are float32.
        np.testing.assert_allclose(values(result), expected, rtol=0, atol=1e-6)
    assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("place", ["z", "q", "k"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_hugging_face_models(kind, place):
    bridge = bridged(hugging_face(kind).double())
    clean, corrupted = probe(N), probe(N).flip(0)
    expected = their_estimates(bridge, clean, corrupted, place)
    result = attribution_patch(bridge, clean, corrupted, place, DIFFERENCE)
    np.testing.assert_allclose(values(result), expected, rtol=0, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


# --------------------------------------------------------------------------------- other metrics


def test_an_induction_score_is_estimated_too():
    model = measured.build("attn-attn")
    clean = repeated_tokens(6, d_vocab=40, bos=0, n_sequences=3).tokens
    corrupted = repeated_tokens(6, d_vocab=40, bos=0, n_sequences=3, seed=1).tokens
    metric = InductionScore(("L1H0", "L1H2"))
    result = attribution_patch(model, clean, corrupted, "heads", metric)
    assert (result.unit, (values(result)[2:] == 0).all()) == ("probability", True)
    assert np.abs(values(result)[:2]).max() > 1e-4

    step, name = 1e-4, "blocks.0.attn.hook_z"
    before, after = (by_hand.activations(model, tokens)[name] for tokens in (corrupted, clean))
    scores = []
    for e in (step, -step):
        hook = put(name, (ALL, ALL, 1), before + e * (after - before))
        with model.hooks([hook]):
            pattern = by_hand.activations(model, corrupted)["blocks.1.attn.hook_pattern"]
        scores.append(np.mean([pattern[:, [0, 2], t, t - 5].mean() for t in range(7, 13)]))
    assert values(result)[1] == pytest.approx((scores[0] - scores[1]) / (2 * step), abs=1e-6)
