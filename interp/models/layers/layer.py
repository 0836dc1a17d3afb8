"""What a kind of layer is: a spec in data, and a mixer that says what it reads and writes.

A new kind of layer is one file beside this one. It holds

* the spec: a frozen dataclass derived from `LayerSpec`, with the tag that JSON calls it by;
* the mixer: a module derived from `Mixer`, whose forward is the dataflow, and which answers for its
  own initialisation, folding, matrices, readers and writers.

Nothing else in the package asks which kind a layer is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor, nn

from interp.models.checks import require_fields
from interp.models.description import Attending, Reader, Term
from interp.models.layers.mlp import MLP
from interp.models.layers.sizes import Sizes
from interp.models.linear import FrozenNorm, LinearLayer
from interp.models.shapes import KeyMask, Stream

KINDS: dict[str, type["LayerSpec"]] = {}
"""Every kind of layer by its tag, filled as the classes are made."""


class LayerSpec(ABC):
    """A block's mixer and its optional MLP, in data. Subclasses are frozen dataclasses."""

    kind: ClassVar[str]
    """What JSON calls it."""

    reads_positions: ClassVar[bool] = False
    """Whether rotary or shortformer positions can reach it."""

    has_heads: ClassVar[bool] = False
    """Whether it has heads, which attend."""

    mlp: MLP | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        KINDS[cls.kind] = cls

    def __post_init__(self) -> None:
        require_fields(self)

    def check(self, index: int, config: Sizes) -> None:
        """Refuse what does not fit the model's sizes.

        Raises:
            ValueError: the message names the layer, both values and the remedy.
        """
        return

    @abstractmethod
    def build(self, config: Sizes) -> "Mixer":
        """The mixer, with weights yet to be drawn."""

    def affine_norm(self, config: Sizes) -> bool:
        """Whether the norm before it has a gain and an offset."""
        return True

    def with_room_for_offset(self, config: Sizes) -> Self:
        """A spec whose mixer can carry the offset of the norm before it."""
        return self

    @abstractmethod
    def multiply_adds(self, d_model: int) -> int:
        """Products of activations with weights, per token."""

    def attention_multiply_adds(self, n_ctx: int) -> float:
        """Products of activations with activations, per token of a block of n_ctx tokens."""
        return 0


class Mixer(nn.Module, ABC):
    """What a block does between positions. Its sum is at the block's `hook_{slot}_out`."""

    slot: ClassVar[str]
    """Where it stands in its block: "attn", "conv"."""

    matrices: ClassVar[Mapping[str, str]] = {}
    """The parameters that are matrices, and how each is turned into `[matrix out in]` (einops)."""

    @abstractmethod
    def forward(
        self, x: Stream, positions: Stream | None = None, key_mask: KeyMask | None = None
    ) -> Stream:
        """What it writes, from the normalised stream."""

    @property
    @abstractmethod
    def bias(self) -> Tensor | None:
        """What it writes at every position, whatever it reads."""

    def module_name(self, layer: int) -> str:
        """The module's, as a model's layer of this number."""
        return f"blocks.{layer}.{self.slot}"

    @property
    def bias_name(self) -> str:
        """That parameter's name."""
        return f"b_{self.slot}"

    def fan_in(self, name: str, weight: Tensor) -> int:
        """How many numbers one output of this weight adds up."""
        return weight.shape[-2]

    @abstractmethod
    def fold(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Take the gain and the offset of the norm before it into its own maps, in place."""

    @abstractmethod
    def terms(self, layer: int) -> Iterator[Term]:
        """The terms that its sum is made of, but for its bias."""

    def lags_written(self, layer: int) -> Iterator[Term]:
        """The same sum by lag, where it goes through taps on its way to the stream."""
        return iter(())

    def taps(self) -> Mapping[str, Float[Tensor, "lag channel"]]:
        """The scalars of each depthwise convolution in it, by what that stands on."""
        return {}

    def readers(self, layer: int) -> Iterator[Reader]:
        """What it reads that can be told apart: queries, keys and values."""
        return iter(())

    def linear(
        self, layer: int, norm: FrozenNorm | None, residual: bool, post_norm: bool
    ) -> Callable[[], LinearLayer] | None:
        """Gives it as a linear map, given frozen factors; None if it is none."""
        return None

    def attending(
        self, layer: int, norm: FrozenNorm | None, W_pos: Tensor | None
    ) -> Attending | None:
        """How its heads attend; None if it has none.

        Args:
            layer: the layer's number.
            norm: the norm before it.
            W_pos: the table of positions, where it is added to queries and keys only.
        """
        return None
