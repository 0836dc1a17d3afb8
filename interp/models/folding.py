"""The equal model whose norms have gain 1 and offset 0.

A norm's gain γ and offset β stand before a linear map W, so (x̂ γ + β) W = x̂ (γ W) + β W: the map
can carry both. A convolution needs one offset per lag, because a lag that reaches before the first
token has none.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.models.config import Attention, Conv, Layer, ModelConfig

if TYPE_CHECKING:
    from interp.models.sequence import HookedSequenceModel

State = dict[str, Tensor]


@torch.no_grad()
def fold_norms(model: "HookedSequenceModel") -> "HookedSequenceModel":
    """A new model with the same logits; the given one is left as it is.

    Raises:
        ValueError: post-norm, where the gain acts on the stream itself and no later map alone reads
            it.
    """
    config = model.config
    if config.norm_place == "post":
        raise ValueError(
            "fold_norms: a post-norm's gain scales the residual stream itself, which every later "
            "layer reads; it cannot be folded into one map. Use a pre-norm model."
        )
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if config.norm == "none":
        return _build(model, config, state)
    for index, layer in enumerate(config.layers):
        block = f"blocks.{index}."
        if isinstance(layer, Conv):
            _fold_into_conv(state, block, layer)
        else:
            _fold_into_heads(state, block)
        if layer.mlp is not None:
            gain, offset = _take_norm(state, block + "ln2")
            _fold_into_map(state, gain, offset, block + "mlp.W_in", block + "mlp.b_in")
    state.setdefault("unembed.W_U", model.W_U.clone())  # a tied unembedding gets its own weights
    gain, offset = _take_norm(state, "ln_final")
    if config.norm == "layer":
        state.setdefault("unembed.b_U", model.b_U.clone())
    _fold_into_map(state, gain, offset, "unembed.W_U", "unembed.b_U")
    return _build(model, _with_room_for_offsets(config), state)


def _with_room_for_offsets(config: ModelConfig) -> ModelConfig:
    if config.norm != "layer":  # an RMSNorm has no offset
        return config.replace(tied=False)
    layers = tuple(_layer_with_room(layer, config) for layer in config.layers)
    return config.replace(layers=layers, tied=False, unembed_bias=True)


def _layer_with_room(layer: Layer, config: ModelConfig) -> Layer:
    if isinstance(layer, Attention):
        # Shortformer attention has no gain or offset to fold (see build.py).
        adds_positions = config.positions == "shortformer" and layer.positions
        return layer if adds_positions else replace(layer, bias=True)
    return replace(layer, lag_bias=True)


def _take_norm(state: State, name: str) -> tuple[Tensor | None, Tensor | None]:
    """The norm's gain and offset, and in their place 1 and 0."""
    gain, offset = state.get(f"{name}.w"), state.get(f"{name}.b")
    if gain is not None:
        state[f"{name}.w"] = torch.ones_like(gain)
    if offset is not None:
        state[f"{name}.b"] = torch.zeros_like(offset)
    return gain, offset


def _fold_into_map(
    state: State, gain: Tensor | None, offset: Tensor | None, W: str, b: str
) -> None:
    if offset is not None:
        state[b] = state[b] + offset @ state[W]
    if gain is not None:
        state[W] = gain[:, None] * state[W]


def _fold_into_heads(state: State, block: str) -> None:
    gain, offset = _take_norm(state, block + "ln1")
    if gain is None:
        return
    for name in "QKV":
        W, b = f"{block}attn.W_{name}", f"{block}attn.b_{name}"
        if offset is not None:
            bias = torch.einsum("m,hmd->hd", offset, state[W])
            state[b] = bias + state[b] if b in state else bias
        state[W] = gain[:, None] * state[W]
    if offset is not None and f"{block}attn.W_O" in state:
        state.setdefault(f"{block}attn.b_O", torch.zeros_like(offset))


def _fold_into_conv(state: State, block: str, layer: Conv) -> None:
    gain, offset = _take_norm(state, block + "ln1")
    if gain is None:
        return
    W, b = block + "conv.W_conv", block + "conv.b_lags"
    if offset is not None:
        bias = offset * state[W] if layer.depthwise else offset @ state[W]
        state[b] = bias + state[b] if b in state else bias
    state[W] = gain * state[W] if layer.depthwise else gain[:, None] * state[W]


def _build(
    model: "HookedSequenceModel", config: ModelConfig, state: State
) -> "HookedSequenceModel":
    folded = type(model).from_config(config, tokenizer=model.tokenizer)
    folded.to(device=model.W_E.device, dtype=model.W_E.dtype).load_state_dict(state)
    return folded.train(model.training)
