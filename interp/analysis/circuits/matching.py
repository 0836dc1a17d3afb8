"""Which token at the query is looked for as which token at the key, head by head?

For rows e_w of an embedding and maps Q and K, a head's circuit between tokens is
`c[w, u] = (e_w Q) (e_u K)ᵀ`, of size d_vocab x d_vocab. It is never built: every number here comes
from products with d_model or d_head columns and from covariances of that size.
"""

import functools
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interp.analysis.circuits.head_maps import (
    HeadMaps,
    at_distance,
    check_distance,
    head_maps,
    lag_names,
)
from interp.analysis.circuits.reads import HeadReads, read_heads
from interp.models.shapes import Tokens
from interp.results.result import Result, versions
from interp.views import view

ROWS_AT_ONCE = 4_096


def match_table(
    model: Any,
    *,
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    distance: int = 0,
) -> Result:
    """Which token at the query is looked for as which token at the key, head by head?

    The cell of query lag i and key lag j is `match[i, j]` of the circuit `W_E Q_i K_jᵀ W_Eᵀ`: by
    how many deviations a token's score with itself stands out among its scores with all tokens, on
    average over the vocabulary. Cell (0, 0) is a duplicate-token head's; an induction head above a
    convolution, or with smeared keys, matches at (0, 1): the current token with the token before
    the key.

    Args:
        model: one of ours, or a `TransformerBridge` whose attention weights can be read.
        tokens: `[batch pos]` for the mean scales of the norms; default: those that the embedding
            implies.
        frequencies: how frequent each token is, for that; default: all alike.
        distance: with rotary positions the circuit depends on t - s; give it at this distance.

    Returns:
        A Result over "head", "query_lag", "key_lag" and "measure":

        * `match`;
        * `shuffled`: its deviation, around 0, over all shuffles of the vocabulary at the key;
        * `rotated`: its deviation, around 0, if the key's map read the embedding through a random
          (Haar) rotation. Random weights lie within this one (those of one lag twice, through the
          same convolution, within √2 of it), but not within the other, which is narrow where the
          vocabulary is large.

        NaN for a lag that a head does not have.

    Raises:
        ValueError: no heads, or maps that cannot be read; a head whose stream holds no embedding;
            a head that reads what other layers wrote through a convolution and a norm, without
            tokens.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> match_table(model).sel(head="L1H0", measure="match").values.shape
    (2, 2)
    """
    viewed = view(model)
    if not viewed.heads:
        raise ValueError(f"{viewed.name} has no attention layer, so nothing is matched")
    heads = head_maps(viewed)
    check_distance(viewed, heads.values(), distance)
    for head in heads.values():
        head.check_embedding()
    viewed.check_finite()
    rows = Rows.of(viewed.embedding)
    read = read_heads(heads.values(), tokens, frequencies)
    found = {
        label: head_matches(head, read[label], rows, distance) for label, head in heads.items()
    }
    shape = [max(one[c].lags for one in read.values()) for c in ("q", "k")]
    values = np.full((len(found), *shape, 3), np.nan)
    for cells, one in zip(values, found.values(), strict=True):
        n_query, n_key = one.value.shape
        cells[:n_query, :n_key] = torch.stack([one.value, one.shuffled, one.rotated], -1).numpy()
    return Result(
        "match_table",
        values,
        ("head", "query_lag", "key_lag", "measure"),
        labels={
            "head": tuple(found),
            "query_lag": lag_names(shape[0]),
            "key_lag": lag_names(shape[1]),
            "measure": ("match", "shuffled", "rotated"),
        },
        chance=np.array([0.0, np.nan, np.nan]),
        unit="deviations",
        provenance={
            "model": viewed.name,
            "circuit": "W_E Q_i K_j^T W_E^T",
            "scales": next(iter(read.values()))["q"].scales_from,
            **at_distance(heads.values(), distance),
            "versions": versions(),
        },
    )


def diagonal_preference(
    model: Any,
    *,
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    distance: int = 0,
) -> Result:
    """How far does a head look for the query's own token, at the key itself?

    Cell (0, 0) of `match_table`, which says what the arguments are and what is refused. A
    duplicate-token head has it. `Circuit.diagonal_preference` asks the same of any one circuit.

    Returns:
        A Result over "head" and "measure": `match`, its two deviations by chance `shuffled` and
        `rotated`, and `z`, the match over the larger of these.

    Source: ours.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> diagonal_preference(model).sel(measure="z").labels["head"]
    ('L0H0', 'L0H1', 'L0H2', 'L0H3')
    """
    found = match_table(model, tokens=tokens, frequencies=frequencies, distance=distance)
    return _cell(found, "diagonal_preference", "lag 0")


def previous_token_match(
    model: Any,
    *,
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    distance: int = 0,
) -> Result:
    """How far does a head look for the query's own token just before the key, as induction needs?

    Cell (0, 1) of `match_table`, which says what the arguments are and what is refused.

    Returns:
        A Result over "head" and "measure", as `diagonal_preference` gives; NaN for a head whose
        keys read one token only.

    Raises:
        ValueError: no head's keys read the token before, by a convolution or by smeared keys. In a
            model of attention layers an earlier head brings it: ask `composition_scores`.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> previous_token_match(model).labels["measure"]
    ('match', 'shuffled', 'rotated', 'z')
    """
    found = match_table(model, tokens=tokens, frequencies=frequencies, distance=distance)
    if "lag 1" not in found.labels["key_lag"]:
        raise ValueError(
            f"{found.provenance['model']}: no head's keys read the token before, by a convolution "
            "or by smeared keys; where an earlier head brings it, ask composition_scores"
        )
    return _cell(found, "previous_token_match", "lag 1")


def _cell(table: Result, name: str, key_lag: str) -> Result:
    cell = table.sel(query_lag="lag 0", key_lag=key_lag)
    match, *nulls = cell.values.T
    return Result(
        name,
        np.stack([match, *nulls, match / np.maximum(*nulls)], axis=1),
        ("head", "measure"),
        labels={"head": cell.labels["head"], "measure": (*cell.labels["measure"], "z")},
        chance=np.array([0.0, np.nan, np.nan, 0.0]),
        unit="deviations",
        provenance=table.provenance,
    )


def head_matches(head: HeadMaps, read: HeadReads, rows: "Rows", distance: int = 0) -> "Matches":
    """The matches of every query lag with every key lag of one head."""
    return matches(rows, head.turned(read["q"].maps, distance), read["k"].maps)


@dataclass(frozen=True, eq=False)
class Matches:
    r"""`match` for every pair of a query map and a key map, and how far chance would take it.

    Write q_w = e_w Q and k_u = (e_u - ē) K for all n rows, V_k for the covariance of the k_u, and

        s_w = q_w / sqrt(q_w V_k q_wᵀ),

    each query over the deviation of its scores with all keys. Then row w of the circuit, its mean
    taken off and divided by its deviation, is `z[w, u] = s_w k_uᵀ`, and

        value = 1/n Σ_w s_w k_wᵀ.

    **Shuffled keys.** For a random permutation π, T = 1/n Σ_w z[w, π(w)] has mean 0 and, exactly
    (Hoeffding 1951), the variance `1/(n² (n - 1)) Σ_wu d[w, u]²`, d being z with the means of its
    rows and columns taken off. That is `(s_w - s̄) k_uᵀ`, since the keys are centred, and so

        shuffled² = tr(V_s V_k) / (n - 1),

    * V_s = 1/n Σ_w (s_w - s̄)ᵀ (s_w - s̄): how the standardised queries vary;
    * V_k: how the keys vary;
    * n - 1: a pairing of n rows with n columns has that many free choices.

    **Rotated keys.** With Σ the covariance of the rows and E[w] = (e_w - ē) Σ^(-½) the whitened
    ones, keys are `E K̃`, K̃ = Σ^½ K. A Haar rotation R of the whitened space turns them into
    `E R K̃`, whose covariance, K̃ᵀ K̃ = V_k, is the same: so s_w stays, and `T = 1/n Σ_w s_w
    (E[w] R K̃)ᵀ` is linear in R. As E[R_ab R_cd] = δ_ac δ_bd / r in r dimensions, T has mean 0 and

        rotated² = tr(C Σ⁺ Cᵀ V_k) / r,

    * C = 1/n Σ_w s_wᵀ (e_w - ē): what standardised queries and the rows of the embedding share;
    * Σ⁺: the whitening, a pseudo-inverse where the rows do not fill their space;
    * V_k: how the keys vary, whatever the rotation;
    * r = rank Σ: the dimensions that R turns. R is one rotation for all rows, so that this does not
      shrink as the vocabulary grows, as `shuffled` does.

    Both distributions are close to normal.

    Attributes:
        value: the mean over rows; NaN where every row is flat.
        shuffled: the deviation over all n! shuffles of the keys' vocabulary. Would a random pairing
            of tokens stand out as much from this circuit?
        rotated: the deviation over Haar rotations of what the key map reads, which keep both maps'
            spectra. Would maps that know nothing of each other match as well?
    """

    value: Float64[Tensor, "query key"]
    shuffled: Float64[Tensor, "query key"]
    rotated: Float64[Tensor, "query key"]


def matches(
    rows: "Rows",
    queries: Float[Tensor, "query _ d_head"],
    keys: Float[Tensor, "key d_model d_head"],
    asking: "Rows | None" = None,
) -> Matches:
    """How far the diagonal of `asking Q Kᵀ rowsᵀ` stands out of its rows, for every Q and K.

    Each row is standardised: a constant per query changes no attention. 0 is no preference; at z
    the token itself scores z deviations above the row's mean.

    Args:
        rows: `Rows.of(model.W_E)`, or of any other table such as W_pos.
        queries: maps from a row to a query.
        keys: maps from a row to a key.
        asking: the rows that queries read, as many as `rows`; default: the same rows.

    >>> one_hot = torch.eye(10, dtype=torch.float64)
    >>> matches(Rows.of(one_hot), one_hot[None], one_hot[None]).value  # (1 - 0.1) / 0.3
    tensor([[3.]], dtype=torch.float64)
    """
    asking = rows if asking is None else asking
    of_keys = rows.covariance_of(keys)
    # A row with less variance than rounding leaves prefers no token to another.
    flat = rows.rounding * torch.einsum("iab,jab->ij", asking.square_of(queries), of_keys)
    chunks = zip(asking.table.split(ROWS_AT_ONCE), rows.table.split(ROWS_AT_ONCE), strict=True)
    return functools.reduce(
        operator.add, (_Sums.over(*two, rows, queries, keys, of_keys, flat) for two in chunks)
    ).finish(rows, of_keys)


@dataclass(frozen=True, eq=False)
class Rows:
    """A table with the mean, covariance and pseudo-inverse of its rows, all rows counting alike."""

    table: Float[Tensor, "vocab d_model"]
    mean: Float64[Tensor, " d_model"]
    covariance: Float64[Tensor, "d_model d_model"]
    inverse: Float64[Tensor, "d_model d_model"]
    rank: int

    @classmethod
    def of(cls, table: Float[Tensor, "vocab d_model"]) -> "Rows":
        """Measured once, for any number of circuits."""
        table = table.detach()
        mean = table.mean(0, dtype=torch.float64)
        covariance = torch.zeros(len(mean), len(mean)).to(mean)
        for chunk in table.split(ROWS_AT_ONCE):
            centred = chunk.double() - mean
            covariance += centred.T @ centred / len(table)
        values, vectors = torch.linalg.eigh(covariance)
        wide = torch.promote_types(table.dtype, torch.float32)
        kept = values > values[-1] * len(values) * torch.finfo(wide).eps
        inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
        return cls(table, mean, covariance, inverse, int(kept.sum()))

    @property
    def dtype(self) -> torch.dtype:
        """What the products over all rows, most of the work, are computed in."""
        return torch.promote_types(self.table.dtype, torch.float32)

    @property
    def rounding(self) -> float:
        """The relative error of those products."""
        return torch.finfo(self.dtype).eps * self.table.shape[1]

    def covariance_of(self, maps: Float[Tensor, "map d_model d_head"]) -> Tensor:
        """Of the mapped rows."""
        maps = maps.double()
        return maps.mT @ self.covariance @ maps

    def square_of(self, maps: Float[Tensor, "map d_model d_head"]) -> Tensor:
        """The mean square of the mapped rows."""
        mean = self.mean @ maps.double()
        return self.covariance_of(maps) + mean[:, :, None] * mean[:, None, :]


@dataclass(frozen=True, eq=False)
class _Sums:
    """Over some rows, for every query map i and key map j, of the standardised queries s_w.

    `diagonal` adds up s_w k_wᵀ, `total` s_w, `square` s_wᵀ s_w and `cross` s_wᵀ (e_w - ē).
    """

    diagonal: Float64[Tensor, "query key"]
    total: Float64[Tensor, "query key d_head"]
    square: Float64[Tensor, "query key d_head d_head"]
    cross: Float64[Tensor, "query key d_head d_model"]

    @classmethod
    def over(
        cls,
        asking: Float[Tensor, "vocab _"],
        chunk: Float[Tensor, "vocab d_model"],
        rows: Rows,
        queries: Float[Tensor, "query _ d_head"],
        keys: Float[Tensor, "key d_model d_head"],
        of_keys: Float[Tensor, "key d_head d_head"],
        flat: Float[Tensor, "query key"],
    ) -> "_Sums":
        chunk = chunk.to(rows.dtype)
        centred = chunk - rows.mean.to(chunk)
        query = (asking.to(chunk) @ queries.to(chunk))[:, None]
        key = centred @ keys.to(chunk)
        variance = ((query @ of_keys.to(chunk)) * query).sum(-1, keepdim=True)
        unlike = variance > flat[..., None, None].to(chunk)
        standing = torch.where(unlike, query / variance.sqrt(), 0.0)
        return cls(
            (standing * key).sum((-2, -1)).double(),
            standing.sum(-2).double(),
            (standing.mT @ standing).double(),
            (standing.mT @ centred).double(),
        )

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.diagonal + other.diagonal,
            self.total + other.total,
            self.square + other.square,
            self.cross + other.cross,
        )

    def finish(self, rows: Rows, of_keys: Float[Tensor, "key d_head d_head"]) -> Matches:
        """The mean over rows and the deviations of the two null distributions: see `Matches`."""
        n = len(rows.table)
        mean, cross = self.total / n, self.cross / n
        among_queries = self.square / n - mean[..., :, None] * mean[..., None, :]
        shuffled = (among_queries * of_keys).sum((-2, -1)) / max(1, n - 1)
        rotated = ((cross @ rows.inverse @ cross.mT) * of_keys).sum((-2, -1)) / rows.rank
        found = torch.stack([self.diagonal / n, shuffled.sqrt(), rotated.sqrt()])
        found[:, (self.square == 0).all(-1).all(-1)] = torch.nan
        return Matches(*found.cpu())
