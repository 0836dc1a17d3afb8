"""The view of a `transformer_lens.TransformerBridge`: any Hugging Face model, patterns in hooks."""

import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.description import ALL, Attending, Place, Reader, Sublayer, Term, Writer
from interp.models.hooks import undisturbed, without_hooks
from interp.models.linear import Channel, FrozenNorm, LinearChannel, maybe_wide, wide
from interp.models.shapes import Tokens
from interp.views.convolutions import Found, LagPoints, Layers, find_convolutions
from interp.views.foreign import ForeignView, NotComputedError
from interp.views.interception import CONV, Interception
from interp.views.running import Hook

OUT_MULTIPLIERS = {"attn": "attention_out_multiplier", "mamba": "ssm_out_multiplier"}
"""What Falcon-H1's config multiplies with what its mixers give, after their hook points."""

MLPS = ("MLPBridge", "MoEBridge", "DenseOrMoEFeedForwardBridge")
SSMS = ("SSMMixerBridge", "SSM2MixerBridge")
NORMS = ("NormalizationBridge", "RMSNormalizationBridge")


class BridgeView(ForeignView):
    """The bridge's own hook points, and those of the convolutions inside, where its are silent."""

    def __init__(self, model: Any):
        cfg = model.cfg
        super().__init__(model, int(cfg.n_ctx), int(cfg.d_vocab), int(cfg.n_layers))

    @property
    def heads(self) -> dict[int, int]:
        """Layers with a pattern to hook; a hybrid's other layers have none."""
        layers = range(self.model.cfg.n_layers)
        hooked = [layer for layer in layers if self._pattern(layer) in self.model.hook_dict]
        config = getattr(self.model.original_model, "config", None)
        of_layers = getattr(config, "num_attention_heads_per_layer", None)
        return {
            layer: int(of_layers[layer] if of_layers else self.model.cfg.n_heads)
            for layer in hooked
        }

    def key_heads(self, layer: int) -> int:
        """Fewer than there are heads where queries share keys."""
        of_layers = getattr(self.model.cfg, "per_layer_num_key_value_heads", None)
        if of_layers:
            return int(of_layers[layer])
        return int(getattr(self.model.cfg, "n_key_value_heads", None) or self.model.cfg.n_heads)

    @cached_property
    def hooks(self) -> Collection[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All but those that the bridge keeps shut until a flag is set."""
        points = self.model.hook_dict.items()
        shut = self.model._gated_hook_reason
        open_points = {name for name, point in points if shut(point.name or name) is None}
        return open_points | set(self._lags.points)

    @property
    def _convolutions(self) -> Found:
        return _found(self.model)[0]

    @property
    def _lags(self) -> LagPoints:
        return _found(self.model)[1]

    def _run(self, tokens: Tokens, hooks: Sequence[Hook], return_type: str | None) -> Any:
        lags, layers = self._lags, Layers(self.model.blocks)
        own = [hook for hook in hooks if hook[0] in lags.points]
        others = [hook for hook in hooks if hook[0] not in lags.points]
        with lags.hooked(own):
            if not lags.is_listened_to:
                return self._run_bridge(tokens, others, return_type)
            with layers.followed(), Interception({CONV: lags.answering(layers)}):
                return self._run_bridge(tokens, others, return_type)

    def _run_bridge(self, tokens: Tokens, hooks: Sequence[Hook], return_type: str | None) -> Any:
        return self.model.run_with_hooks(
            self._place(tokens), fwd_hooks=list(hooks), return_type=return_type
        )

    @contextmanager
    def hooked(self, hooks: Sequence[Hook]) -> Iterator[None]:
        """Inside, every pass runs under these hooks."""
        points = self._lags.points
        own = [hook for hook in hooks if hook[0] in points]
        others = [hook for hook in hooks if hook[0] not in points]
        with self._lags.hooked(own), super().hooked(others):
            yield

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    @property
    def _query_hooks(self) -> Collection[str]:
        return {f"blocks.{layer}.attn.q.hook_out" for layer in self.heads} & set(self.hooks)

    @cached_property
    def writers(self) -> tuple[Writer, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """From the bridge's components: whatever stands in a block and is no norm."""
        layers = (self._of_block(layer) for layer in range(self.n_layers))
        return (*self._embeddings(), *(writer for layer in layers for writer in layer))

    def _embeddings(self) -> Iterator[Writer]:
        if (normed := "embed_ln.hook_out") in self.hooks:  # all that is embedded, normalised
            yield Writer.embedding("embed", normed)
            return
        # Some bridges show what they multiply the embedding with at its hook point, some do not.
        shown = getattr(self.model.embed, "_output_contribution_scale", 1.0)
        yield Writer.embedding("embed", scale=self._multiplier("embedding_multiplier") / shown)
        if "pos_embed.hook_out" in self.hooks:
            yield Writer.embedding("pos_embed")

    def _of_block(self, layer: int) -> Iterator[Writer]:
        """Mixers, then what reads after them."""
        block, prefix = self.model.blocks[layer], f"blocks.{layer}."
        writing = {
            name: component
            for name, component in block.submodules.items()
            if not _is_norm(component) and name in block._modules
        }
        for name in sorted(writing, key=lambda name: _is_mlp(name, writing[name])):
            component = writing[name]
            kind = "mamba" if _is_mamba(component) else name
            # A block has a hook point of its own for what it adds, where a norm or a factor stands
            # behind the component's output.
            own = f"{prefix}hook_{name}_out"
            scale = 1.0 if own in self.hooks else getattr(block, "residual_contribution_scale", 1.0)
            yield Writer(
                label=f"L{layer}.{kind}",
                hook=own if own in self.hooks else f"{prefix}{name}.hook_out",
                layer=layer,
                kind=kind,
                module=prefix + name,
                is_mlp=_is_mlp(name, component),
                scale=scale * self._multiplier(OUT_MULTIPLIERS.get(name, "")),
            )

    def _multiplier(self, name: str) -> float:
        """What the Hugging Face config multiplies with; 1 where it has no such factor."""
        value = getattr(getattr(self.model.original_model, "config", None), name, None)
        return 1.0 if value is None else float(value)

    def sublayers(self, layer: int) -> tuple[Sublayer, ...]:
        """Attention head by head; every other sublayer is opaque: its sum, and nothing more."""
        sublayers = (
            self._attention(writer)
            if writer.kind == "attn" and layer in self.heads
            else Sublayer(writer)
            for writer in self.written_by(layer)
        )
        return tuple(self._with_lags(sublayer) for sublayer in sublayers)

    def _with_lags(self, sublayer: Sublayer) -> Sublayer:
        """Each lag of the convolutions inside can be told apart."""
        inside = self._inside(sublayer.writer)
        convs = self._convolutions.of_layer(sublayer.writer.layer)
        lags = self._lags.readers(conv for conv in convs if id(conv.weight) in inside)
        return replace(sublayer, readers=(*sublayer.readers, *lags))

    def taps(self, layer: int) -> Mapping[str, Float[Tensor, "lag channel"]]:
        """Of every depthwise convolution in it."""
        return {self._lags.sites[c]: c.taps for c in self._convolutions.of_layer(layer)}

    def stray_lags(self, layer: int) -> tuple[Reader, ...]:
        """Those of convolutions in a layer that the bridge describes as a whole."""
        inside = {one for writer in self.written_by(layer) for one in self._inside(writer)}
        convs = self._convolutions.of_layer(layer)
        return tuple(self._lags.readers(conv for conv in convs if id(conv.weight) not in inside))

    def _inside(self, writer: Writer) -> set[int]:
        """The weights of what computes it."""
        if writer.layer < 0:
            return set()
        component = getattr(self.model.blocks[writer.layer], writer.module.split(".")[-1])
        return {id(weight) for weight in component.parameters()}

    def _attention(self, writer: Writer) -> Sublayer:
        layer, prefix = writer.layer, f"blocks.{writer.layer}.attn."

        weights = cache(partial(self._weights, layer))

        def to_stream(head: int) -> Float[Tensor, "d_head d_model"]:
            return writer.term(weights("O")[head])

        def constants() -> dict[str, Float[Tensor, " d_model"]]:
            b_O = self.output_bias(layer)
            return {} if b_O is None else {f"{prefix}b_O": writer.term(wide(b_O))}

        labels = [f"L{layer}H{head}" for head in range(self.heads[layer])]
        shared = labels[: self.key_heads(layer)]
        terms = [
            Term(label, "head", Place(f"{prefix}hook_z", (ALL, head)), partial(to_stream, head))
            for head, label in enumerate(labels)
        ]
        readers = [
            Reader(f"{label}.{channel}", channel, Place(f"{prefix}hook_{channel}", (ALL, head)))
            for channel, there in (("q", labels), ("k", shared), ("v", shared))
            for head, label in enumerate(there)
        ]
        readers += [
            Reader(f"{label}.pattern", "pattern", Place(f"{prefix}hook_pattern", (head, ALL), 1))
            for head, label in enumerate(labels)
        ]
        before, behind = (
            self._norm(self.model.blocks[layer], name, f"blocks.{layer}.{name}")
            if self._is_foldable
            else None
            for name in ("ln1", "ln1_post")
        )

        def channel(head: int, channel: Channel) -> LinearChannel:
            self._check_foldable()
            maps = weights(channel.upper())
            shared = head * len(maps) // self.heads[layer]  # queries may share a key
            name = f"blocks.{layer}.attn"
            computed = f"{name}.hook_{channel}"
            return LinearChannel(
                name, channel, computed, shared, before, maps[shared], has_constants=False
            )

        return Sublayer(
            writer,
            tuple(terms),
            constants,
            tuple(readers),
            norm=before,
            behind=behind,
            attending=Attending(
                channel,
                scale=math.nan,  # not looked up: architectures differ
                scores=f"{prefix}hook_attn_scores",
                pattern=f"{prefix}hook_pattern",
                rotate=partial(self._rotated, layer) if self._is_rotary else None,
            ),
        )

    def _weights(self, layer: int, name: str) -> Float[Tensor, "head _ _"]:
        """W_Q, W_K, W_V or W_O of a layer; in the former, gains of norms over queries and keys."""
        attn = self.model.blocks[layer].attn
        try:
            weight = wide(getattr(attn, f"W_{name}"))
        except (AttributeError, RuntimeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"{self.name}: the attention weights of layer {layer} cannot be read head by "
                f"head: {error}"
            ) from error
        norm = self._norm(attn, f"{name.lower()}_norm", "") if name in "QK" else None
        if norm is None or norm.gain is None:
            return weight
        # One gain for all heads, or one for each (Qwen 3).
        gain = norm.gain.view(-1, 1, weight.shape[-1])
        return norm.writing(weight) * gain.repeat_interleave(len(weight) // len(gain), dim=0)

    def _norm(self, owner: Any, attribute: str, name: str) -> FrozenNorm | None:
        norm = getattr(owner, attribute, None)
        if norm is None:
            return None
        gain, offset = (maybe_wide(getattr(norm, weight, None)) for weight in ("w", "b"))
        if gain is not None:
            gain = gain + float(norm.uses_weight_offset)  # Gemma stores gain - 1
        return FrozenNorm(name, not norm.uses_rms_norm, gain, offset, eps=0.0)

    @property
    def _is_foldable(self) -> bool:
        return getattr(self.model.adapter, "supports_fold_ln", True)

    def _check_foldable(self) -> None:
        if not self._is_foldable:
            raise ValueError(
                f"{self.name}: TransformerLens cannot fold this architecture's norms into the maps "
                "behind them (post-norm, or norms that several maps share), so its weights alone "
                "do not say what a head reads. Use a pre-norm model"
            )

    @property
    def _is_rotary(self) -> bool:
        return self.model.cfg.positional_embedding_type == "rotary"

    def _rotated(
        self, layer: int, x: Float[Tensor, "batch pos any d_head"], start: int
    ) -> Float[Tensor, "batch pos any d_head"]:
        """By Hugging Face's own function: pairs of channels differ between architectures."""
        attn = getattr(self.model.blocks[layer].attn, "original_component", None)
        module = sys.modules[type(attn).__module__]
        turn: Callable[..., Any] | None = getattr(module, "apply_rotary_pos_emb", None)
        table = getattr(getattr(self.model, "rotary_emb", None), "original_component", None)
        if turn is None or table is None:
            raise ValueError(
                f"{self.name}: how its rotary positions turn is not known here; leave distance at 0"
            )
        positions = torch.arange(start, start + x.shape[1], device=x.device)[None]
        with torch.no_grad():
            cos, sin = table(x[:1, :, 0], positions)
        width = cos.shape[-1]  # some architectures turn the first channels only
        by_head = x.transpose(1, 2)[..., :width]
        turned, _ = turn(by_head, by_head, cos.to(x), sin.to(x))
        return torch.cat([turned.transpose(1, 2), x[..., width:]], dim=-1)

    @property
    def last_norm(self) -> FrozenNorm:
        """What TransformerLens calls ln_final."""
        norm = self._norm(self.model, "ln_final", "ln_final")
        if norm is None:
            raise ValueError(
                f"{self.name} has no norm before its unembedding that is known of, so its logits "
                "cannot be read from the stream; give a model with one"
            )
        return norm

    @property
    def unembedding(
        self,
    ) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " vocab"] | None]:
        """As the bridge gives them; without a bias it gives one of zeros."""
        bias = self.model.b_U
        return self.model.W_U, bias if bias is not None and bias.any() else None

    @property
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_E; refused where a norm stands between it and the stream."""
        if hasattr(self.model, "embed_ln"):
            raise ValueError(
                f"{self.name} normalises its embedding, so that W_E is not what enters the "
                "stream; ask for the residual basis"
            )
        return self.model.W_E

    @property
    def position_table(self) -> Float[Tensor, "pos d_model"] | None:
        """Where the bridge gives one."""
        return getattr(self.model, "W_pos", None)

    @property
    def unread_convolutions(self) -> tuple[str, ...]:
        """Their lags are units, but what heads read through them is not described."""
        found = self._convolutions
        return tuple(
            f"{one.path} in layer {one.layer}" for one in (*found.convolutions, *found.refused)
        )

    def causal(self, layer: int) -> bool:
        """As the layer attends, whatever the bridge's config says; False for encoders."""
        try:
            return not self.visible(layer, min(3, self.n_ctx)).triu(1).any()
        except NotComputedError:  # a fused kernel: what the layer says of itself has to do
            attn = self.model.blocks[layer].attn.original_component
            said = [getattr(module, "is_causal", None) for module in attn.modules()]
            return self.model.cfg.attention_dir == "causal" and False not in said

    def output_map(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O, as the bridge gives it."""
        return self.model.blocks[layer].attn.W_O

    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        """b_O, as the bridge gives it."""
        return self.model.blocks[layer].attn.b_O

    @property
    def name(self) -> str:
        """The checkpoint's name and the architecture."""
        cfg = self.model.cfg
        return f"{cfg.model_name} ({cfg.architecture or type(self.model).__name__})"

    def _no_heads(self) -> str:
        whole = [layer for layer in range(self.n_layers) if not self.written_by(layer)]
        if not whole:
            return super()._no_heads()
        return (
            f"{self.name}: its bridge describes layers {', '.join(map(str, whole))} as a whole and "
            "has no hook point inside them, so heads that are there cannot be scored; interp needs "
            "a bridge that hooks attention patterns"
        )


_known: "WeakKeyDictionary[Any, tuple[Found, LagPoints]]" = WeakKeyDictionary()


def _found(model: Any) -> tuple[Found, LagPoints]:
    """A bridge's convolutions and their hook points: found once, by a run on a few tokens."""
    if model not in _known:
        modules = model.original_model.modules()
        found = Found((), ())
        if any(isinstance(module, nn.Conv1d) for module in modules):
            tokens = torch.zeros(1, min(8, model.cfg.n_ctx), dtype=torch.long)
            tokens = tokens.to(next(model.parameters()).device)
            with undisturbed(model), without_hooks(model):
                found = find_convolutions(model.blocks, lambda: model(tokens, return_type=None))
        _known[model] = found, LagPoints(found)
    return _known[model]


def _is_a(component: Any, names: Collection[str]) -> bool:
    """By the names of its classes: to import them would import every architecture."""
    return any(kind.__name__ in names for kind in type(component).__mro__)


def _is_norm(component: Any) -> bool:
    return _is_a(component, NORMS)


def _is_mlp(name: str, component: Any) -> bool:
    return name == "mlp" or _is_a(component, MLPS)


def _is_mamba(component: Any) -> bool:
    """By its state matrix: Nemotron-H calls attention and MLPs a mixer, too."""
    return _is_a(component, SSMS) and hasattr(component.original_component, "A_log")
