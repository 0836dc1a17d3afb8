"""Does a head smear its keys? How much of a query, key or value comes from which token, and how.

Smeared keys (Olsson et al. 2022, argument 2) mix every key with the key before it, through one map.
A convolution below a head can do that, or read the token before through another map altogether, or
not at all. No published detector tells these apart; this one is ours.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.diagonal_preference import Rows
from interp.analysis.circuits.matching import embedding_is_hidden, head_matches
from interp.analysis.circuits.reads import HeadReads, all_reads
from interp.analysis.circuits.routes import Channel, at_distance, check_distance, ours
from interp.analysis.lags.lag_circuits import heads_that_read_back
from interp.analysis.lags.smear_findings import GROUPS, Finding, Place, of_weights, on_tokens
from interp.analysis.probes.probe import handed_in
from interp.models import HookedSequenceModel
from interp.models.shapes import Tokens
from interp.results.result import Result, versions
from interp.results.sampling import Groups, Sampling
from interp.views import view

ORDER: tuple[Channel, ...] = ("k", "q", "v")
FIXED = ("alignment", "alignment_null", "smear", "smear_fit")
ON_TOKENS = ("predicted", "predicted_scores", "smeared_scores")
UNITS = {
    "lag_share": "share of variance",
    "alignment": "cosine",
    "smear": "share of the current token",
    "smear_fit": "share of length",
    "match": "deviations",
    "predicted": "share of variance",
    "smeared_scores": "share of variance",
}


def detect_smeared_keys(
    model: Any,
    tokens: Tokens | None = None,
    *,
    groups: Groups | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    distance: int = 0,
) -> Result:
    """Which tokens do a head's keys, queries and values come from, and is that smearing?

    An ordinary head reads each token by itself. With smeared keys it reads a mix of two by one map;
    above a convolution it can read the token before by any map. Lengths are measured as what meets
    them sees them, `<K_i, K_j> = tr(K_iᵀ Σ K_j M)`: keys by queries, queries by keys, values by
    what W_O writes of them. The measures of each channel and head:

    * `lag_share_j`: the part of the vectors' variance that comes from the token j back; over all j
      they add up to 1.
    * `alignment`: the cosine between the maps of lags 0 and 1. 1 is one map for both, smearing; 0
      two unrelated maps; negative a difference filter. `alignment_null` is its deviation, around
      0, if one of the two read the stream through a random (Haar) rotation R, K_j ↦ R K_j:
      `ν_j² = tr(M K_jᵀ K_j M K_iᵀ Σ² K_i) / (tr Σ · tr(K_jᵀ K_j M) · <K_i, K_i>)`, i the other
      lag; the larger one of ν_0 and ν_1. The stream's own axes are turned and
      not its principal ones made equal: random weights, too, see most of the few directions in
      which a stream varies most. Where a LayerNorm takes the mean off, R turns what is left.
    * `smear`: σ̂, where lags 0 and 1 are fitted as σ̂ and 1 - σ̂ times one map, and `smear_fit`, the
      share of their squared length that the fit keeps (R², at least 1/2). An ordinary head has
      σ̂ = 1, a pure shift σ̂ = 0, both with a fit of 1: smearing is 0 < σ̂ < 1 and alignment near 1.
      Outside [0, 1] it is a difference filter.
    * `match_j`, of keys: how far the query's own token stands out among all keys when it stands j
      back from the key, as a mean z-value; an induction head matches at 1. Of queries: the key's
      own token, j back from the query. `match_table` has every pair and what chance would give.
    * With tokens, `predicted`: R² of the weights' account (mean scales, and an intercept) of the
      vectors that the model computes. `predicted_scores`: of its scores, with an intercept for
      every query, when this channel's vectors come from the account. `smeared_scores`: of its
      scores if the keys were literally smeared, by the one map that fits lags 0 and 1 best.

    Args:
        model: an interp model with a convolution directly below a head, or with smeared keys.
        tokens: `[batch pos]` of text that the model was not trained on. They give the covariances
            of the stream, the queries that measure the keys, and the mean scales of the norms.
            Without, all come from the embedding: tokens at different positions are taken as
            independent, and positions are left out.
        groups: which text each sequence is from, as in `loss_by_position`.
        frequencies: how frequent each token is, where there are no tokens; default: all alike.
        distance: with rotary positions, how far back the key is that a query measures.

    Returns:
        A Result over "channel" (k, q, v), "head" and "measure". Standard errors are a jackknife's
        that leaves out a sixteenth of the sequences in turn: whole groups, or a stretch of
        consecutive sequences where no groups are given. What is undefined is NaN, and
        `provenance["undefined"]` has the reason.

    Raises:
        TypeError: not an interp model.
        ValueError: no head reads an earlier token through its weights; the stream below a head is
            not the embedding and there are no tokens; tokens that the model cannot read.

    Source: ours. Smeared keys: Olsson et al., In-context Learning and Induction Heads (2022).

    >>> from interp.models import HookedSmearedAttn
    >>> model = HookedSmearedAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> found = detect_smeared_keys(model)  # α is 0 before training: half of each key
    >>> found.sel(channel="k", measure="smear").values.round(3).tolist()
    [0.5, 0.5]
    """
    model = ours(model)
    seen = view(model)
    ways = heads_that_read_back(model)
    heads = tuple(ways)
    check_distance(model, distance)
    if tokens is not None:
        seen.check_tokens(tokens, at_least=max(way["k"].lags for way in ways.values()))
    elif groups is not None:
        raise ValueError("groups are of tokens that are handed in, and there are none")
    sampling = None if tokens is None else Sampling.of(groups, len(tokens))
    seen.check_finite()
    read = all_reads(model, heads, tokens, frequencies)
    if tokens is None or sampling is None:
        findings = of_weights(model, read, frequencies, distance)
        origin = {"model": seen.name, "covariances": _of_embedding(frequencies)}
    else:
        left_out = sampling.merged(GROUPS)
        findings = on_tokens(model, read, tokens, distance, left_out)
        parts = "sets of groups" if sampling.grouped else "stretches of the sequences"
        origin = {
            **handed_in(seen, tokens, left_out),
            "errors": f"jackknife over {left_out.n_groups} {parts}",
            "covariances": "tokens",
        }
    for place, finding in _matched(model, read, distance).items():
        findings[place] |= finding
    origin |= {
        "scales": read[heads[0]]["k"].scales_from,
        **at_distance(model, distance),
        "undefined": {
            f"{channel} {head} {measure}": why
            for (channel, head), finding in findings.items()
            for measure, why in finding.undefined.items()
        },
        "versions": versions(),
    }
    n_lags = max(one["k"].lags for one in read.values())
    return _result(findings, heads, _measures(n_lags, tokens is not None), origin)


def _measures(n_lags: int, on_tokens: bool) -> tuple[str, ...]:
    by_lag = [tuple(f"{name}_{lag}" for lag in range(n_lags)) for name in ("lag_share", "match")]
    return (*by_lag[0], *FIXED, *by_lag[1], *(ON_TOKENS if on_tokens else ()))


def _of_embedding(frequencies: Float[Tensor, " vocab"] | None) -> str:
    given = "uniform" if frequencies is None else "given"
    return f"the embedding under {given} frequencies, lags independent, no positions"


def _matched(
    model: HookedSequenceModel, read: Mapping[str, HeadReads], distance: int
) -> dict[Place, Finding]:
    """The match of each key lag with query lag 0, and of each query lag with key lag 0."""
    rows = Rows.of(model.W_E)
    findings: dict[Place, Finding] = {}
    for head, one in read.items():
        cells = {"k": [math.nan] * one["k"].lags, "q": [math.nan] * one["q"].lags}
        why = embedding_is_hidden(model, one["k"])
        if not why:
            table = head_matches(model, rows, one, distance).value
            cells = {"k": table[0].tolist(), "q": table[:, 0].tolist()}
        for channel in ("k", "q"):
            numbers = {f"match_{lag}": cell for lag, cell in enumerate(cells[channel])}
            findings[channel, head] = Finding(numbers, dict.fromkeys(numbers, why) if why else {})
    return findings


def _result(
    findings: Mapping[Place, Finding],
    heads: tuple[str, ...],
    measures: tuple[str, ...],
    origin: Mapping[str, Any],
) -> Result:
    def table(pick: Callable[[Finding, str], float]) -> np.ndarray:
        rows = [[findings[channel, head] for head in heads] for channel in ORDER]
        return np.array([[[pick(cell, m) for m in measures] for cell in row] for row in rows])

    def number(finding: Finding, measure: str) -> float:
        # A lag that a channel does not have adds nothing; any other number is simply not there.
        absent = 0.0 if measure.startswith("lag_share") else math.nan
        return finding.numbers.get(measure, absent)

    zero = [0.0 if m == "alignment" or m.startswith("match") else math.nan for m in measures]
    return Result(
        "smeared_keys",
        table(number),
        ("channel", "head", "measure"),
        labels={"channel": ORDER, "head": heads, "measure": measures},
        standard_error=table(lambda finding, measure: finding.errors.get(measure, math.nan)),
        chance=np.array(zero),
        unit={m: next(u for name, u in UNITS.items() if m.startswith(name)) for m in measures},
        provenance=origin,
    )
