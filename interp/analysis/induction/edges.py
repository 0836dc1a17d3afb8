"""The edges of an induction circuit: what reaches a head, through which channel, and what it does.

Every edge is a direct path, and is tested by path patching: what the receiver reads of the sender
is taken from a sequence in which nothing repeats, everything else being left as it is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from interp.analysis.circuits.head_maps import head_maps
from interp.analysis.interventions.ablation import ablate
from interp.analysis.interventions.metrics import InductionScore, Metric, SecondCopyLoss
from interp.analysis.interventions.replacements import others_of
from interp.analysis.interventions.units import Catalogue
from interp.analysis.lags.lag_pair import without_lag_pair
from interp.models.shapes import Tokens
from interp.results.intervals import student_t
from interp.results.result import Result
from interp.views import View

CHANNELS = ("q", "k", "v")
SENDERS = {"smearing": "smear"}
"""What stands for a head's own keys of earlier tokens as a sender; else such as "taps.lag1"."""


@dataclass(frozen=True)
class Effect:
    """What cutting an edge changes: 95 % interval, and the range of as many random directions."""

    value: float = math.nan
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    random_low: float = math.nan
    random_high: float = math.nan

    def beyond_random(self) -> bool:
        """Whether the whole interval lies further from 0 than the random directions, if any."""
        reach = float(np.nanmax(np.abs([self.random_low, self.random_high, 0.0])))
        return self.low > reach or self.high < -reach


UNKNOWN = Effect()
Cells = Mapping[tuple[int, int], Effect]
"""By query lag and key lag."""


@dataclass(frozen=True)
class Edge:
    """A direct path, and what cutting it does to a head's induction score and to the loss.

    Attributes:
        sender: a head, a conv lag, an MLP, "embed", or what makes keys of several tokens: "smear",
            "taps.lag1".
        receiver: a head, or "logits".
        channel: "q", "k" or "v" of a head, else "".
        head: the induction head that it serves.
        score: the change of that head's induction score; unknown where it cannot change.
        loss: the change of the loss on the second copy, in nats.
        lag: how far back a head's own keys reach, by smearing or taps; 0 where it is a path.
        mixing: what makes them reach back.
    """

    sender: str
    receiver: str
    channel: str
    head: str
    score: Effect = UNKNOWN
    loss: Effect = UNKNOWN
    lag: int = 0
    mixing: str = ""

    @property
    def label(self) -> str:
        """As the path is written for `ablate`: "L0.lag1->L1H3.k"."""
        return f"{self.sender}->{self.receiver}" + (f".{self.channel}" if self.channel else "")


@dataclass(frozen=True, eq=False)
class Patches:
    """Cuts paths in repeated sequences.

    Attributes:
        viewed: the model.
        tokens: `[BOS] + r + r`.
        unrepeated: sequences of the same length without a repetition, to patch from.
        share: how much of what is at stake a path must carry to be an edge.
        n_random: random directions to compare with.
        seed: of the directions and of the sequence that is patched from.
    """

    viewed: View
    tokens: Tokens
    unrepeated: Tokens
    share: float
    n_random: int
    seed: int

    @property
    def others(self) -> Tokens:
        """For each repeated sequence, the one that `effects` patches from."""
        return others_of(self.tokens, self.unrepeated, self.seed)

    def effects(
        self, labels: Sequence[str], metric: Metric, compare: bool = True
    ) -> dict[str, Effect]:
        """What cutting each of these changes; without comparison to random directions, faster."""
        if not labels:
            return {}
        result = ablate(
            self.viewed.model,
            self.tokens,
            labels,
            "resample",
            metric,
            reference=self.unrepeated,
            control="directions" if compare else "none",
            n_random=self.n_random,
            seed=self.seed,
        )
        return effects_of(result)

    def lags(self, head: str) -> tuple[int, int]:
        """How many tokens a head's queries and keys read back through weights; 1 is the current."""
        maps = head_maps(self.viewed, [head])[head]
        try:
            ways = maps.routes
        except ValueError:  # a bridge whose weights cannot be read
            return 1, 1
        return ways["q"].lags, ways["k"].lags

    def cells(self, head: str) -> Cells:
        """What the head's score loses without one pair of lags; empty where it reads none back."""
        model, (n_query, n_key) = self.viewed.model, self.lags(head)
        pairs = [(i, j) for i in range(n_query) for j in range(n_key)]
        if len(pairs) == 1:
            return {}
        units = {f"{head} {pair}": without_lag_pair(model, head, pair) for pair in pairs}
        result = ablate(model, self.tokens, units, "zero", InductionScore(head), control="none")
        return dict(zip(pairs, effects_of(result).values(), strict=True))


def effects_of(result: Result) -> dict[str, Effect]:
    """The effects of an ablation, by unit, with their intervals."""
    reach = student_t(0.975, result.degrees_of_freedom)
    parts = {name: result.sel(measure=name) for name in result.labels["measure"]}
    nothing = np.full_like(parts["effect"].values, np.nan)
    errors = parts["effect"].standard_error
    assert errors is not None
    low, high = (parts[n].values if n in parts else nothing for n in ("random_low", "random_high"))
    (axis,) = parts["effect"].axes
    columns = np.stack([parts["effect"].values, errors, low, high], axis=1).tolist()
    return {
        str(label): Effect(value, error, value - reach * error, value + reach * error, *random)
        for label, (value, error, *random) in zip(result.labels[axis], columns, strict=True)
    }


def into_head(patches: Patches, head: str, at_stake: float, loss_at_stake: float) -> list[Edge]:
    """The edges that carry a head's matching, and those that carry what it copies.

    Args:
        patches: cuts paths.
        head: an induction head.
        at_stake: the attention that the matching explains.
        loss_at_stake: the loss that removing the head costs.
    """
    metric, enough = InductionScore(head), patches.share * at_stake
    matching = _carrying(patches, head, head, ("q", "k"), metric, -at_stake)
    copying = _carrying(patches, head, head, ("v",), SecondCopyLoss(), loss_at_stake)
    earlier = [edge for edge in _earlier_keys(patches, head) if -edge.score.value >= enough]
    # What these add is part of the way from the embedding to the keys: named for what it is.
    kept = [edge for edge in matching if not (earlier and edge.channel == "k")]
    heads = patches.viewed.head_labels
    helpers = dict.fromkeys(edge.sender for edge in kept if edge.sender in heads)
    upstream = [
        edge
        for helper in helpers
        for edge in _carrying(patches, helper, head, CHANNELS, metric, -at_stake)
    ]
    return [*upstream, *kept, *earlier, *copying]


def measured(patches: Patches, edges: Sequence[Edge]) -> list[Edge]:
    """The edges with both effects; the one that they are judged by beside random directions."""
    loss = SecondCopyLoss()
    matching = [edge.label for edge in edges if not edge.lag and _can_change_score(edge)]
    copying = [edge.label for edge in edges if not _can_change_score(edge)]
    losses = patches.effects(list(dict.fromkeys(matching)), loss, compare=False)
    losses |= patches.effects(list(dict.fromkeys(copying)), loss)
    scores = {
        (head, label): effect
        for head in dict.fromkeys(edge.head for edge in edges)
        for label, effect in patches.effects(
            [e.label for e in edges if e.head == head and e.label in matching],
            InductionScore(head),
        ).items()
    }

    def with_both(edge: Edge) -> Edge:
        score = scores.get((edge.head, edge.label), UNKNOWN)
        return replace(edge, score=score, loss=losses[edge.label])

    return [edge if edge.lag else with_both(edge) for edge in edges]


def _can_change_score(edge: Edge) -> bool:
    """A head's attention depends on its queries and keys, and on all that its helpers read."""
    return edge.receiver != "logits" and (edge.receiver != edge.head or edge.channel != "v")


def _carrying(
    patches: Patches,
    receiver: str,
    head: str,
    channels: Iterable[str],
    metric: Metric,
    at_stake: float,
) -> list[Edge]:
    """The paths into a head that carry enough of what is at stake, whose sign is that of a cut."""
    viewed = patches.viewed
    catalogue = Catalogue.of(viewed, patches.tokens.shape[1])
    paths = {
        path.label: Edge(sender.label, at, channel, head)
        for sender in catalogue.units(_senders(catalogue, receiver))
        for at, channel in ((_reading(viewed, receiver, channel), channel) for channel in channels)
        for end in catalogue.units(f"{at}.{channel}")
        if (path := catalogue.path(sender, end)) is not None
    }
    found = patches.effects(list(paths), metric, compare=False)
    sign = math.copysign(1.0, at_stake)
    return [
        edge
        for label, edge in paths.items()
        if sign * found[label].value >= patches.share * abs(at_stake)
        and min(sign * found[label].low, sign * found[label].high) > 0
    ]


def _senders(catalogue: Catalogue, receiver: str) -> list[str]:
    """What lies below a head: the embedding, terms, and sublayers that are not split into terms."""
    viewed, labels = catalogue.viewed, ["embed"]
    for layer in range(viewed.head(receiver)[0]):
        for sublayer in sorted(viewed.sublayers(layer), key=lambda one: bool(one.terms)):
            labels += [one.label for one in sublayer.terms or (sublayer.writer,)]
    return [label for label in labels if label in catalogue.components]


def _reading(viewed: View, head: str, channel: str) -> str:
    """Whose queries, keys or values a head has: heads may share keys and values."""
    layer, number = viewed.head(head)
    return f"L{layer}H{number * len(viewed.readers(layer, channel)) // viewed.heads[layer]}"


def _earlier_keys(patches: Patches, head: str) -> list[Edge]:
    """What a head's keys take from those before them, by smearing or taps.

    It is cut by taking all pairs of that key lag out of the scores. Nothing, if they take none, or
    a convolution below lets the head read earlier tokens.
    """
    model, maps = patches.viewed.model, head_maps(patches.viewed, [head])[head]
    n_query, n_key = patches.lags(head)
    if maps.convs or n_key == 1:
        return []
    mixing = maps.route("k").end.mixing
    senders = {SENDERS.get(mixing, f"{mixing}.lag{lag}"): lag for lag in range(1, n_key)}
    units = {
        sender: [one for i in range(n_query) for one in without_lag_pair(model, head, (i, lag))]
        for sender, lag in senders.items()
    }
    scores, losses = (
        effects_of(ablate(model, patches.tokens, units, "zero", metric, control="none"))
        for metric in (InductionScore(head), SecondCopyLoss())
    )
    edges = [
        Edge(sender, head, "k", head, scores[sender], losses[sender], lag, mixing)
        for sender, lag in senders.items()
    ]
    return [edge for edge in edges if edge.score.high < 0]
