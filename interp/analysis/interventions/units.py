"""What an intervention changes, and how that is written: "L1H3", "L0.lag1->L1H3.k", any hook point.

A unit is written as follows, and these are the labels of results too:

| written                        | what it is                                                   |
|--------------------------------|--------------------------------------------------------------|
| `L1H3`                         | what head 3 of layer 1 attended to (`hook_z`), so its output |
| `L1H3.q` `.k` `.v` `.pattern`  | its queries, keys, values, or where it looks                 |
| `L0.lag1`                      | what lag 1 of a layer's convolution adds, or of all it has   |
| `L0.k.lag1` `L1H0.k.lag1`      | of one of them: of that on keys, on one head's keys          |
| `L1.attn.lag1` `L1.mlp.lag1`   | of taps on what attention, or an MLP, writes                 |
| `L1`                           | all that layer 1 writes: each of its mixers, and its MLP     |
| `L1.attn` `L0.conv` `L1.mamba` `L1.mlp` | one of these                                        |
| `L1.resid_pre` `.resid_mid` `.resid_post` | the stream                                        |
| `embed` `pos_embed`            | the embedding, and the positions added to it                 |
| `L0.lag1->L1H3.k`              | the first, as the second alone sees it: the direct path      |
| `L1H3->logits`                 | the same, to the end of the model                            |
| `blocks.1.mlp.hook_post[:, 5]` | part of any hook point, indexed after the batch              |
| `L1.resid_pre@7` `L1H3@2:5`    | any of these, at some positions; `@*` is at each by itself   |
| `L1H3+L0H2`                    | several at once                                              |
| `L*H*` `L1H*.k` `L0.lag*->L1H*.*` | every unit of that form                                   |

`heads`, `layers`, `lags`, `positions`, `q`, `k`, `v`, `z`, `pattern`, `resid_pre` and the like are
short for such forms (`GROUPS`). Every layer counts, conv layers too. Where queries share keys,
`L1H0.k` is the first head of keys. On a `TransformerBridge`, resid_mid is what the MLP reads, and
not the stream that goes past it.

What is joined by + is changed in one run, whatever the order of writing. A receiver of paths reads
the stream of that run with the output of each sender replaced, once: paths into one receiver add
at it, and all paths out of a head, joined, are the head. What is replaced itself stands, whatever
would have reached it: `L1H3.k+L0H2->L1H3.k` is `L1H3.k`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from jaxtyping import Shaped
from torch import Tensor

from interp.models.description import (
    ALL,
    STREAM,
    Order,
    Place,
    Position,
    Reader,
    Step,
    Term,
    Writer,
    stream_hook,
)
from interp.models.hooks import nearest
from interp.views import Hook, View

GROUPS = {
    "heads": "L*H*",
    "z": "L*H*",
    **{channel: f"L*H*.{channel}" for channel in ("q", "k", "v", "pattern")},
    "layers": "L*",
    "lags": "L*.lag*",
    "attn_out": "L*.attn",
    "conv_out": "L*.conv",
    "mlp_out": "L*.mlp",
    **{place: f"L*.{place}" for place in ("resid_pre", "resid_mid", "resid_post")},
    "positions": "L*.resid_pre@*",
}
"""Short names of the forms that are asked for most."""


ANYTHING = r"(?:\d+|[a-z_][a-z_0-9]*)"
"""What a star stands for: a number, or a word."""

Given = str | Sequence[str] | Mapping[str, Sequence[Hook]]


@dataclass(frozen=True, eq=False)
class Site:
    """Part of an activation, and when the model computes it.

    Attributes:
        place: which part, at which hook point.
        reads: what is written before this changes it.
        writes: what reads after this sees it changed.
        stream: the hook point at which a change of it shows as a change of the stream; None where
            it shows only through something that is not linear: queries, keys, patterns, neurons.
        writer: what computes it; None where that is not known, or it is the stream.
        terms: those of the terms that the writer sums up of which it is a part; of a convolution on
            its way to the stream, its lags.
    """

    place: Place
    reads: Order
    writes: Order
    stream: str | None = None
    writer: Writer | None = None
    terms: tuple[Term, ...] = ()

    @classmethod
    def of_hook(cls, viewed: View, hook: str, index: tuple[Position, ...] = ()) -> "Site":
        """An activation, or the part of it under an index."""
        order = viewed.order(hook)
        writer = next((writer for writer in viewed.writers if writer.contains(hook)), None)
        if writer is None:
            in_stream = order[0] == order[1] and order[0][1] in STREAM.values()
            return cls(Place(hook, index), *order, stream=hook if in_stream else None)
        terms = tuple(
            term
            for sublayer in viewed.sublayers(writer.layer)
            for term in (*sublayer.terms, *sublayer.lags)
            if term.place.hook == hook and _may_overlap(term.place.index, index)
        )
        in_stream = (hook == writer.hook or bool(terms)) and writer.hook in viewed.hooks
        return cls(Place(hook, index), *order, writer.hook if in_stream else None, writer, terms)

    @property
    def hook(self) -> str:
        """The hook point's name."""
        return self.place.hook

    def at(self, position: Position) -> "Site":
        """The same at one or several positions."""
        return replace(self, place=self.place.at(position))

    def of(self, activation: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "batch *part"]:
        """This part of it, as a view."""
        return self.place.of(activation)

    @property
    def is_after_mixer(self) -> bool:
        """Whether it comes after what its layer's mixers write."""
        return self.reads[1] > Step.WRITTEN


def _may_overlap(one: tuple[Position, ...], other: tuple[Position, ...]) -> bool:
    """Not if both choose an entry of the same axis, and another one."""
    pairs = ((a, b) for a, b in zip(one, other, strict=False) if not isinstance(a, slice))
    return not any(isinstance(b, int) and b >= 0 and a != b for a, b in pairs)


@dataclass(frozen=True, eq=False)
class Component:
    """What a model has under one label.

    Attributes:
        label: "L1H3", "L1H3.k", "L1.mlp".
        kind: what it has in common with others: "head", "lag"; "q", "pattern"; "mlp"; "layer";
            "resid_pre". Nothing, where it is part of a hook point.
        layer: whose it is; -1 for embeddings.
        number: its own among those of its kind in its layer.
        sites: where it is.
        is_reader: whether it is what takes from the stream.
    """

    label: str
    kind: str
    layer: int
    number: int
    sites: tuple[Site, ...]
    is_reader: bool = False

    @property
    def is_part(self) -> bool:
        """Whether it is one of several that a sublayer sums up, or reads with."""
        return self.is_reader or any(site.terms for site in self.sites)


@dataclass(frozen=True, eq=False)
class UnitPart:
    """A site, and what reaches it: a value put in, or what a sender alone changes, directly."""

    site: Site
    sender: "Unit | None" = None


@dataclass(frozen=True, eq=False)
class Unit:
    """What is changed together.

    Attributes:
        label: as in the table above.
        parts: the sites that change.
        hooks: hooks of the caller's own to run under, instead.
        component: what it is; of a path, where it ends. None where it is several.
        position: where, if not at every position.
        sender: where a path begins.
        joined: the units that are put together.
    """

    label: str
    parts: tuple[UnitPart, ...] = ()
    hooks: tuple[Hook, ...] = ()
    component: Component | None = None
    position: Position | None = None
    sender: "Unit | None" = None
    joined: tuple["Unit", ...] = ()

    def __add__(self, other: "Unit") -> "Unit":
        label = f"{self.label}+{other.label}"
        joined = (*self.members, *other.members)
        return Unit(label, self.parts + other.parts, self.hooks + other.hooks, joined=joined)

    @property
    def members(self) -> tuple["Unit", ...]:
        """The units that are put together; itself, where it is one."""
        return self.joined or (self,)

    @property
    def name(self) -> str:
        """Its label without the position."""
        if self.component is None:
            return self.label
        name = self.component.label
        return name if self.sender is None else f"{self.sender.label}->{name}"

    @property
    def is_head(self) -> bool:
        """Whether it is what a head attended to, at whatever position."""
        return self.sender is None and self.component is not None and self.component.kind == "head"

    @property
    def kind(self) -> tuple[str, ...] | None:
        """What it has in common with the units that it can be compared with; None, if nothing."""
        if self.component is None or not self.component.kind:
            return None
        where = "any position" if isinstance(self.position, int) else str(self.position)
        if self.sender is None:
            return self.component.kind, where
        if self.sender.kind is None:
            return None
        receiver = "reader" if self.component.is_reader else self.component.kind
        return *self.sender.kind, receiver, where

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Where values are put in."""
        return tuple(part.site for part in self.parts)

    @cached_property
    def sources(self) -> tuple[Site, ...]:
        """Where values come from: its sites, but of a path where it begins."""
        return tuple(
            site
            for part in self.parts
            for site in ((part.site,) if part.sender is None else part.sender.sources)
        )


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

    viewed: View
    n_pos: int
    components: Mapping[str, Component]
    hooks: Collection[str]
    _alike: dict[tuple[str, ...], tuple[Unit, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, viewed: View, n_pos: int) -> "Catalogue":
        """Everything the model has hook points for."""
        hooks = viewed.hooks
        found: dict[str, Component] = {}
        for wanted in _components(viewed):
            if sites := tuple(site for site in wanted.sites if site.hook in hooks):
                found[wanted.label] = replace(wanted, sites=sites)
        return cls(viewed, n_pos, found, hooks)

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

    def receivers(self, given: str | Sequence[str]) -> tuple[Unit, ...]:
        """What a path can end at: units, and "logits"."""
        texts = [given] if isinstance(given, str) else list(given)
        found = [unit for text in texts for unit in self._receivers(text)]
        return tuple({unit.label: unit for unit in found}.values())

    def path(self, sender: Unit, receiver: Unit) -> Unit | None:
        """The direct path between two; None where the second does not come after the first."""
        if min(site.writes for site in sender.sites) >= min(site.reads for site in receiver.sites):
            return None
        first = min(site.writes[0] for site in sender.sites)
        last = max(site.reads[0] for site in receiver.sites)
        # What is forgotten between the two would let a path leak through it.
        self.viewed.check_writers(range(max(first, 0), min(last + 1, self.viewed.n_layers)))
        return replace(
            receiver,
            label=f"{sender.label}->{receiver.label}",
            parts=tuple(UnitPart(site, sender) for site in receiver.sites),
            sender=sender,
        )

    def like(self, unit: Unit) -> tuple[Unit, ...]:
        """All units of one's kind: all heads for a head, all lags for a lag, all paths for a path.

        A path's receiver may be any reader where one's own is a reader. Nothing, where a part of a
        hook point has no others of its kind.
        """
        kind = unit.kind
        if kind is None or unit.component is None:
            return ()
        if kind not in self._alike:
            alike = self._alike_alone(unit.component, unit.position, unit.sender is not None)
            if unit.sender is not None:
                senders = self.like(unit.sender)
                paths = [self.path(sender, receiver) for sender in senders for receiver in alike]
                alike = [path for path in paths if path is not None]
            self._alike[kind] = tuple(alike)
        return self._alike[kind]

    def _alike_alone(
        self, component: Component, position: Position | None, receiving: bool
    ) -> list[Unit]:
        any_reader = receiving and component.is_reader
        alike = [
            one
            for one in self.components.values()
            if one.kind == component.kind or (any_reader and one.is_reader)
        ]
        self._check(alike, range(self.viewed.n_layers) if component.kind == "layer" else ())
        positions = range(self.n_pos) if isinstance(position, int) else [position]
        return [_unit(one, where) for one in alike or [component] for where in positions]

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
            return list(self._alone(text))
        sender_text, receiver_text = text.rsplit("->", 1)
        senders, receivers = self._units(sender_text), self.receivers(receiver_text)
        paths = [self.path(sender, receiver) for sender in senders for receiver in receivers]
        if not any(paths):
            raise ValueError(
                f"{text!r}: nothing goes from {senders[0].label} to {receivers[0].label}, which "
                "does not come after it; name the sender first"
            )
        return [path for path in paths if path is not None]

    def _receivers(self, text: str) -> list[Unit]:
        if text != "logits":
            return list(self._alone(text))
        n_layers = self.viewed.n_layers
        end = Site.of_hook(self.viewed, stream_hook(n_layers - 1, "resid_post"))
        return [_unit(Component(text, text, n_layers, 0, (end,)))]

    def _alone(self, text: str) -> Iterator[Unit]:
        """What is written without a + and without an arrow."""
        if text.partition("[")[0] in self.hooks:
            yield _unit(_part_of_hook(text, self.viewed))
            return
        name, at, where = text.partition("@")
        name = GROUPS.get(name, name)
        if "@" in name:  # the group itself is one at positions
            name, at, where = name.partition("@")
        form = re.compile(re.escape(name).replace(r"\*", ANYTHING))
        labels = [name] if name in self.components else filter(form.fullmatch, self.components)
        found = [self.components[label] for label in labels]
        layers = range(self.viewed.n_layers)
        # A layer of which nothing can be hooked has no component.
        self._check(found, [layer for layer in layers if name in ("L*", f"L{layer}")])
        if not found:
            raise ValueError(self._unknown(name))
        positions = self._positions(f"{name}{at}{where}", where) if at else [None]
        yield from (_unit(component, position) for component in found for position in positions)

    def _check(self, components: Sequence[Component], whole: Collection[int]) -> None:
        """Refuse what is described wrongly: parts, and layers of which all is asked for."""
        self.viewed.check_writers(whole)
        self.viewed.check_heads({one.layer for one in components if one.is_part})

    def _positions(self, text: str, where: str) -> Sequence[Position]:
        if where == "*":
            return range(self.n_pos)
        position = _position(where)
        chosen = [] if position is None else list(range(self.n_pos))[_as_slice(position)]
        if position is None or not chosen:
            raise ValueError(
                f"{text!r}: after @ stands a position from 0 to {self.n_pos - 1}, a range of them "
                "such as 2:5, or *"
            )
        return [position]

    def _unknown(self, name: str) -> str:
        of_kind = {
            kind: [label for label, one in self.components.items() if one.kind == kind]
            for kind in ("head", "lag")
        }
        if heads := of_kind["head"]:
            there = f"the heads are {_some(heads)}"
        else:
            writers = [writer.label for writer in self.viewed.writers]
            there = f"it has no heads; {_some(writers)} write"
        if lags := of_kind["lag"]:
            there += f", the lags {_some(lags)}"
        hint = nearest(name, [*GROUPS, *self.components, *self.hooks])
        return f"{self.viewed.name} has no unit {name!r}{hint or ';'} {there}"


def _unit(component: Component, position: Position | None = None) -> Unit:
    """A component at one or several positions."""
    where, sites = "", component.sites
    if position is not None:
        sites = tuple(site.at(position) for site in sites)
        where = f"@{position}" if isinstance(position, int) else f"@{_written(position)}"
    parts = tuple(UnitPart(site) for site in sites)
    return Unit(component.label + where, parts, component=component, position=position)


def _written(positions: slice) -> str:
    start, stop = ("" if end is None else end for end in (positions.start, positions.stop))
    return f"{start}:{stop}"


def _components(viewed: View) -> Iterator[Component]:
    """Everything that has a label, whether or not the model has these hook points."""
    for name in ("embed", "pos_embed"):
        yield Component(name, name, -1, 0, (Site.of_hook(viewed, f"hook_{name}", (ALL,)),))
    for writer in viewed.written_by(-1):
        yield Component(writer.label, writer.kind, -1, 0, (_whole(writer),))
    for layer in range(viewed.n_layers):
        sublayers = viewed.sublayers(layer)
        whole = tuple(_whole(sublayer.writer) for sublayer in sublayers)
        yield Component(f"L{layer}", "layer", layer, 0, whole)
        for site, sublayer in zip(whole, sublayers, strict=True):
            yield Component(sublayer.writer.label, sublayer.writer.kind, layer, 0, (site,))
        for name in STREAM:
            site = Site.of_hook(viewed, stream_hook(layer, name), (ALL,))
            yield Component(f"L{layer}.{name}", name, layer, 0, (site,))
        yield from _parts(viewed, layer)


def _parts(viewed: View, layer: int) -> Iterator[Component]:
    """What a layer's sublayers sum up and read with; and each lag, wherever it stands in it."""
    lags: dict[int, list[Site]] = {}
    labels: set[str] = set()
    for sublayer in viewed.sublayers(layer):
        of_kind: dict[str, int] = {}
        for one in (*sublayer.terms, *sublayer.lags, *sublayer.readers):
            number = of_kind[one.kind] = of_kind.get(one.kind, -1) + 1
            writer = sublayer.writer
            stream, terms = (None, ()) if isinstance(one, Reader) else (writer.hook, (one,))
            stream = stream if stream in viewed.hooks else None  # where it is not found
            site = Site(one.place, writer.reads, writer.writes, stream, writer, terms)
            yield Component(one.label, one.kind, layer, number, (site,), not terms)
            labels.add(one.label)
            if one.lag is not None:
                lags.setdefault(one.lag, []).append(site)
    for one in viewed.stray_lags(layer):
        site = Site(one.place, (layer, Step.READ), (layer, Step.WRITTEN))
        yield Component(one.label, one.kind, layer, one.lag or 0, (site,), True)
        labels.add(one.label)
        lags.setdefault(one.lag or 0, []).append(site)
    for lag, sites in lags.items():
        if (label := f"L{layer}.lag{lag}") not in labels or len(sites) > 1:
            yield Component(label, "layer.lag", layer, lag, tuple(sites))


def _whole(writer: Writer) -> Site:
    return Site(Place(writer.hook), writer.reads, writer.writes, writer.hook, writer)


def _part_of_hook(text: str, viewed: View) -> Component:
    match = re.fullmatch(r"([\w.]+)(?:\[([^\]]*)\])?", text)
    parts = [part.strip() for part in (match[2] or "").split(",")] if match else []
    index = [_position(part) for part in parts if part]
    if match is None or None in index:
        raise ValueError(
            f"{text!r} cannot be read; write the hook point and an index of whole numbers and "
            "ranges after it, such as blocks.1.mlp.hook_post[:, 5]"
        )
    chosen = tuple(part for part in index if part is not None)
    site = Site.of_hook(viewed, match[1], chosen)
    return Component(text, "", site.reads[0], 0, (site,))


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
