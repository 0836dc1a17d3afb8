"""The induction circuit of a model, found and tested in one call."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from interp.analysis.composition import composition_scores
from interp.analysis.induction import words
from interp.analysis.induction.candidates import induction_candidates, stand_out
from interp.analysis.induction.edges import Cells, Edge, Effect, Patches, into_head, measured
from interp.analysis.metrics import SecondCopyLoss
from interp.analysis.probes import origin_of, probe_for
from interp.analysis.result import Result
from interp.analysis.sequences import RepeatedTokens, copy_length, repeated_tokens
from interp.analysis.targets import column, measure, stripe
from interp.analysis.units import HEAD
from interp.models.protocol import View, view
from interp.models.shapes import Tokens

Attended = tuple[str, float]

PRINTED: Any = {"index": False, "float_format": "%.3f", "na_rep": ""}
ENDS = ("low", "high", "random_low", "random_high")
UNITS = {
    "score": "probability",
    **{f"score_{end}": "probability" for end in ENDS},
    "loss": "nats",
    **{f"loss_{end}": "nats" for end in ENDS},
    "composition": "ratio",
    "composition_z": "deviations",
}


@dataclass(frozen=True, eq=False, repr=False)
class InductionCircuit:
    """An induction circuit as a small graph, or the finding that there is none.

    Attributes:
        found: whether there is one.
        sentence: what was found, in plain words.
        heads: the induction heads, the highest score first.
        edges: sender, receiver and channel of every edge, and what cutting it changes, with
            intervals.
        graph: the same as a Result over "edge" and "measure", each effect with its standard error:
            the change of the head's induction `score` and of the `loss` on the second copy, the
            range of as many `random` directions, and where weights compose, the `composition` above
            that of random rotations and its z-value. Its `plot()` draws the graph.
        scores: how the heads were chosen, as a Result over "measure" and "head".
        removal: what removing the heads adds to the loss on the second copy: all of them
            ("L1H0+L1H3"), and each alone.
        cells: for each head that reads earlier tokens through its weights, what its score loses
            without each pair of a query lag and a key lag.
    """

    found: bool
    sentence: str
    heads: tuple[str, ...]
    edges: tuple[Edge, ...]
    graph: Result
    scores: Result
    removal: Mapping[str, Effect]
    cells: Mapping[str, Cells]

    def to_frame(self) -> pd.DataFrame:
        """One row per edge: sender, receiver, channel, and each effect with its 95 % interval."""
        return pd.DataFrame(
            {
                "sender": edge.sender,
                "receiver": edge.receiver,
                "channel": edge.channel,
                "effect_on": name,
                **vars(effect),
            }
            for edge in self.edges
            for name, effect in (("score", edge.score), ("loss", edge.loss))
            if not np.isnan(effect.value)
        )

    def plot(self) -> Any:
        """The graph; where there is no circuit, the heads' scores."""
        return (self.graph if self.found else self.scores).plot()

    def __repr__(self) -> str:
        table = self.to_frame().to_string(**PRINTED)
        return f"{self.sentence}\n{table}" if self.edges else self.sentence

    def _repr_html_(self) -> str:
        edges, scores = self.to_frame().to_html(border=0, **PRINTED), self.scores._repr_html_()
        return f"<p>{escape(self.sentence)}</p>{edges if self.edges else scores}"


def circuit(
    model: Any,
    *,
    n: int | None = None,
    n_sequences: int = 20,
    seed: int = 0,
    least: float = 0.1,
    share: float = 0.2,
    most_heads: int = 4,
    n_random: int = 10,
) -> InductionCircuit:
    """Is there an induction circuit, which parts is it made of, and what does each edge do?

    On repeated random tokens, `[BOS] + r + r`:

    1. Heads are chosen by their induction score, where it is above chance, above what they pay to
       the same places without a match there, and above models of random weights.
    2. All of them together are removed: what they write comes from sequences without a repetition.
       Unless that costs more on the second copy than random directions, there is no circuit.
    3. Every direct path into a head's queries, keys and values, from the embedding, from each
       convolution's lags, and from earlier heads and MLPs, is cut by path patching, and likewise
       every path into the earlier heads so found. A path is an edge if it carries a `share` of the
       head's score, or for values of what its removal costs.
    4. For heads above a convolution or with smeared keys, the pairs of a query lag and a key lag
       are taken out one at a time.

    There is a path from every part below a head, so the work grows with the square of the layers:
    seconds for two layers on one core, minutes for six; most_heads=1 makes it quicker.

    Args:
        model: one of ours, or a `TransformerBridge`.
        n: tokens in one copy; default 50, or what the context holds.
        n_sequences: sequences to average over.
        seed: of all random choices.
        least: how much attention the matching must explain for a head to count.
        share: how much of what is at stake a path must carry to be an edge, from 0 to 1.
        most_heads: the heads with the highest scores are followed up, at most so many.
        n_random: models of random weights, and random directions to compare each effect with.

    Returns:
        An `InductionCircuit`; its `sentence` says what was found and its `plot()` draws it.

    Raises:
        ValueError: before any forward pass: sizes that do not fit the context, a number below its
            bound, a model without heads or a bidirectional one, or a weight that is NaN.

    Source: Olsson et al. 2022 for the circuit, Wang et al. 2022 for path patching; lags are ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=64)
    >>> circuit(model, n=15, n_sequences=4).sentence[:21]
    'No induction circuit:'
    """
    seen = view(model)
    _check_numbers(n_sequences=(n_sequences, 2), most_heads=(most_heads, 1), n_random=(n_random, 1))
    for name, value in (("least", least), ("share", share)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value} must be above 0 and at most 1")
    seen.check_predicts_next("loss on a second copy, which the circuit is judged by")
    length = copy_length(seen.n_ctx) if n is None else n
    probe = probe_for(seen, length, n_sequences, seed)
    scores = induction_candidates(seen, probe, n_random, seed)
    heads = stand_out(scores, least)[:most_heads]
    if not heads:
        return _none(words.no_head(scores, least), (), scores, {})
    patches = Patches(seen, probe.tokens, _unrepeated(seen, probe), share, n_random, seed)
    together = "+".join(heads)
    removal = patches.effects(list(dict.fromkeys([together, *heads])), SecondCopyLoss())
    if not (removal[together].low > 0 and removal[together].beyond_random()):
        return _none(words.no_effect(heads, scores, removal[together]), heads, scores, removal)
    edges = _edges(patches, heads, scores, removal)
    cells = {head: cells for head in heads if (cells := patches.cells(head))}
    helpers = _attended(seen, probe, edges)
    sentence = words.of_circuit(heads, edges, scores, removal, cells, helpers)
    origin = {
        **origin_of(seen, probe),
        "n_sequences": n_sequences,
        "n_random": n_random,
        "heads": {head: float(scores.sel(measure="score", head=head)) for head in heads},
        "helpers": helpers,
    }
    graph = _graph(edges, _composition(model, edges, seed), origin)
    return InductionCircuit(True, sentence, tuple(heads), edges, graph, scores, removal, cells)


def _check_numbers(**numbers: tuple[int, int]) -> None:
    for name, (value, bound) in numbers.items():
        if value < bound:
            raise ValueError(f"{name}={value} is too small; it must be at least {bound}")


def _none(
    sentence: str, heads: Sequence[str], scores: Result, removal: Mapping[str, Effect]
) -> InductionCircuit:
    graph = _graph((), {}, scores.provenance)
    return InductionCircuit(False, sentence, tuple(heads), (), graph, scores, removal, {})


def _unrepeated(seen: View, probe: RepeatedTokens) -> Tokens:
    """Sequences of the probe's length in which nothing repeats, where the vocabulary allows it."""
    twice = repeated_tokens(
        2 * probe.n,
        d_vocab=seen.d_vocab,
        bos=seen.bos,
        exclude=seen.special_tokens,
        n_sequences=len(probe.tokens),
        seed=probe.seed + 1,
    )
    return twice.tokens[:, : probe.tokens.shape[1]]


def _edges(
    patches: Patches, heads: Sequence[str], scores: Result, removal: Mapping[str, Effect]
) -> tuple[Edge, ...]:
    edges: list[Edge] = []
    for head in heads:
        score, unmatched = (
            float(scores.sel(measure=name, head=head)) for name in ("score", "unmatched")
        )
        edges += into_head(patches, head, score - unmatched, removal[head].value)
        edges.append(Edge(head, "logits", "", head))
    strongest: dict[str, Edge] = {}
    for edge in measured(patches, edges):
        # An edge may serve several heads: it is shown for the one that it does most for.
        known = strongest.setdefault(edge.label, edge)
        if abs(edge.score.value) > abs(known.score.value):
            strongest[edge.label] = edge
    return tuple(strongest.values())


def _attended(seen: View, probe: RepeatedTokens, edges: Sequence[Edge]) -> dict[str, Attended]:
    """What the heads that an induction head reads attend to most, and how much."""
    helpers = dict.fromkeys(edge.sender for edge in edges if edge.receiver in seen.head_labels)
    helpers = [sender for sender in helpers if HEAD.fullmatch(sender)]
    if not helpers:
        return {}
    later = range(1, probe.tokens.shape[1])
    targets = {
        "previous token": stripe(later, offset=1),
        "current token": stripe(later, offset=0),
        "first token": column(later, key=0),
        "duplicate token": stripe(probe.positions(1), offset=probe.n),
    }
    scores = measure(seen, probe.tokens, targets, "attended", origin_of(seen, probe))
    best = {helper: scores.sel(head=helper) for helper in helpers}
    return {helper: (part.best(), float(part.values.max())) for helper, part in best.items()}


def _composition(model: Any, edges: Sequence[Edge], seed: int) -> dict[str, tuple[float, float]]:
    """How far the weights of two ends compose beyond random rotations, and the z-value of that."""
    try:
        table = composition_scores(model, n_rotations=50, seed=seed)
    except ValueError:  # nothing to compose, or weights that cannot be read
        return {}
    found = {}
    for edge in edges:
        kind, source = edge.channel.upper(), edge.sender.replace(".lag", " lag ")
        if kind and source in table.labels["source"] and edge.receiver in table.labels["target"]:
            cell = table.sel(kind=kind, source=source, target=edge.receiver)
            found[edge.label] = (float(cell.sel(measure="excess")), float(cell.sel(measure="z")))
    return found


def _graph(
    edges: Sequence[Edge],
    composed: Mapping[str, tuple[float, float]],
    provenance: Mapping[str, Any],
) -> Result:
    nan = math.nan
    values, errors = [], []
    for edge in edges:
        both = edge.score, edge.loss
        intervals = [(e.value, *(getattr(e, end) for end in ENDS)) for e in both]
        values.append([*intervals[0], *intervals[1], *composed.get(edge.label, (nan, nan))])
        unknown = [nan] * len(ENDS)
        errors.append([edge.score.error, *unknown, edge.loss.error, *unknown, nan, nan])
    shape = (len(edges), len(UNITS))
    return Result(
        "induction_circuit",
        np.array(values).reshape(shape),
        ("edge", "measure"),
        labels={"edge": tuple(edge.label for edge in edges), "measure": tuple(UNITS)},
        standard_error=np.array(errors).reshape(shape),
        unit=UNITS,
        provenance=provenance,
    )
