"""What moves the weights: AdamW alone, or Muon for the hidden matrices beside it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from interp.models.hooks import nearest

if TYPE_CHECKING:
    from interp.training.recipe import Recipe

# How to turn each weight so that its output dimensions come first, and how many of them (after the
# lags of a convolution, which are matrices of their own) there are.
_TURNS = {
    "W_Q": (0, 2, 1),
    "W_K": (0, 2, 1),
    "W_V": (0, 2, 1),
    "W_O": (2, 0, 1),
    "W_conv": (0, 2, 1),
    "W_in": (1, 0),
    "W_out": (1, 0),
}
_ADAMW = ("lr", "betas", "eps", "weight_decay")
_MUON = ("lr", "weight_decay")

Matrices = Float[Tensor, "matrix d_out d_in"]


def optimizer_for(model: nn.Module, recipe: "Recipe") -> torch.optim.Optimizer:
    """The optimizer that a recipe asks for, over a model's parameters.

    Weights decay, biases, gains and smears do not. What the recipe holds at zero gets no gradient
    from now on, and is zero after every step.

    Args:
        model: whose parameters to move.
        recipe: its `optimizer`, `learning_rate`, `matrix_learning_rate`, `weight_decay`,
            `adam_beta2` and `held_at_zero` count.

    Raises:
        ValueError: a part to hold at zero that the model does not have, or Muon over weights that
            are split between devices.

    >>> from interp.training.recipe import Recipe
    >>> recipe = Recipe(optimizer="muon", model={"d_model": 16, "n_heads": 2})
    >>> optimizer = optimizer_for(recipe.build(300), recipe)
    >>> [(group.get("layout"), group["lr"]) for group in optimizer.param_groups]
    [(None, 0.005), (None, 0.005), ('W_conv', 0.02), ('W_Q', 0.02), ('W_O', 0.02)]
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = recipe.optimizer == "muon"
    groups = _groups(parameters, recipe, matrices)
    optimizer = MuonAdamW(groups) if matrices else torch.optim.AdamW(groups)
    parts = [part_of(model, name) for name in recipe.held_at_zero]
    if parts:
        _keep_at_zero(parts, optimizer)
    return optimizer


def _groups(
    parameters: Mapping[str, nn.Parameter], recipe: "Recipe", matrices: bool
) -> list[dict[str, Any]]:
    by_layout: dict[str | None, dict[str, nn.Parameter]] = {None: {}}
    for name, parameter in parameters.items():
        layout = layout_of(name, parameter) if matrices else None
        by_layout.setdefault(layout, {})[name] = parameter
    rest = by_layout.pop(None)
    adamw = {"lr": recipe.learning_rate, "betas": (0.9, recipe.adam_beta2), "eps": 1e-8}
    weights = [p for name, p in rest.items() if _last(name).startswith("W_")]
    others = [p for name, p in rest.items() if not _last(name).startswith("W_")]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay, **adamw},
        {"params": others, "weight_decay": 0.0, **adamw},
    ]
    muon = {"lr": recipe.matrix_learning_rate, "weight_decay": recipe.weight_decay}
    for layout, found in by_layout.items():
        groups.append({"params": list(found.values()), "layout": layout, **muon})
    return [group for group in groups if group["params"]]


def layout_of(name: str, parameter: Tensor) -> str | None:
    """Which way of seeing this parameter as matrices is Muon's; None where it is AdamW's.

    >>> layout_of("blocks.0.attn.W_K", torch.empty(2, 16, 8))
    'W_Q'
    """
    last = _last(name)
    # A depthwise convolution has a scalar per channel: there is no matrix to orthogonalise.
    if last not in _TURNS or (last == "W_conv" and parameter.ndim == 2):
        return None
    if isinstance(parameter, DTensor) or parameter.ndim != len(_TURNS[last]):  # FSDP 2 or FSDP 1
        raise ValueError(
            f"{name} is split between devices, and Muon needs whole matrices; train copies of the "
            "model (DDP) instead of shards (FSDP), or use optimizer='adamw'"
        )
    return "W_Q" if last in ("W_K", "W_V") else last


def turned(layout: str, weight: Tensor) -> Tensor:
    """A view of a weight with its outputs before its inputs, as `nn.Linear` has them."""
    return weight.permute(_TURNS[layout])


def as_matrices(layout: str, weight: Tensor) -> Matrices:
    """A weight as the matrices that it is: one for all heads, one per lag of a convolution.

    >>> as_matrices("W_Q", torch.empty(3, 16, 8)).shape  # [head d_model d_head]
    torch.Size([1, 24, 16])
    >>> as_matrices("W_O", torch.empty(3, 8, 16)).shape  # [head d_head d_model]
    torch.Size([1, 16, 24])
    >>> as_matrices("W_conv", torch.empty(2, 16, 16)).shape  # [lag d_in d_out]
    torch.Size([2, 16, 16])
    """
    view = turned(layout, weight)
    if layout == "W_conv":
        return view
    return (view.flatten(0, 1) if layout == "W_Q" else view.flatten(1))[None]


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for the groups that have a `layout`, `torch.optim.AdamW` for the others.

    One optimizer with one state, so that schedulers, clipping, checkpoints and Accelerate treat it
    as any other. Muon is for matrices; here a head's maps are three-dimensional, so that it is
    handed each as the matrix it is (`as_matrices`), turned as `nn.Linear` would store it: its rate
    depends on outputs / inputs.

    Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks* (2024).
    """

    def __init__(self, groups: Iterable[dict[str, Any]]):
        super().__init__(groups, defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved and "layout" in group:
                self._step_matrices(group, moved)
            elif moved:
                adamw = torch.optim.AdamW(moved, **{key: group[key] for key in _ADAMW})
                adamw.state.update({p: self.state[p] for p in moved})
                adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any], moved: Sequence[nn.Parameter]) -> None:
        layout = group["layout"]
        stacks = [as_matrices(layout, p).clone() for p in moved]
        slices: list[nn.Parameter] = []
        momenta: list[Tensor] = []
        for p, stack in zip(moved, stacks, strict=True):
            gradient = as_matrices(layout, cast(Tensor, p.grad))
            buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(gradient))
            for matrix, its_gradient, momentum in zip(stack, gradient, buffer, strict=True):
                slices.append(nn.Parameter(matrix))
                slices[-1].grad = its_gradient
                momenta.append(momentum)
        muon = torch.optim.Muon(slices, **{key: group[key] for key in _MUON})
        for matrix, momentum in zip(slices, momenta, strict=True):
            muon.state[matrix]["momentum_buffer"] = momentum
        muon.step()
        for p, stack in zip(moved, stacks, strict=True):
            view = turned(layout, p)
            view.copy_(stack.view(view.shape))


def part_of(model: nn.Module, name: str) -> tuple[nn.Parameter, int | None]:
    """A parameter by its name, or one of its slices: "blocks.0.conv.W_conv.1" is lag 1.

    Returns:
        The parameter and the index into its first dimension, or None for all of it.

    Raises:
        ValueError: no such parameter, or no such slice of it.
    """
    parameters = dict(model.named_parameters())
    if name in parameters:
        return parameters[name], None
    whole, _, index = name.rpartition(".")
    if whole not in parameters or not index.isdecimal():
        raise ValueError(
            f"recipe: held_at_zero names {name!r}, which is no parameter of the model and no slice "
            f"of one{nearest(name, parameters)}"
        )
    size = parameters[whole].shape[0]
    if int(index) >= size:
        raise ValueError(
            f"recipe: held_at_zero names {name!r}, but {whole} has slices 0 to {size - 1} only"
        )
    return parameters[whole], int(index)


@torch.no_grad()
def set_to_zero(parameter: nn.Parameter, index: int | None) -> None:
    """Zero a parameter, or one slice of it, in place."""
    (parameter if index is None else parameter[index]).zero_()


def _keep_at_zero(
    parts: Sequence[tuple[nn.Parameter, int | None]], optimizer: torch.optim.Optimizer
) -> None:
    for parameter, index in parts:
        # Masked here rather than before the step: the norm that clips the others must not see it.
        parameter.register_hook(lambda gradient, index=index: _without(gradient, index))

    def zero_again(*_: Any) -> None:
        for parameter, index in parts:
            set_to_zero(parameter, index)

    optimizer.register_step_post_hook(zero_again)


def _without(gradient: Tensor, index: int | None) -> Tensor:
    masked = gradient.clone()
    (masked if index is None else masked[index]).zero_()
    return masked


def _last(name: str) -> str:
    return name.rpartition(".")[2]
