"""Attention to chosen entries, averaged: what every head score is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.results.sampling import Sampling
from interp.views import Entries, Hook, View

Under = Callable[[Int[Tensor, " batch"]], Sequence[Hook]]
"""The hooks to run some of the sequences under, from their numbers among all."""

TOKENS_AT_ONCE = 4_096
"""How many tokens one forward pass takes: enough to be fast, little enough to stay in a cache."""


@dataclass(frozen=True)
class Target:
    """Entries of the pattern and what their sum is divided by.

    >>> target = stripe(range(1, 4), offset=1)
    >>> target.queries.tolist(), target.keys.tolist()
    ([1, 2, 3], [0, 1, 2])
    """

    queries: Int[Tensor, " entry"]
    keys: Int[Tensor, " entry"]
    divisor: int


def stripe(queries: Iterable[int], offset: int, divisor: int | None = None) -> Target:
    """The entries `offset` positions before each query, averaged."""
    where = torch.tensor(list(queries))
    return Target(where, where - offset, len(where) if divisor is None else divisor)


def column(queries: Iterable[int], key: int) -> Target:
    """The entries of all these queries at one key, averaged."""
    where = torch.tensor(list(queries))
    return Target(where, torch.full_like(where, key), len(where))


def measure(
    viewed: View,
    tokens: Tokens,
    targets: Mapping[str, Target],
    name: str,
    origin: Mapping[str, Any],
    sampling: Sampling | None = None,
    under: Under | None = None,
) -> Result:
    """Each target's score for every head, averaged over sequences, a few sequences at a time."""
    viewed.check_finite()
    n_pos = tokens.shape[1]
    at_once = max(1, TOKENS_AT_ONCE // n_pos)
    uniform = {
        layer: [viewed.uniform(layer, one.queries, one.keys, n_pos) for one in targets.values()]
        for layer in viewed.heads
    }
    samples = torch.cat(
        [
            _samples(viewed, tokens[some], targets, uniform, under(some) if under else ())
            for some in torch.arange(len(tokens)).split(at_once)
        ]
    )
    chance = [
        [
            float(uniform[layer][i].sum() / one.divisor)
            for layer, n in viewed.heads.items()
            for _ in range(n)
        ]
        for i, one in enumerate(targets.values())
    ]
    return Result.from_samples(
        name,
        samples.numpy(),
        ("score", "head"),
        labels={"score": tuple(targets), "head": viewed.head_labels},
        chance=chance,
        unit="probability",
        provenance=origin,
        groups=sampling,
    )


def _samples(
    viewed: View,
    tokens: Tokens,
    targets: Mapping[str, Target],
    uniform: Mapping[int, Sequence[Float[Tensor, " _"]]],
    hooks: Sequence[Hook],
) -> Float[Tensor, "batch score head"]:
    layers: dict[int, Float[Tensor, "batch score heads"]] = {}
    silent = viewed.is_silent

    def read(layer: int, entries: Entries) -> None:
        paid = [entries(target.queries, target.keys).double() for target in targets.values()]
        if silent:  # others' hooks may put attention anywhere
            _check_hidden(viewed, layer, paid, uniform[layer])
        sums = [one.sum(-1) for one in paid]
        divisors = [target.divisor for target in targets.values()]
        layers[layer] = torch.stack(sums, dim=1).cpu() / torch.tensor(divisors)[:, None]

    viewed.read_attention(tokens, read, hooks=hooks)
    return torch.cat([layers[layer] for layer in viewed.heads], dim=-1)


def _check_hidden(
    viewed: View,
    layer: int,
    paid: Sequence[Float[Tensor, "batch head _"]],
    uniform: Sequence[Float[Tensor, " _"]],
) -> None:
    """Chance counts the keys that a query sees: nothing may go to any other."""
    for one, expected in zip(paid, uniform, strict=True):
        hidden = expected == 0
        if hidden.any() and one[..., hidden.to(one.device)].any():
            raise ValueError(
                f"{viewed.name}: layer {layer} attends to keys that it does not see on other "
                "tokens, so which keys it sees depends on what they are (sparse attention), and "
                "there is no chance level; look at attention_pattern instead"
            )
