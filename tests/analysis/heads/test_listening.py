"""Scoring listens and does nothing else: the caller's hooks, the model's state, the price."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.analysis import head_scores, induction_score, previous_token_score
from interp.analysis.heads import targets as targets_module
from interp.models import Conv, HookedAttnAttn, HookedSequenceModel, ModelConfig, kernels
from tests.analysis import measured

EXACT = {"rtol": 0, "atol": 1e-10}


# --------------------------------------------------------------------------- hooks of the caller


def test_a_pattern_changed_by_a_hook_is_what_is_scored():
    model = measured.build("attn-attn")
    before = head_scores(model, n=6, n_sequences=2)

    def no_attention(pattern, hook):
        pattern = pattern.clone()
        pattern[:, 1] = 0
        return pattern

    with model.hooks([("blocks.1.attn.hook_pattern", no_attention)]):
        during = head_scores(model, n=6, n_sequences=2)
    assert (during.sel(head="L1H1").values == 0).all()
    for head in ("L0H0", "L0H1", "L1H0", "L1H2"):
        np.testing.assert_allclose(
            during.sel(head=head).values, before.sel(head=head).values, **EXACT
        )


def test_scores_changed_by_a_hook_are_what_is_scored():
    model = measured.build("conv-attn")
    uniform = ("blocks.1.attn.hook_attn_scores", lambda s, hook: s.masked_fill(s.isfinite(), 3.0))
    with model.hooks([uniform]):
        scores = head_scores(model, n=4, n_sequences=2)
    np.testing.assert_allclose(scores.values, scores.chance, **EXACT)


@pytest.mark.parametrize("hook", ["attn.hook_z", "attn.hook_result", "hook_attn_out"])
def test_ablating_a_lower_layer_changes_the_scores_above_it_only(hook):
    model = measured.build("attn-attn")
    before = head_scores(model, n=6, n_sequences=2)
    with model.hooks([(f"blocks.0.{hook}", lambda x, hook: torch.zeros_like(x))]):
        during = head_scores(model, n=6, n_sequences=2)
    change = np.abs(during.values - before.values)
    assert change[:, :2].max() < 1e-12
    assert change[:, 2:].max() > 0.01


@pytest.mark.parametrize("kind", ["attn-attn", "smeared", "rotary"])
def test_keys_changed_by_a_hook_are_what_is_scored(kind):
    model = measured.build(kind)
    last = max(model.attention_layers)
    hook = (f"blocks.{last}.attn.{model.attn(last).key_hook}", lambda k, hook: k * 0)
    with model.hooks([hook]):
        scores = head_scores(model, n=6, n_sequences=2)
    top = [label for label in scores.labels["head"] if label.startswith(f"L{last}")]
    chance = scores.sel(head=top)
    np.testing.assert_allclose(chance.values, chance.chance, **EXACT)


# --------------------------------------------------------------------------- nothing is disturbed


def fingerprint(model):
    hooks = {name: (len(p.fwd_hooks), len(p.bwd_hooks)) for name, p in model.hook_dict.items()}
    modes = {name: module.training for name, module in model.named_modules()}
    dtypes = {name: (p.dtype, p.requires_grad, p.grad) for name, p in model.named_parameters()}
    return hooks, modes, dtypes, torch.is_grad_enabled(), torch.get_rng_state().tolist()


def half_trained(kind="gpt"):
    model = measured.build(kind)
    model.train()
    model.blocks[0].eval()
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: None)
    return model


@pytest.mark.parametrize("analysis", [head_scores, induction_score, previous_token_score])
def test_the_model_is_left_as_it_was_found(analysis):
    model = half_trained()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    before = fingerprint(model)
    analysis(model, n=6, n_sequences=2)
    assert fingerprint(model) == before
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["blocks.0.attn.hook_q", "blocks.1.attn.hook_k"])
def test_the_model_is_left_as_it_was_found_after_an_error(error, where):
    model = half_trained()

    def interrupt(value, hook):
        raise error("in the middle")

    model.add_hook(where, interrupt)
    before = fingerprint(model)
    with pytest.raises(error, match="in the middle"):
        head_scores(model, n=6, n_sequences=2)
    assert fingerprint(model) == before


def test_dropout_is_off_while_scoring():
    model = HookedAttnAttn(d_vocab=40, d_model=16, n_heads=2, n_ctx=21, dropout=0.5).train()
    scored = head_scores(model, n=10, n_sequences=2).values
    np.testing.assert_array_equal(head_scores(model.eval(), n=10, n_sequences=2).values, scored)


def test_bfloat16_models_are_scored_in_float32():
    model = HookedAttnAttn(d_vocab=40, d_model=16, n_heads=2, n_ctx=21)
    precise = head_scores(model, n=10, n_sequences=4).values
    rough = head_scores(model.bfloat16(), n=10, n_sequences=4).values
    assert model.W_E.dtype == torch.bfloat16
    np.testing.assert_allclose(rough, precise, atol=0.01)
    assert (rough != precise).any()


def test_a_compiled_model_is_the_model_inside():
    model = measured.build("conv-attn")
    scored = head_scores(torch.compile(model), n=6, n_sequences=2)
    np.testing.assert_array_equal(scored.values, head_scores(model, n=6, n_sequences=2).values)


# ------------------------------------------------------------------------- what is paid for it


def test_no_pattern_is_built_and_nothing_above_the_last_keys_is_run(monkeypatch):
    model, captured = measured.build("attn-attn"), []

    def refuse(*args):
        raise AssertionError("somebody built a pattern")

    monkeypatch.setattr(kernels, "masked_scores", refuse)
    monkeypatch.setattr(kernels, "pattern_of", refuse)
    model.add_hook(lambda name: True, lambda value, hook: captured.append(hook.name))
    silence = ["hook_attn_scores", "hook_pattern"]
    for layer in range(2):
        for name in silence:
            model.hook_dict[f"blocks.{layer}.attn.{name}"].remove_hooks()
    head_scores(model, n=6, n_sequences=2)
    assert captured[-1] == "blocks.1.attn.hook_k"
    assert "blocks.0.attn.hook_z" in captured


@pytest.mark.parametrize("at_once", [1, 20, 39])
def test_the_size_of_a_batch_changes_nothing(at_once, monkeypatch):
    model, batches = measured.build("rotary"), []
    model.add_hook("hook_embed", lambda value, hook: batches.append(len(value)))
    whole = head_scores(model, n=6, n_sequences=7)
    assert batches == [7]
    monkeypatch.setattr(targets_module, "TOKENS_AT_ONCE", at_once)
    parts = head_scores(model, n=6, n_sequences=7)
    assert batches[1:] == ([3, 3, 1] if at_once == 39 else [1] * 7)  # of 13 tokens each
    np.testing.assert_allclose(parts.values, whole.values, rtol=0, atol=1e-14)
    np.testing.assert_allclose(parts.standard_error, whole.standard_error, rtol=0, atol=1e-14)


@settings(max_examples=30)
@given(
    causal=st.booleans(),
    n_pos=st.integers(1, 40),
    chunk=st.integers(1, 45),
    gain=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_the_log_sum_exp_alone_is_that_of_the_explicit_scores(causal, n_pos, chunk, gain):
    generator = torch.Generator().manual_seed(n_pos)
    q, k = torch.randn(2, 2, 3, n_pos, 4, generator=generator, dtype=torch.float64) * gain
    scores = kernels.masked_scores(q, k, kernels.Visibility(causal), 0.5)
    found = kernels.log_sum_exp(q, k, causal, 0.5, chunk)
    torch.testing.assert_close(found, scores.logsumexp(-1), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "arena"}, "variant is 'arena'; choose one of stripe, olsson, tl"),
        ({"reduce": "max"}, "reduce is 'max'; choose one of mean, sum"),
        ({"n": 55}, "n=55 .* n_ctx=110; choose n of at most 54"),
        ({"n": 28, "variant": "olsson"}, "choose n of at most 27"),
        ({"n": 0}, "n=0 is too small"),
        ({"n_sequences": 0}, "n_sequences=0 is too small"),
        ({"n": 50, "variant": "tl"}, "n=50 distinct tokens"),
        ({"exclude": range(39)}, "tokens are left to draw from"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_questions_are_refused_before_any_forward_pass(options, message):
    with pytest.raises(ValueError, match=message):
        induction_score(measured.never_run(measured.build("conv-attn")), **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["embed.W_E", "blocks.1.attn.W_Q", "unembed.b_U"])
def test_weights_that_are_no_numbers_are_refused_by_name(bad, name):
    model = measured.build("attn-attn")
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = bad
    with pytest.raises(ValueError, match=f"weight '{name}' holds NaN or infinity"):
        head_scores(measured.never_run(model), n=6, n_sequences=2)


def test_a_model_without_heads_has_no_head_scores():
    model = HookedSequenceModel(ModelConfig(d_vocab=40, d_model=8, n_ctx=30, layers=(Conv(),)))
    with pytest.raises(ValueError, match="no heads to score"):
        head_scores(measured.never_run(model), n=6)


def test_what_is_no_model_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"Linear cannot be analysed.*boot_transformers"):
        head_scores(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 5), "must be whole numbers"),
        (torch.zeros(2, 5, dtype=torch.bool), "must be whole numbers"),
        (torch.zeros(5, dtype=torch.int64), "must be whole numbers of shape"),
        (torch.zeros(0, 5, dtype=torch.int64), "at least one sequence"),
        (torch.zeros(1, 1, dtype=torch.int64), "must have 2 to n_ctx=110"),
        (torch.zeros(1, 111, dtype=torch.int64), "must have 2 to n_ctx=110"),
        (torch.tensor([[3, 40]]), "token 40 is outside the vocabulary of 40"),
        (torch.tensor([[-1, 4]]), "token -1 is outside"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_tokens_that_cannot_be_read_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        previous_token_score(measured.never_run(measured.build("conv-attn")), tokens)
