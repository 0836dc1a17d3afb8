"""Models: a residual stream, a list of blocks, and a hook point on everything worth hearing."""

from interp.models.cache import ActivationCache
from interp.models.config import ModelConfig
from interp.models.layers import MLP, Attention, Conv
from interp.models.presets import (
    HookedAttn,
    HookedAttnAttn,
    HookedConvAttn,
    HookedGPT,
    HookedSmearedAttn,
    available,
    load,
)
from interp.models.revisions import Checkpoints
from interp.models.sequence import HookedSequenceModel

__all__ = [
    "MLP",
    "ActivationCache",
    "Attention",
    "Checkpoints",
    "Conv",
    "HookedAttn",
    "HookedAttnAttn",
    "HookedConvAttn",
    "HookedGPT",
    "HookedSequenceModel",
    "HookedSmearedAttn",
    "ModelConfig",
    "available",
    "load",
]
