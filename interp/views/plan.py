"""What a module is made of, from what happened in one run of it (`interp.views.trace`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.views.convolutions import ConvCall, Convolution, Found, found_in
from interp.views.trace import (
    ROUNDING,
    AttentionCall,
    LayerTrace,
    LinearCall,
    ModuleCall,
    Trace,
    Tree,
    close,
    depends,
    plain_norm,
    same,
)


@dataclass(frozen=True, eq=False)
class Written:
    """Something that a layer adds to the stream.

    Attributes:
        kind: "attn", "conv", "mixer" or "mlp".
        hook: the hook point where it is added.
        norm: the path of the norm that it reads the stream through; None where none is found.
        is_mlp: whether it reads what the mixers before it wrote.
    """

    kind: str
    hook: str
    norm: str | None
    is_mlp: bool


@dataclass(frozen=True, eq=False)
class NormBehind:
    """A module that normalises queries or keys.

    Attributes:
        path: the module's.
        channels: "q", "k": what each tensor is that it is given.
        heads_first: whether they are `[batch head pos d_head]`.
    """

    path: str
    channels: tuple[str, ...]
    heads_first: bool


@dataclass(frozen=True, eq=False)
class Attends:
    """How a layer attends.

    Attributes:
        heads: the number of its heads.
        key_heads: the number of its heads of keys and values.
        scale: what scores are multiplied with.
        weight: of the map from what its heads attended to, `[d_model head x d_head]`; None where
            that is not found.
        bias: what that map adds.
        norm: the path of the norm that it reads the stream through; None where none is found.
        norms_behind: what normalises queries and keys before they meet.
        reach: how many tokens back the convolutions reach that they go through.
        has_bias: whether anything but what hides keys is added to the scores.
        taps: the convolution that stands behind that map, if one does.
        past: whether that map's output goes past this convolution, too.
    """

    heads: int
    key_heads: int
    scale: float
    weight: Tensor | None
    bias: Tensor | None
    norm: str | None
    norms_behind: tuple[NormBehind, ...]
    reach: int
    has_bias: bool
    taps: Convolution | None = None
    past: bool = False


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What a layer is made of.

    Attributes:
        writes: what it adds to the stream, in order; nothing where that is not found.
        trees: how they are added up first, by what is added to the stream.
        attends: how it attends; None where it does not.
        sites: what each of its convolutions stands on, and which write it is a part of, if any.
    """

    writes: tuple[Written, ...]
    trees: tuple[Tree, ...]
    attends: Attends | None
    sites: Mapping[Convolution, tuple[str, int | None]]

    @property
    def norms(self) -> dict[str, str]:
        """The paths of the norms before mixers and MLP, as TransformerLens names them."""
        norms = {"ln2" if one.is_mlp else "ln1": one.norm for one in reversed(self.writes)}
        if self.attends is not None:
            norms["ln1"] = self.attends.norm
        return {name: path for name, path in norms.items() if path is not None}

    @property
    def has_middle(self) -> bool:
        """Whether there is a stream between its mixers and its MLP."""
        return any(write.is_mlp for write in self.writes) and not self.writes[0].is_mlp


@dataclass(frozen=True, eq=False)
class Plan:
    """What a module is made of.

    Attributes:
        layers: by layer.
        found: its convolutions.
        embed: the module that makes a row of each token, and what that is multiplied with; None
            where what enters layer 0 is no row of a table.
        positions: the module whose rows are added to it; None where there are none.
        last_norm: the path of the norm before the unembedding.
        unembed: the weight of the map to the logits, its bias, and what both are multiplied with.
        gives_tensor: which layers give nothing beside the stream.
        has_logits: whether it gives logits.
        d_model: the width of the stream.
        d_vocab: the number of tokens.
    """

    layers: tuple[LayerPlan, ...]
    found: Found
    embed: tuple[nn.Module, float] | None
    positions: nn.Embedding | None
    last_norm: str | None
    unembed: tuple[Tensor, Tensor | None, float, float] | None
    gives_tensor: tuple[bool, ...]
    has_logits: bool
    d_model: int
    d_vocab: int


def read_plan(model: nn.Module, blocks: Sequence[nn.Module], seen: Trace, d_vocab: int) -> Plan:
    """What a module is made of, from what happened in one run."""
    name = type(model).__name__
    if len(seen.layers) < len(blocks):
        raise ValueError(
            f"{name}: of the {len(blocks)} modules in its list of layers {len(seen.layers)} ran; "
            'say which are its layers: wrap(model, layers="...")'
        )
    if by_hand := [
        n for n, layer in enumerate(seen.layers) if layer.by_hand and not layer.of(AttentionCall)
    ]:
        raise ValueError(
            f"{name}: layer {by_hand[0]} takes a softmax over keys by itself and does not call "
            "F.scaled_dot_product_attention, so that its heads would be left out; let it call it "
            '(Hugging Face models: attn_implementation="sdpa")'
        )
    calls = [call for layer in seen.layers for call in layer.of(ConvCall)]
    found = found_in(blocks, calls)
    if bypassed := [one for one in found.refused if one.is_bypassed]:
        raise ValueError(
            f"{name}: {bypassed[0].path} in layer {bypassed[0].layer}: {bypassed[0].why}"
        )
    layers = tuple(_layer_plan(number, layer, found) for number, layer in enumerate(seen.layers))
    last = seen.layers[-1].leaving
    assert last is not None
    entering = seen.layers[0].entering
    last_norm, unembed = _unembed_of(seen, last, d_vocab)
    embed, positions = _embed_of(seen, entering)
    has_logits = seen.logits is not None and seen.logits.shape[-1] == d_vocab
    plain = tuple(layer.gives_tensor for layer in seen.layers)
    sizes = plain, has_logits, entering.shape[-1], d_vocab
    return Plan(layers, found, embed, positions, last_norm, unembed, *sizes)


def _layer_plan(number: int, seen: LayerTrace, found: Found) -> LayerPlan:
    attention = seen.of(AttentionCall)
    attention = attention[0] if len(attention) == 1 else None
    convs = {
        conv: call
        for conv in found.of_layer(number)
        for call in seen.of(ConvCall)
        if call.weight.data_ptr() == conv.weight.data_ptr()
    }
    writes: list[Written] = []
    trees: list[Tree] = []
    terms: list[Tensor] = []
    for write in seen.writes if seen.is_sum else ():
        mixed_before = any(one.kind != "mlp" for one in writes)
        for term in write.terms:
            if attention is not None and depends(term, attention.out):
                kind = "attn"
            elif not mixed_before and any(depends(term, call.out) for call in convs.values()):
                kind = "conv"
            elif not writes and len(seen.writes) > 1:
                kind = "mixer"  # what comes before the MLP mixes tokens in a way that is not seen
            else:
                kind = "mlp"
            again = sum(one.kind == kind for one in writes)
            hook = f"blocks.{number}.hook_{kind}{again + 1 if again else ''}_out"
            norm = _norm_of(seen, (write.stream,), term)
            writes.append(Written(kind, hook, norm, kind == "mlp" and mixed_before))
            terms.append(term)
        trees.append(write.tree)
    attends = None if attention is None else _attends(seen, attention, convs, writes, terms)
    sites = {conv: _site(call, seen, attention, writes, terms) for conv, call in convs.items()}
    return LayerPlan(tuple(writes), tuple(trees), attends, sites)


def _norm_of(seen: LayerTrace, streams: Sequence[Tensor], what: Tensor) -> str | None:
    """The norm that something reads one of these streams through."""
    for event in seen.of(ModuleCall):
        if (
            any(same(event.input, stream) for stream in streams)
            and event.out.shape == event.input.shape
            and depends(what, event.out)
            and plain_norm(event.module, event.out.shape[-1], event.path) is not None
        ):
            return event.path
    return None


def _norms_behind(seen: LayerTrace, attention: AttentionCall) -> tuple[NormBehind, ...]:
    """Modules that give queries or keys a length that does not depend on the one they had."""
    found: dict[str, NormBehind] = {}
    width, n_pos = attention.query.shape[-1], attention.query.shape[-2]
    for event in seen.of(ModuleCall):
        if event.out.shape[-1] != width or event.out.shape != event.input.shape:
            continue
        channels = [
            name
            for name, end in (("q", attention.query), ("k", attention.key))
            if depends(end, event.out) and event.out.ndim == 4
        ]
        heads_first = event.out.ndim == 4 and event.out.shape[1] != n_pos
        if len(channels) != 1 or not _is_scale(event, heads_first):
            continue
        before = found.pop(event.path, None)
        several = (*before.channels, *channels) if before is not None else tuple(channels)
        found[event.path] = NormBehind(event.path, several, heads_first)
    return tuple(found.values())


def _is_scale(event: ModuleCall, heads_first: bool) -> bool:
    """Whether it gives what it is given times one vector per head and a number per token.

    Of twice the input it has to make the same: of inputs so large that nothing under a root counts.
    """
    ratio = (event.out / event.input).detach().double()
    ratio = ratio.transpose(1, 2) if heads_first else ratio
    ratio = ratio.flatten(0, 1) / ratio.square().mean(-1, keepdim=True).sqrt().flatten(0, 1)
    ratio = ratio[ratio.isfinite().all(-1).all(-1)]  # padding may be embedded as 0
    if len(ratio) < 2 or float((ratio - ratio[:1]).abs().amax()) > 10 * ROUNDING:
        return False
    with torch.no_grad():
        return close(event.again(1_000.0), event.again(2_000.0))


def _attends(
    seen: LayerTrace,
    attention: AttentionCall,
    convs: Mapping[Convolution, ConvCall],
    writes: Sequence[Written],
    terms: Sequence[Tensor],
) -> Attends:
    heads = attention.query.shape[1]
    key_heads = _distinct(attention.key)
    z = attention.out.transpose(1, 2).flatten(2)
    out = next(
        (
            event
            for event in seen.of(LinearCall)
            if event.input.numel() == z.numel()
            and depends(event.input, attention.out)
            and close(event.input.reshape(z.shape), z)
        ),
        None,
    )
    sizes = heads, key_heads, attention.scale
    streams = [seen.entering, *(write.stream for write in seen.writes)]
    ends = attention.query, attention.key, attention.value
    reach = sum(
        call.reach for call in seen.of(ConvCall) if any(depends(end, call.out) for end in ends)
    )
    read = (
        _norm_of(seen, streams, attention.query),
        _norms_behind(seen, attention),
        reach,
        attention.has_bias,
    )
    if out is None:
        return Attends(*sizes, None, None, *read)
    written = next((t for w, t in zip(writes, terms, strict=True) if w.kind == "attn"), None)
    for conv, call in convs.items():
        if written is None or call.input.shape[-2] != out.out.shape[-1]:
            continue
        mixed = call.at_tokens.transpose(-1, -2)
        for past in (False, True):
            if close(mixed + out.out if past else mixed, written):
                return Attends(*sizes, out.weight, out.bias, *read, conv, past)
    return Attends(*sizes, out.weight, out.bias, *read)


def _distinct(key: Float[Tensor, "batch head pos d_head"]) -> int:
    """The number of heads of keys that are not repeated for several queries."""
    n = key.shape[1]
    return next(
        n // times
        for times in range(n, 0, -1)
        if n % times == 0 and torch.equal(key, key[:, ::times].repeat_interleave(times, dim=1))
    )


def _site(
    call: ConvCall,
    seen: LayerTrace,
    attention: AttentionCall | None,
    writes: Sequence[Written],
    terms: Sequence[Tensor],
) -> tuple[str, int | None]:
    """What a convolution stands on, and in the making of which write it takes part."""
    write = next((n for n, term in enumerate(terms) if depends(term, call.out)), None)
    if attention is not None:
        ends = {"q": attention.query, "k": attention.key, "v": attention.value}
        if before := "".join(name for name, end in ends.items() if depends(end, call.out)):
            return before, write
    return ("" if write is None else writes[write].kind), write


def sites_of(plan: Plan) -> dict[Convolution, str]:
    """What each convolution is called where a layer has several: sites that are one's alone."""
    sites: dict[Convolution, str] = {}
    for layer in plan.layers:
        names = [site for site, _ in layer.sites.values()]
        sites |= {
            conv: site if names.count(site) == 1 else "" for conv, (site, _) in layer.sites.items()
        }
    return sites


def _embed_of(
    seen: Trace, entering: Tensor
) -> tuple[tuple[nn.Module, float] | None, nn.Embedding | None]:
    """The table of tokens and that of positions whose rows enter layer 0, if they do."""
    rows = [
        event
        for event in seen.before
        if isinstance(event, ModuleCall)
        and event.input.shape == seen.tokens.shape
        and not event.input.is_floating_point()
        and event.out.shape == entering.shape
    ]
    for event in reversed(rows):  # the outermost comes last: it may normalise what it looks up
        if not close(event.module.forward(event.input.flip(1)).flip(1), event.out):
            continue  # it adds positions, too
        if (factor := _factor(event.out, entering)) is not None:
            return (event.module, factor), None
        for other in seen.before:
            if (
                isinstance(other, ModuleCall)
                and isinstance(other.module, nn.Embedding)
                and other is not event
                and other.out.shape[-2:] == entering.shape[-2:]
                and close((event.out + other.out).expand_as(entering), entering)
            ):
                return (event.module, 1.0), other.module
    return None, None


def _factor(x: Tensor, y: Tensor) -> float | None:
    """c with y = c x; None if there is none."""
    x, y = x.detach().double(), y.detach().double()
    if x.shape != y.shape or not bool(x.abs().max() > 0):
        return None
    factor = float((x * y).sum() / (x * x).sum())
    return factor if close(x * factor, y) and factor != 0 else None


def _unembed_of(
    seen: Trace, last: Tensor, d_vocab: int
) -> tuple[str | None, tuple[Tensor, Tensor | None, float, float] | None]:
    """The norm behind the last layer, and the map from it to the logits, if they are found."""
    if seen.logits is None or seen.logits.shape[-1] != d_vocab:
        return None, None
    call = next(
        (
            event
            for event in reversed(seen.after)
            if isinstance(event, LinearCall)
            and event.weight.shape[0] == d_vocab
            and event.out.shape == seen.logits.shape
        ),
        None,
    )
    if call is None or (outer := _factor(call.out, seen.logits)) is None:
        return None, None
    if (inner := _factor(last, call.input)) is not None:  # no norm
        return "", (call.weight, call.bias, inner, outer)
    for event in seen.after:
        if isinstance(event, ModuleCall) and same(event.input, last):
            norm = plain_norm(event.module, last.shape[-1], "ln_final")
            inner = _factor(event.out, call.input)
            if norm is not None and inner is not None:
                return event.path, (call.weight, call.bias, inner, outer)
    return None, (call.weight, call.bias, 0.0, outer)
