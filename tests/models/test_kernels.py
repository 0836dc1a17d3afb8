"""Three prices, one attention: fused, chunked and spelled out against a brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from interp.models import kernels
from interp.models.kernels import Visibility
from interp.models.layers import Attention as AttentionSpec
from interp.models.layers import MultiHeadAttention as AttentionLayer

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}


def heads(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def qkv(n: int = 7, d_v: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    widths = (5, 5, d_v)
    return tuple(heads(3, 2, n, width, dtype=dtype, seed=seed) for seed, width in enumerate(widths))


def brute_force(
    q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, scale: float
) -> tuple[Tensor, Tensor]:
    """One query, one key at a time, in plain Python floats."""
    z, lse = torch.zeros_like(v, dtype=torch.float64), torch.full(q.shape[:-1], -math.inf).double()
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:-1])).tolist():
        visible = [
            j
            for j in range(k.shape[-2])
            if (j <= i or not visibility.causal)
            and (visibility.key_mask is None or visibility.key_mask[b, j])
        ]
        if not visible:
            continue
        weights = [
            math.exp(float(q[b, h, i].double() @ k[b, h, j].double()) * scale) for j in visible
        ]
        lse[b, h, i] = math.log(sum(weights))
        for weight, j in zip(weights, visible, strict=True):
            z[b, h, i] += weight / sum(weights) * v[b, h, j].double()
    return z, lse


MASK = torch.tensor(
    [
        [True, True, True, True, True, False, False],  # padding on the right
        [False, False, True, True, False, True, True],  # on the left, and a hole
        [False, False, False, False, False, False, False],  # nothing at all
    ]
)
VISIBILITIES = {
    "causal": Visibility(True),
    "everywhere": Visibility(False),
    "causal, masked": Visibility(True, MASK),
    "everywhere, masked": Visibility(False, MASK),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", VISIBILITIES)
@pytest.mark.parametrize("d_v", [5, 3])
def test_all_prices_buy_the_same(name: str, dtype: torch.dtype, d_v: int) -> None:
    visibility, scale = VISIBILITIES[name], 0.6
    q, k, v = qkv(d_v=d_v, dtype=dtype)
    z, lse = brute_force(q, k, v, visibility, scale)
    scores = kernels.masked_scores(q, k, visibility, scale)
    prices = {
        "fused": (kernels.fused(q, k, v, visibility, scale), None),
        "with log-sum-exp": kernels.fused_with_log_sum_exp(q, k, v, visibility, scale),
        "chunked": kernels.chunked(q, k, v, visibility, scale, chunk=3),
        "spelled out": (kernels.pattern_of(scores) @ v, scores.logsumexp(-1)),
    }
    for price, (got_z, got_lse) in prices.items():
        assert got_z.dtype == dtype
        assert_close(got_z.double(), z, rtol=0, atol=TOLERANCE[dtype], msg=price)
        if got_lse is not None:
            assert_close(got_lse.double(), lse, rtol=0, atol=TOLERANCE[dtype], msg=price)


@pytest.mark.parametrize("name", ["causal, masked", "everywhere, masked"])
def test_a_query_that_sees_no_key_writes_nothing(name: str) -> None:
    q, k, v = qkv()
    z, lse = kernels.chunked(q, k, v, VISIBILITIES[name], 1.0)
    assert not z[2].any()
    assert (lse[2] == -math.inf).all()
    assert not kernels.fused(q, k, v, VISIBILITIES[name], 1.0)[2].any()
    pattern = kernels.pattern_of(kernels.masked_scores(q, k, VISIBILITIES[name], 1.0))
    assert not pattern[2].any()
    assert_close(pattern[0].sum(-1), torch.ones_like(pattern[0, ..., 0]))


@pytest.mark.parametrize("price", ["fused", "chunked", "spelled out"])
def test_gradients_are_finite_and_equal_where_some_queries_see_nothing(price: str) -> None:
    visibility = VISIBILITIES["causal, masked"]

    def gradients(way: str) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in qkv()]
        q, k, v = leaves
        if way == "fused":
            z = kernels.fused(q, k, v, visibility, 0.6)
        elif way == "chunked":
            z = kernels.chunked(q, k, v, visibility, 0.6, chunk=2)[0]
        else:
            z = kernels.pattern_of(kernels.masked_scores(q, k, visibility, 0.6)) @ v
        z.pow(2).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    for got, expected in zip(gradients(price), gradients("spelled out"), strict=True):
        assert got.isfinite().all()
        assert got.abs().max() > 1e-3
        assert_close(got, expected, rtol=0, atol=1e-12)


@given(n=st.integers(1, 20), chunk=st.integers(1, 25), causal=st.booleans(), masked=st.booleans())
def test_where_chunks_end_does_not_matter(n: int, chunk: int, causal: bool, masked: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    mask = torch.rand(3, n, generator=generator) > 0.4 if masked else None
    visibility = Visibility(causal, mask)
    q, k, v = qkv(n)
    whole = kernels.chunked(q, k, v, visibility, 0.3, chunk=n)
    parts = kernels.chunked(q, k, v, visibility, 0.3, chunk=chunk)
    for one, other in zip(whole, parts, strict=True):
        assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_the_log_sum_exp_alone(dtype: torch.dtype, chunk: int) -> None:
    q, k, v = qkv(dtype=dtype)
    for causal in (True, False):
        _, expected = brute_force(q, k, v, Visibility(causal), 0.6)
        got = kernels.log_sum_exp(q, k, causal, 0.6, chunk=chunk)
        # 16-bit scores are summed in float32, as the fused kernels do.
        assert got.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_a_score_and_the_log_sum_exp_give_a_probability() -> None:
    q, k, v = qkv(dtype=torch.float32)
    visibility = Visibility(True)
    _, lse = kernels.fused_with_log_sum_exp(q, k, v, visibility, 0.4)
    scores = kernels.masked_scores(q, k, visibility, 0.4)
    assert_close((scores - lse[..., None]).exp(), kernels.pattern_of(scores))


def test_scores_too_large_for_exp_are_no_trouble() -> None:
    q, k, v = (x * 1e3 for x in qkv())
    for way in (kernels.fused_with_log_sum_exp, kernels.chunked):
        z, lse = way(q, k, v, Visibility(True), 1.0)
        assert z.isfinite().all()
        assert lse.isfinite().all()
        assert lse.abs().max() > 1e4


def test_dropout_keeps_the_expected_output() -> None:
    q, k, v = qkv(dtype=torch.float32)
    visibility = Visibility(True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        runs = torch.stack([kernels.fused(q, k, v, visibility, 0.3, 0.5) for _ in range(3000)])
    expected = kernels.fused(q, k, v, visibility, 0.3)
    assert runs.std(0).max() > 0.1
    assert (runs.mean(0) - expected).abs().max() < 0.12


def test_the_mask_says_who_sees_whom() -> None:
    device = torch.device("cpu")
    assert Visibility(False).mask(3, device) is None
    keys = torch.tensor([[True, False, True]])
    causal = Visibility(True, keys).mask(3, device)
    assert causal is not None
    assert causal.int().tolist() == [[[[1, 0, 0], [1, 0, 0], [1, 0, 1]]]]
    everywhere = Visibility(False, keys).mask(3, device)
    assert everywhere is not None
    assert everywhere.int().tolist() == [[[[1, 0, 1]] * 3]]


@pytest.mark.parametrize("listened_to", [False, True])
def test_a_layers_dropout_keeps_the_expected_output_on_either_path(listened_to: bool) -> None:
    attn = AttentionLayer(6, AttentionSpec(n_heads=2, d_head=3), dropout=0.5)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in attn.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    if listened_to:
        attn.hook_pattern.add_hook(lambda pattern, hook: None)
    x = torch.randn(1, 4, 6, generator=generator)
    expected = attn.eval()(x)[0]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        runs = attn.train()(x.expand(4000, -1, -1))
    assert runs.std(0).min() > 0.1
    assert ((runs.mean(0) - expected) / runs.std(0)).abs().max() < 5 / 4000**0.5
