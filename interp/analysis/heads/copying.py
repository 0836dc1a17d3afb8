"""Does a head that attends to a token raise that token's own logit?"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from interp.analysis.circuits.head_maps import HeadMaps, lag_names, layer_heads, padded, unmapped
from interp.analysis.circuits.reads import mean_scales
from interp.models.checks import require_choice
from interp.models.linear import wide
from interp.models.shapes import Tokens
from interp.results.result import Result, versions
from interp.views import View, view

Variant = Literal["eigenvalue", "olsson"]
Values = Float[Tensor, "head lag d_model d_head"]
HeadOutputs = Float[Tensor, "head d_head d_model"]


def copying_score(
    model: Any,
    variant: Variant = "eigenvalue",
    *,
    n: int = 25,
    n_samples: int = 10,
    seed: int = 0,
    tokens: Tokens | None = None,
) -> Result:
    """How much does each head copy: raise the logit of the very token that it attends to?

    From the full OV circuit `W_E V_j W_O W_U` of every head, in [-1, 1]. Above convolutions there
    is one for each lag j: the token j before the attended position. The norms' gains and centring
    are folded in and biases left out; only the direct way to the logits counts.

    * `eigenvalue` (default; Elhage et al. 2021): Σλ / Σ|λ| over the circuit's eigenvalues. 1 is a
      circuit whose eigenvalues are all positive. Chance is 0.
    * `olsson` (after Olsson et al. 2022, whose wording leaves room; this is our reading): of n
      distinct random tokens, without a BOS, each is attended to in turn. What the head then adds
      to the logits of these n is centred over them, and what is negative is dropped: how much it
      raises each. The share that falls on the attended token itself, 0 where nothing is raised, is
      averaged; the score is twice the mean less 1. Chance is 2 / n - 1.

    Args:
        model: one of ours, or a `TransformerBridge`.
        variant: see above.
        n: tokens of one sample (`olsson` only).
        n_samples: samples of n tokens, over which the standard error is (`olsson` only).
        seed: of the samples.
        tokens: `[batch pos]`, to measure the norms' mean scales on.

    Returns:
        A Result over "value_lag" and "head"; NaN where a head has no such lag, and for `eigenvalue`
        where its circuit is zero.

    Raises:
        ValueError: no such variant, sizes that do not fit the vocabulary, a weight that is NaN, a
            model whose heads do not read the embedding or are not read by the unembedding, or a
            scale that cannot be known without tokens.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> scores = copying_score(model)
    >>> scores.labels["value_lag"], scores.labels["head"]
    (('lag 0', 'lag 1'), ('L1H0', 'L1H1'))
    """
    require_choice("variant", variant, Variant)
    viewed = view(model)
    _check_reach(viewed)
    drawn = _draw(viewed, n, n_samples, seed) if variant == "olsson" else None
    viewed.check_finite()
    W_E, W_U = wide(viewed.embedding), wide(viewed.unembedding[0])
    layers = (_maps(layer_heads(viewed, layer), tokens) for layer in viewed.heads)
    if drawn is None:
        through = (W_U @ W_E).double()
        samples = [_eigenvalue(*maps, through) for maps in layers]
    else:
        rows, columns = W_E[drawn], W_U.T[drawn]
        samples = [_olsson(*maps, rows, columns) for maps in layers]
    found = _beside_each_other(samples)
    details: dict[str, Any] = {
        "labels": {"value_lag": lag_names(found.shape[1]), "head": viewed.head_labels},
        "chance": np.asarray(0.0 if drawn is None else 2 / n - 1),
        "provenance": {
            "model": viewed.name,
            "variant": variant,
            **({} if drawn is None else {"n": n, "seed": seed}),
            "left_out": "; ".join(["biases", "scales that are common factors", *_unmapped(viewed)]),
            "versions": versions(),
        },
    }
    if drawn is None:
        return Result("copying_score", found[0].numpy(), ("value_lag", "head"), **details)
    return Result.from_samples("copying_score", found.numpy(), ("value_lag", "head"), **details)


def _unmapped(viewed: View) -> tuple[str, ...]:
    return unmapped(head for layer in viewed.heads for head in layer_heads(viewed, layer))


def _check_reach(viewed: View) -> None:
    if not viewed.heads:
        raise ValueError(f"{viewed.name} has no heads, so nothing can copy")
    for layer in viewed.heads:
        first = layer_heads(viewed, layer)[0]
        first.check_embedding()
        first.check_output()


def _draw(viewed: View, n: int, n_samples: int, seed: int) -> Int[Tensor, "batch pos"]:
    special = set(viewed.special_tokens)
    usable = torch.tensor([token for token in range(viewed.d_vocab) if token not in special])
    if not 2 <= n <= len(usable) or n_samples < 1:
        raise ValueError(
            f"n={n} tokens in n_samples={n_samples} samples cannot be drawn; give 2 to "
            f"{len(usable)} distinct tokens, and at least 1 sample"
        )
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(len(usable), generator=generator)[:n] for _ in range(n_samples)]
    return usable[torch.stack(picks)]


def _maps(heads: Sequence[HeadMaps], tokens: Tokens | None) -> tuple[Values, HeadOutputs]:
    """What the heads of a layer read of the embedding, and what the last norm leaves of W_O."""
    frozen, last = mean_scales(heads, tokens).scales, heads[0].viewed.last_norm
    below = heads[0].route("v").maps_below(frozen)
    maps = [head.route("v").end.maps(below, frozen) for head in heads]
    values = torch.stack(padded(maps))
    outputs = torch.stack([head.output for head in heads])
    return values, outputs if last is None else last.behind(outputs)


def _eigenvalue(
    values: Values, outputs: HeadOutputs, through: Float[Tensor, "d_model d_model"]
) -> Float64[Tensor, "1 lag head"]:
    # The circuit's eigenvalues other than 0 are those of its factors in the other order.
    circuits = outputs.double()[:, None] @ through @ values.double()
    eigenvalues = torch.linalg.eigvals(circuits)
    return (eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1)).T[None].cpu()


def _olsson(
    values: Values,
    outputs: HeadOutputs,
    rows: Float[Tensor, "batch pos d_model"],
    columns: Float[Tensor, "batch pos d_model"],
) -> Float64[Tensor, "batch lag head"]:
    written = torch.einsum("bpm,hlmd,hdn->blhpn", rows, values, outputs)
    logits = torch.einsum("blhpn,bqn->blhpq", written, columns).double()
    raised = (logits - logits.mean(-1, keepdim=True)).clamp(min=0)
    share = raised.diagonal(dim1=-2, dim2=-1) / raised.sum(-1)
    return 2 * share.nan_to_num(0).mean(-1).cpu() - 1


def _beside_each_other(
    layers: list[Float64[Tensor, "batch _ _"]],
) -> Float64[Tensor, "batch lag head"]:
    """All layers' heads, NaN at lags that a layer does not have."""
    lags = max(layer.shape[1] for layer in layers)
    padded = [
        torch.nn.functional.pad(layer, (0, 0, 0, lags - layer.shape[1]), value=torch.nan)
        for layer in layers
    ]
    return torch.cat(padded, dim=-1)
