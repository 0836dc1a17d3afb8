"""The optional second half of a block: two linear maps with a nonlinearity between them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models.checks import require_fields, require_reach
from interp.models.description import Term
from interp.models.hooks import HookPoint
from interp.models.layers.sizes import Sizes
from interp.models.layers.taps import current_alone, lags_written, through_taps
from interp.models.norm import fold_into
from interp.models.shapes import KeyMask, Stream

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
        taps: how many tokens' sums each token gets: 3 are its own and those of the two before, each
            with a trained scalar per channel (a depthwise convolution on what the MLP writes;
            Inkling, Canon D). 1 leaves it as it is.
    """

    d_mlp: int
    activation: Activation = "gelu"
    taps: int = 1

    def __post_init__(self) -> None:
        require_fields(self)

    def check(self, index: int, config: Sizes) -> None:
        """The taps fit into the context."""
        require_reach(f"layer {index}: MLP", config.n_ctx, taps=self.taps)

    def multiply_adds(self, d_model: int) -> int:
        """Products of activations with weights, per token."""
        return d_model * (2 * self.d_mlp + (self.taps if self.taps > 1 else 0))


class FeedForward(nn.Module):
    """act(x W_in + b_in) W_out + b_out, with `hook_pre` and `hook_post` around the activation.

    With `taps_out [lag d_model]`, what the neurons write, but for b_out, goes through them; each
    lag's term is at `hook_out_lags [batch lag pos d_model]`, and the neurons of a padding position
    are zero.
    """

    matrices: ClassVar[Mapping[str, str]] = {"W_in": "i o -> 1 o i", "W_out": "i o -> 1 o i"}

    taps_out: Tensor | None

    def __init__(self, d_model: int, spec: MLP):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(d_model, spec.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(spec.d_mlp))
        self.W_out = nn.Parameter(torch.empty(spec.d_mlp, d_model))
        self.b_out = nn.Parameter(torch.zeros(d_model))
        self.activate = ACTIVATIONS[spec.activation]
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()
        taps = nn.Parameter(current_alone(spec.taps, d_model)) if spec.taps > 1 else None
        self.register_parameter("taps_out", taps)
        if taps is not None:
            self.hook_out_lags = HookPoint()

    def forward(self, x: Stream, key_mask: KeyMask | None = None) -> Stream:
        """What the neurons write to the stream."""
        post = self.activate(self.hook_pre(F.linear(x, self.W_in.T, self.b_in)))
        if self.taps_out is None:
            return F.linear(self.hook_post(post), self.W_out.T, self.b_out)
        post = self.hook_post(post if key_mask is None else post * key_mask[..., None])
        written = F.linear(post, self.W_out.T)
        return through_taps(written, self.taps_out, self.hook_out_lags) + self.b_out

    def lags_written(self, layer: int) -> Iterator[Term]:
        """What each lag adds, where there are taps."""
        hook = f"blocks.{layer}.mlp.hook_out_lags"
        yield from lags_written(f"L{layer}.mlp", hook, self.taps_out)

    def fan_in(self, name: str, weight: Tensor) -> int:
        """How many numbers one output of this weight adds up."""
        return weight.shape[-2]

    def fold(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Take the gain and the offset of the norm before it into W_in and b_in."""
        fold_into(self.W_in, self.b_in, gain, offset)
