"""The equal model whose norms have gain 1 and offset 0: the maps behind them carry both.

How, each kind of layer says itself (`Mixer.fold`): a convolution needs one offset per lag, because
a lag that reaches before the first token has none.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import torch

from interp.models.block import Block, take_affine
from interp.models.config import ModelConfig
from interp.models.norm import fold_into
from interp.models.weights import WeightsMixin

Model = TypeVar("Model", bound=WeightsMixin)


@torch.no_grad()
def fold_norms(model: Model, made: Callable[[ModelConfig], Model]) -> Model:
    """A new model with the same logits; the given one is left as it is.

    Args:
        model: what to fold.
        made: makes a model of a config, whose weights are still to come.

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
    folded = _copy_with_room(model, made)
    if config.norm == "none":
        return folded
    for block in folded.blocks:
        cast(Block, block).fold_norms()
    fold_into(folded.W_U, folded.unembed.b_U, *take_affine(folded.ln_final))
    return folded


def _copy_with_room(model: Model, made: Callable[[ModelConfig], Model]) -> Model:
    config = model.config
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if config.norm != "none":
        state.setdefault("unembed.W_U", model.W_U.clone())  # a tied one gets weights of its own
        config = config.replace(tied=False)
    if config.norm == "layer":  # an RMSNorm has no offset
        layers = tuple(layer.with_room_for_offset(config) for layer in config.layers)
        config = config.replace(layers=layers, unembed_bias=True)
    folded = made(config)
    folded.to(device=model.W_E.device, dtype=model.W_E.dtype)
    for name, tensor in folded.state_dict().items():  # the room for offsets begins at 0
        state.setdefault(name, torch.zeros_like(tensor))
    folded.load_state_dict(state)
    return folded.train(model.training)
