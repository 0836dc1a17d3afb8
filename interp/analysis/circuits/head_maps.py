"""A model's heads as maps on its stream, at their own input: gains folded in, means taken off.

A norm acts as `C diag(γ) / s` on what it reads. C diag(γ) is folded into the maps behind it; the
scale s depends on the token, is a common factor of everything that one head reads, and is left out.
Where a LayerNorm takes the mean off, what is written along (1, ..., 1) reaches nobody: it is taken
off the maps that write as well, as TransformerLens's `fold_ln` and `center_writing_weights` do.
Biases are no part of a map. Everything is in float32 or wider.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits import routes
from interp.analysis.circuits.frozen_factors import mean_scales
from interp.analysis.circuits.reads import HeadReads, Reads, all_reads, reads
from interp.models.block import Block
from interp.models.layers import MultiHeadAttention
from interp.models.linear import FrozenNorm, wide
from interp.models.shapes import Tokens
from interp.views import View


@dataclass(frozen=True, eq=False)
class Heads:
    """The maps of one layer's heads."""

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]


NO_NORM = FrozenNorm("", centered=False, gain=None, offset=None, eps=0.0)
"""What stands for a norm where there is none: it leaves all maps as they are."""


class Folded(ABC):
    """The maps of any model; `folded(model)` makes them.

    `residual` is False where a layer replaces the stream, `rotary` True where the circuits of
    queries and keys depend on the distance. `width` counts the dimensions of the stream that its
    readers can tell apart.
    """

    residual: bool
    rotary: bool
    width: int

    def __init__(self, seen: View):
        self.seen, self.model = seen, seen.model

    def at(self, distance: int) -> dict[str, int]:
        """The provenance of a distance, where it matters."""
        return {"distance": distance} if self.rotary else {}

    @abstractmethod
    def place(self, head: str) -> tuple[int, int]:
        """Layer and index of "L1H3"; a ValueError names the heads there are."""

    @abstractmethod
    def heads(self, layer: int) -> Heads:
        """The maps of a layer, at its own input."""

    @abstractmethod
    def read(self, head: str, tokens: Tokens | None) -> HeadReads:
        """The maps of one head, from below the convolutions under it."""

    @abstractmethod
    def values(self, layer: int, tokens: Tokens | None) -> Float[Tensor, "head lag d_model d_head"]:
        """The value maps of a layer, from below the convolutions under it."""

    @abstractmethod
    def outputs(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O, as the stream's readers see it."""

    @abstractmethod
    def rotation(self, layer: int, distance: int) -> Float[Tensor, "d_head d_head"] | None:
        """R with score = q R kᵀ at this distance from query to key; None where nothing turns."""

    @abstractmethod
    def last_norm(self) -> FrozenNorm:
        """What the last norm leaves in the maps before the unembedding."""

    @abstractmethod
    def check_embedding(self, head: str) -> None:
        """A ValueError where the embedding is no part of the stream that a head reads."""

    @abstractmethod
    def check_output(self, layer: int) -> None:
        """A ValueError where the unembedding does not read what this layer writes."""

    @abstractmethod
    def biases(self, read: HeadReads, channels: str) -> list[str]:
        """What the circuits of these channels leave out, by name; "v" goes on to the logits."""

    @abstractmethod
    def position_table(self, head: str) -> Float[Tensor, "pos d_model"]:
        """W_pos; a ValueError where no table of positions reaches the head."""

    def position_reads(self, read: HeadReads) -> HeadReads:
        """What the head makes of the table of positions: what it makes of the stream."""
        return read

    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_E, as it enters the stream but for a constant factor."""
        return wide(self.model.W_E)

    def unembedding(self) -> Float[Tensor, "d_model vocab"]:
        """W_U."""
        return wide(self.model.W_U)


class OurFolded(Folded):
    """Of an interp model."""

    def __init__(self, seen: View):
        super().__init__(seen)
        config = self.model.config
        self.residual, self.rotary = config.residual, config.positions == "rotary"
        self.width = config.d_model - (config.norm == "layer")

    def place(self, head: str) -> tuple[int, int]:
        """Layer and index of a head."""
        return routes.place_of(self.model, head)

    def heads(self, layer: int) -> Heads:
        """The maps of a layer; not for post-norm."""
        self._refuse_post_norm()
        attn, norm = self.model.attn(layer), self.norm(layer)
        W_Q, W_K, W_V = (norm.reading(wide(W)) for W in (attn.W_Q, attn.W_K, attn.W_V))
        return Heads(W_Q, W_K, W_V, norm.writing(wide(attn.W_O)))

    def lags(self, layer: int) -> Float[Tensor, "lag d_model d_model"]:
        """The maps of a convolution without its residual path, one per lag; not for post-norm."""
        self._refuse_post_norm()
        norm = self.norm(layer)
        return norm.writing(norm.reading(wide(self.model.conv(layer).W)))

    def norm(self, layer: int) -> FrozenNorm:
        """What the norm before a layer's mixer leaves in the maps."""
        return _fold(cast(Block, self.model.blocks[layer]).ln1)

    def read(self, head: str, tokens: Tokens | None) -> HeadReads:
        """As `interp.analysis.circuits.reads` gives them."""
        return all_reads(self.model, [head], tokens)[head]

    def values(self, layer: int, tokens: Tokens | None) -> Float[Tensor, "head lag d_model d_head"]:
        """As `interp.analysis.circuits.reads` gives them, the scales measured once."""
        heads = [f"L{layer}H{index}" for index in range(self.seen.heads[layer])]
        scales = mean_scales(self.model, routes.route(self.model, heads[0], "v"), tokens, None)
        return torch.stack([reads(self.model, head, "v", scales=scales).maps for head in heads])

    def outputs(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O; a post-norm model's as it is."""
        W_O = wide(self.model.attn(layer).W_O)
        return W_O if self._post_norm else self.norm(layer).writing(W_O)

    def rotation(self, layer: int, distance: int) -> Float[Tensor, "d_head d_head"] | None:
        """R at this distance."""
        attn: MultiHeadAttention = self.model.attn(layer)
        turned = routes.rotation(attn, distance)
        return None if attn.rotary is None else turned

    def last_norm(self) -> FrozenNorm:
        """What ln_final leaves."""
        return _fold(self.model.ln_final)

    def check_embedding(self, head: str) -> None:
        """The embedding itself, or a residual stream that it is a part of."""
        layer, _ = self.place(head)
        source = min(routes.run_below(self.model, layer), default=layer)
        if source == 0:
            return
        self._refuse_post_norm()
        if not self.residual:
            raise ValueError(
                f"{self.seen.name} has no residual stream: {head} reads what layer {source - 1} "
                "made of the tokens, not the tokens; ask for the residual basis"
            )

    def check_output(self, layer: int) -> None:
        """A residual stream, or the last layer."""
        self._refuse_post_norm()
        last = len(self.model.blocks) - 1
        if not self.residual and layer < last:
            raise ValueError(
                f"{self.seen.name} has no residual stream: what layer {layer} writes is read by "
                f"layer {layer + 1}, not by the unembedding; ask for the residual basis"
            )

    def biases(self, read: HeadReads, channels: str) -> list[str]:
        """Those that exist: offsets and biases below, and behind values b_O, ln_final.b and b_U."""
        names = {name for c, one in read.items() if c in channels for name in one.constants}
        if "v" in channels:
            layer, _ = self.place(read["v"].head)
            behind = (f"blocks.{layer}.attn.b_O", "ln_final.b", "unembed.b_U")
            names.update(name for name, _ in self.model.named_parameters() if name in behind)
        return sorted(names)

    def position_table(self, head: str) -> Float[Tensor, "pos d_model"]:
        """W_pos, where it is in the stream or added to this head's queries and keys."""
        layer, _ = self.place(head)
        if not self.model.attn(layer).sees_positions:
            raise ValueError(f"the layer of {head} sees no positions: none are added there")
        if self.model.pos_embed is None:
            raise ValueError(
                f"{self.seen.name} has no table of positions: they are "
                f"{self.model.config.positions!r}"
                + ("; ask for another basis, at a distance" if self.rotary else "")
            )
        if self.model.positions_enter_stream:
            self.check_embedding(head)
        return wide(self.model.W_pos)

    def position_reads(self, read: HeadReads) -> HeadReads:
        """Positions that are added to queries and keys come after convolutions and norms."""
        if self.model.positions_enter_stream:
            return read
        return {channel: self._past_the_norm(one) for channel, one in read.items()}

    def _past_the_norm(self, read: Reads) -> Reads:
        end = replace(routes.route(self.model, read.head, read.channel).end, norm=None)
        maps = end.maps(torch.eye(len(end.weight)).to(end.weight)[None], 1.0)
        return replace(read, maps=maps, scales={}, scales_from="no norm")

    @property
    def _post_norm(self) -> bool:
        return self.model.config.norm_place == "post"

    def _refuse_post_norm(self) -> None:
        if self._post_norm:
            raise ValueError(
                f"{self.seen.name} normalises the stream itself after every layer (post-norm), so "
                "what one layer writes is not what another reads. Use a pre-norm model"
            )


def _fold(norm: Any) -> FrozenNorm:
    return FrozenNorm.of(norm, "") or NO_NORM
