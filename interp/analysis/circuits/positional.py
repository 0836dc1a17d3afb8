"""How much of a head's scores do positions decide, whatever the tokens are?"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from interp.analysis.circuits.frozen_factors import (
    MeanScales,
    Moments,
    embedding_moments,
    mean_scales,
)
from interp.analysis.circuits.head_maps import OurFolded
from interp.analysis.circuits.routes import Route, ours, route
from interp.models import HookedSequenceModel
from interp.models.layers import MultiHeadAttention
from interp.models.linear import wide
from interp.models.shapes import Stream, Tokens
from interp.results.result import Result, versions
from interp.views import view

DEFAULT_POSITIONS = 256
TERMS = ("positions", "tokens")


def positional_circuit(
    model: Any, head: str, *, n_positions: int | None = None, tokens: Tokens | None = None
) -> Result:
    """How much of a score comes from positions alone, by the distance from key to query?

    Every token is replaced by the average token, so that only positions differ: learned or
    sinusoidal ones in the stream, shortformer ones in queries and keys, or rotary ones. Biases are
    in it (a query's bias meets the key's position), and so is every lag of convolutions below. What
    is left is a score for each query and key. Each query's mean over the keys that it sees, were
    they all average tokens, is taken off: the softmax cancels it.

    Args:
        model: an interp model.
        head: "L1H3".
        n_positions: the sequence's length; default: n_ctx, at most 256.
        tokens: `[batch pos]`, to measure the norms' mean scales on. Needed where the head reads
            what other layers wrote through a norm. Of that stream, only the embedding and the
            positions are looked at.

    Returns:
        A Result over "term" and "distance" (0 is the query itself), as attention scores:

        * `positions`: the score from positions alone, averaged over queries;
        * `tokens`: the deviation that tokens add to it, for tokens drawn uniformly and
          independently: how much they can change what positions say. What the query reads and what
          the key reads are taken as different tokens at every distance.

        "share" in its provenance is the positions' share of the scores' variance over keys; None
        where scores do not vary.

    Raises:
        TypeError: not an interp model.
        ValueError: no such head, a model or a layer without positions, a length that does not fit,
            a scale that cannot be told without tokens, or a weight that is NaN.

    Source: ours.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> positional_circuit(model, "L0H3").values.shape
    (2, 16)
    """
    model = ours(model)
    seen, folded = view(model), OurFolded(view(model))
    layer, _ = folded.place(head)
    folded.check_embedding(head)
    attn = model.attn(layer)
    if attn.rotary is None:
        folded.position_table(head)
    n = min(seen.n_ctx, DEFAULT_POSITIONS) if n_positions is None else n_positions
    if not 2 <= n <= seen.n_ctx:
        raise ValueError(f"n_positions is {n}, but must be 2 to n_ctx={seen.n_ctx}")
    query, key = route(model, head, "q"), route(model, head, "k")
    if query.factors and query.layer > 0 and tokens is None:
        raise ValueError(
            f"{head} reads {query.source}, which is not the embedding: how its norm scales it "
            "cannot be told from the weights. Give tokens"
        )
    seen.check_finite()
    scales = mean_scales(model, query, tokens, None)
    moments = embedding_moments(model, None)
    stream = _average_stream(model, moments.mean, n)
    queries, keys = (_Channel.of(way, stream, moments, scales).turned(attn) for way in (query, key))
    scores, variances = _scores(queries, keys, attn)
    by_positions, by_tokens = float(scores.square().nanmean()), float(variances.nanmean())
    total = by_positions + by_tokens
    distances = range(0 if attn.causal else 1 - n, n)
    return Result(
        "positional_circuit",
        torch.stack([_along(scores, distances), _along(variances, distances).sqrt()]).cpu().numpy(),
        ("term", "distance"),
        labels={"term": TERMS, "distance": tuple(distances)},
        unit="attention score",
        provenance={
            "model": seen.name,
            "head": head,
            "n_positions": n,
            "share": by_positions / total if total > 0 else None,
            "scales": scales.origin,
            "versions": versions(),
        },
    )


@dataclass(frozen=True, eq=False)
class _Channel:
    """A head's queries or keys: the average token's at each position, and what tokens add.

    The first positions have fewer lags than the others, so that tokens add less there.
    `covariances` holds what differs, and `which` of them holds at each position.
    """

    mean: Float64[Tensor, "pos d_head"]
    covariances: Float64[Tensor, "_ d_head d_head"]
    which: Int[Tensor, " pos"]

    @classmethod
    def of(cls, way: Route, stream: Stream, moments: Moments, scales: MeanScales) -> "_Channel":
        n, d_model = stream.shape[1:]
        early = min(n, way.lags)
        parts = way.parts(stream, scales.scales).sum(0)[0]
        constants = way.constants(n, scales.scales).values()
        directions = torch.eye(d_model).to(stream)[:, None].expand(-1, early, -1)
        maps = way.parts(directions, scales.scales).double().transpose(1, 2)
        return cls(
            sum((constant[0] for constant in constants), start=parts).double(),
            (maps.mT @ moments.covariance @ maps).sum(0),
            torch.arange(n, device=stream.device).clamp(max=early - 1),
        )

    def turned(self, attn: MultiHeadAttention) -> "_Channel":
        """With rotary positions in it, if there are any."""
        if attn.rotary is None:
            return self
        n, width = self.mean.shape
        identity = torch.eye(width).to(wide(attn.W_Q)).expand(1, n, -1, -1)
        turns = attn.rotary(identity)[0].double()
        return _Channel(
            (self.mean[:, None] @ turns)[:, 0],
            turns.mT @ self.covariances[self.which] @ turns,
            torch.arange(n, device=turns.device),
        )


def _average_stream(
    model: HookedSequenceModel, token: Float64[Tensor, " d_model"], n: int
) -> Stream:
    stream = token.to(wide(model.W_E)).expand(1, n, -1)
    if model.pos_embed is None or not model.positions_enter_stream:
        return stream
    return stream + wide(model.W_pos)[:n]


def _scores(
    queries: _Channel, keys: _Channel, attn: MultiHeadAttention
) -> tuple[Float64[Tensor, "query key"], Float64[Tensor, "query key"]]:
    """The average token's score and the variance that tokens add; NaN where no query looks.

    Both are relative to the query's mean over the keys that it sees, of average tokens.
    """
    n, device = len(queries.mean), queries.mean.device
    sees = torch.ones(n, n, dtype=torch.bool, device=device)
    sees = sees.tril() if attn.causal else sees
    mean_keys = sees.double() @ keys.mean / sees.sum(1, keepdim=True)
    scores = queries.mean @ keys.mean.T - (queries.mean * mean_keys).sum(1, keepdim=True)
    by_queries = torch.stack([
        _spread(keys.mean - mean_key, queries.covariances[which])
        for mean_key, which in zip(mean_keys, queries.which, strict=True)
    ])  # fmt: skip
    by_keys = torch.stack([_spread(queries.mean, one) for one in keys.covariances])[keys.which].T
    by_both = queries.covariances.flatten(1) @ keys.covariances.flatten(1).T
    variances = by_queries + by_keys + by_both[queries.which][:, keys.which]
    return (
        (scores * attn.scale).where(sees, torch.nan),
        (variances * attn.scale**2).where(sees, torch.nan),
    )


def _spread(
    rows: Float64[Tensor, "pos d_head"], covariance: Float64[Tensor, "d_head d_head"]
) -> Float64[Tensor, " pos"]:
    return ((rows @ covariance) * rows).sum(-1)


def _along(entries: Float64[Tensor, "query key"], distances: range) -> Float64[Tensor, " _"]:
    return torch.stack([entries.diagonal(-distance).mean() for distance in distances])
