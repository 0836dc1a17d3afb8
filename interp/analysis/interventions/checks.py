"""What an ablation is refused for, before any work, and where its replacements come from."""

from typing import Any, Literal, get_args

import torch

from interp.analysis.interventions.controls import (
    Control,
)
from interp.analysis.interventions.memory import rows_that_fit
from interp.analysis.interventions.metrics import InductionScore, LogitMetric, Metric
from interp.analysis.interventions.replacements import Means, OtherRun, Source, Zeros
from interp.analysis.probes.sequences import RepeatedTokens
from interp.models.shapes import Tokens
from interp.views import View

Method = Literal["zero", "mean", "resample", "pattern_preserving"]


def as_tokens(seen: View, tokens: Any) -> Tokens:
    """Sequences of one length as a tensor; refuses what the model cannot read."""
    if isinstance(tokens, RepeatedTokens):
        tokens = tokens.tokens
    if isinstance(tokens, list | tuple):
        lengths = sorted({len(sequence) for sequence in tokens})
        if len(lengths) > 1:
            raise ValueError(
                f"the sequences have {', '.join(map(str, lengths))} tokens, but must all be of one "
                "length; cut them to the shortest"
            )
        tokens = torch.stack([torch.as_tensor(sequence) for sequence in tokens])
    seen.check_tokens(tokens)
    return tokens


def check_measure(seen: View, metric: Metric, tokens: Tokens, max_batch: int | None) -> None:
    """Refuse a metric that cannot be measured on these tokens, or not so few at a time."""
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch={max_batch} must be at least 1")
    takes_all = isinstance(metric, LogitMetric) and metric.takes_all
    if takes_all and max_batch is not None and max_batch < len(tokens):
        raise ValueError(
            f"max_batch={max_batch}, but the metric {metric.name} is shown all {len(tokens)} "
            "sequences at once; give fewer sequences or a larger max_batch"
        )
    metric.check(seen, tokens)


def check_options(
    method: Method, control: Control | None, n_random: int, both_orders: bool
) -> None:
    """Refuse a method or control that there is not, and two orders at once."""
    for name, value, kind in (("method", method, Method), ("control", control, Control)):
        if value is not None and value not in get_args(kind):
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(kind))}")
    if n_random < 1:
        raise ValueError(f"n_random={n_random} must be at least 1; control='none' draws nothing")
    if both_orders:
        raise ValueError("pairs and cumulative are two questions; ask for one of them")


def check_method(
    seen: View, method: Method, metric: Metric, tokens: Tokens, reference: Tokens | None
) -> None:
    """Refuse what a method cannot do to this model, metric or these tokens."""
    if method == "pattern_preserving" and isinstance(metric, InductionScore):
        raise ValueError(
            "pattern_preserving holds every attention pattern at its clean value, so "
            f"{metric.name} cannot change; use method='zero'"
        )
    if method not in ("mean", "resample"):
        if reference is not None:
            raise ValueError(f"method={method!r} takes nothing from a reference; leave it out")
        return
    if reference is None:
        if len(tokens) == 1:
            raise ValueError(
                f"method={method!r} takes its values from other sequences, but there is one only; "
                "give several, or a reference"
            )
        return
    seen.check_tokens(reference)
    if reference.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"the reference has sequences of {reference.shape[1]} tokens, the tokens of "
            f"{tokens.shape[1]}; both must be of one length"
        )


def source_of(
    seen: View,
    tokens: Tokens,
    method: Method,
    reference: Tokens | None,
    seed: int,
    max_batch: int | None,
) -> Source:
    """What activations are replaced by."""
    if method == "mean":
        given = tokens if reference is None else reference
        return Means(given, max_batch or rows_that_fit(seen, given.shape[1]))
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
