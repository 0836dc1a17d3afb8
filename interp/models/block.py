"""One block: a mixer and an optional MLP, each reading from the stream and writing to it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from interp.models.attention import Attention
from interp.models.conv import CausalConv
from interp.models.hooks import HookPoint
from interp.models.mlp import MLP
from interp.models.shapes import KeyMask, Stream


@dataclass(frozen=True)
class Wiring:
    """How a sublayer reads the stream and writes to it: where the norm and the sum are."""

    read: Callable[[nn.Module, Tensor], Tensor]
    write: Callable[[nn.Module, Tensor, Tensor], Tensor]


PRE_NORM = Wiring(read=lambda norm, x: norm(x), write=lambda norm, x, out: x + out)
POST_NORM = Wiring(read=lambda norm, x: x, write=lambda norm, x, out: norm(x + out))
NO_RESIDUAL = Wiring(read=lambda norm, x: norm(x), write=lambda norm, x, out: out)


class Block(nn.Module):
    """What attention and conv blocks share: the stream before and after, and the optional MLP."""

    def __init__(self, ln1: nn.Module, wiring: Wiring, dropout: float):
        super().__init__()
        self.wiring = wiring
        self.ln1 = ln1
        self.dropout = nn.Dropout(dropout)
        self.mlp: MLP | None = None
        self.hook_resid_pre = HookPoint()
        self.hook_resid_post = HookPoint()

    def add_mlp(self, mlp: MLP, ln2: nn.Module) -> None:
        """Give the block its second half; without one there is no `hook_resid_mid`."""
        self.mlp, self.ln2 = mlp, ln2
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()

    @property
    def mixer_bias(self) -> Tensor | None:
        """What the mixer writes at every position, whatever it reads."""
        raise NotImplementedError

    def mix(self, x: Stream, positions: Stream | None, key_mask: KeyMask | None) -> Stream:
        """What the mixer makes of the normalised stream, heard at its own hook point."""
        raise NotImplementedError

    def forward(
        self, x: Stream, positions: Stream | None = None, key_mask: KeyMask | None = None
    ) -> Stream:
        """The stream after this block."""
        x = self.hook_resid_pre(x)
        mixed = self.mix(self.wiring.read(self.ln1, x), positions, key_mask)
        x = self.wiring.write(self.ln1, x, mixed)
        if self.mlp is not None:
            x = self.hook_resid_mid(x)
            out = self.hook_mlp_out(self.dropout(self.mlp(self.wiring.read(self.ln2, x))))
            x = self.wiring.write(self.ln2, x, out)
        return self.hook_resid_post(x)


class AttentionBlock(Block):
    """A block whose mixer is attention."""

    def __init__(self, attn: Attention, ln1: nn.Module, wiring: Wiring, dropout: float):
        super().__init__(ln1, wiring, dropout)
        self.attn = attn
        self.hook_attn_out = HookPoint()

    @property
    def mixer_bias(self) -> Tensor | None:
        """b_O."""
        return self.attn.b_O

    def mix(self, x: Stream, positions: Stream | None, key_mask: KeyMask | None) -> Stream:
        """What the heads make of it, heard at `hook_attn_out`."""
        seen = positions if self.attn.sees_positions else None
        return self.hook_attn_out(self.dropout(self.attn(x, seen, key_mask)))


class ConvBlock(Block):
    """A block whose mixer is a causal convolution; it takes no positions."""

    def __init__(self, conv: CausalConv, ln1: nn.Module, wiring: Wiring, dropout: float):
        super().__init__(ln1, wiring, dropout)
        self.conv = conv
        self.hook_conv_out = HookPoint()

    @property
    def mixer_bias(self) -> Tensor | None:
        """b_conv."""
        return self.conv.b_conv

    def mix(self, x: Stream, positions: Stream | None, key_mask: KeyMask | None) -> Stream:
        """What the convolution makes of it, heard at `hook_conv_out`."""
        return self.hook_conv_out(self.dropout(self.conv(x, key_mask)))
