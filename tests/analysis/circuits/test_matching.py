"""How far the diagonal of a token-to-token circuit stands out, against the circuit spelled out."""

import itertools

import numpy as np
import pytest
import torch

from interp.analysis.circuits.head_maps import head_maps
from interp.analysis.circuits.matching import (
    Rows,
    diagonal_preference,
    match_table,
    matches,
    previous_token_match,
)
from interp.analysis.circuits.reads import reads
from interp.models import HookedConvAttn
from interp.views import view
from tests.analysis import haar, planted, readers
from tests.models import zoo

VOCAB, WIDTH, HEAD = 60, 12, 4


def random_parts(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((VOCAB, WIDTH), (2, WIDTH, HEAD), (3, WIDTH, HEAD))
    rows, queries, keys = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    keys[1] += queries[0]  # one pair that knows of each other
    return (rows + 0.4).to(dtype), queries.to(dtype), keys.to(dtype)


def standardised(rows, query, key):
    circuit = rows @ query @ key.T @ rows.T
    return (circuit - circuit.mean(1, keepdim=True)) / circuit.std(1, correction=0, keepdim=True)


def test_equals_the_circuit_spelled_out():
    rows, queries, keys = random_parts()
    found = matches(Rows.of(rows), queries, keys)
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            expected = standardised(rows, query, key).diagonal().mean()
            torch.testing.assert_close(found.value[i, j], expected)


def test_a_row_that_is_rounding_prefers_nothing():
    # Queries are nearly alike, and one token's cancels but for the last bits.
    rows, queries, keys = random_parts()
    rows = rows * 0.1 + 3
    basis = torch.linalg.qr(queries[0])[0]
    rows[0] -= basis @ (basis.T @ rows[0])
    query = rows @ queries[0]
    assert 0 < float(query[0].abs().max()) < 1e-13 < float(query[1:].abs().amax(1).min())
    found = matches(Rows.of(rows), queries[:1], keys[:1]).value
    others = standardised(rows, queries[0], keys[0]).diagonal()[1:]
    torch.testing.assert_close(found[0, 0], others.sum() / VOCAB)


def test_chunks_make_no_difference(monkeypatch):
    rows, queries, keys = random_parts()
    whole = matches(Rows.of(rows), queries, keys)
    monkeypatch.setattr("interp.analysis.circuits.matching.ROWS_AT_ONCE", 7)
    parts = matches(Rows.of(rows), queries, keys)
    for name in ("value", "shuffled", "rotated"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_float32_is_as_good_as_its_precision():
    exact = matches(Rows.of(random_parts()[0]), *random_parts()[1:])
    rows, queries, keys = random_parts(dtype=torch.float32)
    found = matches(Rows.of(rows), queries, keys)
    torch.testing.assert_close(found.value, exact.value, rtol=1e-4, atol=1e-4)


def test_the_shuffled_deviation_is_that_of_all_shuffles():
    n = 5
    rows, queries, keys = random_parts()
    found = matches(Rows.of(rows[:n]), queries, keys)
    z = standardised(rows[:n], queries[0], keys[1])
    shuffles = torch.tensor(list(itertools.permutations(range(n))))
    expected = z[torch.arange(n), shuffles].mean(1).std(correction=0)
    torch.testing.assert_close(found.shuffled[0, 1], expected)


@pytest.mark.parametrize("rank", [2, WIDTH])
def test_the_rotated_deviation_is_that_of_haar_rotations(rank):
    rows, queries, keys = random_parts()
    rows[:, rank:] = 0.4  # varies in so many directions
    rows @= haar.drawn(WIDTH, generator := torch.Generator().manual_seed(2))
    values, vectors = (x[..., -rank:] for x in torch.linalg.eigh(torch.cov(rows.T, correction=0)))
    root, inverse = (vectors * values**power for power in (0.5, -0.5))

    def circuit(rotation):
        turned = inverse @ rotation @ root.T @ keys[1]
        whole = rows @ queries[0] @ turned.T @ rows.T
        return whole - whole.mean(1, keepdim=True)

    deviation = circuit(torch.eye(rank).double()).std(1, correction=0)
    # No rotation changes it, so that the match is linear in the rotation.
    torch.testing.assert_close(circuit(haar.drawn(rank, generator)).std(1, correction=0), deviation)
    variance = haar.average(
        lambda rotation: (circuit(rotation).diagonal() / deviation).mean() ** 2, rank
    )
    found = matches(Rows.of(rows), queries, keys)
    assert float(found.rotated[0, 1]) == pytest.approx(variance**0.5, rel=1e-9)


def standardised_with(rows, query, key):
    return standardised(rows, query, key).diagonal().mean()


def test_random_weights_lie_inside_the_rotated_band():
    """And not inside the shuffled one, which knows these weights but not how they came about.

    A cell of one lag twice goes through the same random convolution twice, so that its maps are not
    quite independent: its band is up to √2 wider.
    """
    z = []
    for seed in range(20):
        model = HookedConvAttn(d_vocab=400, d_model=24, n_heads=2, n_ctx=8, seed=seed)
        table = match_table(model)
        match, shuffled, rotated = (table.sel(measure=m).values for m in table.labels["measure"])
        z.append(match / rotated)
        assert (rotated > 1.5 * shuffled).all()
    z = np.concatenate(z)
    apart, twice = z[:, [0, 1], [1, 0]], z[:, [0, 1], [0, 1]]
    assert 0.8 < apart.std() < 1.2
    assert (np.abs(apart) < 2.58).mean() > 0.95
    assert 1.0 < twice.std() < 1.7
    assert np.abs(z).max() < 4.5


def test_an_induction_head_above_a_convolution_matches_at_0_1():
    model = planted.induction_conv_attn(d_vocab=20, n_ctx=30)
    table = match_table(model)
    cells = table.sel(head="L1H0", measure="match").values
    # One token scores the gain, 19 nothing: (1 - 1/20) / sqrt(1/20 · 19/20) deviations.
    assert cells[0, 1] == pytest.approx(np.sqrt(19))
    assert np.isnan(cells[[0, 1, 1], [0, 0, 1]]).all()  # nothing is read there: flat rows
    assert np.isnan(table.sel(head="L1H1").values).all()


def test_a_smeared_head_matches_at_both_key_lags_and_has_one_query_lag():
    table = match_table(planted.induction_smeared_attn(d_vocab=20, n_ctx=30, alpha=0.3))
    assert table.labels["query_lag"] == ("lag 0",)
    np.testing.assert_allclose(table.sel(head="L0H0", measure="match").values, [[np.sqrt(19)] * 2])


def test_heads_with_other_lags_stand_beside_each_other():
    model = readers.build("attention between")  # heads, a convolution of three lags, heads
    table = match_table(model, tokens=zoo.tokens())
    lags = ("lag 0", "lag 1", "lag 2")
    assert table.labels["query_lag"] == table.labels["key_lag"] == lags
    for head in table.labels["head"]:
        has = np.zeros((3, 3), dtype=bool)
        has[:1, :1] = True
        found = table.sel(head=head)
        expected = has if head.startswith("L0") else np.ones_like(has)
        for measure in ("match", "shuffled", "rotated"):
            np.testing.assert_array_equal(np.isfinite(found.sel(measure=measure)), expected)
        chance = found.chance[0, 0]
        assert chance[0] == 0
        assert np.isnan(chance[1:]).all()


def test_a_basis_of_the_head_changes_nothing():
    model = readers.build("three lags")
    before = match_table(model)
    change = torch.randn(4, 4, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        attn = model.attn(1)
        attn.W_K[1] = attn.W_K[1] @ change
        attn.W_Q[1] = attn.W_Q[1] @ torch.linalg.inv(change).T
    np.testing.assert_allclose(match_table(model).values, before.values, rtol=1e-8)


def test_rotary_matches_at_a_chosen_distance():
    model = readers.build("rotary")
    rows, head = model.W_E.detach(), head_maps(view(model), ["L1H2"])["L1H2"]
    q, k = (reads(model, "L1H2", channel).maps for channel in "qk")
    for distance in (0, 3):
        table = match_table(model, distance=distance)
        expected = standardised_with(rows, q[0] @ head.rotation(distance), k[1])
        found = table.sel(head="L1H2", query_lag="lag 0", key_lag="lag 1", measure="match")
        assert float(found) == pytest.approx(float(expected))
        assert table.provenance["distance"] == distance


def test_refusals():
    with pytest.raises(ValueError, match="no attention layer"):
        match_table(zoo.build("conv alone"))
    with pytest.raises(ValueError, match="no residual stream"):
        match_table(zoo.build("no residual, rms, MLP"))
    with pytest.raises(ValueError, match="same at every distance"):
        match_table(readers.build("three lags"), distance=2)


def test_the_two_cells_that_have_names():
    table = match_table(model := readers.build("three lags"))
    for found, key_lag in (
        (diagonal_preference(model), "lag 0"),
        (previous_token_match(model), "lag 1"),
    ):
        cell = table.sel(query_lag="lag 0", key_lag=key_lag).values
        np.testing.assert_array_equal(
            found.sel(measure=["match", "shuffled", "rotated"]).values, cell
        )
        z = found.sel(measure="z").values
        np.testing.assert_allclose(z, cell[:, 0] / cell[:, 1:].max(1))


def test_a_match_one_token_back_needs_keys_that_read_one_token_back():
    planted_head = previous_token_match(planted.induction_conv_attn(d_vocab=20, n_ctx=30))
    assert planted_head.sel(head="L1H0", measure="match").values == pytest.approx(np.sqrt(19))
    with pytest.raises(ValueError, match="composition_scores"):
        previous_token_match(zoo.build("shortformer, then none"))
