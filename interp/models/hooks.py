"""Hook points that a compiled model cannot skip in silence."""

import difflib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint as _HookPoint


class HookPoint(_HookPoint):
    """TransformerLens's HookPoint, safe under `torch.compile`.

    Dynamo does not guard on a module's hooks, so a bare HookPoint inside a compiled graph stays
    silent when a hook is attached after compilation. Reading the two lists here makes it guard on
    them: attaching or removing a hook recompiles the graph.

    `pos_dim` is the axis of the token positions, counted from the end, where `pos_slice` cuts.
    """

    def __init__(self, pos_dim: int = -2):
        super().__init__()
        self.pos_dim = pos_dim

    def forward(self, x: Tensor) -> Tensor:
        """The identity; PyTorch runs the attached hooks around it."""
        self.is_listened_to()  # read for dynamo's sake: this is what installs the guard
        return x

    def is_listened_to(self) -> bool:
        """Whether any hook is attached, so that what it holds has to be computed."""
        return bool(self.fwd_hooks or self.bwd_hooks)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for an error message: the names most like this one, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


@contextmanager
def without_hooks(model: Any) -> Iterator[None]:
    """What others have hooked neither sees what is run inside, nor changes it."""
    points = [point for point in model.hook_dict.values() if point.fwd_hooks]
    hooks = [(point, point._forward_hooks, point.fwd_hooks) for point in points]
    try:
        for point in points:
            point._forward_hooks, point.fwd_hooks = OrderedDict(), []
        yield
    finally:
        for point, forward, handles in hooks:
            point._forward_hooks, point.fwd_hooks = forward, handles


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; outside, every module's mode is as it was."""
    # A bridge does not count the Hugging Face model that it wraps among its modules.
    inner = getattr(model, "original_model", None)
    modules = {*model.modules(), *(inner.modules() if isinstance(inner, nn.Module) else ())}
    modes = {module: module.training for module in modules}
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
