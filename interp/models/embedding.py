"""Tokens into the stream, positions, and the stream back into logits."""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.shapes import Logits, Positions, Stream, Tokens


class Embed(nn.Module):
    """One vector per token: `W_E [vocab d_model]`."""

    def __init__(self, d_vocab: int, d_model: int):
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(d_vocab, d_model))

    def forward(self, tokens: Tokens) -> Stream:
        """The tokens' rows of W_E."""
        return F.embedding(tokens, self.W_E)


class LearnedPositions(nn.Module):
    """One trained vector per position: `W_pos [n_ctx d_model]`."""

    def __init__(self, n_ctx: int, d_model: int):
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(n_ctx, d_model))

    def forward(self, n_pos: int) -> Positions:
        """The first rows of W_pos."""
        return self.W_pos[:n_pos]


class SinusoidalPositions(nn.Module):
    """Fixed sines and cosines of geometric wavelengths (Vaswani et al. 2017, section 3.5)."""

    W_pos: Tensor

    def __init__(self, n_ctx: int, d_model: int):
        super().__init__()
        table = sinusoids(n_ctx, d_model).to(torch.get_default_dtype())
        self.register_buffer("W_pos", table, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # A table that was rounded once would not be exact in a wider dtype.
        self.W_pos = sinusoids(*self.W_pos.shape).to(self.W_pos)
        return self

    def forward(self, n_pos: int) -> Positions:
        """The first rows of W_pos."""
        return self.W_pos[:n_pos]


def sinusoids(n_ctx: int, d_model: int) -> Positions:
    """sin(t / 10000^(2i/d)) in the even channels, the cosine in the odd ones; in float64."""
    channel = torch.arange(0, d_model, 2, dtype=torch.float64)
    return _waves(n_ctx, torch.exp(-math.log(10_000.0) * channel / d_model))


def crisp_sinusoids(n_ctx: int, d_model: int) -> Positions:
    """Sinusoids that tell neighbours apart: what shortformer positions start from; in float64.

    Wavelengths run geometrically from pi to 2.5 n_ctx positions, with amplitude 2. Vaswani's run to
    60,000: in a short context most of them hardly move from one position to the next, and a
    previous-token head stays blurred.

    >>> table = crisp_sinusoids(256, 64)
    >>> nearness = table[100] @ table[98:103].T / table[100].square().sum()
    >>> [round(float(x), 2) for x in nearness]  # Vaswani's: 0.88, 0.97, 1.0, 0.97, 0.88
    [0.58, 0.82, 1.0, 0.82, 0.58]
    """
    fastest, slowest = 2.0, 2 * math.pi / (2.5 * n_ctx)
    share = torch.arange(0, d_model, 2, dtype=torch.float64) / d_model
    return 2 * _waves(n_ctx, fastest * (slowest / fastest) ** share)[:, :d_model]


def _waves(n_ctx: int, rates: Tensor) -> Positions:
    angles = torch.arange(n_ctx, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Unembed(nn.Module):
    """The stream to logits: `W_U [d_model vocab]`, `b_U [vocab]`."""

    b_U: Tensor | None

    def __init__(self, d_model: int, d_vocab: int, bias: bool):
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(d_model, d_vocab))
        self.register_parameter("b_U", nn.Parameter(torch.zeros(d_vocab)) if bias else None)

    def forward(self, x: Stream) -> Logits:
        """x W_U + b_U."""
        return F.linear(x, self.W_U.T, self.b_U)


class TiedUnembed(nn.Module):
    """The embedding read backwards. W_U is a property, so no tensor is stored or saved twice."""

    b_U: Tensor | None

    def __init__(self, embed: Embed, bias: bool):
        super().__init__()
        self._embed = (embed,)  # in a tuple, so that PyTorch does not register it a second time
        d_vocab = embed.W_E.shape[0]
        self.register_parameter("b_U", nn.Parameter(torch.zeros(d_vocab)) if bias else None)

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The transposed embedding."""
        return self._embed[0].W_E.T

    def forward(self, x: Stream) -> Logits:
        """x W_Eᵀ + b_U."""
        return F.linear(x, self._embed[0].W_E, self.b_U)
