"""Where the values come from that an intervention puts in: nowhere, a mean, or another run."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from interp.analysis.interventions.memory import rows_that_fit
from interp.models.shapes import Tokens
from interp.views import View

Numbers = Int[Tensor, " batch"]
Activations = Mapping[str, Tensor]
"""By the name of the hook point; the batch comes first, and one row stands for all sequences."""


class Source(ABC):
    """What is put in place of what the model computes."""

    @abstractmethod
    def values(
        self, viewed: View, numbers: Numbers, names: Collection[str], clean: Activations
    ) -> Activations:
        """For some of the sequences, at these hook points; `clean` is what the model computes."""


class Zeros(Source):
    """Nothing at all."""

    def values(
        self, viewed: View, numbers: Numbers, names: Collection[str], clean: Activations
    ) -> Activations:
        """Zeros."""
        return {name: torch.zeros_like(clean[name][:1]) for name in names}


class Means(Source):
    """What each position holds on average over a reference batch."""

    def __init__(self, reference: Tokens, at_once: int):
        self._reference, self._at_once = reference, at_once
        self._means: dict[str, Tensor] = {}

    def values(
        self, viewed: View, numbers: Numbers, names: Collection[str], clean: Activations
    ) -> Activations:
        """The means, computed when they are first asked for."""
        if missing := set(names) - set(self._means):
            self._means |= self._measured(viewed, missing)
        return {name: self._means[name] for name in names}

    def _measured(self, viewed: View, names: Collection[str]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        dtypes: dict[str, torch.dtype] = {}
        for some in self._reference.split(self._at_once):
            for name, activation in viewed.capture(some, names).items():
                total = activation.double().sum(0, keepdim=True)
                sums[name] = sums[name] + total if name in sums else total
                dtypes[name] = activation.dtype
        n = len(self._reference)
        return {name: (total / n).to(dtypes[name]) for name, total in sums.items()}


class OtherRun(Source):
    """What the model computes on other tokens, sequence by sequence."""

    def __init__(self, tokens: Tokens):
        self._tokens = tokens

    def values(
        self, viewed: View, numbers: Numbers, names: Collection[str], clean: Activations
    ) -> Activations:
        """The activations of the other run."""
        return viewed.capture(self._tokens[numbers], names)


def source_of(
    viewed: View,
    tokens: Tokens,
    method: str,
    reference: Tokens | None,
    seed: int,
    max_batch: int | None,
) -> Source:
    """What activations are replaced by."""
    if method == "mean":
        given = tokens if reference is None else reference
        return Means(given, max_batch or rows_that_fit(viewed, given.shape[1]))
    if method == "resample":
        return OtherRun(others_of(tokens, reference, seed))
    return Zeros()


def others_of(tokens: Tokens, reference: Tokens | None, seed: int) -> Tokens:
    """For each sequence another one: of a random cycle through them, or from the reference."""
    generator = torch.Generator().manual_seed(seed)
    if reference is not None:
        return reference[torch.randint(len(reference), (len(tokens),), generator=generator)]
    cycle = torch.randperm(len(tokens), generator=generator)
    others = torch.empty_like(cycle)
    others[cycle] = cycle.roll(1)
    return tokens[others]
