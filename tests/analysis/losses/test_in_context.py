"""Losses: brute force, refusals, and leaving the model alone."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.analysis import (
    in_context_learning_score,
    loss_by_position,
    repeated_sequence_loss,
    repeated_tokens,
)
from interp.analysis.losses import in_context
from interp.models import Conv, HookedAttnAttn, HookedConvAttn, HookedSequenceModel, ModelConfig
from tests.analysis import measured

EXACT = {"rtol": 0, "atol": 1e-10}
KINDS = sorted(set(measured.LAYERS) - {"sees its future"})


def text(length=12, rows=3, d_vocab=40):
    return torch.randint(d_vocab, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_hand(model, tokens):
    """For each sequence the loss of tokens 1, 2, ... and whether each was the likeliest."""
    losses, hits = [], []
    for line, rows in zip(tokens.tolist(), model(tokens).tolist(), strict=True):
        predicted = list(zip(rows, line[1:], strict=False))
        losses.append([log_sum_exp(row) - row[token] for row, token in predicted])
        hits.append([row.index(max(row)) == token for row, token in predicted])
    return np.array(losses), np.array(hits)


def log_sum_exp(logits):
    top = max(logits)
    return top + math.log(sum(math.exp(logit - top) for logit in logits))


def error_of(samples):
    return statistics.stdev(samples) / math.sqrt(len(samples))


# ---------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("kind", KINDS)
def test_loss_by_position_is_that_of_an_explicit_log_softmax(kind):
    model, tokens = measured.build(kind), text()
    losses, _ = by_hand(model, tokens)
    result = loss_by_position(model, tokens)
    assert result.labels["position"] == tuple(range(1, 12))
    np.testing.assert_allclose(result.values, losses.mean(0), **EXACT)
    np.testing.assert_allclose(
        result.standard_error, [error_of(column) for column in losses.T.tolist()], **EXACT
    )
    np.testing.assert_allclose(result.chance, math.log(40), **EXACT)


@settings(max_examples=20)
@given(kind=st.sampled_from(KINDS), n=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_repeated_sequence_loss_is_that_of_an_explicit_log_softmax(kind, n, seed):
    model = measured.build(kind, seed=seed)
    tokens = repeated_tokens(n, d_vocab=40, bos=0, n_sequences=4, seed=seed).tokens
    losses, hits = by_hand(model, tokens)
    # Column c is the loss of position c + 1; each copy's first token, at 1 and n + 1, is left out.
    first, second = losses[:, 1:n].mean(1), losses[:, n + 1 :].mean(1)
    samples = [first, second, first - second, hits[:, n + 1 :].mean(1)]
    result = repeated_sequence_loss(model, n=n, n_sequences=4, seed=seed)
    np.testing.assert_allclose(result.values, [s.mean() for s in samples], **EXACT)
    np.testing.assert_allclose(
        result.standard_error, [error_of(s.tolist()) for s in samples], **EXACT
    )


def test_accuracy_counts_the_likeliest_token():
    model = HookedConvAttn(d_vocab=30, d_model=8, n_heads=2, n_ctx=21)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.unembed.b_U[7] = 1.0
    tokens = repeated_tokens(10, d_vocab=30, bos=0, n_sequences=5).tokens
    share = float((tokens[:, 12:] == 7).double().mean())
    result = repeated_sequence_loss(model, n=10, n_sequences=5)
    assert float(result.sel(measure="second_copy_accuracy")) == pytest.approx(share, abs=1e-12)
    assert 0 < share < 1


@pytest.mark.parametrize(
    ("length", "positions", "expected"),
    [
        (12, {}, (1, 11)),
        (100, {}, (10, 95)),
        (500, {}, (50, 475)),
        (501, {}, (50, 500)),
        (600, {}, (50, 500)),
        (12, {"early": 3, "late": 7}, (3, 7)),
        (12, {"late": 4}, (1, 4)),
    ],
)
def test_the_in_context_learning_score_is_a_late_loss_minus_an_early_one(
    length, positions, expected
):
    model, tokens = measured.build("conv-attn", n_ctx=600), text(length, rows=4)
    losses, _ = by_hand(model, tokens)
    early, late = expected
    samples = losses[:, late - 1] - losses[:, early - 1]
    score = in_context_learning_score(model, tokens, **positions)
    assert (score.provenance["early"], score.provenance["late"]) == expected
    assert float(score) == pytest.approx(samples.mean(), abs=1e-10)
    assert score.standard_error[0] == pytest.approx(error_of(samples.tolist()), abs=1e-10)
    assert float(score.chance[0]) == 0
    assert score.unit == "nats"


# ---------------------------------------------------------------------------------------- chance


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary():
    model = HookedAttnAttn(d_vocab=30, d_model=8, n_heads=2, n_ctx=21).double()
    with torch.no_grad():
        model.unembed.W_U.zero_()
    result = repeated_sequence_loss(model, n=10, n_sequences=3)
    for measure, by_hand in (
        ("first_copy_loss", math.log(30)),
        ("second_copy_loss", math.log(30)),
        ("drop", 0),
    ):
        one = result.sel(measure=measure)
        assert float(one) == pytest.approx(by_hand, abs=1e-12)
        assert float(one.chance) == pytest.approx(by_hand, abs=1e-12)
    assert float(result.sel(measure="second_copy_accuracy").chance) == pytest.approx(1 / 30)
    np.testing.assert_allclose(loss_by_position(model, text(d_vocab=30)).values, math.log(30))


@pytest.mark.parametrize("preset", [HookedConvAttn, HookedAttnAttn])
def test_random_weights_do_not_learn_in_context(preset):
    def drop(seed):
        model = preset(d_vocab=80, d_model=32, n_heads=4, n_ctx=51, seed=seed)
        return float(repeated_sequence_loss(model, n=25, n_sequences=8).sel(measure="drop"))

    inits = [drop(seed) for seed in range(20)]
    distance = abs(drop(99) - statistics.mean(inits))
    assert distance < 2.58 * statistics.stdev(inits)
    assert abs(statistics.mean(inits)) < 2.58 * statistics.stdev(inits)  # chance is no drop


# --------------------------------------------------------------------------- nothing is disturbed

ANALYSES = {
    "repeated": lambda model: repeated_sequence_loss(model, n=5, n_sequences=3),
    "by position": lambda model: loss_by_position(model, text()),
    "in context": lambda model: in_context_learning_score(model, text()),
}


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was_found(analysis, error):
    model = measured.build("gpt").train()
    model.blocks[0].eval()

    def hook(value, hook):
        if error is not None:
            raise error("in the middle")

    model.add_hook("blocks.1.hook_resid_post", hook)
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    if error is None:
        analysis(model)
    else:
        with pytest.raises(error, match="in the middle"):
            analysis(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert len(model.hook_dict["blocks.1.hook_resid_post"].fwd_hooks) == 1
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
@pytest.mark.parametrize("at_once", [1, 40 * 12 * 2])
def test_the_size_of_a_batch_changes_nothing(analysis, at_once, monkeypatch):
    model = measured.build("rotary")
    whole, sizes = analysis(model), []
    monkeypatch.setattr(in_context, "LOGITS_AT_ONCE", at_once)
    model.add_hook("hook_embed", lambda value, hook: sizes.append(len(value)))
    np.testing.assert_allclose(analysis(model).values, whole.values, rtol=0, atol=1e-13)
    assert sizes == ([1, 1, 1] if at_once == 1 else [2, 1])


def test_bfloat16_losses_are_computed_in_float32():
    model = HookedAttnAttn(d_vocab=40, d_model=16, n_heads=2, n_ctx=21)
    precise = loss_by_position(model, text()).values
    rough = loss_by_position(model.bfloat16(), text()).values
    np.testing.assert_allclose(rough, precise, atol=0.05)
    assert len(set(rough)) == 11  # in bfloat16 itself, losses near 4 come in steps of 1/64


def test_a_model_without_heads_still_has_losses():
    config = ModelConfig(d_vocab=40, d_model=8, n_ctx=30, layers=(Conv(),))
    model = HookedSequenceModel(config).double()
    losses, _ = by_hand(model, text())
    np.testing.assert_allclose(loss_by_position(model, text()).values, losses.mean(0), **EXACT)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"early": 0}, "early=0 and late=11 must be positions of a sequence of 12 tokens"),
        ({"early": 5, "late": 5}, "1 <= early < late <= 11"),
        ({"late": 12}, "late=12"),
        ({"early": -3}, "early=-3"),
    ],
)
def test_positions_outside_the_sequence_are_refused(positions, message):
    with pytest.raises(ValueError, match=message):
        in_context_learning_score(
            measured.never_run(measured.build("conv-attn")), text(), **positions
        )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("analysis", [loss_by_position, in_context_learning_score])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (text(111), "n_ctx=110"),
        (text(1), "the sequences have 1 tokens"),
        (text().double(), "must be whole numbers"),
        (text()[0], "at least one sequence"),
        (text() + 40, "outside the vocabulary of 40"),
    ],
)
def test_tokens_that_cannot_be_read_are_refused(analysis, tokens, message):
    with pytest.raises(ValueError, match=message):
        analysis(measured.never_run(measured.build("conv-attn")), tokens)


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
def test_weights_that_are_no_numbers_are_refused_by_name(analysis):
    model = measured.build("conv-attn")
    with torch.no_grad():
        model.conv(0).W_conv[1, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r"weight 'blocks\.0\.conv\.W_conv' holds NaN"):
        analysis(measured.never_run(model))


def test_results_say_where_they_come_from():
    model = measured.build("conv-attn")
    origin = repeated_sequence_loss(model, n=5, n_sequences=3, seed=2).provenance
    said = {key: origin[key] for key in ("model", "n", "copies", "seed", "bos", "n_sequences")}
    assert said == {
        "model": "HookedSequenceModel", "n": 5, "copies": 2, "seed": 2, "bos": 0, "n_sequences": 3,
    }  # fmt: skip
    origin = loss_by_position(model, text()).provenance
    assert (origin["tokens"], origin["length"], origin["n_sequences"]) == ("handed in", 12, 3)
