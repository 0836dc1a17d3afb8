"""Head scores: how much attention goes to the entries that a kind of head would attend to.

All are measured on repeated random tokens, `[BOS] + r + r`, where only the repetition can be
predicted. A score is a set of (query, key) entries of the attention pattern. On our models no
pattern is ever built (see `interp.views.ours`), so that a score costs little more than the
forward pass below the last attention layer.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from interp.analysis.heads.targets import Target, column, measure, stripe
from interp.analysis.probes.probe import handed_in, origin_of, probe_for
from interp.analysis.probes.sequences import RepeatedTokens
from interp.models.checks import require_choice
from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, Sampling
from interp.views import view

Variant = Literal["stripe", "olsson", "tl"]
Reduce = Literal["mean", "sum"]


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

    Variants, all probabilities of attention; chance is uniform attention over what is visible:

    * `stripe` (default; n = 50, 50 sequences of `[BOS] + r + r`): mean attention from each position
      t of the second copy to t - (n - 1). A perfect head scores 1.
    * `olsson` (Olsson et al. 2022, "prefix matching score"; n = 25, r four times, 10 sequences):
      attention from a token to the tokens that followed each of its earlier occurrences. They
      average entries, so that a perfect head that spreads over its targets scores below 1;
      `reduce="sum"` gives each query's mass on them instead. They leave out the most and the least
      common tokens: by default the first and last 5 % of the ids, which a byte-pair vocabulary
      orders roughly by frequency.
    * `tl` (n = 25, 50 sequences): what TransformerLens's `head_detector` returns with its default
      `error_measure="mul"`. The stripe's mass is divided by all positions, so that a perfect head
      scores 0.49. For comparison only.

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
    require_choice("variant", variant, Variant)
    require_choice("reduce", reduce, Reduce)
    viewed = view(model)
    if exclude is None:
        exclude = common_and_rare(viewed.d_vocab) if variant == "olsson" else ()
    defaults = {"stripe": (50, 2, 50), "olsson": (25, 4, 10), "tl": (25, 2, 50)}
    default_n, copies, default_sequences = defaults[variant]
    probe = probe_for(
        viewed,
        default_n if n is None else n,
        default_sequences if n_sequences is None else n_sequences,
        seed,
        copies=copies,
        exclude=exclude,
    )
    target = _induction_target(probe, variant, reduce)
    chosen = {"variant": variant, "reduce": reduce} if variant == "olsson" else {"variant": variant}
    origin = {**origin_of(viewed, probe), **chosen}
    scores = measure(viewed, probe.tokens, {"induction": target}, "induction_score", origin)
    return scores.sel(score="induction")


def head_scores(
    model: Any, *, n: int = 50, n_sequences: int = 50, seed: int = 0, exclude: Sequence[int] = ()
) -> Result:
    """What is each head: induction, previous-token, duplicate-token, first-token? In one pass.

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
        * `first_token`: from each position but the first to position 0, which is where a head
          looks when it has nothing to do.

        Chance is uniform attention over the visible positions.

    Raises:
        ValueError: sizes that do not fit the context, or a weight that is NaN.

    Source: Olsson et al. 2022; the names are TransformerLens's.

    >>> from interp.models import HookedAttnAttn
    >>> model = HookedAttnAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=128)
    >>> head_scores(model, n=20, n_sequences=4).values.shape
    (4, 4)
    """
    viewed = view(model)
    probe = probe_for(viewed, n, n_sequences, seed, exclude=exclude)
    later = range(1, probe.tokens.shape[1])
    targets = {
        "induction": stripe(probe.positions(1), offset=n - 1),
        "previous_token": stripe(later, offset=1),
        "duplicate_token": stripe(probe.positions(1), offset=n),
        "first_token": column(later, key=0),
    }
    return measure(viewed, probe.tokens, targets, "head_scores", origin_of(viewed, probe))


def previous_token_score(
    model: Any,
    tokens: Tokens | None = None,
    *,
    groups: Groups | None = None,
    n: int = 50,
    n_sequences: int = 50,
    seed: int = 0,
) -> Result:
    """How much does each head attend to the token before? Mean A[t, t-1].

    On repeated random tokens, or, as Olsson et al. 2022 do, on text when `tokens [batch pos]` are
    handed in, with `groups` as in `loss_by_position`. Returns a Result over "head"; chance is
    uniform attention.
    """
    if tokens is None:
        if groups is not None:
            raise ValueError("groups are of tokens that are handed in, and there are none")
        scores = head_scores(model, n=n, n_sequences=n_sequences, seed=seed)
        return scores.sel(score="previous_token")
    viewed = view(model)
    viewed.check_tokens(tokens)
    sampling = Sampling.of(groups, len(tokens))
    target = stripe(range(1, tokens.shape[1]), offset=1)
    origin, name = handed_in(viewed, tokens, sampling), "previous_token_score"
    scores = measure(viewed, tokens, {"previous_token": target}, name, origin, sampling)
    return scores.sel(score="previous_token")


def duplicate_token_score(
    model: Any, *, n: int = 50, n_sequences: int = 50, seed: int = 0
) -> Result:
    """How much does each head attend, from the second copy, to the same token in the first?

    Returns a Result over "head"; see `head_scores`.
    """
    scores = head_scores(model, n=n, n_sequences=n_sequences, seed=seed)
    return scores.sel(score="duplicate_token")


def first_token_score(model: Any, *, n: int = 50, n_sequences: int = 50, seed: int = 0) -> Result:
    """How much does each head rest on position 0?

    Returns a Result over "head"; see `head_scores`.
    """
    return head_scores(model, n=n, n_sequences=n_sequences, seed=seed).sel(score="first_token")


def common_and_rare(d_vocab: int, share: float = 0.05) -> tuple[int, ...]:
    """The first and last ids of a vocabulary, which byte-pair encoding orders roughly by frequency.

    >>> common_and_rare(40)
    (0, 1, 38, 39)
    """
    edge = int(share * d_vocab)
    return (*range(edge), *range(d_vocab - edge, d_vocab))


def _induction_target(probe: RepeatedTokens, variant: Variant, reduce: Reduce) -> Target:
    if variant == "olsson":
        return _after_earlier_occurrences(probe, reduce)
    if variant == "stripe":
        return stripe(probe.positions(1), offset=probe.n - 1)
    if probe.with_replacement:
        raise ValueError(
            f"variant='tl' needs n={probe.n} distinct tokens, but the vocabulary has fewer to "
            "draw from; choose a smaller n"
        )
    return stripe(probe.positions(1), offset=probe.n - 1, divisor=probe.tokens.shape[1])


def _after_earlier_occurrences(probe: RepeatedTokens, reduce: Reduce) -> Target:
    later = [(copy, t) for copy in range(1, probe.copies) for t in probe.positions(copy)]
    entries = [(t, t - back * probe.n + 1) for copy, t in later for back in range(1, copy + 1)]
    queries, keys = (torch.tensor(column) for column in zip(*entries, strict=True))
    return Target(queries, keys, len(entries) if reduce == "mean" else len(later))
