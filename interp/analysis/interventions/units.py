"""What an intervention changes, and how that is written: "L1H3", "L0.lag1->L1H3.k", any hook point.

A unit is written as follows, and these are the labels of results too:

| written                        | what it is                                                   |
|--------------------------------|--------------------------------------------------------------|
| `L1H3`                         | what head 3 of layer 1 attended to (`hook_z`), so its output |
| `L1H3.q` `.k` `.v` `.pattern`  | its queries, keys, values, or where it looks                 |
| `L0.lag1`                      | what lag 1 of a convolution adds                             |
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
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from interp.models.description import Order, Step, Writer
from interp.views import Hook

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

HEAD = re.compile(r"L(\d+)H(\d+)")
ALL = slice(None)

Position = int | slice


@dataclass(frozen=True, eq=False)
class Site:
    """Part of an activation.

    Attributes:
        hook: the name of the hook point.
        index: which entries, along each axis after the batch.
        writer: what computes it; None where that is not known, or it is the stream.
        is_term: whether it is the writer's term of the stream, or one of those that it sums up.
    """

    hook: str
    index: tuple[Position, ...] = ()
    writer: Writer | None = None
    is_term: bool = False

    def of(self, activation: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "batch *part"]:
        """This part of it, as a view."""
        return activation[(ALL, *self.index)]

    @property
    def reads(self) -> Order:
        """What comes from before this point of the model changes it."""
        return _order(self.hook)[0] if self.writer is None else self.writer.reads

    @property
    def writes(self) -> Order:
        """What comes after this point of the model sees it changed."""
        return _order(self.hook)[1] if self.writer is None else self.writer.writes

    @property
    def is_after_mixer(self) -> bool:
        """Whether it comes after what its layer's heads or lags write."""
        return self.reads[1] > Step.WRITTEN


@dataclass(frozen=True, eq=False)
class Part:
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
    """

    label: str
    parts: tuple[Part, ...] = ()
    hooks: tuple[Hook, ...] = ()

    @classmethod
    def at(cls, label: str, *sites: Site, sender: "Unit | None" = None) -> "Unit":
        """A unit of these sites, all reached alike."""
        return cls(label, tuple(Part(site, sender) for site in sites))

    def __add__(self, other: "Unit") -> "Unit":
        label = f"{self.label}+{other.label}"
        return Unit(label, self.parts + other.parts, self.hooks + other.hooks)

    @property
    def members(self) -> tuple[str, ...]:
        """The labels of the units that are put together; its own, where it is one."""
        return tuple(self.label.split("+"))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where values are put in."""
        return tuple(part.site for part in self.parts)

    @property
    def sources(self) -> tuple[Site, ...]:
        """Where values come from: its sites, but of a path where it begins."""
        return tuple(
            site
            for part in self.parts
            for site in ((part.site,) if part.sender is None else part.sender.sources)
        )


def stream_hook(site: Site) -> str | None:
    """The hook point at which a change of this site shows as a change of the stream.

    None where it shows only through something that is not linear: queries, keys, patterns.
    """
    if site.writer is not None and site.is_term:
        return site.writer.hook
    block, _, place = site.hook.rpartition("attn.hook_z")
    if block and not place:
        return f"{block}hook_attn_out"
    block, _, place = site.hook.rpartition("conv.hook_lags")
    if block and not place:
        return f"{block}hook_conv_out"
    last = site.hook.rpartition(".")[2]
    streams = ("attn_out", "conv_out", "mlp_out", "embed", "pos_embed")
    streams += ("resid_pre", "resid_mid", "resid_post")
    return site.hook if last in {f"hook_{name}" for name in streams} else None


def _order(hook: str) -> tuple[Order, Order]:
    match = re.match(r"blocks\.(\d+)\.(.*)", hook)
    if match is None:
        below = hook.partition(".")[0] in ("hook_embed", "hook_pos_embed", "embed", "pos_embed")
        layer = -1 if below else 1_000_000
        return (layer, Step.READ), (layer, Step.WRITTEN)
    layer, place = int(match[1]), match[2]
    for start, reads, writes in (
        ("hook_resid_pre", Step.BEFORE, Step.BEFORE),
        ("hook_resid_mid", Step.MIDDLE, Step.MIDDLE),
        ("hook_resid_post", Step.AFTER, Step.AFTER),
        ("hook_mlp", Step.MLP, Step.MLP_WRITTEN),
        ("mlp.", Step.MLP, Step.MLP_WRITTEN),
        ("ln2", Step.MLP, Step.MLP_WRITTEN),
    ):
        if place.startswith(start):
            return (layer, reads), (layer, writes)
    return (layer, Step.READ), (layer, Step.WRITTEN)
