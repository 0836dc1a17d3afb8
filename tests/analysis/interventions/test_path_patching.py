"""Patching, continued: paths between parts, and what is refused."""

import numpy as np
import pytest
import torch

from interp.analysis import LogitDifference, ablate, patch, path_patch
from interp.models import HookedSequenceModel
from tests.analysis import measured
from tests.analysis.interventions import by_hand
from tests.analysis.interventions.by_hand import put, tokens_for
from tests.analysis.interventions.test_patching import (
    ALL,
    DIFFERENCE,
    by_patching,
    channel_of,
    two_inputs,
)


@pytest.mark.parametrize("channel", ["q", "k", "v"])
@pytest.mark.parametrize("lag", [0, 1])
def test_a_lag_as_one_heads_queries_keys_or_values_alone_see_it(channel, lag):
    model = measured.build("conv-attn")
    tokens = tokens_for(model)
    cache = by_hand.activations(model, tokens)
    term = cache["blocks.0.conv.hook_lags"][:, lag]
    with torch.no_grad():
        without = channel_of(model, 1, channel.upper(), cache["blocks.1.hook_resid_pre"] - term)
    hook = put(f"blocks.1.attn.hook_{channel}", (ALL, ALL, 1), without)
    expected = by_hand.effect(model, tokens, hook)
    result = ablate(model, tokens, [f"L0.lag{lag}->L1H1.{channel}"], control="none")
    assert result.sel(measure="effect").values.item() == pytest.approx(expected.mean(), abs=1e-10)
    assert abs(expected.mean()) > 1e-4


def test_paths_past_a_layer_skip_what_it_writes():
    """Head, conv, head: the direct path from the first to the last does not go through the conv."""
    model = measured.build("shortformer")
    clean, corrupted = two_inputs(40)
    cache, other = by_hand.activations(model, corrupted), by_hand.activations(model, clean)
    name = "blocks.0.attn.hook_result"
    change = (other[name] - cache[name])[:, :, 1]
    with torch.no_grad():
        stream = cache["blocks.2.hook_resid_pre"] + change
        positions = cache["hook_pos_embed"]
        attn, norm = model.attn(2), model.blocks[2].ln1
        keys = torch.einsum("bpm,hmd->bphd", norm(stream) + positions, attn.W_K) + attn.b_K
        values = torch.einsum("bpm,hmd->bphd", norm(stream), attn.W_V) + attn.b_V
        conv_in = model.blocks[1].ln1(cache["blocks.1.hook_resid_pre"] + change)
        term = torch.nn.functional.pad(conv_in @ model.conv(1).W_conv[2], (0, 0, 2, 0))[:, :-2]
        last = cache["blocks.2.hook_resid_post"] + change
    for receiver, hook in (
        ("L2H0.k", put("blocks.2.attn.hook_k", (ALL, ALL, 0), keys)),
        ("L2H1.v", put("blocks.2.attn.hook_v", (ALL, ALL, 1), values)),
        ("L1.lag2", put("blocks.1.conv.hook_lags", (ALL, 2), torch.stack([term] * 3, dim=1))),
        ("logits", put("blocks.2.hook_resid_post", (ALL,), last)),
    ):
        patched, before = by_patching(model, corrupted, clean, hook)
        result = path_patch(model, "L0H1", receiver, clean, corrupted, DIFFERENCE)
        effect = result.sel(measure="effect").values.item()
        assert effect == pytest.approx((patched - before).mean(), abs=1e-10), receiver
        assert abs(effect) > 1e-4


@pytest.mark.parametrize("kind", ["gpt", "attn-attn", "rotary"])
def test_all_direct_paths_out_of_the_embedding_are_all_there_is(kind):
    """A head's queries, keys and values at once are its output; so is the head as a receiver."""
    model = measured.build(kind)
    clean, corrupted = two_inputs(40)
    result = path_patch(
        model, "L0H0", ["L1H0", "L1H0.q", "L1H0.k", "L1H0.v"], clean, corrupted, DIFFERENCE
    )
    alone = dict(
        zip(result.labels["receiver"], result.sel(measure="effect").values[0], strict=True)
    )
    together = patch(
        model, clean, corrupted, ["L0H0->L1H0.q+L0H0->L1H0.k+L0H0->L1H0.v"], DIFFERENCE
    )
    assert together.sel(measure="effect").values.item() == pytest.approx(alone["L1H0"], abs=1e-10)


def test_a_mlp_receives_from_its_own_layers_heads():
    model = measured.build("gpt")
    clean, corrupted = two_inputs(40)
    cache, other = by_hand.activations(model, corrupted), by_hand.activations(model, clean)
    name = "blocks.0.attn.hook_result"
    block = model.blocks[0]
    with torch.no_grad():  # post-norm: the stream itself is normalised after each write
        out = cache["blocks.0.hook_attn_out"] + (other[name] - cache[name])[:, :, 0]
        middle = block.ln1(cache["blocks.0.hook_resid_pre"] + out)
        written = block.mlp(middle)
        stream = block.ln2(middle + cache["blocks.0.hook_mlp_out"])
        keys = (
            channel_of(model, 1, "K", stream)
            if model.config.norm_place == "pre"
            else (torch.einsum("bpm,hmd->bphd", stream, model.attn(1).W_K) + model.attn(1).b_K)
        )
    for receiver, hook in (
        ("L0.mlp", put("blocks.0.hook_mlp_out", (ALL,), written)),
        ("L1H1.k", put("blocks.1.attn.hook_k", (ALL, ALL, 1), keys)),
    ):
        patched, before = by_patching(model, corrupted, clean, hook)
        result = path_patch(model, "L0H0", receiver, clean, corrupted, DIFFERENCE)
        effect = result.sel(measure="effect").values.item()
        assert effect == pytest.approx((patched - before).mean(), abs=1e-10), receiver


def test_receivers_below_a_sender_hear_nothing():
    model = measured.build("shortformer")
    clean, corrupted = two_inputs(40)
    result = path_patch(model, ["L0H0", "L2H0"], ["L1.lag0", "logits"], clean, corrupted)
    part = result.sel(measure="effect")
    assert np.isnan(part.sel(sender="L2H0", receiver="L1.lag0").values)
    assert np.isfinite(part.values).sum() == 3
    with pytest.raises(ValueError, match=r"nothing goes from L2H0 to L1\.lag0.*above the sender"):
        path_patch(model, "L2H0", "L1.lag0", clean, corrupted)


def test_without_a_residual_stream_nothing_passes_a_layer():
    from interp.models import Attention, ModelConfig

    config = ModelConfig(
        d_vocab=40, d_model=8, n_ctx=16, residual=False,
        layers=(Attention(n_heads=2, d_head=4),) * 3,
    )  # fmt: skip
    model = HookedSequenceModel(config).double()
    clean, corrupted = two_inputs(40)
    result = path_patch(model, "L0H0", ["L1H0.k", "L2H0.k"], clean, corrupted, DIFFERENCE)
    near, far = result.sel(measure="effect").values[0]
    assert abs(near) > 1e-8
    assert far == pytest.approx(0, abs=1e-12)


def test_paths_of_two_hops():
    model = measured.build("shortformer")
    clean, corrupted = two_inputs(40)
    cache, other = by_hand.activations(model, corrupted), by_hand.activations(model, clean)
    name = "blocks.0.attn.hook_result"
    with torch.no_grad():
        change = (other[name] - cache[name])[:, :, 1]
        conv_in = model.blocks[1].ln1(cache["blocks.1.hook_resid_pre"] + change)
        term = torch.nn.functional.pad(conv_in @ model.conv(1).W_conv[1], (0, 0, 1, 0))[:, :-1]
        more = term - cache["blocks.1.conv.hook_lags"][:, 1]
        stream = model.blocks[2].ln1(cache["blocks.2.hook_resid_pre"] + more)
        values = torch.einsum("bpm,hmd->bphd", stream, model.attn(2).W_V) + model.attn(2).b_V
    hook = put("blocks.2.attn.hook_v", (ALL, ALL, 0), values)
    patched, before = by_patching(model, corrupted, clean, hook)
    result = path_patch(model, "L0H1->L1.lag1", "L2H0.v", clean, corrupted, DIFFERENCE)
    assert result.labels["sender"] == ("L0H1->L1.lag1",)
    effect = result.sel(measure="effect").values.item()
    assert effect == pytest.approx((patched - before).mean(), abs=1e-10)
    assert abs(effect) > 1e-5


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "run", [patch, lambda m, c, d, *rest: path_patch(m, "L0H0", "L1H0.k", c, d, *rest[1:])]
)
def test_refusals_come_before_any_forward(run, unchecked, monkeypatch):
    model = measured.build("attn-attn")
    clean, corrupted = two_inputs(40)

    def forward(*args, **kwargs):
        raise AssertionError("a forward pass before the refusal")

    monkeypatch.setattr(model, "forward", forward)
    for arguments, message in (
        ((clean, corrupted[:2]), r"clean has shape \(3, 8\) and corrupted \(2, 8\)"),
        ((clean, corrupted[:, :5]), r"clean has shape \(3, 8\) and corrupted \(3, 5\)"),
        ((clean, [[1, 2], [3]]), "sequences have 1, 2 tokens, but must all be of one length"),
        ((clean, corrupted, "heads", "los"), "there is no metric 'los'"),
        ((clean, corrupted, "heads", lambda x, t: x.mean()), r"gave \(\) for 3 sequences"),
        ((clean, corrupted, "heads", LogitDifference([1, 2], 3)), "answer has shape"),
        ((clean, corrupted, "heads", "loss", "denoised"), "direction is 'denoised'; choose one"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, *arguments)
