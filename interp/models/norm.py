"""LayerNorm and RMSNorm with TransformerLens's hook points, and one kernel when nobody listens.

A norm's gain γ and offset β stand before a linear map W, so

    (x̂ γ + β) W = x̂ (γ W) + β W:

the map can carry both.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models.hooks import HookPoint
from interp.models.shapes import Stream


@torch.no_grad()
def fold_into(
    weight: Tensor, bias: Tensor | None, gain: Tensor | None, offset: Tensor | None
) -> None:
    """W becomes diag(γ) W, and b becomes b + β W: of one map or of several, in place."""
    if offset is not None:
        assert bias is not None  # a spec's `with_room_for_offset` has seen to that
        bias += torch.einsum("m,...md->...d", offset, weight)
    if gain is not None:
        weight.copy_(gain[:, None] * weight)


class Norm(nn.Module):
    """x / scale, times a gain w, plus an offset b; LayerNorm subtracts the mean first.

    `hook_scale [batch pos 1]` is what the stream is divided by, and `hook_normalized` the quotient,
    before gain and offset, as in TransformerLens 4. Both are built only when listened to. RMSNorm
    has no offset. Without `affine` there is neither gain nor offset.
    """

    w: Tensor | None
    b: Tensor | None

    def __init__(
        self, d_model: int, kind: Literal["layer", "rms"], eps: float, affine: bool = True
    ):
        super().__init__()
        self.d_model, self.eps, self.centered = d_model, eps, kind == "layer"
        self.register_parameter("w", nn.Parameter(torch.ones(d_model)) if affine else None)
        offset = nn.Parameter(torch.zeros(d_model)) if affine and self.centered else None
        self.register_parameter("b", offset)
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Stream) -> Stream:
        """The normalised stream."""
        if self.hook_scale.is_listened_to() or self.hook_normalized.is_listened_to():
            return self._spelled_out(x)
        if self.centered:
            return F.layer_norm(x, (self.d_model,), self.w, self.b, self.eps)
        return F.rms_norm(x, (self.d_model,), self.w, self.eps)

    def _spelled_out(self, x: Stream) -> Stream:
        # The kernels compute 16-bit inputs in float32; so does this, or the two paths would differ.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.centered:
            wide = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((wide.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        normalized = self.hook_normalized(wide / scale)
        if self.w is not None:
            normalized = normalized * self.w
        if self.b is not None:
            normalized = normalized + self.b
        return normalized.to(x.dtype)
