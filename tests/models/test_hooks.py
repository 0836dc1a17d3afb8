"""Hooks: called while they are there, gone when they should be, refused when misspelt."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interp.models import HookedSequenceModel
from tests.models import zoo
from tests.models.zoo import N_CTX

Hook = Callable[[Tensor, Any], Tensor | None]


def no_listener_left(model: HookedSequenceModel) -> bool:
    return not any(
        point.fwd_hooks or point.bwd_hooks or point._forward_hooks or point._backward_hooks
        for point in model.hook_dict.values()
    )


def raising(error: type[BaseException]) -> Hook:
    def hook(activation: Tensor, hook: Any) -> None:
        raise error

    return hook


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["blocks.0.conv.hook_lags", "blocks.1.attn.hook_pattern"])
def test_hooks_are_gone_after_an_exception(name: str, error: type[BaseException]) -> None:
    model = zoo.build("conv-attn: as it comes")
    before = model(zoo.tokens())
    hooks = [(lambda point: True, lambda activation, hook: None), (name, raising(error))]
    with pytest.raises(error):
        model.run_with_hooks(zoo.tokens(), fwd_hooks=hooks)
    assert no_listener_left(model)
    with pytest.raises(error), model.hooks(fwd_hooks=hooks):
        model(zoo.tokens())
    assert no_listener_left(model)
    assert torch.equal(model(zoo.tokens()), before)


def test_caching_hooks_are_gone_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.build("conv-attn: as it comes")

    def interrupt(stream: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.unembed, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.run_with_cache(zoo.tokens())
    assert no_listener_left(model)
    assert not model.is_caching


def test_a_hook_of_an_outer_context_outlives_an_inner_one() -> None:
    model, captured = zoo.build("attn: as it comes"), []
    with model.hooks([("hook_embed", lambda activation, hook: captured.append(activation))]):
        model.run_with_cache(zoo.tokens())
        model(zoo.tokens())
    assert len(captured) == 2
    assert no_listener_left(model)


def test_a_backward_hook_hears_the_gradient() -> None:
    model, captured = zoo.build("conv-attn: as it comes"), []
    with model.hooks(
        bwd_hooks=[("blocks.1.attn.hook_pattern", lambda grad, hook: captured.append(grad))]
    ):
        model(zoo.tokens(), "loss").backward()
    assert captured[0].shape == (3, 3, N_CTX, N_CTX)
    assert captured[0].abs().max() > 1e-6
    _, cache = model.run_with_cache(zoo.tokens(), return_type="loss", incl_bwd=True)
    assert_close(cache["blocks.1.attn.hook_pattern_grad"], captured[0], rtol=0, atol=1e-12)


MISSPELT = "blocks.1.attn.hook_patern"
SUGGESTION = r"'blocks.1.attn.hook_patern' is no hook point .*'blocks.1.attn.hook_pattern'"
ASKING: dict[str, Callable[[HookedSequenceModel], Any]] = {
    "run_with_hooks": lambda model: model.run_with_hooks(
        zoo.tokens(), fwd_hooks=[(MISSPELT, lambda activation, hook: None)]
    ),
    "a backward hook": lambda model: model.run_with_hooks(
        zoo.tokens(), bwd_hooks=[(MISSPELT, lambda activation, hook: None)]
    ),
    "add_hook": lambda model: model.add_hook(MISSPELT, lambda activation, hook: None),
    "add_perma_hook": lambda model: model.add_perma_hook(MISSPELT, lambda activation, hook: None),
    "names_filter": lambda model: model.run_with_cache(zoo.tokens(), names_filter=MISSPELT),
    "a list of names": lambda model: model.run_with_cache(
        zoo.tokens(), names_filter=["hook_embed", MISSPELT]
    ),
}


@pytest.mark.parametrize("way", ASKING)
def test_an_unknown_hook_name_is_refused_with_a_suggestion(way: str) -> None:
    model = zoo.build("conv-attn: as it comes")
    with pytest.raises(ValueError, match=SUGGESTION):
        ASKING[way](model)
    assert no_listener_left(model)


def test_the_name_of_a_module_is_no_hook_name() -> None:
    with pytest.raises(ValueError, match=r"'blocks.0' is no hook point"):
        zoo.build("attn: as it comes").add_hook("blocks.0", lambda activation, hook: None)


def test_a_filter_that_matches_nothing_caches_nothing() -> None:
    _, cache = zoo.build("attn: as it comes").run_with_cache(
        zoo.tokens(), names_filter=lambda name: False
    )
    assert len(cache) == 0


def tilted(activation: Tensor, hook: Any) -> Tensor:
    """Another activation: no norm removes this change, and no softmax is blind to it."""
    tilt = torch.linspace(0.2, 1.4, activation.shape[-1], dtype=activation.dtype)
    return activation * (tilt.flip(0) if activation.shape[-1] > 1 else 1.5)


@pytest.mark.parametrize("name", ["deep", "conv-attn: rotary, rms", "attn-attn: shortformer"])
def test_what_a_hook_returns_takes_the_activations_place(name: str) -> None:
    model, tokens = zoo.build(name), zoo.tokens()
    plain = model(tokens)
    for point in model.hook_dict:
        changed = model.run_with_hooks(tokens, fwd_hooks=[(point, tilted)])
        moved = (changed - plain).abs().max()
        if point.endswith("hook_log_sum_exp"):  # for reading only, as its docstring says
            assert moved < 1e-11, point
        else:
            assert moved > 1e-4, point


def replaced(value: Tensor) -> Hook:
    return lambda activation, hook: value


def test_a_cached_activation_put_back_elsewhere_does_what_it_did() -> None:
    # Patching by hand: with the stream of another sequence at a layer, the logits are that one's.
    model, one, two = zoo.build("deep"), zoo.tokens(1), zoo.tokens(1, seed=7)
    _, cache = model.run_with_cache(two)
    for layer in range(len(model.blocks)):
        point = f"blocks.{layer}.hook_resid_pre"
        patched = model.run_with_hooks(one, fwd_hooks=[(point, replaced(cache[point]))])
        assert_close(patched, model(two), rtol=0, atol=1e-11)


def test_zeroing_a_pattern_leaves_the_biases() -> None:
    model, tokens = zoo.build("attn: as it comes"), zoo.tokens()
    hooks = [("blocks.0.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))]
    with model.hooks(hooks):
        _, cache = model.run_with_cache(tokens)
    assert_close(cache["attn_out", 0], model.b_O[0].expand(3, N_CTX, -1))


def test_zeroing_a_lag_is_a_convolution_without_it() -> None:
    model, tokens = zoo.build("three lags"), zoo.tokens()

    def without_lag_1(lags: Tensor, hook: Any) -> Tensor:
        lags = lags.clone()
        lags[:, 1] = 0
        return lags

    ablated = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.conv.hook_lags", without_lag_1)])
    with torch.no_grad():
        model.conv(0).W_conv[1] = 0
    assert_close(ablated, model(tokens), rtol=0, atol=1e-11)


def test_scores_moved_by_a_constant_per_query_change_nothing() -> None:
    model, tokens = zoo.build("attn: as it comes"), zoo.tokens()

    def moved(scores: Tensor, hook: Any) -> Tensor:
        return scores + torch.arange(scores.shape[2], dtype=scores.dtype)[:, None]

    hooks = [("blocks.0.attn.hook_attn_scores", moved)]
    assert_close(model.run_with_hooks(tokens, fwd_hooks=hooks), model(tokens), rtol=0, atol=1e-11)


def test_the_log_sum_exp_is_that_of_the_scores_on_either_path() -> None:
    model, tokens = zoo.build("deep"), zoo.tokens()
    mask = zoo.right_padding(N_CTX, 4, 2)
    for attention_mask in (None, mask):
        _, cache = model.run_with_cache(tokens, attention_mask=attention_mask)
        for layer in model.attention_layers:
            name = f"blocks.{layer}.attn.hook_log_sum_exp"
            expected = cache["attn_scores", layer].logsumexp(-1).transpose(1, 2)
            _, alone = model.run_with_cache(
                tokens, names_filter=name, attention_mask=attention_mask
            )
            assert_close(cache[name], expected, rtol=0, atol=1e-12)
            assert_close(alone[name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", [3, -1, [0, 5], (2, 6), (1, 7, 2)])
def test_pos_slice_cuts_the_position_axis_of_every_hook(cut: Any) -> None:
    model, tokens = zoo.build("conv-attn: rotary, rms"), zoo.tokens()
    smeared = zoo.build("rotary, smeared")
    for each in (model, smeared):
        _, whole = each.run_with_cache(tokens)
        _, sliced = each.run_with_cache(tokens, pos_slice=cut)
        assert set(sliced) == set(whole)
        index = slice(*cut) if isinstance(cut, tuple) else [cut] if isinstance(cut, int) else cut
        for name, activation in whole.items():
            axis = {"q": 1, "k": 1, "v": 1, "z": 1, "result": 1}.get(name.rsplit("_", 1)[-1], -2)
            axis = 2 if name.endswith("k_lags") else axis  # [batch lag pos head d_head]
            expected = activation.movedim(axis, 0)[index].movedim(0, axis)
            assert torch.equal(sliced[name], expected), name


def test_the_batch_dimension_can_be_left_out() -> None:
    model = zoo.build("conv-attn: as it comes")
    _, cache = model.run_with_cache(zoo.tokens(1))
    _, bare = model.run_with_cache(zoo.tokens(1), remove_batch_dim=True)
    assert not bare.has_batch_dim
    assert set(bare) == set(cache)
    assert all(torch.equal(bare[name], cache[name][0]) for name in cache)
    with pytest.raises(AssertionError, match="batch size 3"):
        model.run_with_cache(zoo.tokens(3), remove_batch_dim=True)
    assert no_listener_left(model)


def test_hooks_named_by_a_rule() -> None:
    model, captured = zoo.build("attn-attn: as it comes"), []
    hooks = [
        (lambda name: name.endswith("hook_pattern"), lambda p, hook: captured.append(hook.name))
    ]
    model.run_with_hooks(zoo.tokens(), fwd_hooks=hooks)
    assert captured == ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]
