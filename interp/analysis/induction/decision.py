"""Do the heads that attend as induction heads carry what repeating is worth? All of them at once.

Removing one of several heads that do the same costs nothing, and a head that was not needed before
may wake: so all candidates are removed together, the scores are measured again without them, and
what stands out then is removed as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from interp.analysis.induction.candidates import (
    induction_candidates,
    stand_out,
    weak_together,
)
from interp.analysis.induction.edges import UNKNOWN, Effect, Patches
from interp.analysis.interventions.edits import Change, Edit, edit_hooks
from interp.analysis.interventions.memory import rows_that_fit
from interp.analysis.interventions.metrics import LogitMetric, SecondCopyLoss, Values
from interp.analysis.interventions.replacements import Means, Numbers, OtherRun
from interp.analysis.interventions.sweep import Sweep
from interp.analysis.interventions.units import Catalogue, Unit
from interp.analysis.probes.sequences import RepeatedTokens
from interp.models.shapes import Tokens
from interp.results.intervals import mean_interval, ratio_interval
from interp.results.result import Result
from interp.views import Hook
from interp.views.outputs import Outputs

MOST_ROUNDS = 4
"""How often heads are looked for: in the whole model, and without those that are found."""

NO_WORTH = 1e-6
"""Nats: less than this is the rounding of float32."""


IN_ORDER = 0.2
"""Heads that say what comes next lose so much of what their removal costs by another order."""


@dataclass(frozen=True)
class CopyLosses(LogitMetric):
    """Mean loss on each half of `[BOS] + r + s`, each without its first token: two numbers."""

    name = "copy_losses"
    unit = "nats"

    def positions(self, n_pos: int) -> Sequence[int]:
        """From the first to the last but one of each half."""
        n = n_pos // 2
        return [*range(n_pos - 2 * n, n_pos - n - 1), *range(n_pos - n, n_pos - 1)]

    def read(self, outputs: Outputs, tokens: Tokens, numbers: Numbers) -> Values:
        """In nats."""
        targets = torch.tensor(self.positions(tokens.shape[1])) + 1
        return outputs.losses(tokens[:, targets]).double().unflatten(1, (2, -1)).mean(2)


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses sequence by sequence, in nats.

    Attributes:
        first: on the first copy.
        second: on the second copy.
        unrepeated: on the same tokens at the same places, after a first copy of other tokens.
    """

    first: np.ndarray
    second: np.ndarray
    unrepeated: np.ndarray

    @property
    def drop(self) -> np.ndarray:
        """How much better the second copy is predicted than the first."""
        return self.first - self.second

    @property
    def worth(self) -> np.ndarray:
        """The part of the drop that the repetition makes, and not the place in the sequence."""
        return self.unrepeated - self.second


@dataclass(frozen=True, eq=False)
class Removal:
    """Takes heads out: what they write comes from sequences without a repetition.

    Attributes:
        patches: the model and the sequences.
        probe: the repeated ones.
    """

    patches: Patches
    probe: RepeatedTokens
    _known: dict[tuple[str, ...], Losses] = field(default_factory=dict)

    def losses(self, heads: Sequence[str]) -> Losses:
        """Without these heads, all at once."""
        key = tuple(sorted(heads))
        if key not in self._known:
            repeated = self._measured(self.probe.tokens, heads)
            unrepeated = self._measured(self._after_others, heads)
            self._known[key] = Losses(repeated[:, 0], repeated[:, 1], unrepeated[:, 1])
        return self._known[key]

    def in_another_order(self) -> Effect:
        """What it adds to the loss on the second copy that the first has another order."""
        shuffled = self._measured(_shuffled(self.probe), [])[:, 1]
        return effect_of(shuffled - self.losses([]).second)

    @cached_property
    def _after_others(self) -> Tokens:
        """The second copy after a first of tokens that are not in it, if there are enough."""
        tokens, n = self.probe.tokens.clone(), self.probe.n
        other, first = self.patches.unrepeated[:, -2 * n :], self.probe.positions(0)
        is_known = (other[:, :, None] == tokens[:, None, -n:]).any(-1)
        order = is_known.int().argsort(dim=1, stable=True)[:, :n]
        tokens[:, first.start : first.stop] = other.gather(1, order)
        return tokens

    def _measured(self, tokens: Tokens, heads: Sequence[str]) -> np.ndarray:
        sweep = Sweep(self.patches.viewed, tokens, CopyLosses(), OtherRun(self.patches.others))
        clean, changed = sweep.measure([Change(self._unit(heads))] if heads else [])
        return (changed[0] if heads else clean).numpy()

    def under(self, heads: Sequence[str], numbers: Numbers) -> list[Hook]:
        """The hooks that take these heads out of some of the sequences."""
        sites = self._unit(heads).sites
        names = {site.hook for site in sites}
        others = self.patches.viewed.capture(self.patches.others[numbers], names)
        edits = [Edit(site, site.of(others[site.hook])) for site in sites]
        return edit_hooks([edits], len(numbers))

    def out_of_order(self, heads: Sequence[str]) -> Effect:
        """The loss of the second copy when the heads read a first copy in another order there.

        What they attend to matches as before and the same tokens are there to be copied, but other
        tokens follow. A head that does not say what comes next, but only that there is a match, or
        which tokens there were, changes nothing.
        """
        second = self.probe.positions(1)
        unit = self._unit([f"{head}@{second.start}:{second.stop}" for head in heads])
        source = OtherRun(_shuffled(self.probe))
        sweep = Sweep(self.patches.viewed, self.probe.tokens, SecondCopyLoss(), source)
        clean, changed = sweep.measure([Change(unit)])
        return effect_of((changed[0] - clean).numpy())

    def _unit(self, labels: Sequence[str]) -> Unit:
        catalogue = Catalogue.of(self.patches.viewed, self.probe.tokens.shape[1])
        first, *others = catalogue.units(labels)
        return sum(others, start=first)


@dataclass(frozen=True, eq=False)
class Decision:
    """Whether there is a circuit, and of which heads.

    Attributes:
        scores: of every head, nothing being removed.
        groups: the heads of the circuit in the order in which they were found, each group in the
            absence of those before it.
        tested: all heads that were removed together, at the end.
        attended: the score of each of them, in the absence of the groups before its own.
        losses: of the model as it is.
        without: of the model without the circuit's heads.
        removal: what removing the circuit's heads adds to the loss on the second copy.
        order: what it adds to it when they read the first copy in another order.
        in_order: what another order of the first copy adds to that loss in the whole model.
        share: how much of what the repetition is worth they have to explain.
        distant: heads that attend to the same places by distance, averaged over in all this.
        rounds: how often heads were looked for.
    """

    scores: Result
    groups: Sequence[Sequence[str]]
    tested: Sequence[str]
    attended: Mapping[str, float]
    losses: Losses
    without: Losses
    removal: Effect
    order: Effect
    in_order: Effect
    share: float
    distant: Sequence[str]
    rounds: int

    @property
    def heads(self) -> list[str]:
        """Those of all groups."""
        return [head for group in self.groups for head in group]

    @property
    def drop(self) -> Effect:
        """Loss on the first copy minus loss on the second."""
        return effect_of(self.losses.drop)

    @property
    def worth(self) -> Effect:
        """How much of it the repetition makes."""
        return effect_of(self.losses.worth)

    @cached_property
    def explained(self) -> Effect:
        """How much of that is gone without the circuit's heads, as a share."""
        return share_of(self.losses.worth - self.without.worth, self.losses.worth)

    @property
    def needed(self) -> bool:
        """Whether the loss on the second copy is higher without them."""
        return self.removal.low > NO_WORTH and self.removal.beyond_random()

    @property
    def ordered(self) -> bool:
        """Whether they say what comes next, and not only that something comes again."""
        return self.order.low > 0 and self.order.value >= IN_ORDER * self.removal.value

    @property
    def found(self) -> bool:
        """Whether the loss needs the heads, and what follows the match that they attend to."""
        # Where repeating is worth nothing, there is nothing to explain: something undoes it.
        enough = self.worth.low <= NO_WORTH or self.explained.value >= self.share
        return self.needed and self.ordered and enough


def decide(
    removal: Removal, scores: Result, least: float, share: float, distant: Sequence[str] = ()
) -> Decision:
    """Removes the heads that attend as induction heads do, and what then does, until all is found.

    Heads that match by less than `least` are removed together where the others leave a `share` of
    what the repetition is worth.
    """
    whole = removal.losses([])
    untrained = float(scores.sel(measure="random_weights").values[0])
    groups: list[list[str]] = []
    tested: list[str] = []
    attended: dict[str, float] = {}
    kept, now, rounds = 0, scores, 0
    while rounds < MOST_ROUNDS:
        rounds += 1
        new = [head for head in stand_out(now, least) if head not in tested]
        left = share_of(removal.losses(tested).worth, whole.worth)
        if not new and left.value >= share:
            new = [head for head in weak_together(now, least) if head not in tested]
        if not new:
            break
        groups.append(new)
        tested += new
        attended |= {head: float(now.sel(measure="score", head=head)) for head in new}
        if kept == 0 or _is_worth_it(removal, groups[:kept], tested, share):
            kept = len(groups)
        if not mean_interval(removal.losses(tested).worth.tolist())[0] > NO_WORTH:
            break  # nothing is left that another head could do
        n_random = int(scores.provenance["n_random"])
        now = induction_candidates(
            removal.patches.viewed,
            removal.probe,
            n_random,
            untrained,
            partial(removal.under, list(tested)),
        )
    known = {
        "scores": scores,
        "tested": tested,
        "attended": attended,
        "losses": whole,
        "in_order": removal.in_another_order(),
        "share": share,
        "distant": distant,
        "rounds": rounds,
    }
    decisions = (
        Decision(groups=chosen, **_of_heads(removal, chosen), **known)
        for chosen in ([groups[:kept], groups] if kept < len(groups) else [groups])
    )
    # What is not found is not found with all of them.
    last = next(decisions)
    return last if last.found else next(decisions, last)


def _is_worth_it(
    removal: Removal, known: Sequence[Sequence[str]], tested: Sequence[str], share: float
) -> bool:
    """Whether more of the worth is gone without all tested heads than without those known."""
    whole = removal.losses([]).worth
    before = removal.losses([head for group in known for head in group]).worth
    gain = before - removal.losses(tested).worth
    least = share * whole.mean()
    enough = gain.mean() >= least or (whole - before).mean() < least
    return bool(enough) and mean_interval(gain.tolist())[0] > 0


def _of_heads(removal: Removal, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What becomes of the loss without the heads of these groups."""
    heads = [head for group in groups for head in group]
    together = "+".join(heads)
    effect, order = UNKNOWN, UNKNOWN
    if heads:
        effect = removal.patches.effects([together], SecondCopyLoss())[together]
        order = removal.out_of_order(heads)
    return {"without": removal.losses(heads), "removal": effect, "order": order}


@contextmanager
def averaged(patches: Patches, heads: Sequence[str]) -> Iterator[None]:
    """Under this, each head writes at each position what it writes there on average.

    The average is over sequences without a repetition.
    """
    if not heads:
        yield
        return
    viewed, tokens = patches.viewed, patches.unrepeated
    sites = [unit.sites[0] for unit in Catalogue.of(viewed, tokens.shape[1]).units(heads)]
    reference = Means(tokens, rows_that_fit(viewed, tokens.shape[1]))
    means = reference.values(viewed, torch.arange(1), {site.hook for site in sites}, {})
    hooks = edit_hooks([[Edit(site, site.of(means[site.hook])) for site in sites]], -1)
    with viewed.hooked(hooks):
        yield


def effect_of(samples: np.ndarray) -> Effect:
    """A mean over sequences, with its interval."""
    low, high = mean_interval(samples.tolist())
    error = float(samples.std(ddof=1) / np.sqrt(len(samples)))
    return Effect(float(samples.mean()), error, low, high)


def share_of(part: np.ndarray, whole: np.ndarray) -> Effect:
    """How much of the second the first is, with its interval; unknown where there is no whole."""
    if not mean_interval(whole.tolist())[0] > NO_WORTH:
        return UNKNOWN
    low, high = ratio_interval(part.tolist(), whole.tolist())
    return Effect(float(part.mean() / whole.mean()), low=low, high=high)


def _shuffled(probe: RepeatedTokens) -> Tokens:
    """The first copy in a random order, the second as it is."""
    tokens, first = probe.tokens.clone(), probe.positions(0)
    generator = torch.Generator().manual_seed(probe.seed)
    order = torch.rand(len(tokens), probe.n, generator=generator).argsort(dim=1)
    copy = tokens[:, first.start : first.stop]
    tokens[:, first.start : first.stop] = copy.gather(1, order)
    return tokens
