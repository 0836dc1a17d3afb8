"""Head scores: how much attention goes to the entries that a kind of head would attend to.

All are measured on repeated random tokens, `[BOS] + r + r`, where only the repetition can be predicted. A score
is a set of (query, key) entries of the attention pattern; on our models no pattern is ever built (see
`interp.models.protocol`), so that a score costs little more than the forward pass below the last attention layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analysis.result import Result, versions
from interp.analysis.sequences import RepeatedTokens, repeated_tokens
from interp.models.protocol import Entries, View, view
from interp.models.shapes import Tokens

Variant = Literal["stripe", "olsson", "tl"]
Reduce = Literal["mean", "sum"]

TOKENS_AT_ONCE = 16_384
"""How many tokens one forward pass takes: enough to be fast, little enough to stay small."""


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

    def chance(self, n_pos: int, causal: bool) -> float:
        """The score of uniform attention over the visible positions."""
        visible = self.queries + 1 if causal else torch.full_like(self.queries, n_pos)
        return float((1 / visible.double()).sum() / self.divisor)


def stripe(queries: Iterable[int], offset: int, divisor: int | None = None) -> Target:
    """The entries `offset` positions before each query, averaged."""
    where = torch.tensor(list(queries))
    return Target(where, where - offset, len(where) if divisor is None else divisor)


def induction_score(
    model: Any,
    *,
    variant: Variant = "stripe",
    n: int | None = None,
    n_sequences: int | None = None,
    seed: int = 0,
    reduce: Reduce = "mean",
    exclude: Sequence[int] | None = None,
) -> Result:
    """How much does each head attend to the token after the current token's first occurrence?

    Variants, all probabilities of attention, chance being uniform attention over the visible positions:

    * `stripe` (default; n = 50, 50 sequences of `[BOS] + r + r`): mean attention from each position t of the second
      copy to t - (n - 1). A perfect head scores 1.
    * `olsson` (Olsson et al. 2022, "prefix matching score"; n = 25, r four times, 10 sequences): attention from a
      token to the tokens that followed each of its earlier occurrences. They average entries, so that a perfect head
      that spreads over its targets scores below 1; `reduce="sum"` gives each query's mass on them instead.
      They leave out the most and the least common tokens: by default the first and last 5 % of the ids, which
      a byte-pair vocabulary orders roughly by frequency.
    * `tl` (n = 25): what TransformerLens's `head_detector` returns with its default `error_measure="mul"`. The
      stripe's mass is divided by all positions, so that a perfect head scores 0.49. For comparison only.

    Args:
        model: one of ours, or a `TransformerBridge`.
        variant: see above.
        n: tokens in one copy.
        n_sequences: sequences to average over; the standard error is over them.
        seed: of the random tokens.
        reduce: "mean" over entries or "sum" per query; they differ for `olsson` only.
        exclude: token ids never drawn, besides special tokens.

    Returns:
        A Result over "head", labelled "L1H3".

    Raises:
        ValueError: a wrong variant, sizes that do not fit the context, or a weight that is NaN.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=128)
    >>> induction_score(model, n=20, n_sequences=4).labels["head"]
    ('L1H0', 'L1H1')
    """
    _check_choice("variant", variant, Variant)
    _check_choice("reduce", reduce, Reduce)
    seen = view(model)
    if variant == "stripe":
        probe = _probe(seen, n or 50, 2, n_sequences or 50, seed, exclude or ())
        target = stripe(probe.positions(1), offset=probe.n - 1)
    elif variant == "olsson":
        rare = common_and_rare(seen.d_vocab) if exclude is None else exclude
        probe = _probe(seen, n or 25, 4, n_sequences or 10, seed, rare)
        target = _after_earlier_occurrences(probe, reduce)
    else:
        probe = _probe(seen, n or 25, 2, n_sequences or 50, seed, exclude or ())
        if probe.with_replacement:
            raise ValueError(
                f"variant 'tl' needs n={probe.n} distinct tokens, but fewer are left to draw from"
            )
        target = stripe(probe.positions(1), probe.n - 1, divisor=probe.tokens.shape[1])
    origin = _origin(seen, probe, variant=variant)
    if variant == "olsson":
        origin["reduce"] = reduce
    result = _measure(seen, probe.tokens, {"induction": target}, "induction_score", origin)
    return result.sel(score="induction")


def head_scores(
    model: Any, *, n: int = 50, n_sequences: int = 50, seed: int = 0, exclude: Sequence[int] = ()
) -> Result:
    """What is each head: induction, previous-token, duplicate-token, first-token? All four in one pass.

    Args:
        model: one of ours, or a `TransformerBridge`.
        n: tokens in one copy of `[BOS] + r + r`.
        n_sequences: sequences to average over; the standard error is over them.
        seed: of the random tokens.
        exclude: token ids never drawn, besides special tokens.

    Returns:
        A Result over "score" and "head": attention, as a probability, averaged

        * `induction`: from each position t of the second copy to t - (n - 1);
        * `previous_token`: from each position but the first to the one before;
        * `duplicate_token`: from each position t of the second copy to t - n;
        * `first_token`: from each position but the first to position 0 (a resting place, not a mechanism).

        Chance is uniform attention over the visible positions.

    Source: Olsson et al. 2022; the names are TransformerLens's.

    >>> from interp.models import HookedAttnAttn
    >>> model = HookedAttnAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=128)
    >>> head_scores(model, n=20, n_sequences=4).values.shape
    (4, 4)
    """
    seen = view(model)
    probe = _probe(seen, n, 2, n_sequences, seed, exclude)
    later = range(1, probe.tokens.shape[1])
    targets = {
        "induction": stripe(probe.positions(1), offset=n - 1),
        "previous_token": stripe(later, offset=1),
        "duplicate_token": stripe(probe.positions(1), offset=n),
        "first_token": _column(later),
    }
    return _measure(seen, probe.tokens, targets, "head_scores", _origin(seen, probe))


def previous_token_score(
    model: Any, tokens: Tokens | None = None, *, n: int = 50, n_sequences: int = 50, seed: int = 0
) -> Result:
    """How much does each head attend to the token before? Mean A[t, t-1].

    On repeated random tokens, or, as Olsson et al. 2022 do, on text when `tokens [batch pos]` are handed in.
    Returns a Result over "head"; chance is uniform attention.
    """
    if tokens is None:
        return head_scores(model, n=n, n_sequences=n_sequences, seed=seed).sel(
            score="previous_token"
        )
    seen = view(model)
    seen.check_tokens(tokens)
    target = stripe(range(1, tokens.shape[1]), offset=1)
    origin = {"model": seen.name, "tokens": "handed in", "versions": versions()}
    result = _measure(seen, tokens, {"previous_token": target}, "previous_token_score", origin)
    return result.sel(score="previous_token")


def duplicate_token_score(
    model: Any, *, n: int = 50, n_sequences: int = 50, seed: int = 0
) -> Result:
    """How much does each head attend, from the second copy, to the same token in the first? See `head_scores`."""
    return head_scores(model, n=n, n_sequences=n_sequences, seed=seed).sel(score="duplicate_token")


def first_token_score(model: Any, *, n: int = 50, n_sequences: int = 50, seed: int = 0) -> Result:
    """How much does each head rest on position 0? See `head_scores`."""
    return head_scores(model, n=n, n_sequences=n_sequences, seed=seed).sel(score="first_token")


def common_and_rare(d_vocab: int, share: float = 0.05) -> tuple[int, ...]:
    """The first and the last ids of a vocabulary, which byte-pair encoding orders roughly by frequency."""
    edge = int(share * d_vocab)
    return (*range(edge), *range(d_vocab - edge, d_vocab))


def _check_choice(name: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(kind))}")


def _probe(
    seen: View, n: int, copies: int, n_sequences: int, seed: int, exclude: Iterable[int]
) -> RepeatedTokens:
    return repeated_tokens(
        n,
        d_vocab=seen.d_vocab,
        bos=seen.bos,
        exclude=(*seen.special_tokens, *exclude),
        copies=copies,
        n_sequences=n_sequences,
        n_ctx=seen.n_ctx,
        seed=seed,
    )


def _column(queries: Iterable[int]) -> Target:
    where = torch.tensor(list(queries))
    return Target(where, torch.zeros_like(where), len(where))


def _after_earlier_occurrences(probe: RepeatedTokens, reduce: Reduce) -> Target:
    later = [(copy, t) for copy in range(1, probe.copies) for t in probe.positions(copy)]
    entries = [(t, t - back * probe.n + 1) for copy, t in later for back in range(1, copy + 1)]
    queries, keys = (torch.tensor(column) for column in zip(*entries, strict=True))
    return Target(queries, keys, len(entries) if reduce == "mean" else len(later))


def _origin(seen: View, probe: RepeatedTokens, **more: Any) -> dict[str, Any]:
    drawn = "with replacement" if probe.with_replacement else "distinct"
    facts = {"n": probe.n, "copies": probe.copies, "random_tokens": drawn, "seed": probe.seed}
    return {"model": seen.name, **more, **facts, "bos": seen.bos, "versions": versions()}


def _measure(
    seen: View, tokens: Tokens, targets: Mapping[str, Target], name: str, origin: Mapping[str, Any]
) -> Result:
    """Each target's score for every head, averaged over sequences, a few sequences at a time."""
    seen.check_finite()
    at_once = max(1, TOKENS_AT_ONCE // tokens.shape[1])
    samples = torch.cat([_samples(seen, some, targets) for some in tokens.split(at_once)])
    chance = [
        [
            target.chance(tokens.shape[1], seen.causal(layer))
            for layer, n in seen.heads.items()
            for _ in range(n)
        ]
        for target in targets.values()
    ]
    return Result.from_samples(
        name,
        samples.numpy(),
        ("score", "head"),
        labels={"score": tuple(targets), "head": seen.head_labels},
        chance=np.array(chance),
        unit="probability",
        provenance=origin,
    )


def _samples(
    seen: View, tokens: Tokens, targets: Mapping[str, Target]
) -> Float[Tensor, "batch score head"]:
    layers: dict[int, Float[Tensor, "batch score heads"]] = {}

    def hear(layer: int, entries: Entries) -> None:
        means = [
            entries(target.queries, target.keys).double().sum(-1) / target.divisor
            for target in targets.values()
        ]
        layers[layer] = torch.stack(means, dim=1).cpu()

    seen.listen_to_attention(tokens, hear)
    return torch.cat([layers[layer] for layer in seen.heads], dim=-1)
