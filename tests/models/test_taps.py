"""Taps on queries, keys and values, held to their formula; smeared keys are a case of them."""

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.models import Attention, Conv, HookedSequenceModel, ModelConfig
from interp.views import view
from tests.models import zoo

TAPPED = Attention(n_heads=3, d_head=4, taps_q=2, taps_k=3, taps_v=2)
LAYERS = {
    "all three": ((TAPPED,), {}),
    "rotary": ((TAPPED,), {"positions": "rotary"}),
    "shortformer": ((TAPPED,), {"positions": "shortformer"}),
    "on a convolution": ((Conv(lags=2), TAPPED), {"norm": "rms"}),
    "keys alone, no biases": (
        (Attention(n_heads=3, d_head=4, bias=False, taps_k=4),),
        {"norm": "none"},
    ),
}


def build(name: str) -> HookedSequenceModel:
    layers, options = LAYERS[name]
    model = zoo.from_config(zoo.config(*layers, **options), torch.float64)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if ".taps_" in key:
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model


def shifted(x: Tensor, lag: int) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :lag]), x[:, : x.shape[1] - lag]], dim=1)


@pytest.mark.parametrize("channel", ["q", "k", "v"])
@pytest.mark.parametrize("name", [name for name in LAYERS if "alone" not in name])
def test_they_are_their_formula(name: str, channel: str):
    model = build(name)
    layer = len(LAYERS[name][0]) - 1
    real = zoo.right_padding(8, 5, 3).flip(1)
    for mask in (None, real):
        _, cache = model.run_with_cache(zoo.tokens(batch=3), attention_mask=mask)
        before = cache[channel, layer]
        before = before if mask is None else before * mask[..., None, None]
        taps = getattr(model.attn(layer), f"taps_{channel.upper()}")
        after = sum(row * shifted(before, lag) for lag, row in enumerate(taps))
        found = cache[f"blocks.{layer}.attn.hook_smeared_{channel}"]
        torch.testing.assert_close(found, after, rtol=0, atol=1e-12)
        lags = cache[f"blocks.{layer}.attn.hook_{channel}_lags"]
        torch.testing.assert_close(lags.sum(1), after, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_listening_and_folding_change_nothing(name: str):
    model, tokens = build(name), zoo.tokens()
    clean = model(tokens)
    _, cache = model.run_with_cache(tokens)
    assert any(key.endswith("hook_k_lags") for key in cache)
    torch.testing.assert_close(model.run_with_cache(tokens)[0], clean, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.fold_norms()(tokens), clean, rtol=0, atol=1e-12)


def test_one_tap_is_none_and_untrained_taps_do_nothing():
    plain = zoo.config(Attention(n_heads=3, d_head=4), positions="none")
    tapped = zoo.config(Attention(n_heads=3, d_head=4, taps_k=3, taps_v=2), positions="none")
    one, other = (HookedSequenceModel(config, seed=3) for config in (plain, tapped))
    assert torch.equal(one(zoo.tokens()), other(zoo.tokens()))
    assert one.attn(0).taps_K is None
    assert not hasattr(one.attn(0), "hook_k_lags")


@pytest.mark.parametrize("channel", ["q", "k", "v"])
def test_a_lag_of_a_channel_is_a_unit(channel: str):
    """Removing it equals zeroing that tap in the weights, for one head alone."""
    model, tokens = build("rotary"), zoo.tokens(batch=4)
    found = interp.ablate(model, tokens, f"L0H1.{channel}.lag1", control="none")
    clean = model(tokens, return_type="loss")
    with torch.no_grad():
        getattr(model.attn(0), f"taps_{channel.upper()}")[1, 1] = 0
    effect = (model(tokens, return_type="loss") - clean).item()
    assert found.sel(measure="effect").values.item() == pytest.approx(effect, abs=1e-12)


def test_smeared_keys_are_taps():
    """The same model written both ways, but for the first key, which smearing leaves as it is."""
    smeared = zoo.from_config(zoo.config(Attention(3, 4, smear=True), positions="none"))
    share = smeared.attn(0).smear.sigmoid()
    layer = Attention(n_heads=3, d_head=4, taps_k=2)
    tapped = HookedSequenceModel(zoo.config(layer, positions="none")).to(smeared.W_E.dtype)
    state = {k: v for k, v in smeared.state_dict().items() if not k.endswith("smear")}
    taps = torch.stack([share, 1 - share])[..., None].expand(-1, -1, 4)
    tapped.load_state_dict({**state, "blocks.0.attn.taps_K": taps})
    tokens = zoo.tokens()
    ours, theirs = (
        m.run_with_cache(tokens)[1]["blocks.0.attn.hook_smeared_k"] for m in (tapped, smeared)
    )
    torch.testing.assert_close(ours[:, 1:], theirs[:, 1:])
    unit = "L0H1.k.lag1"
    for model in (tapped, smeared):
        assert unit in interp.ablate(model, tokens, unit, control="none").labels["component"]


@pytest.mark.parametrize("name", LAYERS)
def test_scores_split_over_lags_exactly(name: str):
    model, tokens = build(name), zoo.tokens(batch=1)
    layer = len(LAYERS[name][0]) - 1
    circuits = interp.lag_circuits(model, f"L{layer}H1", tokens)
    _, cache = model.run_with_cache(tokens)
    scores = cache["attn_scores", layer][0, 1].detach()
    visible = scores.isfinite()
    total = torch.tensor(np.nansum(circuits.scores.values, axis=(0, 1)))
    torch.testing.assert_close(total[visible], scores[visible], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_patterns_and_parts_hold(name: str):
    model, tokens = build(name), zoo.tokens(batch=3)
    parts = interp.logit_attribution(model, tokens, correct=3).values.sum(0)
    np.testing.assert_allclose(parts, model(tokens)[..., 3].mean(0).detach(), rtol=0, atol=1e-10)
    # Held patterns mix the values as they are mixed: tapped.
    layer = len(LAYERS[name][0]) - 1
    _, cache = model.run_with_cache(tokens)
    held = view(model).held_patterns(layer, cache["pattern", layer].detach())
    torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=held), model(tokens))


PLANTS = {
    # taps of every channel at lags 0 and 1: alignment, lag share of lag 1, smear
    "a literal smear": ((0.7, 0.3), 1.0, None, 0.7),
    "an offset": ((0.0, 1.0), None, 1.0, 0.0),
    "a difference": ((1.0, -1.0), -1.0, 0.5, None),
}


def planted(taps: Tensor) -> HookedSequenceModel:
    layer = Attention(n_heads=1, d_head=12, taps_k=2)
    config = ModelConfig(
        d_vocab=60, d_model=12, n_ctx=32, layers=(layer,), positions="none", norm="none"
    )
    model = HookedSequenceModel(config, seed=1).double()
    with torch.no_grad():
        model.attn(0).taps_K.copy_(taps[:, None])
    return model


@pytest.mark.parametrize("name", PLANTS)
def test_planted_taps_are_told_apart(name: str):
    (now, before), alignment, share, smear = PLANTS[name]
    model = planted(torch.tensor([now, before], dtype=torch.float64)[:, None].expand(2, 12))
    tokens = torch.randint(60, (30, 30), generator=torch.Generator().manual_seed(0))
    keys = interp.detect_smeared_keys(model, tokens).sel(channel="k", head="L0H0")
    for measure, value in (("alignment", alignment), ("lag_share_1", share), ("smear", smear)):
        if value is not None:
            assert float(keys.sel(measure=measure)) == pytest.approx(value, abs=0.06), measure


def test_a_key_offset_on_half_the_channels_is_no_smear():
    """Half of the channels one token late: both lags are read, by maps with nothing in common."""
    late = torch.zeros(2, 12, dtype=torch.float64)
    late[0, :6], late[1, 6:] = 1, 1
    tokens = torch.randint(60, (60, 30), generator=torch.Generator().manual_seed(0))
    keys = interp.detect_smeared_keys(planted(late), tokens).sel(channel="k", head="L0H0")
    assert 0.2 < float(keys.sel(measure="lag_share_1")) < 0.8
    assert abs(float(keys.sel(measure="alignment"))) < 0.5


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"smear=True.*taps_k=2.*choose one"):
        Attention(n_heads=3, d_head=4, smear=True, taps_k=2)
    with pytest.raises(ValueError, match="taps_v is 0"):
        Attention(n_heads=3, d_head=4, taps_v=0)
    with pytest.raises(ValueError, match=r"taps_q=9.*n_ctx=8"):
        zoo.config(Attention(n_heads=3, d_head=4, taps_q=9))


def test_they_are_saved_and_counted(tmp_path):
    from interp.training.flops import flops_per_token

    config = zoo.config(TAPPED)
    assert ModelConfig.from_json(config.to_json()) == config
    bare = flops_per_token(zoo.config(Attention(n_heads=3, d_head=4))).layers
    assert flops_per_token(config).layers - bare == 2 * 12 * (2 + 3 + 2)
    model = build("all three").float()
    model.save_pretrained(tmp_path / "tapped")
    assert torch.equal(interp.load(str(tmp_path / "tapped"))(zoo.tokens()), model(zoo.tokens()))
