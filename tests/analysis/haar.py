"""Random (Haar) rotations: drawn, and averaged over exactly."""

from collections.abc import Callable

import torch


def drawn(width: int, generator: torch.Generator) -> torch.Tensor:
    """One rotation or reflection, all alike likely."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def average(quadratic: Callable[[torch.Tensor], float], width: int) -> float:
    """What a quadratic form of a rotation is on average, exactly.

    E R_ij R_kl = δ_ik δ_jl / width, so it is that of every matrix with a single 1, added up, over
    the width.
    """
    units = torch.eye(width**2, dtype=torch.float64).unflatten(1, (width, width))
    return sum(float(quadratic(unit)) for unit in units) / width
