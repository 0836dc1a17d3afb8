"""The sum of all writers is the residual stream: held against what a model really computes.

A description that forgets a sublayer gives wrong numbers in silence: an ablated layer goes on
running, a path leaks, a logit's parts do not add up. So the model is run once, on a few tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from interp.models.description import of_layer
from interp.models.hooks import without_hooks
from interp.views.interception import apart
from interp.views.running import Running

N_TOKENS = 8
"""How long the sequence is that a model is checked on."""

ROUNDING = 1e-4
"""How much of what a layer adds its writers may miss in float32; in 16 bits, a few of its steps."""


@dataclass
class Sums:
    """What is wrong with a model's description, by layer; -1 stands for the embeddings.

    Attributes:
        layers: where the writers are not what the layer adds, and by how much.
        heads: where the number of heads is another, or what they attended to, through W_O (and
            taps, where there are any), is not what the layer's attention adds.
        counts: where the number of heads is another.
    """

    layers: dict[int, str] = field(default_factory=dict)
    heads: dict[int, str] = field(default_factory=dict)
    counts: dict[int, str] = field(default_factory=dict)


_known: "WeakKeyDictionary[Any, tuple[object, Sums]]" = WeakKeyDictionary()


def sums_of(viewed: Running) -> Sums:
    """What is wrong, found by one short run; kept until a weight changes."""
    weights = tuple((id(weight), weight._version) for weight in viewed.model.parameters())
    known = _known.get(viewed.model)
    if known is None or known[0] != weights:
        known = weights, _measured(viewed)
        _known[viewed.model] = known
    return known[1]


def _measured(viewed: Running) -> Sums:
    generator = torch.Generator().manual_seed(0)
    n_pos = min(N_TOKENS, viewed.n_ctx)
    tokens = torch.randint(viewed.d_vocab, (1, n_pos), generator=generator)
    layers = range(viewed.n_layers)
    names = {f"blocks.{layer}.hook_resid_{end}" for layer in layers for end in ("pre", "post")}
    names |= {writer.hook for writer in viewed.writers}
    names |= {f"blocks.{layer}.attn.hook_z" for layer in viewed.heads}
    with apart(), without_hooks(viewed.model):  # the description is of the model alone
        found = _captured(viewed, tokens, names)
        sums = Sums()
        for layer in (-1, *layers):
            if wrong := _wrong(viewed, layer, found):
                sums.layers[layer] = wrong
        for layer, wrong in _entangled(viewed, tokens, found):
            sums.layers.setdefault(layer, wrong)
    for layer in viewed.heads:
        _check_heads(viewed, layer, found, sums)
    return sums


def _wrong(viewed: Running, layer: int, found: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the writers of a layer."""
    first, last = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_post"
    ends = ["blocks.0.hook_resid_pre"] if layer < 0 else [first, last]
    writers = of_layer(viewed.writers, layer)
    if silent := [name for name in ends if name not in found]:
        return f"nothing is computed at {silent[0]}, so what is added there is not known"
    if silent := [writer.hook for writer in writers if writer.hook not in found]:
        return f"nothing is computed at {silent[0]}, so what is written there is not known"
    after = found[ends[-1]]
    added = after - found[first] if layer >= 0 else after
    if other := [w for w in writers if found[w.hook].shape != added.shape]:
        shape = tuple(found[other[0].hook].shape)
        return f"{other[0].hook} has shape {shape}, and the stream {tuple(added.shape)}"
    terms = [writer.term(found[writer.hook]) for writer in writers]
    if (gap := _gap(terms, added, after)) is not None:
        if not writers:
            return "none of its sublayers can be hooked"
        labels = ", ".join(writer.label for writer in writers)
        return f"{labels} miss {100 * gap:.2g} % of what is added to the stream"
    above = f"blocks.{layer + 1}.hook_resid_pre"
    if layer >= 0 and above in found and _gap([], found[above] - after, after) is not None:
        return f"something else changes the stream between it and layer {layer + 1}"
    return None


def _gap(terms: Sequence[Tensor], added: Tensor, stream: Tensor) -> float | None:
    """How much of what is added the terms miss where they miss most; None if only rounding."""
    step = torch.finfo(stream.dtype).eps
    missed = added.double() - sum(term.double() for term in terms)
    sizes = [x.double().norm(dim=-1) for x in (added, *terms)]
    # A difference of two streams has the rounding of the streams, however little is added.
    floor = 2 * step * stream.double().norm(dim=-1)
    size = torch.stack(sizes).amax(0)
    over = missed.norm(dim=-1) - floor - max(ROUNDING, 4 * step) * size
    if bool((over <= 0).all()):  # a NaN is no agreement
        return None
    where = int(over.flatten().argmax())
    return float(missed.norm(dim=-1).flatten()[where] / size.flatten()[where].clamp_min(1e-300))


def _entangled(
    viewed: Running, tokens: Tensor, found: Mapping[str, Tensor]
) -> Iterator[tuple[int, str]]:
    """Layers in which writers that should read side by side read one another."""
    sides = [list(side) for _, side in groupby(viewed.writers, lambda writer: writer.reads)]
    sides = [side for side in sides if side[0].layer >= 0 and len(side) > 1]
    sides = [side for side in sides if all(writer.hook in found for writer in side)]
    pre = {f"blocks.{layer}.hook_resid_pre" for layer in range(viewed.n_layers)} & set(found)
    for number in range(max(map(len, sides), default=0)):
        zeroed = {side[number].hook for side in sides if number < len(side)}
        hooks = [(name, _put(found[name])) for name in pre]
        hooks += [(name, _put(torch.zeros_like(found[name]))) for name in zeroed]
        others = [(w, side[number]) for side in sides if number < len(side) for w in side]
        others = [(writer, source) for writer, source in others if writer != source]
        changed = _captured(viewed, tokens, {writer.hook for writer, _ in others}, hooks)
        for writer, source in others:
            was, now = found[writer.hook], changed[writer.hook]
            if _gap([was], now, now) is not None:
                yield writer.layer, f"{writer.label} reads what {source.label} writes in it"


def _check_heads(viewed: Running, layer: int, found: Mapping[str, Tensor], sums: Sums) -> None:
    z = found.get(f"blocks.{layer}.attn.hook_z")
    attn = [writer for writer in of_layer(viewed.writers, layer) if writer.kind == "attn"]
    if z is None:
        sums.heads[layer] = f"nothing is computed at blocks.{layer}.attn.hook_z"
        return
    if z.ndim != 4 or z.shape[2] != viewed.heads[layer]:
        wrong = f"it computes {z.shape[2]} heads, and its description has {viewed.heads[layer]}"
        sums.counts[layer] = sums.heads[layer] = wrong
        return
    if not attn or attn[0].hook not in found:
        sums.heads[layer] = "there is no hook point for what its attention adds"
        return
    term = found[attn[0].hook]
    try:
        W_O, b_O = viewed.output_map(layer).detach().to(z.device), viewed.output_bias(layer)
    except (AttributeError, RuntimeError, ValueError) as error:  # TransformerLens cannot read it
        sums.heads[layer] = f"W_O is not to be had: {error}".rstrip(".")
        return
    if W_O.shape[:2] != z.shape[2:]:
        sums.heads[layer] = f"W_O has shape {tuple(W_O.shape)}, and z {tuple(z.shape)}"
        return
    written = [torch.einsum("bphd,hdm->bpm", z.float(), W_O.float())]
    heads = next(one for one in viewed.sublayers(layer) if one.writer == attn[0]).terms
    if heads:  # all of them go the same way to the stream
        written = [heads[0].spread(written[0])]
    if b_O is not None:
        written.append(b_O.detach().to(z.device).expand_as(written[0]))
    if (
        gap := _gap([attn[0].term(part) for part in written], attn[0].term(term), term)
    ) is not None:
        sums.heads[layer] = (
            f"what its heads attended to, through W_O, misses {100 * gap:.2g} % of what its "
            "attention adds (a norm stands behind, say)"
        )


def _put(value: Tensor) -> Any:
    return lambda activation, hook: value.to(activation.device)


def _captured(
    viewed: Running, tokens: Tensor, names: set[str], hooks: Sequence[Any] = ()
) -> dict[str, Tensor]:
    """What is computed at these hook points; those that stay silent are missing."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(activation: Any, hook: Any) -> None:
            if isinstance(activation, Tensor):
                found[name] = activation.detach().cpu().clone()

        return name, keep

    keepers = [keeper(name) for name in sorted(names & set(viewed.hooks))]
    viewed.outputs(tokens, positions=(0,), hooks=[*hooks, *keepers])
    return found
