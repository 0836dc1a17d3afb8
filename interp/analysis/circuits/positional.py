"""How much of a head's scores do positions decide, whatever the tokens are?"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from interp.analysis.circuits.head_maps import HeadMaps, Route, head_maps
from interp.analysis.circuits.reads import MeanScales, Moments, embedding_moments, mean_scales
from interp.models.description import Attending
from interp.models.linear import wide
from interp.models.shapes import Stream, Tokens
from interp.results.result import Result, versions
from interp.views import View, view

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
        ValueError: no such head, a bridge, a head that reads through gates, a model or a layer
            without positions, a length that does not fit, a scale that cannot be known without
            tokens, or a weight that is NaN.

    Source: ours.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> positional_circuit(model, "L0H3").values.shape
    (2, 16)
    """
    viewed = view(model)
    maps = head_maps(viewed, [head])[head]
    _check(maps)
    n = min(viewed.n_ctx, DEFAULT_POSITIONS) if n_positions is None else n_positions
    if not 2 <= n <= viewed.n_ctx:
        raise ValueError(f"n_positions is {n}, but must be 2 to n_ctx={viewed.n_ctx}")
    query, key = maps.routes["q"], maps.routes["k"]
    if query.factors and query.layer > 0 and tokens is None:
        raise ValueError(
            f"{head} reads {query.source}, which is not the embedding: how its norm scales it "
            "cannot be told from the weights. Give tokens"
        )
    viewed.check_finite()
    scales = mean_scales(maps, tokens)
    moments = embedding_moments(viewed, None)
    stream, attending = _average_stream(viewed, moments.mean, n), maps.attending
    queries, keys = (
        _Channel.of(way, stream, moments, scales).turned(attending) for way in (query, key)
    )
    causal = viewed.causal(maps.layer)
    scores, variances = _scores(queries, keys, attending.scale, causal)
    by_positions, by_tokens = float(scores.square().nanmean()), float(variances.nanmean())
    total = by_positions + by_tokens
    distances = range(0 if causal else 1 - n, n)
    return Result(
        "positional_circuit",
        torch.stack([_along(scores, distances), _along(variances, distances).sqrt()]).cpu().numpy(),
        ("term", "distance"),
        labels={"term": TERMS, "distance": tuple(distances)},
        unit="attention score",
        provenance={
            "model": viewed.name,
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

    def turned(self, attending: Attending) -> "_Channel":
        """With rotary positions in it, if there are any."""
        if attending.rotate is None:
            return self
        n, width = self.mean.shape
        turns = attending.turned(torch.eye(width).to(self.mean).expand(1, n, -1, -1))[0]
        return _Channel(
            (self.mean[:, None] @ turns)[:, 0],
            turns.mT @ self.covariances[self.which] @ turns,
            torch.arange(n, device=turns.device),
        )


def _check(head: HeadMaps) -> None:
    """Refuse a head whose scores positions do not reach, or not by a way that is known."""
    viewed = head.viewed
    if not viewed.starts_from_tables:
        raise ValueError(
            f"{viewed.name}: what enters its first layer beside tokens and positions, and which "
            'biases its heads have, is not known here; qk_circuit(model, "L0H0", '
            'basis="positions") has the circuit between positions'
        )
    if head.attending.bias is not None:
        raise ValueError(
            f"{viewed.name} adds a bias to the scores of {head.label}, which may depend on tokens "
            "and on positions: what comes from positions alone is not known. lag_circuits(model, "
            f'"{head.label}", tokens) has the bias on a sequence'
        )
    head.check_embedding()
    if not head.turns:
        head.check_positions()
    if gated := [conv.layer for conv in head.convs if not conv.is_implied]:
        raise ValueError(
            f"{head.label} reads through the gates of layer {gated[0]}, which tokens and positions "
            "set together: there is no score from positions alone"
        )


def _average_stream(viewed: View, token: Float64[Tensor, " d_model"], n: int) -> Stream:
    stream = token.to(wide(viewed.embedding)).expand(1, n, -1)
    table = viewed.position_table
    if table is None or not viewed.positions_enter_stream:
        return stream
    return stream + wide(table)[:n]


def _scores(
    queries: _Channel, keys: _Channel, scale: float, causal: bool
) -> tuple[Float64[Tensor, "query key"], Float64[Tensor, "query key"]]:
    r"""The average token's score and the variance that tokens add; NaN where no query looks.

    A query is q_t + x and a key k_s + y: q_t and k_s are those of average tokens, x and y what the
    tokens that are read add, independent with mean 0 and covariances Q_t and K_s. Relative to the
    query's mean over the keys it sees, were all of them average (m_t = mean of k_s over these),

        score(t, s) = (q_t + x) (k_s + y - m_t)ᵀ scale,

    of which `q_t (k_s - m_t)ᵀ scale` is the mean. The rest has, cross terms being uncorrelated,

        variance(t, s) = ((k_s - m_t) Q_t (k_s - m_t)ᵀ + q_t K_s q_tᵀ + tr(Q_t K_s)) scale²,

    * (k_s - m_t) Q_t (k_s - m_t)ᵀ: the query's tokens, which meet the key's position;
    * q_t K_s q_tᵀ: the key's tokens, which meet the query's position;
    * tr(Q_t K_s) = E[(x yᵀ)²]: the two meeting each other, as different tokens at every distance.
    """
    n, device = len(queries.mean), queries.mean.device
    sees = torch.ones(n, n, dtype=torch.bool, device=device)
    sees = sees.tril() if causal else sees
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
        (scores * scale).where(sees, torch.nan),
        (variances * scale**2).where(sees, torch.nan),
    )


def _spread(
    rows: Float64[Tensor, "pos d_head"], covariance: Float64[Tensor, "d_head d_head"]
) -> Float64[Tensor, " pos"]:
    return ((rows @ covariance) * rows).sum(-1)


def _along(entries: Float64[Tensor, "query key"], distances: range) -> Float64[Tensor, " _"]:
    return torch.stack([entries.diagonal(-distance).mean() for distance in distances])
