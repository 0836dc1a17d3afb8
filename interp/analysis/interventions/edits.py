"""From units to what is written over which activation, for one batch of sequences."""

import functools
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from interp.analysis.interventions.replacements import Activations
from interp.analysis.interventions.units import Site, Unit, UnitPart
from interp.models.description import Order, Step, stream_hook
from interp.models.description import between as all_between
from interp.models.shapes import Stream, Tokens
from interp.views import Hook, Start, View

Rotation = Float[Tensor, "d_model d_model"]
Arrival = tuple[tuple[str, ...], int, str]
"""What identifies what arrives: its senders, how they are turned, and where."""


@dataclass(frozen=True, eq=False)
class Change:
    """One intervention: a unit, or as large a change of the stream in other directions.

    Attributes:
        unit: what is changed.
        rotation: turns what the unit's change writes to the stream.
    """

    unit: Unit
    rotation: Rotation | None = None


@dataclass(frozen=True, eq=False)
class Edit:
    """A site, and the value that is put there; one row stands for all sequences."""

    site: Site
    value: Shaped[Tensor, "..."]


@dataclass(frozen=True)
class Entry:
    """Where a change enters a model: nothing below is touched by it, and need not run again.

    A layer l whose one mixer reads the stream x, and whose MLP reads after it, makes of it

        y  = x + m          m  = mixer(norm(x))
        x' = y + mlp(norm(y))

    What changes only m, or comes after it, needs x and m of the clean run and neither the mixer nor
    anything below: the pass starts above the mixer, from x and the changed m. If m is a sum of
    terms, heads or lags, of which some are changed by Δ_i, then

        m̃ = m + Σ_i Δ_i W_i

    with W_i the map from what term i is read at to the stream: W_O for a head; none for a lag that
    is a vector of the stream already (`written`). Where m goes through a convolution on its way to
    the stream, Δ_i W_i goes through it, too, and its lags are changed behind that.

    Attributes:
        layer: the first layer that has to run.
        stream: the hook point of x; None if the embedding itself is changed.
        mixed: the hook point of m, if only that and what comes after it is changed.
    """

    layer: int
    stream: str | None
    mixed: str | None = None

    @classmethod
    def of(cls, sites: Sequence[Site], viewed: View) -> "Entry":
        """Of a change of these sites."""
        layer = min(site.reads[0] for site in sites)
        if layer < 0:
            return cls(0, None)
        if layer >= viewed.n_layers:
            return cls(viewed.n_layers, stream_hook(viewed.n_layers - 1, "resid_post"))
        here = [site for site in sites if site.reads[0] == layer]
        mixed = mixer(viewed, layer)
        added = (
            viewed.starts_within
            and mixed is not None
            and all(site.stream == mixed or site.is_after_mixer for site in here)
        )
        return cls(layer, stream_hook(layer, "resid_pre"), mixed if added else None)

    @property
    def names(self) -> set[str]:
        """What has to be kept of the clean run in order to begin here."""
        return {name for name in (self.stream, self.mixed) if name is not None}


@dataclass(eq=False)
class Batch:
    """Some sequences, what the model makes of them, and the values that are put in instead.

    Attributes:
        viewed: the model.
        tokens: the sequences.
        clean: activations of the undisturbed run, in the order in which it computes them.
        other: activations that values are taken from.
        starts: whether a forward pass may begin above the tokens.
        holds_patterns: whether every attention pattern is held at its clean value.
    """

    viewed: View
    tokens: Tokens
    clean: Activations
    other: Activations
    starts: bool
    holds_patterns: bool = False
    _arrived: dict[Arrival, Tensor] = field(default_factory=dict)

    def edits(self, change: Change) -> list[Edit]:
        """What a change writes over, in the order of the model."""
        return _Joint(self, change.unit.parts, change.rotation).edits()

    def now(self, edits: Sequence[Edit], names: Collection[str]) -> dict[str, Tensor]:
        """Activations of the run under these edits, at these hook points."""
        changed = [
            name for name in names if any(_reaches(self.viewed, edit, name) for edit in edits)
        ]
        known = {name: self.clean[name] for name in names if name not in changed}
        return known | (self.run(edits, changed) if changed else {})

    def run(
        self, edits: Sequence[Edit], names: Collection[str], held: Activations | None = None
    ) -> dict[str, Tensor]:
        """Activations under edits, while some other hook points are held at given values."""
        start, left = self.start([edits], names)
        holds = [holding(name, value) for name, value in (held or {}).items()]
        return self.viewed.capture(
            self.tokens, names, start=start, hooks=[*holds, *self.hooks(left)]
        )

    def hooks(self, changes: Sequence[Sequence[Edit]]) -> list[Hook]:
        """Hooks that make each change in its own copy of the sequences; patterns may be held."""
        hooks = edit_hooks(changes, len(self.tokens))
        if not self.holds_patterns:
            return hooks
        held = [
            hook
            for layer, name in self.viewed.patterns.items()
            for hook in self.viewed.held_patterns(layer, self.clean[name])
        ]
        # Held patterns mix values that are edited already, and what they give is edited after.
        terms = {edit.site.hook for change in changes for edit in change if edit.site.terms}
        first = [hook for hook in hooks if hook[0] not in terms]
        return [*first, *held, *(hook for hook in hooks if hook[0] in terms)]

    def rank(self, name: str) -> int:
        """When the model computes this hook point, among those that are kept."""
        return self._ranks.get(name, len(self._ranks))

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {name: rank for rank, name in enumerate(self.clean)}

    def start(
        self, changes: Sequence[Sequence[Edit]], names: Collection[str] = ()
    ) -> tuple[Start | None, list[list[Edit]]]:
        """Where a pass with these changes begins, and what is left to be edited on its way.

        All of them enter alike. What a change makes heads or lags write is simply put in, unless
        activations are asked for by name that would not be computed then.
        """
        edits = [list(change) for change in changes]
        entry = Entry.of([edit.site for edit in edits[0]], self.viewed)
        if not self.starts or entry.stream is None:
            return None, edits
        stream = self.clean[entry.stream]
        rows = stream.repeat(len(edits), *[1] * (stream.ndim - 1))
        asked = [self.viewed.order(name)[0] for name in names]
        within = any(layer == entry.layer and step <= Step.WRITTEN for layer, step in asked)
        if entry.mixed is None or within:
            return Start(entry.layer, rows), edits
        mixed, left = [], []
        for change in edits:
            here = [edit for edit in change if edit.site.stream == entry.mixed]
            left.append([edit for edit in change if edit.site.stream != entry.mixed])
            mixed.append(written(entry.mixed, here, self.clean))
        return Start(entry.layer, rows, torch.cat(mixed)), left


@dataclass(eq=False)
class _Joint:
    """Parts that change together, each in the run in which those below it are changed already.

    A value that is put in stands, whatever reaches its place. What receives from senders is
    computed anew: each sender's output is replaced in what it reads, once, and everything else
    that it reads is as it is in this run. So paths into one receiver add at the receiver, all
    paths out of a sender are that sender, and no order of writing matters.

    Attributes:
        batch: the sequences.
        parts: what changes.
        rotation: turns what each replacement changes of the stream.
    """

    batch: Batch
    parts: Sequence[UnitPart]
    rotation: Rotation | None = None
    _put: list[Edit] = field(default_factory=list)
    _received: list[Edit] = field(default_factory=list)
    _arrived: dict[Arrival, Tensor] = field(default_factory=dict)

    def edits(self, level: Order | None = None) -> list[Edit]:
        """What is written over, in the order of the model; at one level, where it is given."""
        parts = [part for part in self.parts if level is None or part.site.reads == level]
        for hook in sorted({self._where(part) for part in parts}, key=self.batch.rank):
            self._received += self._receive(hook)
            self._put += self._replace(hook)
        made = [edit for edit in self._made if level is None or edit.site.reads == level]
        return sorted(made, key=lambda edit: self.batch.rank(edit.site.hook))

    @property
    def _made(self) -> list[Edit]:
        return [*self._received, *self._put]

    def _where(self, part: UnitPart) -> str:
        turned = self.rotation is not None and part.sender is None
        return (part.site.stream if turned else None) or part.site.hook

    def _replace(self, hook: str) -> list[Edit]:
        here = [part.site for part in self.parts if not part.sender and self._where(part) == hook]
        here.sort(key=lambda site: self.batch.rank(site.hook))
        edits = [Edit(site, site.of(self.batch.other[site.hook])) for site in here]
        if self.rotation is None or not edits:
            return edits
        now = self.batch.now(self._made, {hook, *(site.hook for site in here)})
        difference = written(hook, edits, now) - now[hook]
        site = Site.of_hook(self.batch.viewed, hook)
        return [Edit(site, now[hook] + difference @ self.rotation.to(difference))]

    def _receive(self, hook: str, also: Sequence[Unit] = ()) -> list[Edit]:
        """What arrives at a hook point, where each entry may have senders of its own."""
        groups: dict[str, tuple[Site, list[Unit]]] = {}
        for part in self.parts:
            if part.sender is not None and part.site.hook == hook:
                groups.setdefault(repr(part.site.place.index), (part.site, []))[1].append(
                    part.sender
                )
        if len(groups) < 2:
            return [
                Edit(site, site.of(self._arriving(hook, [*senders, *also])))
                for site, senders in groups.values()
            ]
        value = self.batch.clean[hook]
        regions = torch.zeros_like(value[:1], dtype=torch.long)
        sets: list[list[Unit]] = [[]]
        for site, senders in groups.values():
            here = site.of(regions)
            for known in here.unique().tolist():
                here[here == known] = len(sets)
                sets.append([*sets[known], *senders])
        for number in regions.unique().tolist():
            if sets[number]:
                arrived = self._arriving(hook, [*sets[number], *also])
                value = torch.where(regions == number, arrived, value)
        return [Edit(site, site.of(value)) for site, _ in groups.values()]

    def _arriving(self, hook: str, senders: Sequence[Unit]) -> Tensor:
        """An activation with all of the senders replaced in what it reads."""
        named = {sender.label: sender for sender in senders}
        labels = tuple(sorted(named))
        key = (labels, id(self.rotation), hook)
        known = self._arrived
        if not self._before(hook):
            known = self.batch._arrived
            # Senders come one after the other: only what the last ones sent is kept.
            if any(other[:2] != key[:2] for other in known):
                known.clear()
        if key not in known:
            arrived = self._with_senders_replaced(hook, [named[label] for label in labels])
            known[key] = arrived
        return known[key]

    def _before(self, hook: str) -> list[Edit]:
        rank = self.batch.rank(hook)
        return [edit for edit in self._made if self.batch.rank(edit.site.hook) < rank]

    def _with_senders_replaced(self, hook: str, senders: Sequence[Unit]) -> Tensor:
        """One pass in which what every layer between writes is held as it is in this run.

        A sender between others and the receiver is held at what it writes when it alone is
        replaced (Wang et al. 2022). Streams that others receive, and what feeds the receiver
        within its own layer, lose the senders too.
        """
        batch, before = self.batch, self._before(hook)
        viewed, reads = batch.viewed, batch.viewed.order(hook)[0]
        sent = parts_below([part for sender in senders for part in sender.parts], reads)
        if not before and (direct := self._direct(hook, reads, sent)) is not None:
            return direct
        names = between(viewed, sent, reads)
        held = batch.now(before, names)
        levels = sorted({part.site.reads for part in sent})
        holding_levels = {viewed.order(name)[0] for name in names}
        live = [edit for edit in before if edit.site.reads not in {*levels, *holding_levels}]
        for other in dict.fromkeys(edit.site.hook for edit in live if edit in self._received):
            if parts_below(sent, viewed.order(other)[0]):
                mine = [e for e in live if e in self._received and e.site.hook == other]
                live = [*self._receive(other, senders), *(e for e in live if e not in mine)]
        for level in levels:
            lower = _Joint(
                batch,
                [
                    *(part for part in self.parts if part.site.reads <= level),
                    *(part for part in sent if part.site.reads == level),
                ],
                self.rotation,
                [edit for edit in self._put if edit.site.reads < level],
                [edit for edit in self._received if edit.site.reads < level],
            )
            new = lower.edits(level)
            own = [name for name in names if viewed.order(name)[0] == level]
            if not own:
                live += new
            elif all(edit.site.hook in own for edit in new):
                held |= {name: edited(held[name], _at(name, new)) for name in own}
            else:
                held |= batch.now(lower._made, own)
        return batch.run(live, [hook], held)[hook]

    def _direct(self, hook: str, reads: Order, sent: Sequence[UnitPart]) -> Tensor | None:
        """The same without a pass through what lies between; None where that cannot be.

        What every layer between writes is held, so the stream that the receiver reads is that of
        the clean run with the senders' differences added,

            x' = x + Σ_i Δ_i W_i,

        and only the receiver's own layer runs, from x' on, up to what it reads. A receiver that is
        the stream needs no run at all.
        """
        batch, viewed = self.batch, self.batch.viewed
        layer, step = reads
        plain = batch.starts and viewed.sums_up and not batch.holds_patterns
        plain = plain and self.rotation is None
        if not plain or step not in (Step.READ, Step.AFTER):
            return None
        stream = hook if step == Step.AFTER else stream_hook(layer, "resid_pre")
        change = _stream_change(sent, layer, batch)
        if change is None or stream not in batch.clean:
            return None
        changed = batch.clean[stream] + change.to(batch.clean[stream])
        if step == Step.AFTER:
            return changed
        return viewed.capture(batch.tokens, [hook], start=Start(layer, changed))[hook]


def _stream_change(sent: Sequence[UnitPart], layer: int, batch: Batch) -> Tensor | None:
    """What replacing these adds to the stream above their layers; None if that is not linear."""
    change: Tensor | None = None
    by_hook: dict[str, list[Site]] = {}
    for part in sent:
        site = part.site
        if part.sender is not None or site.stream is None or site.writer is None:
            return None
        if site.writer.layer >= layer or any(term.kind == "out.lag" for term in site.terms):
            return None
        by_hook.setdefault(site.hook, []).append(site)
    for hook, sites in by_hook.items():
        writer = sites[0].writer
        assert writer is not None
        if hook not in batch.clean or any(
            other.hook != hook and other.writer == writer for other in _sites_of(sent)
        ):
            return None  # a sublayer and one of its terms at once: the first replaces the second
        edits = [Edit(site, site.of(batch.other[hook])) for site in sites]
        difference = edited(batch.clean[hook], edits) - batch.clean[hook]
        terms = {term.label: term for site in sites for term in site.terms}
        if hook == writer.hook:
            added = writer.term(difference)
        else:
            added = functools.reduce(
                operator.add, (t.spread(t.projected(difference)) for t in terms.values())
            )
        change = added if change is None else change + added
    return change


def _sites_of(parts: Sequence[UnitPart]) -> list[Site]:
    return [part.site for part in parts]


def _at(name: str, edits: Sequence[Edit]) -> list[Edit]:
    return [edit for edit in edits if edit.site.hook == name]


def _reaches(viewed: View, edit: Edit, name: str) -> bool:
    return edit.site.hook == name or edit.site.reads < viewed.order(name)[1]


def parts_below(parts: Sequence[UnitPart], reads: Order) -> tuple[UnitPart, ...]:
    """Those that what reads then can receive from."""
    return tuple(part for part in parts if part.site.writes < reads)


def names_for(viewed: View, change: Change) -> set[str]:
    """The activations of the clean run that a change needs."""
    unit = change.unit
    paths = [part for part in unit.parts if part.sender is not None]
    names = {site.hook for site in unit.sources}
    names |= {site.hook for site in unit.sites if site.stream is not None}
    names |= {name for site in unit.sites for name in Entry.of([site], viewed).names}
    if paths and len(unit.parts) > 1:  # where they come in the model, and what is not received
        names |= {site.hook for site in unit.sites}
    for part in paths:
        for other in paths:
            # What a receiver higher up is to lose, a stream or its own layer's parts lose too.
            if other is part or _is_lost_on_the_way(part.site, other.site):
                sent = parts_below(other.sender.parts if other.sender else (), part.site.reads)
                names |= set(between(viewed, sent, part.site.reads))
        if part.sender is not None:
            names |= {site.hook for site in part.sender.sites}
            names |= names_for(viewed, Change(part.sender))
    if change.rotation is not None:
        names |= {site.stream for site in unit.sources if site.stream is not None}
    return names


def _is_lost_on_the_way(lower: Site, upper: Site) -> bool:
    is_stream = lower.reads == lower.writes
    return lower.reads == upper.reads or (is_stream and lower.reads < upper.reads)


def mixer(viewed: View, layer: int) -> str | None:
    """The hook point of what a layer's mixer writes; None where it has none, or several."""
    mixers = [writer.hook for writer in viewed.written_by(layer) if not writer.is_mlp]
    return mixers[0] if len(mixers) == 1 else None


def written(name: str, edits: Sequence[Edit], clean: Activations) -> Stream:
    """What stands at a hook point of the stream after edits there, or of the terms it sums up.

    Terms that no edit touches are not multiplied out.
    """
    out, summed = clean[name], []
    for hook in dict.fromkeys(edit.site.hook for edit in edits if edit.site.hook != name):
        here = _at(hook, edits)
        terms = {term.label: term for edit in here for term in edit.site.terms}
        writer = here[0].site.writer
        assert writer is not None
        if any(term.kind == "out.lag" for term in terms.values()):
            # Lags sum up what the terms before them became: what is put in stands.
            lags = clean[hook]
            reached = [term.over_lags(x).transpose(0, 1) for term, x in summed]
            before = lags + sum(reached, torch.zeros_like(lags))
            out = out + (edited(before, here) - before).sum(1) / writer.scale
            continue
        difference = edited(clean[hook], here) - clean[hook]
        changes = [(term, term.projected(difference)) for term in terms.values()]
        summed += changes
        added = functools.reduce(operator.add, (term.spread(x) for term, x in changes))
        # What is hooked is multiplied on the way to the stream, and terms are as they arrive there.
        out = out + (added if writer.scale == 1.0 else added / writer.scale)
    here = _at(name, edits)
    return edited(out, here) if here else out


def edited(activation: Tensor, edits: Sequence[Edit]) -> Tensor:
    """An activation with edits made in it; itself is left as it is."""
    new = activation.clone()
    for edit in edits:
        edit.site.of(new)[...] = edit.value
    return new


def between(viewed: View, sent: Sequence[UnitPart], reads: Order) -> list[str]:
    """What is written between what is sent and what reads then: hook points, from below."""
    first = min((part.site.writes for part in sent), default=reads)
    return [writer.hook for writer in all_between(viewed.writers, first, reads)]


def holding(name: str, value: Tensor) -> Hook:
    """A hook that puts a whole activation in."""

    def hold(activation: Tensor, hook: Any) -> Tensor:
        return value

    return name, hold


def edit_hooks(changes: Sequence[Sequence[Edit]], n_rows: int) -> list[Hook]:
    """Hooks that make each change in its own copy of the sequences, `n_rows` rows each."""
    by_name: dict[str, list[tuple[int, Edit]]] = {}
    for number, edits in enumerate(changes):
        for edit in edits:
            by_name.setdefault(edit.site.hook, []).append((number, edit))

    def editor(name: str) -> Hook:
        def change(activation: Tensor, hook: Any) -> Tensor:
            new = activation.clone()
            copies = new.unflatten(0, (len(changes), n_rows))
            for number, edit in by_name[name]:
                edit.site.of(copies[number])[...] = edit.value
            return new

        return name, change

    return [editor(name) for name in by_name]
