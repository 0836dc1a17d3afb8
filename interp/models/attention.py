"""Multi-head attention, with optional key smearing and optional rotary positions."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.models import kernels
from interp.models.config import Attention as AttentionSpec
from interp.models.hooks import HookPoint
from interp.models.kernels import Visibility
from interp.models.shapes import Heads, KeyMask, Results, Stream


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): a score depends on the distance only.

    Channel i turns with channel i + d_head / 2, by an angle that grows with the position.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, n_ctx: int, d_head: int, base: float):
        super().__init__()
        self.n_ctx, self.d_head, self.base = n_ctx, d_head, base
        angles = self._angles()
        dtype = torch.get_default_dtype()
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

    def _angles(self) -> Float[Tensor, "pos 1 d_head"]:
        rates = self.base ** (-torch.arange(0, self.d_head, 2, dtype=torch.float64) / self.d_head)
        angles = torch.arange(self.n_ctx, dtype=torch.float64)[:, None] * rates
        return angles.repeat(1, 2)[:, None, :]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # Tables that were rounded once would not turn exactly in a wider dtype.
        angles = self._angles()
        self.cos, self.sin = angles.cos().to(self.cos), angles.sin().to(self.sin)
        return self

    def forward(self, x: Heads) -> Heads:
        """Each head's vectors, turned by their positions' angles."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        n_pos = x.shape[1]
        return x * self.cos[:n_pos] + turned * self.sin[:n_pos]


def smear_keys(k: Heads, share: Float[Tensor, " head"], key_mask: KeyMask | None) -> Heads:
    """k'_j = share k_j + (1 - share) k_{j-1} (Olsson et al. 2022, argument 2).

    The first key, and a key after a padding position, has no predecessor and stays as it is.
    """
    previous = torch.cat([k[:, :1], k[:, :-1]], dim=1)
    if key_mask is not None:
        real = torch.cat([key_mask[:, :1], key_mask[:, :-1]], dim=1)[..., None, None]
        previous = torch.where(real, previous, k)
    share = share[:, None]
    return share * k + (1 - share) * previous


class Attention(nn.Module):
    """z = softmax(q kᵀ / √d_head) v per head, and the heads' z through W_O added up.

    Weights are TransformerLens's: `W_Q W_K W_V [head d_model d_head]`, `W_O [head d_head d_model]`,
    and `smear [head]`, the mixing weight α before the sigmoid. With no output map W_O is a fixed
    identity. The layer runs the fused kernel; `hook_attn_scores` and `hook_pattern` [batch head
    query key], `hook_result` [batch pos head d_model] and `hook_log_sum_exp` [batch query head] are
    computed only when listened to. `hook_log_sum_exp` is for reading: what a hook returns there
    changes nothing.
    """

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    b_Q: Tensor | None
    b_K: Tensor | None
    b_V: Tensor | None
    b_O: Tensor | None
    smear: Tensor | None
    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_z: HookPoint
    hook_result: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_log_sum_exp: HookPoint

    def __init__(
        self, d_model: int, spec: AttentionSpec, rotary: Rotary | None = None, dropout: float = 0.0
    ):
        super().__init__()
        heads, width = spec.n_heads, spec.d_head
        self.scale, self.causal, self.dropout = width**-0.5, spec.causal, dropout
        self.has_output_map, self.rotary = spec.output, rotary
        self.sees_positions = spec.positions
        for name in "QKV":
            self.register_parameter(f"W_{name}", nn.Parameter(torch.empty(heads, d_model, width)))
            bias = nn.Parameter(torch.zeros(heads, width)) if spec.bias else None
            self.register_parameter(f"b_{name}", bias)
        if spec.output:
            self.W_O = nn.Parameter(torch.empty(heads, width, d_model))
        else:
            identity = torch.eye(d_model).reshape(heads, width, d_model)
            self.register_buffer("W_O", identity, persistent=False)
        output_bias = nn.Parameter(torch.zeros(d_model)) if spec.bias and spec.output else None
        self.register_parameter("b_O", output_bias)
        self.register_parameter("smear", nn.Parameter(torch.zeros(heads)) if spec.smear else None)
        for hook in ["q", "k", "v", "z", "result"]:
            setattr(self, f"hook_{hook}", HookPoint(pos_dim=-3))
        for hook in ["attn_scores", "pattern", "log_sum_exp"]:
            setattr(self, f"hook_{hook}", HookPoint())
        if spec.smear:
            self.hook_smeared_k = HookPoint(pos_dim=-3)
        if rotary is not None:
            self.hook_rot_q, self.hook_rot_k = HookPoint(pos_dim=-3), HookPoint(pos_dim=-3)

    @property
    def query_hook(self) -> str:
        """The hook point with the queries as they meet the keys."""
        return "hook_q" if self.rotary is None else "hook_rot_q"

    @property
    def key_hook(self) -> str:
        """The hook point with the keys as they meet the queries, after smearing and rotation."""
        if self.rotary is not None:
            return "hook_rot_k"
        return "hook_k" if self.smear is None else "hook_smeared_k"

    def forward(
        self, x: Stream, positions: Stream | None = None, key_mask: KeyMask | None = None
    ) -> Stream:
        """What the heads write to the stream; `positions` reach queries and keys only."""
        x_qk = x if positions is None else x + positions
        q = self.hook_q(_project(x_qk, self.W_Q, self.b_Q))
        k = self.hook_k(_project(x_qk, self.W_K, self.b_K))
        q, k = self._place(q, k, key_mask)
        v = self.hook_v(_project(x, self.W_V, self.b_V))
        return self._write(self.hook_z(self._attend(q, k, v, Visibility(self.causal, key_mask))))

    def log_sum_exp(self, q: Heads, k: Heads) -> Float[Tensor, "batch query head"]:
        """What `hook_log_sum_exp` hears, from queries and keys as they meet: no values needed."""
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        return kernels.log_sum_exp(q, k, self.causal, self.scale).transpose(1, 2)

    def _place(self, q: Heads, k: Heads, key_mask: KeyMask | None) -> tuple[Heads, Heads]:
        if self.smear is not None:
            k = self.hook_smeared_k(smear_keys(k, self.smear.sigmoid(), key_mask))
        if self.rotary is not None:
            q, k = self.hook_rot_q(self.rotary(q)), self.hook_rot_k(self.rotary(k))
        return q, k

    def _attend(self, q: Heads, k: Heads, v: Heads, visibility: Visibility) -> Heads:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        if self.hook_attn_scores.is_listened_to() or self.hook_pattern.is_listened_to():
            z = self._spelled_out(q, k, v, visibility, dropout)
        elif self.hook_log_sum_exp.is_listened_to():
            z, lse = kernels.fused_with_log_sum_exp(q, k, v, visibility, self.scale)
            self.hook_log_sum_exp(lse.transpose(1, 2))
        else:
            z = kernels.fused(q, k, v, visibility, self.scale, dropout)
        return z.transpose(1, 2)

    def _spelled_out(
        self,
        q: kernels.HeadFirst,
        k: kernels.KeysFirst,
        v: kernels.ValuesFirst,
        visibility: Visibility,
        dropout: float,
    ) -> kernels.Written:
        scores = self.hook_attn_scores(kernels.masked_scores(q, k, visibility, self.scale))
        if self.hook_log_sum_exp.is_listened_to():
            self.hook_log_sum_exp(scores.logsumexp(-1).transpose(1, 2))
        pattern = self.hook_pattern(kernels.pattern_of(scores))
        return F.dropout(pattern, dropout) @ v

    def _write(self, z: Heads) -> Stream:
        if self.hook_result.is_listened_to():
            out = self.hook_result(self.results(z)).sum(dim=2)
            return out if self.b_O is None else out + self.b_O
        if not self.has_output_map:
            return z.flatten(2)
        return F.linear(z.flatten(2), self.W_O.flatten(0, 1).T, self.b_O)

    def results(self, z: Heads) -> Results:
        """What each head writes to the stream, without b_O."""
        return torch.einsum("bphd,hdm->bphm", z, self.W_O)


def _project(
    x: Stream,
    weight: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"] | None,
) -> Heads:
    # One matrix product for all heads; einsum would loop over them. Laid out like this, the copy of
    # the weight moves whole rows of d_head, and costs little beside the product.
    flat = weight.transpose(0, 1).flatten(1).T
    out = F.linear(x, flat, None if bias is None else bias.flatten())
    return out.unflatten(-1, weight.shape[::2])
