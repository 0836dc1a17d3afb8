"""Scores and outputs split over lags: they add up to the model's own, cell by cell as computed."""

import numpy as np
import pytest
import torch

from interp.analysis import induction_score, repeated_tokens
from interp.analysis.lags.lag_circuits import lag_circuits, lag_pair_shares
from interp.analysis.lags.lag_pair import without_lag_pair
from interp.models import Conv, HookedAttn, HookedConvAttn
from tests.analysis import measured, planted, readers
from tests.models import zoo

READING_BACK = (
    "three lags",
    "as many lags as tokens",
    "lag bias",
    "depthwise, rms, lag bias",
    "no output map",
    "one channel per head",
    "not causal",
    "rotary",
    "rotary, smeared",
    "shortformer, post",
    "no residual",
    "course",
    "post, rms",
    "tied",
    *readers.MORE,
)


def reading_back(model):
    """Its heads that read an earlier token through their weights."""
    labels = lag_pair_shares(model, zoo.tokens()).labels["head"]
    return [place for place in readers.heads(model) if place[0] in labels]


@pytest.mark.parametrize("name", READING_BACK)
def test_parts_add_up_to_the_models_scores_and_outputs(name):
    model, tokens = readers.build(name), zoo.tokens(batch=1)
    _, cache = model.run_with_cache(tokens)
    for head, layer, index in reading_back(model)[:2]:
        circuits = lag_circuits(model, head, tokens)
        scores = torch.tensor(circuits.scores.values).sum((0, 1))
        expected = cache["attn_scores", layer][0, index]
        visible = expected.isfinite()
        assert (scores.isnan() == ~visible).all()
        assert readers.close(scores[visible], expected[visible], torch.float64)
        written = torch.tensor(circuits.outputs.values).sum(0)
        result = cache[f"blocks.{layer}.attn.hook_result"][0, :, index]
        assert readers.close(written, result, torch.float64)


def test_parts_add_up_in_float32_too():
    model, tokens = readers.build("two convolutions", torch.float32), zoo.tokens(batch=1)
    _, cache = model.run_with_cache(tokens)
    circuits = lag_circuits(model, "L2H1", tokens)
    expected = cache["attn_scores", 2][0, 1]
    visible = expected.isfinite()
    scores = torch.tensor(circuits.scores.values).sum((0, 1)).float()
    assert readers.close(scores[visible], expected[visible], torch.float32)


def test_every_cell_is_computed_by_brute_force():
    """One convolution, LayerNorm twice, residual: every pair of lags spelled out token by token."""
    model, tokens = readers.build("three lags"), zoo.tokens(batch=1)
    _, cache = model.run_with_cache(tokens)
    attn, conv = model.attn(1), model.conv(0)
    x = cache["blocks.0.hook_resid_pre"][0]
    s1, s2 = (cache[f"blocks.{layer}.ln1.hook_scale"][0] for layer in (0, 1))

    def read(position, lag):
        if lag > position:
            return torch.zeros(12).double()
        token = x[position - lag]
        normed = (token - token.mean()) / s1[position - lag] * model.blocks[0].ln1.w
        stream = normed @ conv.W[lag] + (token if lag == 0 else 0)
        return (stream - stream.mean()) / s2[position] * model.blocks[1].ln1.w

    scores = lag_circuits(model, "L1H2", tokens).scores
    expected = np.full((3, 3, 8, 8), np.nan)
    for i in range(3):
        for j in range(3):
            for t in range(8):
                for s in range(t + 1):
                    q, k = read(t, i) @ attn.W_Q[2], read(s, j) @ attn.W_K[2]
                    expected[i, j, t, s] = (q @ k).item() / 2
    np.testing.assert_allclose(scores.values[:3, :3], expected, atol=1e-10)


@pytest.mark.parametrize("name", ["course", "no norm", "no norm, three lags, rotary"])
def test_the_weights_circuits_are_the_parts_where_there_is_no_norm(name):
    """x_{t-i} qk[i, j] x_{s-j}ᵀ at t - s = distance; with rotary positions at no other."""
    model, tokens = readers.build(name), zoo.tokens(batch=1)
    head, layer, index = readers.heads(model)[-1]
    distance = 2 if model.attn(layer).rotary is not None else 0
    circuits = lag_circuits(model, head, tokens, distance=distance)
    _, cache = model.run_with_cache(tokens)
    x = cache[circuits.queries.source][0]
    t, s = 6, 6 - 2
    for (i, j), circuit in circuits.qk.items():
        found = x[t - i] @ circuit.AB @ x[s - j]
        part = circuits.scores.sel(query_lag=f"lag {i}", key_lag=f"lag {j}", query=t, key=s)
        assert float(found) == pytest.approx(float(part), abs=1e-10)
    for j, circuit in circuits.ov.items():
        values = circuits.values.maps[j] @ model.attn(layer).W_O[index]
        torch.testing.assert_close(circuit.AB, values)


def test_without_a_convolution_a_circuit_is_transformer_lenss():
    """A smeared head with σ = 1 is an ordinary one: its circuit is the model's own QK and OV."""
    model = planted.induction_smeared_attn(d_vocab=6, n_ctx=9, alpha=planted.SURE).float()
    circuits = lag_circuits(model, "L0H0")
    scale = model.attn(0).scale
    torch.testing.assert_close(circuits.qk[0, 0].AB, model.QK[0, 0].AB * scale)
    torch.testing.assert_close(circuits.ov[0].AB, model.OV[0, 0].AB)
    assert circuits.qk[0, 1].AB.abs().max() < 1e-12


def test_the_planted_circuit_is_in_its_cell_and_nowhere_else():
    model = planted.induction_conv_attn(d_vocab=12, n_ctx=30)
    probe = repeated_tokens(10, d_vocab=12, bos=0, n_sequences=3)
    shares = lag_pair_shares(model, probe.tokens).sel(head="L1H0")
    assert float(shares.sel(query_lag="lag 0", key_lag="lag 1")) == pytest.approx(1)
    assert np.abs(shares.values).sum() == pytest.approx(1)
    circuits = lag_circuits(model, "L1H0", probe.tokens[:1])
    cell = circuits.scores.sel(query_lag="lag 0", key_lag="lag 1").values
    np.testing.assert_allclose(cell[11, [1, 2, 3]], [0, 20, 0], atol=1e-9)
    assert np.nanmax(np.abs(np.delete(circuits.scores.values, 1, axis=1))) < 1e-9


@pytest.mark.parametrize("name", ["lag bias", "rotary, smeared", "two convolutions", "not causal"])
def test_shares_are_those_of_the_split_scores(name):
    model, tokens = readers.build(name), zoo.tokens(batch=2)
    shares = lag_pair_shares(model, tokens)
    np.testing.assert_allclose(shares.values.sum((1, 2)), 1)
    head = shares.labels["head"][-1]
    expected = []
    for sequence in tokens:
        circuits = lag_circuits(model, head, sequence[None])
        parts = torch.tensor(circuits.scores.values)
        i, j = circuits.queries.lags, circuits.keys.lags
        parts = torch.cat([parts[:i], parts[i:].sum(0, keepdim=True)])
        parts = torch.cat([parts[:, :j], parts[:, j:].sum(1, keepdim=True)], dim=1)
        whole = parts.sum((0, 1))
        deviations = whole - whole.nanmean(-1, keepdim=True)
        covariance = (deviations * (parts - parts.nanmean(-1, keepdim=True))).nansum((-1, -2))
        expected.append(covariance / deviations.square().nansum())
    mean = torch.stack(expected).mean(0).numpy()
    np.testing.assert_allclose(shares.sel(head=head).values, mean, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["lag bias", "rotary, smeared", "two convolutions, post, shortformer"]
)
@pytest.mark.parametrize("mask", [None, zoo.right_padding(8, 5, 3)])
def test_removing_a_pair_takes_exactly_its_part_from_one_head(name, mask):
    model, tokens = readers.build(name), zoo.tokens()
    head, layer, index = reading_back(model)[1]
    run = {"attention_mask": mask, "names_filter": f"blocks.{layer}.attn.hook_attn_scores"}
    _, before = model.run_with_cache(tokens, **run)
    with model.hooks(fwd_hooks=without_lag_pair(model, head, (0, 1))):
        _, after = model.run_with_cache(tokens, **run)
    was, now = before["attn_scores", layer], after["attn_scores", layer]
    others = [i for i in range(was.shape[1]) if i != index]
    torch.testing.assert_close(now[:, others], was[:, others])
    for row, sequence in enumerate(tokens):
        real = slice(0, None if mask is None else int(mask[row].sum()))
        circuits = lag_circuits(model, head, sequence[None, real])
        part = circuits.scores.sel(query_lag="lag 0", key_lag="lag 1").values
        found = (was - now)[row, index, real, real].numpy()
        visible = ~np.isnan(part)
        np.testing.assert_allclose(found[visible], part[visible], atol=1e-9)


def test_padding_on_the_left_adds_nothing_to_the_part_that_is_removed():
    model = zoo.from_config(zoo.config(Conv(), zoo.HEADS, positions="none"))
    tokens, mask = zoo.tokens(2), torch.ones(2, 8, dtype=torch.bool)
    mask[1, :3] = False
    run = {"attention_mask": mask, "names_filter": "blocks.1.attn.hook_attn_scores"}
    _, before = model.run_with_cache(tokens, **run)
    with model.hooks(fwd_hooks=without_lag_pair(model, "L1H1", (0, 1))):
        _, after = model.run_with_cache(tokens, **run)
    scores = lag_circuits(model, "L1H1", tokens[1:, 3:]).scores
    part = scores.sel(query_lag="lag 0", key_lag="lag 1").values
    found = (before["attn_scores", 1] - after["attn_scores", 1])[1, 1, 3:, 3:].numpy()
    visible = ~np.isnan(part)
    np.testing.assert_allclose(found[visible], part[visible], atol=1e-9)


def test_removing_all_pairs_leaves_the_constants():
    model, tokens = readers.build("lag bias"), zoo.tokens()
    hooks = [h for i in range(3) for j in range(3) for h in without_lag_pair(model, "L1H0", (i, j))]
    with model.hooks(fwd_hooks=hooks):
        _, cache = model.run_with_cache(tokens)
    parts = lag_circuits(model, "L1H0", tokens[:1]).scores
    constants = parts.values.sum((0, 1)) - parts.values[:3, :3].sum((0, 1))
    visible = ~np.isnan(constants)
    found = cache["attn_scores", 1][0, 0].detach().numpy()
    np.testing.assert_allclose(found[visible], constants[visible], atol=1e-9)


def test_removing_the_matching_pair_ends_induction():
    model = planted.induction_conv_attn(d_vocab=20, n_ctx=40)
    clean = induction_score(model, n=15, n_sequences=4)
    with model.hooks(fwd_hooks=without_lag_pair(model, "L1H0", (0, 1))):
        without = induction_score(model, n=15, n_sequences=4)
    assert float(clean.sel(head="L1H0")) > 0.99
    np.testing.assert_allclose(without.values, clean.chance)
    with model.hooks(fwd_hooks=without_lag_pair(model, "L1H0", (0, 0))):
        other = induction_score(model, n=15, n_sequences=4)
    np.testing.assert_allclose(other.values, clean.values)


@pytest.mark.parametrize(
    "name", ["lag bias", "rotary, smeared", "two convolutions, post, shortformer"]
)
def test_another_sequences_part_is_what_is_subtracted(name):
    """Row b lacks the part of row b % 2 of the others, as split on them one by one."""
    model, tokens = readers.build(name), zoo.tokens()
    other = zoo.tokens(batch=5)[3:].flip(1)
    head, layer, index = reading_back(model)[1]
    site = f"blocks.{layer}.attn.hook_attn_scores"
    _, before = model.run_with_cache(tokens, names_filter=site)
    with model.hooks(fwd_hooks=without_lag_pair(model, head, (0, 1), of=other)):
        _, after = model.run_with_cache(tokens, names_filter=site)
    change = (before[site] - after[site]).nan_to_num()
    assert (change[:, [i for i in range(change.shape[1]) if i != index]] == 0).all()
    for row in range(len(tokens)):
        circuits = lag_circuits(model, head, other[row % 2][None])
        part = circuits.scores.sel(query_lag="lag 0", key_lag="lag 1").values
        visible = ~np.isnan(part)
        assert np.abs(part[visible]).max() > 1e-3
        np.testing.assert_allclose(change[row, index].numpy()[visible], part[visible], atol=1e-9)


def test_a_sequences_own_part_handed_in_is_the_removal():
    model, tokens = readers.build("three lags"), zoo.tokens()
    for pair in ((0, 1), (2, 0)):
        found = []
        for of in (None, tokens):
            with model.hooks(fwd_hooks=without_lag_pair(model, "L1H1", pair, of=of)):
                found.append(model(tokens))
        torch.testing.assert_close(*found)


def shuffled_twice(probe, seed=0):
    """The same first copies, each followed by its tokens in another order."""
    generator = torch.Generator().manual_seed(seed)
    first, n = probe.tokens[:, : probe.start + probe.n], probe.n
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in first])
    return torch.cat([first, first[:, probe.start :].gather(1, orders)], 1)


def test_removing_what_matches_elsewhere_leaves_the_planted_head_most_of_its_score():
    """The other's match takes 20 from one place of a row; the head's own stays where it is."""
    model = planted.induction_conv_attn(d_vocab=40, n_ctx=70)
    probe = repeated_tokens(30, d_vocab=40, bos=0, n_sequences=6)
    elsewhere = shuffled_twice(probe)
    n = probe.n
    hits = [
        (row, t, s)
        for row, order in enumerate(elsewhere)
        for t in range(n + 1, 2 * n + 1)
        for s in range(2, t + 1)
        if order[t] == order[s - 1] and s == t - n + 1
    ]
    score = {}
    for what, of in (("own", None), ("same places", probe.tokens.roll(1, 0)), ("other", elsewhere)):
        with model.hooks(fwd_hooks=without_lag_pair(model, "L1H0", (0, 1), of=of)):
            score[what] = induction_score(model, n=n, n_sequences=6).sel(head="L1H0")
    # Every repeated sequence matches at the same places: no control.
    assert float(score["same places"]) == pytest.approx(float(score["own"]), abs=1e-6)
    assert float(score["own"]) == pytest.approx(float(score["own"].chance))
    # A shuffled one takes away just those matches that its shuffling left where they were.
    lost = len(hits) / (6 * n)
    assert float(score["other"]) == pytest.approx(1 - lost * (1 - 1 / 45), abs=0.01)
    assert float(score["other"]) > 0.9


@pytest.mark.slow
def test_without_the_matching_pair_the_target_is_a_place_like_others_whatever_the_weights():
    """Algebra: only (0, 1) tells the target from what follows it in the first copy.

    No token of these places has come again before the query, so nothing else sets them apart for
    one layer without positions.
    """
    n, away = 20, {(0, 1): [], (1, 0): []}
    for seed in range(6):
        model = HookedConvAttn(
            d_vocab=60, d_model=16, n_heads=1, n_ctx=48, positions="none", norm="none", seed=seed
        )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight *= 30 if name == "embed.W_E" else 3
        tokens = repeated_tokens(n, d_vocab=60, bos=0, n_sequences=300, seed=seed).tokens
        for pair, found in away.items():
            with model.hooks(fwd_hooks=without_lag_pair(model, "L1H0", pair)):
                _, cache = model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_pattern")
            pattern = cache["pattern", 1][:, 0]
            gaps = []
            for t in range(n + 2, 2 * n - 1):
                rest = range(t - n + 2, n + 1)
                gaps.append(pattern[:, t, t - n + 1] - pattern[:, t, list(rest)].mean(1))
            gap = torch.stack(gaps, 1).mean(1)
            found.append(abs(float(gap.mean() / gap.std() * len(gap) ** 0.5)))
    assert max(away[0, 1]) < 3.5
    assert np.median(away[1, 0]) > 3.5


def test_hooks_are_gone_afterwards_and_the_model_is_as_it_was():
    model, tokens = readers.build("three lags").train(), zoo.tokens()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    lag_pair_shares(model, tokens)
    lag_circuits(model, "L1H0", tokens[:1])
    assert model.training
    assert not any(hook.fwd_hooks for hook in model.hook_dict.values())
    assert all((before[name] == x).all() for name, x in model.state_dict().items())


def test_scores_that_others_kept_before_a_removal_stay_as_they_were():
    model, tokens, kept = readers.build("three lags"), zoo.tokens(), []
    name = "blocks.1.attn.hook_attn_scores"
    _, cache = model.run_with_cache(tokens)
    keep = (name, lambda scores, hook: kept.append(scores))
    with model.hooks(fwd_hooks=[keep, *without_lag_pair(model, "L1H0", (0, 1))]):
        model(tokens)
    torch.testing.assert_close(kept[0], cache[name])


def test_sixteen_bits_are_computed_in_float32():
    model, tokens = readers.build("three lags", torch.bfloat16), zoo.tokens(batch=1)
    _, cache = model.run_with_cache(tokens)
    scores = torch.tensor(lag_circuits(model, "L1H0", tokens).scores.values).sum((0, 1)).tril()
    expected = cache["attn_scores", 1][0, 0].double().tril()
    assert (scores.nan_to_num() - expected.nan_to_num(neginf=0)).abs().max() < 0.15


@pytest.mark.parametrize(("run", "subtracted"), [(8, 6), (6, 8)])
def test_other_sequences_are_as_long_as_those_that_are_run(run, subtracted):
    model, tokens = readers.build("three lags"), zoo.tokens()
    hooks = without_lag_pair(model, "L1H0", (0, 1), of=tokens[:, :subtracted])
    message = f"{run} positions, those whose part is subtracted {subtracted}"
    with model.hooks(fwd_hooks=hooks), pytest.raises(ValueError, match=message):
        model(tokens[:, :run])


def test_refusals_come_before_any_work():
    model = measured.never_run(readers.build("three lags"))
    with pytest.raises(ValueError, match="layer 0 is conv and has no heads"):
        lag_circuits(model, "L0H0")
    with pytest.raises(ValueError, match="at most 1024 tokens; give tokens"):
        lag_circuits(model, "L1H0", zoo.tokens(batch=2))
    with pytest.raises(ValueError, match="same at every distance"):
        lag_circuits(model, "L1H0", distance=1)
    with pytest.raises(ValueError, match="the key lags of L1H0 are 0 to 2"):
        without_lag_pair(model, "L1H0", (0, 3))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        without_lag_pair(model, "L1H0", (0, 1), of=zoo.tokens() + 100)
    plain = HookedAttn(d_vocab=9, d_model=6, n_heads=2, n_ctx=8)
    for refused in (lag_circuits, lambda m, h: without_lag_pair(m, h, (0, 0))):
        with pytest.raises(ValueError, match="no convolution with two or more lags lies below it"):
            refused(plain, "L0H0")
    with pytest.raises(ValueError, match="none reads an earlier token"):
        lag_pair_shares(plain, zoo.tokens(d_vocab=9))
    with pytest.raises(ValueError, match="what lies between the two, is not linear"):
        lag_circuits(readers.build("deep"), "L4H0")
    with pytest.raises(ValueError, match="outside the vocabulary"):
        lag_pair_shares(model, zoo.tokens() + 100)
