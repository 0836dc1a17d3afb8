"""ActivationCache: parts that add up to the stream, and attributions that add up to the logits."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformer_lens import ActivationCache as TheirCache
from transformer_lens.utilities.slice import Slice

from interp.models import MLP, ActivationCache, Attention, Conv
from tests.models import zoo
from tests.models.zoo import HEADS, N_CTX, SMEARED, config

WITH_MLP = Attention(n_heads=3, d_head=4, mlp=MLP(16))
STREAMS = {
    "conv and MLPs": config(Conv(lags=3, mlp=MLP(16)), SMEARED, WITH_MLP),
    "rms": config(Conv(lag_bias=True), WITH_MLP, norm="rms", positions="rotary"),
    "shortformer": config(Conv(depthwise=True), HEADS, positions="shortformer"),
    "no norm": config(WITH_MLP, Conv(bias=False), norm="none", positions="sinusoidal"),
    "no biases, tied": config(
        Attention(n_heads=3, d_head=4, output=False, bias=False), tied=True, unembed_bias=False
    ),
    "no heads": config(Conv(lags=4, mlp=MLP(16))),
    "GPT": config(WITH_MLP, WITH_MLP),
    "attention only": config(HEADS, HEADS),
}
CUTS: list[Any] = [None, 3, -1, [0, 5], (2, 6)]


def cached(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ActivationCache]:
    return zoo.from_config(STREAMS[name], dtype).run_with_cache(zoo.tokens())


def ends(cache: ActivationCache) -> list[tuple[int, bool, str]]:
    """Every place a decomposition may end at: (layer, mlp_input, the hook of its stream)."""
    places = []
    for layer, block in enumerate(cache.model.blocks):
        places.append((layer, False, f"blocks.{layer}.hook_resid_pre"))
        if block.mlp is not None:
            places.append((layer, True, f"blocks.{layer}.hook_resid_mid"))
    last = len(cache.model.blocks)
    return [*places, (last, False, f"blocks.{last - 1}.hook_resid_post")]


def cut_of(stream: Tensor, pos_slice: Any) -> Tensor:
    return Slice(pos_slice).apply(stream, dim=-2)


@pytest.mark.parametrize("pos_slice", CUTS)
@pytest.mark.parametrize("name", STREAMS)
def test_components_add_up_to_the_stream(name: str, pos_slice: Any) -> None:
    _, cache = cached(name)
    for layer, mlp_input, hook in ends(cache):
        stream = cut_of(cache[hook], pos_slice)
        arguments: dict[str, Any] = {"mlp_input": mlp_input, "pos_slice": pos_slice}
        stacks = [
            cache.decompose_resid(layer, **arguments),
            cache.get_full_resid_decomposition(layer, **arguments),
            cache.get_full_resid_decomposition(layer, expand_neurons=False, **arguments),
        ]
        if not mlp_input:
            stacks.append(cache.stack_head_results(layer, incl_remainder=True, pos_slice=pos_slice))
        for stack in stacks:
            assert stack.shape[1:] == stream.shape
            assert_close(stack.sum(0), stream, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", STREAMS)
def test_normalised_components_add_up_to_what_the_layer_reads(name: str) -> None:
    # Folded, a norm has no gain and no offset: what it gives is exactly what the layer reads.
    model = zoo.from_config(STREAMS[name]).fold_norms()
    _, cache = model.run_with_cache(zoo.tokens())
    for layer, mlp_input, hook in ends(cache):
        norm = "ln_final" if layer == len(model.blocks) else f"blocks.{layer}.ln{1 + mlp_input}"
        read = cache.cache_dict.get(f"{norm}.hook_normalized", cache[hook])
        for pos_slice in CUTS:
            arguments: dict[str, Any] = {"apply_ln": True, "pos_slice": pos_slice}
            stacks = [
                cache.decompose_resid(layer, mlp_input, **arguments),
                cache.get_full_resid_decomposition(layer, mlp_input, **arguments),
            ]
            if not mlp_input:
                stacks.append(cache.stack_head_results(layer, incl_remainder=True, **arguments))
            for stack in stacks:
                assert_close(stack.sum(0), cut_of(read, pos_slice), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", STREAMS)
def test_attributions_add_up_to_the_logits(name: str, dtype: torch.dtype) -> None:
    logits, cache = cached(name, dtype)
    model, targets = cache.model, zoo.tokens(seed=8)
    expected = logits.gather(-1, targets[..., None])[..., 0]
    bias = model.logit_bias(targets)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5 * logits.abs().max().item()
    for stack in (
        cache.decompose_resid(),
        cache.get_full_resid_decomposition(),
        cache.stack_head_results(incl_remainder=True),
    ):
        attributions = cache.logit_attrs(stack, targets)
        assert attributions.shape == stack.shape[:-1]
        assert_close(attributions.sum(0) + bias, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["conv and MLPs", "rms"])
def test_attributions_of_one_position_and_of_differences(name: str) -> None:
    logits, cache = cached(name)
    stack = cache.decompose_resid(pos_slice=-1)
    right, wrong = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    attributions = cache.logit_attrs(stack, right, wrong, pos_slice=-1)
    rows = torch.arange(3)
    difference = logits[rows, -1, right] - logits[rows, -1, wrong]
    bias = cache.model.logit_bias(right) - cache.model.logit_bias(wrong)
    assert_close(attributions.sum(0) + bias, difference, rtol=0, atol=1e-10)
    whole = cache.logit_attrs(cache.decompose_resid(), 7).sum(0) + cache.model.logit_bias(7)
    assert_close(whole, logits[..., 7], rtol=0, atol=1e-10)
    second = cache.logit_attrs(cache.decompose_resid(), 7, batch_slice=1).sum(0)
    assert_close(second + cache.model.logit_bias(7), logits[1, :, 7], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", STREAMS)
def test_accumulated_streams_are_the_streams(name: str) -> None:
    logits, cache = cached(name)
    n_layers = len(cache.model.blocks)
    stack, labels = cache.accumulated_resid(return_labels=True)
    assert labels == [*(f"{layer}_pre" for layer in range(n_layers)), "final_post"]
    for layer in range(n_layers):
        assert torch.equal(stack[layer], cache["resid_pre", layer])
    assert torch.equal(stack[-1], cache["resid_post", -1])
    lens = cache.accumulated_resid(apply_ln=True)
    assert_close(lens[-1] @ cache.model.W_U + cache.model.b_U, logits, rtol=0, atol=1e-10)
    early = cache.accumulated_resid(1, apply_ln=True, pos_slice=2)
    assert early.shape == (2, 3, zoo.D_MODEL)


def test_the_streams_between_mixer_and_mlp_can_be_asked_for() -> None:
    _, cache = cached("GPT")
    stack, labels = cache.accumulated_resid(2, incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    assert torch.equal(stack[3], cache["resid_mid", 1])
    _, labels = cache.accumulated_resid(1, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "1_mid"]
    _, mixed = cached("conv and MLPs")
    assert mixed.accumulated_resid(1, incl_mid=True).shape[0] == 3
    with pytest.raises(ValueError, match="incl_mid: block 1 has no MLP"):
        mixed.accumulated_resid(2, incl_mid=True)


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


def test_padded_batches_decompose_too() -> None:
    model = zoo.from_config(STREAMS["conv and MLPs"])
    mask = zoo.right_padding(N_CTX, 4, 2)
    _, cache = model.run_with_cache(zoo.tokens(), attention_mask=mask)
    for stack in (cache.decompose_resid(), cache.get_full_resid_decomposition()):
        assert_close(stack.sum(0), cache["resid_post", -1], rtol=0, atol=1e-10)


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
@pytest.mark.parametrize(
    "question", questions(ActivationCache({}, None))
)
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
        with pytest.raises(ValueError, match="mlp_input: layer [13] has no MLP"):
            cache.decompose_resid(layer, mlp_input=True)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode is 'heads'; choose one of all, attn, conv, mlp"):
        cached("GPT")[1].decompose_resid(mode="heads")
