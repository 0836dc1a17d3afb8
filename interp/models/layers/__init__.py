"""Every kind of layer, one file each: its spec, its module, and what it says of itself."""

from interp.models.layers.attention import Attention, MultiHeadAttention
from interp.models.layers.conv import CausalConv, Conv
from interp.models.layers.layer import KINDS, LayerSpec, Mixer
from interp.models.layers.mlp import MLP, FeedForward

__all__ = [
    "KINDS",
    "MLP",
    "Attention",
    "CausalConv",
    "Conv",
    "FeedForward",
    "LayerSpec",
    "Mixer",
    "MultiHeadAttention",
]
