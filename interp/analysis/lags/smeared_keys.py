"""Does a head smear its keys? How much of a query, key or value comes from which token, and how.

Smeared keys (Olsson et al. 2022, argument 2) mix every key with the key before it, through one map.
A convolution below a head can do that, or read the token before through another map altogether, or
not at all. No published detector tells these apart; this one is ours.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.head_maps import HeadMaps, at_distance, by_layer, check_distance
from interp.analysis.circuits.matching import Rows, head_matches
from interp.analysis.circuits.reads import (
    TOKENS_AT_ONCE,
    HeadReads,
    activations,
    embedding_moments,
    read_heads,
)
from interp.analysis.lags.key_geometry import (
    Additive,
    Computed,
    Geometry,
    HeadSums,
    Second,
    geometry,
    grams_of_weights,
)
from interp.analysis.lags.lag_circuits import heads_that_read_back
from interp.analysis.probes.probe import handed_in
from interp.models.linear import Channel, later
from interp.models.shapes import Stream, Tokens
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

GROUPS = 16
"""The most groups of sequences that the jackknife leaves out in turn."""

HeadChannel = tuple[Channel, str]
Total = TypeVar("Total", bound=Additive)
Vectors = Float[Tensor, "batch pos d_head"]
Account = Literal["q", "k", "smeared"]
"""Queries from the weights' account, keys from it, or keys that are literally smeared."""


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
        TypeError: another library's model, whose convolutions cannot be read yet.
        ValueError: no head reads an earlier token through its weights; the stream below a head is
            not the embedding and there are no tokens; tokens that the model cannot read.

    Source: ours. Smeared keys: Olsson et al., In-context Learning and Induction Heads (2022).

    >>> from interp.models import HookedSmearedAttn
    >>> model = HookedSmearedAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> found = detect_smeared_keys(model)  # α is 0 before training: half of each key
    >>> found.sel(channel="k", measure="smear").values.round(3).tolist()
    [0.5, 0.5]
    """
    viewed = view(model)
    heads = heads_that_read_back(viewed, past_mlps=tokens is not None)
    check_distance(viewed, heads.values(), distance)
    if tokens is not None:
        longest = max(way.lags for head in heads.values() for way in head.routes.values())
        viewed.check_tokens(tokens, at_least=longest)
    elif groups is not None:
        raise ValueError("groups are of tokens that are handed in, and there are none")
    sampling = None if tokens is None else Sampling.of(groups, len(tokens))
    viewed.check_finite()
    read = read_heads(heads.values(), tokens, frequencies)
    if tokens is None or sampling is None:
        findings = _of_weights(heads, read, frequencies, distance)
        origin = {"model": viewed.name, "covariances": _of_embedding(frequencies)}
    else:
        left_out = sampling.merged(GROUPS)
        findings = _on_tokens(heads, read, tokens, distance, left_out)
        parts = "sets of groups" if sampling.grouped else "stretches of the sequences"
        origin = {
            **handed_in(viewed, tokens, left_out),
            "errors": f"jackknife over {left_out.n_groups} {parts}",
            "covariances": "tokens",
        }
    for place, finding in _matched(heads, read, distance).items():
        findings[place] |= finding
    origin |= {
        "scales": next(iter(read.values()))["k"].scales_from,
        **at_distance(heads.values(), distance),
        "undefined": {
            f"{channel} {head} {measure}": why
            for (channel, head), finding in findings.items()
            for measure, why in finding.undefined.items()
        },
        "versions": versions(),
    }
    n_lags = max(way.lags for one in read.values() for way in one.values())
    return _result(findings, tuple(heads), _measures(n_lags, tokens is not None), origin)


def _measures(n_lags: int, on_tokens: bool) -> tuple[str, ...]:
    by_lag = [tuple(f"{name}_{lag}" for lag in range(n_lags)) for name in ("lag_share", "match")]
    return (*by_lag[0], *FIXED, *by_lag[1], *(ON_TOKENS if on_tokens else ()))


def _of_embedding(frequencies: Float[Tensor, " vocab"] | None) -> str:
    given = "uniform" if frequencies is None else "given"
    return f"the embedding under {given} frequencies, lags independent, no positions"


@dataclass(frozen=True)
class ScoreErrors(Additive):
    """Sums of squares over pairs of positions, each query's mean taken off."""

    variation: float
    errors: Mapping[Account, float]

    def predicted(self) -> dict[Account, float]:
        """R² of each account; NaN where scores never vary."""
        whole = self.variation or float("nan")
        return {name: 1 - error / whole for name, error in self.errors.items()}


def _score_errors(
    read: HeadReads,
    mixture: tuple[float, float],
    head: HeadMaps,
    x: Stream,
    computed: Computed,
) -> ScoreErrors:
    """Of one head on sequences of the stream x.

    Args:
        read: the weights' account.
        mixture: how much of the common map the lags 0 and 1 of literally smeared keys have.
        head: for its rotary positions and its mask.
        x: the stream that the account reads.
        computed: what the head computed.
    """
    q, k, n_pos = computed["q"], computed["k"], x.shape[1]
    smeared = _smeared_maps(read["k"].maps, mixture)
    missed: dict[Account, tuple[Vectors, Vectors]] = {
        "q": (q - _written(read["q"].maps, x) - read["q"].bias[:n_pos], k),
        "k": (q, k - _written(read["k"].maps, x) - read["k"].bias[:n_pos]),
        "smeared": (q, k - _written(smeared, x) - read["k"].bias[:n_pos]),
    }
    start = max(read["q"].lags, read["k"].lags) - 1
    return ScoreErrors(
        _variation(q, k, head, start),
        {account: _variation(*pair, head, start) for account, pair in missed.items()},
    )


def _smeared_maps(
    maps: Float[Tensor, "lag d_model d_head"], mixture: tuple[float, float]
) -> Float[Tensor, "2 d_model d_head"]:
    """The best fit of lags 0 and 1 by one map: u_i Σ_j u_j K_j."""
    weights = torch.tensor(mixture).to(maps)[:, None, None]
    return weights * (weights * maps[:2]).sum(0)


def _written(maps: Float[Tensor, "lag d_model d_head"], x: Stream) -> Vectors:
    return torch.stack([later(x @ one, lag) for lag, one in enumerate(maps)]).sum(0)


def _variation(q: Vectors, k: Vectors, head: HeadMaps, start: int) -> float:
    """Σ over queries and visible keys of (score - the query's mean score)², from `start` on."""
    q, k = (head.attending.turned(x[:, :, None])[:, :, 0] for x in (q, k))
    scores = q[:, start:].double() @ k[:, start:].double().mT
    visible = head.viewed.visible(head.layer, q.shape[1])[start:, start:].to(scores)
    means = (scores * visible).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)
    return float(((scores - means) * visible).square().sum())


@dataclass(frozen=True)
class Finding:
    """Numbers by measure, why some are undefined, and their standard errors where there are any."""

    numbers: Mapping[str, float]
    undefined: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def __or__(self, other: "Finding") -> "Finding":
        return Finding(
            {**self.numbers, **other.numbers},
            {**self.undefined, **other.undefined},
            {**self.errors, **other.errors},
        )


def _of_weights(
    heads: Mapping[str, HeadMaps],
    read: Mapping[str, HeadReads],
    frequencies: Float[Tensor, " vocab"] | None,
    distance: int,
) -> dict[HeadChannel, Finding]:
    """From the embedding's covariance, lags being independent.

    Raises:
        ValueError: a head reads another stream than the embedding.
    """
    for head, one in read.items():
        if one["q"].layer:
            raise ValueError(
                f"{head} reads {one['q'].source}, which is not the embedding: what is in it cannot "
                "be told from the weights. Give tokens"
            )
    viewed = next(iter(heads.values())).viewed
    moments = embedding_moments(viewed, frequencies)
    findings: dict[HeadChannel, Finding] = {}
    for label, one in read.items():
        W_O, turn = _outputs(heads[label]), _turn(heads[label], distance)
        for channel, grams in grams_of_weights(one, moments, W_O, turn).items():
            found = geometry(grams)
            findings[channel, label] = Finding(found.numbers, found.undefined)
    return findings


def _on_tokens(
    heads: Mapping[str, HeadMaps],
    read: Mapping[str, HeadReads],
    tokens: Tokens,
    distance: int,
    left_out: Sampling,
) -> dict[HeadChannel, Finding]:
    """From what the streams hold and the heads compute on these tokens.

    The jackknife leaves out each group of `left_out` in turn.

    The sequences are passed over three times: the covariance of each stream, the second moments of
    what the heads make of it (which give the smearing that fits best), and the scores.
    """
    groups = [tokens[left_out.codes == group] for group in range(left_out.n_groups)]
    streams = [_streams(heads, read, group) for group in groups]
    sums = [_sums(heads, read, group) for group in groups]
    measures = {
        label: _Measure(one, _outputs(heads[label]), _turn(heads[label], distance))
        for label, one in read.items()
    }
    sources = {head: one["k"].source for head, one in read.items()}
    mixtures = {
        head: measure.geometry_of(
            _total(part[sources[head]] for part in streams), _total(part[head] for part in sums)
        )["k"].mixture
        for head, measure in measures.items()
    }
    errors = [_errors(heads, read, mixtures, group) for group in groups]
    findings: dict[HeadChannel, Finding] = {}
    for head, measure in measures.items():
        parts = [
            (stream[sources[head]], one[head], other[head])
            for stream, one, other in zip(streams, sums, errors, strict=True)
        ]
        for channel, finding in _jackknife(parts, measure).items():
            findings[channel, head] = finding
    return findings


@dataclass(frozen=True, eq=False)
class _Measure:
    """From the sums of one head to its findings."""

    read: HeadReads
    W_O: Float[Tensor, "d_head _"]
    turn: Float[Tensor, "d_head d_head"]

    def geometry_of(self, stream: Second, sums: HeadSums) -> dict[Channel, Geometry]:
        """Lag shares, alignment and smear of each channel."""
        metrics = sums.metrics(self.W_O, self.turn)
        return {
            c: geometry(x.grams(self.read[c], stream, metrics[c])) for c, x in sums.channels.items()
        }

    def __call__(
        self, stream: Second, sums: HeadSums, errors: ScoreErrors
    ) -> dict[Channel, Finding]:
        """The same, and how far the account predicts vectors and scores."""
        metrics, scores = sums.metrics(self.W_O, self.turn), errors.predicted()
        findings: dict[Channel, Finding] = {}
        for channel, found in self.geometry_of(stream, sums).items():
            numbers = {
                "predicted": sums.channels[channel].predicted(self.read[channel], metrics[channel])
            }
            if channel != "v":
                numbers["predicted_scores"] = scores[channel]
            if channel == "k":
                numbers["smeared_scores"] = scores["smeared"]
            reasons = {
                "predicted": "what is computed never varies",
                "predicted_scores": "scores never vary",
                "smeared_scores": found.undefined.get("smear", "scores never vary"),
            }
            why = {name: reasons[name] for name, number in numbers.items() if math.isnan(number)}
            findings[channel] = Finding({**found.numbers, **numbers}, {**found.undefined, **why})
        return findings


def _jackknife(
    parts: Sequence[tuple[Second, HeadSums, ScoreErrors]], measure: _Measure
) -> dict[Channel, Finding]:
    """The findings of all parts, with the standard errors that leaving each out in turn gives."""
    stream, sums, errors = (_total(column) for column in zip(*parts, strict=True))
    found, n = measure(stream, sums, errors), len(parts)
    if n < 2:
        return found
    without = [measure(stream - x, sums - some, errors - few) for x, some, few in parts]

    def spread(channel: Channel, name: str) -> float:
        return math.sqrt((n - 1) * np.var([one[channel].numbers[name] for one in without]))

    return {
        c: Finding(x.numbers, x.undefined, {name: spread(c, name) for name in x.numbers})
        for c, x in found.items()
    }


def _streams(
    heads: Mapping[str, HeadMaps], read: Mapping[str, HeadReads], tokens: Tokens
) -> dict[str, Second]:
    """The second moments of each stream that is read, at the positions that have all lags."""
    moments: dict[str, Second] = {}
    for label, one in read.items():
        source, viewed = one["k"].source, heads[label].viewed
        start = max(channel.lags for channel in one.values()) - 1
        if source not in moments:
            streams = (activations(viewed, some, [source])[source] for some in _chunks(tokens))
            moments[source] = _total(Second.over(x[:, start:]) for x in streams)
    return moments


def _sums(
    heads: Mapping[str, HeadMaps], read: Mapping[str, HeadReads], tokens: Tokens
) -> dict[str, HeadSums]:
    """The second moments of every head."""
    return _by_label(
        (head.label, HeadSums.over(read[head.label], x, computed))
        for head, x, computed in _computed(heads, tokens)
    )


def _errors(
    heads: Mapping[str, HeadMaps],
    read: Mapping[str, HeadReads],
    mixtures: Mapping[str, tuple[float, float]],
    tokens: Tokens,
) -> dict[str, ScoreErrors]:
    """How far the accounts of every head miss its scores."""
    return _by_label(
        (head.label, _score_errors(read[head.label], mixtures[head.label], head, x, computed))
        for head, x, computed in _computed(heads, tokens)
    )


def _computed(
    heads: Mapping[str, HeadMaps], tokens: Tokens
) -> Iterator[tuple[HeadMaps, Stream, Computed]]:
    """Every head with the stream that it reads and what it computes, some sequences at a time."""
    for layer in by_layer(heads.values()).values():
        source, viewed = layer[0].routes["k"].source, layer[0].viewed
        hooks = [way.end.computed for head in layer for way in head.routes.values()]
        for some in _chunks(tokens):
            captured = activations(viewed, some, [source, *hooks])
            for head in layer:
                own: Computed = {
                    channel: way.end.of(captured[way.end.computed])
                    for channel, way in head.routes.items()
                }
                yield head, captured[source], own


def _chunks(tokens: Tokens) -> Sequence[Tensor]:
    return tokens.split(max(1, TOKENS_AT_ONCE // tokens.shape[1]))


def _total(parts: Iterable[Total]) -> Total:
    return functools.reduce(operator.add, parts)


def _by_label(parts: Iterable[tuple[str, Total]]) -> dict[str, Total]:
    totals: dict[str, Total] = {}
    for label, part in parts:
        totals[label] = totals[label] + part if label in totals else part
    return totals


def _outputs(head: HeadMaps) -> Float[Tensor, "d_head _"]:
    """From what it attended to, to all that it writes of it; lags of taps stand side by side."""
    return torch.cat(list(head.W_O_by_lag), dim=-1)


def _turn(head: HeadMaps, distance: int) -> Float[Tensor, "d_head d_head"]:
    """The rotation of a head's queries over a distance."""
    W_O = head.W_O
    return head.turned(torch.eye(len(W_O)).to(W_O), distance)


def _matched(
    heads: Mapping[str, HeadMaps], read: Mapping[str, HeadReads], distance: int
) -> dict[HeadChannel, Finding]:
    """The match of each key lag with query lag 0, and of each query lag with key lag 0."""
    rows = Rows.of(next(iter(heads.values())).viewed.embedding)
    findings: dict[HeadChannel, Finding] = {}
    for label, one in read.items():
        cells = {"k": [math.nan] * one["k"].lags, "q": [math.nan] * one["q"].lags}
        hidden = heads[label].hidden_embedding()
        if not hidden:
            table = head_matches(heads[label], one, rows, distance).value
            cells = {"k": table[0].tolist(), "q": table[:, 0].tolist()}
        for channel in ("k", "q"):
            numbers = {f"match_{lag}": cell for lag, cell in enumerate(cells[channel])}
            why = hidden or "no token's scores with the others vary"
            undefined = {name: why for name, number in numbers.items() if math.isnan(number)}
            findings[channel, label] = Finding(numbers, undefined)
    return findings


def _result(
    findings: Mapping[HeadChannel, Finding],
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
