"""A causal convolution as a circuit element: one map per lag."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.checks import require_reach
from interp.models.description import ALL, Place, Term
from interp.models.hooks import HookPoint
from interp.models.layers.layer import LayerSpec, Mixer
from interp.models.layers.mlp import MLP
from interp.models.layers.sizes import Sizes
from interp.models.linear import (
    Frozen,
    FrozenNorm,
    LinearLayer,
    Move,
    everywhere,
    maybe_wide,
    wide,
)
from interp.models.norm import fold_into
from interp.models.shapes import KeyMask, Stream


@dataclass(frozen=True)
class Conv(LayerSpec):
    """A causal convolution over positions: one weight per lag.

    Args:
        lags: how many tokens it reads: 2 are the current token (lag 0) and the one before (lag 1).
        depthwise: a scalar per channel and lag, instead of a d_model x d_model matrix per lag.
        bias: whether there is a b_conv.
        lag_bias: one more bias for every lag whose token exists. `fold_norms` puts the offset of
            the norm before it here; a model to train has no use for it.
        mlp: the block's second half.
    """

    kind: ClassVar[str] = "conv"

    lags: int = 2
    depthwise: bool = False
    bias: bool = True
    lag_bias: bool = False
    mlp: MLP | None = None

    def check(self, index: int, config: Sizes) -> None:
        """The lags fit into the context."""
        require_reach(f"layer {index}", config.n_ctx, lags=self.lags)

    def build(self, config: Sizes) -> "CausalConv":
        """The convolution."""
        return CausalConv(config.d_model, self)

    def with_room_for_offset(self, config: Sizes) -> Self:
        """With a bias per lag: a lag that reaches before the first token has no offset."""
        return replace(self, lag_bias=True)

    def multiply_adds(self, d_model: int) -> int:
        """One matrix, or one scalar per channel, for each lag."""
        return self.lags * d_model * (1 if self.depthwise else d_model)


class Convolution(Mixer):
    """A mixer that adds up a term per lag, at `hook_lags`, and b_conv."""

    slot: ClassVar[str] = "conv"

    lags: int
    b_conv: Tensor | None
    hook_lags: HookPoint

    @property
    def bias(self) -> Tensor | None:
        """b_conv."""
        return self.b_conv

    @property
    def to_stream(self) -> Callable[[], Float[Tensor, "d_in d_model"]] | None:
        """Gives the map from `hook_lags` to the stream; None where that holds vectors of it."""
        return None

    def terms(self, layer: int) -> Iterator[Term]:
        """Each lag's term."""
        for lag in range(self.lags):
            place = Place(f"{self.module_name(layer)}.hook_lags", (lag, ALL), position_axis=1)
            yield Term(f"L{layer}.lag{lag}", "lag", place, self.to_stream, lag=lag)


class CausalConv(Convolution):
    """out_t = Σ_j x_{t-j} W_conv[j] + b_conv, over the lags j whose token exists.

    `W_conv` is `[lag d_in d_out]`, or `[lag d_model]` if depthwise; `W` is the full matrices either
    way. `hook_lags [batch lag pos d_model]` holds each lag's term; it is built only when listened
    to. A padding position is zero to a convolution.
    """

    W_conv: Tensor
    b_lags: Tensor | None

    def __init__(self, d_model: int, spec: Conv):
        super().__init__()
        self.lags, self.depthwise = spec.lags, spec.depthwise
        shape = (spec.lags, d_model) if spec.depthwise else (spec.lags, d_model, d_model)
        self.W_conv = nn.Parameter(torch.empty(shape))
        per_lag = nn.Parameter(torch.zeros(spec.lags, d_model)) if spec.lag_bias else None
        self.register_parameter("b_lags", per_lag)
        self.register_parameter("b_conv", nn.Parameter(torch.zeros(d_model)) if spec.bias else None)
        self.hook_lags = HookPoint()

    @property
    def W(self) -> Float[Tensor, "lag d_in d_out"]:
        """One full matrix per lag; a depthwise convolution's are diagonal."""
        return torch.diag_embed(self.W_conv) if self.depthwise else self.W_conv

    def forward(
        self, x: Stream, positions: Stream | None = None, key_mask: KeyMask | None = None
    ) -> Stream:
        """The sum of the lags' terms and the bias."""
        terms = [self._term(x, lag, key_mask) for lag in range(self.lags)]
        if self.hook_lags.is_listened_to():
            out = self.hook_lags(torch.stack(terms, dim=1)).sum(dim=1)
        else:
            out = sum(terms[1:], terms[0])
        return out if self.b_conv is None else out + self.b_conv

    def _term(self, x: Stream, lag: int, key_mask: KeyMask | None) -> Stream:
        # Map first, then shift: what shifting pads with zeros is then the whole term of a missing
        # token.
        weight = self.W_conv[lag]
        term = x * weight if self.depthwise else x @ weight
        if self.b_lags is not None:
            term = term + self.b_lags[lag]
        if key_mask is not None:
            term = term * key_mask[..., None]
        return shift(term, lag)

    @property
    def matrices(self) -> Mapping[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One matrix per lag; a depthwise convolution has a scalar per channel, and no matrix."""
        return {} if self.depthwise else {"W_conv": "lag i o -> lag o i"}

    def fan_in(self, name: str, weight: Tensor) -> int:
        """All lags add up."""
        return weight.shape[0] * (1 if self.depthwise else weight.shape[1])

    @torch.no_grad()
    def fold(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Gain and offset go into every lag's map and its bias."""
        full = self.W.clone()
        fold_into(full, self.b_lags, gain, offset)
        self.W_conv.copy_(torch.diagonal(full, dim1=1, dim2=2) if self.depthwise else full)

    def linear(
        self, layer: int, norm: FrozenNorm | None, residual: bool, post_norm: bool
    ) -> "Callable[[], LinearConv]":
        """One map per lag."""

        def linear() -> LinearConv:
            return LinearConv(
                layer=layer,
                name=self.module_name(layer),
                norm=norm,
                residual=residual,
                post_norm=post_norm,
                depthwise=self.depthwise,
                weight=wide(self.W),
                lag_bias=maybe_wide(self.b_lags),
                bias=maybe_wide(self.b_conv),
            )

        return linear


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearConv(LinearLayer):
    """x_t ↦ Σ_j x_{t-j} W_j: nothing but the norm's scale is frozen."""

    weight: Float[Tensor, "lag d_model d_model"]
    lag_bias: Float[Tensor, "lag d_model"] | None
    bias: Float[Tensor, " d_model"] | None

    @property
    def lags(self) -> int:
        """As many as there are maps."""
        return len(self.weight)

    def terms(
        self, x: Float[Tensor, "... d_model"], frozen: Frozen, move: Move
    ) -> Iterator[Tensor]:
        """x W_j, moved j positions later."""
        return (move(x @ weight, lag) for lag, weight in enumerate(self.weight))

    def biases(self, n_pos: int, frozen: Frozen, move: Move) -> dict[str, Tensor]:
        """b_lags, each where its lag's token exists, and b_conv."""
        own = {}
        if self.lag_bias is not None:
            rows = (move(everywhere(row, n_pos), lag) for lag, row in enumerate(self.lag_bias))
            own[f"{self.name}.b_lags"] = torch.stack(list(rows)).sum(0)
        if self.bias is not None:
            own[f"{self.name}.b_conv"] = everywhere(self.bias, n_pos)
        return own


def shift(x: Stream, lag: int) -> Stream:
    """x moved `lag` positions later, zeros moving in; what falls off the end is dropped."""
    return x if lag == 0 else F.pad(x, (0, 0, lag, 0))[:, : x.shape[1]]
