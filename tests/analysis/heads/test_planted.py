"""Every score finds a circuit that was written into the weights, at the value worked out by hand.

And it finds nothing, to the last digit, where attention is uniform. `planted` says which attention
each planted head pays; here that is averaged over a probe with n tokens per copy.
"""

import math
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.analysis import (
    Result,
    duplicate_token_score,
    first_token_score,
    head_scores,
    in_context_learning_score,
    induction_score,
    loss_by_position,
    previous_token_score,
    repeated_sequence_loss,
    repeated_tokens,
)
from interp.models import MLP, Attention, Conv, HookedSequenceModel, ModelConfig
from tests.analysis import planted

# How to plant an induction head, and the layer that it then is in.
INDUCTION = {
    "conv-attn": (planted.induction_conv_attn, 1),
    "smeared-attn": (planted.induction_smeared_attn, 0),
    "attn-attn": (planted.induction_attn_attn, 1),
}
SCORES = ("induction", "previous_token", "duplicate_token", "first_token")
EXACT = {"rtol": 0, "atol": 1e-12}

kinds = st.sampled_from(sorted(INDUCTION))
lengths = st.integers(3, 12)
spares = st.integers(0, 5)
seeds = st.integers(0, 2**31)
gains = st.floats(0.0, 25.0)


def plant(kind: str, **options) -> tuple[HookedSequenceModel, str, list[str]]:
    """A model with an induction head, the head's label, and those of the heads that help it."""
    build, layer = INDUCTION[kind]
    helpers = ["L0H0"] if kind == "attn-attn" else []
    return build(**options), f"L{layer}H{options.get('head', 0)}", helpers


def at_chance(scores: Result, *but: str) -> None:
    """Every head but these scores its chance level, to rounding; there is at least one."""
    others = [label for label in scores.labels["head"] if label not in but]
    rest = scores.sel(head=others)
    assert others
    np.testing.assert_allclose(rest.values, rest.chance, **EXACT)


def four(scores: Result, head: str) -> list[float]:
    return [float(scores.sel(score=score, head=head)) for score in SCORES]


def copies_of(n: int) -> tuple[range, range]:
    """The positions of the two copies after a BOS."""
    return range(1, n + 1), range(n + 1, 2 * n + 1)


def uniform_by_hand(n: int) -> list[float]:
    first, second = copies_of(n)
    late = fmean(1 / (t + 1) for t in second)
    everywhere = fmean(1 / (t + 1) for t in (*first, *second))
    return [late, everywhere, late, everywhere]


def induction_by_hand(n: int, E: float) -> list[float]:
    first, second = copies_of(n)
    other = [1 / (E + t) for t in second]
    elsewhere = fmean([1 / (t + 1) for t in first] + other)
    return [fmean(E / (E + t) for t in second), elsewhere, fmean(other), elsewhere]


@pytest.mark.parametrize("kind", INDUCTION)
def test_a_planted_induction_head_stands_out_and_its_neighbours_are_at_chance(kind):
    model, label, helpers = plant(kind, d_vocab=60, n_ctx=101, head=1, n_heads=3)
    scores = induction_score(model, n_sequences=3)
    assert scores.best() == label
    assert float(scores.sel(head=label)) > 0.95
    at_chance(scores, label, *helpers)


@settings(max_examples=30)
@given(kind=kinds, n=lengths, spare=spares, seed=seeds, head=st.integers(0, 2), gain=gains)
def test_the_four_scores_of_an_induction_head_are_the_softmax_worked_out_by_hand(
    kind, n, spare, seed, head, gain
):
    sizes = {"d_vocab": n + 1 + spare, "n_ctx": 2 * n + 1, "n_heads": 3}
    model, label, helpers = plant(kind, head=head, gain=gain, **sizes)
    scores = head_scores(model, n=n, n_sequences=2, seed=seed)
    by_hand = induction_by_hand(n, math.exp(gain))
    np.testing.assert_allclose(four(scores, label), by_hand, **EXACT)
    at_chance(scores, label, *helpers)
    for helper in helpers:
        np.testing.assert_allclose(four(scores, helper), [0, 1, 0, 1 / (2 * n)], **EXACT)
    # Distinct tokens leave nothing for sequences to differ in.
    assert scores.standard_error.max() < 1e-12


@pytest.mark.parametrize("kind", INDUCTION)
@pytest.mark.parametrize("gain", [2.0, 20.0])
def test_each_variant_gives_the_value_worked_out_by_hand(kind, gain):
    model, label, _ = plant(kind, d_vocab=40, n_ctx=101, gain=gain)
    E, n = math.exp(gain), 25

    def score(variant, reduce="mean"):
        result = induction_score(model, variant=variant, n=n, n_sequences=3, reduce=reduce)
        return float(result.sel(head=label))

    stripe = fmean(E / (E + t) for t in range(26, 51))
    # Copy k of four has k matches to share its attention among: 25 (1 + 2 + 3) entries in all.
    queries = [(k, t) for k in (1, 2, 3) for t in range(25 * k + 1, 25 * k + 26)]
    masses = [k * E / (k * E + t + 1 - k) for k, t in queries]
    by_hand = [stripe, stripe * 25 / 51, fmean(masses), sum(masses) / 150]
    found = [score("stripe"), score("tl"), score("olsson", "sum"), score("olsson")]
    np.testing.assert_allclose(found, by_hand, **EXACT)
    if gain == 20.0:
        np.testing.assert_allclose(found, [1, 25 / 51, 1, 1 / 2], atol=1e-6)


@pytest.mark.parametrize("lags", [1, 2])
def test_without_lag_one_the_convolutions_induction_head_is_at_chance(lags):
    model, *_ = plant("conv-attn", d_vocab=30, n_ctx=51, lags=lags)
    with torch.no_grad():
        model.conv(0).W_conv[1:] = 0
    at_chance(head_scores(model, n=25, n_sequences=3))
    # Without a preference the tokens so far stand out, the one that comes next never does.
    assert float(repeated_sequence_loss(model, n=25).sel(measure="second_copy_accuracy")) == 0


def test_without_its_previous_token_head_the_second_layer_is_at_chance():
    model, *_ = plant("attn-attn", d_vocab=30, n_ctx=51)
    with torch.no_grad():
        model.attn(0).W_O[0] = 0
    at_chance(head_scores(model, n=25, n_sequences=3), "L0H0")


@settings(max_examples=30)
@given(n=lengths, gain=gains, alpha=st.floats(-8.0, 8.0) | st.just(40.0))
def test_smearing_shares_attention_between_induction_key_and_duplicate(n, gain, alpha):
    model, label, _ = plant("smeared-attn", d_vocab=20, n_ctx=25, gain=gain, alpha=alpha)
    share = 1 / (1 + math.exp(-alpha))
    a, b = math.exp(gain * (1 - share)), math.exp(gain * share)
    first, second = copies_of(n)
    Z = [a + 2 * b + t - 2 for t in second]
    elsewhere = fmean([1 / (b + t) for t in first] + [1 / z for z in Z])
    by_hand = [fmean(a / z for z in Z), elsewhere, fmean(b / z for z in Z), elsewhere]
    scores = head_scores(model, n=n, n_sequences=2)
    np.testing.assert_allclose(four(scores, label), by_hand, **EXACT)
    at_chance(scores, label)


@pytest.mark.parametrize(("alpha", "by_hand"), [(planted.SURE, [0, 1 / 2]), (0.0, [1 / 3, 1 / 3])])
def test_unsmeared_keys_find_the_duplicate_and_half_smeared_ones_both(alpha, by_hand):
    model, label, _ = plant("smeared-attn", d_vocab=20, n_ctx=25, gain=60.0, alpha=alpha)
    scores = head_scores(model, n=12, n_sequences=2)
    np.testing.assert_allclose(four(scores, label)[::2], by_hand, atol=1e-7)


@settings(max_examples=30)
@given(n=lengths, spare=spares, seed=seeds, gain=gains)
def test_heads_of_a_known_kind_score_what_was_worked_out_by_hand(n, spare, seed, gain):
    model = planted.known_heads(d_vocab=n + 1 + spare, n_ctx=2 * n + 1, gain=gain)
    scores = head_scores(model, n=n, n_sequences=2, seed=seed)
    E, (first, second) = math.exp(gain), copies_of(n)
    found = [E / (E + t) for t in (*first, *second)]
    other = [1 / (E + t) for t in (*first, *second)]
    both = fmean([found[0], *other[1:]])  # the key before position 1 is the first token
    late_other = fmean(other[n:])
    Z = [2 * E + t - 1 for t in second]
    twice = fmean(other[:n] + [1 / z for z in Z])
    by_hand = {
        "previous": [late_other, fmean(found), late_other, both],
        "duplicate": [fmean(1 / z for z in Z), twice, fmean(E / z for z in Z), twice],
        # An induction head's scores, with the duplicate in the induction key's place.
        "other_duplicate": [induction_by_hand(n, E)[i] for i in (2, 1, 0, 3)],
        "first": [late_other, both, late_other, fmean(found)],
        "uniform": uniform_by_hand(n),
    }
    for head, kind in enumerate(planted.KNOWN_HEADS):
        np.testing.assert_allclose(four(scores, f"L0H{head}"), by_hand[kind], **EXACT)


def test_each_score_is_won_by_its_own_kind_of_head():
    model = planted.known_heads(d_vocab=60, n_ctx=101)
    names = {kind: f"L0H{head}" for head, kind in enumerate(planted.KNOWN_HEADS)}
    tokens = repeated_tokens(50, d_vocab=60, bos=planted.BOS, n_sequences=3).tokens
    duplicate = duplicate_token_score(model, n_sequences=3)
    cases = {
        "previous": previous_token_score(model, tokens),
        "other_duplicate": duplicate,
        "first": first_token_score(model, n_sequences=3),
    }
    for kind, scores in cases.items():
        assert scores.best() == names[kind]
        assert float(scores.sel(head=names[kind])) > 0.95
    assert float(duplicate.sel(head=names["duplicate"])) == pytest.approx(0.5, abs=1e-6)


HEADS = Attention(n_heads=2, d_head=4)
UNIFORM = {
    "conv-attn": {"layers": (Conv(), HEADS)},
    "smeared": {"layers": (Attention(n_heads=2, d_head=4, smear=True),)},
    "gpt": {"layers": (Attention(n_heads=2, d_head=4, mlp=MLP(16)),) * 2, "norm_place": "post"},
    "rotary": {"layers": (HEADS, Attention(n_heads=3, d_head=2)), "positions": "rotary"},
    "shortformer": {"layers": (HEADS, HEADS), "positions": "shortformer"},
    "sees its future": {"layers": (Attention(n_heads=2, d_head=4, causal=False), HEADS)},
}


@pytest.mark.parametrize("options", UNIFORM.values(), ids=UNIFORM)
def test_random_weights_without_queries_score_exactly_the_reported_chance(options):
    config = ModelConfig(d_vocab=30, d_model=8, n_ctx=45, **options)
    model = HookedSequenceModel(config, seed=1).double()
    with torch.no_grad():
        for layer in config.attention_layers:
            model.attn(layer).W_Q.zero_()
    late, later, few = dict.fromkeys(range(12, 23), 1), dict.fromkeys(range(1, 23), 1), {"n": 11}
    olsson = {t: (t - 1) // 11 for t in range(12, 45)}
    text = torch.arange(3 * 23).reshape(3, 23) % 30
    cases = [  # what was measured, entries per query, positions, what the sum is divided by
        (induction_score(model, **few), late, 23, 11),
        (induction_score(model, variant="tl", **few), late, 23, 23),
        (induction_score(model, variant="olsson", **few), olsson, 45, 66),
        (induction_score(model, variant="olsson", reduce="sum", **few), olsson, 45, 33),
        (head_scores(model, **few).sel(score="induction"), late, 23, 11),
        (duplicate_token_score(model, **few), late, 23, 11),
        (previous_token_score(model, **few), later, 23, 22),
        (previous_token_score(model, text), later, 23, 22),
        (first_token_score(model, **few), later, 23, 22),
    ]
    for scores, entries, n_pos, divisor in cases:
        at_chance(scores)
        for label, chance in zip(scores.labels["head"], scores.chance, strict=True):
            causal = model.attn(int(label[1])).causal
            visible = {t: t + 1 if causal else n_pos for t in entries}
            by_hand = sum(count / visible[t] for t, count in entries.items()) / divisor
            assert chance == pytest.approx(by_hand, abs=1e-12)


def losses_by_hand(n: int, d_vocab: int, gain: float, logit_gain: float) -> list[float]:
    """The loss at positions 1 to 2n: a logit is logit_gain times the attention that a token gets.

    In the first copy each of the t tokens so far gets 1 / t. In the second, the token to come
    gets E / Z, tokens that came twice 2 / Z, other tokens of r, and BOS, 1 / Z.
    """
    E, losses = math.exp(gain), []
    for t in range(1, n + 2):
        coming = logit_gain / t if t == n + 1 else 0
        losses.append(math.log(t * math.exp(logit_gain / t) + d_vocab - t) - coming)
    for twice in range(1, n):
        unit = logit_gain / (E + n + twice)
        once, unseen = n - twice, d_vocab - 1 - n
        others = once * math.exp(unit) + twice * math.exp(2 * unit) + unseen
        losses.append(math.log(others + math.exp(E * unit)) - E * unit)
    return losses


@settings(max_examples=30)
@given(kind=kinds, n=lengths, spare=spares, seed=seeds, gain=gains, logit_gain=st.floats(1.0, 15.0))
def test_losses_are_the_ones_worked_out_by_hand(kind, n, spare, seed, gain, logit_gain):
    d_vocab = n + 1 + spare
    model, *_ = plant(kind, d_vocab=d_vocab, n_ctx=2 * n + 1, gain=gain, logit_gain=logit_gain)
    by_hand = losses_by_hand(n, d_vocab, gain, logit_gain)
    tokens = repeated_tokens(n, d_vocab=d_vocab, bos=planted.BOS, n_sequences=2, seed=seed).tokens
    curve = loss_by_position(model, tokens)
    assert curve.labels["position"] == tuple(range(1, 2 * n + 1))
    np.testing.assert_allclose(curve.values, by_hand, rtol=0, atol=1e-11)
    late = in_context_learning_score(model, tokens, early=n, late=2 * n)
    assert float(late) == pytest.approx(by_hand[2 * n - 1] - by_hand[n - 1], abs=1e-11)
    # Each copy without its first token, which nothing predicts.
    first, second = fmean(by_hand[1:n]), fmean(by_hand[n + 1 :])
    result = repeated_sequence_loss(model, n=n, n_sequences=2, seed=seed)
    np.testing.assert_allclose(result.values[:3], [first, second, first - second], atol=1e-11)


@pytest.mark.parametrize("kind", INDUCTION)
def test_an_induction_head_that_copies_predicts_the_second_copy(kind):
    model, *_ = plant(kind, d_vocab=100, n_ctx=101)
    first, second, drop, accuracy = repeated_sequence_loss(model, n_sequences=4).values
    assert second < 0.01
    assert accuracy == 1  # and the losses of the first copy are about those of a blind guess:
    assert first == pytest.approx(math.log(100), abs=0.3)
    assert drop == pytest.approx(first, abs=0.01)
    tokens = repeated_tokens(50, d_vocab=100, bos=planted.BOS, n_sequences=4).tokens
    curve = loss_by_position(model, tokens)
    assert curve.values[:51].min() > 4  # position 51 opens the second copy: unpredictable still
    assert curve.values[51:].max() < 0.01
