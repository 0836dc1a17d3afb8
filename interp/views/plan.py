"""What a module is made of, from what happened in one run of it (`interp.views.trace`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.linear import Channel
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
        is_joint: whether it is given all of them at once.
        heads_first: whether they are `[batch head pos d_head]`.
    """

    path: str
    channels: tuple[Channel, ...]
    is_joint: bool
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
class Gated:
    """A convolution between gates, `(C ⊙ conv(B ⊙ u)) W_out`, all three from one linear map.

    Attributes:
        conv: the convolution.
        weight: of the map that B, C and u come from, `[3 channel d_model]`.
        bias: what that map adds.
        order: which third of it is B, u and C.
        out_weight: W_out, `[d_model channel]`.
        out_bias: what that map adds.
    """

    conv: Convolution
    weight: Tensor
    bias: Tensor | None
    order: tuple[int, int, int]
    out_weight: Tensor
    out_bias: Tensor | None


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What a layer is made of.

    Attributes:
        writes: what it adds to the stream, in order; nothing where that is not found.
        trees: how they are added up first, by what is added to the stream.
        attends: how it attends; None where it does not.
        gated: its convolution between gates, if that is what its mixer is.
        sites: what each of its convolutions stands on, and which write it is a part of, if any.
    """

    writes: tuple[Written, ...]
    trees: tuple[Tree, ...]
    attends: Attends | None
    gated: Gated | None
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
        rows: whether what enters layer 0 is a row for each token, whatever its position.
        embed: the module that makes a row of each token, where rows of positions are added to it;
            None where what enters layer 0 is no sum of two rows.
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
    rows: bool
    embed: nn.Module | None
    positions: nn.Embedding | None
    last_norm: str | None
    unembed: tuple[Tensor, Tensor | None, float, float] | None
    gives_tensor: tuple[bool, ...]
    has_logits: bool
    d_model: int
    d_vocab: int


def check_layers_ran(model: nn.Module, blocks: Sequence[nn.Module], seen: Trace) -> None:
    """Refuse a list of modules that are not all run.

    Raises:
        ValueError: some did not.
    """
    if len(seen.layers) < len(blocks):
        raise ValueError(
            f"{type(model).__name__}: of the {len(blocks)} modules in its list of layers "
            f'{len(seen.layers)} ran; say which are its layers: wrap(model, layers="...")'
        )


def read_plan(
    model: nn.Module, blocks: Sequence[nn.Module], seen: Trace, backwards: Tensor, d_vocab: int
) -> Plan:
    """What a module is made of, from what happened in one run.

    Args:
        model: the module.
        blocks: its layers.
        seen: what happened.
        backwards: what enters layer 0 where the same tokens come the other way round.
        d_vocab: the number of tokens.
    """
    name = type(model).__name__
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
    rows = close(backwards.flip(1), entering)
    embed, positions = (None, None) if rows else _embed_of(seen, entering)
    has_logits = seen.logits is not None and seen.logits.shape[-1] == d_vocab
    plain = tuple(layer.gives_tensor for layer in seen.layers)
    sizes = plain, has_logits, entering.shape[-1], d_vocab
    return Plan(layers, found, rows, embed, positions, last_norm, unembed, *sizes)


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
    mixed = next((t for w, t in zip(writes, terms, strict=True) if w.kind == "conv"), None)
    gated = (
        None
        if mixed is None or len(convs) != 1
        else _gated(seen, *next(iter(convs.items())), mixed)
    )
    return LayerPlan(tuple(writes), tuple(trees), attends, gated, sites)


def _norm_of(seen: LayerTrace, streams: Sequence[Tensor], what: Tensor) -> str | None:
    """The norm that something reads one of these streams through."""
    for event in seen.of(ModuleCall):
        if (
            any(same(event.input, one) or close(event.input, one) for one in streams)
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
        ends: dict[Channel, Tensor] = {"q": attention.query, "k": attention.key}
        channels: list[Channel] = [
            name for name, end in ends.items() if event.out.ndim == 4 and depends(end, event.out)
        ]
        heads_first = event.out.ndim == 4 and event.out.shape[1] != n_pos
        if len(channels) != 1 or not _is_scale(event, heads_first):
            continue
        before = found.pop(event.path, None)
        several: tuple[Channel, ...] = tuple(channels)
        several = several if before is None else (*before.channels, *several)
        found[event.path] = NormBehind(event.path, several, len(event.inputs) > 1, heads_first)
    return tuple(found.values())


def _is_scale(event: ModuleCall, heads_first: bool) -> bool:
    """Whether it gives what it is given times one vector per head and a number per token.

    Of twice the input it has to make the same: of inputs so large that nothing under a root counts.
    """
    given, made = (
        (x.transpose(1, 2) if heads_first else x).detach().double().flatten(0, 1)
        for x in (event.input, event.out)
    )
    live = (given != 0).any(0)  # by head and channel: what is always 0 says nothing
    if bool((made != 0).logical_and(~live).any()):
        return False
    ratio = torch.where(live, made / given, 0.0)
    ratio = ratio / ratio.square().mean(-1, keepdim=True).sqrt()
    ratio = ratio[ratio.isfinite().all(-1).all(-1)]  # padding may be embedded as 0
    if len(ratio) < 2 or float((ratio - ratio[:1]).abs().amax()) > 10 * ROUNDING:
        return False
    with torch.no_grad():
        return close(event.again(1_000.0), event.again(2_000.0))


def _gated(seen: LayerTrace, conv: Convolution, call: ConvCall, term: Tensor) -> Gated | None:
    """The map to B, C and u and that to the stream, if they are what this mixer consists of."""
    linear = seen.of(LinearCall)
    mixed, width = call.at_tokens.transpose(-1, -2), call.input.shape[-2]
    first = call.first
    entering = call.input.transpose(-1, -2)[:, -mixed.shape[1] :] if first == 0 else None
    inner = [one for one in linear if one.out.shape[-1] == 3 * width and depends(term, one.out)]
    outer = [one for one in linear if close(one.out, term)]
    if len(inner) != 1 or not outer or entering is None or conv.bias is not None:
        return None
    thirds = inner[0].out.chunk(3, -1)
    for before, content, after in ((0, 2, 1), (0, 1, 2), (1, 2, 0)):
        if close(thirds[before] * thirds[content], entering) and close(
            thirds[after] * mixed, outer[-1].input
        ):
            order, out = (before, content, after), outer[-1]
            return Gated(conv, inner[0].weight, inner[0].bias, order, out.weight, out.bias)
    return None


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


def _embed_of(seen: Trace, entering: Tensor) -> tuple[nn.Module | None, nn.Embedding | None]:
    """The tables of tokens and of positions of which rows, added up, enter layer 0."""
    calls = [event for event in seen.before if isinstance(event, ModuleCall)]
    of_tokens = [
        event
        for event in calls
        if event.input.shape == seen.tokens.shape
        and not event.input.is_floating_point()
        and event.out.shape == entering.shape
        and close(event.module.forward(event.input.flip(1)).flip(1), event.out)
    ]
    for event in reversed(of_tokens):  # the outermost comes last: it may normalise what it finds
        for other in calls:
            if (
                isinstance(other.module, nn.Embedding)
                and other is not event
                and other.out.shape[-2:] == entering.shape[-2:]
                and close((event.out + other.out).expand_as(entering), entering)
            ):
                return event.module, other.module
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
