"""What a model says of itself: what writes to its residual stream, where, and in which order.

In the words of Elhage et al. (2021) every sublayer reads the residual stream and writes to it, so
the stream is the sum of what was written. A view lists the writers of its model. What a layer
writes, what lies between two ends of a path, and what a logit is a sum of follow from that list.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from jaxtyping import Float
from torch import Tensor

Order = tuple[int, int]
"""Where in a model something happens: the layer (-1 below the first), and the step within it."""


class Step(IntEnum):
    """What happens within a layer, in this order."""

    BEFORE = 0
    READ = 1
    WRITTEN = 2
    MIDDLE = 3
    MLP = 4
    MLP_WRITTEN = 5
    AFTER = 6


@dataclass(frozen=True)
class Writer:
    """Something that adds a term to the residual stream.

    Attributes:
        label: as units and parts of results are written: `embed`, `L1.attn`, `L3.mamba`, `L2.mlp`.
        hook: the hook point where its term stands, behind whatever norm is applied to it.
        layer: whose it is; -1 for embeddings.
        kind: what it is within its layer: `attn`, `conv`, `mamba`, `mlp`; or `embed`, `pos_embed`.
        module: the module that computes it; hook points inside begin with this name.
        is_mlp: whether it reads the stream after its layer's mixers have written, which read it
            side by side.
        scale: what the activation at the hook point is multiplied with before it is added.
    """

    label: str
    hook: str
    layer: int
    kind: str
    module: str
    is_mlp: bool = False
    scale: float = 1.0

    @classmethod
    def embedding(cls, kind: str, hook: str | None = None, scale: float = 1.0) -> "Writer":
        """Of what enters the first layer."""
        return cls(kind, hook or f"hook_{kind}", -1, kind, kind, scale=scale)

    @property
    def reads(self) -> Order:
        """What is written before this changes it."""
        return self.layer, Step.MLP if self.is_mlp else Step.READ

    @property
    def writes(self) -> Order:
        """What reads after this sees it changed."""
        return self.layer, Step.MLP_WRITTEN if self.is_mlp else Step.WRITTEN

    def contains(self, hook: str) -> bool:
        """Whether a hook point is its own or lies inside its module."""
        return hook == self.hook or hook.startswith(f"{self.module}.")

    def term(self, activation: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """What is added to the stream, from the activation at its hook point."""
        return activation if self.scale == 1.0 else activation * self.scale


def of_layer(writers: Iterable[Writer], layer: int) -> tuple[Writer, ...]:
    """All that a layer writes; the embeddings for layer -1."""
    return tuple(writer for writer in writers if writer.layer == layer)


def between(writers: Iterable[Writer], first: Order, last: Order) -> Iterator[Writer]:
    """All that reads after `first` was written and has written before `last` reads."""
    return (writer for writer in writers if first < writer.reads and writer.writes < last)
