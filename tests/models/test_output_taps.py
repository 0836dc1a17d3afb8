"""Taps on what attention and MLPs write, and keys with a fixed offset, held to their formulas."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import interp
from interp.models import MLP, Attention, HookedSequenceModel, ModelConfig
from interp.training.flops import flops_per_token
from interp.training.optimizer import layouts_of
from interp.views import view
from tests.analysis.interventions import by_hand
from tests.models import zoo

BOTH = (
    Attention(n_heads=3, d_head=4, taps_o=3, mlp=MLP(16, taps=2)),
    Attention(n_heads=3, d_head=4, taps_k=2, taps_o=2),
)
LAGS, Z, MLP_LAGS = (
    f"blocks.0.{name}" for name in ("attn.hook_out_lags", "attn.hook_z", "mlp.hook_out_lags")
)
WHOLE = slice(None)


@pytest.fixture
def model() -> HookedSequenceModel:
    return zoo.from_config(zoo.config(*BOTH, positions="rotary"))


def later(x: Tensor, lag: int) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :lag]), x[:, : x.shape[1] - lag]], dim=1)


def effect(model: HookedSequenceModel, tokens: Tensor, unit: str, **options) -> float:
    result = interp.ablate(model, tokens, unit, **{"control": "none", **options})
    return result.sel(measure="effect").values.item()


@pytest.mark.parametrize("mask", [None, zoo.right_padding(8, 5, 3).flip(1)])
def test_they_are_their_formula(model: HookedSequenceModel, mask: Tensor | None):
    _, cache = model.run_with_cache(zoo.tokens(), attention_mask=mask)
    real = torch.ones(3, zoo.N_CTX) if mask is None else mask
    heads = cache["blocks.0.attn.hook_result"].sum(2)
    neurons = cache["blocks.0.mlp.hook_post"] @ model.blocks[0].mlp.W_out
    for before, taps, bias, lags, out in (
        (heads, model.attn(0).taps_O, model.attn(0).b_O, LAGS, "attn_out"),
        (neurons, model.blocks[0].mlp.taps_out, model.blocks[0].mlp.b_out, MLP_LAGS, "mlp_out"),
    ):
        assert not before[~real.bool()].any()  # what a padding position would write is nothing
        terms = [row * later(before, lag) for lag, row in enumerate(taps)]
        assert_close(cache[lags], torch.stack(terms, dim=1), rtol=0, atol=1e-12)
        assert_close(cache[out, 0], sum(terms) + bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("unit", "taps", "lag"),
    [("L0.attn.lag1", "attn", 1), ("L0.attn.lag2", "attn", 2), ("L0.mlp.lag1", "mlp", 1)],
)
def test_taking_a_lag_out_is_zeroing_its_tap(model: HookedSequenceModel, unit, taps, lag):
    tokens = zoo.tokens(batch=4)
    found, clean = effect(model, tokens, unit), model(tokens, return_type="loss")
    with torch.no_grad():
        weight = model.attn(0).taps_O if taps == "attn" else model.blocks[0].mlp.taps_out
        weight[lag] = 0
    expected = (model(tokens, return_type="loss") - clean).item()
    assert found == pytest.approx(expected, abs=1e-12)
    assert abs(expected) > 1e-3


JOINT = {
    "L0H1": [(Z, (WHOLE, WHOLE, 1))],
    "L0H1@2": [(Z, (WHOLE, 2, 1))],
    "L0H1+L0.attn.lag1": [(Z, (WHOLE, WHOLE, 1)), (LAGS, (WHOLE, 1))],
    "L0.attn.lag1+L0H1+L0H2": [(Z, (WHOLE, WHOLE, [1, 2])), (LAGS, (WHOLE, 1))],
    "L0.attn.lag0@3:6+L0H0@1": [(Z, (WHOLE, 1, 0)), (LAGS, (WHOLE, 0, slice(3, 6)))],
    "L0.mlp.lag1+L0H2": [(Z, (WHOLE, WHOLE, 2)), (MLP_LAGS, (WHOLE, 1))],
    f"{LAGS}[1, 2:5]+L0H2": [(Z, (WHOLE, WHOLE, 2)), (LAGS, (WHOLE, 1, slice(2, 5)))],
}


@pytest.mark.parametrize("unit", JOINT)
def test_units_are_what_hooks_do(model: HookedSequenceModel, unit: str):
    """A head reaches later positions through the taps, unless the lag itself is replaced."""
    tokens = zoo.tokens(batch=4)
    hooks = [by_hand.put(name, where, 0.0) for name, where in JOINT[unit]]
    expected = by_hand.effect(model, tokens, *hooks).mean()
    assert effect(model, tokens, unit) == pytest.approx(expected, abs=1e-10)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("unit", JOINT)
def test_controls_turn_the_same_change(model: HookedSequenceModel, unit: str):
    """Turned by the identity, the change of the stream is the unit's own."""
    from interp.analysis.interventions import edits
    from interp.analysis.interventions.units import Catalogue

    tokens = zoo.tokens(batch=4)
    viewed, clean = view(model), by_hand.activations(model, tokens)
    [asked] = Catalogue.of(viewed, zoo.N_CTX).units(unit)
    zero = {name: torch.zeros_like(x) for name, x in clean.items()}
    batch = edits.Batch(viewed, tokens, clean, zero, starts=True)
    made = batch.edits(edits.Change(asked, torch.eye(12, dtype=torch.float64)))
    hooks = [by_hand.put(name, where, 0.0) for name, where in JOINT[unit]]
    with model.hooks(fwd_hooks=edits.edit_hooks([made], len(tokens))):
        turned = model(tokens)
    assert_close(turned, by_hand.logits_under(model, tokens, *hooks), rtol=0, atol=1e-10)


def test_a_path_goes_through_the_taps(model: HookedSequenceModel):
    """What a head writes at one position reaches a later key directly, at the lags of the taps."""
    tokens, other = zoo.tokens(batch=4), zoo.tokens(batch=4, seed=5)
    clean, source = by_hand.activations(model, tokens), by_hand.activations(model, other)
    change = (source[Z] - clean[Z])[:, :, 1] @ model.attn(0).W_O[1]
    stream = clean["blocks.1.hook_resid_pre"] + sum(
        row * later(change, lag) for lag, row in enumerate(model.attn(0).taps_O)
    )
    received = {}
    hooks = [
        ("blocks.1.hook_resid_pre", lambda x, hook: stream),
        ("blocks.1.attn.hook_k", lambda x, hook: received.update(k=x)),
    ]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    arrived = by_hand.put("blocks.1.attn.hook_k", (WHOLE, WHOLE, 0), received["k"])
    expected = by_hand.effect(model, tokens, arrived).mean()
    found = interp.path_patch(model, "L0H1", "L1H0.k", tokens, other, "loss", "noise")
    assert found.sel(measure="effect").values.item() == pytest.approx(expected, abs=1e-10)
    assert abs(expected) > 1e-4


def test_parts_paths_and_held_patterns_add_up(model: HookedSequenceModel):
    tokens = zoo.tokens()
    parts = interp.logit_attribution(model, tokens, correct=3)
    np.testing.assert_allclose(
        parts.values.sum(0), model(tokens)[..., 3].mean(0).detach(), rtol=0, atol=1e-10
    )
    assert "L0.attn.lag1" not in parts.labels[parts.axes[0]]  # a head is the sum over its lags
    paths = interp.path_attribution(model, tokens, "L0H1", correct=3)
    heads = parts.sel(**{parts.axes[0]: "L0H1"}).values
    np.testing.assert_allclose(paths.values.sum(0), heads, rtol=0, atol=1e-10)
    circuits = interp.lag_circuits(model, "L1H2", tokens[:1])
    _, cache = model.run_with_cache(tokens[:1])
    written = cache["blocks.1.attn.hook_result"][:, :, 2]
    through = sum(row * later(written, lag) for lag, row in enumerate(model.attn(1).taps_O))
    found = torch.tensor(circuits.outputs.values.sum(0))
    assert_close(found, through[0].detach(), rtol=0, atol=1e-10)
    for layer in (0, 1):
        held = view(model).held_patterns(layer, model.run_with_cache(tokens)[1]["pattern", layer])
        assert_close(model.run_with_hooks(tokens, fwd_hooks=held), model(tokens))


def test_the_cache_decomposes_what_comes_out_of_the_taps(model: HookedSequenceModel):
    mask = zoo.right_padding(8, 5, 3).flip(1)
    _, cache = model.run_with_cache(zoo.tokens(), attention_mask=mask)
    stream = cache["resid_post", 1]
    for neurons in (True, False):
        parts = cache.get_full_resid_decomposition(expand_neurons=neurons)
        assert_close(parts.sum(0), stream, rtol=0, atol=1e-10)
    heads, labels = cache.stack_head_results(return_labels=True)
    assert labels[1] == "L0H1"
    written = cache["blocks.0.attn.hook_result"][:, :, 1]
    through = sum(row * later(written, lag) for lag, row in enumerate(model.attn(0).taps_O))
    assert_close(heads[1], through, rtol=0, atol=1e-12)
    cut = cache.stack_head_results(pos_slice=(2, 5))
    assert_close(cut, heads[:, :, 2:5])
    _, some = model.run_with_cache(zoo.tokens(), pos_slice=(2, 5))
    for one in (some, some.apply_slice_to_batch_dim((0, 2))):
        with pytest.raises(ValueError, match=r"heads of L0 write goes through taps.*pos_slice"):
            one.stack_head_results()


def test_one_map_per_head_says_what_it_leaves_out(model: HookedSequenceModel):
    late = "what L1 writes at lags 1 to 1 of its taps"
    circuit = interp.ov_circuit(model, "L1H0")
    assert late in circuit.provenance["left_out"]
    attn = model.attn(1)
    expected = (attn.W_O[0] * attn.taps_O[0]).detach()
    expected = expected - expected.mean(-1, keepdim=True)  # as norms read it
    assert_close(circuit.B, expected, rtol=0, atol=1e-12)
    assert late in interp.copying_score(model).provenance["left_out"]
    composed = interp.composition_scores(model, n_rotations=2)
    assert "what L0 writes at lags 1 to 2 of its taps" in composed.provenance["left_out"]
    with torch.no_grad():
        attn.taps_O[0] = 1
    plain = (attn.W_O[0] - attn.W_O[0].mean(-1, keepdim=True)).detach()
    assert_close(interp.ov_circuit(model, "L1H0").B, plain, rtol=0, atol=1e-12)


def test_untrained_taps_do_nothing_and_decay_and_muon_leave_them_alone():
    plain = (Attention(n_heads=3, d_head=4, mlp=MLP(16)), Attention(n_heads=3, d_head=4))
    one, other = (HookedSequenceModel(zoo.config(*layers), seed=3) for layers in (plain, BOTH))
    assert torch.equal(one(zoo.tokens()), other(zoo.tokens()))
    assert one.attn(0).taps_O is None
    assert not hasattr(one.attn(0), "hook_out_lags")
    assert not [name for name in layouts_of(other) if "taps" in name]
    bare, tapped = (flops_per_token(model.config).layers for model in (one, other))
    assert tapped - bare == 2 * 12 * ((3 + 2) + (2 + 2))  # taps_O, taps_out; taps_K, taps_O


def test_a_model_of_them_is_saved(tmp_path):
    config = zoo.config(*BOTH)
    assert ModelConfig.from_json(config.to_json()) == config
    model = zoo.from_config(config, torch.float32)
    model.save_pretrained(tmp_path / "tapped")
    assert torch.equal(interp.load(str(tmp_path / "tapped"))(zoo.tokens()), model(zoo.tokens()))


# ------------------------------------------------------------------------------------- key offset


@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_a_key_offset_moves_half_of_the_channels(positions: str):
    layer = Attention(n_heads=2, d_head=8, key_offset=True)
    model = zoo.from_config(zoo.config(layer, positions=positions))
    _, cache = model.run_with_cache(zoo.tokens())
    k, moved = cache["k", 0], cache["blocks.0.attn.hook_smeared_k"]
    stays, late = [0, 1, 4, 5], [2, 3, 6, 7]  # channels i and i + 4 turn together
    assert_close(moved[..., stays], k[..., stays], rtol=0, atol=0)
    assert_close(moved[:, 1:, :, late], k[:, :-1, :, late], rtol=0, atol=0)
    assert not moved[:, 0, :, late].any()
    assert "blocks.0.attn.taps_K" not in model.state_dict()
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel()
        for p in zoo.from_config(
            zoo.config(Attention(n_heads=2, d_head=8), positions=positions)
        ).parameters()
    )


def test_a_key_offset_is_read_as_taps_are():
    layer = Attention(n_heads=2, d_head=8, key_offset=True)
    model = zoo.from_config(zoo.config(layer, positions="rotary"))
    tokens = zoo.tokens(batch=1)
    circuits = interp.lag_circuits(model, "L0H1", tokens)
    scores = model.run_with_cache(tokens)[1]["attn_scores", 0][0, 1].detach()
    visible = scores.isfinite()
    total = torch.tensor(np.nansum(circuits.scores.values, axis=(0, 1)))
    assert_close(total[visible], scores[visible], rtol=0, atol=1e-10)
    hooks = [by_hand.put("blocks.0.attn.hook_k_lags", (WHOLE, 1, WHOLE, 0), 0.0)]
    tokens = zoo.tokens(batch=4)
    expected = by_hand.effect(model, tokens, *hooks).mean()
    assert effect(model, tokens, "L0H0.k.lag1") == pytest.approx(expected, abs=1e-12)
    keys = interp.detect_smeared_keys(model, zoo.tokens(batch=20)).sel(channel="k", head="L0H0")
    # Its two maps have no channel in common.
    shares = [float(keys.sel(measure=f"lag_share_{lag}")) for lag in (0, 1)]
    assert min(shares) > 0.05


@pytest.mark.parametrize("kind", ["key offset", "taps"])
def test_an_induction_head_planted_in_a_single_layer_is_found(kind: str):
    """Each key is the token before it, each value the token itself: one-hot halves of a stream."""
    n, own, copied = 32, slice(0, 32), slice(32, 64)
    taps = {"key_offset": True} if kind == "key offset" else {"taps_k": 3}
    layer = Attention(n_heads=1, d_head=64, bias=False, **taps)
    sizes = {"d_vocab": n, "d_model": 64, "n_ctx": 48}
    plain = {"positions": "none", "norm": "none", "unembed_bias": False}
    model = HookedSequenceModel(ModelConfig(layers=(layer,), **sizes, **plain)).double()
    attn, identity = model.attn(0), torch.eye(n, dtype=torch.float64)
    late = [i for i in range(64) if i % 32 >= 16] if kind == "key offset" else range(n)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.W_E[:, own] = identity
        attn.W_Q[0, own, late] = attn.W_K[0, own, late] = 10 * identity
        attn.W_V[0, own, own] = attn.W_O[0, own, copied] = identity
        model.W_U[copied] = 8 * identity
        if kind == "taps":
            attn.taps_K[1] = 1
    assert float(interp.induction_score(model, n=20).values.item()) > 0.99
    keys = interp.detect_smeared_keys(model).sel(channel="k", head="L0H0")
    assert float(keys.sel(measure="lag_share_1")) == pytest.approx(1)
    tokens = interp.repeated_tokens(20, d_vocab=n, bos=0, n_ctx=48).tokens
    shares = interp.lag_pair_shares(model, tokens).sel(head="L0H0")
    assert float(shares.sel(query_lag="lag 0", key_lag="lag 1")) == pytest.approx(1)
    circuit = interp.induction_circuit(model, n=20)
    assert ("taps.lag1", "L0H0", "k") in {(e.sender, e.receiver, e.channel) for e in circuit.edges}


def test_what_cannot_be_is_refused():
    for arguments, message in (
        ({"taps_o": 0}, "taps_o is 0"),
        ({"key_offset": True, "smear": True}, r"key_offset=True.*smear=True.*choose one"),
        ({"key_offset": True, "taps_k": 2}, r"key_offset=True.*taps_k=2; choose one"),
        ({"key_offset": True, "d_head": 6}, r"d_head=6 is no multiple of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            Attention(**{"n_heads": 3, "d_head": 4, **arguments})
    with pytest.raises(ValueError, match="taps is 0"):
        MLP(16, taps=0)
    with pytest.raises(ValueError, match=r"layer 0: taps_o=9.*n_ctx=8"):
        zoo.config(Attention(n_heads=3, d_head=4, taps_o=9))
    with pytest.raises(ValueError, match=r"layer 0: MLP: taps=9.*n_ctx=8"):
        zoo.config(Attention(n_heads=3, d_head=4, mlp=MLP(16, taps=9)))
