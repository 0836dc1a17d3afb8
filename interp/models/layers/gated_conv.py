"""A gated short convolution, the mixer of LFM2: a convolution between two gates."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.checks import require_reach
from interp.models.hooks import HookPoint
from interp.models.layers.conv import Convolution, shift
from interp.models.layers.layer import LayerSpec
from interp.models.layers.mlp import MLP
from interp.models.layers.sizes import Sizes
from interp.models.linear import (
    Factor,
    Freezing,
    Frozen,
    FrozenNorm,
    LinearLayer,
    Move,
    everywhere,
    maybe_wide,
    wide,
)
from interp.models.norm import fold_into
from interp.models.shapes import KeyMask, Lags, Stream


@dataclass(frozen=True)
class GatedConv(LayerSpec):
    """A depthwise causal convolution between two gates that the token itself sets.

    Args:
        lags: how many tokens it reads; LFM2 has 3.
        bias: whether there are b_B, b_C, b_X and b_conv.
        mlp: the block's second half.
    """

    kind: ClassVar[str] = "gated_conv"

    lags: int = 3
    bias: bool = True
    mlp: MLP | None = None

    def check(self, index: int, config: Sizes) -> None:
        """The lags fit into the context."""
        require_reach(f"layer {index}", config.n_ctx, lags=self.lags)

    def build(self, config: Sizes) -> "GatedShortConv":
        """The convolution with its gates."""
        return GatedShortConv(config.d_model, self)

    def with_room_for_offset(self, config: Sizes) -> Self:
        """With biases: each of the three maps reads through the norm."""
        return replace(self, bias=True)

    def multiply_adds(self, d_model: int) -> int:
        """Four maps, a scalar per channel and lag, and two gates."""
        return 4 * d_model**2 + (self.lags + 2) * d_model


class GatedShortConv(Convolution):
    r"""y_t = (C_t ⊙ Σ_j w_j ⊙ B_{t-j} ⊙ u_{t-j}) W_out + b_conv.

    B, C and u are linear maps of the normalised stream: `W_B W_C W_X [d_model d_model]`; w is
    `W_conv [lag d_model]`, the last map `W_out [d_model d_model]`. `hook_lags [batch lag pos
    d_model]` holds each lag's term before W_out, gates included: the terms add up exactly, with
    nothing frozen. `hook_gates [batch lag pos d_model]` holds C_t ⊙ B_{t-j}, zero where there is no
    such token: with the gates given, the mixer is one linear map per lag. Both are built only when
    listened to. A padding position is zero to the convolution.

    Source: LFM2 (Liquid AI 2025).
    """

    matrices: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("W_B", "W_C", "W_X", "W_out"), "i o -> 1 o i"
    )

    W_B: Tensor
    W_C: Tensor
    W_X: Tensor
    W_conv: Tensor
    W_out: Tensor
    b_B: Tensor | None
    b_C: Tensor | None
    b_X: Tensor | None

    def __init__(self, d_model: int, spec: GatedConv):
        super().__init__()
        self.lags = spec.lags
        for name in "BCX":
            self.register_parameter(f"W_{name}", nn.Parameter(torch.empty(d_model, d_model)))
            bias = nn.Parameter(torch.zeros(d_model)) if spec.bias else None
            self.register_parameter(f"b_{name}", bias)
        self.W_conv = nn.Parameter(torch.empty(spec.lags, d_model))
        self.W_out = nn.Parameter(torch.empty(d_model, d_model))
        self.register_parameter("b_conv", nn.Parameter(torch.zeros(d_model)) if spec.bias else None)
        for hook in ("B", "C", "X"):
            setattr(self, f"hook_{hook}", HookPoint())
        self.hook_lags, self.hook_gates = HookPoint(), HookPoint()

    def forward(
        self, x: Stream, positions: Stream | None = None, key_mask: KeyMask | None = None
    ) -> Stream:
        """What the convolution writes."""
        B, C, u = (getattr(self, f"hook_{name}")(self._project(x, name)) for name in "BCX")
        if key_mask is not None:
            B = B * key_mask[..., None]
        if self.hook_gates.is_listened_to():
            gates = torch.stack([C * shift(B, lag) for lag in range(self.lags)], dim=1)
            moved = torch.stack([shift(u, lag) for lag in range(self.lags)], dim=1)
            terms = self.hook_gates(gates) * moved * self.W_conv[:, None]
            mixed = self.hook_lags(terms).sum(1)
        elif self.hook_lags.is_listened_to():
            mixed = self.hook_lags(self._terms(B * u, C)).sum(1)
        else:
            gated = B * u
            mixed = C * sum(shift(gated * self.W_conv[lag], lag) for lag in range(self.lags))
        out = mixed @ self.W_out
        return out if self.b_conv is None else out + self.b_conv

    def _project(self, x: Stream, name: str) -> Stream:
        weight, bias = getattr(self, f"W_{name}"), getattr(self, f"b_{name}")
        return x @ weight if bias is None else x @ weight + bias

    def _terms(self, gated: Stream, C: Stream) -> Lags:
        terms = [C * shift(gated * self.W_conv[lag], lag) for lag in range(self.lags)]
        return torch.stack(terms, dim=1)

    @property
    def W(self) -> Float[Tensor, "lag d_model d_model"]:
        """The taps as diagonal matrices; the gates are no weights."""
        return torch.diag_embed(self.W_conv)

    @property
    def to_stream(self) -> Callable[[], Float[Tensor, "d_model d_model"]]:
        """W_out: `hook_lags` stands before it."""
        return partial(wide, self.W_out)

    def taps(self) -> Mapping[str, Float[Tensor, "lag d_model"]]:
        """Those between the gates."""
        return {"": self.W_conv}

    def fan_in(self, name: str, weight: Tensor) -> int:
        """Every lag counts; the other maps read the whole stream."""
        return self.lags if name == "W_conv" else weight.shape[-2]

    def fold(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Gain and offset go into the three maps that read the stream."""
        for name in "BCX":
            fold_into(getattr(self, f"W_{name}"), getattr(self, f"b_{name}"), gain, offset)

    def linear(
        self, layer: int, norm: FrozenNorm | None, residual: bool, post_norm: bool
    ) -> "Callable[[], LinearGatedConv]":
        """One map per lag, given the gates."""

        def linear() -> LinearGatedConv:
            return LinearGatedConv(
                layer=layer,
                name=self.module_name(layer),
                norm=norm,
                residual=residual,
                post_norm=post_norm,
                W_X=wide(self.W_X),
                taps=wide(self.W_conv),
                W_out=wide(self.W_out),
                b_X=maybe_wide(self.b_X),
                bias=maybe_wide(self.b_conv),
            )

        return linear


@dataclass(frozen=True, eq=False)
class Gates(Freezing):
    """C_t ⊙ B_{t-j} of every lag j."""

    def of(self, activation: Lags) -> Float[Tensor, "lag batch pos d_model"]:
        """Lag first."""
        return activation.movedim(1, 0)

    def total(self, activation: Lags) -> Factor:
        """By lag and channel."""
        return activation.double().sum((0, 2))[:, None]

    def count(self, activation: Lags) -> Float[Tensor, "lag 1 1"]:
        """The tokens that have one so far back: where there is none, the gate is 0 and no gate."""
        batch, lags, n_pos, _ = activation.shape
        there = (n_pos - torch.arange(lags, device=activation.device)).clamp(min=0)
        return batch * there.double()[:, None, None]


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearGatedConv(LinearLayer):
    """x_t ↦ Σ_j (x_{t-j} W_X ⊙ w_j ⊙ G_{tj}) W_out, the gates G_{tj} = C_t ⊙ B_{t-j} being given.

    On sequences the gates are theirs, and the account is exact; for the weights alone they are
    means over tokens.
    """

    W_X: Float[Tensor, "d_model d_model"]
    taps: Float[Tensor, "lag d_model"]
    W_out: Float[Tensor, "d_model d_model"]
    b_X: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None

    is_implied: ClassVar[bool] = False

    @property
    def lags(self) -> int:
        """As many as there are taps."""
        return len(self.taps)

    @property
    def factors(self) -> tuple[Freezing, ...]:
        """The norm's scale and the gates."""
        return (*super().factors, Gates(f"{self.name}.gates", f"{self.name}.hook_gates"))

    def terms(
        self, x: Float[Tensor, "... d_model"], frozen: Frozen, move: Move
    ) -> Iterator[Tensor]:
        """What each lag makes of the normalised stream."""
        return self._through(x @ self.W_X, frozen, move)

    def biases(self, n_pos: int, frozen: Frozen, move: Move) -> dict[str, Tensor]:
        """b_X through gates and taps, and b_conv."""
        own = {}
        if self.b_X is not None:
            terms = self._through(everywhere(self.b_X, n_pos), frozen, move)
            own[f"{self.name}.b_X"] = torch.stack(list(terms)).sum(0)
        if self.bias is not None:
            own[f"{self.name}.b_conv"] = everywhere(self.bias, n_pos)
        return own

    def _through(self, u: Tensor, frozen: Frozen, move: Move) -> Iterator[Tensor]:
        gates = frozen[f"{self.name}.gates"]
        assert isinstance(gates, Tensor)
        for lag, taps in enumerate(self.taps):
            yield (move(u, lag) * (taps * gates[lag].to(u))) @ self.W_out
