"""The end of a forward pass: predictions, computed no further than they are asked for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.losses import IN_CACHE, loss_and_accuracy, losses_alone
from interp.models.shapes import Logits, Stream, Tokens

Losses = Float[Tensor, "batch pos"]
Choices = Int[Tensor, "batch pos _"]
ChosenLogits = Float[Tensor, "batch pos _"]


class Outputs(ABC):
    """What a model predicts at some positions. In float32 or wider."""

    @abstractmethod
    def logits(self) -> Logits:
        """All logits: the most that can be asked for."""

    @abstractmethod
    def at(self, positions: Sequence[int]) -> "Outputs":
        """The same at some of the positions only."""

    @abstractmethod
    def losses_and_hits(self, targets: Tokens) -> tuple[Losses, Losses]:
        """The cross-entropy in nats of one target per position, and 1 where it is likeliest."""

    def losses(self, targets: Tokens) -> Losses:
        """The cross-entropy in nats of one target per position."""
        return self.losses_and_hits(targets)[0]

    @abstractmethod
    def logits_of(self, tokens: Choices) -> ChosenLogits:
        """The logits of a few tokens per position."""

    @abstractmethod
    def mean_logit(self) -> Losses:
        """The mean over the vocabulary, at each position."""


class OutputsOfLogits(Outputs):
    """Of a model that hands out logits only."""

    def __init__(self, logits: Logits):
        self._logits = wide(logits)

    def at(self, positions: Sequence[int]) -> "OutputsOfLogits":
        return OutputsOfLogits(at_positions(self._logits, positions))

    def logits(self) -> Logits:
        return self._logits

    def losses_and_hits(self, targets: Tokens) -> tuple[Losses, Losses]:
        targets = targets.to(self._logits.device)
        losses = F.cross_entropy(self._logits.transpose(1, 2), targets, reduction="none")
        return losses, (self._logits.argmax(-1) == targets).to(losses)

    def logits_of(self, tokens: Choices) -> ChosenLogits:
        return self._logits.gather(-1, tokens.to(self._logits.device))

    def mean_logit(self) -> Losses:
        return self._logits.mean(-1)


class OutputsOfStream(Outputs):
    """Of a model whose unembedding is at hand: losses never hold all logits at once."""

    def __init__(
        self,
        stream: Stream,
        W_U: Float[Tensor, "d_model vocab"],
        b_U: Float[Tensor, " vocab"] | None,
    ):
        # Gradients are asked of activations: weights are constants here.
        self._stream, self._W_U = stream, W_U.detach()
        self._b_U = None if b_U is None else b_U.detach()

    def at(self, positions: Sequence[int]) -> "OutputsOfStream":
        return OutputsOfStream(at_positions(self._stream, positions), self._W_U, self._b_U)

    def logits(self) -> Logits:
        return wide(F.linear(self._stream, self._W_U.T, self._b_U))

    def losses(self, targets: Tokens) -> Losses:
        targets = targets.to(self._stream.device)
        return losses_alone(self._stream, self._W_U, self._b_U, targets, IN_CACHE)

    def losses_and_hits(self, targets: Tokens) -> tuple[Losses, Losses]:
        targets = targets.to(self._stream.device)
        return loss_and_accuracy(self._stream, self._W_U, self._b_U, targets, IN_CACHE)

    def logits_of(self, tokens: Choices) -> ChosenLogits:
        # Dot products, and no unembedding.
        tokens = tokens.to(self._stream.device)
        directions = self._W_U.T[tokens]
        logits = wide(torch.einsum("bpm,bpcm->bpc", self._stream, directions))
        return logits if self._b_U is None else logits + self._b_U[tokens]

    def mean_logit(self) -> Losses:
        # One direction, and no unembedding.
        mean = wide(self._stream) @ wide(self._W_U).mean(1)
        return mean if self._b_U is None else mean + wide(self._b_U).mean()


class NoOutputs(Outputs):
    """Of a model without an unembedding: whatever is asked for is refused.

    Args:
        name: the model's.
    """

    def __init__(self, name: str):
        self._name = name

    def _refusal(self) -> ValueError:
        return ValueError(
            f"{self._name} gives no logits, so there are no losses and no predictions; ask what "
            "its heads attend to (head_scores, attention_pattern, the metric InductionScore), or "
            "give the model with its language-model head"
        )

    def logits(self) -> Logits:
        """Refused."""
        raise self._refusal()

    def at(self, positions: Sequence[int]) -> "NoOutputs":
        """There are none anywhere."""
        return self

    def losses_and_hits(self, targets: Tokens) -> tuple[Losses, Losses]:
        """Refused."""
        raise self._refusal()

    def logits_of(self, tokens: Choices) -> ChosenLogits:
        """Refused."""
        raise self._refusal()

    def mean_logit(self) -> Losses:
        """Refused."""
        raise self._refusal()


def wide(x: Tensor) -> Tensor:
    """In float32 or wider: 16 bits are too few for a loss."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def at_positions(
    stream: Stream, positions: Sequence[int] | None
) -> Float[Tensor, "batch chosen d_model"]:
    """The stream at these positions, as a view where they are all or a range."""
    if positions is None:
        return stream
    if isinstance(positions, range) and positions.step == 1:
        return stream[:, positions.start : positions.stop]
    return stream[:, list(positions)]
