"""The next-token loss for training: never `[batch, pos, vocab]` logits at once."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.models import HookedSequenceModel
from interp.models.shapes import Stream, Tokens

LOGITS_AT_ONCE = 2**24
"""How many logits one chunk may hold: 64 MB in float32, and enough to keep a GPU busy."""

Unembedding = Float[Tensor, "d_model vocab"]
Bias = Float[Tensor, " vocab"]
PerToken = Float[Tensor, "batch pos"]


class NextTokenLoss(nn.Module):
    """Our model as the Trainer wants one: a batch in, a dictionary with the loss out.

    It has no `config`, which the Trainer would take for a Hugging Face one and write to.
    """

    def __init__(self, model: HookedSequenceModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tokens) -> dict[str, Tensor]:
        """The mean next-token loss of a batch of blocks.

        When evaluating, also `measures` `[batch 2]`: each block's mean loss, and the share of its
        tokens that the model finds the likeliest.
        """
        stream = self.model(input_ids, stop_at_layer=len(self.model.blocks))
        x, targets = self.model.ln_final(stream)[:, :-1], input_ids[:, 1:]
        unembed = self.model.unembed
        if self.training:
            return {"loss": linear_cross_entropy(x, unembed.W_U, unembed.b_U, targets)}
        measures = loss_and_accuracy(x, unembed.W_U, unembed.b_U, targets)
        blocks = torch.stack([each.mean(dim=1) for each in measures], dim=-1)
        return {"loss": blocks[:, 0].mean(), "measures": blocks}


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
        dtype = _product_dtype(x)
        d_x, d_W = torch.empty_like(x), torch.zeros_like(W_U)
        d_b = None if b_U is None else torch.zeros_like(b_U)
        total = x.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            weight = W_U.to(dtype)
            for part in _chunks(x, W_U):
                rows, indices = x[part].to(dtype), targets[part, None]
                log_p = _logits(rows, weight, b_U).log_softmax(-1)
                total -= log_p.gather(-1, indices).sum()
                ones = log_p.new_ones(indices.shape)
                # softmax - one-hot: the gradient of the sum, in the place of the log-probabilities
                residual = log_p.exp_().scatter_add_(-1, indices, -ones)
                if d_b is not None:
                    d_b += residual.sum(0)
                residual = residual.to(dtype)
                d_x[part] = residual @ weight.T
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


@torch.no_grad()
def loss_and_accuracy(
    x: Stream, W_U: Unembedding, b_U: Bias | None, targets: Tokens
) -> tuple[PerToken, PerToken]:
    """Each token's cross-entropy in nats, and 1 where it has the largest logit, else 0."""
    rows, indices, shape = x.flatten(0, 1), targets.flatten(), targets.shape
    dtype, losses, correct = _product_dtype(x), [], []
    with torch.autocast(x.device.type, enabled=False):
        weight = W_U.to(dtype)
        for part in _chunks(rows, W_U):
            logits = _logits(rows[part].to(dtype), weight, b_U)
            losses.append(F.cross_entropy(logits, indices[part], reduction="none"))
            correct.append((logits.argmax(-1) == indices[part]).to(logits.dtype))
    return torch.cat(losses).view(shape), torch.cat(correct).view(shape)


def _logits(rows: Tensor, weight: Tensor, b_U: Tensor | None) -> Tensor:
    """At least float32, whatever the product was computed in: a softmax needs it."""
    logits = rows @ weight
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if b_U is None else logits.add_(b_U)


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _chunks(x: Tensor, W_U: Tensor) -> list[slice]:
    rows = max(1, LOGITS_AT_ONCE // W_U.shape[-1])
    return [slice(start, start + rows) for start in range(0, len(x), rows)]
