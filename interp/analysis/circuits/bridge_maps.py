"""The folded maps of any model: one of ours, or a `TransformerBridge`."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.head_maps import NO_NORM, Folded, Heads, OurFolded
from interp.analysis.circuits.reads import HeadReads, Reads
from interp.analysis.circuits.routes import HEAD, Channel, check_turn
from interp.models import HookedSequenceModel
from interp.models.linear import FrozenNorm, wide
from interp.models.shapes import Tokens
from interp.views import View, view


def folded(model: Any) -> Folded:
    """The maps of a model; `view` and the classes say which models are refused."""
    seen = view(model)
    ours = isinstance(seen.model, HookedSequenceModel)
    return OurFolded(seen) if ours else BridgeFolded(seen)


class BridgeFolded(Folded):
    """Of a `TransformerBridge`, where TransformerLens gives access to the weights."""

    residual = True

    def __init__(self, seen: View):
        super().__init__(seen)
        if not getattr(self.model.adapter, "supports_fold_ln", True):
            raise ValueError(
                f"{seen.name}: TransformerLens cannot fold this architecture's norms into the maps "
                "behind them (post-norm, or norms that several maps share), so its weights alone "
                "do not say what a head reads. Use a pre-norm model"
            )
        first = self.model.blocks[min(seen.heads)] if seen.heads else None
        self.width = int(self.model.cfg.d_model) - _bridge_fold(first, "ln1").centered
        self.rotary = self.model.cfg.positional_embedding_type == "rotary"

    def place(self, head: str) -> tuple[int, int]:
        """Layer and index of a head."""
        match = HEAD.fullmatch(head) if isinstance(head, str) else None
        place = (int(match[1]), int(match[2])) if match else (-1, 0)
        layers = self.seen.heads
        if not place[1] < layers.get(place[0], 0):
            raise ValueError(
                f'there is no head {head!r} in {self.seen.name}; a head is written "L1H3", and '
                f"layers {sorted(layers)} have {max(layers.values(), default=0)} heads each"
            )
        return place

    def heads(self, layer: int) -> Heads:
        """The maps of a layer; heads that share keys and values get each their own."""
        block = self.model.blocks[layer]
        try:
            W_Q, W_K, W_V, W_O = (wide(getattr(block.attn, f"W_{name}")) for name in "QKVO")
        except (AttributeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"{self.seen.name}: the attention weights of layer {layer} cannot be read head by "
                f"head: {error}"
            ) from error
        W_K, W_V = (W.repeat_interleave(len(W_Q) // len(W), dim=0) for W in (W_K, W_V))
        before, after = _bridge_fold(block, "ln1"), _bridge_fold(block, "ln1_post")
        W_Q, W_K, W_V = (before.reading(W) for W in (W_Q, W_K, W_V))
        W_Q, W_K = (_normed(block.attn, c, W) for c, W in (("q", W_Q), ("k", W_K)))
        return Heads(W_Q, W_K, W_V, before.writing(after.behind(W_O)))

    def read(self, head: str, tokens: Tokens | None) -> HeadReads:
        """One lag; the norm's scale is a common factor that is left out."""
        self._refuse(tokens)
        layer, index = self.place(head)
        heads = self.heads(layer)
        maps: dict[Channel, Tensor] = {"q": heads.W_Q, "k": heads.W_K, "v": heads.W_V}
        return {
            channel: Reads(
                head=head,
                channel=channel,
                source=f"blocks.{layer}.hook_resid_pre",
                layer=layer,
                maps=weight[index][None],
                constants={},
                scales={},
                scales_from="1: a common factor, left out",
                n_ctx=self.seen.n_ctx,
                centered=_bridge_fold(self.model.blocks[layer], "ln1").centered,
            )
            for channel, weight in maps.items()
        }

    def values(self, layer: int, tokens: Tokens | None) -> Float[Tensor, "head lag d_model d_head"]:
        """One lag."""
        self._refuse(tokens)
        return self.heads(layer).W_V[:, None]

    def outputs(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O."""
        return self.heads(layer).W_O

    def _refuse(self, tokens: Tokens | None) -> None:
        if tokens is not None:
            raise ValueError(
                "tokens are for the scales of norms below convolutions, and a bridge has none of "
                "those; leave them out"
            )

    def check_embedding(self, head: str) -> None:
        """Every bridge here has a residual stream."""

    def check_output(self, layer: int) -> None:
        """Every bridge here has a residual stream."""

    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_E; refused where a norm stands between it and the stream."""
        if hasattr(self.model, "embed_ln"):
            raise ValueError(
                f"{self.seen.name} normalises its embedding, so that W_E is not what enters the "
                "stream; ask for the residual basis"
            )
        return super().embedding()

    def biases(self, read: HeadReads, channels: str) -> list[str]:
        """Not looked up: architectures differ."""
        return ["all biases"]

    def position_table(self, head: str) -> Float[Tensor, "pos d_model"]:
        """W_pos."""
        try:
            return wide(self.model.W_pos)
        except AttributeError as error:
            raise ValueError(f"{self.seen.name} has no table of positions: {error}") from error

    def last_norm(self) -> FrozenNorm:
        """What ln_final leaves."""
        return _bridge_fold(self.model, "ln_final")

    def rotation(self, layer: int, distance: int) -> Float[Tensor, "d_head d_head"] | None:
        """R at this distance; None where nothing turns."""
        check_turn(distance, self.seen.n_ctx if self.rotary else None)
        if not self.rotary:
            return None
        identity = torch.eye(self.model.blocks[layer].attn.W_Q.shape[-1])
        return identity if distance == 0 else self._turned(layer, identity, distance)

    def _turned(self, layer: int, identity: Tensor, distance: int) -> Tensor:
        """By Hugging Face's own function: pairs of channels differ between architectures."""
        attn = getattr(self.model.blocks[layer].attn, "original_component", None)
        module = sys.modules[type(attn).__module__]
        turn: Callable[..., Any] | None = getattr(module, "apply_rotary_pos_emb", None)
        table = getattr(getattr(self.model, "rotary_emb", None), "original_component", None)
        if turn is None or table is None:
            raise ValueError(
                f"{self.seen.name}: how its rotary positions turn is not known here; leave "
                "distance at 0"
            )
        with torch.no_grad():
            cos, sin = table(identity[None], torch.tensor([[distance]]))
        width = cos.shape[-1]  # some architectures turn the first channels only
        as_heads = identity[None, :, None, :width]
        turned, _ = turn(as_heads, as_heads, cos.to(identity), sin.to(identity))
        return torch.cat([turned[0, :, 0], identity[:, width:]], dim=-1)


def _bridge_fold(owner: Any, name: str) -> FrozenNorm:
    norm = getattr(owner, name, None)
    if norm is None:
        return NO_NORM
    gain = getattr(norm, "w", None)
    gain = None if gain is None else wide(gain) + float(norm.uses_weight_offset)
    return FrozenNorm(name, not norm.uses_rms_norm, gain, offset=None, eps=0.0)


def _normed(
    attn: Any, channel: str, weight: Float[Tensor, "head d_model d_head"]
) -> Float[Tensor, "head d_model d_head"]:
    """With the gain of a norm over each head's queries or keys (Qwen 3), if there is one."""
    fold = _bridge_fold(attn, f"{channel}_norm")
    if fold.gain is None:
        return weight
    # One gain for all heads, or one for each; heads that share a key share its gain.
    gain = fold.gain.view(-1, 1, weight.shape[-1])
    return fold.writing(weight) * gain.repeat_interleave(len(weight) // len(gain), dim=0)
