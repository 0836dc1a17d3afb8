"""The count of operations is PyTorch's own, where PyTorch counts; the rest by hand."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import interp
from interp.models import Attention, Conv
from interp.training.flops import flops_per_token

N_CTX, D, VOCAB = 32, 24, 50
SIZES = {"d_vocab": VOCAB, "d_model": D, "n_heads": 3, "n_ctx": N_CTX}


@pytest.mark.parametrize(
    ("model", "elementwise"),
    [
        (interp.HookedConvAttn(**SIZES), 0),
        (interp.HookedConvAttn(**SIZES, lags=3, d_head=6, positions="rotary"), 0),
        (interp.HookedConvAttn(**SIZES, depthwise=True), 2 * 2 * D),
        (interp.HookedAttnAttn(**SIZES, positions="shortformer"), 0),
        (interp.HookedAttn(**SIZES, tied=True), 0),
        (interp.HookedSmearedAttn(**SIZES), 2 * 2 * D),
        (interp.HookedGPT(**SIZES, n_layers=2, d_mlp=40), 0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_the_count_is_that_of_pytorch(model: interp.HookedSequenceModel, elementwise: int):
    tokens = torch.zeros(2, N_CTX, dtype=torch.long)
    # The counter does not know the CPU's fused kernel; this one is two matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens)
    ours = flops_per_token(model.config)
    # PyTorch counts no products channel by channel, and every key of a causal pattern.
    all_keys = ours.attention * N_CTX / ((N_CTX + 1) / 2)
    counted = ours.layers - elementwise + all_keys + ours.unembedding
    assert counter.get_total_flops() == pytest.approx(counted * tokens.numel(), rel=1e-12)


def test_every_preset_is_counted():
    presets = {name for name in dir(interp) if name.startswith("Hooked")}
    assert presets == {
        *("HookedConvAttn", "HookedAttnAttn", "HookedAttn", "HookedSmearedAttn", "HookedGPT"),
        "HookedSequenceModel",
    }


def test_a_model_without_causal_mask_or_output_map_by_hand():
    head = Attention(n_heads=1, d_head=4, output=False, causal=False, bias=False)
    layers = (Conv(lags=2), head)
    config = interp.ModelConfig(d_vocab=10, d_model=4, n_ctx=8, layers=layers, positions="none")
    flops = flops_per_token(config)
    assert flops.layers == 2 * (2 * 4 * 4 + 3 * 4 * 4)
    assert flops.attention == 2 * 2 * 4 * 8
    assert flops.unembedding == 2 * 4 * 10
    assert flops.total == flops.layers + flops.attention + flops.unembedding
