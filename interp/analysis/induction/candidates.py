"""Which heads attend as induction heads do: more than by chance, by position, or untrained?"""

import math

import numpy as np

from interp.analysis.probes import origin_of
from interp.analysis.result import Result
from interp.analysis.sequences import RepeatedTokens
from interp.analysis.statistics.intervals import student_t
from interp.analysis.targets import measure, stripe
from interp.models import HookedSequenceModel
from interp.models.protocol import View, view
from interp.models.shapes import Tokens

SEQUENCES_OF_RANDOM_WEIGHTS = 8
CONFIDENCE = 0.99


def induction_candidates(seen: View, probe: RepeatedTokens, n_random: int, seed: int) -> Result:
    """Each head's induction score beside what it would be without any matching.

    Returns:
        A Result over "measure" and "head", all probabilities of attention:

        * `score`: the induction score (variant `stripe`);
        * `unmatched`: the attention to the same places when the first copy has its tokens in
          another order, so that no match is there. A head that attends by position scores alike;
        * `random_weights`: the highest score of any head in as many models of random weights; NaN
          for a bridge.
    """
    scored, unmatched = _scores(seen, probe, probe.tokens), _scores(seen, probe, _turned(probe))
    assert scored.standard_error is not None
    assert unmatched.standard_error is not None
    assert scored.chance is not None
    unknown = np.full_like(scored.values, np.nan)
    random_weights = np.full_like(scored.values, _random_weights(seen, probe, n_random, seed))
    return Result(
        "induction_candidates",
        np.stack([scored.values, unmatched.values, random_weights]),
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
    errors = student_t((1 + CONFIDENCE) / 2, candidates.degrees_of_freedom)
    score, unmatched, untrained = (
        candidates.sel(measure=name) for name in candidates.labels["measure"]
    )
    assert score.standard_error is not None
    assert unmatched.standard_error is not None
    assert score.chance is not None
    low = score.values - errors * score.standard_error
    high = np.fmax(unmatched.values + errors * unmatched.standard_error, score.chance)
    above = (low > np.fmax(high, untrained.values)) & (score.values - unmatched.values >= least)
    chosen = [index for index in np.argsort(-score.values) if above[index]]
    return [str(score.labels["head"][index]) for index in chosen]


def _scores(seen: View, probe: RepeatedTokens, tokens: Tokens) -> Result:
    target = stripe(probe.positions(1), offset=probe.n - 1)
    origin = origin_of(seen, probe)
    return measure(seen, tokens, {"score": target}, "induction", origin).sel(score="score")


def _turned(probe: RepeatedTokens) -> Tokens:
    """The first copy turned by half its length: the same tokens, none of them in its place."""
    tokens, first = probe.tokens.clone(), probe.positions(0)
    copy = tokens[:, first.start : first.stop]
    tokens[:, first.start : first.stop] = copy.roll(probe.n // 2, dims=1)
    return tokens


def _random_weights(seen: View, probe: RepeatedTokens, n_random: int, seed: int) -> float:
    model = seen.model
    if not isinstance(model, HookedSequenceModel):
        return math.nan
    highest = []
    for draw in range(n_random):
        twin = type(model).from_config(model.config, seed=seed + draw)
        twin = twin.to(device=model.W_E.device, dtype=model.W_E.dtype)
        tokens = probe.tokens[:SEQUENCES_OF_RANDOM_WEIGHTS]
        highest.append(_scores(view(twin), probe, tokens).values.max())
    return max(highest, default=math.nan)
