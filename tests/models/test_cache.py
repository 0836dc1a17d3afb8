"""ActivationCache: labels, projections, slices, and what TransformerLens says of the same."""

import re
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformer_lens import ActivationCache as TheirCache

from interp.models import ActivationCache
from tests.models import zoo
from tests.models.test_decompositions import CUTS, STREAMS, cached
from tests.models.zoo import N_CTX


def test_labels_name_their_rows() -> None:
    _, cache = cached("conv and MLPs")
    stack, labels = cache.decompose_resid(return_labels=True)
    assert labels == [
        "embed",
        "pos_embed",
        "0_conv_out",
        "0_mlp_out",
        "1_attn_out",
        "2_attn_out",
        "2_mlp_out",
    ]
    for label, row in zip(labels, stack, strict=True):
        layer, _, rest = label.rpartition("_")[0].partition("_")
        name = f"hook_{label}" if not layer.isdigit() else f"blocks.{layer}.hook_{rest}_out"
        assert torch.equal(row, cache[name]), label
    assert len(stack) == len(labels)
    modes = {"attn": 2, "conv": 1, "mlp": 2, "all": 5}
    for mode, count in modes.items():
        only = cache.decompose_resid(mode=mode, incl_embeds=False, return_labels=True)[1]
        assert len(only) == count
        assert mode == "all" or all(mode in label for label in only)


def test_labels_of_the_full_decomposition() -> None:
    _, cache = cached("conv and MLPs")
    stack, labels = cache.get_full_resid_decomposition(return_labels=True)
    rows = dict(zip(labels, stack, strict=True))
    heads = [f"L{layer}H{head}" for layer in (1, 2) for head in range(3)]
    lags = [f"0_conv_lag{lag}" for lag in range(3)]
    neurons = [f"L{layer}N{neuron}" for layer in (0, 2) for neuron in range(16)]
    assert labels == [*heads, *lags, *neurons, "embed", "pos_embed", "bias"]
    assert torch.equal(rows["L2H1"], cache["result", 2][..., 1, :])
    assert torch.equal(rows["0_conv_lag2"], cache["blocks.0.conv.hook_lags"][:, 2])
    neuron = cache["post", 2][..., 5, None] * cache.model.blocks[2].mlp.W_out[5]
    assert_close(rows["L2N5"], neuron, rtol=0, atol=1e-13)
    _, coarse = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    assert coarse == [*heads, *lags, "0_mlp_out", "2_mlp_out", "embed", "pos_embed", "bias"]
    results, names = cache.stack_head_results(2, return_labels=True, incl_remainder=True)
    assert names == ["L1H0", "L1H1", "L1H2", "remainder"]
    assert len(results) == 4
    assert cache.stack_head_results(1).shape == (0, 3, N_CTX, zoo.D_MODEL)


@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("pos_slice", [None, 2])
def test_a_projection_is_that_of_the_whole_stack(apply_ln: bool, pos_slice: Any) -> None:
    _, cache = cached("conv and MLPs")
    arguments: dict[str, Any] = {"apply_ln": apply_ln, "pos_slice": pos_slice}
    whole = cache.get_full_resid_decomposition(**arguments)
    for onto in (cache.model.W_U, cache.model.W_U[:, 0]):
        projected = cache.get_full_resid_decomposition(project_output_onto=onto, **arguments)
        assert_close(projected, whole @ onto, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["conv and MLPs", "rms", "attention only"])
def test_a_cache_without_its_batch_dimension_or_with_fewer_sequences(name: str) -> None:
    model = zoo.from_config(STREAMS[name])
    logits, cache = model.run_with_cache(zoo.tokens())
    _, alone = model.run_with_cache(zoo.tokens()[1:2], remove_batch_dim=True)
    one = cache.apply_slice_to_batch_dim(1)
    assert isinstance(one, ActivationCache)
    assert not one.has_batch_dim
    for each in (alone, one):
        stack = each.decompose_resid()
        assert stack.shape[1:] == (N_CTX, zoo.D_MODEL)
        total = each.logit_attrs(stack, 4, has_batch_dim=False).sum(0) + model.logit_bias(4)
        assert_close(total, logits[1, :, 4], rtol=0, atol=1e-10)
        full = each.get_full_resid_decomposition(apply_ln=True)
        assert_close(full, cache.get_full_resid_decomposition(apply_ln=True)[:, 1])
    two = cache.apply_slice_to_batch_dim((0, 2))
    assert isinstance(two, ActivationCache)
    assert_close(two.decompose_resid(), cache.decompose_resid()[:, :2], rtol=0, atol=0)


def test_head_results_are_computed_from_z_where_they_were_not_cached() -> None:
    model = zoo.from_config(STREAMS["conv and MLPs"])
    _, whole = model.run_with_cache(zoo.tokens())
    _, cache = model.run_with_cache(
        zoo.tokens(), names_filter=lambda name: "hook_result" not in name
    )
    assert "blocks.1.attn.hook_result" not in cache
    assert_close(cache.stack_head_results(), whole.stack_head_results(), rtol=0, atol=1e-12)


ASKED: list[tuple[str, dict[str, Any]]] = [
    ("decompose_resid", {}),
    ("decompose_resid", {"layer": 1, "incl_embeds": False, "apply_ln": True}),
    ("decompose_resid", {"mode": "attn"}),
    ("accumulated_resid", {"apply_ln": True}),
    ("accumulated_resid", {"layer": 1}),
    ("stack_head_results", {"layer": 2, "incl_remainder": True}),
    ("stack_head_results", {"layer": 1, "apply_ln": True}),
    ("stack_head_results", {"layer": 0}),
    ("get_full_resid_decomposition", {}),
    ("get_full_resid_decomposition", {"layer": 1, "apply_ln": True}),
    ("get_full_resid_decomposition", {"expand_neurons": False}),
    ("get_full_resid_decomposition", {"project_output_onto": torch.ones(12, 2).double()}),
    ("get_full_resid_decomposition", {"project_output_onto": torch.ones(12).double()}),
    (
        "get_full_resid_decomposition",
        {"project_output_onto": torch.eye(12)[0].double(), "apply_ln": True},
    ),
]
ASKED_WITH_MLPS: list[tuple[str, dict[str, Any]]] = [
    ("decompose_resid", {"mode": "mlp"}),
    ("decompose_resid", {"layer": 1, "mlp_input": True, "apply_ln": True}),
    ("accumulated_resid", {"incl_mid": True}),
    ("get_full_resid_decomposition", {"layer": 1, "mlp_input": True}),
]


@pytest.mark.parametrize("pos_slice", CUTS)
@pytest.mark.parametrize("name", ["GPT", "attention only"])
def test_where_transformer_lens_has_an_answer_ours_is_the_same(name: str, pos_slice: Any) -> None:
    _, ours = cached(name)
    theirs = TheirCache(dict(ours.cache_dict), ours.model)
    for method, arguments in ASKED + (ASKED_WITH_MLPS if name == "GPT" else []):
        options = {"pos_slice": pos_slice, "return_labels": True, **arguments}
        stack, labels = getattr(ours, method)(**options)
        expected, their_labels = getattr(theirs, method)(**options)
        # Theirs calls a neuron L0Ntensor(3).
        assert labels == [re.sub(r"tensor\((\d+)\)", r"\1", label) for label in their_labels]
        assert_close(stack, expected, rtol=0, atol=1e-12)
    options = {"residual_stack": ours.decompose_resid(pos_slice=pos_slice), "tokens": 3}
    attributions = ours.logit_attrs(**options, pos_slice=pos_slice)
    assert torch.equal(attributions, theirs.logit_attrs(**options, pos_slice=pos_slice))


def questions(cache: ActivationCache) -> dict[str, Any]:
    stack = torch.zeros(1, 3, N_CTX, zoo.D_MODEL)
    return {
        "decompose_resid": lambda: cache.decompose_resid(),
        "accumulated_resid": lambda: cache.accumulated_resid(),
        "stack_head_results": lambda: cache.stack_head_results(),
        "get_full_resid_decomposition": lambda: cache.get_full_resid_decomposition(),
        "apply_ln_to_stack": lambda: cache.apply_ln_to_stack(stack),
        "logit_attrs": lambda: cache.logit_attrs(stack, 0),
    }


REFUSING = {
    "course": "no residual stream: each layer replaces the one before",
    "no residual": "no residual stream: each layer replaces the one before",
    "post": "normalises the residual stream itself after every layer \\(post-norm\\)",
}


@pytest.mark.parametrize("name", REFUSING)
@pytest.mark.parametrize("question", questions(ActivationCache({}, None)))
def test_where_there_is_no_sum_to_take_apart_the_reason_is_given(name: str, question: str) -> None:
    _, cache = zoo.build(name).run_with_cache(zoo.tokens())
    with pytest.raises(ValueError, match=REFUSING[name]):
        questions(cache)[question]()
    assert cache["resid_post", 0].shape == (3, N_CTX, zoo.D_MODEL)


@pytest.mark.parametrize("layer", [-2, 4, 99])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    _, cache = cached("conv and MLPs")
    for ask in (
        cache.decompose_resid,
        cache.accumulated_resid,
        cache.stack_head_results,
        cache.get_full_resid_decomposition,
    ):
        with pytest.raises(ValueError, match=f"layer is {layer}, but must be 0 to 3; 3 "):
            ask(layer)


def test_the_input_of_an_mlp_that_is_not_there_is_refused() -> None:
    _, cache = cached("conv and MLPs")
    for layer in (1, 3, None):
        with pytest.raises(ValueError, match=r"mlp_input: layer [13] has no MLP"):
            cache.decompose_resid(layer, mlp_input=True)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode is 'heads'; choose one of all, attn, conv, mlp"):
        cached("GPT")[1].decompose_resid(mode="heads")
