"""Muon sees each map as the matrix it is, AdamW has the rest, and what is held at zero stays."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from interp.training import Recipe
from interp.training.optimizer import (
    layouts_of,
    optimizer_for,
)

RATE, DECAY = 0.03, 0.1


def recipe_of(architecture: str = "HookedGPT", model: dict | None = None, **changes) -> Recipe:
    options = {
        "architecture": architecture,
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "matrix_learning_rate": RATE,
        "weight_decay": DECAY,
        "model": {"d_model": 12, "n_heads": 3, "d_head": 5, **(model or {})},
    }
    return Recipe(**{**options, **changes})


def gradients_for(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters()
    }


def step(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    optimizer.step()


def by_hand(name: str, weight: Tensor) -> list[Tensor]:
    """The matrices [d_out d_in] of a weight, put together entry by entry from its definition."""
    last = name.rpartition(".")[2]
    if last == "W_conv":
        return [lag.T for lag in weight]
    if last in ("W_Q", "W_K", "W_V"):
        return [torch.cat([head.T for head in weight])]
    if last == "W_O":
        return [torch.cat(list(weight)).T]
    return [weight.T]


MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_conv", "W_in", "W_out")


@pytest.mark.parametrize(
    ("architecture", "model"),
    [("HookedGPT", {"n_layers": 1, "d_mlp": 20}), ("HookedConvAttn", {"lags": 3})],
)
def test_muon_is_torchs_on_the_equivalent_matrices(architecture: str, model: dict):
    recipe = recipe_of(architecture, model)
    ours = recipe.build(260)
    optimizer = optimizer_for(ours, recipe)
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}
    names = [name for name in start if name.rpartition(".")[2] in MATRICES]
    assert len(names) >= 5
    linear = {name: [nn.Parameter(m.clone()) for m in by_hand(name, start[name])] for name in names}
    theirs = torch.optim.Muon(
        [matrix for name in names for matrix in linear[name]], lr=RATE, weight_decay=DECAY
    )
    for seed in range(3):  # the momentum has to be right, too
        gradients = gradients_for(ours, seed)
        step(ours, optimizer, gradients)
        for name in names:
            for matrix, gradient in zip(linear[name], by_hand(name, gradients[name]), strict=True):
                matrix.grad = gradient.clone()
        theirs.step()
    for name in names:
        for matrix, expected in zip(
            by_hand(name, ours.get_parameter(name)), linear[name], strict=True
        ):
            torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-7)


def test_one_update_of_w_q_worked_out_by_hand():
    # d_model 2, two heads of width 1: W_Q as nn.Linear would store it is a 2 x 2 matrix whose row h
    # is head h. Of the gradient diag(3, 1) the orthogonal factor is the identity, and what Muon
    # takes for it is Newton and Schulz's polynomial, run five times on the singular values.
    recipe = recipe_of("HookedAttn", {"d_model": 2, "n_heads": 2, "d_head": 1}, weight_decay=0.0)
    model = recipe.build(260)
    optimizer = optimizer_for(model, recipe)
    W_Q = model.attn(0).W_Q
    before = W_Q.detach().clone()
    W_Q.grad = torch.tensor([[[3.0], [0.0]], [[0.0], [1.0]]])  # [head d_model d_head]
    optimizer.step()
    a, b, c = 3.4445, -4.7750, 2.0315
    singular = [3 / math.sqrt(10), 1 / math.sqrt(10)]
    for _ in range(5):
        singular = [a * s + b * s**3 + c * s**5 for s in singular]
    expected = torch.tensor([[[singular[0]], [0.0]], [[0.0], [singular[1]]]])
    assert all(0.7 < s < 1.2 for s in singular)
    # Muon's own arithmetic is in bfloat16.
    torch.testing.assert_close((before - W_Q) / RATE, expected, rtol=0.03, atol=0.01)


def test_the_rate_grows_with_outputs_over_inputs():
    # Four times as many outputs as inputs: W_in's update is twice as long as a square one's would
    # be, sqrt(d_out / d_in), and W_out's is not shortened.
    recipe = recipe_of(model={"n_layers": 1, "d_mlp": 48}, weight_decay=0.0)
    model = recipe.build(260)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, optimizer_for(model, recipe), gradients_for(model))
    moved = {
        last: torch.linalg.matrix_norm((model.get_parameter(name) - start[name]).detach(), 2).item()
        for last in ("W_in", "W_out")
        for name in [f"blocks.0.mlp.{last}"]
    }
    assert moved["W_in"] / moved["W_out"] == pytest.approx(2, rel=0.15)


def test_everything_else_is_adamws():
    recipe = recipe_of(model={"n_layers": 1})
    model = recipe.build(260)
    twin = copy.deepcopy(model)
    weights = ("embed.W_E", "pos_embed.W_pos", "unembed.W_U")
    rest = [name for name, p in model.named_parameters() if name not in layouts_of(model)]
    assert set(weights) < set(rest)
    assert {name.rpartition(".")[2] for name in rest} == {
        *("W_E", "W_pos", "W_U", "b_U", "w", "b", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")
    }
    optimizer = optimizer_for(model, recipe)
    adamw = torch.optim.AdamW(
        [
            {"params": [twin.get_parameter(name)], "weight_decay": DECAY * (name in weights)}
            for name in rest
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    for seed in range(2):
        gradients = gradients_for(model, seed)
        step(model, optimizer, gradients)
        step(twin, adamw, gradients)
    for name in rest:
        assert torch.equal(model.get_parameter(name), twin.get_parameter(name)), name


@pytest.mark.parametrize(
    ("architecture", "model", "name"),
    [
        ("HookedConvAttn", {"depthwise": True}, "blocks.0.conv.W_conv"),
        ("HookedSmearedAttn", {}, "blocks.0.attn.smear"),
    ],
)
def test_scalars_per_channel_or_head_are_no_matrices(architecture: str, model: dict, name: str):
    recipe = recipe_of(architecture, model)
    assert name not in layouts_of(recipe.build(260))


def test_adamw_alone_moves_every_parameter_and_decays_weights_only():
    recipe = recipe_of("HookedSmearedAttn", optimizer="adamw", matrix_learning_rate=None)
    model = recipe.build(260)
    decayed, others = optimizer_for(model, recipe).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (DECAY, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2][:2] for p in decayed["params"]} == {"W_"}
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_its_state_goes_on_bit_by_bit():
    recipe = recipe_of(model={"n_layers": 1})
    model = recipe.build(260)
    optimizer = optimizer_for(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1))
    step(model, optimizer, gradients_for(model, 0))
    schedule.step()
    resumed = copy.deepcopy(model)
    # Names without the first optimizer's: what was stored is all there is.
    again = optimizer_for(resumed, recipe)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        step(model, optimizer, gradients_for(model, seed))
        step(resumed, again, gradients_for(model, seed))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    assert {group["lr"] for group in again.param_groups} == {1e-2 / 2, RATE / 2}


def test_a_parameter_without_gradient_stays():
    recipe = recipe_of("HookedAttn")
    model = recipe.build(260)
    optimizer = optimizer_for(model, recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.attn(0).W_Q.grad = torch.ones_like(model.attn(0).W_Q)
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved == ["blocks.0.attn.W_Q"]
