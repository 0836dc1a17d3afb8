"""What a config may hold: checks whose messages name the value and the bound."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

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


_WHAT: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (lambda x: type(x) is int and x >= 1, "a whole number of at least 1"),
    bool: (lambda x: isinstance(x, bool), "true or false"),  # nothing that Python takes for it
    float: (lambda x: isinstance(x, int | float) and math.isfinite(x), "a finite number"),
}


def require_fields(spec: Any) -> None:
    """Each field of a dataclass is what its type says: a size, a flag, a number, a choice."""
    owner = type(spec).__name__
    for field in fields(spec):
        value, name = getattr(spec, field.name), f"{owner}: {field.name}"
        if get_origin(field.type) is Literal:
            require_choice(name, value, field.type)
        elif field.type in _WHAT:
            holds, what = _WHAT[field.type]
            require(holds(value), f"{name} is {value!r}, but it must be {what}")


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
