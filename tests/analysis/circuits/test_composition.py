"""Composition: planted circuits, brute force, random weights, and what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch

from interp.analysis.circuits.composition import composition_scores
from interp.models import (
    Attention,
    Conv,
    HookedAttn,
    HookedAttnAttn,
    HookedConvAttn,
    HookedSequenceModel,
    ModelConfig,
)
from tests.analysis import planted
from tests.models import zoo

HEADS = Attention(n_heads=3, d_head=4)


def config(*layers, **options):
    return zoo.config(*layers, **options)


def pair(result, kind, source, target, measure="score"):
    return float(result.sel(measure=measure, kind=kind, source=source, target=target))


# --------------------------------------------------------------------------------------- planted


def test_a_planted_k_composition_is_found_with_the_value_worked_out_by_hand():
    # L0H0 copies `token` into `previous`: the identity on d_vocab channels, norm √V. L1H1's W_QK is
    # gain times the identity from `token` to `previous`. Read as K, the product is gain times the
    # identity: gain √V / (√V gain √V) = 1 / √V. As Q and V it reads `token`: nothing of L0H0's.
    d_vocab, n_ctx = 9, 12
    model = planted.induction_attn_attn(d_vocab=d_vocab, n_ctx=n_ctx, head=1, n_heads=3)
    result = composition_scores(model)
    assert pair(result, "K", "L0H0", "L1H1") == pytest.approx(1 / math.sqrt(d_vocab), abs=1e-12)
    assert pair(result, "Q", "L0H0", "L1H1") == pytest.approx(0, abs=1e-12)
    assert pair(result, "V", "L0H0", "L1H1") == pytest.approx(0, abs=1e-12)
    # The other heads are zero: no composition is defined, and none counts as compared.
    assert np.isfinite(result.sel(measure="score").values).sum() == 3
    assert result.provenance["n_pairs"] == 3
    assert pair(result, "K", "L0H0", "L1H1", "z") > 10
    # That Q and V read nothing at all of it is no accident either.
    assert result.provenance["n_surviving"] == 3
    assert result.provenance["n_surviving_below"] == 2


def planted_q_composition(d_vocab=9):
    """As FIELD.md warns: L1H2 finds its key by a query that L0H1 wrote into `previous`."""
    spaces = planted.Subspaces(d_vocab)
    model = HookedAttnAttn(
        d_vocab=d_vocab, d_model=spaces.d_model, n_heads=3, d_head=d_vocab, n_ctx=8, norm="none",
        positions="none",
    )  # fmt: skip
    identity = torch.eye(d_vocab).double()
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.zero_()
        first, second = model.attn(0), model.attn(1)
        first.W_V[1, spaces.token], first.W_O[1, :, spaces.previous] = identity, 2 * identity
        second.W_Q[2, spaces.previous], second.W_K[2, spaces.token] = 3 * identity, identity
    return model


def test_a_planted_q_composition_is_found_with_the_value_worked_out_by_hand():
    result = composition_scores(planted_q_composition())
    found = result.sel(measure="score")
    assert float(found.sel(kind="Q", source="L0H1", target="L1H2")) == pytest.approx(1 / 3)
    assert float(found.sel(kind="K", source="L0H1", target="L1H2")) == pytest.approx(0, abs=1e-12)
    # Both maps are 9 equal singular values; Q and K are the two pairs that are compared.
    assert result.provenance["n_pairs"] == 2
    assert pair(result, "Q", "L0H1", "L1H2", "z") > 10
    assert pair(result, "Q", "L0H1", "L1H2", "p_corrected") == pytest.approx(2 / 201)
    assert result.provenance["smallest_p"] == pytest.approx(2 / 201)


def test_what_a_head_keeps_out_of_is_remarkable_too():
    # The Q-composition above, as K: L1H2's keys read nothing at all of what L0H1 wrote.
    result = composition_scores(planted_q_composition())
    assert pair(result, "K", "L0H1", "L1H2", "z") < -5
    assert pair(result, "K", "L0H1", "L1H2", "p_corrected") < 0.05
    assert result.provenance["n_surviving"] == 2
    assert result.provenance["n_surviving_below"] == 1


def test_a_planted_convolution_composes_through_its_lag_alone():
    # W_conv[1] copies `token` into `previous`, which the head's keys read: 1 / √V, as above.
    # W_conv[0] is zero, and not the residual path's identity: nothing is defined for it.
    model = planted.induction_conv_attn(d_vocab=9, n_ctx=12, head=1, n_heads=2)
    found = composition_scores(model).sel(measure="score")
    assert found.labels["source"] == ("L0 lag 0", "L0 lag 1")
    assert float(found.sel(kind="K", source="L0 lag 1", target="L1H1")) == pytest.approx(1 / 3)
    assert float(found.sel(kind="Q", source="L0 lag 1", target="L1H1")) == pytest.approx(0)
    assert np.isnan(found.sel(source="L0 lag 0").values).all()


def test_a_tap_that_alone_reads_a_head_is_found_at_its_lag_and_nowhere_else():
    """L1H0's keys read what L0H1 wrote two tokens back, and nothing of the token itself."""
    layers = Attention(n_heads=2, d_head=4), Attention(n_heads=2, d_head=4, taps_k=3)
    model = zoo.from_config(config(*layers, norm="none", d_model=48))
    with torch.no_grad():
        first, second = model.attn(0), model.attn(1)
        first.W_O.zero_(), second.W_K.zero_(), second.taps_K.zero_()
        for channel in range(4):
            first.W_O[1, channel, channel] = 1
            second.W_K[0, channel, channel] = 1
        second.taps_K[2] = 1
    result = composition_scores(model)
    keys = result.sel(measure="score", kind="K")
    assert keys.labels["target"][:3] == ("L1H0", "L1H0 lag 1", "L1H0 lag 2")
    assert float(keys.sel(source="L0H1", target="L1H0 lag 2")) > 0.4
    assert np.isfinite(keys.values).sum() == 1
    assert float(result.sel(measure="z", kind="K", source="L0H1", target="L1H0 lag 2")) > 3
    with torch.no_grad():
        second.taps_K[0], second.taps_K[2] = 1, 0
    keys = composition_scores(model).sel(measure="score", kind="K", source="L0H1")
    assert keys.best() == "L1H0"
    assert np.isfinite(keys.values).sum() == 1


def test_taps_of_random_weights_compose_by_chance():
    z = []
    for seed in range(20):
        layers = Attention(4, 6, taps_v=2), Attention(4, 6, taps_q=2, taps_k=3, taps_v=2)
        sizes = {"d_vocab": 30, "d_model": 24, "n_ctx": 8, "layers": layers}
        model = HookedSequenceModel(ModelConfig(**sizes), seed=seed)
        with torch.no_grad():
            for layer in model.blocks:
                for name, taps in layer.attn.named_parameters():
                    if name.startswith("taps"):
                        taps.normal_(generator=torch.Generator().manual_seed(seed))
        z.append(composition_scores(model, n_rotations=100).sel(measure="z").values)
    z = np.stack(z)
    assert np.isfinite(z).sum() == 20 * 4 * 4 * (2 + 3 + 2)
    assert abs(np.nanmean(z)) < 0.3
    assert 0.7 < np.nanstd(z) < 1.3


# ------------------------------------------------------------------------------------ brute force


@torch.no_grad()
def brute_force(model, kind, source, target, distance=0, lag=0):
    """In float64 and full width, from the definition; `source` and `target` are layer and index."""
    d_model = model.config.d_model
    centre = torch.eye(d_model).double()
    if model.config.norm == "layer":
        centre = centre - 1 / d_model

    def reading(layer):
        gain = getattr(model.blocks[layer].ln1, "w", None)
        return centre if gain is None else centre @ torch.diag(gain)

    (a, i), (b, j) = source, target

    def by_lag(layer, head, channel):
        """A head's map of each lag, one below the other's."""
        attn = model.attn(layer)
        weight, taps = getattr(attn, f"W_{channel}")[head], getattr(attn, f"taps_{channel}")
        rows = [torch.ones(len(weight.T)).double()] if taps is None else taps[:, head]
        if channel == "K" and attn.smear is not None:
            rows = [attn.smear[head].sigmoid(), 1 - attn.smear[head].sigmoid()]
        return [reading(layer) @ weight * row for row in rows]

    (a, i), (b, j) = source, target
    if a in model.conv_layers:
        written = reading(a) @ model.conv(a).W[i] @ centre
    else:
        written = torch.cat(by_lag(a, i, "V")) @ model.attn(a).W_O[i] @ centre
    attn = model.attn(b)
    q, k, v = (by_lag(b, j, channel) for channel in "QKV")
    if attn.rotary is not None:
        q = [one[:, None, None].expand(-1, distance + 1, -1, -1) for one in q]
        q = [attn.rotary(one)[:, distance, 0] for one in q]
    if lag >= len({"Q": q, "K": k, "V": v}[kind]):
        return math.nan
    read = {
        "Q": lambda: q[lag] @ torch.cat(k).T,
        "K": lambda: k[lag] @ torch.cat(q).T,
        "V": lambda: v[lag] @ attn.W_O[j] @ centre,
    }[kind]()
    return float((written @ read).norm() / written.norm() / read.norm())


@pytest.mark.parametrize(
    "kind",
    ["deep", "rms", "no norm", "no output map", "wide heads", "narrow heads", "shortformer, conv",
     "depthwise", "depthwise, rms, lag bias", "tied", "one head", "smeared after conv",
     "taps after taps", "taps, rotary"],
)  # fmt: skip
def test_scores_are_those_of_the_full_matrices(kind):
    made = {
        **zoo.CONFIGS,
        "wide heads": config(Attention(n_heads=2, d_head=16), Attention(n_heads=2, d_head=16)),
        "rms": config(Conv(), HEADS, HEADS, norm="rms"),
        "one head": config(Attention(n_heads=1, d_head=12), Attention(n_heads=1, d_head=5)),
        "smeared after conv": config(Conv(), zoo.SMEARED),
        "taps after taps": config(zoo.TAPPED, zoo.TAPPED, zoo.SMEARED, norm="rms"),
        "taps, rotary": config(Conv(), HEADS, zoo.TAPPED, positions="rotary", rotary_base=100.0),
    }
    model = zoo.from_config(made[kind])
    distance = 3 * (made[kind].positions == "rotary")
    result = composition_scores(model, distance=distance).sel(measure="score")
    compared = 0
    for name, source, target in itertools.product("QKV", *list(result.labels.values())[1:]):
        layers, (head, _, lag) = (int(source[1]), int(target[1])), target.partition(" lag ")
        got = float(result.sel(kind=name, source=source, target=target))
        expected = math.nan
        if layers[0] < layers[1]:
            ends = (layers[0], int(source[-1])), (layers[1], int(head[-1]))
            expected = brute_force(model, name, *ends, distance, int(lag or 0))
        assert got == pytest.approx(expected, abs=1e-9, nan_ok=True)
        compared += math.isfinite(expected)
    assert compared == result.provenance["n_pairs"] > 0


@pytest.mark.parametrize("distance", [0, 3])
def test_with_rotary_positions_a_circuit_belongs_to_a_distance(distance):
    model = zoo.from_config(config(HEADS, HEADS, positions="rotary", rotary_base=100.0))
    result = composition_scores(model, distance=distance)
    for kind in "QKV":
        expected = brute_force(model, kind, (0, 2), (1, 1), distance)
        assert pair(result, kind, "L0H2", "L1H1") == pytest.approx(expected, abs=1e-9)
    assert result.provenance["distance"] == distance
    other = composition_scores(model, distance=5 - distance)
    assert pair(other, "Q", "L0H2", "L1H1") != pytest.approx(pair(result, "Q", "L0H2", "L1H1"))
    assert pair(other, "V", "L0H2", "L1H1") == pair(result, "V", "L0H2", "L1H1")


def test_where_layers_replace_the_stream_only_neighbours_compose():
    model = zoo.from_config(config(HEADS, HEADS, HEADS, norm="none", residual=False))
    found = composition_scores(model).sel(measure="score", kind="K")
    assert np.isfinite(found.sel(source="L0H0", target=["L1H0", "L1H2"]).values).all()
    assert np.isnan(found.sel(source="L0H0", target=["L2H0", "L2H2"]).values).all()


# ----------------------------------------------------------------------------------- no disturbing


def test_a_change_of_basis_inside_the_heads_and_their_biases_change_nothing():
    model = zoo.build("attn-attn: as it comes")
    before = composition_scores(model).values
    with torch.no_grad():
        for layer in (0, 1):
            attn = model.attn(layer)
            turn = torch.randn(4, 4, generator=torch.Generator().manual_seed(layer)).double()
            attn.W_Q.copy_(attn.W_Q @ turn)
            attn.W_K.copy_(attn.W_K @ turn.inverse().T)
            attn.W_V.copy_(attn.W_V @ turn)
            attn.W_O.copy_(turn.inverse() @ attn.W_O)
            for name in "QKVO":
                getattr(attn, f"b_{name}").normal_()
    np.testing.assert_allclose(composition_scores(model).values, before, atol=1e-8)


def test_the_excess_is_over_chance_and_z_is_in_spreads():
    model = HookedAttnAttn(d_vocab=20, d_model=32, n_heads=4, n_ctx=8)
    result = composition_scores(model)
    score, excess, spread, z = (
        result.sel(measure=measure) for measure in ("score", "excess", "spread", "z")
    )
    np.testing.assert_allclose(excess.values, score.values - score.chance, atol=1e-12)
    np.testing.assert_allclose(z.values, excess.values / spread.values)
    assert (spread.values > 0).all()
    # The square of the score has mean 1 / (d_model - 1) in a stream without its mean.
    np.testing.assert_allclose(score.chance**2 + spread.values**2, 1 / 31, rtol=0.1)
    for measure in (excess, z):
        assert (measure.chance == 0).all()
    for measure in ("spread", "p_corrected"):
        assert np.isnan(result.sel(measure=measure).chance).all()


def test_sixteen_bits_are_computed_in_float32():
    model = HookedAttnAttn(d_vocab=20, d_model=32, n_heads=4, n_ctx=8).bfloat16()
    wide = HookedAttnAttn(d_vocab=20, d_model=32, n_heads=4, n_ctx=8).bfloat16().float()
    np.testing.assert_array_equal(composition_scores(model).values, composition_scores(wide).values)
    assert model.W_E.dtype == torch.bfloat16


def test_the_model_and_the_random_state_are_left_alone():
    model = HookedAttnAttn(d_vocab=20, d_model=32, n_heads=4, n_ctx=8).train()
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first, again = composition_scores(model, seed=3), composition_scores(model, seed=3)
    np.testing.assert_array_equal(first.values, again.values)
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------- random weights


@pytest.mark.parametrize("kind", ["attn-attn", "conv-attn"])
def test_random_weights_compose_by_chance(kind):
    preset = {"attn-attn": HookedAttnAttn, "conv-attn": HookedConvAttn}[kind]
    z, surviving = [], []
    for seed in range(40):
        model = preset(d_vocab=30, d_model=24, n_heads=4, n_ctx=8, seed=seed)
        result = composition_scores(model, n_rotations=100)
        z.append(result.sel(measure="z").values)
        surviving.append(result.provenance["n_surviving"])
    z = np.stack(z)
    assert abs(np.nanmean(z)) < 0.3
    assert 0.7 < np.nanstd(z) < 1.3
    assert np.nanquantile(np.abs(z), 0.99) < 3.5
    # One in twenty models may have a survivor: of 40 more than 6 in one case of 300.
    assert np.count_nonzero(surviving) <= 6


# ------------------------------------------------------------------------------------------ errors


def test_what_does_not_compose_is_refused():
    with pytest.raises(ValueError, match="no head that reads what another head"):
        composition_scores(HookedAttn(d_vocab=20, d_model=32, n_heads=4, n_ctx=8))
    after = zoo.from_config(config(HEADS, Conv()))
    with pytest.raises(ValueError, match="nothing composes"):
        composition_scores(after)
    with pytest.raises(ValueError, match="post-norm"):
        composition_scores(zoo.from_config(config(HEADS, HEADS, norm_place="post")))
    with pytest.raises(ValueError, match="without rotary positions"):
        composition_scores(zoo.from_config(config(HEADS, HEADS)), distance=2)
    with pytest.raises(ValueError, match="at least 2"):
        composition_scores(zoo.from_config(config(HEADS, HEADS)), n_rotations=1)


def test_weights_that_are_nan_are_named():
    model = zoo.build("attn-attn: as it comes")
    with torch.no_grad():
        model.attn(1).W_K[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.W_K"):
        composition_scores(model)
