"""A causal convolution as a circuit element: one map per lag."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.config import Conv
from interp.models.hooks import HookPoint
from interp.models.shapes import KeyMask, Stream


class CausalConv(nn.Module):
    """out_t = Σ_j x_{t-j} W_conv[j] + b_conv, over the lags j whose token exists.

    `W_conv` is `[lag d_in d_out]`, or `[lag d_model]` if depthwise; `W` is the full matrices either
    way. `hook_lags [batch lag pos d_model]` holds each lag's term; it is built only when listened
    to. A padding position is zero to a convolution.
    """

    W_conv: Tensor
    b_lags: Tensor | None
    b_conv: Tensor | None

    def __init__(self, d_model: int, spec: Conv):
        super().__init__()
        self.lags, self.depthwise = spec.lags, spec.depthwise
        shape = (spec.lags, d_model) if spec.depthwise else (spec.lags, d_model, d_model)
        self.W_conv = nn.Parameter(torch.empty(shape))
        per_lag = nn.Parameter(torch.zeros(spec.lags, d_model)) if spec.lag_bias else None
        self.register_parameter("b_lags", per_lag)
        self.register_parameter("b_conv", nn.Parameter(torch.zeros(d_model)) if spec.bias else None)
        self.hook_lags = HookPoint()

    @property
    def W(self) -> Float[Tensor, "lag d_in d_out"]:
        """One full matrix per lag; a depthwise convolution's are diagonal."""
        return torch.diag_embed(self.W_conv) if self.depthwise else self.W_conv

    def forward(self, x: Stream, key_mask: KeyMask | None = None) -> Stream:
        """The sum of the lags' terms and the bias."""
        terms = [self._term(x, lag, key_mask) for lag in range(self.lags)]
        if self.hook_lags.is_listened_to():
            out = self.hook_lags(torch.stack(terms, dim=1)).sum(dim=1)
        else:
            out = sum(terms[1:], terms[0])
        return out if self.b_conv is None else out + self.b_conv

    def _term(self, x: Stream, lag: int, key_mask: KeyMask | None) -> Stream:
        # Map first, then shift: what shifting pads with zeros is then the whole term of a missing
        # token.
        weight = self.W_conv[lag]
        term = x * weight if self.depthwise else x @ weight
        if self.b_lags is not None:
            term = term + self.b_lags[lag]
        if key_mask is not None:
            term = term * key_mask[..., None]
        return shift(term, lag)


def shift(x: Stream, lag: int) -> Stream:
    """x moved `lag` positions later, zeros moving in; what falls off the end is dropped."""
    return x if lag == 0 else F.pad(x, (0, 0, lag, 0))[:, : x.shape[1]]
