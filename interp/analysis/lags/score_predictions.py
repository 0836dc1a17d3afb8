"""How far an account of a head's queries or keys predicts the scores that the model computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.reads import HeadReads
from interp.analysis.lags.key_grams import HeardHead
from interp.models.layers import MultiHeadAttention
from interp.models.linear import later
from interp.models.shapes import Stream

Vectors = Float[Tensor, "batch pos d_head"]
Account = Literal["q", "k", "smeared"]
"""Queries from the weights' account, keys from it, or keys that are literally smeared."""


@dataclass(frozen=True)
class ScoreErrors:
    """Sums of squares over pairs of positions, each query's mean taken off."""

    variation: float
    errors: Mapping[Account, float]

    def __add__(self, other: "ScoreErrors") -> "ScoreErrors":
        return self._with(other, 1)

    def __sub__(self, other: "ScoreErrors") -> "ScoreErrors":
        return self._with(other, -1)

    def _with(self, other: "ScoreErrors", sign: int) -> "ScoreErrors":
        errors: dict[Account, float] = {
            name: error + sign * other.errors[name] for name, error in self.errors.items()
        }
        return ScoreErrors(self.variation + sign * other.variation, errors)

    def predicted(self) -> dict[Account, float]:
        """R² of each account; NaN where scores never vary."""
        whole = self.variation or float("nan")
        return {name: 1 - error / whole for name, error in self.errors.items()}


def score_errors(
    read: HeadReads,
    mixture: tuple[float, float],
    attn: MultiHeadAttention,
    x: Stream,
    heard: HeardHead,
) -> ScoreErrors:
    """Of one head on sequences of the stream x.

    Args:
        read: the weights' account.
        mixture: how much of the common map the lags 0 and 1 of literally smeared keys have.
        attn: the layer, for its rotary positions and its mask.
        x: the stream that the account reads.
        heard: what the head computed.
    """
    q, k, n_pos = heard["q"], heard["k"], x.shape[1]
    smeared = smeared_maps(read["k"].maps, mixture)
    missed: dict[Account, tuple[Vectors, Vectors]] = {
        "q": (q - _written(read["q"].maps, x) - read["q"].bias[:n_pos], k),
        "k": (q, k - _written(read["k"].maps, x) - read["k"].bias[:n_pos]),
        "smeared": (q, k - _written(smeared, x) - read["k"].bias[:n_pos]),
    }
    start = max(read["q"].lags, read["k"].lags) - 1
    return ScoreErrors(
        _variation(q, k, attn, start),
        {account: _variation(*pair, attn, start) for account, pair in missed.items()},
    )


def smeared_maps(
    maps: Float[Tensor, "lag d_model d_head"], mixture: tuple[float, float]
) -> Float[Tensor, "2 d_model d_head"]:
    """The best fit of lags 0 and 1 by one map: u_i Σ_j u_j K_j."""
    weights = torch.tensor(mixture).to(maps)[:, None, None]
    return weights * (weights * maps[:2]).sum(0)


def _written(maps: Float[Tensor, "lag d_model d_head"], x: Stream) -> Vectors:
    return torch.stack([later(x @ one, lag) for lag, one in enumerate(maps)]).sum(0)


def _variation(q: Vectors, k: Vectors, attn: MultiHeadAttention, start: int) -> float:
    """Σ over queries and visible keys of (score - the query's mean score)², from `start` on."""
    if attn.rotary is not None:
        q, k = attn.rotary(q[:, :, None])[:, :, 0], attn.rotary(k[:, :, None])[:, :, 0]
    scores = q[:, start:].double() @ k[:, start:].double().mT
    visible = torch.ones(scores.shape[-2:], dtype=scores.dtype, device=scores.device)
    visible = visible.tril() if attn.causal else visible
    means = (scores * visible).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)
    return float(((scores - means) * visible).square().sum())
