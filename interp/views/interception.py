"""Calls of a few PyTorch functions, taken up where any model makes them.

Whoever wrote a model, its convolutions go through `F.conv1d` and its attention through
`F.scaled_dot_product_attention`: what happens there can be seen and changed without knowing the
model's code. A kernel of someone else's that goes past these functions is not seen, and whoever
builds on them has to check that they were called.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Handler = Callable[..., Any]
"""Is called as the function would be, and answers for it."""

CONV = F.conv1d
LINEAR = F.linear
ATTENTION = F.scaled_dot_product_attention
ADDITIONS = ("add", "__add__", "__radd__", "add_", "__iadd__")

_ARGUMENTS: Mapping[Any, Sequence[str]] = {
    CONV: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    LINEAR: ("input", "weight", "bias"),
    ATTENTION: ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"),
}


_depth: ContextVar[int] = ContextVar("_depth", default=0)
"""How many runs, each within a hook of the one before, are on their way."""


@contextmanager
def apart() -> Iterator[None]:
    """Inside, whatever was taken up outside is not: for a run within a hook of another run.

    A model may have to be run to answer for itself while it is running. The run that waits has its
    hooks on the same modules and must not take what happens there for its own.
    """
    token = _depth.set(_depth.get() + 1)
    try:
        yield
    finally:
        _depth.reset(token)


class Interception(TorchFunctionMode):
    """Inside, calls of these functions go to handlers, with all arguments by their names.

    Args:
        handlers: by function; under "add", two tensors that are added, as `(left, right)`.
        exact: keep float64 where a model asks for float32 (many do in their norms), so that what
            adds up does so to 1e-12.
    """

    def __init__(self, handlers: Mapping[Any, Handler], exact: bool = False):
        super().__init__()
        self.handlers, self.exact = handlers, exact
        self._depth = _depth.get()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """PyTorch's protocol."""
        kwargs = kwargs or {}
        if self._depth != _depth.get():
            return func(*args, **kwargs)
        handler = self.handlers.get(func)
        if handler is not None:
            return handler(**dict(zip(_ARGUMENTS[func], args, strict=False)), **kwargs)
        name = getattr(func, "__name__", "")
        if name in ADDITIONS and "add" in self.handlers and _two_tensors(args, kwargs):
            return self.handlers["add"](*args)
        if self.exact and name in ("float", "to") and _would_lose(args, kwargs):
            return args[0]
        return func(*args, **kwargs)


def _two_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return len(args) == 2 and not kwargs and all(isinstance(x, Tensor) for x in args)


def _would_lose(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a float64 tensor is cast to a narrower dtype, and nothing else is asked for."""
    x, *asked = args
    asked = [*asked, *kwargs.values()]
    is_cast = not asked or all(isinstance(value, torch.dtype) for value in asked)
    return (
        isinstance(x, Tensor)
        and x.dtype == torch.float64
        and is_cast
        and (not asked or asked[0].is_floating_point)
    )


@contextmanager
def module_hooks(
    before: Mapping[nn.Module, Callable[..., Any]] | None = None,
    after: Mapping[nn.Module, Callable[..., Any]] | None = None,
) -> Iterator[None]:
    """Inside, functions are called before and after modules run, with keyword arguments too."""
    depth = _depth.get()

    def there(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: hook(*args) if _depth.get() == depth else None

    handles = [
        module.register_forward_pre_hook(there(hook), with_kwargs=True)
        for module, hook in (before or {}).items()
    ]
    handles += [
        module.register_forward_hook(there(hook), with_kwargs=True)
        for module, hook in (after or {}).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
