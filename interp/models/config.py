"""What a model is, in data: sizes, a list of layers, and where positions and norms go.

A model is a residual stream and a list of blocks. A block is one mixer, such as `Conv` or
`Attention`, and an optional `MLP`. Everything that varies between models is written here, checked
here, and decided when the model is built; no forward pass asks the config anything.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar, cast

from interp.models.checks import require, require_choice, require_fields
from interp.models.layers import KINDS, MLP, LayerSpec

PositionKind = Literal["learned", "shortformer", "rotary", "sinusoidal", "none"]
NormKind = Literal["layer", "rms", "none"]
NormPlace = Literal["pre", "post"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a model, and nothing else. JSON both ways.

    Args:
        d_vocab: tokens in the vocabulary.
        d_model: width of the residual stream.
        n_ctx: the longest sequence that the model reads.
        layers: one spec per block, from the embedding upwards.
        positions: "learned" or "sinusoidal" vectors added to the stream; "shortformer", learned
            vectors added to queries and keys only; "rotary"; or "none".
        norm: "layer", "rms" or "none".
        norm_place: "pre" normalises what a sublayer reads, "post" the stream after it has written.
        norm_eps: added to the variance under the root.
        residual: False lets each layer replace the stream instead of adding to it.
        unembed_bias: whether there is a b_U.
        tied: whether the unembedding is the embedding read backwards.
        dropout: share of activations dropped in training.
        rotary_base: the longest rotary wavelength, in positions, over 2 pi.

    >>> from interp.models import Attention, Conv
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
    layers: tuple[LayerSpec, ...]
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
        require_fields(self)
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}, but it must be in [0, 1)")
        require(self.norm_eps > 0, f"norm_eps is {self.norm_eps}, but it must be above 0")
        require(self.rotary_base > 1, f"rotary_base is {self.rotary_base}, but it must be above 1")
        require(len(self.layers) > 0, "layers is empty: give at least one Conv or Attention")
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, LayerSpec):
                raise TypeError(f"layer {index} is {layer!r}; it must be a Conv or an Attention")
            layer.check(index, self)
            if layer.mlp is not None:
                layer.mlp.check(index, self)
        self._check_combinations()

    def _check_combinations(self) -> None:
        require(
            self.norm_place == "pre" or (self.norm != "none" and self.residual),
            "norm_place='post' normalises the sum with the residual stream, but "
            f"norm={self.norm!r} and residual={self.residual}; use norm_place='pre', or a norm and "
            "residual=True",
        )
        require(
            self.positions != "sinusoidal" or self.d_model % 2 == 0,
            f"sinusoidal positions need sine and cosine pairs, but d_model={self.d_model} is odd; "
            "use an even d_model",
        )
        require(
            self.positions not in ("rotary", "shortformer")
            or any(layer.reads_positions for layer in self.layers),
            f"positions={self.positions!r} act on queries and keys, but no layer is an Attention; "
            "use learned, sinusoidal or none",
        )

    @property
    def attention_layers(self) -> dict[int, Any]:
        """The layers that have heads, by layer number (every layer counts, conv layers too)."""
        return {i: spec for i, spec in enumerate(self.layers) if spec.has_heads}

    def replace(self, **changes: Any) -> Self:
        """The same config with some fields changed, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, each layer tagged with its kind."""
        layers = [{"kind": layer.kind, **asdict(cast(Any, layer))} for layer in self.layers]
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


def _layer_from_dict(index: int, data: Any) -> LayerSpec:
    owner = f"config: layer {index}"
    if not isinstance(data, Mapping):
        raise ValueError(f"{owner} is {data!r}, but it must be an object with a kind")
    kind, rest = data.get("kind"), {key: value for key, value in data.items() if key != "kind"}
    require_choice(f"{owner}: kind", kind, sorted(KINDS))
    if rest.get("mlp") is not None:
        rest["mlp"] = _build(MLP, f"{owner}: mlp", rest["mlp"])
    return _build(KINDS[cast(str, kind)], owner, rest)


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
