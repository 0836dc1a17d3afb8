"""Whole attention patterns, for looking at. Scores never need them."""

from typing import Any

import numpy as np
import torch

from interp.analysis.probes.probe import check_one_sequence
from interp.models.shapes import Tokens
from interp.results.result import Result, versions
from interp.views import Entries, view

LONGEST = 512


def attention_pattern(model: Any, tokens: Tokens, layer: int) -> Result:
    """Where does each head of a layer look, from every token of one sequence?

    Args:
        model: one of ours, or a `TransformerBridge`.
        tokens: one sequence, `[1 pos]`, of at most 512 tokens: a picture of more cannot be read.
        layer: which layer; every layer counts, conv layers too.

    Returns:
        A Result over "head", "query" and "key": probabilities, each query's adding up to 1. Its
        `plot()` is a view to click through.

    Raises:
        ValueError: several or too long sequences, a layer without heads, or a weight that is NaN.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> pattern = attention_pattern(model, torch.arange(5)[None], layer=0)
    >>> pattern.values.shape, bool(np.allclose(pattern.values.sum(-1), 1))
    ((2, 5, 5), True)
    """
    viewed = view(model)
    check_one_sequence(viewed, tokens, LONGEST, "a pattern is drawn")
    n_pos = tokens.shape[1]
    if layer not in viewed.heads:
        raise ValueError(
            f"layer {layer} has no heads; the layers that have are {tuple(viewed.heads)}"
        )
    viewed.check_finite()
    pattern = np.zeros((viewed.heads[layer], n_pos, n_pos))
    visible = torch.ones(n_pos, n_pos).tril() if viewed.causal(layer) else torch.ones(n_pos, n_pos)
    queries, keys = visible.nonzero(as_tuple=True)

    def read(captured_layer: int, entries: Entries) -> None:
        if captured_layer == layer:
            pattern[:, queries.numpy(), keys.numpy()] = (
                entries(queries, keys)[0].double().cpu().numpy()
            )

    viewed.read_attention(tokens, read)
    positions = tuple(range(n_pos))
    return Result(
        "attention_pattern",
        pattern,
        ("head", "query", "key"),
        labels={
            "head": tuple(f"L{layer}H{head}" for head in range(viewed.heads[layer])),
            "query": positions,
            "key": positions,
        },
        unit="probability",
        provenance={
            "model": viewed.name,
            "tokens": tokens[0].tolist(),
            "words": viewed.words(tokens[0].tolist()),
            "versions": versions(),
        },
    )
