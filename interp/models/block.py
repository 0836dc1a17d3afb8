"""One block: a mixer and an optional MLP, each reading from the stream and writing to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from interp.models.description import Sublayer, Writer
from interp.models.hooks import HookPoint
from interp.models.layers import FeedForward, Mixer
from interp.models.linear import FrozenNorm, wide
from interp.models.shapes import KeyMask, Stream


@dataclass(frozen=True)
class Wiring:
    """How a sublayer reads the stream and writes to it: where the norm and the sum are."""

    read: Callable[[nn.Module, Tensor], Tensor]
    write: Callable[[nn.Module, Tensor, Tensor], Tensor]
    residual: bool = True
    post_norm: bool = False


PRE_NORM = Wiring(read=lambda norm, x: norm(x), write=lambda norm, x, out: x + out)
POST_NORM = Wiring(read=lambda norm, x: x, write=lambda norm, x, out: norm(x + out), post_norm=True)
NO_RESIDUAL = Wiring(read=lambda norm, x: norm(x), write=lambda norm, x, out: out, residual=False)


class Block(nn.Module):
    """The stream before and after, a mixer under its own name, and the optional MLP."""

    def __init__(self, mixer: Mixer, ln1: nn.Module, wiring: Wiring, dropout: float):
        super().__init__()
        self.wiring, self.mixer_name = wiring, mixer.slot
        self.ln1 = ln1
        self.dropout = nn.Dropout(dropout)
        self.mlp: FeedForward | None = None
        self.hook_resid_pre = HookPoint()
        self.hook_resid_post = HookPoint()
        self.add_module(mixer.slot, mixer)
        self.add_module(f"hook_{mixer.slot}_out", HookPoint())

    def add_mlp(self, mlp: FeedForward, ln2: nn.Module) -> None:
        """Give the block its second half; without one there is no `hook_resid_mid`."""
        self.mlp, self.ln2 = mlp, ln2
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()

    @property
    def mixer(self) -> Mixer:
        """`attn`, `conv`, or whatever it is called."""
        return cast(Mixer, getattr(self, self.mixer_name))

    @property
    def hook_mixer_out(self) -> HookPoint:
        """What the mixer writes: `hook_attn_out`, `hook_conv_out`, ..."""
        return cast(HookPoint, getattr(self, f"hook_{self.mixer_name}_out"))

    def forward(
        self, x: Stream, positions: Stream | None = None, key_mask: KeyMask | None = None
    ) -> Stream:
        """The stream after this block."""
        x = self.hook_resid_pre(x)
        mixed = self.mixer(self.wiring.read(self.ln1, x), positions, key_mask)
        return self.after_mixer(x, self.hook_mixer_out(self.dropout(mixed)), key_mask)

    def after_mixer(self, x: Stream, mixed: Stream, key_mask: KeyMask | None = None) -> Stream:
        """The stream after this block, which was entered by x and whose mixer wrote `mixed`."""
        x = self.wiring.write(self.ln1, x, mixed)
        if self.mlp is not None:
            x = self.hook_resid_mid(x)
            out = self.mlp(self.wiring.read(self.ln2, x), key_mask)
            x = self.wiring.write(self.ln2, x, self.hook_mlp_out(self.dropout(out)))
        return self.hook_resid_post(x)

    def fold_norms(self) -> None:
        """Take the norms' gains and offsets into the maps behind them, in place."""
        sublayers: list[tuple[nn.Module, Mixer | FeedForward]] = [(self.ln1, self.mixer)]
        if self.mlp is not None:
            sublayers.append((self.ln2, self.mlp))
        for norm, sublayer in sublayers:
            sublayer.fold(*take_affine(norm))

    def sublayers(self, layer: int, W_pos: Tensor | None = None) -> Iterator[Sublayer]:
        """What this block, as number `layer`, says of itself.

        Args:
            layer: its number.
            W_pos: the table of positions, where it is added to queries and keys only.
        """
        mixer, prefix = self.mixer, f"blocks.{layer}."
        post_norm, norm = self.wiring.post_norm, FrozenNorm.of(self.ln1, f"{prefix}ln1")
        biases = {f"{prefix}{mixer.slot}.{mixer.bias_name}": mixer.bias}
        yield Sublayer(
            _writer(layer, mixer.slot),
            terms=tuple(mixer.terms(layer)),
            lags=tuple(mixer.lags_written(layer)),
            constants=lambda: {name: wide(b) for name, b in biases.items() if b is not None},
            readers=tuple(mixer.readers(layer)),
            norm=norm,
            post_norm=post_norm,
            linear=mixer.linear(layer, norm, self.wiring.residual, post_norm),
            attending=mixer.attending(layer, None if post_norm else norm, W_pos),
        )
        if self.mlp is not None:
            norm = FrozenNorm.of(self.ln2, f"{prefix}ln2")
            lags = tuple(self.mlp.lags_written(layer))
            yield Sublayer(_writer(layer, "mlp"), lags=lags, norm=norm, post_norm=post_norm)


def _writer(layer: int, name: str) -> Writer:
    prefix = f"blocks.{layer}."
    label, hook = f"L{layer}.{name}", f"{prefix}hook_{name}_out"
    return Writer(label, hook, layer, name, prefix + name, is_mlp=name == "mlp")


def take_affine(norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """A norm's gain and offset; in their place 1 and 0."""
    gain, offset = (getattr(norm, name, None) for name in ("w", "b"))
    taken = tuple(None if x is None else x.detach().clone() for x in (gain, offset))
    for x, neutral in ((gain, 1.0), (offset, 0.0)):
        if x is not None:
            x.data.fill_(neutral)
    return taken[0], taken[1]
