"""Multi-head attention; queries, keys and values may mix with those before them, and turn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.models import kernels
from interp.models.checks import require, require_reach
from interp.models.description import ALL, Attending, Place, Reader, Term
from interp.models.hooks import HookPoint
from interp.models.kernels import Visibility
from interp.models.layers.layer import LayerSpec, Mixer
from interp.models.layers.mlp import MLP
from interp.models.layers.sizes import Sizes
from interp.models.layers.taps import current_alone, lags_written, through_taps
from interp.models.linear import (
    CHANNELS,
    Channel,
    FrozenNorm,
    LinearChannel,
    Move,
    Parts,
    maybe_wide,
    wide,
)
from interp.models.norm import fold_into
from interp.models.shapes import Heads, KeyMask, Results, Stream


@dataclass(frozen=True)
class Attention(LayerSpec):
    """Multi-head attention, optionally with smeared keys.

    Args:
        n_heads: heads.
        d_head: width of a head's queries, keys and values; n_heads x d_head need not be d_model.
        smear: give each head a trained scalar that mixes every key with the key before it (Olsson
            et al. 2022, argument 2): taps (σ(α), 1 - σ(α)) on keys, but for the first key.
        taps_q: how many tokens each query is made of: 3 are the current one and the two before,
            each with a trained scalar per channel (a depthwise convolution after the projection,
            before rotary positions; Primer, Inkling). 1 leaves them as they are.
        taps_k: the same for keys.
        taps_v: the same for values.
        taps_o: the same for what attention writes to the stream, a scalar per channel of d_model
            and lag, behind W_O and before b_O (Inkling, Canon C).
        key_offset: every head takes half of its keys' channels one token late, and the first token
            has nothing there: taps of 0 and 1 that are not trained (modded-nanogpt's partial key
            offset). With rotary positions both channels of a pair are late, and those pairs that
            turn more slowly.
        causal: False lets a query see later keys.
        output: False leaves out W_O; the heads' values are concatenated into the stream.
        bias: whether there are b_Q, b_K, b_V and, with an output map, b_O.
        positions: False hides rotary or shortformer positions from this layer, which then matches
            on content alone (a NoPE layer, Kazemnejad et al. 2023).
        mlp: the block's second half.
    """

    kind: ClassVar[str] = "attention"
    reads_positions: ClassVar[bool] = True
    has_heads: ClassVar[bool] = True

    n_heads: int
    d_head: int
    smear: bool = False
    causal: bool = True
    output: bool = True
    bias: bool = True
    positions: bool = True
    taps_q: int = 1
    taps_k: int = 1
    taps_v: int = 1
    taps_o: int = 1
    key_offset: bool = False
    mlp: MLP | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.smear or self.taps_k == 1,
            "Attention: smear=True mixes keys with the key before, and so do "
            f"taps_k={self.taps_k}; choose one of them",
        )
        require(
            not self.key_offset or not (self.smear or self.taps_k > 1),
            "Attention: key_offset=True takes channels of a key from the token before, and so do "
            f"smear={self.smear} and taps_k={self.taps_k}; choose one of them",
        )
        require(
            not self.key_offset or self.d_head % 4 == 0,
            f"Attention: key_offset=True moves half of the pairs of channels, but d_head="
            f"{self.d_head} is no multiple of 4; use one that is",
        )

    @property
    def taps(self) -> dict[str, int]:
        """The options that say how many tokens queries, keys and values are made of."""
        return {"taps_q": self.taps_q, "taps_k": self.taps_k, "taps_v": self.taps_v}

    def check(self, index: int, config: Sizes) -> None:
        """Widths fit where they have to, and positions are there to be hidden or turned."""
        require_reach(f"layer {index}", config.n_ctx, **self.taps, taps_o=self.taps_o)
        require(
            not self.key_offset or config.n_ctx > 1,
            f"layer {index}: key_offset=True reads the token before, but n_ctx={config.n_ctx}; use "
            "a longer context",
        )
        width = self.n_heads * self.d_head
        require(
            self.output or width == config.d_model,
            f"layer {index}: without an output map the heads' values are the stream, so n_heads x "
            f"d_head = {width} must equal d_model={config.d_model}; change one of them or set "
            "output=True",
        )
        require(
            self.positions or config.positions in ("rotary", "shortformer"),
            f"layer {index}: positions=False hides positions that act on queries and keys, but this"
            f" model's are {config.positions!r}; use rotary or shortformer positions, or drop it",
        )
        require(
            config.positions != "rotary" or self.d_head % 2 == 0,
            f"layer {index}: rotary positions turn pairs of channels, but d_head={self.d_head} is "
            "odd; use an even d_head or other positions",
        )

    def build(self, config: Sizes) -> "MultiHeadAttention":
        """The heads, with rotary positions where the model has them and the layer sees them."""
        rotary = None
        if config.positions == "rotary" and self.positions:
            rotary = Rotary(config.n_ctx, self.d_head, config.rotary_base)
        return MultiHeadAttention(config.d_model, self, rotary, config.dropout)

    def affine_norm(self, config: Sizes) -> bool:
        """Not where shortformer positions are added after the norm, unscaled.

        A gain there would only repeat what W_Q, W_K and W_V can do, and could not be folded into
        them without changing the positions.
        """
        adds_positions = config.positions == "shortformer" and self.positions
        return not adds_positions or config.norm_place == "post"

    def with_room_for_offset(self, config: Sizes) -> Self:
        """With biases, if its norm has an offset."""
        return replace(self, bias=True) if self.affine_norm(config) else self

    def multiply_adds(self, d_model: int) -> int:
        """W_Q, W_K, W_V and W_O, smearing and taps; an offset only moves channels."""
        width = self.n_heads * self.d_head
        taps = sum(n for n in self.taps.values() if n > 1)
        mixed = width * (taps + 2 * self.smear) + d_model * (self.taps_o if self.taps_o > 1 else 0)
        return mixed + d_model * width * (4 if self.output else 3)

    def attention_multiply_adds(self, n_ctx: int) -> float:
        """Queries with keys and patterns with values, for the average number of visible keys."""
        visible = (n_ctx + 1) / 2 if self.causal else n_ctx
        return 2 * self.n_heads * self.d_head * visible


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): a score depends on the distance only.

    Channel i turns with channel i + d_head / 2, by an angle that grows with the position.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, n_ctx: int, d_head: int, base: float):
        super().__init__()
        self.n_ctx, self.d_head, self.base = n_ctx, d_head, base
        angles = self._angles()
        dtype = torch.get_default_dtype()
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

    def _angles(self) -> Float[Tensor, "pos 1 d_head"]:
        rates = self.base ** (-torch.arange(0, self.d_head, 2, dtype=torch.float64) / self.d_head)
        angles = torch.arange(self.n_ctx, dtype=torch.float64)[:, None] * rates
        return angles.repeat(1, 2)[:, None, :]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # Tables that were rounded once would not turn exactly in a wider dtype.
        angles = self._angles()
        self.cos, self.sin = angles.cos().to(self.cos), angles.sin().to(self.sin)
        return self

    def forward(self, x: Heads, start: int = 0) -> Heads:
        """Each head's vectors, turned by the angles of their positions, from `start` on."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        here = slice(start, start + x.shape[1])
        return x * self.cos[here] + turned * self.sin[here]


def tapped(
    x: Heads, taps: Float[Tensor, "lag head d_head"], key_mask: KeyMask | None
) -> list[Heads]:
    """What each lag adds to x'_t = Σ_j c_j ⊙ x_{t-j}; a missing or masked token is zero."""
    x = x if key_mask is None else x * key_mask[..., None, None]
    return [_later(x * row, lag) for lag, row in enumerate(taps)]


def smeared(k: Heads, share: Float[Tensor, " head"], key_mask: KeyMask | None) -> list[Heads]:
    """What each lag adds to k'_t = σ k_t + (1 - σ) k_{t-1} (Olsson et al. 2022, argument 2).

    The first key, and a key after a padding position, has no predecessor and stays as it is.
    """
    real = k.new_ones(k.shape[:2]) if key_mask is None else key_mask.to(k)
    has_previous = _later(real[..., None, None], 1).bool()
    share = share[:, None]
    kept = torch.where(has_previous, share, 1.0)
    given = torch.where(has_previous, 1 - share, 0.0)
    return [kept * k, given * _later(k, 1)]


def _later(x: Heads, lag: int) -> Heads:
    return x if lag == 0 else F.pad(x, (0, 0, 0, 0, lag, 0))[:, : x.shape[1]]


class MultiHeadAttention(Mixer):
    """z = softmax(q kᵀ / √d_head) v per head, and the heads' z through W_O added up.

    Weights are TransformerLens's: `W_Q W_K W_V [head d_model d_head]`, `W_O [head d_head d_model]`,
    `smear [head]`, the mixing weight α before the sigmoid, and `taps_Q taps_K taps_V [lag head
    d_head]`. What is smeared or tapped is at `hook_smeared_q`, `hook_smeared_k`, `hook_smeared_v`,
    each lag's term of it at `hook_q_lags`, `hook_k_lags`, `hook_v_lags` [batch lag pos head
    d_head]. A key offset is a fixed `taps_K`. With no output map W_O is a fixed identity.

    With `taps_O [lag d_model]`, what the heads write goes through them, and b_O is added behind;
    each lag's term is at `hook_out_lags` [batch lag pos d_model], and z of a padding position is
    zero.

    The layer runs the fused kernel; `hook_attn_scores` and `hook_pattern` [batch head query key],
    `hook_result` [batch pos head d_model] and `hook_log_sum_exp` [batch query head] are computed
    only when somebody listens. `hook_log_sum_exp` is for reading: what a hook returns there changes
    nothing.
    """

    slot: ClassVar[str] = "attn"
    matrices: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("W_Q", "W_K", "W_V"), "head i o -> 1 (head o) i"),
        "W_O": "head i o -> 1 o (head i)",
    }

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    b_Q: Tensor | None
    b_K: Tensor | None
    b_V: Tensor | None
    b_O: Tensor | None
    smear: Tensor | None
    taps_Q: Tensor | None  # noqa: N815 - named for the map that they follow
    taps_K: Tensor | None  # noqa: N815
    taps_V: Tensor | None  # noqa: N815
    taps_O: Tensor | None  # noqa: N815
    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_z: HookPoint
    hook_result: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_log_sum_exp: HookPoint

    def __init__(
        self, d_model: int, spec: Attention, rotary: Rotary | None = None, dropout: float = 0.0
    ):
        super().__init__()
        heads, width = spec.n_heads, spec.d_head
        self.scale, self.causal, self.dropout = width**-0.5, spec.causal, dropout
        self.has_output_map, self.rotary = spec.output, rotary
        self.sees_positions = spec.positions
        for name in "QKV":
            self.register_parameter(f"W_{name}", nn.Parameter(torch.empty(heads, d_model, width)))
            bias = nn.Parameter(torch.zeros(heads, width)) if spec.bias else None
            self.register_parameter(f"b_{name}", bias)
        if spec.output:
            self.W_O = nn.Parameter(torch.empty(heads, width, d_model))
        else:
            identity = torch.eye(d_model).reshape(heads, width, d_model)
            self.register_buffer("W_O", identity, persistent=False)
        output_bias = nn.Parameter(torch.zeros(d_model)) if spec.bias and spec.output else None
        self.register_parameter("b_O", output_bias)
        self.register_parameter("smear", nn.Parameter(torch.zeros(heads)) if spec.smear else None)
        for hook in ["q", "k", "v", "z", "result"]:
            setattr(self, f"hook_{hook}", HookPoint(pos_dim=-3))
        for hook in ["attn_scores", "pattern", "log_sum_exp"]:
            setattr(self, f"hook_{hook}", HookPoint())
        for channel, taps in zip(CHANNELS, spec.taps.values(), strict=True):
            weight = nn.Parameter(current_alone(taps, heads, width)) if taps > 1 else None
            if channel == "k" and spec.key_offset:
                self.register_buffer("taps_K", _half_late(heads, width), persistent=False)
            else:
                self.register_parameter(f"taps_{channel.upper()}", weight)
            if taps > 1 or (channel == "k" and (spec.smear or spec.key_offset)):
                setattr(self, f"hook_{channel}_lags", HookPoint(pos_dim=-3))
                setattr(self, f"hook_smeared_{channel}", HookPoint(pos_dim=-3))
        taps = nn.Parameter(current_alone(spec.taps_o, d_model)) if spec.taps_o > 1 else None
        self.register_parameter("taps_O", taps)
        if taps is not None:
            self.hook_out_lags = HookPoint()
        if rotary is not None:
            self.hook_rot_q, self.hook_rot_k = HookPoint(pos_dim=-3), HookPoint(pos_dim=-3)

    @property
    def query_hook(self) -> str:
        """The hook point with the queries as they meet the keys."""
        return self._last_hook("q") if self.rotary is None else "hook_rot_q"

    @property
    def key_hook(self) -> str:
        """The hook point with the keys as they meet the queries."""
        return self._last_hook("k") if self.rotary is None else "hook_rot_k"

    @property
    def value_hook(self) -> str:
        """The hook point with the values that patterns mix."""
        return self._last_hook("v")

    def _last_hook(self, channel: Channel) -> str:
        mixed = f"hook_smeared_{channel}"
        return mixed if hasattr(self, mixed) else f"hook_{channel}"

    def forward(
        self, x: Stream, positions: Stream | None = None, key_mask: KeyMask | None = None
    ) -> Stream:
        """What the heads write to the stream; `positions` reach queries and keys only."""
        x_qk = x if positions is None or not self.sees_positions else x + positions
        q = self._mixed("q", self.hook_q(_project(x_qk, self.W_Q, self.b_Q)), key_mask)
        k = self._mixed("k", self.hook_k(_project(x_qk, self.W_K, self.b_K)), key_mask)
        v = self._mixed("v", self.hook_v(_project(x, self.W_V, self.b_V)), key_mask)
        if self.rotary is not None:
            q, k = self.hook_rot_q(self.rotary(q)), self.hook_rot_k(self.rotary(k))
        z = self._attend(q, k, v, Visibility(self.causal, key_mask))
        if self.taps_O is not None and key_mask is not None:
            z = z * key_mask[..., None, None]
        return self._write(self.hook_z(z))

    def _mixed(self, channel: Channel, x: Heads, key_mask: KeyMask | None) -> Heads:
        """With those before them, where there are taps or smearing."""
        taps = getattr(self, f"taps_{channel.upper()}")
        if taps is not None:
            terms = tapped(x, taps, key_mask)
        elif channel == "k" and self.smear is not None:
            terms = smeared(x, self.smear.sigmoid(), key_mask)
        else:
            return x
        hook_lags = getattr(self, f"hook_{channel}_lags")
        if hook_lags.is_listened_to():
            mixed = hook_lags(torch.stack(terms, dim=1)).sum(1)
        else:
            mixed = sum(terms[1:], terms[0])
        return getattr(self, f"hook_smeared_{channel}")(mixed)

    def log_sum_exp(self, q: Heads, k: Heads) -> Float[Tensor, "batch query head"]:
        """What `hook_log_sum_exp` holds, from queries and keys as they meet: no values needed."""
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        return kernels.log_sum_exp(q, k, self.causal, self.scale).transpose(1, 2)

    def _attend(self, q: Heads, k: Heads, v: Heads, visibility: Visibility) -> Heads:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        if self.hook_attn_scores.is_listened_to() or self.hook_pattern.is_listened_to():
            z = self._spelled_out(q, k, v, visibility, dropout)
        elif self.hook_log_sum_exp.is_listened_to():
            z, lse = kernels.fused_with_log_sum_exp(q, k, v, visibility, self.scale)
            self.hook_log_sum_exp(lse.transpose(1, 2))
        else:
            z = kernels.fused(q, k, v, visibility, self.scale, dropout)
        return z.transpose(1, 2)

    def _spelled_out(
        self,
        q: kernels.HeadFirst,
        k: kernels.KeysFirst,
        v: kernels.ValuesFirst,
        visibility: Visibility,
        dropout: float,
    ) -> kernels.Written:
        scores = self.hook_attn_scores(kernels.masked_scores(q, k, visibility, self.scale))
        if self.hook_log_sum_exp.is_listened_to():
            self.hook_log_sum_exp(scores.logsumexp(-1).transpose(1, 2))
        pattern = self.hook_pattern(kernels.pattern_of(scores))
        return F.dropout(pattern, dropout) @ v

    def _write(self, z: Heads) -> Stream:
        if self.taps_O is None and not self.hook_result.is_listened_to():
            return self._projected(z, self.b_O)
        if self.hook_result.is_listened_to():
            out = self.hook_result(self.results(z)).sum(dim=2)
        else:
            out = self._projected(z, None)
        if self.taps_O is not None:
            out = through_taps(out, self.taps_O, self.hook_out_lags)
        return out if self.b_O is None else out + self.b_O

    def _projected(self, z: Heads, bias: Tensor | None) -> Stream:
        if not self.has_output_map:
            return z.flatten(2)
        return F.linear(z.flatten(2), self.W_O.flatten(0, 1).T, bias)

    def results(self, z: Heads) -> Results:
        """What each head writes to the stream, without b_O; before taps, where there are any."""
        return torch.einsum("bphd,hdm->bphm", z, self.W_O)

    @property
    def bias(self) -> Tensor | None:
        """b_O."""
        return self.b_O

    @property
    def bias_name(self) -> str:
        """b_O."""
        return "b_O"

    def taps(self) -> Mapping[str, Float[Tensor, "lag channel"]]:
        """On queries, keys and values, channels head by head, and on what the heads write."""
        taps = {"q": self.taps_Q, "k": self.taps_K, "v": self.taps_V, "attn": self.taps_O}
        return {name: x.flatten(1) for name, x in taps.items() if x is not None}

    def fan_in(self, name: str, weight: Tensor) -> int:
        """What all heads write adds up."""
        return weight.shape[0] * weight.shape[1] if name == "W_O" else weight.shape[-2]

    def fold(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Gain and offset go into W_Q, W_K and W_V and their biases."""
        for name in "QKV":
            fold_into(getattr(self, f"W_{name}"), getattr(self, f"b_{name}"), gain, offset)

    def terms(self, layer: int) -> Iterator[Term]:
        """Each head, from what it attended to."""
        hook = f"{self.module_name(layer)}.hook_z"
        taps = None if self.taps_O is None else partial(wide, self.taps_O)
        for head, W_O in enumerate(self.W_O):
            place, to_stream = Place(hook, (ALL, head)), partial(wide, W_O)
            yield Term(f"L{layer}H{head}", "head", place, to_stream, taps)

    def lags_written(self, layer: int) -> Iterator[Term]:
        """What each lag adds, where there are taps on what the heads write."""
        hook = f"{self.module_name(layer)}.hook_out_lags"
        yield from lags_written(f"L{layer}.attn", hook, self.taps_O)

    def readers(self, layer: int) -> Iterator[Reader]:
        """Each head's queries, keys and values, and where it looks."""
        prefix = f"{self.module_name(layer)}.hook_"
        for head in range(len(self.W_Q)):
            label = f"L{layer}H{head}"
            for channel in CHANNELS:
                yield Reader(f"{label}.{channel}", channel, Place(prefix + channel, (ALL, head)))
            for channel, taps in self._lags_of_channels().items():
                for lag in range(taps):
                    place = Place(f"{prefix}{channel}_lags", (lag, ALL, head), position_axis=1)
                    yield Reader(f"{label}.{channel}.lag{lag}", f"{channel}.lag", place, lag)
            pattern = Place(f"{prefix}pattern", (head, ALL), position_axis=1)
            yield Reader(f"{label}.pattern", "pattern", pattern)

    def _lags_of_channels(self) -> dict[Channel, int]:
        """How many tokens queries, keys and values are made of, where it is more than one."""
        lags: dict[Channel, int] = {}
        for channel in CHANNELS:
            if (taps := getattr(self, f"taps_{channel.upper()}")) is not None:
                lags[channel] = len(taps)
        if self.smear is not None:
            lags["k"] = 2
        return lags

    def attending(self, layer: int, norm: FrozenNorm | None, W_pos: Tensor | None) -> Attending:
        """How queries meet keys, and what both and the values are of the stream."""
        prefix = f"{self.module_name(layer)}.hook_"
        return Attending(
            channel=lambda head, channel: self.channel(layer, head, channel, norm, W_pos),
            scale=self.scale,
            scores=f"{prefix}attn_scores",
            pattern=f"{prefix}pattern",
            rotate=self.rotary,
        )

    def channel(
        self, layer: int, head: int, channel: Channel, norm: FrozenNorm | None, W_pos: Tensor | None
    ) -> LinearChannel:
        """One head's queries, keys or values as a linear map, given the norm's scale.

        Args:
            layer: the layer's number.
            head: the head's.
            channel: "q", "k" or "v".
            norm: the norm before the layer.
            W_pos: the table that is added to what queries and keys read, after the norm.
        """
        weight, bias = (getattr(self, f"{name}_{channel.upper()}") for name in "Wb")
        name = self.module_name(layer)
        plain = LinearChannel(
            name=name,
            channel=channel,
            computed=f"{name}.hook_{channel}",
            head=head,
            norm=norm,
            weight=wide(weight[head]),
            bias=None if bias is None else wide(bias[head]),
            positions=maybe_wide(W_pos) if channel != "v" and self.sees_positions else None,
        )
        mixed = {**vars(plain), "computed": f"{name}.hook_smeared_{channel}"}
        if (taps := getattr(self, f"taps_{channel.upper()}")) is not None:
            return Tapped(**mixed, taps=wide(taps)[:, head])
        if channel == "k" and self.smear is not None:
            return SmearedKeys(**mixed, share=wide(self.smear)[head].sigmoid())
        return plain


def _project(
    x: Stream,
    weight: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"] | None,
) -> Heads:
    # One matrix product for all heads; einsum would loop over them. Laid out like this, the copy of
    # the weight moves whole rows of d_head, and costs little beside the product.
    flat = weight.transpose(0, 1).flatten(1).T
    out = F.linear(x, flat, None if bias is None else bias.flatten())
    return out.unflatten(-1, weight.shape[::2])


@dataclass(frozen=True, eq=False, kw_only=True)
class SmearedKeys(LinearChannel):
    """Keys that are mixed with the key before: k'_t = σ(α) k_t + (1 - σ(α)) k_{t-1}.

    Attributes:
        share: σ(α), how much of the current key is kept.
    """

    mixing: ClassVar[str] = "smearing"

    share: Float[Tensor, ""]

    @property
    def lags(self) -> int:
        """The current key and the one before."""
        return 2

    def over_lags(self, x: Float[Tensor, "_ ... d_head"], move: Move) -> Iterator[Tensor]:
        """The first key, and one after padding, has no predecessor and is unchanged."""
        given = (1 - self.share) * move(x.new_ones(1, x.shape[-2], 1), 1)
        yield (1 - given) * x
        yield given * move(x, 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tapped(LinearChannel):
    """Queries, keys or values with a scalar per channel and lag: x'_t = Σ_j c_j ⊙ x_{t-j}.

    Attributes:
        taps: c.
    """

    mixing: ClassVar[str] = "taps"

    taps: Float[Tensor, "lag d_head"]

    @property
    def lags(self) -> int:
        """As many as there are taps."""
        return len(self.taps)

    def over_lags(self, x: Parts, move: Move) -> Iterator[Tensor]:
        """c_j ⊙ x_{t-j}."""
        return (move(x * row, lag) for lag, row in enumerate(self.taps))


def _half_late(heads: int, width: int) -> Float[Tensor, "lag head d_head"]:
    """Taps of 0 and 1: channels i and i + d_head / 2, a rotary pair, are late together."""
    late = (torch.arange(width) % (width // 2)) >= width // 4
    return torch.stack([~late, late]).to(torch.get_default_dtype())[:, None].repeat(1, heads, 1)
