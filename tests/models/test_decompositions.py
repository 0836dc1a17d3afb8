"""Parts that add up to the stream, and attributions that add up to the logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.utilities.slice import Slice

from interp.models import MLP, ActivationCache, Attention, Conv
from tests.models import zoo
from tests.models.zoo import HEADS, N_CTX, SMEARED, config

WITH_MLP = Attention(n_heads=3, d_head=4, mlp=MLP(16))
STREAMS = {
    "conv and MLPs": config(Conv(lags=3, mlp=MLP(16)), SMEARED, WITH_MLP),
    "rms": config(Conv(lag_bias=True), WITH_MLP, norm="rms", positions="rotary"),
    "shortformer": config(Conv(depthwise=True), HEADS, positions="shortformer"),
    "no norm": config(WITH_MLP, Conv(bias=False), norm="none", positions="sinusoidal"),
    "no biases, tied": config(
        Attention(n_heads=3, d_head=4, output=False, bias=False), tied=True, unembed_bias=False
    ),
    "no heads": config(Conv(lags=4, mlp=MLP(16))),
    "GPT": config(WITH_MLP, WITH_MLP),
    "attention only": config(HEADS, HEADS),
}
CUTS: list[Any] = [None, 3, -1, [0, 5], (2, 6)]


def cached(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ActivationCache]:
    return zoo.from_config(STREAMS[name], dtype).run_with_cache(zoo.tokens())


def ends(cache: ActivationCache) -> list[tuple[int, bool, str]]:
    """Every place a decomposition may end at: (layer, mlp_input, the hook of its stream)."""
    places = []
    for layer, block in enumerate(cache.model.blocks):
        places.append((layer, False, f"blocks.{layer}.hook_resid_pre"))
        if block.mlp is not None:
            places.append((layer, True, f"blocks.{layer}.hook_resid_mid"))
    last = len(cache.model.blocks)
    return [*places, (last, False, f"blocks.{last - 1}.hook_resid_post")]


def cut_of(stream: Tensor, pos_slice: Any) -> Tensor:
    return Slice(pos_slice).apply(stream, dim=-2)


@pytest.mark.parametrize("pos_slice", CUTS)
@pytest.mark.parametrize("name", STREAMS)
def test_components_add_up_to_the_stream(name: str, pos_slice: Any) -> None:
    _, cache = cached(name)
    for layer, mlp_input, hook in ends(cache):
        stream = cut_of(cache[hook], pos_slice)
        arguments: dict[str, Any] = {"mlp_input": mlp_input, "pos_slice": pos_slice}
        stacks = [
            cache.decompose_resid(layer, **arguments),
            cache.get_full_resid_decomposition(layer, **arguments),
            cache.get_full_resid_decomposition(layer, expand_neurons=False, **arguments),
        ]
        if not mlp_input:
            stacks.append(cache.stack_head_results(layer, incl_remainder=True, pos_slice=pos_slice))
        for stack in stacks:
            assert stack.shape[1:] == stream.shape
            assert_close(stack.sum(0), stream, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", STREAMS)
def test_normalised_components_add_up_to_what_the_layer_reads(name: str) -> None:
    # Folded, a norm has no gain and no offset: what it gives is exactly what the layer reads.
    model = zoo.from_config(STREAMS[name]).fold_norms()
    _, cache = model.run_with_cache(zoo.tokens())
    for layer, mlp_input, hook in ends(cache):
        norm = "ln_final" if layer == len(model.blocks) else f"blocks.{layer}.ln{1 + mlp_input}"
        read = cache.cache_dict.get(f"{norm}.hook_normalized", cache[hook])
        for pos_slice in CUTS:
            arguments: dict[str, Any] = {"apply_ln": True, "pos_slice": pos_slice}
            stacks = [
                cache.decompose_resid(layer, mlp_input, **arguments),
                cache.get_full_resid_decomposition(layer, mlp_input, **arguments),
            ]
            if not mlp_input:
                stacks.append(cache.stack_head_results(layer, incl_remainder=True, **arguments))
            for stack in stacks:
                assert_close(stack.sum(0), cut_of(read, pos_slice), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", STREAMS)
def test_attributions_add_up_to_the_logits(name: str, dtype: torch.dtype) -> None:
    logits, cache = cached(name, dtype)
    model, targets = cache.model, zoo.tokens(seed=8)
    expected = logits.gather(-1, targets[..., None])[..., 0]
    bias = model.logit_bias(targets)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5 * logits.abs().max().item()
    for stack in (
        cache.decompose_resid(),
        cache.get_full_resid_decomposition(),
        cache.stack_head_results(incl_remainder=True),
    ):
        attributions = cache.logit_attrs(stack, targets)
        assert attributions.shape == stack.shape[:-1]
        assert_close(attributions.sum(0) + bias, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["conv and MLPs", "rms"])
def test_attributions_of_one_position_and_of_differences(name: str) -> None:
    logits, cache = cached(name)
    stack = cache.decompose_resid(pos_slice=-1)
    right, wrong = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    attributions = cache.logit_attrs(stack, right, wrong, pos_slice=-1)
    rows = torch.arange(3)
    difference = logits[rows, -1, right] - logits[rows, -1, wrong]
    bias = cache.model.logit_bias(right) - cache.model.logit_bias(wrong)
    assert_close(attributions.sum(0) + bias, difference, rtol=0, atol=1e-10)
    whole = cache.logit_attrs(cache.decompose_resid(), 7).sum(0) + cache.model.logit_bias(7)
    assert_close(whole, logits[..., 7], rtol=0, atol=1e-10)
    second = cache.logit_attrs(cache.decompose_resid(), 7, batch_slice=1).sum(0)
    assert_close(second + cache.model.logit_bias(7), logits[1, :, 7], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", STREAMS)
def test_accumulated_streams_are_the_streams(name: str) -> None:
    logits, cache = cached(name)
    n_layers = len(cache.model.blocks)
    stack, labels = cache.accumulated_resid(return_labels=True)
    assert labels == [*(f"{layer}_pre" for layer in range(n_layers)), "final_post"]
    for layer in range(n_layers):
        assert torch.equal(stack[layer], cache["resid_pre", layer])
    assert torch.equal(stack[-1], cache["resid_post", -1])
    lens = cache.accumulated_resid(apply_ln=True)
    assert_close(lens[-1] @ cache.model.W_U + cache.model.b_U, logits, rtol=0, atol=1e-10)
    early = cache.accumulated_resid(1, apply_ln=True, pos_slice=2)
    assert early.shape == (2, 3, zoo.D_MODEL)


def test_the_streams_between_mixer_and_mlp_can_be_asked_for() -> None:
    _, cache = cached("GPT")
    stack, labels = cache.accumulated_resid(2, incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    assert torch.equal(stack[3], cache["resid_mid", 1])
    _, labels = cache.accumulated_resid(1, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "1_mid"]
    _, mixed = cached("conv and MLPs")
    assert mixed.accumulated_resid(1, incl_mid=True).shape[0] == 3
    with pytest.raises(ValueError, match="incl_mid: block 1 has no MLP"):
        mixed.accumulated_resid(2, incl_mid=True)


def test_padded_batches_decompose_too() -> None:
    model = zoo.from_config(STREAMS["conv and MLPs"])
    mask = zoo.right_padding(N_CTX, 4, 2)
    _, cache = model.run_with_cache(zoo.tokens(), attention_mask=mask)
    for stack in (cache.decompose_resid(), cache.get_full_resid_decomposition()):
        assert_close(stack.sum(0), cache["resid_post", -1], rtol=0, atol=1e-10)
