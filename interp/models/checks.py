"""What a config may hold: checks whose messages name the value and the bound."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import Tensor

from interp.models.hooks import nearest


def require(condition: bool, message: str) -> None:
    """Refuse with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_reach(owner: str, n_ctx: int, **reads: int) -> None:
    """It reads no further back than the context is long."""
    for what, n in reads.items():
        require(
            n <= n_ctx,
            f"{owner}: {what}={n} reads further back than n_ctx={n_ctx}; use at most "
            f"{what}={n_ctx} or a longer context",
        )


def require_positive(owner: str, **sizes: int) -> None:
    """Each is a whole number of at least 1."""
    for name, value in sizes.items():
        require(
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            f"{owner}: {name} is {value!r}, but it must be a whole number of at least 1",
        )


def require_flags(owner: str, **flags: bool) -> None:
    """Each is true or false, and nothing that Python would take for it."""
    for name, value in flags.items():
        require(
            isinstance(value, bool), f"{owner}: {name} is {value!r}, but it must be true or false"
        )


def require_numbers(owner: str, **numbers: float) -> None:
    """Each is a finite number."""
    for name, value in numbers.items():
        require(
            isinstance(value, int | float) and math.isfinite(value),
            f"{owner}: {name} is {value!r}, but it must be a finite number",
        )


def require_weights(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], source: str, what: str
) -> None:
    """Weights that are missing, surplus or misshapen: the first is named."""
    surplus = [name for name in state if name not in shapes]
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"{source}: {what} {name!r} is missing{nearest(name, surplus)}")
        found = tuple(state[name].shape)
        require(
            found == tuple(shape),
            f"{source}: {what} {name!r} has shape {found}, but must be {tuple(shape)}",
        )
    if surplus:
        raise ValueError(f"{source}: {what} {surplus[0]!r} has no place in this model")


def require_choice(name: str, value: Any, choices: Any) -> None:
    """The value is one of these, or of a Literal's."""
    choices = get_args(choices) or tuple(choices)
    require(value in choices, f"{name} is {value!r}; choose one of {', '.join(choices)}")
