"""Attention in three prices: fused, fused with its log-sum-exp, and spelled out.

The log-sum-exp over the keys turns any single score into a probability, `exp(score - lse)`, so an
analysis that wants a few entries of a pattern never has to build the pattern.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from interp.models.shapes import LogSumExp, Scores

HeadFirst = Float[Tensor, "batch head query d_head"]
KeysFirst = Float[Tensor, "batch head key d_head"]
ValuesFirst = Float[Tensor, "batch head key _"]  # of a width of their own, if need be
Written = Float[Tensor, "batch head query _"]
AttentionMask = Bool[Tensor, "#batch 1 query key"]


@dataclass(frozen=True)
class Visibility:
    """Which keys a query may see: not padding and, if causal, not in its future."""

    causal: bool
    key_mask: Bool[Tensor, "batch key"] | None = None

    def mask(self, n_pos: int, device: torch.device) -> AttentionMask | None:
        """The mask as a tensor, True where a query may look; None where it may look everywhere."""
        visible = None
        if self.causal:
            visible = torch.ones(n_pos, n_pos, dtype=torch.bool, device=device).tril()[None, None]
        if self.key_mask is not None:
            keys = self.key_mask[:, None, None, :].expand(-1, -1, n_pos, -1)
            visible = keys if visible is None else visible & keys
        return visible


def fused(
    q: HeadFirst,
    k: KeysFirst,
    v: ValuesFirst,
    visibility: Visibility,
    scale: float,
    dropout: float = 0.0,
) -> Written:
    """softmax(q kᵀ scale) v in one kernel. A query that sees no key gets zero."""
    if visibility.key_mask is None:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=visibility.causal, dropout_p=dropout, scale=scale
        )
    mask = visibility.mask(q.shape[-2], q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


def fused_with_log_sum_exp(
    q: HeadFirst, k: KeysFirst, v: ValuesFirst, visibility: Visibility, scale: float
) -> tuple[Written, LogSumExp]:
    """The same output, and the log-sum-exp of each query's scores, without a T x T tensor.

    PyTorch's CPU flash kernel computes both but returns the second through a private operator only,
    which wants equal widths of q, k and v and no padding. Everything else goes through `chunked`.
    """
    private = q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and visibility.key_mask is None
    if not private:
        return chunked(q, k, v, visibility, scale)
    z, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, visibility.causal, scale=scale
    )
    return z, lse


def log_sum_exp(
    q: HeadFirst, k: KeysFirst, causal: bool, scale: float, chunk: int = 64
) -> LogSumExp:
    """The log-sum-exp of each query's scores alone: half the work where no output is wanted.

    One sequence and a few queries at a time stay in a cache, and a causal query is not even
    compared with the keys of its future.
    """
    wide, n_pos = torch.promote_types(q.dtype, torch.float32), q.shape[-2]
    sums = q.new_empty(q.shape[:-1], dtype=wide)
    for one_q, one_k, row in zip(q, k, sums, strict=True):
        # The longest first: the memory of one chunk then has room for every later one.
        for start in reversed(range(0, n_pos, chunk)):
            some = slice(start, start + chunk)
            keys = one_k[:, : start + chunk] if causal else one_k
            scores = (one_q[:, some].to(wide) * scale) @ keys.to(wide).transpose(-1, -2)
            if causal:
                diagonal = scores[..., start:]
                future = torch.ones(diagonal.shape[1:], dtype=torch.bool, device=q.device).triu(1)
                diagonal.masked_fill_(future, -torch.inf)
            # The softmax kernel keeps the sum to itself, but any one score gives it away.
            row[:, some] = scores[..., 0] - scores.log_softmax(-1)[..., 0]
    return sums


def chunked(
    q: HeadFirst,
    k: KeysFirst,
    v: ValuesFirst,
    visibility: Visibility,
    scale: float,
    chunk: int = 256,
) -> tuple[Written, LogSumExp]:
    """The same as `fused_with_log_sum_exp` on public operators: a block of queries at a time.

    A query that sees no key gets a zero output and a log-sum-exp of minus infinity.
    """
    outputs, sums = [], []
    for start in range(0, q.shape[-2], chunk):
        scores = (q[..., start : start + chunk, :] @ k.transpose(-1, -2)) * scale
        scores = _hide(scores, visibility, first_query=start)
        outputs.append(pattern_of(scores) @ v)
        sums.append(scores.logsumexp(-1))
    return torch.cat(outputs, dim=-2), torch.cat(sums, dim=-1)


def masked_scores(q: HeadFirst, k: KeysFirst, visibility: Visibility, scale: float) -> Scores:
    """The scores q kᵀ scale, minus infinity where a query may not look."""
    return _hide((q @ k.transpose(-1, -2)) * scale, visibility)


def pattern_of(
    scores: Float[Tensor, "batch head some key"],
) -> Float[Tensor, "batch head some key"]:
    """The softmax over keys; a query that sees no key attends to nothing instead of giving NaN."""
    unseeing = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(unseeing, 0.0).softmax(-1).masked_fill(unseeing, 0.0)


def _hide(
    scores: Float[Tensor, "batch head some key"], visibility: Visibility, first_query: int = 0
) -> Float[Tensor, "batch head some key"]:
    n_queries, n_keys = scores.shape[-2:]
    if visibility.causal:
        queries = torch.arange(first_query, first_query + n_queries, device=scores.device)
        future = torch.arange(n_keys, device=scores.device) > queries[:, None]
        scores = scores.masked_fill(future, -torch.inf)
    if visibility.key_mask is not None:
        scores = scores.masked_fill(~visibility.key_mask[:, None, None, :], -torch.inf)
    return scores
