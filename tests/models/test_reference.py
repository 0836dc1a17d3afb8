"""Every model of the zoo against a second implementation, in loops and formulas.

It reads a config and named weights, and shares no code with the library: what the contract tests
cannot see, because both sides of them make the same mistake, shows here.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from interp.models import (
    MLP,
    Attention,
    Conv,
    GatedConv,
    HookedGPT,
    HookedSequenceModel,
    ModelConfig,
)
from tests.models import zoo
from tests.models.zoo import N_CTX

Weights = dict[str, Tensor]

ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "gelu_new": lambda x: x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def normalised(config: ModelConfig, weights: Weights, name: str, x: Tensor) -> Tensor:
    if config.norm == "none":
        return x
    if config.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt()
    return x * weights.get(f"{name}.w", 1.0) + weights.get(f"{name}.b", 0.0)


def convolved(spec: Conv, weights: Weights, name: str, x: Tensor, real: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for b, t in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
        for lag in range(min(spec.lags, t + 1)):
            if real[b, t - lag]:
                weight, token = weights[f"{name}.W_conv"][lag], x[b, t - lag]
                out[b, t] += token * weight if spec.depthwise else token @ weight
                if spec.lag_bias:
                    out[b, t] += weights[f"{name}.b_lags"][lag]
    return out + weights.get(f"{name}.b_conv", 0.0)


def gated(spec: GatedConv, weights: Weights, name: str, x: Tensor, real: Tensor) -> Tensor:
    maps = {
        key: x @ weights[f"{name}.W_{key}"] + weights.get(f"{name}.b_{key}", 0.0) for key in "BCX"
    }
    out = torch.zeros_like(x)
    for b, t in torch.cartesian_prod(*map(torch.arange, x.shape[:2])).tolist():
        for lag in range(min(spec.lags, t + 1)):
            if real[b, t - lag]:
                before = maps["B"][b, t - lag] * maps["X"][b, t - lag]
                out[b, t] += maps["C"][b, t] * weights[f"{name}.W_conv"][lag] * before
    return out @ weights[f"{name}.W_out"] + weights.get(f"{name}.b_conv", 0.0)


def tapped(x: Tensor, taps: Tensor, real: Tensor) -> Tensor:
    """Each row as it is made of those before it, for one head of one sequence."""
    rows = []
    for t in range(len(x)):
        lags = [lag for lag in range(min(len(taps), t + 1)) if real[t - lag]]
        rows.append(sum((taps[lag] * x[t - lag] for lag in lags), torch.zeros_like(x[t])))
    return torch.stack(rows)


def turned(config: ModelConfig, x: Tensor, t: int) -> Tensor:
    """Channels i and i + d/2 are the real and the imaginary part of a number that turns."""
    half = x.shape[-1] // 2
    angles = t * config.rotary_base ** (-torch.arange(half, dtype=x.dtype) / half)
    number = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([number.real, number.imag])


def one_head(
    config: ModelConfig, spec: Attention, maps: Weights, x: Tensor, x_qk: Tensor, real: Tensor
) -> Tensor:
    """What a head's queries [pos d_head] bring together, for one sequence."""
    q, k = x_qk @ maps["W_Q"] + maps["b_Q"], x_qk @ maps["W_K"] + maps["b_K"]
    v = x @ maps["W_V"] + maps["b_V"]
    if spec.key_offset:  # the later half of each half of the channels, from the token before
        late = [i for i in range(spec.d_head) if i % (spec.d_head // 2) >= spec.d_head // 4]
        moved = k.clone()
        for t in range(len(k)):
            previous = k[t - 1] if t > 0 and real[t - 1] else torch.zeros_like(k[t])
            moved[t] = k[t] if real[t] else torch.zeros_like(k[t])
            moved[t, late] = previous[late]
        k = moved
    q, k, v = (
        tapped(z, maps[f"taps_{channel}"], real) if n > 1 else z
        for z, channel, n in (
            (q, "Q", spec.taps_q),
            (k, "K", spec.taps_k),
            (v, "V", spec.taps_v),
        )
    )
    if spec.smear:
        share = 1 / (1 + torch.exp(-maps["smear"]))
        k = torch.stack(
            [
                share * k[t] + (1 - share) * k[t - 1] if t > 0 and real[t - 1] else k[t]
                for t in range(len(k))
            ]
        )
    if config.positions == "rotary" and spec.positions:
        q, k = (torch.stack([turned(config, row, t) for t, row in enumerate(z)]) for z in (q, k))
    out = torch.zeros_like(v)
    for t in range(len(q)):
        visible = [s for s in range(len(k)) if real[s] and (s <= t or not spec.causal)]
        scores = {s: math.exp(float(q[t] @ k[s]) / spec.d_head**0.5) for s in visible}
        for s, score in scores.items():
            out[t] += score / sum(scores.values()) * v[s]
    return out


def attended(
    config: ModelConfig,
    spec: Attention,
    weights: Weights,
    name: str,
    x: Tensor,
    x_qk: Tensor,
    real: Tensor,
) -> Tensor:
    nothing = torch.zeros(spec.n_heads, spec.d_head, dtype=x.dtype)
    names = ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V", "smear")
    maps = {key: weights.get(f"{name}.{key}", nothing) for key in names}
    taps = {f"taps_{c}": weights.get(f"{name}.taps_{c}") for c in "QKV"}
    rows = []
    for b in range(len(x)):
        heads = [
            one_head(config, spec, of_head(maps, taps, h), x[b], x_qk[b], real[b])
            for h in range(spec.n_heads)
        ]
        if spec.output:
            heads = [z @ weights[f"{name}.W_O"][h] for h, z in enumerate(heads)]
            row = sum(heads, torch.zeros_like(x[b]))
        else:
            row = torch.cat(heads, dim=-1)
        if spec.taps_o > 1:
            row = tapped(row, weights[f"{name}.taps_O"], real[b])
        rows.append(row + weights.get(f"{name}.b_O", 0.0))
    return torch.stack(rows)


def thought(spec: MLP, weights: Weights, name: str, x: Tensor, real: Tensor) -> Tensor:
    pre = x @ weights[f"{name}.W_in"] + weights[f"{name}.b_in"]
    out = ACTIVATIONS[spec.activation](pre) @ weights[f"{name}.W_out"]
    if spec.taps > 1:
        rows = zip(out, real, strict=True)
        out = torch.stack(
            [tapped(row, weights[f"{name}.taps_out"], visible) for row, visible in rows]
        )
    return out + weights[f"{name}.b_out"]


def of_head(maps: Weights, taps: dict[str, Tensor | None], head: int) -> Weights:
    own = {key: lags[:, head] for key, lags in taps.items() if lags is not None}
    return {**{key: m[head] for key, m in maps.items()}, **own}


def positions_of(config: ModelConfig, weights: Weights) -> Tensor | float:
    if config.positions != "sinusoidal":
        return weights.get("pos_embed.W_pos", torch.zeros(config.n_ctx, config.d_model).double())
    table = torch.zeros(config.n_ctx, config.d_model, dtype=torch.float64)
    for t in range(config.n_ctx):
        for i in range(0, config.d_model, 2):
            angle = t / 10_000 ** (i / config.d_model)
            table[t, i], table[t, i + 1] = math.sin(angle), math.cos(angle)
    return table


def reference(config: ModelConfig, weights: Weights, tokens: Tensor, real: Tensor) -> Tensor:
    """The logits."""
    x = weights["embed.W_E"][tokens]
    positions = positions_of(config, weights)
    at_heads = positions if config.positions == "shortformer" else 0.0
    x = x if config.positions == "shortformer" else x + positions

    def sublayer(norm: str, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if config.norm_place == "post":
            return normalised(config, weights, norm, x + compute(x))
        out = compute(normalised(config, weights, norm, x))
        return x + out if config.residual else out

    for index, spec in enumerate(config.layers):
        block = f"blocks.{index}"

        def mix(read: Tensor, spec: Conv | Attention = spec, block: str = block) -> Tensor:
            if isinstance(spec, Conv):
                return convolved(spec, weights, f"{block}.conv", read, real)
            if isinstance(spec, GatedConv):
                return gated(spec, weights, f"{block}.conv", read, real)
            x_qk = read + at_heads if spec.positions else read
            return attended(config, spec, weights, f"{block}.attn", read, x_qk, real)

        x = sublayer(f"{block}.ln1", mix, x)
        if spec.mlp is not None:

            def think(read: Tensor, mlp: MLP = spec.mlp, name: str = f"{block}.mlp") -> Tensor:
                return thought(mlp, weights, name, read, real)

            x = sublayer(f"{block}.ln2", think, x)
    if config.norm_place == "pre":
        x = normalised(config, weights, "ln_final", x)
    unembed = weights["embed.W_E"].T if config.tied else weights["unembed.W_U"]
    return x @ unembed + weights.get("unembed.b_U", 0.0)


def test_the_library_computes_what_the_formulas_say(model: HookedSequenceModel) -> None:
    tokens, weights = zoo.tokens(2), {k: w.detach() for k, w in model.named_parameters()}
    holes = torch.tensor([[True] * N_CTX, [False, True, True, False, True, True, True, False]])
    for real in (torch.ones_like(holes), holes):
        expected = reference(model.config, weights, tokens, real)
        assert_close(model(tokens, attention_mask=real), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_gpt_block_is_pytorchs_own(place: str) -> None:
    model = HookedGPT(
        d_vocab=zoo.D_VOCAB, d_model=12, n_layers=1, n_heads=3, d_mlp=16, n_ctx=N_CTX,
        norm_place=place,
    )  # fmt: skip
    zoo.randomise(model.double()).eval()
    attn, mlp, weights = model.attn(0), model.blocks[0].mlp, model.state_dict()
    theirs = nn.TransformerEncoderLayer(
        12, 3, 16, 0.0, "gelu", batch_first=True, norm_first=place == "pre", dtype=torch.float64
    ).eval()
    into = {
        "self_attn.in_proj_weight": torch.cat(
            [w.transpose(1, 2).flatten(0, 1) for w in (attn.W_Q, attn.W_K, attn.W_V)]
        ),
        "self_attn.in_proj_bias": torch.cat([b.flatten() for b in (attn.b_Q, attn.b_K, attn.b_V)]),
        "self_attn.out_proj.weight": attn.W_O.flatten(0, 1).T,
        "self_attn.out_proj.bias": attn.b_O,
        "linear1.weight": mlp.W_in.T,
        "linear1.bias": mlp.b_in,
        "linear2.weight": mlp.W_out.T,
        "linear2.bias": mlp.b_out,
    }
    for n in ("1", "2"):
        into[f"norm{n}.weight"] = weights[f"blocks.0.ln{n}.w"]
        into[f"norm{n}.bias"] = weights[f"blocks.0.ln{n}.b"]
    theirs.load_state_dict(into)
    _, cache = model.run_with_cache(zoo.tokens())
    future = torch.ones(N_CTX, N_CTX, dtype=torch.bool).triu(1)
    expected = theirs(cache["resid_pre", 0], src_mask=future, is_causal=True)
    assert_close(cache["resid_post", 0], expected, rtol=0, atol=1e-11)
