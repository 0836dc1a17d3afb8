"""Ablation, continued: what it refuses and what it leaves as it was."""

import numpy as np
import pytest

from interp.analysis import InductionScore, ablate, induction_score
from interp.analysis.probes.sequences import repeated_tokens
from tests.analysis import measured
from tests.analysis.interventions.by_hand import head, tokens_for
from tests.analysis.interventions.test_ablation import CLOSE, METRICS, by_metric, heads_of


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("max_batch", [None, 4, 9])
def test_every_metric(metric, max_batch):
    model = measured.build("attn-attn")
    tokens = repeated_tokens(6, d_vocab=40, bos=0, n_sequences=4).tokens
    clean = by_metric(model, tokens)[metric]
    result = ablate(
        model, tokens, "heads", metric=METRICS[metric], control="none", max_batch=max_batch
    )
    for layer, index in heads_of(model):
        label = f"L{layer}H{index}"
        change = by_metric(model, tokens, [head(layer, index)])[metric] - clean
        part = result.sel(measure="effect", head=label)
        np.testing.assert_allclose(part.values, change.mean(0), **CLOSE)
        np.testing.assert_allclose(part.standard_error, change.std(0, ddof=1) / 2, **CLOSE)
    np.testing.assert_allclose(
        result.sel(measure="clean", head="L0H0").values, clean.mean(0), **CLOSE
    )
    units = {"induction_score": "probability", "logit_difference": "logits", "largest": ""}
    assert result.unit == units.get(metric, "nats")
    assert result.provenance["metric"] == metric


def test_a_head_comes_before_the_patterns_above_it_alone():
    model = measured.build("attn-attn")
    tokens = repeated_tokens(6, d_vocab=40, bos=0, n_sequences=4).tokens
    result = ablate(model, tokens, "heads", metric=InductionScore("L1H1"), control="none")
    effects = dict(zip(result.labels["head"], result.sel(measure="effect").values, strict=True))
    assert all(effects[f"L1H{i}"] == 0 for i in range(3))
    assert all(abs(effects[f"L0H{i}"]) > 1e-4 for i in range(2))
    score = induction_score(model, n=6, n_sequences=4)
    assert float(result.sel(measure="clean", head="L0H0")) == pytest.approx(
        float(score.sel(head="L1H1")), abs=1e-12
    )
    inside = ablate(
        model, tokens, ["L1H1.q", "L1H0.q", "L1.resid_pre", "L1.resid_post"],
        metric=InductionScore("L1H1"), control="none",
    )  # fmt: skip
    changes = inside.sel(measure="effect").values
    assert abs(changes[0]) > 1e-3
    assert changes[1] == pytest.approx(0, abs=1e-12)
    assert abs(changes[2]) > 1e-3
    assert changes[3] == 0


@pytest.mark.parametrize("max_batch", [1, 2, 3, 100])
@pytest.mark.parametrize("method", ["mean", "resample", "pattern_preserving"])
def test_the_size_of_a_pass_changes_nothing(max_batch, method):
    model = measured.build("shortformer")
    tokens = tokens_for(model, n_sequences=5)
    units = ["heads", "lags", "L1.lag1->L2H0.k", "L0H0->L1.lag2", "pos_embed"]
    options = {"metric": "loss_per_token", "n_random": 2, "seed": 3, "control": "none"}
    result = ablate(model, tokens, units, method, max_batch=max_batch, **options)
    reference = ablate(model, tokens, units, method, **options)
    np.testing.assert_allclose(result.values, reference.values, **CLOSE)


@pytest.mark.parametrize(("max_batch", "largest"), [(1, 1), (4, 4), (11, 6), (12, 12)])
@pytest.mark.parametrize("method", ["mean", "resample"])
def test_no_pass_is_larger_than_allowed(monkeypatch, method, max_batch, largest):
    model, sizes = measured.build("attn-attn"), []
    layer = type(model.attn(0))
    forward = layer.forward

    def weigh(self, x, *more):
        sizes.append(len(x))
        return forward(self, x, *more)

    monkeypatch.setattr(layer, "forward", weigh)
    tokens = tokens_for(model, n_sequences=6)
    ablate(model, tokens, "heads", method, max_batch=max_batch, control="none")
    assert max(sizes) == largest


def test_layers_run_only_where_something_changed(monkeypatch):
    model, run = measured.build("attn-attn"), []
    layer = type(model.attn(0))
    forward = layer.forward

    def count(self, x, *more):
        run.append((1 if self is model.attn(1) else 0, len(x)))
        return forward(self, x, *more)

    monkeypatch.setattr(layer, "forward", count)
    ablate(model, tokens_for(model, n_sequences=2), "heads", control="none", max_batch=100)
    # The clean run, then both lower heads above their layer at once; the upper heads, nothing.
    assert run == [(0, 2), (1, 2), (1, 4)]
