"""Every kind of model the config can say, small: what the contract tests run over.

`CONFIGS` has one entry per option and per meeting of options that could disturb each other;
`PRESETS` has each preset as it comes and with each option it takes. A new layer or option
belongs here first: the whole contract then holds it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from interp.models import (
    MLP,
    Attention,
    Conv,
    GatedConv,
    HookedAttn,
    HookedAttnAttn,
    HookedConvAttn,
    HookedGPT,
    HookedSequenceModel,
    HookedSmearedAttn,
    ModelConfig,
)
from interp.models.layers import LayerSpec

D_VOCAB, D_MODEL, N_CTX = 23, 12, 8
HEADS = Attention(n_heads=3, d_head=4)
NOPE = Attention(n_heads=3, d_head=4, positions=False)
SMEARED = Attention(n_heads=3, d_head=4, smear=True)
TAPPED = Attention(n_heads=3, d_head=4, taps_q=2, taps_k=3, taps_v=2)
OFFSET = Attention(n_heads=2, d_head=8, key_offset=True)
PLAIN = Attention(n_heads=3, d_head=4, output=False)


def config(*layers: LayerSpec, **options: Any) -> ModelConfig:
    """A config of the zoo's sizes."""
    sizes = {"d_vocab": D_VOCAB, "d_model": D_MODEL, "n_ctx": N_CTX}
    return ModelConfig(layers=layers, **(sizes | options))


CONFIGS: dict[str, ModelConfig] = {
    # Layers.
    "conv alone": config(Conv()),
    "one lag": config(Conv(lags=1), HEADS),
    "three lags": config(Conv(lags=3), HEADS),
    "as many lags as tokens": config(Conv(lags=N_CTX), HEADS),
    "lag bias": config(Conv(lags=3, lag_bias=True), HEADS),
    "lag bias alone": config(Conv(lags=2, bias=False, lag_bias=True), HEADS),
    "depthwise": config(Conv(depthwise=True), HEADS),
    "depthwise, rms, lag bias": config(
        Conv(lags=3, depthwise=True, lag_bias=True), HEADS, norm="rms"
    ),
    "conv after attention": config(HEADS, Conv(lags=3)),
    "no biases": config(
        Conv(bias=False), Attention(n_heads=3, d_head=4, bias=False), unembed_bias=False
    ),
    "no biases, rms": config(
        Conv(bias=False), Attention(n_heads=3, d_head=4, bias=False), norm="rms", unembed_bias=False
    ),
    "no biases, no norm": config(
        Conv(bias=False), Attention(n_heads=3, d_head=4, bias=False), norm="none"
    ),
    "no output map": config(Conv(), PLAIN),
    "no output map, no biases": config(Attention(n_heads=3, d_head=4, output=False, bias=False)),
    "narrow heads": config(Attention(n_heads=2, d_head=2), HEADS),
    "wide heads": config(Attention(n_heads=2, d_head=16)),
    "one head": config(Attention(n_heads=1, d_head=12)),
    "one channel per head": config(Attention(n_heads=12, d_head=1, smear=True)),
    "gated conv": config(GatedConv(), HEADS),
    "gated, no biases, rms": config(GatedConv(lags=2, bias=False, mlp=MLP(16)), HEADS, norm="rms"),
    "gated, then conv": config(GatedConv(lags=2), Conv(), HEADS, positions="none"),
    "taps": config(TAPPED),
    "taps, conv, rotary": config(Conv(lags=3), TAPPED, positions="rotary"),
    "taps, shortformer": config(TAPPED, TAPPED, positions="shortformer"),
    "taps, post": config(Conv(), TAPPED, norm_place="post"),
    "output taps": config(Attention(n_heads=3, d_head=4, taps_o=3), HEADS),
    "output taps, MLP's too": config(
        Attention(n_heads=3, d_head=4, taps_v=2, taps_o=2, mlp=MLP(16, taps=3)),
        Attention(n_heads=2, d_head=6, taps_k=3, taps_o=3, mlp=MLP(9, "silu", taps=2)),
        positions="rotary",
        norm="rms",
    ),
    "output taps, post": config(
        Conv(mlp=MLP(8, taps=3)), Attention(n_heads=3, d_head=4, taps_o=2), norm_place="post"
    ),
    "output taps, no output map": config(
        Conv(), Attention(n_heads=3, d_head=4, output=False, taps_o=3)
    ),
    "output taps, no residual": config(
        Attention(n_heads=3, d_head=4, taps_o=N_CTX), Conv(mlp=MLP(8, taps=2)), residual=False
    ),
    "key offset": config(OFFSET, HEADS),
    "key offset, rotary": config(Conv(), OFFSET, positions="rotary", rotary_base=100.0),
    "not causal": config(Conv(), Attention(n_heads=3, d_head=4, causal=False)),
    # Positions.
    "rotary": config(Conv(), HEADS, positions="rotary", rotary_base=100.0),
    "rotary, smeared": config(SMEARED, positions="rotary"),
    "shortformer": config(HEADS, HEADS, positions="shortformer"),
    "shortformer, then none": config(HEADS, NOPE, positions="shortformer"),
    "rotary, then none": config(HEADS, NOPE, positions="rotary"),
    "shortformer, conv": config(Conv(), HEADS, positions="shortformer"),
    "shortformer, no biases": config(
        Attention(n_heads=3, d_head=4, bias=False), positions="shortformer", norm="rms"
    ),
    "shortformer, post": config(Conv(), HEADS, positions="shortformer", norm_place="post"),
    "shortformer, odd width": config(HEADS, positions="shortformer", d_model=11),
    "sinusoidal": config(Conv(), HEADS, positions="sinusoidal"),
    "no positions": config(Conv(), HEADS, positions="none"),
    "smeared, no positions": config(SMEARED, positions="none"),
    # The stream and its norms.
    "rms": config(Conv(), HEADS, norm="rms"),
    "no norm": config(Conv(), HEADS, norm="none"),
    "no residual": config(Conv(), HEADS, residual=False),
    "no residual, rms, MLP": config(
        Conv(mlp=MLP(16)), Attention(n_heads=3, d_head=4, mlp=MLP(16)), norm="rms", residual=False
    ),
    "course": config(
        Conv(),
        Attention(n_heads=1, d_head=D_MODEL, output=False, bias=False),
        positions="none",
        norm="none",
        residual=False,
    ),
    "post": config(
        Conv(mlp=MLP(16)), Attention(n_heads=3, d_head=4, mlp=MLP(16)), norm_place="post"
    ),
    "post, rms": config(Conv(), SMEARED, norm="rms", norm_place="post"),
    # MLPs and the ends.
    "relu": config(Attention(n_heads=3, d_head=4, mlp=MLP(16, "relu"))),
    "gelu_new": config(Attention(n_heads=3, d_head=4, mlp=MLP(16, "gelu_new"))),
    "silu, rms": config(Attention(n_heads=3, d_head=4, mlp=MLP(16, "silu")), norm="rms"),
    "MLP after one layer only": config(Conv(mlp=MLP(16)), HEADS),
    "tied": config(Conv(), HEADS, tied=True),
    "tied, no unembedding bias": config(Conv(), HEADS, tied=True, unembed_bias=False),
    "tied, rms, no unembedding bias": config(HEADS, tied=True, unembed_bias=False, norm="rms"),
    "dropout": config(Conv(mlp=MLP(16)), SMEARED, dropout=0.3),
    "deep": config(
        Conv(mlp=MLP(16)),
        Attention(n_heads=3, d_head=4, smear=True, mlp=MLP(20, "silu")),
        Conv(lags=3, depthwise=True),
        Attention(n_heads=2, d_head=4),
        Attention(n_heads=2, d_head=6, mlp=MLP(16, "relu")),
    ),
}

Maker = Callable[..., HookedSequenceModel]

_SIZES: dict[str, Any] = {"d_vocab": D_VOCAB, "d_model": D_MODEL, "n_heads": 3, "n_ctx": N_CTX}
_PRESETS: dict[str, tuple[Maker, dict[str, Any]]] = {
    "conv-attn": (HookedConvAttn, _SIZES),
    "attn-attn": (HookedAttnAttn, _SIZES),
    "attn": (HookedAttn, _SIZES),
    "smeared-attn": (HookedSmearedAttn, _SIZES),
    "gpt": (HookedGPT, {**_SIZES, "n_layers": 2}),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "shortformer": {"positions": "shortformer"},
    "rotary, rms": {"positions": "rotary", "norm": "rms", "rotary_base": 500.0},
    "sinusoidal, no norm": {"positions": "sinusoidal", "norm": "none"},
    "no positions, no residual": {"positions": "none", "residual": False},
    "post, large eps": {"norm_place": "post", "norm_eps": 0.1},
    "tied, no biases": {"tied": True, "unembed_bias": False, "bias": False},
    "wide heads, dropout": {"d_head": 6, "dropout": 0.2, "seed": 5},
}
_OWN_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv-attn, one lag": ("conv-attn", {"lags": 1}),
    "conv-attn, three lags, depthwise": ("conv-attn", {"lags": 3, "depthwise": True}),
    "attn-attn, second layer without positions": (
        "attn-attn",
        {"positions": "shortformer", "nope_layers": [1]},
    ),
    "gpt, four layers, narrow MLP": ("gpt", {"n_layers": 4, "d_mlp": 5}),
}


def _recipes() -> dict[str, tuple[Maker, dict[str, Any]]]:
    recipes = {
        f"{name}: {label}": (maker, sizes | options)
        for name, (maker, sizes) in _PRESETS.items()
        for label, options in _OPTIONS.items()
    }
    own = {
        label: (_PRESETS[name][0], _PRESETS[name][1] | options)
        for label, (name, options) in _OWN_OPTIONS.items()
    }
    return recipes | own


PRESETS = _recipes()
NAMES = (*CONFIGS, *PRESETS)


def build(name: str, dtype: torch.dtype = torch.float64) -> HookedSequenceModel:
    """A model of the zoo in eval mode, with random gains, offsets, biases and α."""
    if name in CONFIGS:
        return from_config(CONFIGS[name], dtype)
    maker, arguments = PRESETS[name]
    return randomise(maker(**arguments).to(dtype).eval())


def from_config(config: ModelConfig, dtype: torch.dtype = torch.float64) -> HookedSequenceModel:
    """The config's model, made as `build` makes the zoo's."""
    return randomise(HookedSequenceModel(config).to(dtype).eval())


@torch.no_grad()
def randomise(model: HookedSequenceModel, seed: int = 1) -> HookedSequenceModel:
    """Random gains, offsets, biases and α: at 0 and 1 they would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if not last.startswith("W_"):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * 0.5 + (last == "w"))
    return model


def tokens(batch: int = 3, pos: int = N_CTX, seed: int = 2, d_vocab: int = D_VOCAB) -> Tensor:
    """Random tokens, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(d_vocab, (batch, pos), generator=generator)


def right_padding(*lengths: int, pos: int = N_CTX) -> Tensor:
    """A key mask whose rows start with that many real tokens."""
    return torch.arange(pos) < torch.tensor(lengths)[:, None]


def listening(model: HookedSequenceModel) -> dict[str, Any]:
    """Arguments for `run_with_hooks`: every hook point has a listener that changes nothing."""
    return {"fwd_hooks": [(lambda name: True, lambda activation, hook: activation)]}


def files(directory: Path) -> set[str]:
    """The names of what lies in a directory."""
    return {path.name for path in directory.iterdir()}


def _layers(config_kind: str, width: int) -> st.SearchStrategy[Conv | Attention]:
    activations = st.sampled_from(["relu", "gelu", "gelu_new", "silu"])
    mlps = st.none() | st.builds(MLP, st.integers(1, 9), activations, st.integers(1, 3))
    conv = st.builds(Conv, st.integers(1, 4), st.booleans(), st.booleans(), st.booleans(), mlps)
    even = config_kind == "rotary"
    heads = st.builds(
        Attention,
        st.integers(1, 3),
        st.integers(1, 4).map(lambda half: 2 * half) if even else st.integers(1, 8),
        smear=st.booleans(),
        causal=st.just(True),
        bias=st.booleans(),
        taps_o=st.integers(1, 3),
        mlp=mlps,
    )
    square = st.builds(
        Attention, st.just(1), st.just(width), st.booleans(), output=st.just(False), mlp=mlps
    )
    if even and width % 2:
        return conv | heads
    return conv | heads | square


# The tests' type checks draw at random which layer of a tuple they look at.
beartype_may_draw = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any causal config that the library accepts, of small sizes."""
    positions = draw(st.sampled_from(["learned", "shortformer", "rotary", "sinusoidal", "none"]))
    place = draw(st.sampled_from(["pre", "post"]))
    norm = draw(st.sampled_from(["layer", "rms", "none"] if place == "pre" else ["layer", "rms"]))
    width = draw(st.integers(2, 9)) * (2 if positions == "sinusoidal" else 1)
    layers = draw(st.lists(_layers(positions, width), min_size=1, max_size=4))
    if positions in ("rotary", "shortformer"):
        layers.append(Attention(2, 2, smear=draw(st.booleans()), positions=draw(st.booleans())))
    return ModelConfig(
        d_vocab=draw(st.integers(2, 30)),
        d_model=width,
        n_ctx=draw(st.integers(4, 9)),
        layers=tuple(layers),
        positions=positions,
        norm=norm,
        norm_place=place,
        norm_eps=draw(st.sampled_from([1e-6, 1e-5, 0.1])),
        residual=place == "post" or draw(st.booleans()),
        unembed_bias=draw(st.booleans()),
        tied=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.25])),
        rotary_base=draw(st.sampled_from([50.0, 10_000.0])),
    )
