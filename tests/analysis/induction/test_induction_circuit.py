"""The induction circuit: planted ones are found edge by edge, and where there is none, none is."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.analysis import InductionCircuit, Result, induction_circuit, repeated_tokens
from interp.analysis.induction.candidates import stand_out
from interp.analysis.induction.edges import Effect
from interp.models import (
    HookedAttn,
    HookedAttnAttn,
    HookedConvAttn,
    HookedSequenceModel,
    HookedSmearedAttn,
)
from tests.analysis import planted

D_VOCAB, N, SEQUENCES = 30, 10, 6
N_POS = 2 * N + 1
GAIN, LOGIT_GAIN = 20.0, 10.0
OWN_KEYS = {"smeared": "smearing", "tapped": "taps"}
EXACT = {"rel": 0, "abs": 1e-10}


def induction_tapped_attn(**options) -> HookedSequenceModel:
    """The smeared one with taps in place of smearing: the key at s is the token at s - 1."""
    smeared = planted.induction_smeared_attn(**options)
    (layer,) = smeared.config.layers
    layers = (replace(layer, smear=False, taps_k=3),)
    model = HookedSequenceModel(smeared.config.replace(layers=layers))
    model.load_state_dict(smeared.state_dict(), strict=False)
    with torch.no_grad():
        model.attn(0).taps_K[:, options["head"]] = torch.tensor([0.0, 1.0, 0.0])[:, None]
    return model.to(smeared.W_E.dtype)


PLANTED = {
    "conv": planted.induction_conv_attn,
    "smeared": planted.induction_smeared_attn,
    "tapped": induction_tapped_attn,
    "attn": planted.induction_attn_attn,
}
EDGES = {
    "conv": ["embed->L1H1.q", "L0.lag1->L1H1.k", "embed->L1H1.v", "L1H1->logits"],
    "smeared": ["embed->L0H1.q", "smear->L0H1.k", "embed->L0H1.v", "L0H1->logits"],
    "tapped": ["embed->L0H1.q", "taps.lag1->L0H1.k", "embed->L0H1.v", "L0H1->logits"],
    "attn": [
        "embed->L0H0.v",
        "embed->L1H1.q",
        "L0H0->L1H1.k",
        "embed->L1H1.v",
        "L1H1->logits",
    ],
}


def build(kind, **options):
    fixed = {"d_vocab": D_VOCAB, "n_ctx": N_POS + 1, "head": 1}
    return PLANTED[kind](**{**fixed, "gain": GAIN, "logit_gain": LOGIT_GAIN, **options})


@functools.cache
def planted_circuit(kind) -> InductionCircuit:
    return of(build(kind))


def of(model, **options) -> InductionCircuit:
    return induction_circuit(model, **{"n": N, "n_sequences": SEQUENCES, "n_random": 3, **options})


# ------------------------------------------------------------- brute force: attention written out


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """The sequences that are measured, and to each one without a repetition to patch from."""
    options = {"d_vocab": D_VOCAB, "bos": planted.BOS, "n_sequences": SEQUENCES}
    repeated = repeated_tokens(N, seed=0, **options).tokens
    unrepeated = repeated_tokens(2 * N, seed=1, **options).tokens[:, :N_POS]
    drawn = torch.randint(SEQUENCES, (SEQUENCES,), generator=torch.Generator().manual_seed(0))
    return repeated, unrepeated[drawn]


def attention(queries: torch.Tensor, before: torch.Tensor) -> np.ndarray:
    """[batch query key]: a key scores GAIN if the token before it is the query's, else 0."""
    scores = np.full((SEQUENCES, N_POS, N_POS), -np.inf)
    for b in range(SEQUENCES):
        for t in range(N_POS):
            for s in range(t + 1):
                scores[b, t, s] = GAIN * (s > 0 and queries[b, t] == before[b, s - 1])
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


def score(pattern: np.ndarray) -> float:
    return np.mean([pattern[:, t, t - N + 1].mean() for t in range(N + 1, N_POS)])


def second_copy_loss(pattern: np.ndarray, values: torch.Tensor, tokens: torch.Tensor) -> float:
    """What is attended to, times LOGIT_GAIN, are the logits."""
    losses = []
    for b in range(SEQUENCES):
        for t in range(N + 1, N_POS - 1):
            logits = np.zeros(D_VOCAB)
            for s in range(t + 1):
                logits[values[b, s]] += LOGIT_GAIN * pattern[b, t, s]
            losses.append(math.log(np.exp(logits).sum()) - logits[tokens[b, t + 1]])
    return float(np.mean(losses))


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_circuit_is_found_edge_by_edge(kind):
    found = planted_circuit(kind)
    head = "L0H1" if kind in OWN_KEYS else "L1H1"
    assert (found.found, found.heads) == (True, (head,))
    assert [edge.label for edge in found.edges] == EDGES[kind]
    assert found.graph.labels["edge"] == tuple(EDGES[kind])
    assert found.sentence.startswith(f"Induction circuit of {head} (1.00)")


@pytest.mark.parametrize("kind", PLANTED)
def test_the_effect_of_every_edge_is_that_of_brute_force(kind):
    found = planted_circuit(kind)
    effects = {edge.label.rpartition(".")[2]: edge for edge in found.edges}
    tokens, other = inputs()
    clean = attention(tokens, tokens)
    clean_loss = second_copy_loss(clean, tokens, tokens)
    without = {"q": attention(other, tokens), "k": attention(tokens, other)}
    if kind in OWN_KEYS:  # cut by taking the pair of lags out: nothing matches any more
        without["k"] = np.tril(np.ones((N_POS, N_POS))) / np.arange(1, N_POS + 1)[:, None]
        without["k"] = np.broadcast_to(without["k"], clean.shape)
    for channel, pattern in without.items():
        edge = effects[channel]
        assert edge.score.value == pytest.approx(score(pattern) - score(clean), **EXACT)
        loss = second_copy_loss(pattern, tokens, tokens) - clean_loss
        assert edge.loss.value == pytest.approx(loss, **EXACT)
        assert edge.score.value < -0.8
    values = second_copy_loss(clean, other, tokens) - clean_loss
    assert effects["v"].loss.value == pytest.approx(values, **EXACT)
    head = second_copy_loss(attention(other, other), other, tokens) - clean_loss
    logits = next(edge for edge in found.edges if edge.receiver == "logits")
    assert logits.loss.value == pytest.approx(head, **EXACT)
    (removed,) = found.removal.values()
    assert removed.value == pytest.approx(head, **EXACT)
    assert math.isnan(logits.score.value)


@pytest.mark.parametrize("kind", OWN_KEYS)
def test_keys_of_several_tokens_are_called_what_they_are(kind):
    found = planted_circuit(kind)
    assert f"its keys read the key before, by {OWN_KEYS[kind]} (without" in found.sentence
    (keys,) = found.graph.provenance["keys"].items()
    texts = [note.text for note in found.plot().layout.annotations]
    assert f"<b>{keys[0]}</b><br>key before" in texts
    assert keys[1] == 1
    assert found.graph.provenance["layers"] == {"embed": -1, keys[0]: -1, "L0H1": 0}


def test_what_a_helper_reads_changes_the_score_as_much_as_the_helper():
    by_label = {edge.label: edge.score for edge in planted_circuit("attn").edges}
    assert by_label["embed->L0H0.v"].value == pytest.approx(by_label["L0H0->L1H1.k"].value, **EXACT)


@pytest.mark.parametrize("kind", ["conv", "smeared"])
def test_the_pair_of_lags_that_matches_is_the_current_token_against_the_one_before_the_key(kind):
    (cells,) = planted_circuit(kind).cells.values()
    e, later = math.exp(GAIN), range(N + 1, N_POS)
    expected = np.mean([1 / (t + 1) - e / (e + t) for t in later])
    assert cells[0, 1].value == pytest.approx(expected, **EXACT)
    assert len(cells) == (4 if kind == "conv" else 2)
    assert all(abs(effect.value) < 1e-10 for pair, effect in cells.items() if pair != (0, 1))


def test_intervals_are_those_of_students_t_over_sequences():
    edge = planted_circuit("conv").edges[0]
    assert edge.score.low == pytest.approx(edge.score.value - 2.570582 * edge.score.error, rel=1e-6)
    assert edge.score.high == pytest.approx(
        edge.score.value + 2.570582 * edge.score.error, rel=1e-6
    )
    assert -0.1 < edge.score.random_low <= edge.score.random_high < 0.1


def test_two_equal_heads_share_the_circuit():
    model = build("conv", head=0)
    attn = model.attn(1)
    with torch.no_grad():
        for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
            weight[1] = weight[0]
    found = of(model)
    assert sorted(found.heads) == ["L1H0", "L1H1"]
    assert "L1H0+L1H1" in found.removal or "L1H1+L1H0" in found.removal
    assert len(found.edges) == 8
    first = of(model, most_heads=1)  # both are tested, one is followed up
    assert first.heads == found.heads
    assert {edge.head for edge in first.edges} == {found.heads[0]}


# ---------------------------------------------------------------------------- no induction circuit


@pytest.mark.parametrize("preset", [HookedAttn, HookedSmearedAttn, HookedConvAttn, HookedAttnAttn])
def test_random_weights_have_none(preset):
    for seed in range(5):
        model = preset(d_vocab=60, d_model=32, n_heads=4, n_ctx=24, seed=seed)
        found = of(model, seed=seed)
        assert not found.found
        assert (found.heads, found.edges, found.cells, found.removal) == ((), (), {}, {})
        assert found.sentence.startswith("No induction circuit: no head pays the token after")
        assert "Something copies" not in found.sentence
        assert found.to_frame().empty


def test_the_bundled_attn_has_none_and_the_other_architectures_have_one():
    assert not of(interp.load("attn"), n=20).found
    found = of(interp.load("conv-attn"), n=20, n_sequences=4)
    assert found.found
    keys = [edge.sender for edge in found.edges if edge.channel == "k"]
    assert set(keys) == {"L0.lag1"}


def test_without_lag_1_the_planted_head_is_none():
    found = of(build("conv", lags=1))
    assert not found.found
    assert "The highest score is L1H0's, 0.063; uniform attention gives 0.063" in found.sentence


def test_a_head_that_attends_there_by_position_is_none():
    model = planted.known_heads(d_vocab=D_VOCAB, n_ctx=N_POS + 1, gain=planted.SURE)
    spaces = planted.Subspaces(D_VOCAB, N_POS + 1)
    back, start = N - 1, spaces.position.start
    with torch.no_grad():
        attn = model.attn(0)
        attn.W_Q[0].zero_()
        attn.W_K[0].zero_()
        for position in range(back, N_POS):
            attn.W_Q[0, start + position, position] = planted.SURE / attn.scale
            attn.W_K[0, start + position - back, position] = 1.0
    found = of(model)
    both = (float(found.scores.sel(measure=name, head="L0H0")) for name in ("score", "unmatched"))
    assert list(both) == pytest.approx([1.0, 1.0])
    assert not found.found


def test_a_head_whose_output_nobody_reads_is_none():
    found = of(build("conv", logit_gain=0.0))
    assert (found.found, found.heads) == (False, ("L1H1",))
    assert "L1H1 (1.00) attends like an induction head, but" in found.sentence
    assert found.removal["L1H1"].value == 0


def test_a_head_that_does_harm_is_none():
    found = of(build("conv", logit_gain=-LOGIT_GAIN))
    assert found.removal["L1H1"].high < -1
    assert not found.found


# ------------------------------------------------------------------------------- what decides


def test_random_weights_are_those_of_as_many_seeds():
    model = HookedAttnAttn(d_vocab=D_VOCAB, d_model=32, n_heads=2, n_ctx=N_POS + 1, seed=7)
    tokens, _ = inputs()
    best = []
    for seed in range(3):
        twin = HookedAttnAttn(d_vocab=D_VOCAB, d_model=32, n_heads=2, n_ctx=N_POS + 1, seed=seed)
        _, cache = twin.run_with_cache(tokens)
        patterns = torch.cat([cache["pattern", layer] for layer in range(2)], dim=1).detach()
        best.append(max(score(patterns[:, head].numpy()) for head in range(4)))
    random = of(model).scores.sel(measure="random_weights").values
    np.testing.assert_allclose(random, max(best), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("least", "found"), [(0.3, True), (0.6, False)])
def test_a_head_has_to_attend_so_much(least, found):
    model, e = build("conv", gain=3.0), math.exp(3.0)
    result = of(model, least=least)
    assert float(result.scores.sel(measure="score", head="L1H1")) == pytest.approx(
        np.mean([e / (e + t) for t in range(N + 1, N_POS)])
    )
    assert result.found is found


def test_an_edge_has_to_carry_its_share():
    result = of(build("conv"), share=0.95)
    assert [edge.label for edge in result.edges] == ["embed->L1H1.v", "L1H1->logits"]
    assert "L1H1: no single path below it carries its matching" in result.sentence


@pytest.mark.parametrize(
    ("low", "high", "beyond"),
    [(0.3, 0.5, True), (-0.5, -0.3, True), (0.1, 0.5, False), (-0.5, 0.5, False)],
)
def test_an_effect_is_beyond_random_with_its_whole_interval(low, high, beyond):
    effect = Effect((low + high) / 2, 0.1, low, high, random_low=-0.2, random_high=0.1)
    assert effect.beyond_random() is beyond


@pytest.mark.parametrize(
    ("score", "unmatched", "random", "error", "stands_out"),
    [
        (0.5, 0.1, 0.1, 0.01, True),
        (0.5, 0.1, 0.1, 0.15, False),  # 99 % of 5 degrees of freedom: 4.03 errors
        (0.5, 0.35, 0.1, 0.02, False),  # the upper end of what its place explains, 0.43
        (0.5, 0.1, 0.49, 0.01, False),
        (0.15, 0.1, 0.1, 0.001, False),  # by less than `least`
        (0.5, 0.1, math.nan, 0.01, True),  # a bridge
    ],
)
def test_a_head_stands_out_with_confidence(score, unmatched, random, error, stands_out):
    result = Result(
        "induction_candidates",
        np.array([[score], [unmatched], [random]]),
        ("measure", "head"),
        {"measure": ("score", "unmatched", "random_weights"), "head": ("L0H0",)},
        standard_error=np.array([[error], [error], [math.nan]]),
        chance=np.array([[0.05]] * 3),
        provenance={"n_sequences": 6},
    )
    assert stand_out(result, least=0.1) == ["L0H0"] * stands_out
