"""A model run edge by edge, block by block: what each reader sees is the stream, less some terms.

Pre-norm models only, where the stream is the sum of what was written to it. `removed` are pairs of
a writer and a reader; `whole` is replaced for everybody. Without other activations, by nothing.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from interp.models import HookedSequenceModel

Edge = tuple[str, str]


def expanded(model: HookedSequenceModel, label: str) -> Iterator[str]:
    """The readers that a receiver is made of, or the writers that a sender is."""
    match = re.fullmatch(r"L(\d+)(?:H(\d+))?(?:\.(.+))?", label)
    if match is None or (match[2] and match[3]) or match[3] in ("mlp", "resid_pre"):
        yield label
        return
    layer, place = int(match[1]), match[3]
    if place is not None and place.startswith("lag"):
        yield label
    elif match[2]:
        yield from (f"{label}.{channel}" for channel in "qkv")
    elif layer in model.attention_layers:
        for head in range(model.attn(layer).W_Q.shape[0]):
            yield from expanded(model, f"L{layer}H{head}")
    else:
        yield from (f"L{layer}.lag{lag}" for lag in range(model.conv(layer).lags))
    if match[2] is None and place is None and model.blocks[layer].mlp is not None:
        yield f"L{layer}.mlp"


@torch.no_grad()
def logits(
    model: HookedSequenceModel,
    tokens: Tensor,
    removed: Collection[Edge] = (),
    whole: Collection[str] = (),
    other: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The logits without these edges and writers."""
    assert model.config.norm_place == "pre"
    cache = {**model.run_with_cache(tokens)[1]}
    removed = {(s, one) for s, receiver in removed for one in expanded(model, receiver)}
    written: dict[str, Tensor] = {}  # what the stream holds of each writer
    replaced: dict[str, Tensor] = {}

    def seen_by(reader: str, stream: Tensor) -> Tensor:
        for sender, receiver in removed:
            if receiver == reader and sender in written:
                stream = stream - written[sender] + replaced[sender]
        return stream

    def add(label: str, value: Tensor, instead: Tensor | None) -> Tensor:
        replaced[label] = torch.zeros_like(value) if instead is None else instead
        written[label] = replaced[label] if label in whole else value
        return written[label]

    stream = cache["blocks.0.hook_resid_pre"]
    for layer, block in enumerate(model.blocks):
        stream = without = seen_by(f"L{layer}.resid_pre", stream)
        for sender, receiver in removed:
            if receiver == f"L{layer}.resid_pre":
                written[sender] = replaced[sender]
        mix = partial(_mixed, model, layer, cache.get("hook_pos_embed"))
        parts = {
            label: seen_by(label, without)
            for label in expanded(model, f"L{layer}")
            if not label.endswith("mlp")
        }
        terms, rest = mix(without, parts, whole, other)
        for label, term in terms.items():
            stream = stream + add(label, term, _instead(model, layer, label, other))
        stream = stream + rest
        if block.mlp is not None:
            label = f"L{layer}.mlp"
            out = block.mlp(block.ln2(seen_by(label, stream)))
            stream = stream + add(label, out, _instead(model, layer, label, other))
    return model.unembed(model.ln_final(seen_by("logits", stream)))


def _instead(
    model: HookedSequenceModel, layer: int, label: str, other: Mapping[str, Tensor] | None
) -> Tensor | None:
    """What a writer writes in the other run."""
    if other is None:
        return None
    prefix = f"blocks.{layer}."
    if label.endswith("mlp"):
        return other[prefix + "hook_mlp_out"]
    if "lag" in label:
        return other[prefix + "conv.hook_lags"][:, int(label.rpartition("lag")[2])]
    head = int(label.rpartition("H")[2])
    return _written(model, layer, other[prefix + "attn.hook_z"], head)


def _written(model: HookedSequenceModel, layer: int, z: Tensor, head: int) -> Tensor:
    """What a head writes: through W_O, and through taps, one token after the other."""
    attn = model.attn(layer)
    out = z[:, :, head] @ attn.W_O[head]
    if attn.taps_O is None:
        return out
    spread = torch.zeros_like(out)
    for t in range(out.shape[1]):
        for lag in range(min(len(attn.taps_O), t + 1)):
            spread[:, t] += attn.taps_O[lag] * out[:, t - lag]
    return spread


def _mixed(
    model: HookedSequenceModel,
    layer: int,
    positions: Tensor | None,
    stream: Tensor,
    parts: Mapping[str, Tensor],
    whole: Collection[str],
    other: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """What each head or lag writes, each of its inputs seeing a stream of its own; and the bias."""
    block, prefix = model.blocks[layer], f"blocks.{layer}."
    positions = None if model.positions_enter_stream else positions
    is_conv = layer not in model.attention_layers

    def under(hooks, x, names):
        kept: dict[str, Tensor] = {}
        names = [*names, f"hook_{'conv' if is_conv else 'attn'}_out"]
        keep = [(prefix + n, lambda a, hook, n=n: kept.__setitem__(n, a.clone())) for n in names]
        with model.hooks(fwd_hooks=[*hooks, *keep]):
            block(x, positions)
        return kept, kept[names[-1]]

    if is_conv:
        n = model.conv(layer).lags
        lags = [
            under([], parts[f"L{layer}.lag{j}"], ["conv.hook_lags"])[0]["conv.hook_lags"][:, j]
            for j in range(n)
        ]
        kept, out = under([], stream, ["conv.hook_lags"])
        bias = out - kept["conv.hook_lags"].sum(1)
        return {f"L{layer}.lag{j}": lag for j, lag in enumerate(lags)}, bias
    puts: dict[str, dict[int, Tensor]] = {"q": {}, "k": {}, "v": {}}
    for label, x in parts.items():
        channel, head = label[-1], int(re.search(r"H(\d+)", label)[1])
        name = f"attn.hook_{channel}"
        puts[channel][head] = under([], x, [name])[0][name][:, :, head]
        if label in whole:
            instead = 0.0 if other is None else other[prefix + name][:, :, head]
            puts[channel][head] = puts[channel][head] * 0 + instead

    def putter(channel):
        return lambda a, hook: torch.stack([puts[channel][h] for h in range(a.shape[2])], 2)

    hooks = [(f"{prefix}attn.hook_{channel}", putter(channel)) for channel in "qkv"]
    kept, out = under(hooks, stream, ["attn.hook_z"])
    n = len(model.attn(layer).W_O)
    terms = {f"L{layer}H{h}": _written(model, layer, kept["attn.hook_z"], h) for h in range(n)}
    return terms, out - sum(terms.values())
