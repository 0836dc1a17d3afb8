"""The induction circuit of a model, found and tested in one call."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from interp.analysis.circuits.composition import composition_scores
from interp.analysis.circuits.head_maps import lag_names
from interp.analysis.heads.targets import column, measure, stripe
from interp.analysis.induction import words
from interp.analysis.induction.candidates import (
    by_distance,
    induction_candidates,
    score_of_random_weights,
)
from interp.analysis.induction.decision import Decision, Removal, averaged, decide
from interp.analysis.induction.edges import Cells, Edge, Effect, Patches, into_head, measured
from interp.analysis.interventions.metrics import SecondCopyLoss
from interp.analysis.probes.probe import origin_of, probe_for
from interp.analysis.probes.sequences import RepeatedTokens, copy_length, repeated_tokens
from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.views import View, view

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
        heads: the induction heads, the highest score first; then those that were found without
            these. Where there is no circuit, the heads that attend like induction heads.
        edges: sender, receiver and channel of every edge, and what cutting it changes, with
            intervals.
        graph: the same as a Result over "edge" and "measure", each effect with its standard error:
            the change of the head's induction `score` and of the `loss` on the second copy, the
            range of as many `random` directions, and where weights compose, the `composition` above
            that of random rotations and its z-value, of the lag that composes most. Its `plot()`
            draws the graph.
        scores: how the heads were chosen, as a Result over "measure" and "head".
        removal: what removing the heads adds to the loss on the second copy: all of them
            ("L1H0+L1H3"), and each that is followed up alone; a woken head alone in the absence of
            those that it stands in for.
        cells: for each head that reads earlier tokens through its weights, what its score loses
            without each pair of a query lag and a key lag.
        drop: what there is to explain: the loss on the first copy minus that on the second, in
            nats, of the model as it is, or with the `distant` heads averaged over.
        worth: the part of the drop that the repetition makes: the loss on the second copy after a
            first copy of other tokens, minus that after its own. The rest of the drop is due to the
            place: later tokens have more before them.
        explained: how much of `worth` is gone without the heads, as a share; Fieller's interval.
            Unknown where repeating is worth nothing.
        order: what the heads add to the loss on the second copy when they read, there, a first copy
            with its tokens in another order: nothing, unless they say what came next.
        woken: those of the heads that were found only once others were removed.
        distant: heads that attend to the places of the match by distance, whatever stands there,
            and write what they write on average in all that is measured. Only where the answer
            without that would be no.
    """

    found: bool
    sentence: str
    heads: tuple[str, ...]
    edges: tuple[Edge, ...]
    graph: Result
    scores: Result
    removal: Mapping[str, Effect]
    cells: Mapping[str, Cells]
    drop: Effect
    worth: Effect
    explained: Effect
    order: Effect
    woken: tuple[str, ...]
    distant: tuple[str, ...]

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


def induction_circuit(
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
       Then all scores are measured again: heads that wake are removed as well, and heads that match
       by less than `least`, together, where a `share` is left of what the repetition is worth. That
       goes on until nothing new is found or nothing is left, four times at most; each time takes
       four passes over the sequences.
    3. There is a circuit if this costs more on the second copy than random directions do, if it
       takes a `share` of what the repetition is worth, and if the heads do harm when they read a
       first copy in another order. If not, all of it is tried once more with those heads averaged
       over that attend to the same places by distance: on copies of one length they do the same.
    4. Every direct path into a head's queries, keys and values, from the embedding, from each
       convolution's lags, and from earlier heads and MLPs, is cut by path patching, and likewise
       every path into the earlier heads so found. A path is an edge if it carries a `share` of the
       head's score, or for values of what its removal costs.
    5. For heads above a convolution, or with smeared or tapped keys, the pairs of a query lag and a
       key lag are taken out one at a time.

    There is a path from every part below a head, so the work grows with the square of the layers:
    seconds for two layers on one core, minutes for six; most_heads=1 makes it quicker.

    Args:
        model: one of ours, or a `TransformerBridge`.
        n: tokens in one copy; default 50, or what the context holds.
        n_sequences: sequences to average over.
        seed: of all random choices.
        least: how much attention the matching must explain for a head to count, or for several
            weak ones together.
        share: how much of what is at stake a path must carry to be an edge, or the heads to be a
            circuit, from 0 to 1.
        most_heads: all heads are tested together; the first ones are followed up edge by edge, at
            most so many.
        n_random: models of random weights, and random directions to compare each effect with.

    Returns:
        An `InductionCircuit`; its `sentence` says what was found and its `plot()` draws it.

    Raises:
        ValueError: before any forward pass: sizes that do not fit the context, a number below its
            bound, a model without heads or a bidirectional one, or a weight that is NaN.

    Source: Olsson et al. 2022 for the circuit, Wang et al. 2022 for path patching; lags are ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=64)
    >>> induction_circuit(model, n=15, n_sequences=4).sentence[:21]
    'No induction circuit:'
    """
    viewed = view(model)
    _check_numbers(n_sequences=(n_sequences, 2), most_heads=(most_heads, 1), n_random=(n_random, 1))
    for name, value in (("least", least), ("share", share)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value} must be above 0 and at most 1")
    viewed.check_predicts_next("loss on a second copy, which the circuit is judged by")
    length = copy_length(viewed.n_ctx) if n is None else n
    probe = probe_for(viewed, length, n_sequences, seed)
    patches = Patches(viewed, probe.tokens, _unrepeated(viewed, probe), share, n_random, seed)
    untrained = score_of_random_weights(viewed, probe, n_random, seed)
    decision = _decided(patches, probe, untrained, least)
    if not decision.found:
        # A head that copies by distance does on this probe what an induction head does.
        distant = by_distance(decision.scores, least)
        with averaged(patches, distant):
            again = _decided(patches, probe, untrained, least, distant) if distant else decision
            if again.found:
                return _found(patches, probe, again, most_heads)
        return _none(decision, distant, least)
    return _found(patches, probe, decision, most_heads)


def _decided(
    patches: Patches,
    probe: RepeatedTokens,
    untrained: float,
    least: float,
    distant: Sequence[str] = (),
) -> Decision:
    scores = induction_candidates(patches.viewed, probe, patches.n_random, untrained, None)
    return decide(Removal(patches, probe), scores, least, patches.share, distant)


def _found(
    patches: Patches, probe: RepeatedTokens, decision: Decision, most_heads: int
) -> InductionCircuit:
    viewed, heads = patches.viewed, decision.heads[:most_heads]
    removal = {"+".join(decision.heads): decision.removal}
    edges: dict[str, Edge] = {}
    earlier: list[str] = []
    for group in decision.groups:
        # A head that wakes is looked at as it is then: without those that it stands in for.
        some = [head for head in group if head in heads]
        with averaged(patches, earlier):
            missing = [head for head in some if head not in removal]
            removal |= patches.effects(missing, SecondCopyLoss())
            for label, edge in _edges(patches, some, decision, removal).items():
                edges.setdefault(label, edge)
        earlier += group
    measured = tuple(edges.values())
    cells = {head: cells for head in heads if (cells := patches.cells(head))}
    helpers, lags = _attended(viewed, probe, measured), _lags(viewed)
    origin = {
        **origin_of(viewed, probe),
        "n_sequences": len(probe.tokens),
        "n_random": patches.n_random,
        "heads": {head: decision.attended[head] for head in decision.heads},
        "helpers": helpers,
        "layers": _layers(viewed, measured),
        "lags": {edge.sender: lags[edge.sender] for edge in measured if edge.sender in lags},
        "keys": {edge.sender: edge.lag for edge in measured if edge.lag},
        "rounds": decision.rounds,
    }
    return InductionCircuit(
        True,
        words.of_circuit(decision, heads, measured, cells, {**lags, **helpers}),
        tuple(decision.heads),
        measured,
        _graph(measured, _composition(viewed, measured, patches.seed), origin),
        decision.scores,
        removal,
        cells,
        **_stated(decision),
    )


def _none(decision: Decision, distant: Sequence[str], least: float) -> InductionCircuit:
    heads = decision.heads
    return InductionCircuit(
        False,
        words.of_none(decision, distant, least),
        tuple(heads),
        (),
        _graph((), {}, {**decision.scores.provenance, "rounds": decision.rounds}),
        decision.scores,
        {"+".join(heads): decision.removal} if heads else {},
        {},
        **_stated(decision),
    )


def _stated(decision: Decision) -> dict[str, Any]:
    """What both answers state."""
    later = [head for group in decision.groups[1:] for head in group]
    return {
        "drop": decision.drop,
        "worth": decision.worth,
        "explained": decision.explained,
        "order": decision.order,
        "woken": tuple(later),
        "distant": tuple(decision.distant),
    }


def _check_numbers(**numbers: tuple[int, int]) -> None:
    for name, (value, bound) in numbers.items():
        if value < bound:
            raise ValueError(f"{name}={value} is too small; it must be at least {bound}")


def _unrepeated(viewed: View, probe: RepeatedTokens) -> Tokens:
    """Sequences of the probe's length in which nothing repeats, where the vocabulary allows it."""
    twice = repeated_tokens(
        2 * probe.n,
        d_vocab=viewed.d_vocab,
        bos=viewed.bos,
        exclude=viewed.special_tokens,
        n_sequences=len(probe.tokens),
        seed=probe.seed + 1,
    )
    return twice.tokens[:, : probe.tokens.shape[1]]


def _edges(
    patches: Patches, heads: Sequence[str], decision: Decision, removal: Mapping[str, Effect]
) -> dict[str, Edge]:
    edges: list[Edge] = []
    for head in heads:
        unmatched = float(decision.scores.sel(measure="unmatched", head=head))
        edges += into_head(patches, head, decision.attended[head] - unmatched, removal[head].value)
        edges.append(Edge(head, "logits", "", head))
    strongest: dict[str, Edge] = {}
    for edge in measured(patches, edges):
        # An edge may serve several heads: it is shown for the one that it does most for.
        known = strongest.setdefault(edge.label, edge)
        if abs(edge.score.value) > abs(known.score.value):
            strongest[edge.label] = edge
    return strongest


def _attended(viewed: View, probe: RepeatedTokens, edges: Sequence[Edge]) -> dict[str, Attended]:
    """What the heads that an induction head reads attend to most, and how much."""
    heads = viewed.head_labels
    senders = dict.fromkeys(edge.sender for edge in edges if edge.receiver in heads)
    helpers = [sender for sender in senders if sender in heads]
    if not helpers:
        return {}
    later = range(1, probe.tokens.shape[1])
    targets = {
        "previous token": stripe(later, offset=1),
        "current token": stripe(later, offset=0),
        "first token": column(later, key=0),
        "duplicate token": stripe(probe.positions(1), offset=probe.n),
    }
    scores = measure(viewed, probe.tokens, targets, "attended", origin_of(viewed, probe))
    best = {helper: scores.sel(head=helper) for helper in helpers}
    return {helper: (part.best(), float(part.values.max())) for helper, part in best.items()}


def _lags(viewed: View) -> dict[str, int]:
    """The lag that each term of a convolution is."""
    lags = {}
    for layer in range(viewed.n_layers):
        for sublayer in viewed.sublayers(layer):
            terms = (term.label for term in sublayer.terms if term.kind == "lag")
            lags |= {label: lag for lag, label in enumerate(terms)}
    return lags


def _layers(viewed: View, edges: Sequence[Edge]) -> dict[str, int]:
    """The layer of every part but the logits; a head's own earlier keys enter below."""
    layers = {writer.label: writer.layer for writer in viewed.writers}
    for layer in range(viewed.n_layers):
        terms = (term for sublayer in viewed.sublayers(layer) for term in sublayer.terms)
        layers |= {term.label: layer for term in terms}
    layers |= {edge.sender: -1 for edge in edges if edge.lag}
    ends = dict.fromkeys(end for edge in edges for end in (edge.sender, edge.receiver))
    return {end: layers[end] for end in ends if end != "logits"}


def _composition(viewed: View, edges: Sequence[Edge], seed: int) -> dict[str, tuple[float, float]]:
    """How far the weights of two ends compose beyond random rotations, and the z-value of that.

    Where the receiver reads several lags, it is that of the lag that composes most.
    """
    try:
        table = composition_scores(viewed.model, n_rotations=50, seed=seed)
    except ValueError:  # nothing to compose, or weights that cannot be read
        return {}
    found = {}
    for edge in edges:
        kind, source = edge.channel.upper(), edge.sender.replace(".lag", " lag ")
        by_lag = {edge.receiver, *(f"{edge.receiver} {lag}" for lag in lag_names(viewed.n_ctx))}
        ends = [end for end in table.labels["target"] if end in by_lag]
        if kind and source in table.labels["source"] and ends:
            part = table.sel(kind=kind, source=source, target=ends)
            excess, z = (part.sel(measure=name).values for name in ("excess", "z"))
            most = int(np.argmax(np.nan_to_num(excess, nan=-math.inf)))
            found[edge.label] = (float(excess[most]), float(z[most]))
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
