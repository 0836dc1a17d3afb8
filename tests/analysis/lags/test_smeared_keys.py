"""Smeared-key detection: planted truths, random weights, brute force, and what must not matter."""

import math

import numpy as np
import pytest
import torch

from interp.analysis.circuits.head_maps import head_maps
from interp.analysis.circuits.reads import read_heads, reads
from interp.analysis.lags.key_geometry import LagGrams, geometry
from interp.analysis.lags.smeared_keys import detect_smeared_keys
from interp.models import HookedConvAttn, HookedSmearedAttn
from interp.views import view
from tests.analysis import haar, readers
from tests.models import zoo

D_VOCAB, HALF = 40, 6
N_DRAWN = 750


def numbers(result, head="L1H0", channel="k"):
    """One head's numbers by measure."""
    found = result.sel(channel=channel, head=head)
    return dict(zip(found.labels["measure"], found.values.tolist(), strict=True))


def text(n=24, pos=8, d_vocab=zoo.D_VOCAB, seed=7):
    return zoo.tokens(batch=n, pos=pos, d_vocab=d_vocab, seed=seed)


def halves(reads_current, reads_previous, d_head):
    """FIELD.md's planted heads: lag 1 of the convolution puts the previous token into the second
    half of the stream, and W_K reads the two halves by these two maps."""
    model = HookedConvAttn(
        d_vocab=D_VOCAB, d_model=2 * HALF, n_heads=1, d_head=d_head, n_ctx=8,
        norm="none", positions="none",
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Rows with mean 0 and covariance I: what is planted comes out exactly.
        rows = torch.randn(D_VOCAB, HALF, generator=generator, dtype=torch.float64)
        rows -= rows.mean(0)
        rows = torch.linalg.qr(rows)[0] * math.sqrt(D_VOCAB)
        model.embed.W_E[:, :HALF] = rows
        model.conv(0).W_conv[1, :HALF, HALF:] = torch.eye(HALF)
        model.attn(1).W_K[0, :HALF] = reads_current
        model.attn(1).W_K[0, HALF:] = reads_previous
        model.attn(1).W_Q[0, :HALF, :d_head] = torch.eye(HALF, d_head)
        if d_head > HALF:
            model.attn(1).W_Q[0, HALF:, HALF:] = torch.eye(HALF)
    return model


def test_one_map_for_both_halves_is_smearing():
    found = numbers(detect_smeared_keys(halves(torch.eye(HALF), torch.eye(HALF), HALF)))
    assert found["alignment"] == pytest.approx(1)
    assert found["smear"] == pytest.approx(0.5)
    assert found["smear_fit"] == pytest.approx(1)
    assert found["lag_share_1"] == pytest.approx(0.5)


def test_two_subspaces_are_not():
    identity, nothing = torch.eye(HALF), torch.zeros(HALF, HALF)
    model = halves(torch.cat([identity, nothing], 1), torch.cat([nothing, identity], 1), 2 * HALF)
    result = detect_smeared_keys(model)
    found = numbers(result)
    assert found["alignment"] == pytest.approx(0)
    assert found["lag_share_1"] == pytest.approx(0.5)
    assert math.isnan(found["smear"])
    assert found["smear_fit"] == pytest.approx(0.5)
    assert "no common map" in result.provenance["undefined"]["k L1H0 smear"]


def test_the_previous_half_alone_is_a_pure_shift():
    result = detect_smeared_keys(halves(torch.zeros(HALF, HALF), torch.eye(HALF), HALF))
    found = numbers(result)
    assert found["lag_share_1"] == pytest.approx(1)
    assert math.isnan(found["alignment"])
    assert "lag 0 is not read" in result.provenance["undefined"]["k L1H0 alignment"]
    assert found["smear"] == pytest.approx(0)
    assert found["smear_fit"] == pytest.approx(1)


def test_a_head_whose_scores_never_vary_has_a_reason_for_all_that_is_undefined():
    model = HookedConvAttn(d_vocab=30, d_model=16, n_heads=2, n_ctx=12, bias=False)
    with torch.no_grad():
        model.attn(1).W_Q[0] = 0
    result = detect_smeared_keys(model, torch.randint(30, (4, 12)))
    keys = result.sel(channel="k", head="L1H0")
    scores = ("predicted", "predicted_scores", "smeared_scores")
    for measure in ("lag_share_0", "alignment", "smear", "match_1", *scores):
        assert math.isnan(float(keys.sel(measure=measure)))
        assert result.provenance["undefined"][f"k L1H0 {measure}"]


def test_a_difference_filter_is_not_clipped_and_its_exact_case_is_undefined():
    found = numbers(detect_smeared_keys(halves(torch.eye(HALF), -0.5 * torch.eye(HALF), HALF)))
    assert found["alignment"] == pytest.approx(-1)
    assert found["smear"] == pytest.approx(2)  # 1 / (1 - 0.5)
    result = detect_smeared_keys(halves(torch.eye(HALF), -torch.eye(HALF), HALF))
    assert math.isnan(numbers(result)["smear"])
    assert "difference filter" in result.provenance["undefined"]["k L1H0 smear"]


@pytest.mark.parametrize("positions", ["learned", "none", "rotary", "shortformer"])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_smeared_model_gives_back_its_own_mixing(positions, with_tokens):
    model = zoo.randomise(
        HookedSmearedAttn(d_vocab=zoo.D_VOCAB, d_model=12, n_heads=3, n_ctx=8, positions=positions)
    )
    with torch.no_grad():
        model.attn(0).smear.copy_(torch.tensor([1.3, -0.4, -2.0]))
    result = detect_smeared_keys(model, text() if with_tokens else None)
    for index, alpha in enumerate((1.3, -0.4, -2.0)):
        found = numbers(result, f"L0H{index}")
        assert found["smear"] == pytest.approx(1 / (1 + math.exp(-alpha)), abs=1e-6)
        assert found["smear_fit"] == pytest.approx(1, abs=1e-6)
        assert found["alignment"] == pytest.approx(1, abs=1e-6)
        if with_tokens:
            assert found["smeared_scores"] == pytest.approx(found["predicted_scores"])
        for channel in "qv":
            other = numbers(result, f"L0H{index}", channel)
            assert (other["lag_share_0"], other["smear"], other["smear_fit"]) == (1, 1, 1)


def smearing_convolution(share, **options):
    """A convolution without residual that mixes the whole stream, σ to the current token."""
    sizes = {"d_vocab": zoo.D_VOCAB, "d_model": 12, "n_heads": 3, "n_ctx": 8}
    model = zoo.randomise(HookedConvAttn(**sizes, residual=False, **options))
    one = torch.randn(12, 12, generator=torch.Generator().manual_seed(2))
    if options.get("depthwise"):
        one = torch.full((12,), 0.7)
    with torch.no_grad():
        model.conv(0).W_conv.copy_(torch.stack([share * one, (1 - share) * one]))
    return model


@pytest.mark.parametrize("options", [{}, {"depthwise": True}, {"norm": "rms"}, {"norm": "none"}])
def test_a_convolution_that_smears_gives_its_mixing_weight_in_every_channel(options):
    model = smearing_convolution(0.3, **options)
    for result in (detect_smeared_keys(model), detect_smeared_keys(model, text())):
        for channel in "kqv":
            for head in result.labels["head"]:
                found = numbers(result, head, channel)
                assert found["smear"] == pytest.approx(0.3, abs=1e-5)
                assert found["smear_fit"] == pytest.approx(1, abs=1e-5)
                assert found["alignment"] == pytest.approx(1, abs=1e-5)


def test_a_dead_lag_has_share_zero():
    model = readers.build("no norm")
    with torch.no_grad():
        model.conv(0).W_conv[1] = 0
    for result in (detect_smeared_keys(model), detect_smeared_keys(model, text())):
        found = numbers(result)
        assert (found["lag_share_0"], found["lag_share_1"], found["smear"]) == pytest.approx(
            (1, 0, 1)
        )


def of_two_numbers(first, second, between=None):
    """The geometry of two maps of one number each, whose inner product is `between`."""
    between = first * second if between is None else between
    products = torch.tensor([[first**2, between], [between, second**2]]).double()[..., None, None]
    one, bare = torch.ones(1, 1).double(), products.diagonal()[0, 0][:, None, None]
    return geometry(LagGrams(products, products, one, bare, bare, 1.0))


@pytest.mark.parametrize(("second", "read"), [(2e-6, True), (5e-7, False)])
def test_a_lag_is_not_read_where_its_square_is_a_millionth_of_a_millionth(second, read):
    for sizes in ((1.0, second), (second, 1.0)):
        found = of_two_numbers(*sizes)
        assert math.isfinite(found.numbers["alignment"]) == read
        if read:
            assert found.numbers["alignment"] == pytest.approx(1)
            assert found.numbers["alignment_null"] == pytest.approx(1)
        else:
            assert f"lag {sizes.index(second)} is not read" in found.undefined["alignment"]


@pytest.mark.parametrize(("apart", "fits"), [(0.0101, True), (0.0099, False)])
def test_two_unrelated_maps_within_a_hundredth_of_equal_have_no_common_one(apart, fits):
    found = of_two_numbers(1.0, math.sqrt(1 - apart), between=0.0)
    assert found.numbers["smear_fit"] == pytest.approx(1 / (2 - apart))
    assert ("smear" not in found.undefined) == fits
    if fits:
        assert (found.numbers["smear"], found.mixture[1]) == pytest.approx((1, 0))


@pytest.mark.parametrize(("apart", "mixes"), [(0.0202, True), (0.0198, False)])
def test_two_lags_that_cancel_within_a_hundredth_are_a_difference(apart, mixes):
    found = of_two_numbers(1.0, -(1 - apart))
    assert ("smear" not in found.undefined) == mixes
    if mixes:
        assert found.numbers["smear"] == pytest.approx(1 / apart)


def test_random_weights_lie_inside_the_null_band():
    z = []
    for seed in range(20):
        model = HookedConvAttn(d_vocab=300, d_model=32, n_heads=2, n_ctx=8, seed=seed)
        result = detect_smeared_keys(model)
        found = result.sel(measure=["alignment", "alignment_null"]).values
        z.append(found[..., 0] / found[..., 1])
    z = np.concatenate(z, axis=1)
    assert np.abs(z).max() < 4.0
    assert 0.6 < z.std() < 1.4


def inner(first, second, sigma, metric):
    """The inner product of two maps, spelled out."""
    return float((first.T @ sigma @ second @ metric).trace())


def cosine(first, second, sigma, metric):
    """Their alignment."""
    lengths = [inner(one, one, sigma, metric) for one in (first, second)]
    return inner(first, second, sigma, metric) / math.sqrt(lengths[0] * lengths[1])


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_the_null_is_that_of_a_map_whose_stream_is_turned(norm, with_tokens):
    # A stream that varies more in some directions, and most in the mean that a LayerNorm takes off.
    model = HookedConvAttn(
        d_vocab=200, d_model=24, n_heads=1, d_head=8, n_ctx=8, norm=norm, positions="none", seed=1
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model.W_E.mul_(0.9 ** torch.arange(24))
    model.W_E.copy_(model.W_E @ haar.drawn(24, generator))
    if norm == "layer":
        model.W_E.add_(torch.randn(200, 1, generator=generator))
    tokens = text(n=400, d_vocab=200)
    heads = head_maps(view(model), ["L1H0"]).values()
    read = read_heads(heads, tokens if with_tokens else None)["L1H0"]
    x = model.W_E[tokens[:, 1:].flatten() if with_tokens else torch.arange(200)]
    sigma = torch.cov(x.T, correction=0)
    if with_tokens:
        captured = model.run_with_cache(tokens)[1]["blocks.1.attn.hook_q"][:, :, 0].flatten(0, 1)
        metric = captured.T @ captured / len(captured)
    else:
        constants = sum(value[-1] for value in read["q"].constants.values())
        by_lag = [x.mean(0) @ one for one in read["q"].maps]
        query = sum(by_lag) + constants
        spread = sum(one.T @ sigma @ one for one in read["q"].maps)
        metric = spread + torch.outer(query, query)
    first, second = read["k"].maps
    # Inside the directions that LayerNorm leaves, which are those orthogonal to the mean.
    centre = torch.eye(24).double() - (norm == "layer") / 24
    basis = torch.linalg.eigh(centre)[1][:, norm == "layer" :]
    width = basis.shape[1]
    exact, deviations = [], []
    for one, other in ((first, second), (second, first)):
        maps = one, basis, basis.T @ other, sigma, metric

        def crossed(rotation, maps=maps):
            one, basis, other, *sides = maps
            return inner(one, basis @ rotation @ other, *sides) ** 2

        def length(rotation, maps=maps):
            _, basis, other, *sides = maps
            turned = basis @ rotation @ other
            return inner(turned, turned, *sides)

        variance = haar.average(crossed, width) / haar.average(length, width)
        exact.append(math.sqrt(variance / inner(one, one, sigma, metric)))
        turned = [basis @ haar.drawn(width, generator) @ basis.T @ other for _ in range(N_DRAWN)]
        drawn = [cosine(one, way, sigma, metric) for way in turned]
        assert np.mean(drawn) == pytest.approx(0, abs=4 * np.std(drawn) / math.sqrt(N_DRAWN))
        deviations.append(np.std(drawn))
    found = numbers(detect_smeared_keys(model, tokens if with_tokens else None))
    assert found["alignment"] == pytest.approx(cosine(first, second, sigma, metric), abs=1e-6)
    assert found["alignment_null"] == pytest.approx(max(exact), rel=1e-6)
    # The ratio of the two means stands in for the mean of the ratio: up to 3 % more, and the
    # deviation of what was drawn has an error of 2.6 %.
    assert found["alignment_null"] == pytest.approx(max(deviations), rel=0.1)


def test_random_maps_of_a_stream_that_varies_in_few_directions_lie_inside_the_null_band():
    # A rotation of the whitened stream would promise a quarter of the spread that there is.
    z = []
    for seed in range(20):
        model = HookedConvAttn(
            d_vocab=300, d_model=32, n_heads=2, n_ctx=8, seed=seed, residual=False, norm="none"
        )
        with torch.no_grad():
            model.W_E[:, 3:] *= 0.05
        result = detect_smeared_keys(model).sel(measure=["alignment", "alignment_null"])
        z.append(result.values[..., 0] / result.values[..., 1])
    z = np.concatenate(z, axis=1)
    assert np.abs(z).max() < 4.0
    assert 0.6 < z.std() < 1.4


@pytest.mark.parametrize("name", ["three lags", "rms", "no norm, three lags, rotary", "course"])
def test_tokens_give_the_numbers_of_the_field_by_brute_force(name):
    """Every sum spelled out over the tokens, with the weights' maps and the cached queries."""
    model, tokens = readers.build(name), text()
    layer = model.attention_layers[0]
    attn, head = model.attn(layer), f"L{layer}H0"
    distance = 2 if attn.rotary is not None else 0
    result = detect_smeared_keys(model, tokens, distance=distance)
    read = reads(model, head, "k", tokens=tokens)
    _, cache = model.run_with_cache(tokens)
    x, start = cache[read.source], read.lags - 1
    q = cache[f"blocks.{layer}.attn.hook_q"][:, :, 0].reshape(-1, attn.W_Q.shape[-1])
    queries = q.T @ q / len(q)
    if attn.rotary is not None:
        turn = head_maps(view(model), [head])[head].rotation(distance)
        queries = turn.T @ queries @ turn

    def covariance(i, j):
        one, other = (x[:, start - lag : 8 - lag].flatten(0, 1) for lag in (i, j))
        return (one - one.mean(0)).T @ (other - other.mean(0)) / len(one)

    def product(i, j, sigma):
        return float((read.maps[i].T @ sigma @ read.maps[j] @ queries).trace())

    shared = [[product(j, i, covariance(j, i)) for i in range(read.lags)] for j in range(read.lags)]
    found = numbers(result, head)
    shares = [found[f"lag_share_{lag}"] for lag in range(read.lags)]
    np.testing.assert_allclose(shares, np.sum(shared, axis=1) / np.sum(shared))
    same = [[product(i, j, covariance(0, 0)) for j in range(2)] for i in range(2)]
    alignment = same[0][1] / math.sqrt(same[0][0] * same[1][1])
    assert found["alignment"] == pytest.approx(alignment)
    values, vectors = np.linalg.eigh(np.array(same))
    assert found["smear"] == pytest.approx(vectors[0, 1] / vectors[:, 1].sum())
    assert found["smear_fit"] == pytest.approx(values[1] / values.sum())

    captured = cache[readers.key_hook(model, layer, "k")][:, start:, 0].flatten(0, 1)
    account = sum(x[:, start - lag : 8 - lag].flatten(0, 1) @ m for lag, m in enumerate(read.maps))
    length = [
        float(torch.einsum("ij,ji", torch.cov(k.T), queries))
        for k in (captured - account, captured)
    ]
    assert found["predicted"] == pytest.approx(1 - length[0] / length[1])
