"""Every unit that a model has, looked up by what is written (`interventions.units`)."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from interp.analysis.interventions.units import ALL, GROUPS, HEAD, Position, Site, Unit
from interp.models.description import Writer
from interp.models.hooks import nearest
from interp.views import Hook, View

ANYTHING = r"(?:\d+|[a-z_]+)"
"""What a star stands for: a number, or a word."""

NUMBERS = re.compile(r"(?<=[LH])\d+|(?<=lag)\d+")

Given = str | Sequence[str] | Mapping[str, Sequence[Hook]]


@dataclass(frozen=True)
class Place:
    """A site whose position is not chosen yet."""

    hook: str
    index: tuple[Position, ...] = (ALL,)
    position_axis: int = 0
    writer: Writer | None = None
    is_term: bool = False

    def at(self, position: Position) -> Site:
        """The site at one or several positions."""
        index = list(self.index)
        index[self.position_axis] = position
        return Site(self.hook, tuple(index), self.writer, self.is_term)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The units of a model, for sequences of one length.

    >>> from interp.models import HookedConvAttn
    >>> from interp.views import view
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> catalogue = Catalogue.of(view(model), n_pos=3)
    >>> [unit.label for unit in catalogue.units("L0.lag*->L1H0.k")]
    ['L0.lag0->L1H0.k', 'L0.lag1->L1H0.k']
    >>> [unit.label for unit in catalogue.units("L1.resid_pre@*")]
    ['L1.resid_pre@0', 'L1.resid_pre@1', 'L1.resid_pre@2']
    """

    seen: View
    n_pos: int
    places: Mapping[str, tuple[Place, ...]]
    hooks: Collection[str]
    _kinds: dict[str, tuple[Unit, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, seen: View, n_pos: int) -> "Catalogue":
        """Everything the model has hook points for."""
        hooks = seen.hooks
        places = {
            label: there
            for label, wanted in _places(seen)
            if (there := tuple(place for place in wanted if place.hook in hooks))
        }
        return cls(seen, n_pos, places, hooks)

    def units(self, given: Given) -> tuple[Unit, ...]:
        """The units that are asked for, in order.

        Args:
            given: a label, a form or a group; several of them; or names for hooks of one's own,
                `{"my name": fwd_hooks}`.

        Raises:
            TypeError: something else.
            ValueError: a unit that the model has not, or one that is asked for twice.
        """
        if isinstance(given, Mapping):
            found = [Unit(str(name), hooks=tuple(hooks)) for name, hooks in given.items()]
        else:
            texts = [given] if isinstance(given, str) else list(given)
            found = [unit for text in texts for unit in self._joint(text)]
        if not found:
            raise ValueError(f"units={given!r} asks for nothing; give units, such as 'heads'")
        labels = [unit.label for unit in found]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"units={given!r} asks for {twice[0]!r} twice")
        return tuple(found)

    def receivers(self, given: str | Sequence[str]) -> tuple[str, ...]:
        """The labels of what a path can end at: units, and "logits"."""
        texts = [given] if isinstance(given, str) else list(given)
        labels = [label for text in texts for label, _ in self._receivers(text)]
        return tuple(dict.fromkeys(labels))

    def path(self, sender: Unit, receiver: str) -> Unit | None:
        """The direct path between two; None where the second does not come after the first."""
        ((label, sites),) = self._receivers(receiver)
        if min(site.writes for site in sender.sites) >= min(site.reads for site in sites):
            return None
        first = min(site.writes[0] for site in sender.sites)
        last = max(site.reads[0] for site in sites)
        # What is forgotten between the two would let a path leak through it.
        self.seen.check_writers(range(max(first, 0), min(last + 1, self.seen.n_layers)))
        return Unit.at(f"{sender.label}->{label}", *sites, sender=sender)

    def like(self, label: str) -> tuple[Unit, ...]:
        """All units of one's kind: all heads for a head, all lags for a lag, all paths for a path.

        Nothing, where a part of a hook point has no others of its kind.
        """
        if "[" in label or label.partition("@")[0] in self.hooks:
            return ()
        kind = NUMBERS.sub("*", label)
        kind = re.sub(r"@-?\d+(?!\S*:)", "@*", kind)
        if "->" in kind:
            kind = re.sub(r"\.(q|k|v|pattern)$", ".*", kind)
        if kind not in self._kinds:
            self._kinds[kind] = tuple(self._units(kind))
        return self._kinds[kind]

    def _joint(self, text: str) -> list[Unit]:
        if not isinstance(text, str):
            raise TypeError(
                f"a unit is written as text, such as 'L1H3' or 'L0.lag1', and not {text!r}"
            )
        texts = text.split("+")
        if twice := [member for member in texts if texts.count(member) > 1]:
            raise ValueError(f"{text!r} joins {twice[0]} with itself; write it once")
        members = [self._units(member) for member in texts]
        if len(members) == 1:
            return members[0]
        if any(len(units) > 1 for units in members):
            raise ValueError(f"{text!r} joins forms of several units; write each unit out")
        first, *others = (units[0] for units in members)
        return [sum(others, start=first)]

    def _units(self, text: str) -> list[Unit]:
        if "->" not in text:
            return [Unit.at(label, *sites) for label, sites in self._sites(text)]
        sender_text, receiver_text = text.rsplit("->", 1)
        senders, receivers = self._units(sender_text), self.receivers(receiver_text)
        paths = [self.path(sender, receiver) for sender in senders for receiver in receivers]
        if not any(paths):
            raise ValueError(
                f"{text!r}: nothing goes from {senders[0].label} to {receivers[0]}, which does not "
                "come after it; name the sender first"
            )
        return [path for path in paths if path is not None]

    def _receivers(self, text: str) -> list[tuple[str, tuple[Site, ...]]]:
        if text == "logits":
            return [(text, (Site(f"blocks.{self.seen.n_layers - 1}.hook_resid_post"),))]
        return list(self._sites(text))

    def _sites(self, text: str) -> Iterator[tuple[str, tuple[Site, ...]]]:
        if text.partition("[")[0] in self.hooks:
            yield text, (_part_of_hook(text, self.seen.writers),)
            return
        text = _written_out(text)
        name, _, where = text.partition("@")
        form = re.compile(re.escape(name).replace(r"\*", ANYTHING))
        found = [name] if name in self.places else list(filter(form.fullmatch, self.places))
        if not found:
            self.seen.check_writers(self._whole_layers(name))
            raise ValueError(self._unknown(name))
        self.seen.check_writers(self._whole_layers(name))
        self.seen.check_heads({int(head[1]) for head in map(HEAD.match, found) if head})
        for label in found:
            for suffix, position in self._positions(text, where):
                yield label + suffix, tuple(place.at(position) for place in self.places[label])

    def _whole_layers(self, name: str) -> Collection[int]:
        """The layers of which all that they write is asked for."""
        layers = range(self.seen.n_layers)
        return layers if name == "L*" else [layer for layer in layers if name == f"L{layer}"]

    def _positions(self, text: str, where: str) -> list[tuple[str, Position]]:
        if "@" not in text:
            return [("", ALL)]
        if where == "*":
            return [(f"@{position}", position) for position in range(self.n_pos)]
        position = _position(where)
        chosen = [] if position is None else list(range(self.n_pos))[_as_slice(position)]
        if position is None or not chosen:
            raise ValueError(
                f"{text!r}: after @ stands a position from 0 to {self.n_pos - 1}, a range of them "
                "such as 2:5, or *"
            )
        return [(f"@{where}", position)]

    def _unknown(self, name: str) -> str:
        lags = [label for label in self.places if "lag" in label]
        if heads := [label for label in self.seen.head_labels if label in self.places]:
            there = f"the heads are {_some(heads)}"
        else:
            writers = [writer.label for writer in self.seen.writers]
            there = f"it has no heads; {_some(writers)} write"
        if lags:
            there += f", the lags {_some(lags)}"
        hint = nearest(name, [*GROUPS, *self.places, *self.hooks])
        return f"{self.seen.name} has no unit {name!r}{hint or ';'} {there}"


def _places(seen: View) -> Iterator[tuple[str, tuple[Place, ...]]]:
    """Labels and where they are, whether or not the model has these hook points."""
    for name in ("embed", "pos_embed"):
        yield name, (Place(f"hook_{name}"),)
    for writer in seen.written_by(-1):
        yield writer.label, (_term(writer),)
    for layer in range(seen.n_layers):
        writers = seen.written_by(layer)
        yield f"L{layer}", tuple(map(_term, writers))
        for writer in writers:
            yield writer.label, (_term(writer),)
        for name in ("resid_pre", "resid_mid", "resid_post"):
            yield f"L{layer}.{name}", (Place(f"blocks.{layer}.hook_{name}"),)
        for lag in range(seen.lags.get(layer, 0)):
            name = f"blocks.{layer}.conv.hook_lags"
            lags = Place(name, (lag, ALL), 1, _computing(writers, name), is_term=True)
            yield f"L{layer}.lag{lag}", (lags,)
        for head in range(seen.heads.get(layer, 0)):
            yield from _places_of_head(seen, layer, head)


def _term(writer: Writer) -> Place:
    return Place(writer.hook, writer=writer, is_term=True)


def _places_of_head(seen: View, layer: int, head: int) -> Iterator[tuple[str, tuple[Place, ...]]]:
    label, attn = f"L{layer}H{head}", f"blocks.{layer}.attn.hook_"
    writer = _computing(seen.written_by(layer), attn + "z")
    yield label, (Place(attn + "z", (ALL, head), 0, writer, is_term=True),)
    yield f"{label}.q", (Place(attn + "q", (ALL, head)),)
    if head < seen.key_heads(layer):
        yield f"{label}.k", (Place(attn + "k", (ALL, head)),)
        yield f"{label}.v", (Place(attn + "v", (ALL, head)),)
    yield f"{label}.pattern", (Place(attn + "pattern", (head, ALL), position_axis=1),)


def _computing(writers: Sequence[Writer], hook: str) -> Writer | None:
    """The writer that a hook point belongs to."""
    return next((writer for writer in writers if writer.contains(hook)), None)


def _part_of_hook(text: str, writers: Sequence[Writer]) -> Site:
    match = re.fullmatch(r"([\w.]+)(?:\[([^\]]*)\])?", text)
    parts = [part.strip() for part in (match[2] or "").split(",")] if match else []
    index = [_position(part) for part in parts if part]
    if match is None or None in index:
        raise ValueError(
            f"{text!r} cannot be read; write the hook point and an index of whole numbers and "
            "ranges after it, such as blocks.1.mlp.hook_post[:, 5]"
        )
    writer = _computing(writers, match[1])
    is_term = writer is not None and writer.hook == match[1]
    return Site(match[1], tuple(part for part in index if part is not None), writer, is_term)


def _written_out(text: str) -> str:
    """The form that a group is short for; anything else as it is."""
    name, at, where = text.partition("@")
    return GROUPS.get(name, name) + at + where


def _position(text: str) -> Position | None:
    """7 or slice(2, 5), from "7" or "2:5"; None for anything else."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if not re.fullmatch(r"(-?\d*):(-?\d*)", text):
        return None
    start, stop = (int(end) if end else None for end in text.split(":"))
    return slice(start, stop)


def _as_slice(position: Position) -> slice:
    if isinstance(position, slice):
        return position
    return slice(position, position + 1 or None)


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (f", ... {labels[-1]}" if len(labels) > 3 else "")
