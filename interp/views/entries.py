"""Single entries of attention patterns, read from a pattern or without there being one."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from interp.models.layers import MultiHeadAttention
from interp.models.shapes import Heads, Scores

Index = Int[Tensor, " entry"]
Entries = Callable[[Index, Index], Float[Tensor, "batch head entry"]]
"""The attention that each query of the first list pays to the key in the same place of the
second."""

ENTRIES_AT_ONCE = 256
"""How many entries are multiplied out in one go: few enough for a cache, and for long lists."""


def entries_of(pattern: Scores) -> Entries:
    """Entries read from a whole pattern."""
    return lambda queries, keys: pattern[:, :, queries, keys]


def entries_from_parts(
    attn: MultiHeadAttention, q: Heads, k: Heads, lse: Float[Tensor, "batch query head"]
) -> Entries:
    """Entries as exp(score - log-sum-exp): one dot product each, and no pattern."""
    wide = torch.promote_types(q.dtype, torch.float32)

    def some(queries: Index, keys: Index) -> Float[Tensor, "batch entry head"]:
        scores = (_rows(q, queries).to(wide) * _rows(k, keys).to(wide)).sum(-1) * attn.scale
        return torch.exp(scores - _rows(lse, queries).to(wide))

    def read(queries: Index, keys: Index) -> Float[Tensor, "batch head entry"]:
        pairs = zip(queries.split(ENTRIES_AT_ONCE), keys.split(ENTRIES_AT_ONCE), strict=True)
        return torch.cat([some(*pair) for pair in pairs], dim=1).transpose(1, 2)

    return read


def _rows(
    x: Shaped[Tensor, "batch pos *rest"], index: Index
) -> Shaped[Tensor, "batch entry *rest"]:
    """x[:, index], as a view where the index runs through a range or stands still."""
    first, steps = int(index[0]), index.diff()
    if (steps == 1).all():
        return x[:, first : first + len(index)]
    if (steps == 0).all():
        return x[:, first : first + 1].expand(-1, len(index), *x.shape[2:])
    return x[:, index]
