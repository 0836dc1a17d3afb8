"""Circuits and lags above a gated convolution, and of heads with taps on q, k and v.

No analysis names these layers: what it knows of them is their description.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.analysis import lag_circuits, lag_pair_shares, reads, without_lag_pair
from interp.analysis.circuits.head_maps import route
from interp.models import Attention, GatedConv, HookedSequenceModel, ModelConfig
from tests.models import zoo

WIDTH, HEADS, D_HEAD, VOCAB, N_POS = 8, 2, 4, 40, 10
LAGS, TAPS = 3, 2


def build(*, positions: str = "learned", gated: bool = True) -> HookedSequenceModel:
    tapped = Attention(HEADS, D_HEAD, taps_q=TAPS, taps_k=TAPS, taps_v=TAPS)
    layers = (GatedConv(lags=LAGS), tapped) if gated else (tapped,)
    return zoo.from_config(ModelConfig(VOCAB, WIDTH, N_POS, layers, positions=positions))


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
    gates = cache["blocks.0.conv.hook_gates"]
    gates = [gates[:, lag, lag:].mean((0, 1)) for lag in range(LAGS)]  # where that token exists
    conv, attn, taps = model.blocks[0].mixer, model.attn(1), model.attn(1).taps_V[:, 0]
    C = torch.eye(WIDTH).double() - 1 / WIDTH
    first, second = model.blocks[0].ln1, model.blocks[1].ln1
    s1, s2 = (cache[f"blocks.{layer}.ln1.hook_scale"].mean() for layer in (0, 1))
    expected = torch.zeros(LAGS + TAPS - 1, WIDTH, D_HEAD).double()
    for lag in range(LAGS):
        through = C @ first.w.diag() @ conv.W_X / s1 @ (conv.W_conv[lag] * gates[lag]).diag()
        through = through @ conv.W_out
        through = through + torch.eye(WIDTH) * (lag == 0)
        for tap in range(TAPS):
            expected[lag + tap] += through @ C @ second.w.diag() @ attn.W_V[0] / s2 * taps[tap]
    torch.testing.assert_close(read.maps, expected.detach())


def test_smeared_keys_are_measured_on_queries_and_values_too():
    """Literal smearing by taps of every channel, without a convolution: σ̂ is what was put in."""
    model = build(positions="none", gated=False)
    with torch.no_grad():
        for name in "QKV":
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
    taps = {
        "L0": model.blocks[0].conv.W_conv,
        **{f"L1.{c}": getattr(model.attn(1), f"taps_{c.upper()}").flatten(1) for c in "qkv"},
    }
    table = interp.conv_lags(model)
    assert table.labels["conv"] == tuple(taps)
    for label, expected in taps.items():
        shown = interp.conv_weights(model, label).values
        np.testing.assert_allclose(shown, expected.detach().double().numpy())
        norms = table.sel(conv=label, measure="norm").values[: len(shown)]
        np.testing.assert_allclose(norms, np.linalg.norm(shown, axis=1))
    np.testing.assert_allclose(
        interp.conv_singular_values(model, 0).values,
        -np.sort(-np.abs(taps["L0"].detach().double().numpy()), axis=1),
    )
    with pytest.raises(ValueError, match="through the gates of layer 0"):
        interp.positional_circuit(model, "L1H0", tokens=tokens)
    assert np.isfinite(interp.match_table(model, tokens=tokens).values).all()
    found = interp.detect_smeared_keys(model, tokens)
    np.testing.assert_allclose(
        sum(found.sel(measure=f"lag_share_{lag}").values for lag in range(LAGS + TAPS - 1)), 1
    )
    with pytest.raises(ValueError, match=f"must have {LAGS + TAPS - 1} to n_ctx"):
        reads(model, "L1H0", tokens=tokens[:, :2])
    layers = (GatedConv(lags=LAGS), Attention(HEADS, D_HEAD), Attention(HEADS, D_HEAD))
    two = HookedSequenceModel(ModelConfig(VOCAB, WIDTH, N_POS, layers))
    scores = interp.composition_scores(two, n_rotations=2)
    assert scores.labels["source"] == ("L1H0", "L1H1")
    assert "what L0 writes" in scores.provenance["left_out"]
