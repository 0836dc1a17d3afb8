"""Models: a residual stream, a list of blocks, and a hook point on everything worth hearing."""

from typing import TYPE_CHECKING

from interp.models.cache import ActivationCache as ActivationCache
from interp.models.config import ModelConfig as ModelConfig
from interp.models.layers import MLP as MLP
from interp.models.layers import Attention as Attention
from interp.models.layers import Conv as Conv
from interp.models.layers import GatedConv as GatedConv
from interp.models.presets import HookedAttn as HookedAttn
from interp.models.presets import HookedAttnAttn as HookedAttnAttn
from interp.models.presets import HookedConvAttn as HookedConvAttn
from interp.models.presets import HookedGPT as HookedGPT
from interp.models.presets import HookedSmearedAttn as HookedSmearedAttn
from interp.models.presets import available as available
from interp.models.sequence import HookedSequenceModel as HookedSequenceModel

if not TYPE_CHECKING:
    from interp.public import attach

    __getattr__, __dir__, __all__ = attach(__name__)
