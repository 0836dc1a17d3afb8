"""The optional second half of a block."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models.config import MLP as MLPSpec
from interp.models.hooks import HookPoint
from interp.models.shapes import Stream

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


class MLP(nn.Module):
    """act(x W_in + b_in) W_out + b_out, with `hook_pre` and `hook_post` around the activation."""

    def __init__(self, d_model: int, spec: MLPSpec):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(d_model, spec.d_mlp))
        self.b_in = nn.Parameter(torch.zeros(spec.d_mlp))
        self.W_out = nn.Parameter(torch.empty(spec.d_mlp, d_model))
        self.b_out = nn.Parameter(torch.zeros(d_model))
        self.activate = ACTIVATIONS[spec.activation]
        self.hook_pre = HookPoint()
        self.hook_post = HookPoint()

    def forward(self, x: Stream) -> Stream:
        """What the neurons write to the stream."""
        pre = self.hook_pre(F.linear(x, self.W_in.T, self.b_in))
        post = self.hook_post(self.activate(pre))
        return F.linear(post, self.W_out.T, self.b_out)
