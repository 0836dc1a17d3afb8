"""Associative recall: planted, at chance, by brute force, of any model, and what is refused."""

import math
import statistics

import numpy as np
import pytest
import torch

from interp.analysis import ar, ar_tokens, mqar, mqar_tokens
from interp.analysis.losses import in_context
from interp.models import HookedAttn, HookedAttnAttn, HookedConvAttn
from tests.analysis import bridges, measured, planted

EXACT = {"rtol": 0, "atol": 1e-10}
KINDS = sorted(set(measured.LAYERS) - {"sees its future"})
MEASURES = ("accuracy", "accuracy_among_values", "loss")


def by_hand(logits, tokens, n_pairs, start):
    """Per sequence, for each second occurrence of a key: distance, and the three measures."""
    found = []
    for row, predicted in zip(tokens.tolist(), logits.tolist(), strict=True):
        pairs = {row[start + 2 * i]: row[start + 2 * i + 1] for i in range(n_pairs)}
        one = []
        for place in range(start + 2 * n_pairs, len(row)):
            if row[place] not in pairs:
                continue
            at, value = predicted[place], pairs[row[place]]
            top = max(at)
            loss = top + math.log(sum(math.exp(x - top) for x in at)) - at[value]
            choices = {other: at[other] for other in pairs.values()}
            best = [other for other, x in choices.items() if x == max(choices.values())]
            chosen = (value in best) / len(best)
            apart = place - row.index(row[place], start)
            one.append((apart, float(at.index(top) == value), chosen, loss))
        found.append(one)
    return found


def error_of(samples):
    return statistics.stdev(samples) / math.sqrt(len(samples))


def ratio_error(by_sequence):
    """Of a mean over all values, sequences holding different numbers of them."""
    held = [values for values in by_sequence if values]
    every = [x for values in held for x in values]
    mean, g = statistics.fmean(every), len(held)
    total = sum(sum(x - mean for x in values) ** 2 for values in held)
    return math.sqrt(g / (g - 1) * total) / len(every) if g > 1 else math.nan


def compare(result, found):
    """A result by query with what was counted by hand."""
    for number, name in enumerate(MEASURES, start=1):
        one = result.sel(measure=name)
        columns = list(zip(*[[query[number] for query in row] for row in found], strict=True))
        np.testing.assert_allclose(one.values, [statistics.fmean(c) for c in columns], **EXACT)
        np.testing.assert_allclose(one.standard_error, [error_of(c) for c in columns], **EXACT)


# ---------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("kind", KINDS)
def test_mqar_is_what_a_loop_over_the_logits_finds(kind):
    model = measured.build(kind)
    tokens = mqar_tokens(3, 17, d_vocab=40, bos=0, n_sequences=5, seed=2).tokens
    with torch.no_grad():
        found = by_hand(model(tokens), tokens, 3, start=1)
    result = mqar(model, n_pairs=3, n=17, n_sequences=5, seed=2)
    assert result.axes == ("measure", "query")
    assert result.labels == {"measure": MEASURES, "query": (1, 2, 3)}
    compare(result, found)

    binned = mqar(model, n_pairs=3, n=17, by="distance", n_sequences=5, seed=2)
    assert binned.labels["distance"] == (2, 4, 8, 16)
    for column, low in enumerate((2, 4, 8, 16)):
        rows = [[query for query in row if low <= query[0] < 2 * low] for row in found]
        assert binned.provenance["n_queries"][column] == sum(map(len, rows))
        for number, name in enumerate(MEASURES, start=1):
            one = binned.sel(measure=name, distance=low)
            values = [[query[number] for query in row] for row in rows]
            every = [x for row in values for x in row]
            mean, error = (
                (statistics.fmean(every), ratio_error(values)) if every else (math.nan,) * 2
            )
            np.testing.assert_allclose(float(one), mean, **EXACT)
            np.testing.assert_allclose(one.standard_error, error, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [None, 12])
def test_ar_is_what_a_loop_over_the_logits_finds(kind, n):
    model = measured.build(kind)
    tokens = ar_tokens(4, n, d_vocab=40, bos=0, n_sequences=3, seed=5).tokens
    with torch.no_grad():
        asked = [row[0] for row in by_hand(model(tokens), tokens, 4, start=1)]
    # Four rows ask a sequence for its pairs, the first of which is farthest.
    found = [asked[i : i + 4][::-1] for i in range(0, 12, 4)]
    result = ar(model, n_pairs=4, n=n, n_sequences=3, seed=5)
    last = (n or 9) - 1
    assert result.labels["distance"] == (last - 6, last - 4, last - 2, last)
    assert [query[0] for query in found[0]] == list(result.labels["distance"])
    compare(result, found)


# ---------------------------------------------------------------------------------- planted


@pytest.mark.parametrize(
    "plant",
    [planted.induction_conv_attn, planted.induction_smeared_attn, planted.induction_attn_attn],
)
def test_a_planted_induction_head_recalls_every_value(plant):
    model = plant(d_vocab=31, n_ctx=41)
    # All but 4e-8 of attention lies on the value, whose logit is 10; others are at 0.
    loss = math.log(math.exp(10) + 30) - 10
    for result in (
        mqar(model, n_pairs=6, n=40, n_sequences=8),
        mqar(model, n_pairs=6, n=40, by="distance", n_sequences=8),
        ar(model, n_pairs=6, n_sequences=8),
        ar(model, n_pairs=6, n=40, n_sequences=8),
    ):
        known = ~np.isnan(result.values)
        assert known.all(0).sum() >= 4
        for name, value in (("accuracy", 1), ("accuracy_among_values", 1), ("loss", loss)):
            values = result.sel(measure=name).values[known[0]]
            np.testing.assert_allclose(values, value, rtol=0, atol=1e-4)


def test_a_head_that_finds_the_key_itself_and_not_what_followed_recalls_nothing():
    """A duplicate-token head copies the key: wrong, and it tells the values apart by nothing."""
    model = planted.induction_conv_attn(d_vocab=31, n_ctx=41, lags=1)
    result = mqar(model, n_pairs=6, n=40, n_sequences=200)
    chosen = result.sel(measure="accuracy_among_values")
    assert (abs(chosen.values - 1 / 6) < 0.1).all()
    assert (result.sel(measure="accuracy").values < 0.2).all()


def test_values_that_are_known_without_their_keys_are_at_chance_among_values():
    """Every value of the sequence is as likely: half or less counts for ties, nothing is won."""
    model = planted.induction_conv_attn(d_vocab=31, n_ctx=41)
    with torch.no_grad():
        model.unembed.W_U.zero_()
        model.unembed.b_U[11:21] = 1.0  # bos=0: keys are 1 to 10, values 11 to 20
    result = ar(model, n_pairs=4, n_sequences=5)
    np.testing.assert_allclose(result.sel(measure="accuracy_among_values").values, 0.25)
    np.testing.assert_allclose(result.sel(measure="accuracy_among_values").chance, 0.25)
    expected = math.log(10 * math.e + 21) - 1
    np.testing.assert_allclose(result.sel(measure="loss").values, expected)


# ---------------------------------------------------------------------------------- chance


@pytest.mark.parametrize("preset", [HookedAttn, HookedConvAttn, HookedAttnAttn])
def test_random_weights_recall_nothing(preset):
    def recalled(seed):
        model = preset(d_vocab=97, d_model=32, n_heads=4, n_ctx=65, seed=seed)
        result = mqar(model, n_sequences=20, seed=seed)
        return result.values.mean(1), result.chance[:, 0]

    inits = np.stack([recalled(seed)[0] for seed in range(20)])
    fresh, chance = recalled(99)
    spread = 2.58 * inits.std(0, ddof=1)
    assert (abs(fresh - inits.mean(0)) <= spread).all()
    # What chance says is in that range too; random logits are no better than uniform ones.
    assert (abs(inits.mean(0) - chance) <= spread)[:2].all()
    assert inits.mean(0)[2] > chance[2]


def test_chance_is_that_of_a_model_that_knows_nothing():
    model = HookedAttnAttn(d_vocab=31, d_model=8, n_heads=2, n_ctx=65).double()
    with torch.no_grad():
        model.unembed.W_U.zero_()
        model.unembed.b_U.zero_()
    result = mqar(model, n_sequences=3)
    for name, value in (("accuracy_among_values", 1 / 8), ("loss", math.log(31))):
        one = result.sel(measure=name)
        np.testing.assert_allclose(one.values, value)
        np.testing.assert_allclose(one.chance, value)
    np.testing.assert_allclose(result.sel(measure="accuracy").chance, 1 / 31)


# ---------------------------------------------------------------------------------- any model


@pytest.mark.parametrize("kind", sorted(bridges.CONFIGS))
def test_a_bridge_recalls_as_its_hugging_face_model_does(kind):
    model = bridges.hugging_face(kind)
    tokens = mqar_tokens(4, 30, d_vocab=bridges.D_VOCAB, bos=0, n_sequences=4, seed=1).tokens
    with torch.no_grad():
        found = by_hand(model(tokens).logits.double(), tokens, 4, start=1)
    result = mqar(bridges.bridged(model), n_pairs=4, n=30, n_sequences=4, seed=1)
    for number, name in enumerate(MEASURES, start=1):
        columns = zip(*[[query[number] for query in row] for row in found], strict=True)
        expected = [statistics.fmean(column) for column in columns]
        np.testing.assert_allclose(result.sel(measure=name).values, expected, rtol=1e-4)


def test_a_tokenizers_special_tokens_are_no_keys():
    import interp

    model = interp.load("attn")
    origin = mqar(model, n_sequences=2).provenance
    special = model.tokenizer.all_special_ids
    assert special
    low, high = map(int, origin["keys"].split(" to "))
    assert not {*range(low, high + 1)} & set(special)


# ------------------------------------------------------------- nothing is disturbed, and refusals

ANALYSES = {
    "mqar": lambda model: mqar(model, n_pairs=3, n=16, n_sequences=3),
    "by distance": lambda model: mqar(model, n_pairs=3, n=16, by="distance", n_sequences=3),
    "ar": lambda model: ar(model, n_pairs=3, n=16, n_sequences=2),
}


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_model_is_left_as_it_was_found(analysis, error):
    model = measured.build("gpt").train()

    def hook(value, hook):
        if error is not None:
            raise error("in the middle")

    model.add_hook("blocks.1.hook_resid_post", hook)
    random_state = torch.get_rng_state()
    if error is None:
        analysis(model)
    else:
        with pytest.raises(error, match="in the middle"):
            analysis(model)
    assert model.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert len(model.hook_dict["blocks.1.hook_resid_post"].fwd_hooks) == 1


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
def test_the_size_of_a_batch_changes_nothing(analysis, monkeypatch):
    model = measured.build("rotary")
    whole, sizes = analysis(model), []
    monkeypatch.setattr(in_context, "LOGITS_AT_ONCE", 40 * 17 * 2)
    model.add_hook("hook_embed", lambda value, hook: sizes.append(len(value)))
    np.testing.assert_allclose(analysis(model).values, whole.values, rtol=0, atol=1e-13)
    assert sizes[:2] == [2, min(2, sizes[1])]
    assert len(sizes) > 1


@pytest.mark.parametrize("analysis", [mqar, ar])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_pairs": 14, "n": 60}, "39 of d_vocab=40 tokens .* 13, for keys; n_pairs=14 needs"),
        ({"n": 110}, "n=110 tokens and BOS make 111 positions, over n_ctx=110"),
        ({"n_pairs": 8, "n": 10}, "n=10 has no room for n_pairs=8"),
        ({"n_sequences": 0}, "n_sequences=0 is too small"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_any_work(analysis, sizes, message):
    with pytest.raises(ValueError, match=message):
        analysis(measured.never_run(measured.build("conv-attn")), **sizes)


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
def test_a_model_that_sees_its_future_is_refused(analysis):
    model = measured.never_run(measured.build("sees its future"))
    with pytest.raises(ValueError, match="predicts no next token"):
        analysis(model)


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
def test_weights_that_are_no_numbers_are_refused_by_name(analysis):
    model = measured.build("conv-attn")
    with torch.no_grad():
        model.conv(0).W_conv[1, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r"weight 'blocks\.0\.conv\.W_conv' holds NaN"):
        analysis(measured.never_run(model))


@pytest.mark.usefixtures("unchecked")
def test_an_axis_that_is_none_is_refused():
    with pytest.raises(ValueError, match="by='position' is not one of 'query', 'distance'"):
        mqar(measured.never_run(measured.build("conv-attn")), by="position")


def test_results_say_where_they_come_from():
    origin = mqar(measured.build("conv-attn"), n_pairs=3, n=16, n_sequences=3, seed=2).provenance
    said = {key: origin[key] for key in ("n_pairs", "n", "power", "bos", "seed", "n_sequences")}
    assert said == {"n_pairs": 3, "n": 16, "power": 0.01, "bos": 0, "seed": 2, "n_sequences": 3}
    assert (origin["keys"], origin["values"], origin["fillers"]) == (
        "1 to 13", "14 to 26", "27 to 39",
    )  # fmt: skip
