"""A kind of layer that no analysis knows is intervened on by its description alone.

The first layer is a gated convolution of this file, whose lags pass an output map before they reach
the stream, the second an attention layer with taps on its keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp.analysis import ablate, path_patch
from interp.analysis.interventions.units import Catalogue
from interp.models import Attention, HookedSequenceModel, ModelConfig
from interp.models.description import ALL, Place, Term
from interp.models.hooks import HookPoint
from interp.models.layers.conv import shift
from interp.models.layers.layer import KINDS, LayerSpec, Mixer
from interp.models.linear import wide
from interp.views import view
from tests.analysis.interventions import by_hand

N_LAGS, N_HEADS, WIDTH, N_POS = 3, 2, 5, 9
LAGS = "blocks.0.gate.hook_lags"
KEYS = "blocks.1.attn.hook_k_lags"
WHOLE = slice(None)


@dataclass(frozen=True)
class Gated(LayerSpec):
    kind: ClassVar[str] = "gated convolution of a test"
    mlp: None = None

    def build(self, config: ModelConfig) -> "GatedConv":
        return GatedConv(config.d_model)

    def multiply_adds(self, d_model: int) -> int:
        return 0


class GatedConv(Mixer):
    """σ(x W_gate) Σ_j (x W_in)_{t-j} w_j W_out + b_gate."""

    slot: ClassVar[str] = "gate"

    def __init__(self, d_model: int):
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(d_model, WIDTH))
        self.W_gate = nn.Parameter(torch.empty(d_model, WIDTH))
        self.W_conv = nn.Parameter(torch.empty(N_LAGS, WIDTH))
        self.W_out = nn.Parameter(torch.empty(WIDTH, d_model))
        self.b_gate = nn.Parameter(torch.zeros(d_model))
        self.hook_lags = HookPoint()

    def forward(self, x: Tensor, positions=None, key_mask=None) -> Tensor:
        gate, inner = (x @ self.W_gate).sigmoid(), x @ self.W_in
        lags = [gate * shift(inner * row, lag) for lag, row in enumerate(self.W_conv)]
        return self.hook_lags(torch.stack(lags, dim=1)).sum(1) @ self.W_out + self.b_gate

    @property
    def bias(self) -> Tensor:
        return self.b_gate

    def fold(self, gain: Tensor | None, offset: Tensor | None) -> None:
        raise NotImplementedError

    def terms(self, layer: int) -> Iterator[Term]:
        hook = f"blocks.{layer}.gate.hook_lags"
        for lag in range(N_LAGS):
            place = Place(hook, (lag, ALL), position_axis=1)
            yield Term(f"L{layer}.lag{lag}", "lag", place, partial(wide, self.W_out))


KINDS.pop(Gated.kind)  # no other test should meet it


@pytest.fixture(scope="module")
def model() -> HookedSequenceModel:
    layers = (Gated(), Attention(N_HEADS, d_head=4, taps_k=2))
    config = ModelConfig(d_vocab=20, d_model=8, n_ctx=N_POS, layers=layers, positions="learned")
    torch.manual_seed(0)
    model = HookedSequenceModel(config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6)
    return model


@pytest.fixture(scope="module")
def tokens(model) -> Tensor:
    return by_hand.tokens_for(model, n_pos=N_POS)


def effects(model, tokens, units, **options) -> np.ndarray:
    result = ablate(model, tokens, units, **{"control": "none", **options})
    return result.sel(measure="effect").values


def test_lags_behind_a_map(model, tokens):
    expected = [
        by_hand.effect(model, tokens, by_hand.put(LAGS, (WHOLE, lag), 0.0)).mean()
        for lag in range(N_LAGS)
    ]
    keys = [
        by_hand.effect(model, tokens, by_hand.put(KEYS, (WHOLE, lag), 0.0)).mean()
        for lag in range(2)
    ]  # of all heads: the layer's own lags
    np.testing.assert_allclose(effects(model, tokens, "lags"), [*expected, *keys], rtol=1e-9)
    both = by_hand.put(LAGS, (WHOLE, [0, 2]), 0.0)
    joined = effects(model, tokens, "L0.lag0+L0.lag2")
    np.testing.assert_allclose(joined, by_hand.effect(model, tokens, both).mean(), rtol=1e-9)
    at = by_hand.put(LAGS, (WHOLE, 1, slice(2, 5)), 0.0)
    place = effects(model, tokens, ["L0.lag1@2:5", f"{LAGS}[1, 2:5]"])
    np.testing.assert_allclose(place, [by_hand.effect(model, tokens, at).mean()] * 2, rtol=1e-9)
    assert np.abs(expected).min() > 1e-3


def test_keys_lag_by_lag(model, tokens):
    labels = [f"L1H{head}.k.lag{lag}" for head in range(N_HEADS) for lag in range(2)]
    expected = [
        by_hand.effect(model, tokens, by_hand.put(KEYS, (WHOLE, lag, WHOLE, head), 0.0)).mean()
        for head in range(N_HEADS)
        for lag in range(2)
    ]
    np.testing.assert_allclose(effects(model, tokens, "L1H*.k.lag*"), expected, rtol=1e-9)
    assert [unit.label for unit in Catalogue.of(view(model), N_POS).units("L1H*.k.lag*")] == labels


@torch.no_grad()
def test_a_path_from_a_mapped_lag_to_a_key_at_a_lag(model, tokens):
    other = tokens.flip(0)
    clean, source = by_hand.activations(model, tokens), by_hand.activations(model, other)
    W_out = model.blocks[0].gate.W_out
    stream = clean["blocks.1.hook_resid_pre"] + (source[LAGS] - clean[LAGS])[:, 1] @ W_out
    received = {}
    model.run_with_hooks(
        tokens,
        fwd_hooks=[
            ("blocks.1.hook_resid_pre", lambda x, hook: stream),
            (KEYS, lambda x, hook: received.update(keys=x)),
        ],
    )
    arrived = by_hand.put(KEYS, (WHOLE, 1, WHOLE, 0), received["keys"])
    expected = by_hand.effect(model, tokens, arrived).mean()
    result = path_patch(model, "L0.lag1", "L1H0.k.lag1", tokens, other, "loss", "noise")
    np.testing.assert_allclose(result.sel(measure="effect").values.item(), expected, rtol=1e-9)
    assert abs(expected) > 1e-4


def test_controls(model, tokens):
    catalogue = Catalogue.of(view(model), N_POS)
    (lag,), (path,) = catalogue.units("L0.lag1"), catalogue.units("L0.lag1->L1H0.k.lag1")
    assert [unit.label for unit in catalogue.like(lag)] == ["L0.lag0", "L0.lag1", "L0.lag2"]
    # Three lags, and for each head its queries, keys, values, pattern and two lags of keys.
    assert len(catalogue.like(path)) == N_LAGS * N_HEADS * 6
    options = {"control": "directions", "n_random": 3}
    result = ablate(model, tokens, ["L0.lag1", "L0.lag1->L1H0.k.lag1"], **options)
    spread = result.sel(measure="random_high").values - result.sel(measure="random_low").values
    assert spread.min() > 1e-6
