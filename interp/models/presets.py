"""The family: one line of layers each, and their defaults."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, TypedDict, Unpack, cast

from torch import Tensor

from interp.models import course
from interp.models.config import ModelConfig, NormKind, NormPlace, PositionKind
from interp.models.hooks import nearest
from interp.models.hub import HubMixin
from interp.models.layers import MLP, Attention, Conv, LayerSpec
from interp.models.sequence import HookedSequenceModel


class Options(TypedDict, total=False):
    """What every preset takes besides its own sizes; `ModelConfig` says what each means.

    `nope_layers` are the layers that see no positions (`Attention(positions=False)`).
    """

    positions: PositionKind
    norm: NormKind
    norm_place: NormPlace
    norm_eps: float
    residual: bool
    unembed_bias: bool
    tied: bool
    dropout: float
    rotary_base: float
    nope_layers: Sequence[int]
    seed: int
    tokenizer: Any


def _head_width(d_model: int, n_heads: int, d_head: int | None) -> int:
    if d_head is not None:
        return d_head
    if n_heads < 1 or d_model % n_heads:
        raise ValueError(
            f"d_model={d_model} cannot be shared among n_heads={n_heads}; "
            "choose sizes that divide, or give d_head"
        )
    return d_model // n_heads


def _without_positions(layers: tuple[LayerSpec, ...], nope: Sequence[int]) -> tuple[LayerSpec, ...]:
    attentions = [i for i, layer in enumerate(layers) if layer.reads_positions]
    for index in nope:
        if index not in attentions:
            raise ValueError(
                f"nope_layers names layer {index!r}, but the attention layers are {attentions}"
            )
    return tuple(
        replace(cast(Any, layer), positions=False) if i in nope else layer
        for i, layer in enumerate(layers)
    )


class _Preset(HookedSequenceModel):
    def _build(self, layers: tuple[LayerSpec, ...], options: Options, **sizes: Any) -> None:
        for name in options.keys() - Options.__annotations__.keys():
            known = [*Options.__annotations__, *inspect.signature(type(self).__init__).parameters]
            raise TypeError(f"{type(self).__name__} takes no {name!r}{nearest(name, known)}")
        seed, tokenizer = options.pop("seed", 0), options.pop("tokenizer", None)
        layers = _without_positions(layers, options.pop("nope_layers", ()))
        config = ModelConfig(layers=layers, **sizes, **cast(Any, options))
        super().__init__(config, seed=seed, tokenizer=tokenizer)

    @classmethod
    def _of_course(
        cls, state_dict: Mapping[str, Tensor], layers: tuple[str, str], n_ctx: int, causal: bool
    ) -> Self:
        config, weights = course.read(state_dict, layers, n_ctx, causal)
        model = cls.from_config(config).to(weights["embed.W_E"].dtype)
        model.load_state_dict(weights)
        return model.eval()


class HookedConvAttn(_Preset):
    """A causal convolution, then one attention layer.

    The smallest model whose convolution can do the work of a previous-token head. `lags=1` is its
    control: as many weights per lag, and no neighbour.

    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> model.conv(0).W.shape, model.W_Q.shape
    (torch.Size([2, 32, 32]), torch.Size([1, 4, 32, 8]))
    """

    def __init__(
        self,
        *,
        d_vocab: int,
        d_model: int = 512,
        n_heads: int = 8,
        d_head: int | None = None,
        n_ctx: int = 512,
        lags: int = 2,
        depthwise: bool = False,
        bias: bool = True,
        **options: Unpack[Options],
    ):
        head = Attention(n_heads, _head_width(d_model, n_heads, d_head), bias=bias)
        conv = Conv(lags=lags, depthwise=depthwise, bias=bias)
        self._build((conv, head), options, d_vocab=d_vocab, d_model=d_model, n_ctx=n_ctx)

    @classmethod
    def from_course(
        cls, state_dict: Mapping[str, Tensor], *, n_ctx: int = 1024, causal: bool = True
    ) -> Self:
        """The course's conv-attn network: a masked Conv1d, then one head without output map.

        It has no residual stream, no norm and no positions.

        Args:
            state_dict: with keys `embeddings.weight`, `conv.weight [out in 3]`, `conv.bias`,
                optionally `filter_mask`, `qkv.W_Q.weight`, `qkv.W_K.weight`, `qkv.W_V.weight`,
                `lm_head.weight`, `lm_head.bias`.
            n_ctx: the longest sequence to accept; the network itself has no positions.
            causal: False computes what the published code did, which lets the future leak.

        Raises:
            ValueError: a missing, surplus or misshapen key, by name.
        """
        return cls._of_course(state_dict, course.CONV_ATTN, n_ctx, causal)


class _Heads(_Preset):
    """As many attention layers as the class says, and nothing else."""

    n_layers: ClassVar[int] = 1
    smear: ClassVar[bool] = False

    def __init__(
        self,
        *,
        d_vocab: int,
        d_model: int = 512,
        n_heads: int = 8,
        d_head: int | None = None,
        n_ctx: int = 512,
        bias: bool = True,
        **options: Unpack[Options],
    ):
        width = _head_width(d_model, n_heads, d_head)
        layers = (Attention(n_heads, width, smear=self.smear, bias=bias),) * self.n_layers
        self._build(layers, options, d_vocab=d_vocab, d_model=d_model, n_ctx=n_ctx)


class HookedAttnAttn(_Heads):
    """Two attention layers: the smallest ordinary transformer that can do induction.

    >>> HookedAttnAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16).attention_layers
    (0, 1)
    """

    n_layers = 2

    @classmethod
    def from_course(
        cls, state_dict: Mapping[str, Tensor], *, n_ctx: int = 1024, causal: bool = True
    ) -> Self:
        """The course's attn-attn network: one head, and a second that reads the first's output.

        Keys are those of `HookedConvAttn.from_course`, with `qkv1.*` and `qkv2.*` in place of
        `conv.*` and `qkv.*`.
        """
        return cls._of_course(state_dict, course.ATTN_ATTN, n_ctx, causal)


class HookedAttn(_Heads):
    """One attention layer: the control, which cannot do induction (Elhage et al. 2021).

    >>> HookedAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16).attention_layers
    (0,)
    """


class HookedSmearedAttn(_Heads):
    """One attention layer with smeared keys (Olsson et al. 2022, argument 2).

    Each head mixes a key with the one before it by a trained scalar. One layer is then enough for
    induction.

    >>> HookedSmearedAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16).attn(0).smear.shape
    torch.Size([4])
    """

    smear = True


class HookedGPT(_Preset):
    """Attention and MLP blocks with learned positions, as in GPT-2 or GPT-1.

    GPT-2 has its norms before each sublayer, GPT-1 after (`norm_place="post"`).

    >>> model = HookedGPT(d_vocab=65, d_model=64, n_layers=4, n_heads=4, n_ctx=32, dropout=0.1)
    >>> model.cfg.d_mlp
    256
    """

    def __init__(
        self,
        *,
        d_vocab: int,
        d_model: int = 512,
        n_layers: int = 4,
        n_heads: int = 8,
        d_head: int | None = None,
        d_mlp: int | None = None,
        n_ctx: int = 512,
        bias: bool = True,
        **options: Unpack[Options],
    ):
        mlp = MLP(4 * d_model if d_mlp is None else d_mlp)
        head = Attention(n_heads, _head_width(d_model, n_heads, d_head), bias=bias, mlp=mlp)
        self._build((head,) * n_layers, options, d_vocab=d_vocab, d_model=d_model, n_ctx=n_ctx)


def available() -> tuple[str, ...]:
    """The names of the checkpoints that ship with the package."""
    from interp.models.hub import bundled

    return tuple(bundled())


for _abstract in (_Preset, _Heads):
    del HubMixin.architectures[_abstract.__name__]
