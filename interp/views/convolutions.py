"""Depthwise causal convolutions of anybody's model, split into what each lag adds.

    out_t = Σ_j w_j ⊙ x_{t-j} + b

Taking a term out of the sum equals zeroing that tap in the weights. Which convolutions a model has
is found by running it once on a few tokens: every `F.conv1d` call is seen, whoever makes it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.description import ALL, Place, Reader
from interp.models.hooks import HookPoint
from interp.models.shapes import Lags, Stream
from interp.views.interception import CONV, Interception, module_hooks

OnStream = Callable[[int, Stream], Stream]


@dataclass(frozen=True, eq=False)
class ConvCall:
    """One call of `F.conv1d`, with all its arguments.

    Attributes:
        layer: the layer that runs; None outside of all.
        n_pos: how many tokens it runs on.
        input: `[batch channel pos]`.
        weight: `[channel 1 tap]` of a depthwise convolution, the oldest token first.
        out: what it gives.
    """

    layer: int | None
    n_pos: int
    input: Tensor
    weight: Tensor
    out: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    @property
    def kernel(self) -> int:
        """How many taps it has."""
        return self.weight.shape[-1]

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is mixed with itself alone."""
        channels = self.input.shape[-2]
        return self.groups == channels and self.weight.shape[:2] == (channels, 1)

    @property
    def reach(self) -> int:
        """How many tokens back the oldest tap lies."""
        return (self.kernel - 1) * _one(self.dilation)

    @property
    def first(self) -> int | None:
        """Where in `out` the first of the tokens stands; None if a token would see later ones.

        A convolution that pads itself pads both sides, and the model cuts the end off. One that
        does not is given an input with what comes before the first token in front of it.
        """
        if isinstance(self.padding, str) or _one(self.stride) != 1:
            return None
        padding = _one(self.padding)
        if 0 < padding < self.reach:
            return None
        # Either way the last of what is computed from the input's end belongs to the last token.
        first = self.input.shape[-1] - self.n_pos - (0 if padding else self.reach)
        return first if first >= 0 else None

    def terms(self) -> Lags:
        """What each lag adds at the tokens, lag 0 first."""
        first, padding, step = self.first, _one(self.padding), _one(self.dilation)
        assert first is not None
        x = F.pad(self.input, (padding, padding)) if padding else self.input
        starts = (
            first + (padding - self.reach if padding else 0) + tap * step
            for tap in range(self.kernel)
        )
        terms = [
            x[..., start : start + self.n_pos] * self.weight[:, 0, tap, None]
            for tap, start in enumerate(starts)
        ]
        return torch.stack(terms[::-1], dim=1).transpose(-1, -2)

    def with_tokens(self, mixed: Float[Tensor, "batch channel pos"]) -> Tensor:
        """What it gives, with something else at the tokens."""
        out, first = self.out.clone(), self.first
        assert first is not None
        out[..., first : first + self.n_pos] = mixed
        return out

    @property
    def at_tokens(self) -> Float[Tensor, "batch channel pos"]:
        """What it gives at the tokens."""
        first = self.first
        assert first is not None
        return self.out[..., first : first + self.n_pos]

    def refusal(self, module: nn.Module | None, calls: int) -> str:
        """Why it cannot be split into its lags; empty if it can."""
        if module is None:
            return "its weight is computed as the model runs, and is no parameter"
        if calls > 1:
            return f"it runs {calls} times in one pass of its layer"
        if not self.is_depthwise:
            return (
                f"it mixes channels (groups={self.groups} for {self.input.shape[-2]} of them), so "
                "that a lag has no scalar per channel"
            )
        if self.first is None:
            return (
                f"it is not causal (kernel {self.kernel}, padding={self.padding}): a token sees "
                f"later ones; pad with kernel - 1 = {self.reach} and cut the end off"
            )
        return ""


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list) else value)


@dataclass(frozen=True, eq=False)
class Convolution:
    """A depthwise causal convolution in a layer of a model.

    Attributes:
        layer: its layer.
        path: the module whose weight it is, within the layer: "self_attn.k_sconv".
        weight: the parameter, `[channel 1 tap]`, the oldest token first.
        bias: b, or None.
        step: by how many tokens one tap is further back than the next.
    """

    layer: int
    path: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    step: int = 1

    @property
    def lags(self) -> int:
        """How many tokens it reads, the current one included."""
        return self.weight.shape[-1]

    @property
    def taps(self) -> Float[Tensor, "lag channel"]:
        """One scalar per lag and channel, the current token first."""
        return self.weight.detach().flatten(1).T.flip(0)


@dataclass(frozen=True)
class Refused:
    """A convolution that cannot be split into its lags, and why."""

    layer: int
    path: str
    why: str

    @property
    def is_bypassed(self) -> bool:
        """Whether it was never seen to run."""
        return self.why == _BYPASSED


class Layers:
    """Which layer of a model is running, on how many tokens, and what the last one gave.

    Args:
        blocks: the layers, in order; the first sequence of vectors that each is called with is the
            stream, and so is the first that it gives.
        enter: is given a layer's number and the stream that enters, and gives the stream to run on.
        leave: the same of the stream that leaves.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        enter: OnStream | None = None,
        leave: OnStream | None = None,
    ):
        self.blocks = tuple(blocks)
        self.running: int | None = None
        self.n_pos = 0
        self.gives_tensor = True
        self.on_leaving: Callable[[bool], None] | None = None
        self._enter, self._leave = enter, leave

    @contextmanager
    def followed(self) -> Iterator["Layers"]:
        """Inside, `running` and `n_pos` say so."""
        before = {block: partial(self._before, layer) for layer, block in enumerate(self.blocks)}
        after = {block: partial(self._after, layer) for layer, block in enumerate(self.blocks)}
        try:
            with module_hooks(before, after):
                yield self
        finally:
            self.running = None

    def _before(self, layer: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        place, stream = next(
            (place, x)
            for place, x in [*enumerate(args), *kwargs.items()]
            if isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point()
        )
        self.running, self.n_pos = layer, stream.shape[1]
        if self._enter is None:
            return None
        entering = self._enter(layer, stream)
        if isinstance(place, str):
            return args, {**kwargs, place: entering}
        return (*args[:place], entering, *args[place + 1 :]), kwargs

    def _after(self, layer: int, module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        self.gives_tensor = isinstance(out, Tensor)
        if self.on_leaving is not None:
            self.on_leaving(self.gives_tensor)
        if self._leave is not None:
            out = (
                self._leave(layer, out)
                if isinstance(out, Tensor)
                else (self._leave(layer, out[0]), *out[1:])
            )
        self.running = None
        return out


@contextmanager
def passed_over(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these layers let the stream pass, and compute nothing."""
    with run_as(dict.fromkeys(blocks, stream_of)):
        yield


@contextmanager
def run_as(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside, these functions stand for what modules compute."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward


def stream_of(*args: Any, **kwargs: Any) -> Tensor:
    """The stream that a layer is called with."""
    return next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim == 3)


@contextmanager
def started(blocks: Sequence[nn.Module], layer: int, stream: Stream) -> Iterator[None]:
    """Inside, a pass begins at a layer, from this stream; at their number, above all of them."""

    def enter(number: int, x: Stream) -> Stream:
        return stream if number == layer else x

    def leave(number: int, x: Stream) -> Stream:
        return stream if number == layer - 1 == len(blocks) - 1 else x

    with passed_over(blocks[:layer]), Layers(blocks, enter, leave).followed():
        yield


@dataclass(frozen=True)
class Found:
    """The convolutions of a model, in the order in which they run, and those that are refused."""

    convolutions: tuple[Convolution, ...]
    refused: tuple[Refused, ...]

    def of_layer(self, layer: int) -> tuple[Convolution, ...]:
        """Those of one layer."""
        return tuple(conv for conv in self.convolutions if conv.layer == layer)


def find_convolutions(blocks: Iterable[nn.Module], run: Callable[[], Any]) -> Found:
    """Every convolution that runs in one of these layers, found by running the model once.

    Args:
        blocks: the layers.
        run: runs the model on a few tokens, more than the longest kernel.
    """
    calls: list[ConvCall] = []
    layers = Layers(blocks)

    def see(**arguments: Any) -> Tensor:
        out = CONV(**arguments)
        if layers.running is not None:
            calls.append(ConvCall(layers.running, layers.n_pos, out=out, **arguments))
        return out

    with layers.followed(), Interception({CONV: see}):
        run()
    return found_in(blocks, calls)


def found_in(blocks: Iterable[nn.Module], calls: Sequence[ConvCall]) -> Found:
    """The convolutions that these calls are of."""
    found, refused = [], []
    for layer, block in enumerate(blocks):
        owners = weight_owners(block)
        seen = [call for call in calls if call.layer == layer]
        pointers = [call.weight.data_ptr() for call in seen]
        for call in seen:
            path, module = owners.pop(call.weight.data_ptr(), ("a convolution", None))
            why = call.refusal(module, pointers.count(call.weight.data_ptr()))
            if module is None or why:
                refused.append(Refused(layer, path, why))
            else:
                bias = getattr(module, "bias", None)
                found.append(Convolution(layer, path, module.weight, bias, _one(call.dilation)))
        for path, module in owners.values():
            if isinstance(module, nn.Conv1d):
                refused.append(Refused(layer, path, _BYPASSED))
    return Found(tuple(found), tuple(refused))


_BYPASSED = (
    "it is not computed by F.conv1d, but by a fused kernel, say, that nothing can be read from; "
    "load the model without it (use_mamba_kernels=False, or without the package causal_conv1d)"
)


def weight_owners(block: nn.Module) -> dict[int, tuple[str, Any]]:
    """The modules that have a weight, by where it lies in memory."""
    owners: dict[int, tuple[str, Any]] = {}
    for path, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            shown = path.replace("_original_component", "").replace("original_component", "")
            owners[weight.data_ptr()] = ".".join(filter(None, shown.split("."))), module
    return owners


class LagPoints:
    """Hook points with what each lag of a model's convolutions adds.

    Where a layer has one convolution its hook point is `blocks.{l}.conv.hook_lags`; where it has
    several, each is called by what it follows or by its module: `blocks.{l}.k_conv.hook_lags`.

    Attributes:
        sites: what each is called beside its layer; nothing where it is alone there.
        hooks: the name of each one's hook point.
        behind_gates: those whose terms are shown behind a gate, by whoever runs the model.
        points: the hook points by name.

    Args:
        found: the convolutions.
        sites: what each is called where its layer has several; default: by its module.
    """

    def __init__(self, found: Found, sites: Mapping[Convolution, str] | None = None):
        self.sites: dict[Convolution, str] = {}
        self.hooks: dict[Convolution, str] = {}
        for conv in found.convolutions:
            alone = len(found.of_layer(conv.layer)) == 1
            site = "" if alone else (sites or {}).get(conv) or conv.path.split(".")[-1]
            self.sites[conv] = site
            self.hooks[conv] = f"blocks.{conv.layer}.{f'{site}_conv' if site else 'conv'}.hook_lags"
        self.behind_gates: set[Convolution] = set()
        self.points = {name: HookPoint() for name in self.hooks.values()}
        for name, point in self.points.items():
            point.name = name

    def readers(self, convolutions: Iterable[Convolution]) -> Iterator[Reader]:
        """Each lag of these as a unit: `L0.lag1`, or `L0.k.lag1` where a layer has several."""
        for conv in convolutions:
            label = ".".join(filter(None, (f"L{conv.layer}", self.sites[conv])))
            for lag in range(conv.lags):
                place = Place(self.hooks[conv], (lag, ALL), position_axis=1)
                kind = ".".join(filter(None, (self.sites[conv], "lag")))
                yield Reader(f"{label}.lag{lag}", kind, place, lag=lag)

    @property
    def is_listened_to(self) -> bool:
        """Whether any lag's term is asked for."""
        return any(point.is_listened_to() for point in self.points.values())

    def answering(
        self, layers: Layers, kept: dict[Convolution, ConvCall] | None = None
    ) -> Callable[..., Tensor]:
        """What to call in the place of `F.conv1d`: terms go through the hook points.

        Args:
            layers: which layer runs.
            kept: is given the calls of those behind gates.
        """
        by_weight = {conv.weight.data_ptr(): conv for conv in self.hooks}

        def answer(**arguments: Any) -> Tensor:
            out = CONV(**arguments)
            conv = by_weight.get(arguments["weight"].data_ptr())
            if conv is None or not (point := self.points[self.hooks[conv]]).is_listened_to():
                return out
            call = ConvCall(layers.running, layers.n_pos, out=out, **arguments)
            if conv in self.behind_gates and kept is not None:
                kept[conv] = call
                return out
            mixed = point(call.terms()).sum(1).transpose(-1, -2)
            return call.with_tokens(mixed if call.bias is None else mixed + call.bias[:, None])

        return answer

    @contextmanager
    def hooked(self, hooks: Sequence[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
        """Inside, these functions are attached to the hook points."""
        for name, hook in hooks:
            self.points[name].add_hook(hook)
        try:
            yield
        finally:
            for name, _ in hooks:
                self.points[name].remove_hooks("fwd")
