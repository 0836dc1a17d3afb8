"""Every kind of layer, one file each: its spec, its module, and what it says of itself."""

from typing import TYPE_CHECKING

from interp.models.layers.attention import Attention as Attention
from interp.models.layers.attention import MultiHeadAttention as MultiHeadAttention
from interp.models.layers.conv import CausalConv as CausalConv
from interp.models.layers.conv import Conv as Conv
from interp.models.layers.gated_conv import GatedConv as GatedConv
from interp.models.layers.layer import KINDS as KINDS
from interp.models.layers.layer import LayerSpec as LayerSpec
from interp.models.layers.layer import Mixer as Mixer
from interp.models.layers.mlp import MLP as MLP
from interp.models.layers.mlp import FeedForward as FeedForward

if not TYPE_CHECKING:
    from interp.public import attach

    __getattr__, __dir__, __all__ = attach(__name__)
