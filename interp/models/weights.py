"""A model's weights under TransformerLens's names, stacked over the layers that have them."""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from interp.models.block import Block
from interp.models.config import ModelConfig
from interp.models.description import Sublayer
from interp.models.embedding import (
    Embed,
    LearnedPositions,
    SinusoidalPositions,
    TiedUnembed,
    Unembed,
)
from interp.models.layers import MultiHeadAttention

HeadWeights = Float[Tensor, "layer head d_model d_head"]
OutputMaps = Float[Tensor, "layer head d_head d_model"]
HeadBiases = Float[Tensor, "layer head d_head"]


def _stacked(name: str) -> Any:
    """A property: this weight of every layer with heads; a bias is zero where there is none."""

    def of_layer(attn: MultiHeadAttention) -> Tensor:
        if (weight := getattr(attn, name)) is None:
            shape = attn.W_O.shape[-1:] if name == "b_O" else attn.W_Q.shape[::2]
            return attn.W_Q.new_zeros(shape)
        return weight

    def stack(self: "WeightsMixin") -> Tensor:
        weights = [of_layer(self.attn(layer)) for layer in self.attention_layers]
        if not weights:
            raise ValueError(f"{name}: this model has no attention layer")
        shapes = {tuple(tensor.shape) for tensor in weights}
        if len(shapes) > 1:
            raise ValueError(
                f"{name} cannot be stacked: its shapes differ between layers {sorted(shapes)}; "
                "use model.attn(layer) for one layer at a time"
            )
        return torch.stack(weights)

    return property(stack)


class WeightsMixin(nn.Module):
    """Read-only views. A stack runs over `attention_layers`: conv layers have no heads."""

    config: ModelConfig
    embed: Embed
    pos_embed: LearnedPositions | SinusoidalPositions | None
    positions_enter_stream: bool
    unembed: Unembed | TiedUnembed
    blocks: nn.ModuleList
    ln_final: nn.Module
    to_single_token: Callable[[str], int]

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The numbers of the layers that have heads."""
        return tuple(i for i, block in enumerate(self.blocks) if hasattr(block, "attn"))

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """The numbers of the layers that have lags."""
        return tuple(i for i, block in enumerate(self.blocks) if hasattr(block, "conv"))

    def sublayers(self, layer: int) -> tuple[Sublayer, ...]:
        """What a layer says it reads and writes: its mixer and, if there is one, its MLP."""
        table = None if self.positions_enter_stream or self.pos_embed is None else self.W_pos
        return tuple(cast(Block, self.blocks[layer]).sublayers(layer, table))

    def attn(self, layer: int) -> MultiHeadAttention:
        """The attention of one layer; an error names the layers that have one."""
        if layer not in self.attention_layers:
            raise ValueError(
                f"layer {layer} has no heads; the attention layers are {self.attention_layers}"
            )
        return cast(MultiHeadAttention, self.blocks[layer].attn)

    def conv(self, layer: int) -> Any:
        """The convolution of one layer, of whatever kind; an error names those that have one."""
        if layer not in self.conv_layers:
            raise ValueError(
                f"layer {layer} has no convolution; the conv layers are {self.conv_layers}"
            )
        return self.blocks[layer].conv

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """The embedding."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """The table of positions; an error where positions are rotary or none."""
        if self.pos_embed is None:
            raise ValueError("this model has no table of positions (rotary or none)")
        return self.pos_embed.W_pos

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " vocab"]:
        """The unembedding's bias, zero where there is none."""
        bias = self.unembed.b_U
        return self.W_U.new_zeros(self.W_U.shape[1]) if bias is None else bias

    W_Q: HeadWeights = _stacked("W_Q")
    """Queries."""
    W_K: HeadWeights = _stacked("W_K")
    """Keys, before smearing."""
    W_V: HeadWeights = _stacked("W_V")
    """Values."""
    W_O: OutputMaps = _stacked("W_O")
    """Outputs; slices of the identity where a layer has no output map."""
    b_Q: HeadBiases = _stacked("b_Q")
    """Query biases, zero where there are none."""
    b_K: HeadBiases = _stacked("b_K")
    """Key biases, zero where there are none."""
    b_V: HeadBiases = _stacked("b_V")
    """Value biases, zero where there are none."""
    b_O: Float[Tensor, "layer d_model"] = _stacked("b_O")
    """Output biases, zero where there are none."""

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head: which stream direction at the query matches which at the key."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head: what is written when a token is attended to."""
        return FactoredMatrix(self.W_V, self.W_O)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """The sum of b_O, b_conv and, if asked, b_out of all layers before this one.

        This is TransformerLens's contract. `mlp_input` counts this layer's mixer as well: what its
        MLP reads.
        """
        end = len(self.blocks) - mlp_input
        if not 0 <= layer <= end:
            raise ValueError(f"layer is {layer}, but must be 0 to {end}")
        total = self.W_E.new_zeros(self.W_E.shape[1])
        for index in range(layer + mlp_input):
            block = cast(Block, self.blocks[index])
            if (bias := block.mixer.bias) is not None:
                total = total + bias
            if include_mlp_biases and index < layer and block.mlp is not None:
                total = total + block.mlp.b_out
        return total

    def tokens_to_residual_directions(
        self, tokens: int | str | Int[Tensor, "..."]
    ) -> Float[Tensor, "... d_model"]:
        """The direction in the normalised stream whose dot product is a token's logit.

        The last norm's gain is folded in. TransformerLens leaves it out and asks for a folded
        model; with it the attributions of any model add up to its logits, `logit_bias` included.
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        directions = self.W_U.T[torch.as_tensor(tokens, device=self.W_U.device)]
        gain = getattr(self.ln_final, "w", None)
        return directions if gain is None else directions * gain

    def logit_bias(self, tokens: int | Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The part of a token's logit that no component writes.

        That is the last norm's offset through W_U, and b_U.
        """
        tokens = torch.as_tensor(tokens, device=self.W_U.device)
        bias = self.b_U[tokens]
        offset = getattr(self.ln_final, "b", None)
        return bias if offset is None else bias + (self.W_U.T[tokens] * offset).sum(-1)
