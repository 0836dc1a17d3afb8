"""The one cross-entropy from a stream: never `[batch, pos, vocab]` logits at once."""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.models.shapes import Stream, Tokens

LOGITS_AT_ONCE = 2**23
"""How many logits one chunk may hold: 32 MB in float32, and enough to keep a GPU busy."""

IN_CACHE = 2_500_000
"""Few enough to stay in a processor's cache."""

Unembedding = Float[Tensor, "d_model vocab"]
Bias = Float[Tensor, " vocab"]
PerToken = Float[Tensor, "batch pos"]


def linear_cross_entropy(
    x: Stream, W_U: Unembedding, b_U: Bias | None, targets: Tokens
) -> Float[Tensor, ""]:
    """The mean cross-entropy (nats) of `x W_U + b_U`, whose logits are made a chunk at a time.

    Their gradient is known as soon as they are, so it is taken at once and they are dropped: there
    are never `[batch, pos, vocab]` of them, and none is computed twice. The price is that the loss
    can be differentiated once only.

    >>> x, W_U = torch.randn(2, 3, 4), torch.randn(4, 9)
    >>> targets = torch.tensor([[0, 1, 2], [3, 4, 8]])
    >>> plain = F.cross_entropy((x @ W_U).flatten(0, 1), targets.flatten())
    >>> torch.allclose(linear_cross_entropy(x, W_U, None, targets), plain)
    True
    """
    loss = _LinearCrossEntropy.apply(x.flatten(0, 1), W_U, b_U, targets.flatten())
    return cast(Tensor, loss)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_U: Tensor, b_U: Tensor | None, targets: Tensor) -> Tensor:
        d_x, d_W = torch.empty_like(x), torch.zeros_like(W_U)
        d_b = None if b_U is None else torch.zeros_like(b_U)
        unembedding = _Unembedding(x, W_U, b_U)
        total = x.new_zeros((), dtype=unembedding.memory.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for part in unembedding.parts:
                rows, logits = unembedding(x[part])
                losses, residual = _losses_and_gradient(logits, targets[part, None])
                total += losses.sum()
                if d_b is not None:
                    d_b += residual.sum(0)
                residual = residual.to(rows.dtype)
                d_x[part] = residual @ unembedding.weight.T
                d_W += rows.T @ residual
        ctx.save_for_backward(d_x, d_W, d_b)
        return total / len(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        scale = gradient / len(ctx.saved_tensors[0])
        return *(None if each is None else each * scale for each in ctx.saved_tensors), None


def _losses_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's loss, and `softmax - one-hot`: the gradient of their sum, in the logits' place."""
    chosen, top = logits.gather(-1, targets), logits.amax(-1, keepdim=True)
    sums = logits.sub_(top).exp_().sum(-1, keepdim=True)
    gradient = logits.div_(sums).scatter_add_(-1, targets, -torch.ones_like(chosen))
    return sums.log() + top - chosen, gradient


def loss_and_accuracy(
    x: Stream, W_U: Unembedding, b_U: Bias | None, targets: Tokens, at_once: int | None = None
) -> tuple[PerToken, PerToken]:
    """Each token's cross-entropy in nats, and 1 where it has the largest logit, else 0.

    Args:
        x: the normalised stream.
        W_U: the unembedding.
        b_U: its bias, or None.
        targets: the token to predict at each position.
        at_once: how many logits are made at a time; default `LOGITS_AT_ONCE`.
    """
    losses, correct = [], []
    for logits, wanted in _logits_and_targets(x, W_U, b_U, targets, at_once):
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        correct.append((logits.argmax(-1) == wanted).to(logits.dtype))
    return torch.cat(losses).view(targets.shape), torch.cat(correct).view(targets.shape)


def losses_alone(
    x: Stream, W_U: Unembedding, b_U: Bias | None, targets: Tokens, at_once: int | None = None
) -> PerToken:
    """The first of the two, without a look for the largest logit."""
    losses = [
        F.cross_entropy(logits, wanted, reduction="none")
        for logits, wanted in _logits_and_targets(x, W_U, b_U, targets, at_once)
    ]
    return torch.cat(losses).view(targets.shape)


def _logits_and_targets(
    x: Stream, W_U: Unembedding, b_U: Bias | None, targets: Tokens, at_once: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    stream, indices = x.flatten(0, 1), targets.flatten()
    unembedding = _Unembedding(stream, W_U, b_U, at_once)
    for part in unembedding.parts:
        with torch.autocast(x.device.type, enabled=False):
            yield unembedding(stream[part])[1], indices[part]


class _Unembedding:
    """`x W_U + b_U` for some rows at a time, all in the same memory unless they are differentiated.

    Products are in autocast's precision; logits are at least float32, as a softmax needs it.
    """

    def __init__(self, x: Tensor, W_U: Tensor, b_U: Tensor | None, at_once: int | None = None):
        device, (n_rows, d_vocab) = x.device.type, (len(x), W_U.shape[-1])
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        n = max(1, (at_once or LOGITS_AT_ONCE) // d_vocab)
        self.parts = [slice(start, start + n) for start in range(0, n_rows, n)]
        self.weight, self.bias = W_U.to(dtype), b_U
        wide = torch.promote_types(dtype, torch.float32)
        self.memory = x.new_empty(min(n, n_rows), d_vocab, dtype=wide)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rows as they are multiplied, and their logits."""
        rows, logits = x.to(self.weight.dtype), self.memory[: len(x)]
        if torch.is_grad_enabled() and (rows.requires_grad or self.weight.requires_grad):
            logits = (rows @ self.weight).to(logits.dtype)
            return rows, logits if self.bias is None else logits + self.bias
        if rows.dtype == logits.dtype:
            torch.mm(rows, self.weight, out=logits)
        else:
            logits.copy_(rows @ self.weight)
        return rows, logits if self.bias is None else logits.add_(self.bias)
