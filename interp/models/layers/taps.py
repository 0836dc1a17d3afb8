"""Taps: a trained scalar per channel and lag, on whatever a layer computes.

What is written to the stream through taps is Σ_j c_j ⊙ y_{t-j}: the convolution that Inkling puts
on what attention and MLPs write, and Canon layers C and D (Allen-Zhu 2512.17351). Missing tokens
are zero. A layer's constant bias is added behind the taps and is no part of y.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.description import ALL, Place, Term
from interp.models.hooks import HookPoint
from interp.models.linear import later
from interp.models.shapes import Stream


def current_alone(n: int, *shape: int) -> Float[Tensor, "lag *_"]:
    """Taps to begin with: the current token as it is, and nothing of those before."""
    taps = torch.zeros(n, *shape)
    taps[0] = 1
    return taps


def through_taps(x: Stream, taps: Float[Tensor, "lag d_model"], hook_lags: HookPoint) -> Stream:
    """Σ_j c_j ⊙ x_{t-j}; each lag's term is at the hook point if somebody listens."""
    terms = [later(x * row, lag) for lag, row in enumerate(taps)]
    if hook_lags.is_listened_to():
        return hook_lags(torch.stack(terms, dim=1)).sum(1)
    return sum(terms[1:], terms[0])


def lags_written(label: str, hook: str, taps: Tensor | None) -> Iterator[Term]:
    """What each lag adds to the stream, as a unit of its own: "L1.attn.lag1"."""
    for lag in range(0 if taps is None else len(taps)):
        yield Term(
            f"{label}.lag{lag}", "out.lag", Place(hook, (lag, ALL), position_axis=1), lag=lag
        )
