"""What a head reads: exact on sequences, and from the weights what brute force gives."""

import pytest
import torch

from interp.analysis.circuits.head_maps import check_distance, head_maps, route
from interp.analysis.circuits.reads import embedding_moments, reads
from interp.models import Attention, Conv, HookedAttn, HookedConvAttn
from interp.views import view
from tests.analysis import readers
from tests.models import zoo


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in readers.NAMES),
        *((name, torch.float32) for name in readers.MORE),
    ],
)
def test_lags_and_constants_add_up_to_what_the_head_computes(name, dtype):
    model = readers.build(name, dtype)
    tokens = zoo.tokens()
    for mask in (None, zoo.right_padding(8, 5, 3), zoo.right_padding(8, 2, 6).flip(1)):
        _, cache = model.run_with_cache(tokens, attention_mask=mask)
        for head, layer, index in readers.heads(model):
            for channel in ("q", "k", "v"):
                way = route(model, head, channel)
                scales = {factor.name: factor.of(cache[factor.hook]) for factor in way.factors}
                parts = way.parts(cache[way.source], scales, mask)
                constants = way.constants(tokens.shape[1], scales, mask)
                assert len(parts) == way.lags
                total = parts.sum(0) + sum(constants.values())
                captured = cache[readers.key_hook(model, layer, channel)][:, :, index]
                assert readers.close(total, captured, dtype)


def test_each_lag_is_the_doing_of_that_token_alone():
    """With the scales frozen, another x at t - j changes lag j's part of position t, no other."""
    model = readers.build("two convolutions")
    way = route(model, "L2H1", "k")
    _, cache = model.run_with_cache(zoo.tokens())
    scales = {factor.name: factor.of(cache[factor.hook]) for factor in way.factors}
    stream = cache[way.source]
    other = stream.clone()
    other[:, 3] += stream[:, 5]
    changed = way.parts(other, scales) - way.parts(stream, scales)
    for lag in range(way.lags):
        moved = changed[lag].abs().amax((0, 2)) > 1e-9
        assert moved.nonzero().flatten().tolist() == [3 + lag]


def test_the_run_of_convolutions_ends_at_what_is_not_linear():
    deep = readers.build("deep")  # conv + MLP, attention + MLP, conv, attention, attention
    assert route(deep, "L1H0", "q").source == "blocks.1.hook_resid_pre"
    assert route(deep, "L3H0", "q").source == "blocks.2.hook_resid_pre"
    assert [route(deep, f"L{layer}H0", "q").lags for layer in (1, 3, 4)] == [1, 3, 1]
    assert route(deep, "L1H0", "k").lags == 2  # its keys are smeared
    two = readers.build("two convolutions")
    assert [route(two, "L2H0", channel).lags for channel in "qkv"] == [4, 5, 4]


@pytest.mark.parametrize(
    "name", ["course", "no biases, no norm", "no norm", "no norm, three lags, rotary"]
)
def test_without_a_norm_the_weights_alone_are_exact(name):
    model = readers.build(name)
    _, cache = model.run_with_cache(zoo.tokens())
    for head, layer, index in readers.heads(model):
        for channel in ("q", "k", "v"):
            read = reads(model, head, channel)
            x, n_pos = cache[read.source], zoo.N_CTX
            total = sum(
                x[:, read.lags - 1 - lag : n_pos - lag] @ one for lag, one in enumerate(read.maps)
            )
            total = total + read.bias[read.lags - 1 : n_pos]
            captured = cache[readers.key_hook(model, layer, channel)][:, read.lags - 1 :, index]
            assert readers.close(total, captured, torch.float64)
            assert read.scales_from == "no norm"


def test_the_formula_of_the_field():
    """(C diag(γ1) W_conv[j] / s1 + [j = 0] I) C diag(γ2) / s2 W_K, spelled out."""
    model = readers.build("three lags")
    read = reads(model, "L1H2", "k")
    d_model = model.config.d_model
    C = torch.eye(d_model).double() - 1 / d_model
    first, second = model.blocks[0].ln1, model.blocks[1].ln1
    s1, s2 = read.scales["blocks.0.ln1"], read.scales["blocks.1.ln1"]
    for lag in range(3):
        through = C @ first.w.diag() @ model.conv(0).W[lag] / s1
        stream = through + torch.eye(d_model) * (lag == 0)
        expected = stream @ C @ second.w.diag() / s2 @ model.attn(1).W_K[2]
        torch.testing.assert_close(read.maps[lag], expected)


def test_constants_have_the_names_of_their_parameters_and_know_the_start():
    model = readers.build("lag bias")  # LayerNorm, three lags
    constants = reads(model, "L1H0", "k").constants
    assert set(constants) == {
        "blocks.0.ln1.b",
        "blocks.0.conv.b_lags",
        "blocks.0.conv.b_conv",
        "blocks.1.ln1.b",
        "blocks.1.attn.b_K",
    }
    for name, early in (("blocks.0.ln1.b", True), ("blocks.0.conv.b_conv", False)):
        rows = constants[name]
        assert (not torch.allclose(rows[1], rows[2])) == early
        torch.testing.assert_close(rows[2], rows[7])
    assert reads(readers.build("no biases, no norm"), "L1H0", "k").bias.abs().max() == 0


def test_shortformer_positions_are_a_named_term_of_queries_and_keys_only():
    model = readers.build("shortformer, conv")
    positions = reads(model, "L1H1", "q").constants["pos_embed.W_pos"]
    torch.testing.assert_close(positions, model.W_pos @ model.attn(1).W_Q[1])
    assert "pos_embed.W_pos" not in reads(model, "L1H1", "v").constants


@pytest.mark.parametrize("name", ["three lags", "rms", "two convolutions, post, shortformer"])
def test_mean_scales_from_tokens_and_from_the_embedding(name):
    """From tokens: the mean. From the embedding: the root mean square over independent tokens."""
    model = readers.build(name)
    tokens = torch.randint(zoo.D_VOCAB, (4000, 8), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens, names_filter=lambda hook: hook.endswith("hook_scale"))
    layer = model.attention_layers[-1]
    by_tokens = reads(model, f"L{layer}H0", "k", tokens=tokens)
    by_weights = reads(model, f"L{layer}H0", "k")
    assert by_tokens.scales_from == "tokens"
    assert by_weights.scales_from == "embedding under uniform frequencies"
    assert set(by_weights.scales) == set(by_tokens.scales)
    for norm, scale in by_tokens.scales.items():
        captured = cache[f"{norm}.hook_scale"]
        assert scale == pytest.approx(float(captured.mean()), rel=1e-9)
        late = captured[:, by_weights.lags - 1 :].square().mean().sqrt()
        # The conv of a later norm mixes positions, whose vectors are not independent.
        assert by_weights.scales[norm] == pytest.approx(float(late), rel=0.05)


def test_frequencies_weigh_the_embedding():
    model = readers.build("rms")
    frequencies = torch.zeros(zoo.D_VOCAB)
    frequencies[4] = 3.0
    moments = embedding_moments(view(model), frequencies)
    torch.testing.assert_close(moments.mean, model.W_E[4].detach())
    assert moments.covariance.abs().max() < 1e-12
    uniform = embedding_moments(view(model), None)
    torch.testing.assert_close(uniform.covariance, torch.cov(model.W_E.T, correction=0))
    with pytest.raises(ValueError, match="one finite number of at least 0"):
        reads(model, "L1H0", frequencies=torch.ones(3))


def test_sixteen_bit_weights_are_computed_in_float32():
    model = readers.build("three lags", torch.bfloat16)
    assert reads(model, "L1H0", "k").maps.dtype == torch.float32
    same = readers.build("three lags", torch.bfloat16).float()
    torch.testing.assert_close(reads(model, "L1H0").maps, reads(same, "L1H0").maps)


@pytest.mark.parametrize("distance", [0, 1, 5])
def test_rotation_is_what_the_model_does_at_that_distance(distance):
    model = readers.build("rotary")
    attn, head = model.attn(1), head_maps(view(model), ["L1H2"])["L1H2"]
    q, k = torch.randn(2, 1, 8, 3, 4, generator=torch.Generator().manual_seed(3)).double()
    turned_q, turned_k = attn.rotary(q), attn.rotary(k)
    expected = (turned_q[0, 6, 2] * turned_k[0, 6 - distance, 2]).sum()
    found = q[0, 6, 2] @ head.rotation(distance) @ k[0, 6 - distance, 2]
    torch.testing.assert_close(found, expected)


def test_what_cannot_be_read_is_refused_with_the_reason(unchecked):
    model = readers.build("three lags")
    with pytest.raises(ValueError, match="layer 0 is conv and has no heads"):
        reads(model, "L0H0")
    with pytest.raises(ValueError, match=r"no head L1H3 in .*; the heads are L1H0 to L1H2"):
        reads(model, "L1H3")
    with pytest.raises(ValueError, match='written "L1H3"'):
        reads(model, "1.3")
    plain, turning = view(model), view(readers.build("rotary"))
    with pytest.raises(ValueError, match="same at every distance"):
        check_distance(plain, head_maps(plain).values(), 2)
    for distance in (8, -1, 1.5):
        with pytest.raises(ValueError, match=rf"{distance}, but must be a whole .* n_ctx - 1 = 7"):
            check_distance(turning, head_maps(turning).values(), distance)
    with pytest.raises(ValueError, match="Give tokens"):
        reads(readers.build("attention between"), "L2H0")
    with pytest.raises(TypeError, match="give an interp model"):
        reads(torch.nn.Linear(2, 2), "L0H0")


def test_a_wrong_channel_is_named(unchecked):
    with pytest.raises(ValueError, match="channel is 'o'; choose one of q, k, v"):
        reads(readers.build("three lags"), "L1H0", "o")


def test_a_head_without_convolution_reads_the_stream_itself():
    model = HookedAttn(d_vocab=9, d_model=6, n_heads=2, n_ctx=4, norm="none").double()
    read = reads(model, "L0H1", "q")
    torch.testing.assert_close(read.maps, model.W_Q[0, 1].detach()[None])
    stacked = zoo.from_config(zoo.config(Attention(1, 4), Attention(1, 4)))
    assert reads(stacked, "L1H0").scales_from.startswith("1: a common factor")


def test_agrees_with_transformer_lenss_decomposition():
    """Its components, scaled by the layer's norm as it does it, through W_K: a key's parts."""
    model = readers.build("rms")  # no offset, so that a lag's component is what the tokens add
    _, cache = model.run_with_cache(zoo.tokens())
    stack, labels = cache.get_full_resid_decomposition(1, apply_ln=True, return_labels=True)
    keys = dict(zip(labels, stack * model.blocks[1].ln1.w @ model.W_K[0, 2], strict=True))
    way = route(model, "L1H2", "k")
    parts = way.parts(cache[way.source], way.frozen(cache.cache_dict))
    current = keys["0_conv_lag0"] + keys["embed"] + keys["pos_embed"]
    torch.testing.assert_close(parts[0], current)
    torch.testing.assert_close(parts[1], keys["0_conv_lag1"])


def test_without_a_convolution_the_maps_are_those_of_the_folded_model():
    model = zoo.from_config(zoo.config(Attention(2, 4)))
    folded, read = model.fold_norms(), reads(model, "L0H1", "q")
    weight = folded.W_Q[0, 1]
    expected = (weight - weight.mean(0)) / read.scales["blocks.0.ln1"]
    torch.testing.assert_close(read.maps[0], expected.detach())
    torch.testing.assert_close(read.bias[0], folded.b_Q[0, 1].detach())


def test_one_lag_and_dead_lags():
    model = HookedConvAttn(d_vocab=9, d_model=6, n_heads=2, n_ctx=4, lags=1)
    assert reads(model, "L1H0").lags == 1
    dead = zoo.from_config(zoo.config(Conv(lags=2), zoo.HEADS))
    with torch.no_grad():
        dead.conv(0).W_conv[1] = 0
    assert reads(dead, "L1H0").maps[1].abs().max() == 0
