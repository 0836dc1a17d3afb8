"""Patching is TransformerLens's where both apply, and brute force where ours alone does."""

import numpy as np
import pytest
import torch
from transformer_lens import patching as theirs

from interp.analysis import LogitDifference, ablate, patch, path_patch
from interp.models import HookedSequenceModel
from tests.analysis import measured
from tests.analysis.bridges import N, bridged, hugging_face, probe
from tests.analysis.interventions import by_hand
from tests.analysis.interventions.by_hand import put
from tests.models.test_transformer_lens import their_model, with_the_weights_of

ALL = slice(None)
CLOSE = {"rtol": 0, "atol": 1e-10}
DIFFERENCE = LogitDifference(3, 5)


def difference(logits):
    return logits[:, -1, 3] - logits[:, -1, 5]


def two_inputs(d_vocab=23, n_sequences=3, n_pos=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(d_vocab, (2, n_sequences, n_pos), generator=generator)


# -------------------------------------------------------------------------------- TransformerLens

SWEEPS = {
    "heads": theirs.get_act_patch_attn_head_out_all_pos,
    "q": theirs.get_act_patch_attn_head_q_all_pos,
    "k": theirs.get_act_patch_attn_head_k_all_pos,
    "v": theirs.get_act_patch_attn_head_v_all_pos,
    "pattern": theirs.get_act_patch_attn_head_pattern_all_pos,
    "resid_pre@*": theirs.get_act_patch_resid_pre,
    "L*.attn@*": theirs.get_act_patch_attn_out,
    "L*H*@*": theirs.get_act_patch_attn_head_out_by_pos,
    "L*H*.q@*": theirs.get_act_patch_attn_head_q_by_pos,
    "L*H*.pattern@*": theirs.get_act_patch_attn_head_pattern_by_pos,
    "resid_mid@*": theirs.get_act_patch_resid_mid,
    "L*.mlp@*": theirs.get_act_patch_mlp_out,
}
WITHOUT_MLP = [name for name in SWEEPS if name not in ("resid_mid@*", "L*.mlp@*")]


def their_values(bridge, corrupted, clean, sweep):
    _, cache = bridge.run_with_cache(clean)
    with torch.no_grad():
        values = SWEEPS[sweep](bridge, corrupted, cache, lambda logits: difference(logits).mean())
    values = values.double()
    if sweep in ("L*H*@*", "L*H*.q@*"):  # theirs are [layer, pos, head]
        values = values.transpose(1, 2)
    return values.numpy().ravel()


@pytest.mark.parametrize(
    ("kind", "sweep"),
    [
        # A bridge's resid_mid is what its MLP reads, ours the stream itself: they cannot agree.
        *(("GPT", sweep) for sweep in SWEEPS if sweep != "resid_mid@*"),
        *(("rotary", sweep) for sweep in WITHOUT_MLP),
        *(("attention only", sweep) for sweep in ("heads", "k", "resid_pre@*")),
    ],
)
def test_both_on_a_bridge_and_on_our_twin_of_it(kind, sweep):
    bridge = their_model(kind)
    clean, corrupted = two_inputs()
    twin = with_the_weights_of(bridge, kind)
    expected = their_values(bridge, corrupted, clean, sweep)
    for model in (bridge, twin):
        result = patch(model, clean, corrupted, sweep, DIFFERENCE)
        before = result.sel(measure="corrupted").values
        # They keep their values in float32.
        np.testing.assert_allclose(
            (before + result.sel(measure="effect").values).ravel(), expected, rtol=0, atol=1e-5
        )
    assert expected.std() > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("sweep", ["heads", "k", "v", "resid_pre@*", "L*.mlp@*"])
def test_hugging_face_models(kind, sweep):
    bridge = bridged(hugging_face(kind))
    clean, corrupted = probe(N), probe(N).flip(0)
    expected = their_values(bridge, corrupted, clean, sweep)
    result = patch(bridge, clean, corrupted, sweep, DIFFERENCE)
    values = result.sel(measure="corrupted").values + result.sel(measure="effect").values
    np.testing.assert_allclose(values.ravel(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("channel", ["q", "k", "v"])
def test_direct_paths_between_heads(channel):
    model = hugging_face("gpt2").double()
    with torch.no_grad():  # heads that say something
        model.transformer.h[0].attn.c_proj.weight.mul_(5)
    bridge = bridged(model)
    clean, corrupted = probe(N), probe(N).flip(0)
    (_, clean_cache), (_, corrupted_cache) = map(bridge.run_with_cache, (clean, corrupted))
    with torch.no_grad():
        expected = theirs.get_act_patch_direct_path(
            bridge, corrupted, clean_cache, corrupted_cache,
            lambda logits: difference(logits).mean(), src_layer=0, src_head=2, component=channel,
            verbose=False,
        )[1]  # fmt: skip
    result = path_patch(bridge, "L0H2", f"L1H*.{channel}", clean, corrupted, DIFFERENCE)
    assert result.labels["receiver"] == tuple(f"L1H{head}.{channel}" for head in range(4))
    values = result.sel(measure="corrupted").values + result.sel(measure="effect").values
    np.testing.assert_allclose(values[0], expected.numpy(), rtol=0, atol=2e-7)
    assert np.abs(result.sel(measure="effect").values).max() > 1e-5


# ------------------------------------------------------------------------------------ brute force


def by_patching(model, run, source, *hooks):
    """Each sequence's metric with hooks, and without."""
    return [difference(by_hand.logits_under(model, run, *some)).numpy() for some in (hooks, ())]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    ("unit", "name", "where"),
    [
        ("L0.lag1", "blocks.0.conv.hook_lags", (ALL, 1)),
        ("L0.lag0@4", "blocks.0.conv.hook_lags", (ALL, 0, 4)),
        ("L0.conv", "blocks.0.hook_conv_out", (ALL,)),
        ("L1H1.pattern", "blocks.1.attn.hook_pattern", (ALL, 1)),
        ("L1H0.k@2:6", "blocks.1.attn.hook_k", (ALL, slice(2, 6), 0)),
    ],
)
def test_ours_alone(direction, unit, name, where):
    model = measured.build("conv-attn")
    clean, corrupted = two_inputs(40)
    run, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    cache = by_hand.activations(model, source)
    patched, before = by_patching(model, run, source, put(name, where, cache[name]))
    aim = difference(by_hand.logits_under(model, source)).numpy()
    result = patch(model, clean, corrupted, [unit], DIFFERENCE, direction)
    one = dict(zip(result.labels["measure"], result.values[:, 0].tolist(), strict=True))
    effect, gap = patched - before, aim - before
    share = effect.mean() / gap.mean()
    assert one["effect"] == pytest.approx(effect.mean(), abs=1e-10)
    assert one["share"] == pytest.approx(share, abs=1e-10)
    values = (
        {"clean": before, "corrupted": aim}
        if direction == "noise"
        else {"clean": aim, "corrupted": before}
    )
    assert {m: one[m] for m in values} == pytest.approx({m: v.mean() for m, v in values.items()})
    # The error of a ratio of means: that of its linear part.
    residual = effect - share * gap
    error = residual.std(ddof=1) / np.sqrt(3) / abs(gap.mean())
    assert float(result.sel(measure="share").standard_error[0]) == pytest.approx(error)
    assert abs(one["effect"]) > 1e-4
    assert dict(result.unit) == {
        "share": "fraction",
        "effect": "logits",
        "clean": "logits",
        "corrupted": "logits",
    }


def test_everything_together_brings_all_of_it_back():
    model = measured.build("gpt")
    clean, corrupted = two_inputs(40)
    for direction in ("denoise", "noise"):
        result = patch(model, clean, corrupted, ["embed", "L1.resid_post"], DIFFERENCE, direction)
        np.testing.assert_allclose(result.sel(measure="share").values, 1, **CLOSE)
        errors = result.sel(measure="share").standard_error
        np.testing.assert_allclose(errors, 0, **CLOSE)


def test_inputs_that_do_not_differ_have_no_share():
    model = measured.build("attn-attn")
    clean, _ = two_inputs(40)
    result = patch(model, clean, clean, "heads", DIFFERENCE)
    assert np.isnan(result.sel(measure="share").values).all()
    np.testing.assert_allclose(result.sel(measure="effect").values, 0, **CLOSE)


@pytest.mark.parametrize("metric", ["loss", "loss_per_token", lambda x, tokens: x[:, -1, 1]])
def test_each_run_is_measured_on_its_own_tokens(metric):
    model = measured.build("attn-attn")
    clean, corrupted = two_inputs(40)
    result = patch(model, clean, corrupted, "heads", metric)
    for name, tokens in (("clean", clean), ("corrupted", corrupted)):
        expected = ablate(model, tokens, ["L0H0"], metric=metric, control="none")
        np.testing.assert_allclose(
            result.sel(measure=name, head="L1H0").values,
            expected.sel(measure="clean", head="L0H0").values,
            **CLOSE,
        )


# ------------------------------------------------------------------------------------------ paths


def changed_stream(model: HookedSequenceModel, cache, layer: int, change: torch.Tensor):
    """What enters a layer, of a model whose stream is a sum, if something below is changed."""
    return cache[f"blocks.{layer}.hook_resid_pre"] + change


def channel_of(model, layer, name, stream):
    """A layer's queries, keys or values from the stream, written out."""
    attn, norm = model.attn(layer), model.blocks[layer].ln1
    x = norm(stream) if callable(norm) else stream
    weight, bias = getattr(attn, f"W_{name}"), getattr(attn, f"b_{name}")
    return torch.einsum("bpm,hmd->bphd", x, weight) + bias
