"""Errors over groups: as large as what was sampled warrants, in every analysis of given text."""

import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.analysis import Result, development, over_samples, stretches
from interp.analysis.induction.edges import effects_of
from interp.results.intervals import student_t
from interp.results.sampling import RunningMean, Sampling, _labels

MODEL = interp.HookedConvAttn(d_vocab=40, d_model=16, n_heads=2, n_ctx=16, seed=1)
TEXT = torch.randint(40, (6, 12), generator=torch.Generator().manual_seed(0))
LABELS = ["a", "a", "b", "c", "c", "c"]

ANALYSES: dict[str, Callable[..., Result]] = {
    "loss_by_position": interp.loss_by_position,
    "in_context_learning_score": interp.in_context_learning_score,
    "previous_token_score": interp.previous_token_score,
    "logit_attribution": interp.logit_attribution,
    "path_attribution": interp.path_attribution,
    "logit_lens": interp.logit_lens,
    "lag_pair_shares": interp.lag_pair_shares,
    "ablate": partial(interp.ablate, control="none"),
    "patch": lambda model, x, **given: interp.patch(model, x, x.flip(1), **given),
    "attribution_patch": lambda model, x, **given: interp.attribution_patch(
        model, x, x.flip(1), **given
    ),
    "path_patch": lambda model, x, **given: interp.path_patch(
        model, "L0.lag*", "L1H0.k", x, x.flip(1), **given
    ),
    "detect_smeared_keys": interp.detect_smeared_keys,
}
ONE_SEQUENCE = {"attention_pattern", "lens_tokens", "lag_circuits"}
NO_ERROR_OVER_SEQUENCES = {
    *("match_table", "diagonal_preference", "previous_token_match", "reads"),
    *("copying_score", "qk_circuit", "ov_circuit", "positional_circuit", "composition_scores"),
}


def by_hand(samples: np.ndarray, labels: list[Any]) -> np.ndarray:
    """The clusters' sums of residuals, squared, in a loop."""
    n, names = len(samples), sorted(set(labels))
    mean = sum(samples) / n
    total = 0.0
    for name in names:
        total += (
            sum(x - mean for x, label in zip(samples, labels, strict=True) if label == name) ** 2
        )
    return np.sqrt(len(names) / (len(names) - 1) * total) / n


# ------------------------------------------------------------------------------- what it is worth


def neighbours(n_runs: int, n: int, alike: float, seed: int) -> np.ndarray:
    """Values whose neighbours correlate, as blocks of one text do, `[sequence run]`; mean 0."""
    noise = np.random.default_rng(seed).standard_normal((n, n_runs))
    values = noise.copy()
    for t in range(1, n):
        values[t] = alike * values[t - 1] + np.sqrt(1 - alike**2) * noise[t]
    return values


def coverage(samples: np.ndarray, groups: Any) -> float:
    """How often the 95 % interval of each run's mean holds the truth, 0."""
    labels = {"run": range(samples.shape[1])}
    result = Result.from_samples("loss", samples, ("run",), labels=labels, groups=groups)
    assert result.standard_error is not None
    reach = student_t(0.975, result.degrees_of_freedom) * result.standard_error
    return float((abs(result.values) < reach).mean())


def test_intervals_cover_the_mean_of_autocorrelated_text():
    samples = neighbours(2000, 1280, alike=0.85, seed=0)
    assert 0.92 < coverage(samples, stretches(1280)) < 0.98
    assert coverage(samples, None) < 0.5


def test_intervals_cover_the_mean_over_documents_of_unequal_length():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 12, size=60)
    documents = np.repeat(np.arange(60), sizes)
    samples = rng.standard_normal((60, 2000))[documents] + rng.standard_normal((sizes.sum(), 2000))
    assert 0.92 < coverage(samples, documents) < 0.98
    assert coverage(samples, None) < 0.75


def test_independent_sequences_lose_nothing():
    samples = np.random.default_rng(2).standard_normal((640, 2000))
    assert 0.92 < coverage(samples, stretches(640)) < 0.98
    assert 0.92 < coverage(samples, None) < 0.98


@pytest.mark.parametrize("name", ANALYSES)
def test_copies_of_a_sequence_add_nothing(name: str):
    """Each sequence four times, as a group: the error is that of the sequences, once each."""
    analysis = ANALYSES[name]
    once = analysis(MODEL, TEXT, groups=range(len(TEXT)))
    copied = TEXT.repeat_interleave(4, dim=0)
    grouped = analysis(MODEL, copied, groups=np.repeat(range(len(TEXT)), 4))
    believed = analysis(MODEL, copied)
    assert once.standard_error is not None
    assert grouped.standard_error is not None
    assert believed.standard_error is not None
    np.testing.assert_allclose(grouped.values, once.values, atol=1e-5)
    # Float32 inside: equal up to what a sum of 24 instead of 6 terms changes.
    np.testing.assert_allclose(grouped.standard_error, once.standard_error, rtol=5e-3, atol=2e-6)
    assert grouped.provenance["n_groups"] == len(TEXT)
    if name != "detect_smeared_keys":  # which never takes neighbours as independent
        large = once.standard_error > 1e-4
        ratio = believed.standard_error[large] / once.standard_error[large]
        np.testing.assert_allclose(ratio, np.sqrt(5 / 23), rtol=1e-2)


def test_every_analysis_of_given_text_takes_groups():
    names = {*interp.__all__, *interp.analysis.__all__}
    functions = {name: getattr(interp.analysis, name, None) for name in names}
    taking_text = {
        name: inspect.signature(function).parameters
        for name, function in functions.items()
        if inspect.isfunction(function)
        and {"tokens", "clean", "samples"} & set(inspect.signature(function).parameters)
    }
    without = {name for name, parameters in taking_text.items() if "groups" not in parameters}
    assert without == (ONE_SEQUENCE | NO_ERROR_OVER_SEQUENCES) & set(taking_text)
    assert set(ANALYSES) == set(taking_text) - without - {"development"}


# ------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_that_of_clusters(seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, size=50)
    samples = 1e6 + rng.standard_normal((50, 3)) + labels[:, None]
    mean, error = Sampling.of(labels, 50).mean_and_error(samples)
    np.testing.assert_allclose(mean, samples.mean(0))
    np.testing.assert_allclose(error, by_hand(samples, labels.tolist()), rtol=1e-6)
    pieces = RunningMean(Sampling.of(labels, 50))
    for some in np.split(samples, [1, 2, 30]):
        pieces.add(some)
    np.testing.assert_allclose(pieces.mean, mean)
    np.testing.assert_allclose(pieces.standard_error, error, rtol=1e-6)


def test_leaving_out_each_group_says_the_same():
    rng = np.random.default_rng(3)
    sizes = rng.integers(2, 6, size=80)
    labels = np.repeat(np.arange(80), sizes)
    samples = rng.standard_normal(80)[labels] + rng.standard_normal(len(labels))
    without = np.array([samples[labels != group].mean() for group in range(80)])
    jackknife = np.sqrt(79 / 80 * ((without - without.mean()) ** 2).sum())
    _, error = Sampling.of(labels, len(labels)).mean_and_error(samples)
    assert float(error) == pytest.approx(jackknife, rel=0.03)


def test_each_sequence_by_itself_is_as_without_groups():
    samples = np.random.default_rng(4).standard_normal((9, 2))
    _, alone = Sampling.of(None, 9).mean_and_error(samples)
    _, grouped = Sampling.of(list("abcdefghi"), 9).mean_and_error(samples)
    np.testing.assert_allclose(grouped, alone)
    np.testing.assert_allclose(alone, samples.std(0, ddof=1) / 3)


def test_one_group_tells_of_no_spread():
    loss = interp.loss_by_position(MODEL, TEXT, groups=["one"] * 6)
    assert np.isnan(np.asarray(loss.standard_error)).all()
    assert np.isfinite(loss.values).all()
    assert loss.provenance["n_groups"] == 1


def test_effects_are_paired_and_then_grouped():
    found = interp.ablate(MODEL, TEXT, ["L1H0"], control="none", groups=LABELS)
    clean = MODEL(TEXT, return_type="loss", loss_per_token=True).double().mean(1)

    def remove(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z[:, :, 0] = 0
        return z

    with MODEL.hooks(fwd_hooks=[("blocks.1.attn.hook_z", remove)]):
        changed = MODEL(TEXT, return_type="loss", loss_per_token=True).double().mean(1)
    difference = (changed - clean).detach().numpy()
    effect = found.sel(measure="effect", head="L1H0")
    assert float(effect) == pytest.approx(difference.mean(), abs=1e-6)
    assert float(effect.standard_error) == pytest.approx(by_hand(difference, LABELS), abs=1e-6)


def test_a_share_of_the_gap_is_a_ratio_over_groups():
    corrupted = TEXT.flip(1)
    found = interp.patch(MODEL, TEXT, corrupted, ["L1H0"], groups=LABELS).sel(head="L1H0")
    each = [
        interp.patch(MODEL, TEXT[i : i + 1], corrupted[i : i + 1], ["L1H0"]).sel(head="L1H0")
        for i in range(6)
    ]
    effect = np.array([float(one.sel(measure="effect")) for one in each])
    gap = np.array(
        [float(one.sel(measure="clean")) - float(one.sel(measure="corrupted")) for one in each]
    )
    share = effect.sum() / gap.sum()
    ours = found.sel(measure="share")
    assert float(ours) == pytest.approx(share, abs=1e-5)
    expected = by_hand(effect - share * gap, LABELS) / abs(gap.mean())
    assert float(ours.standard_error) == pytest.approx(expected, rel=1e-4)


def test_intervals_have_as_many_degrees_of_freedom_as_groups():
    found = interp.ablate(MODEL, TEXT, ["L1H0"], control="none", groups=LABELS)
    assert found.degrees_of_freedom == 2
    effect = effects_of(found)["L1H0"]
    assert effect.high - effect.value == pytest.approx(student_t(0.975, 2) * effect.error)
    assert interp.ablate(MODEL, TEXT, control="none").degrees_of_freedom == 5
    with pytest.raises(ValueError, match="does not say over how many"):
        _ = Result("nothing", np.zeros(1), ("of",), {"of": ("all",)}).degrees_of_freedom


def test_the_jackknife_of_smeared_keys_keeps_groups_whole():
    sizes = [3, 9, 1, 1, 7, 2] * 4
    sampling = Sampling.of(np.repeat(np.arange(24), sizes), sum(sizes))
    merged = sampling.merged(16)
    assert 8 < merged.n_groups <= 16
    pairs = set(zip(sampling.codes, merged.codes, strict=True))
    assert len(pairs) == 24
    alone = Sampling.of(None, 40).merged(16)
    assert alone.n_groups == 16
    assert sorted(alone.codes) == alone.codes.tolist()
    found = interp.detect_smeared_keys(MODEL, TEXT, groups=LABELS)
    assert found.provenance["n_groups"] == 3
    assert found.provenance["errors"] == "jackknife over 3 sets of groups"


def test_samples_of_a_development_may_be_grouped():
    models = [(0, MODEL), (5, interp.HookedConvAttn.from_config(MODEL.config, seed=2))]
    given = {"tokens": TEXT.split(1)}
    grown = development(models, interp.loss_by_position, samples=given, groups=LABELS)
    whole = development(models, partial(interp.loss_by_position, tokens=TEXT, groups=LABELS))
    mean = over_samples(grown)
    np.testing.assert_allclose(mean.standard_error, whole.standard_error, atol=1e-6)
    assert grown.degrees_of_freedom == whole.degrees_of_freedom == 2
    alone = development(models, interp.loss_by_position, samples=given)
    assert alone.provenance["sequences"] == "taken as independent"
    with pytest.raises(ValueError, match="groups are of samples"):
        development(models, interp.loss_by_position, groups=LABELS)


# ------------------------------------------------------------------------- what a result says


@pytest.mark.parametrize("name", sorted(set(ANALYSES) - {"detect_smeared_keys"}))
def test_a_result_says_what_its_errors_are_over(name: str):
    alone, grouped = ANALYSES[name](MODEL, TEXT), ANALYSES[name](MODEL, TEXT, groups=LABELS)
    assert alone.provenance["sequences"] == "taken as independent"
    assert "sequences taken as independent" in repr(alone)
    assert "taken as independent" in alone._repr_html_()
    assert "n_groups" not in alone.provenance
    assert grouped.provenance["n_groups"] == 3
    assert "n_groups 3, errors over group means" in repr(grouped)
    assert "independent" not in repr(grouped)
    assert alone.provenance["n_sequences"] == grouped.provenance["n_sequences"] == 6


def test_random_probes_are_independent():
    probe = interp.repeated_tokens(5, d_vocab=40, bos=0, n_sequences=4)
    found = interp.ablate(MODEL, probe, metric="second_copy_loss", control="none")
    assert found.provenance["sequences"] == "drawn independently"
    assert "taken as" not in repr(interp.head_scores(MODEL, n=5, n_sequences=4))


def test_labels_may_come_as_whatever_holds_them():
    numbers = [3, 3, 1, 2, 2, 2]
    expected = interp.loss_by_position(MODEL, TEXT, groups=LABELS).standard_error
    for groups in (
        numbers,
        np.array(numbers),
        torch.tensor(numbers),
        list(torch.tensor(numbers)),
        pd.Series(LABELS),
        tuple(LABELS),
    ):
        found = interp.loss_by_position(MODEL, TEXT, groups=groups)
        np.testing.assert_allclose(found.standard_error, expected)


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize(
    ("groups", "error", "match"),
    [
        (LABELS[:-1], ValueError, "5 labels for 6 sequences; give one for each"),
        (["a", "a", "b", None, "c", "c"], ValueError, r"groups\[3\] is None; every sequence needs"),
        ([0.0, 1.5, 1.0, 1.0, 2.0, 2.0], TypeError, r"groups\[0\] is 0.0; give a list"),
        (np.array([0, 1, np.nan, 1, 2, 2]), ValueError, r"groups\[2\] is nan"),
        ([1, 2, float("nan"), 1, 2, 2], ValueError, r"groups\[2\] is nan"),
        ("abcabc", TypeError, "groups are 'abcabc'; give a list"),
        (dict.fromkeys(range(6)), TypeError, "give a list with one label per sequence"),
        (np.zeros((6, 2), dtype=int), TypeError, r"groups\[0\] is \[0, 0\]"),
    ],
)
def test_wrong_groups_are_refused_before_work(
    name: str, groups: Any, error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
):
    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("ran the model")

    monkeypatch.setattr(MODEL, "forward", forward)
    with pytest.raises(error, match=match):
        ANALYSES[name](MODEL, TEXT, groups=groups)


def test_what_is_no_list_is_no_groups():
    for groups in (7, torch.tensor(3)):
        with pytest.raises(TypeError, match=r"groups are .*; give a list"):
            _labels(groups)


def test_groups_need_tokens():
    for analysis in (interp.previous_token_score, interp.detect_smeared_keys):
        with pytest.raises(ValueError, match="groups are of tokens that are handed in"):
            analysis(MODEL, groups=LABELS)


def test_stretches_are_consecutive_and_equal():
    labels = stretches(1640)
    sizes = pd.Series(labels).value_counts()
    assert len(sizes) == 20
    assert set(sizes) == {82}
    assert len(pd.Series(labels).drop_duplicates()) == 1 + sum(
        one != other for one, other in pairwise(labels)
    )
    assert stretches(3) == ["stretch 0", "stretch 1", "stretch 2"]
    with pytest.raises(ValueError, match="n_stretches=1 must be at least 2"):
        stretches(10, 1)
