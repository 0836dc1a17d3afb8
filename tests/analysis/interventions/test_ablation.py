"""Every ablation of a sweep is the one that a full forward of its own would make."""

import math
import statistics

import numpy as np
import pytest
import torch

from interp.analysis import InductionScore, LogitDifference, ablate
from interp.analysis.interventions.metrics import InContextLearning
from interp.analysis.interventions.replacements import others_of
from interp.models import HookedSequenceModel
from tests.analysis import measured
from tests.analysis.interventions import by_hand
from tests.analysis.interventions.by_hand import effect, head, held_patterns, put, tokens_for

ALL = slice(None)
CLOSE = {"rtol": 0, "atol": 1e-10}
KINDS = tuple(measured.LAYERS)


def mean_loss(logits, tokens):
    """A function of logits may be the loss even where the library refuses its own."""
    log_probabilities = logits[:, :-1].log_softmax(-1)
    return -log_probabilities.gather(-1, tokens[:, 1:, None])[..., 0].mean(1)


def loss_for(kind: str):
    """A model that sees its future predicts no next token, and has no loss by that name."""
    return mean_loss if kind == "sees its future" else "loss"


def heads_of(model: HookedSequenceModel) -> list[tuple[int, int]]:
    return [
        (layer, index)
        for layer in model.attention_layers
        for index in range(model.attn(layer).W_Q.shape[0])
    ]


def agrees(result, samples: list[np.ndarray]) -> None:
    """The effects are the samples' means, with their standard errors."""
    part = result.sel(measure="effect")
    np.testing.assert_allclose(part.values, [sample.mean() for sample in samples], **CLOSE)
    errors = [statistics.stdev(sample.tolist()) / math.sqrt(len(sample)) for sample in samples]
    np.testing.assert_allclose(part.standard_error, errors, **CLOSE)


# ----------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["zero", "mean", "resample", "pattern_preserving"])
def test_every_head(kind, method):
    model = measured.build(kind)
    tokens = tokens_for(model)
    cache = by_hand.activations(model, tokens)
    frozen = held_patterns(cache) if method == "pattern_preserving" else []
    donors = by_hand.activations(model, others_of(tokens, None, seed=0))
    samples = []
    for layer, index in heads_of(model):
        name = f"blocks.{layer}.attn.hook_result"
        value = {"mean": cache[name].mean(0, keepdim=True).expand_as(cache[name])}.get(method, 0.0)
        value = donors[name] if method == "resample" else value
        samples.append(effect(model, tokens, *frozen, head(layer, index, value)))
    result = ablate(model, tokens, "heads", method, loss_for(kind), control="none")
    assert result.labels["head"] == tuple(f"L{layer}H{index}" for layer, index in heads_of(model))
    assert result.labels["measure"] == ("effect", "clean")
    agrees(result, samples)
    losses = by_hand.token_losses(by_hand.logits_under(model, tokens), tokens)
    np.testing.assert_allclose(result.sel(measure="clean").values, losses.mean(), **CLOSE)
    assert np.abs(result.sel(measure="effect").values).min() > 1e-4


def test_no_sequence_is_resampled_from_itself_and_each_is_taken_from_once():
    tokens = torch.arange(7)[:, None]
    for seed in range(20):
        others = others_of(tokens, None, seed)
        assert (others != tokens).all()
        assert sorted(others.flatten().tolist()) == list(range(7))


@pytest.mark.parametrize("max_batch", [1, 3])
def test_means_are_over_the_whole_reference_however_few_run_at_once(max_batch):
    model = measured.build("conv-attn")
    tokens = tokens_for(model)
    cache = by_hand.activations(model, reference := tokens.roll(1, dims=1))
    means = cache["blocks.1.attn.hook_result"].mean(0, keepdim=True).expand(len(tokens), -1, -1, -1)
    samples = [effect(model, tokens, head(1, index, means)) for _, index in heads_of(model)]
    given = {"reference": reference, "max_batch": max_batch, "control": "none"}
    agrees(ablate(model, tokens, "heads", "mean", **given), samples)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer(kind):
    model = measured.build(kind)
    tokens = tokens_for(model)
    samples = []
    for layer in range(len(model.blocks)):
        mixer = "attn" if layer in model.attention_layers else "conv"
        names = (f"blocks.{layer}.hook_{place}_out" for place in (mixer, "mlp"))
        written = [put(name, (ALL,), 0.0) for name in names if name in model.hook_dict]
        samples.append(effect(model, tokens, *written))
    result = ablate(model, tokens, "layers", metric=loss_for(kind), control="none")
    assert result.labels["component"] == tuple(f"L{i}" for i in range(len(model.blocks)))
    agrees(result, samples)


@pytest.mark.parametrize("kind", ["conv-attn", "shortformer"])
def test_every_lag(kind):
    model = measured.build(kind)
    tokens = tokens_for(model)
    places = [(i, lag) for i in model.conv_layers for lag in range(model.conv(i).lags)]
    samples = [
        effect(model, tokens, put(f"blocks.{i}.conv.hook_lags", (ALL, lag), 0.0))
        for i, lag in places
    ]
    result = ablate(model, tokens, "lags", control="none")
    assert result.labels["component"] == tuple(f"L{i}.lag{lag}" for i, lag in places)
    agrees(result, samples)


@pytest.mark.parametrize("kind", ["conv-attn", "gpt"])
def test_the_stream_at_every_position(kind):
    model = measured.build(kind)
    tokens = tokens_for(model, n_pos=6)
    result = ablate(model, tokens, "positions", "mean", control="none")
    assert result.axes == ("measure", "component", "position")
    assert result.labels["position"] == tuple(range(6))
    cache = by_hand.activations(model, tokens)
    for layer in range(2):
        name = f"blocks.{layer}.hook_resid_pre"
        mean = cache[name].mean(0, keepdim=True).expand_as(cache[name])
        samples = [effect(model, tokens, put(name, (ALL, t), mean)) for t in range(6)]
        agrees(result.sel(component=f"L{layer}.resid_pre"), samples)


@pytest.mark.parametrize(
    ("unit", "name", "where"),
    [
        ("L1H1.q", "blocks.1.attn.hook_q", (ALL, ALL, 1)),
        ("L1H1.k", "blocks.1.attn.hook_k", (ALL, ALL, 1)),
        ("L0H0.v", "blocks.0.attn.hook_v", (ALL, ALL, 0)),
        ("L0H1.pattern", "blocks.0.attn.hook_pattern", (ALL, 1)),
        ("L0.attn", "blocks.0.hook_attn_out", (ALL,)),
        ("L1.mlp", "blocks.1.hook_mlp_out", (ALL,)),
        ("L0.resid_mid", "blocks.0.hook_resid_mid", (ALL,)),
        ("L1.resid_post", "blocks.1.hook_resid_post", (ALL,)),
        ("embed", "hook_embed", (ALL,)),
        ("pos_embed", "hook_pos_embed", (ALL,)),
        ("L0H1@3", "blocks.0.attn.hook_z", (ALL, 3, 1)),
        ("L1H0@-4:", "blocks.1.attn.hook_z", (ALL, slice(-4, None), 0)),
        ("L1.mlp@2:5", "blocks.1.hook_mlp_out", (ALL, slice(2, 5))),
        ("blocks.0.mlp.hook_post[:, 5]", "blocks.0.mlp.hook_post", (ALL, ALL, 5)),
        ("blocks.1.attn.hook_result[2:, 1]", "blocks.1.attn.hook_result", (ALL, slice(2, None), 1)),
        ("blocks.0.attn.hook_z[:, :, 3]", "blocks.0.attn.hook_z", (ALL, ALL, ALL, 3)),
        ("blocks.1.ln1.hook_normalized", "blocks.1.ln1.hook_normalized", (ALL,)),
        ("blocks.1.ln2.hook_normalized", "blocks.1.ln2.hook_normalized", (ALL,)),
    ],
)
def test_any_unit(unit, name, where):
    model = measured.build("gpt")
    tokens = tokens_for(model)
    expected = effect(model, tokens, put(name, where, 0.0))
    agrees(ablate(model, tokens, [unit], control="none"), [expected])
    assert np.abs(expected).max() > 1e-6


def test_several_at_once():
    model = measured.build("attn-attn")
    tokens = tokens_for(model)
    cache = by_hand.activations(model, tokens)
    units = ["L0H0+L0H1", "L1H2+L0H1", "L0.attn+L1H0+embed", "L1H0+L1H0@3", "L0H0+L0.attn@2"]
    q = put("blocks.1.attn.hook_q", (ALL, ALL, 1), 0.0)
    expected = [
        effect(model, tokens, head(0, 0), head(0, 1)),
        effect(model, tokens, head(1, 2), head(0, 1)),
        effect(
            model,
            tokens,
            put("blocks.0.hook_attn_out", (ALL,), 0.0),
            head(1, 0),
            put("hook_embed", (ALL,), 0.0),
        ),
        effect(model, tokens, head(1, 0)),
        effect(model, tokens, head(0, 0), put("blocks.0.hook_attn_out", (ALL, 2), 0.0)),
        effect(model, tokens, q, head(1, 1)),
    ]
    agrees(ablate(model, tokens, [*units, "L1H1.q+L1H1"], control="none"), expected)
    frozen = held_patterns(cache)
    held = ablate(model, tokens, ["L0H1.v+L1H2"], "pattern_preserving", control="none")
    v = put("blocks.0.attn.hook_v", (ALL, ALL, 1), 0.0)
    agrees(held, [effect(model, tokens, *frozen, v, head(1, 2))])


def test_without_a_residual_stream_and_an_output_map():
    """The course's own network."""
    from interp.models import Attention, Conv, ModelConfig

    config = ModelConfig(
        d_vocab=20, d_model=8, n_ctx=16, positions="none", norm="none", residual=False,
        layers=(Conv(), Attention(n_heads=2, d_head=4, output=False, bias=False)),
    )  # fmt: skip
    model = HookedSequenceModel(config).double()
    tokens = tokens_for(model)
    lags = [put("blocks.0.conv.hook_lags", (ALL, lag), 0.0) for lag in (0, 1)]
    expected = [effect(model, tokens, hook) for hook in (*lags, head(1, 0), head(1, 1))]
    agrees(ablate(model, tokens, ["L0.lag*", "heads"], control="none"), expected)


# ---------------------------------------------------------------------------------------- metrics


def by_metric(model, tokens, hooks=()):
    """Each metric of each sequence, from logits and patterns that are there in full."""
    logits = by_hand.logits_under(model, tokens, *hooks)
    losses = by_hand.token_losses(logits, tokens)
    with model.hooks(fwd_hooks=list(hooks)):
        patterns = measured.patterns(model, tokens)
    n_pos = tokens.shape[1]
    n = n_pos // 2
    second = np.arange(n_pos - n, n_pos)
    return {
        "loss": losses.mean(1),
        "loss_per_token": losses,
        "second_copy_loss": losses[:, -(n - 1) :].mean(1),
        "in_context_learning_score": losses[:, 9] - losses[:, 1],
        "logit_difference": (logits[:, -1, 3] - logits[:, -1, 5]).numpy(),
        "induction_score": patterns[:, [3, 0]][:, :, second, second - n + 1].mean((1, 2)),
        "largest": logits[:, 2].amax(-1).numpy(),
    }


def largest(logits, tokens):
    assert logits.shape[:2] == tokens.shape
    return logits[:, 2].amax(-1)


METRICS = {
    "loss": "loss",
    "loss_per_token": "loss_per_token",
    "second_copy_loss": "second_copy_loss",
    "in_context_learning_score": InContextLearning(early=2, late=10),
    "logit_difference": LogitDifference(3, [5] * 4),
    "induction_score": InductionScore(("L1H1", "L0H0")),
    "largest": largest,
}
