"""Running a model under hooks: where a pass begins, what is captured on its way, what it gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.description import Sublayer, Writer
from interp.models.shapes import Stream, Tokens
from interp.views.outputs import Outputs

Hook = tuple[str, Callable[..., Tensor | None]]
"""The name of a hook point, and a function of the activation and the hook point, as
`model.hooks(fwd_hooks=...)` takes them."""


class EverythingCaptured(Exception):  # noqa: N818 - a signal, no error
    """Raised in a hook, and caught where the model is run: nothing above is worth computing."""


def keeping(names: Collection[str], kept: dict[str, Tensor], stop: bool = False) -> list[Hook]:
    """Hooks that keep the activations at these hook points in `kept`, in the order of the model.

    Where gradients are on, what is kept has one: a model's lowest activations are made leaves.

    Args:
        names: the hook points.
        kept: what it is put in, by name.
        stop: whether the pass ends with the last of them (`EverythingCaptured`).
    """

    def keeper(name: str) -> Hook:
        def keep(activation: Tensor, hook: Any) -> Tensor | None:
            differentiated = torch.is_grad_enabled()
            if differentiated and not activation.requires_grad:
                activation = activation.detach().requires_grad_()
            kept[name] = activation
            if stop and len(kept) == len(names):
                raise EverythingCaptured
            # A bridge may show another form of what goes on: what is kept has to go on itself.
            return activation if differentiated else None

        return name, keep

    return [keeper(name) for name in names]


@dataclass(frozen=True, eq=False)
class Start:
    """Where a forward pass begins, if not at the tokens.

    Layer l makes of the stream x that enters it, with y what its mixers write,

        x' = x + y,    x_next = x' + MLP(x'),

    each reading through its norm (with post-norm, x' = norm(x + y), and so on; without residual,
    x' = y). Of what is known already nothing is run again:

    * x: `stream`, from a run in which nothing below had been changed;
    * y: `mixed`, the mixers' own run with the change put in; without it they run, from x;
    * MLP(x') and all layers above: run as always, and their hook points with them.

    Attributes:
        layer: the first layer to run; the number of layers where only the end is left.
        stream: what enters it.
        mixed: what its heads or lags write, where that is known already and need not be computed.
    """

    layer: int
    stream: Stream
    mixed: Stream | None = None


class Running(ABC):
    """A model that can be run under hooks, and says what writes to its stream."""

    model: Any
    n_ctx: int
    d_vocab: int
    n_layers: int

    @property
    @abstractmethod
    def heads(self) -> dict[int, int]:
        """The number of heads of every layer that has any."""

    @property
    @abstractmethod
    def writers(self) -> tuple[Writer, ...]:
        """All that writes to the residual stream, in order: embeddings, then layer by layer."""

    @abstractmethod
    def sublayers(self, layer: int) -> tuple[Sublayer, ...]:
        """What a layer reads and writes: its sublayers in order, with terms, readers and norms."""

    @property
    @abstractmethod
    def hooks(self) -> Collection[str]:
        """The names of all hook points that can be hooked."""

    @abstractmethod
    def output_map(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """From what a layer's heads attended to, to what they write to the stream: W_O."""

    @abstractmethod
    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """What a layer's attention writes whatever its heads attended to: b_O."""

    @abstractmethod
    def outputs(
        self,
        tokens: Tokens,
        *,
        positions: Sequence[int] | None = None,
        start: Start | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Outputs:
        """Run the model under hooks, and give what it predicts at some positions (default: all).

        With a start, what lies below it is not run, and of the tokens only the number matters.
        """
