"""What moves the weights: AdamW alone, or Muon for the hidden matrices beside it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from einops import parse_shape, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from interp.models.layers import FeedForward, Mixer
from interp.training.parts import part_of, set_to_zero
from interp.training.recipe import Recipe

_ADAMW = ("lr", "betas", "eps", "weight_decay")
_MUON = ("lr", "weight_decay")

Matrices = Float[Tensor, "matrix d_out d_in"]


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
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

    >>> recipe = Recipe(optimizer="muon", model={"d_model": 16, "n_heads": 2})
    >>> optimizer = optimizer_for(recipe.build(300), recipe)
    >>> for group in optimizer.param_groups:
    ...     print(group["lr"], group.get("layout"))
    0.005 None
    0.005 None
    0.02 lag i o -> lag o i
    0.02 head i o -> 1 (head o) i
    0.02 head i o -> 1 o (head i)
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = recipe.optimizer == "muon"
    groups = _groups(parameters, recipe, layouts_of(model) if matrices else {})
    optimizer = MuonAdamW(groups) if matrices else torch.optim.AdamW(groups)
    parts = [part_of(model, name) for name in recipe.held_at_zero]
    if parts:
        _keep_at_zero(parts, optimizer)
    return optimizer


def _groups(
    parameters: Mapping[str, nn.Parameter], recipe: Recipe, layouts: Mapping[str, str]
) -> list[dict[str, Any]]:
    by_layout: dict[str | None, dict[str, nn.Parameter]] = {None: {}}
    for name, parameter in parameters.items():
        by_layout.setdefault(layouts.get(name), {})[name] = parameter
    rest = by_layout.pop(None)
    adamw = {"lr": recipe.learning_rate, "betas": (0.9, recipe.adam_beta2), "eps": 1e-8}
    weights = [p for name, p in rest.items() if _decays(name, p)]
    others = [p for name, p in rest.items() if not _decays(name, p)]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay, **adamw},
        {"params": others, "weight_decay": 0.0, **adamw},
    ]
    muon = {"lr": recipe.matrix_learning_rate, "weight_decay": recipe.weight_decay}
    for layout, found in by_layout.items():
        groups.append({"params": list(found.values()), "layout": layout, **muon})
    return [group for group in groups if group["params"]]


def layouts_of(model: nn.Module) -> dict[str, str]:
    """Which parameters are matrices, and how each is turned into `[matrix out in]` (einops).

    Every kind of layer says it of its own, and an `nn.Linear` of a model of `transformers` is one,
    unless it is the unembedding; what is not named here is AdamW's: embeddings, biases, a depthwise
    convolution, which has a scalar per channel.

    Raises:
        ValueError: a matrix is split between devices.

    >>> from interp.models import HookedConvAttn
    >>> layouts = layouts_of(HookedConvAttn(d_vocab=50, d_model=16, n_heads=2, n_ctx=8))
    >>> layouts["blocks.1.attn.W_K"]
    'head i o -> 1 (head o) i'
    """
    layouts = {}
    read_out = getattr(model, "get_output_embeddings", lambda: None)()
    for place, module in model.named_modules():
        matrices: Mapping[str, str] = {}
        if isinstance(module, Mixer | FeedForward):
            matrices = module.matrices
        elif isinstance(module, nn.Linear) and module is not read_out:
            matrices = {"weight": "o i -> 1 o i"}
        for name, layout in matrices.items():
            if isinstance(weight := getattr(module, name), nn.Parameter):
                _refuse_split(f"{place}.{name}", weight, layout)
                layouts[f"{place}.{name}"] = layout
    return layouts


def _refuse_split(name: str, weight: Tensor, layout: str) -> None:
    axes = layout.partition(" -> ")[0].split()
    if isinstance(weight, DTensor) or weight.ndim != len(axes):  # FSDP 2 or FSDP 1
        raise ValueError(
            f"{name} is split between devices, and Muon needs whole matrices; train copies of the "
            "model (DDP) instead of shards (FSDP), or use optimizer='adamw'"
        )


def as_matrices(layout: str, weight: Tensor) -> Matrices:
    """A weight as the matrices that it is: one for all heads, one per lag of a convolution.

    >>> as_matrices("head i o -> 1 (head o) i", torch.empty(3, 16, 8)).shape
    torch.Size([1, 24, 16])
    >>> as_matrices("lag i o -> lag o i", torch.empty(2, 16, 16)).shape
    torch.Size([2, 16, 16])
    """
    return rearrange(weight, layout)


def from_matrices(layout: str, matrices: Matrices, like: Tensor) -> Tensor:
    """The inverse: matrices as the weight that they are."""
    before, after = layout.split(" -> ")
    return rearrange(matrices, f"{after} -> {before}", **parse_shape(like, before))


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
            p.copy_(from_matrices(layout, stack, like=p))


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


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Ours are called W_*; of anybody else's, what is a matrix, or a stack of them, is a weight."""
    last = name.rpartition(".")[2]
    return last.startswith("W_") or (last == "weight" and parameter.ndim > 1)
