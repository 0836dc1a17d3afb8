"""Attribution patching: what is asked for, what is left alone, and what is refused."""

import numpy as np
import pytest
import torch

from interp.analysis import LogitDifference, attribution_patch, repeated_tokens
from interp.analysis.interventions import attribution_patching as module
from interp.models import HookedAttnAttn
from tests.analysis import measured
from tests.analysis.bridges import N, bridged, hugging_face, probe
from tests.analysis.interventions.test_patching import DIFFERENCE, difference, two_inputs

CLOSE = {"rtol": 0, "atol": 1e-10}


def patched(model, units="heads", metric=DIFFERENCE, **options):
    clean, corrupted = two_inputs(40)
    return attribution_patch(model, clean, corrupted, units, metric, **options)


def last_logits(logits, tokens):
    return difference(logits)


# ------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize("metric", ["loss", "in_context_learning_score", last_logits])
@pytest.mark.parametrize("max_batch", [1, 2])
def test_the_size_of_a_pass_changes_nothing(metric, max_batch):
    model = measured.build("conv-attn")
    whole = patched(model, ["L1H0", "L0.lag1->L1H1.k"], metric)
    if callable(metric):  # shown all sequences at once
        with pytest.raises(ValueError, match="at once"):
            patched(model, "heads", metric, max_batch=max_batch)
        return
    parts = patched(model, ["L1H0", "L0.lag1->L1H1.k"], metric, max_batch=max_batch)
    np.testing.assert_allclose(parts.values, whole.values, **CLOSE)
    assert np.abs(whole.sel(measure="estimate").values).min() > 1e-5


def test_a_function_of_logits_is_the_metric_that_it_computes():
    model = measured.build("gpt")
    np.testing.assert_allclose(
        patched(model, metric=last_logits).values, patched(model).values, **CLOSE
    )


def test_one_forward_and_one_backward_pass_give_all_the_estimates(monkeypatch):
    model, runs = measured.build("attn-attn"), []
    monkeypatch.setattr(module.Runs, "sweep", None)  # what patches
    model.add_hook("blocks.0.hook_resid_pre", lambda x, hook: runs.append(len(x)))
    result = patched(model, "L*H*@*", exact=None)
    assert result.values.shape == (3, 5, 8)
    assert runs == [3, 3]  # the input that is run, and the one that is taken from


def test_only_some_are_patched_exactly():
    model = measured.build("gpt")
    every, some = patched(model), patched(model, exact=["L1H*", "L0H0"])
    known = [label in ("L1H0", "L1H1", "L0H0") for label in some.labels["head"]]
    for measure in ("exact", "error"):
        values = some.sel(measure=measure).values
        assert np.isfinite(values).tolist() == known
        np.testing.assert_allclose(values[known], every.sel(measure=measure).values[known], **CLOSE)
    np.testing.assert_allclose(
        some.sel(measure="estimate").values, every.sel(measure="estimate").values, **CLOSE
    )
    assert np.isnan(patched(model, exact=None).sel(measure="exact").values).all()


def test_the_correlation_is_over_the_units_that_were_patched():
    model = measured.build("gpt")
    result = patched(model, "resid_pre@*")
    pairs = [result.sel(measure=name).values.ravel() for name in ("estimate", "exact")]
    assert result.provenance["correlation"] == pytest.approx(np.corrcoef(*pairs)[0, 1])
    assert patched(model, exact="L1H*").provenance["correlation"] is None  # of two it is 1 or -1
    assert patched(model, exact=None).provenance["correlation"] is None


def test_it_says_what_it_is():
    result = patched(measured.build("gpt"), direction="noise")
    assert result.labels["measure"] == ("estimate", "exact", "error")
    assert (result.axes, result.unit) == (("measure", "head"), "logits")
    facts = {"direction": "noise", "metric": "logit_difference", "n_sequences": 3}
    assert facts.items() <= result.provenance.items()
    assert result.provenance["variant"] == "noising, logit difference"
    assert patched(measured.build("gpt"), ["L0.mlp"]).axes[1] == "component"


def test_one_sequence_has_no_error():
    clean, corrupted = (tokens[:1] for tokens in two_inputs(40))
    result = attribution_patch(measured.build("gpt"), clean, corrupted, "heads", DIFFERENCE)
    assert np.isnan(result.standard_error).all()


# --------------------------------------------------------------------------- nothing is disturbed


def hooked(model):
    points = {name: (*p.fwd_hooks, *p.bwd_hooks) for name, p in model.hook_dict.items()}
    return {name: len(hooks) for name, hooks in points.items() if hooks}


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("exact", ["all", None])
def test_the_model_is_left_as_it_was_found(error, when, exact):
    model = measured.build("gpt").train()
    model.blocks[0].eval()
    next(model.parameters()).requires_grad_(False)
    model.embed.W_E.grad = torch.ones_like(model.embed.W_E)

    def interrupt(value, hook):
        if error is not None:
            raise error("in the middle")

    if when == "forward":
        model.add_hook("blocks.1.hook_resid_post", interrupt)
    else:
        model.add_hook("blocks.1.hook_resid_post", interrupt, dir="bwd")
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    if error is None:
        patched(model, exact=exact)
    else:
        with pytest.raises(error, match="in the middle"):
            patched(model, exact=exact)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (model.embed.W_E.grad == 1).all()
    others = [p for p in model.parameters() if p is not model.embed.W_E]
    assert all(parameter.grad is None for parameter in others)
    assert hooked(model) == {"blocks.1.hook_resid_post": 1}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_bridge_is_left_as_it_was_found(error):
    inner = hugging_face("gpt2")
    model = bridged(inner)
    inner.train()
    model.train()

    def interrupt(value, hook):
        if error is not None:
            raise error("in the middle")

    model.hook_dict["blocks.1.hook_in"].add_hook(interrupt)
    modes = [module.training for module in inner.modules()]
    hooks = hooked(model)
    arguments = model, probe(N), probe(N).flip(0), "heads", DIFFERENCE
    if error is None:
        attribution_patch(*arguments)
    else:
        with pytest.raises(error, match="in the middle"):
            attribution_patch(*arguments)
    assert [module.training for module in inner.modules()] == modes
    assert all(parameter.grad is None for parameter in inner.parameters())
    assert hooked(model) == hooks
    assert set(hooks.values()) == {1}


def test_the_callers_gradient_mode_and_frozen_weights_are_no_hindrance():
    model = measured.build("conv-attn")
    expected = patched(model, ["L0.lag1", "L1H0.q", "embed"]).values
    model.requires_grad_(False)
    with torch.no_grad():
        found = patched(model, ["L0.lag1", "L1H0.q", "embed"]).values
        assert not torch.is_grad_enabled()
    np.testing.assert_array_equal(found, expected)


def test_bfloat16_is_left_and_close():
    model = HookedAttnAttn(d_vocab=40, d_model=32, n_heads=2, n_ctx=8)
    expected = patched(model).values
    found = patched(model.to(torch.bfloat16)).values
    assert model.W_E.dtype == torch.bfloat16
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * np.abs(expected).max())


def test_what_the_inputs_hold_is_not_written_to():
    clean, corrupted = two_inputs(40)
    before = clean.clone(), corrupted.clone()
    attribution_patch(measured.build("gpt"), clean, corrupted, "resid_pre@*", DIFFERENCE)
    assert torch.equal(clean, before[0])
    assert torch.equal(corrupted, before[1])


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "L9H0"}, "has no unit 'L9H0'"),
        ({"exact": "L9H0"}, "has no unit 'L9H0'"),
        ({"exact": ["L0H0.q"]}, "exact asks for L0H0.q, which is not among the units.*L0H0"),
        ({"metric": "loss_per_token"}, "several numbers per sequence, and a gradient is of one"),
        ({"metric": "accuracy"}, "there is no metric 'accuracy'"),
        ({"metric": lambda logits, tokens: logits.mean()}, "one number per sequence"),
        ({"metric": LogitDifference(3, 99)}, "other must be whole numbers from 0 to 39"),
        ({"metric": "second_copy_loss"}, "the clean tokens do not repeat themselves"),
        ({"direction": "backwards"}, "direction is 'backwards'; choose one of denoise, noise"),
        ({"max_batch": 0}, "max_batch=0 must be at least 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_question_is_refused_before_any_forward(options, message):
    with pytest.raises(ValueError, match=message):
        patched(measured.never_run(measured.build("gpt")), **options)


@pytest.mark.usefixtures("unchecked")
def test_inputs_of_two_lengths_are_refused():
    clean, corrupted = two_inputs(40)
    with pytest.raises(ValueError, match="each clean sequence needs a corrupted one"):
        attribution_patch(
            measured.never_run(measured.build("gpt")), clean, corrupted[:, 1:], "heads"
        )


@pytest.mark.usefixtures("unchecked")
def test_hooks_of_ones_own_have_no_estimate():
    own = {"mine": [("blocks.0.attn.hook_z", lambda z, hook: z * 0)]}
    with pytest.raises(ValueError, match="'mine' stands for hooks of your own"):
        patched(measured.never_run(measured.build("gpt")), own)


def test_a_nan_weight_is_named():
    model = measured.build("gpt")
    with torch.no_grad():
        model.attn(1).W_V[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="W_V"):
        patched(measured.never_run(model))


@pytest.mark.usefixtures("unchecked")
def test_repeated_tokens_may_be_handed_in_as_they_are():
    model = measured.build("gpt")
    clean = repeated_tokens(5, d_vocab=40, n_sequences=3)
    result = attribution_patch(model, clean, clean.tokens.flip(0), "heads", "second_copy_loss")
    assert result.unit == "nats"
