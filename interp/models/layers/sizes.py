"""What a kind of layer may ask of the model that it is built for."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Sizes(Protocol):
    """A `ModelConfig` has all of it, and nothing else of it is anybody's concern."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def n_ctx(self) -> int:
        """The longest sequence that the model reads."""
        ...

    @property
    def positions(self) -> str:
        """How positions come in: "learned", "rotary", ..."""
        ...

    @property
    def rotary_base(self) -> float:
        """The longest rotary wavelength, in positions, over 2 pi."""
        ...

    @property
    def norm_place(self) -> str:
        """Before what a sublayer reads ("pre"), or on the stream after it has written ("post")."""
        ...

    @property
    def dropout(self) -> float:
        """Share of activations dropped in training."""
        ...
