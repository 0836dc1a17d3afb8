"""Models to measure, and the attention of any of them as an explicit tensor."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from interp.models import MLP, Attention, Conv, HookedSequenceModel, ModelConfig

HEADS = Attention(n_heads=2, d_head=4)
WRITES_LATER = Attention(n_heads=2, d_head=4, taps_o=3, mlp=MLP(16, taps=2))
OFFSET = Attention(n_heads=2, d_head=4, key_offset=True)
SMEARED = Attention(n_heads=2, d_head=4, smear=True)
LAYERS = {
    "conv-attn": {"layers": (Conv(), HEADS)},
    "attn-attn": {"layers": (HEADS, Attention(n_heads=3, d_head=4))},
    "smeared": {"layers": (SMEARED,)},
    "gpt": {"layers": (Attention(n_heads=2, d_head=4, mlp=MLP(16)),) * 2, "norm_place": "post"},
    "rotary": {"layers": (SMEARED, HEADS), "positions": "rotary", "norm": "rms"},
    "shortformer": {"layers": (HEADS, Conv(lags=3), HEADS), "positions": "shortformer"},
    "output taps": {"layers": (WRITES_LATER, OFFSET), "positions": "rotary"},
    "sees its future": {"layers": (Attention(n_heads=2, d_head=4, causal=False), HEADS)},
}


def build(kind: str, *, d_vocab: int = 40, n_ctx: int = 110, seed: int = 0) -> HookedSequenceModel:
    """A small model in float64 in which no weight, gain, bias or α has its initial value."""
    config = ModelConfig(d_vocab=d_vocab, d_model=8, n_ctx=n_ctx, **LAYERS[kind])
    model = HookedSequenceModel(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def heads_of(patterns: Iterable[Tensor]) -> np.ndarray:
    """The patterns of all layers as one array, `[batch head query key]`."""
    return torch.cat(list(patterns), dim=1).numpy()


@torch.no_grad()
def patterns(model: HookedSequenceModel, tokens: Tensor) -> np.ndarray:
    """Every head's attention, spelled out."""
    _, cache = model.run_with_cache(tokens)
    return heads_of(cache["pattern", layer] for layer in model.attention_layers)


def mean_of(
    attention: np.ndarray, tokens: Tensor, pairs: Iterable[tuple[int, int, int]], divisor: int
) -> np.ndarray:
    """The (sequence, query, key) entries, added up one by one, over the divisor: `[batch head]`."""
    total = np.zeros((len(tokens), attention.shape[1]))
    for sequence, query, key in pairs:
        for head in range(attention.shape[1]):
            total[sequence, head] += attention[sequence, head, query, key]
    return total / divisor


def never_run(model: HookedSequenceModel) -> HookedSequenceModel:
    """The model, failing the test if anything runs it: a refusal comes before any work."""

    def run(*args: object, **kwargs: object) -> None:
        raise AssertionError("a forward pass before the refusal")

    model.forward = run
    return model
