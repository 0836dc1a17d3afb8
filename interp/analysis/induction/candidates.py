"""Which heads attend as induction heads do: more than by chance, by position, or untrained?"""

import math
from dataclasses import dataclass

import numpy as np

from interp.analysis.heads.targets import Under, measure, stripe
from interp.analysis.probes.probe import origin_of
from interp.analysis.probes.sequences import RepeatedTokens
from interp.models.shapes import Tokens
from interp.results.intervals import student_t
from interp.results.result import Result
from interp.views import View

SEQUENCES_OF_RANDOM_WEIGHTS = 8
CONFIDENCE = 0.99


def induction_candidates(
    viewed: View, probe: RepeatedTokens, n_random: int, random_weights: float, under: Under | None
) -> Result:
    """Each head's induction score beside what it would be without any matching.

    Args:
        viewed: the model.
        probe: what it is measured on.
        n_random: how many models of random weights there were.
        random_weights: the highest score of any head in them (`score_of_random_weights`).
        under: hooks to run under, such as those that remove other heads.

    Returns:
        A Result over "measure" and "head", all probabilities of attention:

        * `score`: the induction score (variant `stripe`);
        * `unmatched`: the attention to the same places when the first copy has its tokens in
          another order, so that no match is there. A head that attends by position scores alike;
        * `random_weights`: the highest score of any head in as many models of random weights; NaN
          for a bridge.
    """
    scored = _scores(viewed, probe, probe.tokens, under)
    unmatched = _scores(viewed, probe, _turned(probe), under)
    assert scored.standard_error is not None
    assert unmatched.standard_error is not None
    assert scored.chance is not None
    unknown = np.full_like(scored.values, np.nan)
    return Result(
        "induction_candidates",
        np.stack([scored.values, unmatched.values, np.full_like(scored.values, random_weights)]),
        ("measure", "head"),
        labels={
            "measure": ("score", "unmatched", "random_weights"),
            "head": scored.labels["head"],
        },
        standard_error=np.stack([scored.standard_error, unmatched.standard_error, unknown]),
        chance=np.stack([scored.chance] * 3),
        unit="probability",
        provenance={**scored.provenance, "n_random": n_random},
    )


def stand_out(candidates: Result, least: float) -> list[str]:
    """The heads whose score nothing else explains and is at least so high, the highest first.

    Above the places themselves by `least`, and above chance and random weights with 99 %
    confidence.
    """
    range_of = _Range.of(candidates)
    untrained = candidates.sel(measure="random_weights").values
    explained = np.fmax(np.fmax(range_of.unmatched_high, range_of.chance), untrained)
    return range_of.heads((range_of.score_low > explained) & (range_of.matching >= least))


def weak_together(candidates: Result, least: float) -> list[str]:
    """Heads that match, each however little, and together by `least`; the highest score first.

    Each of them attends to the match more than to the same place without one, with 99 %
    confidence.
    """
    range_of = _Range.of(candidates)
    matches = range_of.score_low > range_of.unmatched_high
    return range_of.heads(matches) if range_of.matching[matches].sum() >= least else []


def by_distance(candidates: Result, least: float) -> list[str]:
    """The heads that attend to these places whatever stands there, by `least` above chance."""
    range_of = _Range.of(candidates)
    matches = range_of.score_low > range_of.unmatched_high
    above = range_of.unmatched_low - range_of.chance >= least
    return range_of.heads(above & ~(matches & (range_of.matching >= least)))


@dataclass(frozen=True, eq=False)
class _Range:
    """The ends of the 99 % intervals of every head's scores."""

    candidates: Result
    score_low: np.ndarray
    unmatched_low: np.ndarray
    unmatched_high: np.ndarray
    matching: np.ndarray
    chance: np.ndarray

    @classmethod
    def of(cls, candidates: Result) -> "_Range":
        reach = student_t((1 + CONFIDENCE) / 2, candidates.degrees_of_freedom)
        score, unmatched = (candidates.sel(measure=name) for name in ("score", "unmatched"))
        assert score.standard_error is not None
        assert unmatched.standard_error is not None
        assert score.chance is not None
        return cls(
            candidates,
            score.values - reach * score.standard_error,
            unmatched.values - reach * unmatched.standard_error,
            unmatched.values + reach * unmatched.standard_error,
            score.values - unmatched.values,
            score.chance,
        )

    def heads(self, chosen: np.ndarray) -> list[str]:
        """The chosen ones, the highest score first."""
        score = self.candidates.sel(measure="score").values
        labels = self.candidates.labels["head"]
        return [str(labels[index]) for index in np.argsort(-score, kind="stable") if chosen[index]]


def score_of_random_weights(viewed: View, probe: RepeatedTokens, n_random: int, seed: int) -> float:
    """The highest induction score of any head in models of random weights; NaN for a bridge."""
    tokens = probe.tokens[:SEQUENCES_OF_RANDOM_WEIGHTS]
    twins = (viewed.untrained(seed + draw) for draw in range(n_random))
    scores = (_scores(twin, probe, tokens).values.max() for twin in twins if twin is not None)
    return max(scores, default=math.nan)


def _scores(
    viewed: View, probe: RepeatedTokens, tokens: Tokens, under: Under | None = None
) -> Result:
    target = stripe(probe.positions(1), offset=probe.n - 1)
    origin = origin_of(viewed, probe)
    return measure(viewed, tokens, {"score": target}, "induction", origin, under=under).sel(
        score="score"
    )


def _turned(probe: RepeatedTokens) -> Tokens:
    """The first copy turned by half its length: the same tokens, none of them in its place."""
    tokens, first = probe.tokens.clone(), probe.positions(0)
    copy = tokens[:, first.start : first.stop]
    tokens[:, first.start : first.stop] = copy.roll(probe.n // 2, dims=1)
    return tokens
