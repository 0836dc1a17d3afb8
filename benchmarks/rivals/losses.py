"""Three ways from the stream to the loss, and how much memory one step of each takes. Linux only.

    python benchmarks/rivals/losses.py 50000 interp

A process of its own, because the most that a process ever held never goes down again.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.models.losses import linear_cross_entropy
from rivals.memory import megabytes

BATCH, LENGTH, D_MODEL = 8, 256, 128


class Inputs(NamedTuple):
    x: Tensor
    W_U: Tensor
    b_U: Tensor
    targets: Tensor


def inputs(d_vocab: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, LENGTH - 1, D_MODEL, generator=generator, requires_grad=True)
    W_U = torch.randn(D_MODEL, d_vocab, generator=generator).mul_(0.1).requires_grad_()
    targets = torch.randint(d_vocab, (BATCH, LENGTH - 1), generator=generator)
    return Inputs(x, W_U, torch.zeros(d_vocab, requires_grad=True), targets)


def whole(x: Tensor, W_U: Tensor, b_U: Tensor, targets: Tensor) -> Tensor:
    """All logits at once, as everybody writes it."""
    return F.cross_entropy(F.linear(x, W_U.T, b_U).flatten(0, 1), targets.flatten())


def torch_chunked(x: Tensor, W_U: Tensor, b_U: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's own chunks, of the size that it picks. PyTorch 2.13 and newer."""
    return F.linear_cross_entropy(
        x.flatten(0, 1),
        W_U.T,
        targets.flatten(),
        linear_bias=b_U,
        options=torch.nn.LinearCrossEntropyOptions(),
    )


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "whole": whole,
    "torch": torch_chunked,
    "interp": linear_cross_entropy,
}


def step(name: str, given: Inputs) -> Tensor:
    """Forward and backward; the gradient of W_U."""
    loss = LOSSES[name](*given)
    return torch.autograd.grad(loss, given[:3])[1]


def main() -> None:
    torch.set_num_threads(1)
    d_vocab, name = int(sys.argv[1]), sys.argv[2]
    step(name, inputs(8))  # what is loaded at the first call is no part of it
    given = inputs(d_vocab)
    before = megabytes("VmRSS")
    step(name, given)
    print(megabytes("VmHWM") - before)


if __name__ == "__main__":
    main()
