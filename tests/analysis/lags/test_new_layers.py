"""Kinds of layer that no analysis knows: circuits and lags are read from their description alone.

The first layer is a depthwise convolution between two gates that the token sets, the second an
attention layer with taps on queries, keys and values: a scalar per head, lag and channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import interp
from interp.analysis import lag_circuits, lag_pair_shares, reads, without_lag_pair
from interp.analysis.circuits.head_maps import route
from interp.models import Attention, HookedSequenceModel, ModelConfig
from interp.models.description import ALL, Place, Term
from interp.models.hooks import HookPoint
from interp.models.layers import MultiHeadAttention
from interp.models.layers.conv import shift
from interp.models.layers.layer import KINDS, LayerSpec, Mixer
from interp.models.linear import Freezing, FrozenNorm, LinearChannel, LinearLayer, wide
from tests.models import zoo

WIDTH, HEADS, D_HEAD, VOCAB, N_POS = 8, 2, 4, 40, 10
LAGS, TAPS = 3, 2


@dataclass(frozen=True)
class Gated(LayerSpec):
    kind: ClassVar[str] = "gated convolution of a test of lags"
    mlp: None = None

    def build(self, config: ModelConfig) -> "GatedConv":
        return GatedConv(config.d_model)

    def multiply_adds(self, d_model: int) -> int:
        return 0


class GatedConv(Mixer):
    """y_t = C_t ⊙ Σ_j w_j ⊙ B_{t-j} ⊙ u_{t-j}, with B, C and u linear in the token."""

    slot: ClassVar[str] = "gate"

    def __init__(self, d_model: int):
        super().__init__()
        for name in "BCX":
            setattr(self, f"W_{name}", nn.Parameter(torch.empty(d_model, d_model)))
        self.b_X = nn.Parameter(torch.zeros(d_model))
        self.W_conv = nn.Parameter(torch.empty(LAGS, d_model))
        self.hook_lags, self.hook_gates = HookPoint(), HookPoint()

    def forward(self, x: Tensor, positions=None, key_mask=None) -> Tensor:
        B, C, u = x @ self.W_B, x @ self.W_C, x @ self.W_X + self.b_X
        if key_mask is not None:
            B = B * key_mask[..., None]
        gates = self.hook_gates(torch.stack([C * shift(B, j) for j in range(LAGS)], dim=1))
        moved = torch.stack([shift(u, j) for j in range(LAGS)], dim=1)
        return self.hook_lags(gates * moved * self.W_conv[:, None]).sum(1)

    @property
    def bias(self) -> None:
        return None

    def fold(self, gain: Tensor | None, offset: Tensor | None) -> None:
        raise NotImplementedError

    def terms(self, layer: int) -> Iterator[Term]:
        for lag in range(LAGS):
            place = Place(f"blocks.{layer}.gate.hook_lags", (lag, ALL), position_axis=1)
            yield Term(f"L{layer}.lag{lag}", "lag", place)

    def linear(self, layer: int, norm: FrozenNorm | None, residual: bool, post_norm: bool):
        maps = wide(self.W_X), wide(self.b_X), wide(self.W_conv)
        return lambda: LinearGatedConv(layer, norm, residual, post_norm, *maps)


@dataclass(frozen=True, eq=False)
class Gates(Freezing):
    def of(self, activation: Tensor) -> Tensor:
        return activation.movedim(1, 0)

    def total(self, activation: Tensor) -> Tensor:
        return activation.double().sum((0, 2))[:, None]

    def count(self, activation: Tensor) -> Tensor:
        batch, lags, n_pos, _ = activation.shape
        return batch * (n_pos - torch.arange(lags))[:, None, None]


@dataclass(frozen=True, eq=False)
class LinearGatedConv(LinearLayer):
    layer: int
    norm: FrozenNorm | None
    residual: bool
    post_norm: bool
    W_X: Tensor
    b_X: Tensor
    taps: Tensor
    lags = LAGS
    is_implied = False

    @property
    def factors(self) -> tuple[Freezing, ...]:
        gates = Gates("gates", f"blocks.{self.layer}.gate.hook_gates")
        return (*super().factors, gates)

    def terms(self, x, frozen, move):
        return self._through(x @ self.W_X, frozen, move)

    def biases(self, n_pos, frozen, move):
        u = self.b_X.expand(1, n_pos, -1)
        return {"blocks.0.gate.b_X": torch.stack(list(self._through(u, frozen, move))).sum(0)}

    def _through(self, u, frozen, move):
        for lag, row in enumerate(self.taps):
            yield move(u, lag) * (row * frozen["gates"][lag].to(u))


@dataclass(frozen=True)
class Tapped(Attention):
    kind: ClassVar[str] = "attention with taps of a test of lags"

    def build(self, config: ModelConfig) -> "TappedAttention":
        return TappedAttention(config.d_model, self)


class TappedAttention(MultiHeadAttention):
    """Queries, keys and values each as c_0 ⊙ x_t + c_1 ⊙ x_{t-1}; missing tokens are zero."""

    def __init__(self, d_model: int, spec: Attention):
        super().__init__(d_model, spec)
        for name in "qkv":
            setattr(self, f"taps_{name}", nn.Parameter(torch.empty(TAPS, HEADS, D_HEAD)))
            setattr(self, f"hook_tapped_{name}", HookPoint(pos_dim=-3))

    def tapped(self, x: Tensor, name: str) -> Tensor:
        taps = getattr(self, f"taps_{name}")
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        return getattr(self, f"hook_tapped_{name}")(taps[0] * x + taps[1] * before)

    def _place(self, q, k, key_mask):
        return self.tapped(q, "q"), self.tapped(k, "k")

    def _attend(self, q, k, v, visibility):
        return super()._attend(q, k, self.tapped(v, "v"), visibility)

    def channel(self, layer, head, channel, norm, W_pos) -> LinearChannel:
        plain = vars(super().channel(layer, head, channel, norm, W_pos))
        computed = f"blocks.{layer}.attn.hook_tapped_{channel}"
        taps = wide(getattr(self, f"taps_{channel}"))[:, head]
        return Taps(**{**plain, "computed": computed}, taps=taps)


@dataclass(frozen=True, eq=False, kw_only=True)
class Taps(LinearChannel):
    taps: Tensor

    @property
    def lags(self) -> int:
        return len(self.taps)

    def over_lags(self, x, move):
        return (row * move(x, lag) for lag, row in enumerate(self.taps))


for spec in (Gated, Tapped):  # no other test should meet them
    KINDS.pop(spec.kind)


def build(*, positions: str = "learned", gated: bool = True) -> HookedSequenceModel:
    tapped = Tapped(n_heads=HEADS, d_head=D_HEAD)
    layers = (Gated(), tapped) if gated else (tapped,)
    config = ModelConfig(
        d_vocab=VOCAB, d_model=WIDTH, n_ctx=N_POS, layers=layers, positions=positions
    )
    return zoo.randomise(HookedSequenceModel(config).double())


def text(n: int = 6) -> Tensor:
    return torch.randint(VOCAB, (n, N_POS), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gated", [True, False])
def test_a_heads_lags_and_constants_add_up_to_its_scores_and_outputs(gated):
    model, tokens = build(gated=gated), text(1)
    layer = int(gated)
    found = lag_circuits(model, f"L{layer}H1", tokens)
    assert len(found.keys.maps) == (LAGS if gated else 1) + TAPS - 1 == len(found.queries.maps)
    _, cache = model.run_with_cache(tokens)
    scores = found.scores.values.sum((0, 1))
    expected = cache[f"blocks.{layer}.attn.hook_attn_scores"][0, 1].numpy()
    visible = np.tril(np.ones((N_POS, N_POS), bool))
    np.testing.assert_allclose(scores[visible], expected[visible], atol=1e-10)
    attn = model.attn(layer)
    expected = cache[f"blocks.{layer}.attn.hook_z"][0, :, 1] @ attn.W_O[1]
    np.testing.assert_allclose(found.outputs.values.sum(0), expected.detach(), atol=1e-10)


def test_a_lags_part_is_the_doing_of_the_token_that_far_back():
    """Of frozen gates and scales, by finite changes of the stream at one position."""
    model = build()
    way = route(model, "L1H0", "q")
    _, cache = model.run_with_cache(text())
    frozen, stream = way.frozen(cache.cache_dict), cache[way.source]
    other = stream.clone()
    other[:, 3] += stream[:, 5]
    changed = way.parts(other, frozen) - way.parts(stream, frozen)
    for lag in range(way.lags):
        moved = changed[lag].abs().amax((0, 2)) > 1e-9
        assert moved.nonzero().flatten().tolist() == [3 + lag]


def test_shares_of_lag_pairs_add_up_and_a_pair_taken_out_is_its_part():
    model, tokens = build(), text()
    shares = lag_pair_shares(model, tokens)
    assert shares.values.shape == (HEADS, LAGS + TAPS, LAGS + TAPS)
    np.testing.assert_allclose(shares.values.sum((1, 2)), 1)
    part = lag_circuits(model, "L1H0", tokens[:1]).scores.values[0, 1]
    _, clean = model.run_with_cache(tokens[:1])
    captured = {}
    site = "blocks.1.attn.hook_attn_scores"

    def keep(scores, hook):
        captured[site] = scores

    hooks = [*without_lag_pair(model, "L1H0", (0, 1)), (site, keep)]
    model.run_with_hooks(tokens[:1], fwd_hooks=hooks)
    visible = np.tril(np.ones((N_POS, N_POS), bool))
    change = (clean[site] - captured[site])[0, 0].detach().numpy()
    np.testing.assert_allclose(change[visible], part[visible], atol=1e-10)


def test_maps_at_mean_gates_are_those_spelled_out():
    model, tokens = build(), text()
    read = reads(model, "L1H0", "v", tokens=tokens)
    _, cache = model.run_with_cache(tokens)
    gates = cache["blocks.0.gate.hook_gates"]
    gates = [gates[:, lag, lag:].mean((0, 1)) for lag in range(LAGS)]  # where that token exists
    conv, attn, taps = model.blocks[0].mixer, model.attn(1), model.attn(1).taps_v[:, 0]
    C = torch.eye(WIDTH).double() - 1 / WIDTH
    first, second = model.blocks[0].ln1, model.blocks[1].ln1
    s1, s2 = (cache[f"blocks.{layer}.ln1.hook_scale"].mean() for layer in (0, 1))
    expected = torch.zeros(LAGS + TAPS - 1, WIDTH, D_HEAD).double()
    for lag in range(LAGS):
        through = C @ first.w.diag() @ conv.W_X / s1 @ (conv.W_conv[lag] * gates[lag]).diag()
        through = through + torch.eye(WIDTH) * (lag == 0)
        for tap in range(TAPS):
            expected[lag + tap] += through @ C @ second.w.diag() @ attn.W_V[0] / s2 * taps[tap]
    torch.testing.assert_close(read.maps, expected.detach())


def test_smeared_keys_are_measured_on_queries_and_values_too():
    """Literal smearing by taps of every channel, without a convolution: σ̂ is what was put in."""
    model = build(positions="none", gated=False)
    with torch.no_grad():
        for name in "qkv":
            getattr(model.attn(0), f"taps_{name}").copy_(
                torch.tensor([0.7, 0.3])[:, None, None].expand(-1, HEADS, D_HEAD)
            )
    for tokens in (None, text(32)):
        found = interp.detect_smeared_keys(model, tokens)
        smear = found.sel(measure="smear").values
        np.testing.assert_allclose(smear, 0.7, atol=1e-6)
        np.testing.assert_allclose(found.sel(measure="alignment").values, 1, atol=1e-6)
    table = interp.match_table(model)
    assert table.labels["query_lag"] == table.labels["key_lag"] == ("lag 0", "lag 1")


def test_gates_need_tokens_and_have_no_weights_of_their_own():
    model, tokens = build(), text(32)
    for question in (
        lambda: reads(model, "L1H0"),
        lambda: interp.match_table(model),
        lambda: interp.detect_smeared_keys(model),
        lambda: interp.copying_score(model),
        lambda: interp.qk_circuit(model, "L1H0"),
    ):
        with pytest.raises(ValueError, match="gates depend on the tokens"):
            question()
    for question in (interp.conv_weights, interp.conv_lags, interp.conv_singular_values):
        with pytest.raises(ValueError, match="convolution between gates"):
            question(model)
    with pytest.raises(ValueError, match="through the gates of layer 0"):
        interp.positional_circuit(model, "L1H0", tokens=tokens)
    assert np.isfinite(interp.match_table(model, tokens=tokens).values).all()
    found = interp.detect_smeared_keys(model, tokens)
    np.testing.assert_allclose(
        sum(found.sel(measure=f"lag_share_{lag}").values for lag in range(LAGS + TAPS - 1)), 1
    )
    two = ModelConfig(
        d_vocab=VOCAB, d_model=WIDTH, n_ctx=N_POS,
        layers=(Gated(), Attention(HEADS, D_HEAD), Attention(HEADS, D_HEAD)),
    )  # fmt: skip
    scores = interp.composition_scores(HookedSequenceModel(two), n_rotations=2)
    assert scores.labels["source"] == ("L1H0", "L1H1")
    assert "what L0 writes" in scores.provenance["left_out"]
