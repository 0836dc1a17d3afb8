"""The optional second half of a block: two linear maps with a nonlinearity between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models.checks import require_choice, require_positive
from interp.models.hooks import HookPoint
from interp.models.layers.layer import fold_into, offset_through
from interp.models.shapes import Stream

Activation = Literal["relu", "gelu", "gelu_new", "silu"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


@dataclass(frozen=True)
class MLP:
    """Two linear maps with a nonlinearity between them, after a block's mixer.

    Args:
        d_mlp: neurons.
        activation: relu, gelu, gelu_new (GPT-2's approximation) or silu.
    """

    d_mlp: int
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        require_positive("MLP", d_mlp=self.d_mlp)
        require_choice("MLP", "activation", self.activation, Activation)

    def multiply_adds(self, d_model: int) -> int:
        """Products of activations with weights, per token."""
        return 2 * d_model * self.d_mlp


class FeedForward(nn.Module):
    """act(x W_in + b_in) W_out + b_out, with `hook_pre` and `hook_post` around the activation."""

    matrices: ClassVar[Mapping[str, str]] = {"W_in": "i o -> 1 o i", "W_out": "i o -> 1 o i"}

    def __init__(self, d_model: int, spec: MLP):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(d_model, spec.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(spec.d_mlp))
        self.W_out = nn.Parameter(torch.empty(spec.d_mlp, d_model))
        self.b_out = nn.Parameter(torch.zeros(d_model))
        self.activate = ACTIVATIONS[spec.activation]
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Stream) -> Stream:
        """What the neurons write to the stream."""
        pre = self.hook_pre(F.linear(x, self.W_in.T, self.b_in))
        post = self.hook_post(self.activate(pre))
        return F.linear(post, self.W_out.T, self.b_out)

    def fan_in(self, name: str, weight: Tensor) -> int:
        """How many numbers one output of this weight adds up."""
        return weight.shape[-2]

    @torch.no_grad()
    def fold(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Take the gain and the offset of the norm before it into W_in and b_in."""
        if offset is not None:
            self.b_in += offset_through(offset, self.W_in)
        self.W_in.copy_(fold_into(self.W_in, gain))
