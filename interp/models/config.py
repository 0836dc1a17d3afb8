"""What a model is, in data: sizes, a list of layers, and where positions and norms go.

A model is a residual stream and a list of blocks. A block is one mixer, `Conv` or `Attention`, and
an optional `MLP`. Everything that varies between models is written here, checked here, and decided
when the model is built; no forward pass asks the config anything.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar, cast, get_args

PositionKind = Literal["learned", "shortformer", "rotary", "sinusoidal", "none"]
NormKind = Literal["layer", "rms", "none"]
NormPlace = Literal["pre", "post"]
Activation = Literal["relu", "gelu", "gelu_new", "silu"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_positive(owner: str, **sizes: int) -> None:
    for name, value in sizes.items():
        _require(
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            f"{owner}: {name} is {value!r}, but it must be a whole number of at least 1",
        )


def _require_flags(owner: str, **flags: bool) -> None:
    for name, value in flags.items():
        _require(
            isinstance(value, bool), f"{owner}: {name} is {value!r}, but it must be true or false"
        )


def _require_numbers(owner: str, **numbers: float) -> None:
    for name, value in numbers.items():
        _require(
            isinstance(value, int | float) and math.isfinite(value),
            f"{owner}: {name} is {value!r}, but it must be a finite number",
        )


def _require_choice(owner: str, name: str, value: str, kind: Any) -> None:
    choices = get_args(kind)
    _require(value in choices, f"{owner}: {name} is {value!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class MLP:
    """Two linear maps with a nonlinearity between them, after a block's mixer."""

    d_mlp: int
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        _require_positive("MLP", d_mlp=self.d_mlp)
        _require_choice("MLP", "activation", self.activation, Activation)


@dataclass(frozen=True)
class Conv:
    """A causal convolution over positions: one weight per lag.

    `lags=2` reads the current token (lag 0) and the one before it (lag 1). A full convolution has a
    d_model x d_model matrix per lag; a depthwise one has a scalar per channel and lag.
    """

    lags: int = 2
    depthwise: bool = False
    bias: bool = True
    lag_bias: bool = (
        False  # one more bias per lag that exists; fold_norms() puts a norm's offset here
    )
    mlp: MLP | None = None

    def __post_init__(self) -> None:
        _require_positive("Conv", lags=self.lags)
        _require_flags("Conv", depthwise=self.depthwise, bias=self.bias, lag_bias=self.lag_bias)


@dataclass(frozen=True)
class Attention:
    """Multi-head attention, optionally with smeared keys.

    `smear` gives each head a trained scalar that mixes every key with the key before it (Olsson et
    al. 2022, argument 2). `output=False` leaves out W_O: the heads' values are concatenated into
    the stream.
    """

    n_heads: int
    d_head: int
    smear: bool = False
    causal: bool = True
    output: bool = True
    bias: bool = True
    mlp: MLP | None = None

    def __post_init__(self) -> None:
        _require_positive("Attention", n_heads=self.n_heads, d_head=self.d_head)
        flags = {"smear": self.smear, "causal": self.causal, "output": self.output}
        _require_flags("Attention", bias=self.bias, **flags)


Layer = Conv | Attention
_LAYER_TAGS: dict[str, type[Conv] | type[Attention]] = {"conv": Conv, "attention": Attention}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a model, and nothing else. JSON both ways.

    >>> config = ModelConfig(d_vocab=100, d_model=32, n_ctx=64,
    ...                      layers=(Conv(lags=2), Attention(n_heads=4, d_head=8)))
    >>> ModelConfig.from_json(config.to_json()) == config
    True

    Raises:
        ValueError: sizes that do not fit together; the message names both values and the remedy.
    """

    d_vocab: int
    d_model: int
    n_ctx: int
    layers: tuple[Layer, ...]
    positions: PositionKind = "learned"
    norm: NormKind = "layer"
    norm_place: NormPlace = "pre"
    norm_eps: float = 1e-5
    residual: bool = True
    unembed_bias: bool = True
    tied: bool = False
    dropout: float = 0.0
    rotary_base: float = 10_000.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        owner = "ModelConfig"
        _require_positive(owner, d_vocab=self.d_vocab, d_model=self.d_model, n_ctx=self.n_ctx)
        _require_choice(owner, "positions", self.positions, PositionKind)
        _require_choice(owner, "norm", self.norm, NormKind)
        _require_choice(owner, "norm_place", self.norm_place, NormPlace)
        flags = {"residual": self.residual, "tied": self.tied}
        _require_flags(owner, unembed_bias=self.unembed_bias, **flags)
        numbers = {"norm_eps": self.norm_eps, "rotary_base": self.rotary_base}
        _require_numbers(owner, dropout=self.dropout, **numbers)
        _require(0 <= self.dropout < 1, f"dropout is {self.dropout}, but it must be in [0, 1)")
        _require(self.norm_eps > 0, f"norm_eps is {self.norm_eps}, but it must be above 0")
        _require(self.rotary_base > 1, f"rotary_base is {self.rotary_base}, but it must be above 1")
        _require(len(self.layers) > 0, "layers is empty: give at least one Conv or Attention")
        for index, layer in enumerate(self.layers):
            self._check_layer(index, layer)
        self._check_combinations()

    def _check_layer(self, index: int, layer: Layer) -> None:
        if not isinstance(layer, Conv | Attention):
            raise TypeError(f"layer {index} is {layer!r}; it must be a Conv or an Attention")
        if isinstance(layer, Conv):
            _require(
                layer.lags <= self.n_ctx,
                f"layer {index}: lags={layer.lags} reads further back than n_ctx={self.n_ctx}; "
                f"use at most {self.n_ctx} lags or a longer context",
            )
            return
        width = layer.n_heads * layer.d_head
        _require(
            layer.output or width == self.d_model,
            f"layer {index}: without an output map the heads' values are the stream, so n_heads x "
            f"d_head = {width} must equal d_model={self.d_model}; change one of them or set "
            "output=True",
        )
        _require(
            self.positions != "rotary" or layer.d_head % 2 == 0,
            f"layer {index}: rotary positions turn pairs of channels, but d_head={layer.d_head} is "
            "odd; use an even d_head or other positions",
        )

    def _check_combinations(self) -> None:
        _require(
            self.norm_place == "pre" or (self.norm != "none" and self.residual),
            "norm_place='post' normalises the sum with the residual stream, but "
            f"norm={self.norm!r} and residual={self.residual}; use norm_place='pre', or a norm and "
            "residual=True",
        )
        _require(
            self.positions != "sinusoidal" or self.d_model % 2 == 0,
            f"sinusoidal positions need sine and cosine pairs, but d_model={self.d_model} is odd; "
            "use an even d_model",
        )
        has_attention = any(isinstance(layer, Attention) for layer in self.layers)
        _require(
            has_attention or self.positions not in ("rotary", "shortformer"),
            f"positions={self.positions!r} act on queries and keys, but no layer is an Attention; "
            "use learned, sinusoidal or none",
        )

    @property
    def attention_layers(self) -> dict[int, Attention]:
        """The layers that have heads, by layer number (every layer counts, conv layers too)."""
        return {i: spec for i, spec in enumerate(self.layers) if isinstance(spec, Attention)}

    def replace(self, **changes: Any) -> Self:
        """The same config with some fields changed, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, each layer tagged with its kind."""
        layers = [{"kind": _tag(layer), **asdict(layer)} for layer in self.layers]
        return {**asdict(self), "layers": layers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. An unknown or missing key is named."""
        data = dict(data)
        layers = data.get("layers")
        if not isinstance(layers, list | tuple):
            raise ValueError(f"config: layers is {layers!r}, but it must be a list of layers")
        data["layers"] = tuple(_layer_from_dict(index, layer) for index, layer in enumerate(layers))
        return _build(cls, "config", data)

    def to_json(self) -> str:
        """The config as indented JSON, as it stands in config.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"config is {data!r}, but it must be an object")
        return cls.from_dict(data)


def _tag(layer: Layer) -> str:
    return next(tag for tag, kind in _LAYER_TAGS.items() if isinstance(layer, kind))


def _layer_from_dict(index: int, data: Any) -> Layer:
    owner = f"config: layer {index}"
    if not isinstance(data, Mapping):
        raise ValueError(f"{owner} is {data!r}, but it must be an object with a kind")
    kind, rest = data.get("kind"), {key: value for key, value in data.items() if key != "kind"}
    if not isinstance(kind, str) or kind not in _LAYER_TAGS:
        raise ValueError(f"{owner}: kind is {kind!r}; choose one of {', '.join(_LAYER_TAGS)}")
    if rest.get("mlp") is not None:
        rest["mlp"] = _build(MLP, f"{owner}: mlp", rest["mlp"])
    return _build(_LAYER_TAGS[kind], owner, rest)


_Spec = TypeVar("_Spec")


def _build(kind: type[_Spec], owner: str, data: Any) -> _Spec:
    if not isinstance(data, Mapping):
        raise ValueError(f"{owner} is {data!r}, but it must be an object")
    known = [field.name for field in fields(cast(Any, kind))]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{owner}: unknown key {unknown[0]!r}; known keys are {', '.join(known)}")
    try:
        return kind(**data)
    except TypeError as error:
        raise ValueError(f"{owner}: {error}") from error
