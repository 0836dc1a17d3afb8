"""The same model in plain PyTorch, as somebody who wants speed and no hooks would write it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.models import HookedAttnAttn


class PlainLayer(nn.Module):
    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.ln = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.o = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln(x)).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        heads = (t.transpose(1, 2) for t in (q, k, v))
        z = F.scaled_dot_product_attention(*heads, is_causal=True)
        return x + self.o(z.transpose(1, 2).flatten(2))


class Plain(nn.Module):
    """Fused attention, one matrix for queries, keys and values, weights laid out for `Linear`."""

    def __init__(self, model: HookedAttnAttn):
        super().__init__()
        config, head = model.config, model.config.attention_layers[0]
        self.embed = nn.Embedding(config.d_vocab, config.d_model)
        self.pos = nn.Embedding(config.n_ctx, config.d_model)
        self.layers = nn.ModuleList(PlainLayer(config.d_model, head.n_heads) for _ in config.layers)
        self.ln = nn.LayerNorm(config.d_model)
        self.unembed = nn.Linear(config.d_model, config.d_vocab, bias=False)
        self._take(model)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.pos.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.unembed(self.ln(x))

    @torch.no_grad()
    def _take(self, model: HookedAttnAttn) -> None:
        self.embed.weight.copy_(model.W_E)
        self.pos.weight.copy_(model.W_pos)
        self.unembed.weight.copy_(model.W_U.T)
        _take_norm(self.ln, model.ln_final)
        for index, layer in enumerate(self.layers):
            attn, ours = model.attn(index), model.blocks[index]
            qkv = [getattr(attn, f"W_{name}").transpose(1, 2).flatten(0, 1) for name in "QKV"]
            biases = [getattr(attn, f"b_{name}").flatten() for name in "QKV"]
            plain: Any = layer
            plain.qkv.weight.copy_(torch.cat(qkv))
            plain.qkv.bias.copy_(torch.cat(biases))
            plain.o.weight.copy_(attn.W_O.flatten(0, 1).T)
            plain.o.bias.copy_(attn.b_O)
            _take_norm(plain.ln, ours.ln1)


def _take_norm(plain: nn.LayerNorm, ours: Any) -> None:
    plain.weight.copy_(ours.w)
    plain.bias.copy_(ours.b)
