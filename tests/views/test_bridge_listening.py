"""Scoring a TransformerBridge listens and does nothing else."""

import math
import weakref

import numpy as np
import pytest
import torch
import transformers

from interp.analysis import head_scores, loss_by_position
from tests.analysis.bridges import D_VOCAB, N_CTX, N, bridged, hugging_face, probe

# --------------------------------------------------------------------------- nothing is disturbed


def test_patterns_are_reduced_in_the_hook_and_not_kept():
    model, patterns, alive = bridged(hugging_face("llama")), [], []
    for layer in range(2):
        model.hook_dict[f"blocks.{layer}.attn.hook_pattern"].add_hook(
            lambda pattern, hook: patterns.append(weakref.ref(pattern))
        )
    model.hook_dict["blocks.1.hook_in"].add_hook(
        lambda x, hook: alive.extend(pattern() is not None for pattern in patterns)
    )
    head_scores(model, n=N, n_sequences=2)
    assert len(patterns) == 2
    assert alive == [False]  # the lower layer's is gone before the upper layer begins


def test_nothing_above_the_last_pattern_is_run():
    model, captured = bridged(hugging_face("llama")), []
    for name in ("blocks.1.hook_mlp_out", "unembed.hook_out"):
        model.hook_dict[name].add_hook(lambda x, hook: captured.append(hook.name))
    head_scores(model, n=N, n_sequences=2)
    assert captured == []
    loss_by_position(model, probe(N))
    assert len(captured) == 2


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_bridge_is_left_as_it_was_found(error):
    config = transformers.GPT2Config(
        vocab_size=D_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=N_CTX,
        embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    inner = hugging_face("gpt2", config)
    model = bridged(inner)
    calm = head_scores(model, n=N, n_sequences=2).values
    logits = model(probe(N)).detach()
    model.train()
    inner.train()

    def interrupt(x, hook):
        if error is not None:
            raise error("in the middle")

    model.hook_dict["blocks.1.hook_in"].add_hook(interrupt)
    modes = [module.training for module in inner.modules()]
    random_state = torch.get_rng_state()
    if error is None:
        # Dropout is off inside, wherever in the wrapped model it is.
        np.testing.assert_array_equal(head_scores(model, n=N, n_sequences=2).values, calm)
    else:
        with pytest.raises(error, match="in the middle"):
            head_scores(model, n=N, n_sequences=2)
    assert [module.training for module in inner.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()
    hooks = {name: len(p.fwd_hooks) for name, p in model.hook_dict.items() if p.fwd_hooks}
    assert set(hooks.values()) == {1}
    model.reset_hooks()
    inner.eval()
    model.eval()
    torch.testing.assert_close(model(probe(N)), logits)


def test_a_pattern_changed_by_a_hook_is_what_is_scored():
    model = bridged(hugging_face("llama"))
    before = head_scores(model, n=N, n_sequences=2)

    def silence(pattern, hook):
        pattern = pattern.clone()
        pattern[:, 2] = 0
        return pattern

    with model.hooks([("blocks.1.attn.hook_pattern", silence)]):
        during = head_scores(model, n=N, n_sequences=2)
    assert (during.sel(head="L1H2").values == 0).all()
    np.testing.assert_array_equal(during.sel(head="L1H1").values, before.sel(head="L1H1").values)


# ------------------------------------------------------------------------------------- refusals


def test_wrong_questions_are_refused_before_any_forward_pass(monkeypatch):
    model = bridged(hugging_face("llama"))

    def run(*args, **kwargs):
        raise AssertionError("a forward pass before the refusal")

    monkeypatch.setattr(type(model), "forward", run)
    with pytest.raises(ValueError, match=f"n_ctx={N_CTX}; choose n of at most 31"):
        head_scores(model, n=32)
    with pytest.raises(ValueError, match=f"token {D_VOCAB} is outside the vocabulary"):
        loss_by_position(model, torch.tensor([[1, D_VOCAB]]))
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"weight 'model\.embed_tokens.*holds NaN"):
        head_scores(model, n=N)


def test_layers_that_differ_in_heads_are_refused_by_name():
    model = bridged(hugging_face("llama"))
    model.cfg.n_heads = 8
    with pytest.raises(ValueError, match=r"layer 0 has 4 heads, but cfg\.n_heads is 8"):
        head_scores(model, n=N)
