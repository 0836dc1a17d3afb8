"""What every model of this library keeps, whatever its options: one test per promise.

Each runs over the whole zoo, whose gains, offsets, biases and α are random: at their initial
values they would hide mistakes.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

import interp
from interp.models import HookedSequenceModel, ModelConfig
from interp.models.norm import Norm
from tests.models import zoo
from tests.models.zoo import N_CTX


def exactly(dtype: torch.dtype = torch.float64) -> dict[str, float]:
    """Equal but for the order of summation."""
    return {"rtol": 0.0, "atol": 1e-11 if dtype == torch.float64 else 1e-5}


def is_causal(config: ModelConfig) -> bool:
    return all(spec.causal for spec in config.attention_layers.values())


def logit_changes(model: HookedSequenceModel, changed_at: int) -> Tensor:
    """By how much each position's logits move when one token is another one."""
    tokens = zoo.tokens()
    other = tokens.clone()
    other[:, changed_at] = (other[:, changed_at] + 1) % model.config.d_vocab
    with torch.no_grad():
        return (model(other) - model(tokens)).abs().amax(dim=(0, 2))


def test_a_later_token_never_changes_an_earlier_logit(model: HookedSequenceModel) -> None:
    for position in (1, N_CTX // 2, N_CTX - 1):
        changes = logit_changes(model, position)
        assert changes[position] > 1e-6
        if is_causal(model.config):
            assert changes[:position].max() < 1e-12
        else:
            assert changes[:position].max() > 1e-6


def test_a_hook_that_changes_nothing_changes_nothing(model: HookedSequenceModel) -> None:
    # With every hook point listened to, the model takes the spelled-out path everywhere: this is
    # also the test that the fused and the spelled-out kernels agree, gradients included.
    tokens = zoo.tokens()
    model(tokens, return_type="loss").backward()
    plain = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    with model.hooks(**zoo.listening(model)):
        model(tokens, return_type="loss").backward()
        assert_close(captured := model(tokens), model(tokens), rtol=0, atol=0)
    assert_close(captured, model(tokens), **exactly())
    for name, weight in model.named_parameters():
        assert_close(weight.grad, plain[name], **exactly(), msg=name)


def test_hook_points_have_names_of_their_own_and_all_fire(model: HookedSequenceModel) -> None:
    points = [module for module in model.modules() if isinstance(module, HookPoint)]
    assert sorted(str(point.name) for point in points) == sorted(model.hook_dict)
    logits, cache = model.run_with_cache(zoo.tokens())
    assert set(cache) == set(model.hook_dict)
    assert all(activation.shape[0] == 3 for activation in cache.values())
    assert_close(logits, model(zoo.tokens()), **exactly())


def test_a_cached_activation_does_not_depend_on_who_else_listens(
    model: HookedSequenceModel,
) -> None:
    _, everything = model.run_with_cache(zoo.tokens())
    for name in model.hook_dict:
        _, alone = model.run_with_cache(zoo.tokens(), names_filter=name)
        assert_close(alone[name], everything[name], **exactly(), msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_saved_and_loaded_it_is_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, dtype: torch.dtype, model: HookedSequenceModel
) -> None:
    model.to(dtype).save_pretrained(tmp_path)
    loaded = interp.load(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert {weight.dtype for weight in loaded.parameters()} == {dtype}
    expected = dict(model.named_parameters())
    assert list(expected) == [name for name, _ in loaded.named_parameters()]
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, expected[name]), name
    assert_close(loaded(zoo.tokens()), model(zoo.tokens()), rtol=0, atol=0, equal_nan=False)


def folds(model: HookedSequenceModel) -> bool:
    return model.config.norm_place == "pre"


def test_fold_norms_gives_the_equal_model(model: HookedSequenceModel) -> None:
    if not folds(model):
        with pytest.raises(ValueError, match="post-norm's gain scales the residual stream"):
            model.fold_norms()
        return
    before = copy.deepcopy(model.state_dict())
    folded = model.fold_norms()
    mask = zoo.right_padding(N_CTX, 5, 2)
    assert_close(folded(zoo.tokens()), model(zoo.tokens()), **exactly())
    assert_close(
        folded(zoo.tokens(), attention_mask=mask),
        model(zoo.tokens(), attention_mask=mask),
        **exactly(),
    )
    assert type(folded) is type(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for norm in (module for module in folded.modules() if isinstance(module, Norm)):
        assert norm.w is None or torch.equal(norm.w, torch.ones_like(norm.w))
        assert norm.b is None or not norm.b.any()
    assert_close(folded.fold_norms()(zoo.tokens()), model(zoo.tokens()), **exactly())


def test_gradients_reach_every_parameter(model: HookedSequenceModel) -> None:
    model(zoo.tokens(), return_type="loss").backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        size = weight.grad.abs().max()
        layers = ((i, model.attn(i)) for i in model.attention_layers)
        varies = [f"blocks.{i}." for i, attn in layers if attn.rotary or attn.taps_K is not None]
        if name.endswith("b_K") and not name.startswith(tuple(varies)):
            # q b_Kᵀ is the same for every key, and the softmax over keys cannot see a constant.
            # Smearing does not change that: its two shares sum to 1, and the first key has both.
            # Taps do: the first keys lack some of them.
            assert size < 1e-15, name
        else:
            assert size > 1e-8, name


def test_float32_and_bfloat16_are_the_same_model_but_for_rounding(
    model: HookedSequenceModel,
) -> None:
    exact = model(zoo.tokens()).detach()
    for dtype, rounding in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        low = copy.deepcopy(model).to(dtype)
        plain = low(zoo.tokens())
        captured = low.run_with_hooks(zoo.tokens(), **zoo.listening(low))
        assert plain.dtype == captured.dtype == dtype
        for logits in (plain, captured):
            assert (logits.double() - exact).abs().max() < rounding * exact.abs().max()


def test_a_sequence_does_not_depend_on_its_batch(model: HookedSequenceModel) -> None:
    tokens = zoo.tokens()
    assert_close(model(tokens[1:2]), model(tokens)[1:2], **exactly())


def test_a_prefix_has_its_own_logits(model: HookedSequenceModel) -> None:
    tokens = zoo.tokens()
    assert model(tokens[:, :1]).shape == (3, 1, model.config.d_vocab)
    for length in (1, 2, N_CTX - 1):
        prefix = model(tokens[:, :length])
        if is_causal(model.config):
            assert_close(prefix, model(tokens)[:, :length], **exactly())
        else:
            assert (prefix - model(tokens)[:, :length]).abs().max() > 1e-6


def test_padding_on_the_right_changes_no_real_logit(model: HookedSequenceModel) -> None:
    lengths = (N_CTX, 5, 1)
    tokens, mask = zoo.tokens(), zoo.right_padding(*lengths)
    for arguments in ({}, zoo.listening(model)):
        padded = model.run_with_hooks(tokens, attention_mask=mask, **arguments)
        assert padded.isfinite().all()
        for row, length in enumerate(lengths):
            alone = model(tokens[row : row + 1, :length])
            assert_close(padded[row : row + 1, :length], alone, **exactly())


def test_the_loss_is_the_cross_entropy_of_real_tokens(model: HookedSequenceModel) -> None:
    lengths = (N_CTX, 5, 2)
    tokens, mask = zoo.tokens(), zoo.right_padding(*lengths)
    by_hand = []
    for row, length in enumerate(lengths):
        log_p = model(tokens[row : row + 1, :length])[0].log_softmax(-1)
        by_hand += [-log_p[t, tokens[row, t + 1]] for t in range(length - 1)]
    logits, loss = model(tokens, "both", attention_mask=mask)
    assert_close(loss, torch.stack(by_hand).mean(), **exactly())
    assert_close(logits, model(tokens, attention_mask=mask), rtol=0, atol=0)
    per_token = model(tokens, "loss", attention_mask=mask, loss_per_token=True)
    assert per_token.shape == (3, N_CTX - 1)
    assert_close(per_token[mask[:, 1:]], torch.stack(by_hand), **exactly())
    assert not per_token[~mask[:, 1:]].any()


def test_stopping_early_gives_the_stream_before_a_layer(model: HookedSequenceModel) -> None:
    _, cache = model.run_with_cache(zoo.tokens())
    for layer in range(len(model.blocks)):
        stream = model(zoo.tokens(), stop_at_layer=layer)
        assert_close(stream, cache["resid_pre", layer], **exactly())
    end = model(zoo.tokens(), stop_at_layer=len(model.blocks))
    assert_close(end, cache["resid_post", -1], **exactly())
    assert_close(model.unembed(model.ln_final(end)), model(zoo.tokens()), **exactly())


def test_a_copy_is_a_model_of_its_own(model: HookedSequenceModel) -> None:
    before = model(zoo.tokens())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.embed.W_E.mul_(-2)
    assert (twin(zoo.tokens()) - before).abs().max() > 1e-3
    assert_close(model(zoo.tokens()), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", zoo.PRESETS)
def test_a_seed_decides_the_weights_and_the_global_state_is_left_alone(name: str) -> None:
    maker, arguments = zoo.PRESETS[name]
    before = torch.get_rng_state()
    one, same, other = (maker(**(arguments | {"seed": seed})) for seed in (3, 3, 4))
    zoo.build(name).fold_norms() if folds(one) else None
    assert torch.equal(torch.get_rng_state(), before)
    weights = [dict(model.named_parameters()) for model in (one, same, other)]
    assert all(torch.equal(weight, weights[1][key]) for key, weight in weights[0].items())
    assert not torch.equal(weights[0]["embed.W_E"], weights[2]["embed.W_E"])


def test_dropout_is_at_work_in_training_only() -> None:
    model = zoo.build("dropout")
    assert_close(model(zoo.tokens()), model(zoo.tokens()), rtol=0, atol=0)
    model.train()
    for arguments in ({}, zoo.listening(model)):
        runs = [model.run_with_hooks(zoo.tokens(), **arguments) for _ in range(2)]
        assert (runs[0] - runs[1]).abs().max() > 1e-3


@zoo.beartype_may_draw
@settings(max_examples=60)
@given(zoo.configs())
def test_any_config_keeps_the_contract(config: ModelConfig) -> None:
    model = zoo.from_config(config)
    tokens = zoo.tokens(2, config.n_ctx, d_vocab=config.d_vocab)
    mask = zoo.right_padding(config.n_ctx, config.n_ctx - 2, pos=config.n_ctx)
    logits = model(tokens, attention_mask=mask)
    assert logits.isfinite().all()
    captured = model.run_with_hooks(tokens, attention_mask=mask, **zoo.listening(model))
    assert_close(captured, logits, **exactly())
    shorter: dict[str, Any] = {"attention_mask": mask[:, :-1]}
    assert_close(model(tokens[:, :-1], **shorter), logits[:, :-1], **exactly())
    if folds(model):
        assert_close(model.fold_norms()(tokens, attention_mask=mask), logits, **exactly())
