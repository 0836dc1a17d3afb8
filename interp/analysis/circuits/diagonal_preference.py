"""How much a token-to-token circuit prefers the token itself, without building the circuit.

For rows e_w of an embedding and maps Q and K, the circuit is `c[w, u] = (e_w Q) (e_u K)ᵀ`, of size
d_vocab x d_vocab. Every number here comes from products with d_model or d_head columns and from
covariances of that size.
"""

import functools
import operator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

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
