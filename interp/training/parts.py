"""Parts of a model by name: parameters, and slices of them, such as the lags of a convolution."""

import torch
from torch import nn

from interp.models.hooks import nearest


def part_of(model: nn.Module, name: str) -> tuple[nn.Parameter, int | None]:
    """A parameter by its name, or one of its slices: "blocks.0.conv.W_conv.1" is lag 1.

    Returns:
        The parameter and the index into its first dimension, or None for all of it.

    Raises:
        ValueError: no such parameter, or no such slice of it.
    """
    parameters = dict(model.named_parameters())
    if name in parameters:
        return parameters[name], None
    whole, _, index = name.rpartition(".")
    if whole not in parameters or not index.isdecimal():
        raise ValueError(
            f"recipe: held_at_zero names {name!r}, which is no parameter of the model and no slice "
            f"of one{nearest(name, parameters)}"
        )
    size = parameters[whole].shape[0]
    if int(index) >= size:
        raise ValueError(
            f"recipe: held_at_zero names {name!r}, but {whole} has slices 0 to {size - 1} only"
        )
    return parameters[whole], int(index)


@torch.no_grad()
def set_to_zero(parameter: nn.Parameter, index: int | None) -> None:
    """Zero a parameter, or one slice of it, in place."""
    (parameter if index is None else parameter[index]).zero_()
