"""The numbers of smeared-key detection, by head and channel: from the weights, or on tokens."""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.frozen_factors import TOKENS_AT_ONCE, embedding_moments, hear
from interp.analysis.circuits.reads import HeadReads
from interp.analysis.circuits.routes import CHANNELS, Channel, place_of, turn_at
from interp.analysis.lags.key_geometry import Geometry, geometry
from interp.analysis.lags.key_grams import HeadSums, HeardHead, Second, grams_of_weights
from interp.analysis.lags.score_predictions import ScoreErrors, score_errors
from interp.models import HookedSequenceModel
from interp.models.linear import wide
from interp.models.shapes import Stream, Tokens
from interp.results.sampling import Sampling

GROUPS = 16
"""The most groups of sequences that the jackknife leaves out in turn."""

Place = tuple[Channel, str]
Sums = TypeVar("Sums", HeadSums, ScoreErrors, Second)


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


def of_weights(
    model: HookedSequenceModel,
    read: Mapping[str, HeadReads],
    frequencies: Float[Tensor, " vocab"] | None,
    distance: int,
) -> dict[Place, Finding]:
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
    moments = embedding_moments(model, frequencies)
    findings: dict[Place, Finding] = {}
    for head, one in read.items():
        W_O, turn = _parts_of(model, head, distance)
        for channel, grams in grams_of_weights(one, moments, W_O, turn).items():
            found = geometry(grams)
            findings[channel, head] = Finding(found.numbers, found.undefined)
    return findings


def on_tokens(
    model: HookedSequenceModel,
    read: Mapping[str, HeadReads],
    tokens: Tokens,
    distance: int,
    left_out: Sampling,
) -> dict[Place, Finding]:
    """From what the streams hold and the heads compute on these tokens.

    The jackknife leaves out each group of `left_out` in turn.

    The sequences are passed over three times: the covariance of each stream, the second moments of
    what the heads make of it (which give the smearing that fits best), and the scores.
    """
    groups = [tokens[left_out.codes == group] for group in range(left_out.n_groups)]
    streams = [_streams(model, read, group) for group in groups]
    sums = [_sums(model, read, group) for group in groups]
    measures = {
        head: _Measure(one, *_parts_of(model, head, distance)) for head, one in read.items()
    }
    sources = {head: one["k"].source for head, one in read.items()}
    mixtures = {
        head: measure.geometry_of(
            _total(part[sources[head]] for part in streams), _total(part[head] for part in sums)
        )["k"].mixture
        for head, measure in measures.items()
    }
    errors = [_errors(model, read, mixtures, group) for group in groups]
    findings: dict[Place, Finding] = {}
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
    W_O: Float[Tensor, "d_head d_model"]
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
            numbers = {"predicted": sums.channels[channel].predicted(metrics[channel])}
            if channel != "v":
                numbers["predicted_scores"] = scores[channel]
            if channel == "k":
                numbers["smeared_scores"] = scores["smeared"]
            undefined = dict(found.undefined)
            if math.isnan(numbers.get("smeared_scores", 0.0)):
                undefined["smeared_scores"] = undefined.get("smear", "scores never vary")
            findings[channel] = Finding({**found.numbers, **numbers}, undefined)
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
    model: HookedSequenceModel, read: Mapping[str, HeadReads], tokens: Tokens
) -> dict[str, Second]:
    """The second moments of each stream that is read, at the positions that have all lags."""
    moments: dict[str, Second] = {}
    for one in read.values():
        source, stop, start = one["k"].source, one["k"].layer + 1, one["k"].lags - 1
        if source not in moments:
            streams = (hear(model, some, [source], stop)[source] for some in _chunks(tokens))
            moments[source] = _total(Second.over(x[:, start:]) for x in streams)
    return moments


def _sums(
    model: HookedSequenceModel, read: Mapping[str, HeadReads], tokens: Tokens
) -> dict[str, HeadSums]:
    """The second moments of every head."""
    sums: dict[str, HeadSums] = {}
    for head, x, heard in _heard(model, read, tokens):
        some = HeadSums.over(read[head], x, heard)
        sums[head] = sums[head] + some if head in sums else some
    return sums


def _errors(
    model: HookedSequenceModel,
    read: Mapping[str, HeadReads],
    mixtures: Mapping[str, tuple[float, float]],
    tokens: Tokens,
) -> dict[str, ScoreErrors]:
    """How far the accounts of every head miss its scores."""
    errors: dict[str, ScoreErrors] = {}
    for head, x, heard in _heard(model, read, tokens):
        attn = model.attn(place_of(model, head)[0])
        some = score_errors(read[head], mixtures[head], attn, x, heard)
        errors[head] = errors[head] + some if head in errors else some
    return errors


def _heard(
    model: HookedSequenceModel, read: Mapping[str, HeadReads], tokens: Tokens
) -> Iterator[tuple[str, Stream, HeardHead]]:
    """Every head with the stream that it reads and what it computes, some sequences at a time."""
    layers: dict[int, list[str]] = {}
    for head in read:
        layers.setdefault(place_of(model, head)[0], []).append(head)
    for layer, heads in layers.items():
        hooks: dict[Channel, str] = {c: f"blocks.{layer}.attn.hook_{c}" for c in CHANNELS}
        if model.attn(layer).smear is not None:
            hooks["k"] = f"blocks.{layer}.attn.hook_smeared_k"
        source = read[heads[0]]["k"].source
        for some in _chunks(tokens):
            heard = hear(model, some, [source, *hooks.values()], stop=layer + 1)
            for head in heads:
                index = place_of(model, head)[1]
                own: HeardHead = {c: heard[hook][:, :, index] for c, hook in hooks.items()}
                yield head, heard[source], own


def _chunks(tokens: Tokens) -> Sequence[Tensor]:
    return tokens.split(max(1, TOKENS_AT_ONCE // tokens.shape[1]))


def _total(parts: Iterable[Sums]) -> Sums:
    return functools.reduce(lambda one, other: one + other, parts)


def _parts_of(model: HookedSequenceModel, head: str, distance: int) -> tuple[Tensor, Tensor]:
    """W_O of a head, and the rotation of its queries over a distance."""
    layer, index = place_of(model, head)
    attn = model.attn(layer)
    return wide(attn.W_O[index]), turn_at(attn, distance)
