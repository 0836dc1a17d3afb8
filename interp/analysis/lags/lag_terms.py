"""A head's queries, keys and values on sequences as exact sums: one term per lag and constant."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.frozen_factors import scales_of
from interp.analysis.circuits.routes import CHANNELS, Channel, Route, route
from interp.models import HookedSequenceModel
from interp.models.layers import MultiHeadAttention
from interp.models.shapes import Heads, KeyMask


@dataclass(frozen=True, eq=False)
class Split:
    """One head's queries, keys or values as the sum of `terms` over their third axis.

    `names` are "lag 0", "lag 1", ... and the parameters of the constants; there are `lags` of the
    former. Queries and keys are as they meet: after smearing and rotation.
    """

    names: tuple[str, ...]
    lags: int
    terms: Heads

    @classmethod
    def of(
        cls,
        way: Route,
        attn: MultiHeadAttention,
        heard: Mapping[str, Tensor],
        key_mask: KeyMask | None = None,
    ) -> "Split":
        """From what was heard at the hook points `names_for(way)`."""
        stream, scales = heard[way.source], scales_of(way, heard)
        lags = way.parts(stream, scales, key_mask)
        constants = way.constants(stream.shape[1], scales, key_mask)
        shown = [*lags, *(x.expand(len(stream), -1, -1) for x in constants.values())]
        terms = torch.stack(shown, dim=2)
        if attn.rotary is not None and way.channel != "v":
            terms = attn.rotary(terms)
        names = (*(f"lag {lag}" for lag in range(len(lags))), *constants)
        return cls(names, len(lags), terms)

    @property
    def total(self) -> Float[Tensor, "batch pos d_head"]:
        """The query, key or value itself."""
        return self.terms.sum(2)

    def gathered(self, lags: int) -> "Split":
        """All constants in one term, after as many lags; those that there are not are zero."""
        constants = self.terms[:, :, self.lags :].sum(2, keepdim=True)
        missing = torch.zeros_like(constants).expand(-1, -1, lags - self.lags, -1)
        terms = torch.cat([self.terms[:, :, : self.lags], missing, constants], dim=2)
        return Split((*(f"lag {lag}" for lag in range(lags)), "constants"), lags, terms)


def routes(model: HookedSequenceModel, head: str) -> dict[Channel, Route]:
    """The ways to a head's queries, keys and values: all three read the same stream."""
    return {channel: route(model, head, channel) for channel in CHANNELS}


def check_reads_back(model: HookedSequenceModel, ways: Mapping[Channel, Route]) -> None:
    """Refuse a head that reads the current token only: there is nothing to split.

    Raises:
        ValueError: neither a convolution directly below it nor smeared keys.
    """
    if any(way.lags > 1 for way in ways.values()):
        return
    head = ways["q"].head
    convs = [layer for layer in model.conv_layers if layer < ways["q"].layer]
    why = (
        f"between it and the convolution in layer {convs[-1]} lies a layer that is not linear"
        if convs
        else "no convolution with two or more lags lies below it, and its keys are not smeared"
    )
    raise ValueError(f"{head} reads no earlier token through its weights: {why}")
