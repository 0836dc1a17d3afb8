"""Head scores: brute force, TransformerLens's detector, chance, and leaving the model alone."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens.head_detector import detect_head

from interp.analysis import (
    duplicate_token_score,
    first_token_score,
    head_scores,
    induction_score,
    previous_token_score,
    repeated_tokens,
)
from interp.analysis.heads.scores import common_and_rare
from interp.models import HookedAttnAttn, HookedConvAttn
from interp.results.intervals import student_t
from interp.views import view
from tests.analysis import measured

EXACT = {"rtol": 0, "atol": 1e-10}
KINDS = sorted(measured.LAYERS)
SCORES = ("induction", "previous_token", "duplicate_token", "first_token")


def probe(n, *, copies=2, n_sequences=3, seed=0, d_vocab=40, exclude=()):
    options = {"copies": copies, "n_sequences": n_sequences, "seed": seed, "exclude": exclude}
    return repeated_tokens(n, d_vocab=d_vocab, bos=0, **options).tokens


def pairs_of(tokens, n, score):
    """Which entries a score looks at, found by looking at the tokens themselves."""
    for row, line in enumerate(tokens.tolist()):
        for t in range(1, len(line)):
            if score == "previous_token":
                yield row, t, t - 1
            elif score == "first_token":
                yield row, t, 0
            elif t > n:
                earlier = [s for s in range(t) if line[s] == line[t]]
                step = 1 if score == "induction" else 0
                yield from ((row, t, s + step) for s in earlier)


def by_hand(model, tokens, n, score, divisor):
    attention = measured.patterns(model, tokens)
    return measured.mean_of(attention, tokens, pairs_of(tokens, n, score), divisor)


# ---------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("kind", KINDS)
def test_head_scores_and_their_errors_are_those_of_a_loop_over_positions(kind):
    model, n = measured.build(kind), 7
    scores = head_scores(model, n=n, n_sequences=3, seed=5)
    tokens = probe(n, seed=5)
    divisors = dict(zip(SCORES, (n, 2 * n, n, 2 * n), strict=True))
    for score in SCORES:
        samples = by_hand(model, tokens, n, score, divisors[score])
        found = scores.sel(score=score)
        np.testing.assert_allclose(found.values, samples.mean(0), **EXACT)
        errors = [statistics.stdev(head) / math.sqrt(3) for head in samples.T.tolist()]
        np.testing.assert_allclose(found.standard_error, errors, **EXACT)
    assert scores.values.std() > 0.01  # weights this large have preferences: nothing is trivial


@settings(max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 9),
    seed=st.integers(0, 2**31),
    variant=st.sampled_from(["stripe", "olsson", "tl"]),
    reduce=st.sampled_from(["mean", "sum"]),
)
def test_every_variant_of_the_induction_score_is_that_of_a_loop(kind, n, seed, variant, reduce):
    model = measured.build(kind, seed=seed)
    copies = 4 if variant == "olsson" else 2
    exclude = common_and_rare(40) if variant == "olsson" else ()
    tokens = probe(n, copies=copies, n_sequences=2, seed=seed, exclude=exclude)
    entries = len(list(pairs_of(tokens[:1], n, "induction")))
    divisor = {"stripe": n, "tl": 2 * n + 1, "olsson": entries if reduce == "mean" else 3 * n}
    samples = by_hand(model, tokens, n, "induction", divisor[variant])
    scores = induction_score(model, variant=variant, reduce=reduce, n=n, n_sequences=2, seed=seed)
    np.testing.assert_allclose(scores.values, samples.mean(0), **EXACT)
    np.testing.assert_allclose(scores.standard_error, np.ptp(samples, axis=0) / 2, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_single_scores_are_rows_of_head_scores(kind):
    model, few = measured.build(kind), {"n": 6, "n_sequences": 2, "seed": 3}
    together = head_scores(model, **few)
    alone = {
        "induction": induction_score(model, **few),
        "previous_token": previous_token_score(model, **few),
        "duplicate_token": duplicate_token_score(model, **few),
        "first_token": first_token_score(model, **few),
    }
    for score, result in alone.items():
        np.testing.assert_allclose(result.values, together.sel(score=score).values, **EXACT)
        np.testing.assert_allclose(result.chance, together.sel(score=score).chance, **EXACT)


def test_the_previous_token_score_of_tokens_handed_in():
    model = measured.build("attn-attn")
    tokens = torch.randint(40, (3, 11), generator=torch.Generator().manual_seed(0))
    pairs = ((row, t, t - 1) for row in range(3) for t in range(1, 11))
    samples = measured.mean_of(measured.patterns(model, tokens), tokens, pairs, 10)
    scores = previous_token_score(model, tokens)
    np.testing.assert_allclose(scores.values, samples.mean(0), **EXACT)
    assert scores.provenance["tokens"] == "handed in"
    assert scores.provenance["length"] == 11


def test_a_long_context_agrees_with_the_explicit_pattern():
    model = HookedAttnAttn(d_vocab=700, d_model=16, n_heads=2, n_ctx=1201)
    n = 600
    attention = measured.patterns(model, probe(n, n_sequences=1, d_vocab=700))[0]
    second = np.arange(n + 1, 2 * n + 1)
    by_hand = attention[:, second, second - n + 1].mean(-1)
    scores = induction_score(model, n=n, n_sequences=1)
    np.testing.assert_allclose(scores.values, by_hand, rtol=1e-4, atol=1e-8)
    assert np.isnan(scores.standard_error).all()  # one sequence says nothing of its error


# ------------------------------------------------------------------------------- TransformerLens


def detector(model, tokens, kind, monkeypatch):
    """TransformerLens's own score of each head, in the order of our labels."""
    monkeypatch.setattr(model, "to_tokens", lambda rows: tokens[[int(row) for row in rows]])
    heads = [(layer, head) for layer, n in view(model).heads.items() for head in range(n)]
    rows = [str(row) for row in range(len(tokens))]
    scores = detect_head(model, rows, kind, heads=heads)
    return [float(scores[layer, head]) for layer, head in heads]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"sees its future"}))
def test_variant_tl_is_what_transformer_lens_detects(kind, monkeypatch):
    model, n = measured.build(kind), 9
    theirs = detector(model, probe(n), "induction_head", monkeypatch)
    ours = induction_score(model, variant="tl", n=n, n_sequences=3)
    np.testing.assert_allclose(ours.values, theirs, **EXACT)
    # Theirs divide by all 2n + 1 positions, ours by those that count.
    scores = head_scores(model, n=n, n_sequences=3)
    previous = detector(model, probe(n), "previous_token_head", monkeypatch)
    ours = scores.sel(score="previous_token").values * 2 * n / (2 * n + 1)
    np.testing.assert_allclose(ours, previous, **EXACT)
    duplicate = detector(model, probe(n), "duplicate_token_head", monkeypatch)
    ours = scores.sel(score="duplicate_token").values * n / (2 * n + 1)
    np.testing.assert_allclose(ours, duplicate, **EXACT)


# ---------------------------------------------------------------------------------------- chance


@pytest.mark.parametrize("preset", [HookedConvAttn, HookedAttnAttn])
def test_random_weights_are_at_chance(preset):
    def scored(seed):
        model = preset(d_vocab=80, d_model=32, n_heads=4, n_ctx=51, seed=seed)
        return head_scores(model, n=25, n_sequences=8, seed=seed)

    # Heads of one model are not independent: a model is one draw, the mean over its heads.
    inits = [scored(seed) for seed in range(20)]
    means = np.stack([one.values.mean(axis=1) for one in inits])
    middle, spread, n = means.mean(axis=0), means.std(axis=0, ddof=1), len(means)
    reach = student_t(1 - 0.01 / 2 / len(middle), n - 1)  # 99 % of all four scores together
    assert (np.abs(inits[0].chance[:, 0] - middle) < reach * spread / n**0.5).all()
    fresh = scored(99)
    distance = np.abs(fresh.values.mean(axis=1) - middle)
    assert (distance < reach * spread * (1 + 1 / n) ** 0.5).all()
    assert fresh.sel(score="induction").values.max() < 0.15


# ----------------------------------------------------------------------------------- provenance


def test_a_result_says_where_it_comes_from():
    model = measured.build("conv-attn")
    origin = induction_score(model, n=6, n_sequences=2, seed=4).provenance
    assert origin["model"] == "HookedSequenceModel"
    said = {key: origin[key] for key in ("variant", "n", "copies", "seed", "bos", "n_sequences")}
    assert said == {
        "variant": "stripe", "n": 6, "copies": 2, "seed": 4, "bos": 0, "n_sequences": 2,
    }  # fmt: skip
    assert origin["random_tokens"] == "distinct"
    assert {"interp", "torch", "transformer_lens", "python"} <= set(origin["versions"])
    olsson = induction_score(model, variant="olsson", reduce="sum", n=6, n_sequences=2).provenance
    assert (olsson["copies"], olsson["reduce"]) == (4, "sum")


@pytest.mark.parametrize(
    ("variant", "n", "copies", "n_sequences"),
    [("stripe", 50, 2, 50), ("olsson", 25, 4, 10), ("tl", 25, 2, 50)],
)
def test_each_variant_is_measured_on_the_probe_that_it_is_known_for(
    variant, n, copies, n_sequences
):
    model = HookedConvAttn(d_vocab=100, d_model=8, n_heads=1, n_ctx=101)
    origin = induction_score(model, variant=variant).provenance
    assert [origin[key] for key in ("n", "copies", "n_sequences")] == [n, copies, n_sequences]


def test_more_tokens_than_the_vocabulary_holds_are_labelled():
    scores = head_scores(measured.build("conv-attn"), n=50, n_sequences=2)
    assert scores.provenance["random_tokens"] == "with replacement"


def test_the_seed_decides_and_nothing_else():
    model = measured.build("attn-attn")
    results = [head_scores(model, n=6, n_sequences=3, seed=seed) for seed in (1, 1, 2)]
    same, other = (bool((a.values == b.values).all()) for a, b in pairwise(results))
    assert same
    assert not other


def test_special_and_unused_tokens_are_never_drawn():
    class Tokenizer:
        bos_token_id, eos_token_id, all_special_ids = 3, 4, [3, 4, 5]

        def __len__(self):
            return 30

    model, drawn = measured.build("conv-attn"), []
    model.tokenizer = Tokenizer()
    model.add_hook("hook_embed", lambda x, hook: drawn.append(x))
    scores = head_scores(model, n=27, n_sequences=4)
    assert scores.provenance["bos"] == 3
    assert scores.provenance["random_tokens"] == "distinct"  # 27 of 30 are left
    allowed = {tuple(row.tolist()) for row in model.W_E[[*range(3), *range(6, 30)]]}
    positions = torch.cat(drawn)[:, 1:].flatten(0, 1)
    assert {tuple(row) for row in positions.tolist()} == allowed
    model.tokenizer.bos_token_id = None
    assert head_scores(model, n=6, n_sequences=1).provenance["bos"] == 4
