"""The optimizer, continued: in training, and what is refused."""

import pytest
import torch

import interp
from interp.training.optimizer import (
    MuonAdamW,
    as_matrices,
    layouts_of,
    optimizer_for,
)
from interp.training.parts import part_of
from tests.training.test_optimizer import RATE, by_hand, gradients_for, recipe_of, step


def test_a_closure_is_run_once_with_gradients():
    recipe = recipe_of("HookedAttn")
    model = recipe.build(260)
    tokens = torch.randint(260, (2, 9), generator=torch.Generator().manual_seed(0))
    losses = []

    def closure() -> float:
        loss = model(tokens, return_type="loss")
        loss.backward()
        losses.append(loss.item())
        return loss.item()

    optimizer = optimizer_for(model, recipe)
    assert isinstance(optimizer, MuonAdamW)
    assert optimizer.step(closure) == losses[0]
    assert model(tokens, return_type="loss").item() < losses[0]


def test_weights_split_between_devices_are_refused():
    model = interp.HookedAttn(d_vocab=20, d_model=8, n_heads=2, n_ctx=8)
    model.attn(0).W_Q = torch.nn.Parameter(torch.zeros(80))
    with pytest.raises(ValueError, match=r"W_Q is split.*DDP.*adamw"):
        layouts_of(model)


# -------------------------------------------------------------------------------- held at zero


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "part", ["blocks.0.conv.W_conv.1", "blocks.1.attn.W_Q.2", "blocks.1.attn.b_O", "embed.W_E.7"]
)
def test_what_is_held_at_zero_stays_exactly_zero(optimizer: str, part: str):
    rate = {"matrix_learning_rate": RATE if optimizer == "muon" else None}
    recipe = recipe_of("HookedConvAttn", optimizer=optimizer, held_at_zero=(part,), **rate)
    model, free = recipe.build(260), recipe.replace(held_at_zero=()).build(260)
    parameter, index = part_of(model, part)
    held = parameter if index is None else parameter[index]
    assert not held.any()
    others = [torch.equal(p, free.get_parameter(n)) for n, p in model.named_parameters()]
    assert others.count(False) <= 1  # b_O is zero in a fresh model anyway
    moving = optimizer_for(model, recipe)
    tokens = torch.randint(260, (4, 30), generator=torch.Generator().manual_seed(0))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        moving.zero_grad()
        model(tokens, return_type="loss").backward()
        gradient = parameter.grad if index is None else parameter.grad[index]
        assert not gradient.any()  # or it would count in the norm that clips the others
        moving.step()
        assert not held.any()
    if index is not None:
        assert (parameter != start[part.rpartition(".")[0]]).any()
    assert (start["unembed.W_U"] != model.W_U).all()


def test_even_a_gradient_set_by_hand_moves_nothing_that_is_held():
    recipe = recipe_of("HookedConvAttn", held_at_zero=("blocks.0.conv.W_conv.1",))
    model = recipe.build(260)
    step(model, optimizer_for(model, recipe), gradients_for(model))
    assert not model.conv(0).W_conv[1].any()
    assert model.conv(0).W_conv[0].all()


def test_the_other_lag_learns_as_if_the_held_one_were_not_there():
    recipe = recipe_of("HookedConvAttn", held_at_zero=("blocks.0.conv.W_conv.1",))
    held = recipe.build(260)
    one = recipe.replace(held_at_zero=(), model={**recipe.model, "lags": 1}).build(260)
    state = {name: tensor.clone() for name, tensor in held.state_dict().items()}
    state["blocks.0.conv.W_conv"] = state["blocks.0.conv.W_conv"][:1]
    one.load_state_dict(state)
    tokens = torch.randint(260, (4, 30), generator=torch.Generator().manual_seed(0))
    for model in (held, one):
        optimizer = optimizer_for(
            model, recipe if model is held else recipe.replace(held_at_zero=())
        )
        for _ in range(3):
            optimizer.zero_grad()
            model(tokens, return_type="loss").backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    torch.testing.assert_close(held.conv(0).W_conv[:1], one.conv(0).W_conv)
    torch.testing.assert_close(held.W_U, one.W_U)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("blocks.0.conv.W_cnv.1", r"'blocks.0.conv.W_cnv.1'.*'blocks.0.conv.W_conv'"),
        ("blocks.0.conv.W_conv.2", r"slices 0 to 1 only"),
        ("blocks.0.conv.W_conv.-1", r"no slice"),
        ("W_Q", r"no parameter"),
    ],
)
def test_a_part_that_is_not_there_is_named(part: str, words: str):
    with pytest.raises(ValueError, match=words):
        recipe_of("HookedConvAttn", held_at_zero=(part,)).build(260)


def test_matrices_are_views_of_a_weight_in_the_right_order():
    model = interp.HookedConvAttn(d_vocab=20, d_model=6, n_heads=2, d_head=4, n_ctx=8, lags=3)
    for name in ("blocks.0.conv.W_conv", *(f"blocks.1.attn.W_{which}" for which in "QKVO")):
        weight = model.get_parameter(name)
        found = as_matrices(layouts_of(model)[name], weight)
        assert len(found) == len(by_hand(name, weight))
        for matrix, expected in zip(found, by_hand(name, weight), strict=True):
            assert torch.equal(matrix, expected)
