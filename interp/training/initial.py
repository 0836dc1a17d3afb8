"""The initial weights of the course networks, where a recipe asks for them."""

import math

import torch
from torch import Tensor

from interp.models import HookedSequenceModel

_MASKED_KERNEL = 3
"""The course's convolution: t - 1, t and, masked, t + 1, which counts in the fan-in."""


@torch.no_grad()
def as_in_the_course(model: HookedSequenceModel, seed: int) -> None:
    """Give a model the initial weights that PyTorch's own layers begin with.

    A network without norm and residual stream depends on them: embeddings are standard normal,
    W_Q, W_K and W_V Xavier-normal, convolution and unembedding uniform within 1 / √fan_in, and so
    are their biases. Everything else stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    d_model = model.config.d_model
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        if last in ("W_E", "W_pos"):
            parameter.copy_(_normal(parameter, 1.0, generator))
        elif last in ("W_Q", "W_K", "W_V"):
            heads, _, width = parameter.shape
            deviation = math.sqrt(2 / (d_model + heads * width))
            parameter.copy_(_normal(parameter, deviation, generator))
        elif last in ("W_conv", "b_conv"):
            parameter.copy_(_uniform(parameter, _MASKED_KERNEL * d_model, generator))
        elif last in ("W_U", "b_U"):
            parameter.copy_(_uniform(parameter, d_model, generator))


def _normal(like: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.empty(like.shape).normal_(0, deviation, generator=generator)


def _uniform(like: Tensor, fan_in: int, generator: torch.Generator) -> Tensor:
    bound = fan_in**-0.5
    return torch.empty(like.shape).uniform_(-bound, bound, generator=generator)
