"""The view of a wrapped module: what was read from its run, in the words of a description."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.description import ALL, Attending, Place, Reader, Sublayer, Term, Writer
from interp.models.hooks import undisturbed
from interp.models.layers.gated_conv import LinearGatedConv
from interp.models.linear import Channel, FrozenNorm, LinearChannel, wide
from interp.models.shapes import Logits, Stream, Tokens
from interp.views.convolutions import Layers, run_as, stream_of
from interp.views.foreign import ForeignView
from interp.views.interception import ATTENTION, Interception, apart
from interp.views.measured import Measured, MeasuredChannel, Normalised
from interp.views.plan import Attends, Gated
from interp.views.running import EverythingCaptured, Hook
from interp.views.trace import norm_scale, plain_norm, sees
from interp.views.wrapping import WrappedModel


def _taps_of(attends: Attends) -> Float[Tensor, "lag d_model"]:
    """Of the convolution behind W_O, and of what goes past it."""
    assert attends.taps is not None
    taps = wide(attends.taps.taps).clone()
    if attends.past:
        taps[0] += 1
    return taps


class WrappedView(ForeignView):
    """What was read from the module's run, in the words of a description."""

    def __init__(self, model: WrappedModel):
        plan = model.plan
        super().__init__(model, model.n_ctx, plan.d_vocab, len(plan.layers))
        self.plan = plan

    @property
    def name(self) -> str:
        """The module's class, and where its weights are from if it says so."""
        inner = self.model.original_model
        origin = getattr(getattr(inner, "config", None), "_name_or_path", "")
        return f"{origin} ({type(inner).__name__})" if origin else type(inner).__name__

    @property
    def heads(self) -> dict[int, int]:
        """Of the layers that call `F.scaled_dot_product_attention`."""
        layers = enumerate(self.plan.layers)
        return {n: layer.attends.heads for n, layer in layers if layer.attends is not None}

    def _attends(self, layer: int) -> Attends:
        attends = self.plan.layers[layer].attends
        assert attends is not None
        return attends

    def key_heads(self, layer: int) -> int:
        """Fewer than there are heads where queries share keys."""
        return self._attends(layer).key_heads

    @cached_property
    def hooks(self) -> Collection[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All of them."""
        return self.model.hook_dict.keys()

    @property
    def predicts(self) -> bool:
        """Whether the module gives logits."""
        return self.plan.has_logits

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        return self.model._layer_modules

    @property
    def _query_hooks(self) -> Collection[str]:
        return [f"blocks.{layer}.attn.hook_q" for layer in self.heads]

    def _run(self, tokens: Tokens, hooks: Sequence[Hook], return_type: str | None) -> Any:
        with self.running():
            return self.model.run_with_hooks(tokens, fwd_hooks=list(hooks), return_type=return_type)

    def _measured_visibility(self, n_pos: int) -> dict[int, Tensor]:
        """From the masks that its layers attend with; what can be passed over is not computed."""
        visible: dict[int, Tensor] = {}
        layers, passes = Layers(self._blocks), self.starts_anywhere

        def attend(**arguments: Any) -> Tensor:
            if (layer := layers.running) in self.heads:
                mask, is_causal = arguments.get("attn_mask"), arguments.get("is_causal", False)
                visible[layer] = sees(mask, is_causal, n_pos)
                if passes or len(visible) == len(self.heads):
                    raise EverythingCaptured
            return ATTENTION(**arguments)

        def until_it_attends(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                with suppress(EverythingCaptured):
                    return forward(*args, **kwargs)
                return stream_of(*args, **kwargs)

            return run

        last = max(self.heads, default=0)  # above it nothing runs
        instead = {
            block: until_it_attends(block.forward) if layer in self.heads else stream_of
            for layer, block in enumerate(self._blocks[:last])
        }
        tokens = self._place(torch.full((1, n_pos), self._ordinary_token))
        with (
            apart(),
            self.running(),
            self.model.ready(),
            run_as(instead if passes else {}),
            layers.followed(),
            Interception({ATTENTION: attend}),
            suppress(EverythingCaptured),
        ):
            self.model.original_model(tokens, **self.model.arguments)
        self._refuse_silence(sorted(set(self.heads) - set(visible)))
        return visible

    def causal(self, layer: int) -> bool:
        """As the layer attends."""
        return not self.visible(layer, min(3, self.n_ctx)).triu(1).any()

    @cached_property
    def writers(self) -> tuple[Writer, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What enters layer 0, and what was added to the stream in each layer."""
        layers = range(self.n_layers)
        return (
            Writer.embedding("embed"),
            *(sublayer.writer for layer in layers for sublayer in self.sublayers(layer)),
        )

    def sublayers(self, layer: int) -> tuple[Sublayer, ...]:
        """What it adds; where that is not found, its attention alone."""
        if layer < 0:  # embeddings are added as they are
            return ()
        plan = self.plan.layers[layer]
        if plan.writes:
            return tuple(self._sublayer(layer, number) for number in range(len(plan.writes)))
        if plan.attends is None:
            return ()
        hidden = Writer(
            f"L{layer}.attn", f"blocks.{layer}.hook_attn_out", layer, "attn", f"blocks.{layer}.attn"
        )
        lags = [conv for conv, (site, _) in plan.sites.items() if site and site in "qkv"]
        return (self._attention(hidden, self.model._lags.readers(lags)),)

    def taps(self, layer: int) -> Mapping[str, Float[Tensor, "lag channel"]]:
        """Of every depthwise convolution in it; what goes past one is no part of it."""
        lags = self.model._lags
        return {lags.sites[conv]: conv.taps for conv in self.plan.found.of_layer(layer)}

    def stray_lags(self, layer: int) -> tuple[Reader, ...]:
        """Of convolutions in a layer of which it is not known what it writes."""
        plan = self.plan.layers[layer]
        parts = [(*sub.terms, *sub.readers) for sub in self.sublayers(layer)]
        inside = {one.place.hook for some in parts for one in some}
        readers = self.model._lags.readers(plan.sites)
        return tuple(one for one in readers if one.place.hook not in inside)

    def _sublayer(self, layer: int, number: int) -> Sublayer:
        plan = self.plan.layers[layer]
        write = plan.writes[number]
        kind = write.hook.split("hook_")[1].removesuffix("_out")
        writer = Writer(
            f"L{layer}.{kind}",
            write.hook,
            layer,
            write.kind,
            f"blocks.{layer}.{kind}",
            write.is_mlp,
        )
        norm = None
        if write.norm is not None:
            name = f"blocks.{layer}.{'ln2' if write.is_mlp else 'ln1'}"
            norm = self._norm(write.norm, name)
        lags = self.model._lags.readers(
            conv for conv, (_, place) in plan.sites.items() if place == number
        )
        if write.kind == "attn":
            return self._attention(writer, lags)
        if plan.gated is not None and write.kind == "conv":
            return self._gated(writer, norm, plan.gated)
        return Sublayer(writer, readers=tuple(lags), norm=norm)

    def _gated(self, writer: Writer, norm: FrozenNorm | None, gated: Gated) -> Sublayer:
        """A convolution between gates: linear with the gates held."""
        layer, name = writer.layer, f"blocks.{writer.layer}.conv"

        def to_stream() -> Float[Tensor, "channel d_model"]:
            return wide(gated.out_weight).T

        def constants() -> dict[str, Float[Tensor, " d_model"]]:
            return {} if gated.out_bias is None else {f"{name}.b_conv": wide(gated.out_bias)}

        def linear() -> LinearGatedConv:
            content = gated.order[1]
            W_X = wide(gated.weight).chunk(3)[content].T
            b_X = None if gated.bias is None else wide(gated.bias).chunk(3)[content]
            b_out = None if gated.out_bias is None else wide(gated.out_bias)
            taps = wide(gated.conv.taps)
            return LinearGatedConv(
                layer=layer,
                name=name,
                norm=norm,
                residual=True,
                post_norm=False,
                W_X=W_X,
                taps=taps,
                W_out=to_stream(),
                b_X=b_X,
                bias=b_out,
            )

        terms = tuple(
            Term(
                f"L{layer}.lag{lag}",
                "lag",
                Place(f"{name}.hook_lags", (lag, ALL), 1),
                to_stream,
                lag=lag,
            )
            for lag in range(gated.conv.lags)
        )
        return Sublayer(writer, terms, constants, norm=norm, linear=linear)

    def _norm(self, path: str, name: str) -> FrozenNorm | None:
        module = self.model.original_model.get_submodule(path)
        return plain_norm(module, self.plan.d_model, name)

    def _attention(self, writer: Writer, lags: Iterator[Reader]) -> Sublayer:
        layer = writer.layer
        before = None
        if (path := self._attends(layer).norm) is not None:
            before = self._norm(path, f"blocks.{layer}.ln1")
        attends, prefix = self._attends(layer), f"blocks.{layer}.attn.hook_"
        labels = [f"L{layer}H{head}" for head in range(attends.heads)]
        terms = [
            Term(
                label,
                "head",
                Place(f"{prefix}z", (ALL, head)),
                partial(self._map_of, layer, head),
                None if attends.taps is None else partial(_taps_of, attends),
            )
            for head, label in enumerate(labels)
        ]
        shared = labels[: attends.key_heads]
        readers = [
            Reader(f"{label}.{channel}", channel, Place(f"{prefix}{channel}", (ALL, head)))
            for channel, there in (("q", labels), ("k", shared), ("v", shared))
            for head, label in enumerate(there)
        ]
        readers += [
            Reader(f"{label}.pattern", "pattern", Place(f"{prefix}pattern", (head, ALL), 1))
            for head, label in enumerate(labels)
        ]

        def constants() -> dict[str, Float[Tensor, " d_model"]]:
            b_O = self.output_bias(layer)
            return {} if b_O is None else {f"blocks.{layer}.attn.b_O": wide(b_O)}

        measured = self._measured(layer)

        def channel(head: int, channel: Channel) -> LinearChannel:
            maps = measured.maps(head)
            index = head if channel == "q" else measured.key_head(head)
            behind = None
            if any(channel in norm.channels for norm in attends.norms_behind):
                name = f"blocks.{layer}.attn.{channel}_norm.{index}"
                gain = measured.gain(channel, head)
                behind = Normalised(name, f"{prefix}{channel}_factor", index, gain)
            return MeasuredChannel(
                name=f"blocks.{layer}.attn",
                channel=channel,
                computed=f"{prefix}{channel}",
                head=index,
                norm=before,
                weight=maps[channel][0],
                by_lag=maps[channel],
                bias_at=partial(measured.bias, head, channel),
                norm_behind=behind,
                turned_back=partial(measured.turned_back, channel),
            )

        def rotate(x: Tensor, start: int) -> Tensor:
            return measured.turning(start + x.shape[1])(x, start)

        attending = Attending(
            channel,
            scale=attends.scale,
            scores=f"{prefix}attn_scores",
            pattern=f"{prefix}pattern",
            rotate=rotate if measured.turns else None,
            bias=f"{prefix}score_bias" if attends.has_bias else None,
        )
        reads = (*readers, *lags)
        return Sublayer(writer, tuple(terms), constants, reads, norm=before, attending=attending)

    def _measured(self, layer: int) -> Measured:
        weights = self.model.original_model.parameters()
        version = tuple((id(weight), weight._version) for weight in weights)
        known = self.model.measured.get(layer)
        if known is None or known[0] != version:
            known = self.model.measured[layer] = version, Measured(self.model, layer)
        return known[1]

    def _map_of(self, layer: int, head: int) -> Float[Tensor, "d_head d_model"]:
        return wide(self.output_map(layer)[head])

    def output_map(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O, of the linear map that reads what the heads attended to."""
        attends = self._attends(layer)
        if attends.weight is None:
            raise ValueError(
                f"{self.name}: what maps the output of layer {layer}'s heads to the stream is not "
                "found (it is no F.linear of what they attended to)"
            )
        return attends.weight.T.unflatten(0, (attends.heads, -1))

    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """b_O, of that map."""
        return self._attends(layer).bias

    @property
    def last_norm(self) -> FrozenNorm | None:
        """The norm before the unembedding."""
        if self.plan.last_norm is None:
            raise ValueError(
                f"{self.name} has no norm before its unembedding that is known of, so its logits "
                "cannot be read from the stream; give a model with one"
            )
        return self._norm(self.plan.last_norm, "ln_final") if self.plan.last_norm else None

    @property
    def unembedding(
        self,
    ) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " vocab"] | None]:
        """W_U and b_U, with whatever they are multiplied with."""
        self.last_norm  # noqa: B018 - refuses what cannot be read
        assert self.plan.unembed is not None
        weight, bias, inner, outer = self.plan.unembed
        return weight.T * (inner * outer), None if bias is None else bias * outer

    def unembed(self, stream: Stream) -> Logits:
        """The logits of a stream."""
        norm, (W_U, b_U) = self.last_norm, self.unembedding
        if norm is not None:
            stream = norm(stream, norm_scale(norm, stream))
            stream = stream if norm.offset is None else stream + norm.offset
        logits = stream.to(W_U.dtype) @ W_U
        return logits if b_U is None else logits + b_U

    @property
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """A row for each token, as it enters the stream."""
        device = next(self.model.original_model.parameters()).device
        every = torch.arange(self.d_vocab, device=device)
        if self.plan.rows:
            at_once = min(self.n_ctx, 1_024)
            with undisturbed(self.model):
                return torch.cat(
                    [self.model.entering(some[None])[0] for some in every.split(at_once)]
                )
        if self.plan.embed is None:
            raise ValueError(
                f"{self.name}: what enters layer 0 is no row of a table for each token, so W_E is "
                "not in the stream; ask for the residual basis"
            )
        with torch.no_grad():
            return self.plan.embed(every[None])[0]

    @property
    def position_table(self) -> Float[Tensor, "pos d_model"] | None:
        """Where rows of one are added to those of tokens."""
        return None if self.plan.positions is None else self.plan.positions.weight

    @property
    def starts_from_tables(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether rows of both tables, added, are what enters layer 0."""
        return self.plan.rows or self.plan.embed is not None

    @property
    def unread_convolutions(self) -> tuple[str, ...]:
        """Those that do not split into lags, and stand where no head's maps are measured."""
        layers = self.plan.layers
        refused = [one for one in self.plan.found.refused if layers[one.layer].attends is None]
        return tuple(f"{one.path} in layer {one.layer}" for one in refused)
