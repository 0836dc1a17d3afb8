"""From units to what is written over which activation, for one batch of sequences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from interp.analysis.interventions.sources import Activations
from interp.analysis.units import Part, Site, Unit, stream_hook
from interp.models.description import between as all_between
from interp.models.protocol import Hook, Start, View
from interp.models.shapes import Heads, Stream, Tokens

Rotation = Float[Tensor, "d_model d_model"]


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
    """Where a change enters a model: nothing below is touched by it.

    Attributes:
        layer: the first layer that has to run.
        stream: the hook point of what enters it; None if the embedding itself is changed.
        mixed: the hook point of what its heads or lags write, if only that and what comes after it
            is changed: then they need not run either.
    """

    layer: int
    stream: str | None
    mixed: str | None = None

    @classmethod
    def of(cls, sites: Sequence[Site], seen: View) -> "Entry":
        """Of a change of these sites."""
        layer = min(site.reads[0] for site in sites)
        if layer < 0:
            return cls(0, None)
        if layer >= seen.n_layers:
            return cls(seen.n_layers, f"blocks.{seen.n_layers - 1}.hook_resid_post")
        here = [site for site in sites if site.reads[0] == layer]
        mixed = mixer(seen, layer)
        added = mixed is not None and all(
            stream_hook(site) == mixed or site.is_after_mixer for site in here
        )
        return cls(layer, f"blocks.{layer}.hook_resid_pre", mixed if added else None)

    @property
    def names(self) -> set[str]:
        """What has to be kept of the clean run in order to begin here."""
        return {name for name in (self.stream, self.mixed) if name is not None}


@dataclass(eq=False)
class Batch:
    """Some sequences, what the model makes of them, and the values that are put in instead.

    Attributes:
        seen: the model.
        tokens: the sequences.
        clean: activations of the undisturbed run.
        other: activations that values are taken from.
        starts: whether a forward pass may begin above the tokens.
    """

    seen: View
    tokens: Tokens
    clean: Activations
    other: Activations
    starts: bool
    _arrived: dict[tuple[str, int, str], Tensor] = field(default_factory=dict)

    def edits(self, change: Change) -> list[Edit]:
        """What a change writes over, in order."""
        unit, rotation = change.unit, change.rotation
        edits = [self._edit(part, rotation) for part in unit.parts]
        if rotation is None or any(part.sender for part in unit.parts):
            return edits
        written = dict.fromkeys(stream_hook(edit.site) for edit in edits)
        return [self._turned(name, edits, rotation) for name in written if name is not None]

    def _edit(self, part: Part, rotation: Rotation | None) -> Edit:
        where = self.other[part.site.hook] if part.sender is None else None
        if where is None:
            where = self._arriving(part, rotation)
        return Edit(part.site, part.site.of(where))

    def _turned(self, name: str, edits: Sequence[Edit], rotation: Rotation) -> Edit:
        here = [edit for edit in edits if stream_hook(edit.site) == name]
        before = self.clean[name]
        difference = written(self.seen, name, here, self.clean) - before
        return Edit(Site(name), before + difference @ rotation.to(difference))

    def _arriving(self, part: Part, rotation: Rotation | None) -> Tensor:
        """An activation as it is if the sender alone changes, and reaches it only directly.

        What every layer between the two writes is held at its clean value (Wang et al. 2022).
        """
        sender = part.sender
        assert sender is not None
        key = (sender.label, id(rotation), part.site.hook)
        if key not in self._arrived:
            # Senders come one after the other: only what the last one sent is kept.
            if any(known[:2] != key[:2] for known in self._arrived):
                self._arrived.clear()
            start, edits = self.start([self.edits(Change(sender, rotation))])
            held = [holding(name, self.clean[name]) for name in between(self.seen, part)]
            hooks = [*held, *edit_hooks(edits, len(self.tokens))]
            heard = self.seen.capture(self.tokens, [part.site.hook], start=start, hooks=hooks)
            self._arrived[key] = heard[part.site.hook]
        return self._arrived[key]

    def start(self, changes: Sequence[Sequence[Edit]]) -> tuple[Start | None, list[list[Edit]]]:
        """Where a pass with these changes begins, and what is left to be edited on its way.

        All of them enter alike. What a change makes heads or lags write is simply put in.
        """
        edits = [list(change) for change in changes]
        entry = Entry.of([edit.site for edit in edits[0]], self.seen)
        if not self.starts or entry.stream is None:
            return None, edits
        stream = self.clean[entry.stream]
        rows = stream.repeat(len(edits), *[1] * (stream.ndim - 1))
        if entry.mixed is None:
            return Start(entry.layer, rows), edits
        mixed, left = [], []
        for change in edits:
            here = [edit for edit in change if stream_hook(edit.site) == entry.mixed]
            left.append([edit for edit in change if stream_hook(edit.site) != entry.mixed])
            mixed.append(written(self.seen, entry.mixed, here, self.clean))
        return Start(entry.layer, rows, torch.cat(mixed)), left


def names_for(seen: View, change: Change) -> set[str]:
    """The activations of the clean run that a change needs."""
    unit = change.unit
    names = {site.hook for site in unit.sources}
    names |= {site.hook for site in unit.sites if stream_hook(site) is not None}
    if unit.sites:
        names |= Entry.of(unit.sites, seen).names
    for part in unit.parts:
        if part.sender is not None:
            names |= set(between(seen, part)) | names_for(seen, Change(part.sender))
    if change.rotation is not None:
        names |= {name for site in unit.sources if (name := stream_hook(site)) is not None}
    return names


def mixer(seen: View, layer: int) -> str | None:
    """The hook point of what a layer's mixer writes; None where it has none, or several."""
    mixers = [writer.hook for writer in seen.written_by(layer) if not writer.is_mlp]
    return mixers[0] if len(mixers) == 1 else None


def written(seen: View, name: str, edits: Sequence[Edit], clean: Activations) -> Stream:
    """What stands at a hook point of the stream after edits there, or of the terms it sums up."""
    out = clean[name]
    for hook in dict.fromkeys(edit.site.hook for edit in edits if edit.site.hook != name):
        terms = [edit for edit in edits if edit.site.hook == hook]
        if hook.endswith("hook_z"):
            out = out + _written_by_heads(seen, terms[0].site.reads[0], clean[hook], terms)
        else:
            out = out + (_edited(clean[hook], terms) - clean[hook]).sum(1)
    here = [edit for edit in edits if edit.site.hook == name]
    return _edited(out, here) if here else out


def _written_by_heads(seen: View, layer: int, z: Heads, edits: Sequence[Edit]) -> Stream:
    """The change of what they write; heads that are not edited are not multiplied out."""
    W_O = seen.output_map(layer)
    indices = [edit.site.index for edit in edits]
    if not all(len(index) > 1 and isinstance(index[1], int) for index in indices):
        return torch.einsum("bphd,hdm->bpm", _edited(z, edits) - z, W_O)
    change = torch.zeros_like(W_O[0, 0]).expand(*z.shape[:2], -1)
    for head in dict.fromkeys(index[1] for index in indices):
        one = [
            Edit(Site("", (index[0], *index[2:])), edit.value)
            for index, edit in zip(indices, edits, strict=True)
            if index[1] == head
        ]
        change = change + (_edited(z[:, :, head], one) - z[:, :, head]) @ W_O[head]
    return change


def _edited(activation: Tensor, edits: Sequence[Edit]) -> Tensor:
    new = activation.clone()
    for edit in edits:
        edit.site.of(new)[...] = edit.value
    return new


def between(seen: View, part: Part) -> Iterator[str]:
    """What is written between a part's sender and its site: hook points, from below."""
    assert part.sender is not None
    first, last = min(site.writes for site in part.sender.sites), part.site.reads
    return (writer.hook for writer in all_between(seen.writers, first, last))


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
