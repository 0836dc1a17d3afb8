"""How much a token-to-token circuit prefers the token itself, without building the circuit.

For rows e_w of an embedding and maps Q and K, the circuit is `c[w, u] = (e_w Q) (e_u K)ᵀ`, of size
d_vocab x d_vocab. Every number here comes from products with d_model or d_head columns and from
covariances of that size.
"""

import functools
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interp.analysis.reads import HeadReads, Reads, all_reads
from interp.analysis.result import Result, versions
from interp.analysis.routes import at_distance, check_distance, ours, place_of, turn_at
from interp.models import HookedSequenceModel
from interp.models.protocol import view
from interp.models.shapes import Tokens

ROWS_AT_ONCE = 4_096


@dataclass(frozen=True, eq=False)
class Matches:
    """`match` for every pair of a query map and a key map, and how far chance would take it.

    Both null distributions have mean 0 and are close to normal; these are their deviations.

    Attributes:
        value: mean over w of (c[w, w] - mean of row w) / deviation of row w; NaN where every row is
            flat.
        shuffled: over all d_vocab! shuffles of the keys' vocabulary (exact, Hoeffding 1951). Would
            a random pairing of tokens stand out as much from this circuit?
        rotated: over Haar rotations of what the key map reads, in the whitened embedding, which
            keep both maps' spectra. Would maps that know nothing of each other match as well?
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

    `diagonal` adds up s_w · k_w, `total` s_w, `square` s_wᵀ s_w and `cross` s_wᵀ e_w.
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
        """The mean over rows and the deviations of the two null distributions."""
        n = len(rows.table)
        mean, cross = self.total / n, self.cross / n
        among_queries = self.square / n - mean[..., :, None] * mean[..., None, :]
        shuffled = (among_queries * of_keys).sum((-2, -1)) / max(1, n - 1)
        rotated = ((cross @ rows.inverse @ cross.mT) * of_keys).sum((-2, -1)) / rows.rank
        found = torch.stack([self.diagonal / n, shuffled.sqrt(), rotated.sqrt()])
        found[:, (self.square == 0).all(-1).all(-1)] = torch.nan
        return Matches(*found.cpu())


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
        model: an interp model.
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
        TypeError: not an interp model.
        ValueError: no heads; a head whose stream holds no embedding; a head that reads what other
            layers wrote through a convolution and a norm, without tokens.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> match_table(model).sel(head="L1H0", measure="match").values.shape
    (2, 2)
    """
    model = ours(model)
    seen = view(model)
    if not seen.heads:
        raise ValueError(f"{seen.name} has no attention layer, so nothing is matched")
    check_distance(model, distance)
    seen.check_finite()
    read = all_reads(model, seen.head_labels, tokens, frequencies)
    for one in read.values():
        if why := embedding_is_hidden(model, one["q"]):
            raise ValueError(f"{one['q'].head}: {why}")
    rows = Rows.of(model.W_E)
    found = {head: head_matches(model, rows, one, distance) for head, one in read.items()}
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
            "query_lag": tuple(f"lag {lag}" for lag in range(shape[0])),
            "key_lag": tuple(f"lag {lag}" for lag in range(shape[1])),
            "measure": ("match", "shuffled", "rotated"),
        },
        chance=np.array([0.0, np.nan, np.nan]),
        unit="deviations",
        provenance={
            "model": seen.name,
            "circuit": "W_E Q_i K_j^T W_E^T",
            "scales": next(iter(read.values()))["q"].scales_from,
            **at_distance(model, distance),
            "versions": versions(),
        },
    )


def head_matches(
    model: HookedSequenceModel, rows: Rows, read: HeadReads, distance: int = 0
) -> Matches:
    """The matches of every query lag with every key lag of one head."""
    layer, _ = place_of(model, read["q"].head)
    turn = turn_at(model.attn(layer), distance)
    return matches(rows, read["q"].maps @ turn, read["k"].maps)


def embedding_is_hidden(model: HookedSequenceModel, read: Reads) -> str:
    """Why the embedding is no part of the stream that is read; empty where it is."""
    if read.layer == 0:
        return ""
    if not model.config.residual:
        return f"without a residual stream, {read.source} does not hold the embedding"
    if model.config.norm_place == "post":
        return f"{read.source} is normalised (post-norm), and the embedding is no term of it"
    return ""
