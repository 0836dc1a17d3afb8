"""What a module does, read from one short run: its layers, what they add, and how they attend.

Nothing is known of whose code it is. The longest list of modules are its layers. Inside them four
functions are followed, `scaled_dot_product_attention`, `conv1d`, `linear` and the addition of two
tensors, and it is noted which tensor goes where: what is added to the stream is a write, and which
mixer it comes from is what autograd says it depends on. A norm is one if its formula, with its own
parameters, gives what it gave. What does not show in this way is not guessed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.models.linear import FrozenNorm, maybe_wide
from interp.models.shapes import Stream, Tokens
from interp.views.convolutions import ConvCall, Layers
from interp.views.interception import ATTENTION, CONV, LINEAR, Interception, module_hooks

N_TOKENS = 19
"""How long the sequence is that a model is read from: longer than any short convolution."""

ROUNDING = 1e-4
"""Relative; what agrees to within it in float32 is taken as equal."""


@dataclass(frozen=True, eq=False)
class LinearCall:
    """One call of `F.linear`."""

    input: Tensor
    weight: Tensor
    out: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of `scaled_dot_product_attention`: `[batch head pos d_head]`, and its arguments."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    scale: float
    has_bias: bool


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module with a tensor, or with several; then there is one of these for each.

    Attributes:
        path: the module's.
        module: the module.
        input: the tensor.
        out: what it made of it.
        inputs: all tensors that it was given.
        number: which of them this is.
    """

    path: str
    module: nn.Module
    input: Tensor
    out: Tensor
    inputs: tuple[Tensor, ...]
    number: int = 0

    def again(self, factor: float) -> Tensor:
        """What it makes of tensors so many times as large."""
        out = self.module.forward(*(x * factor for x in self.inputs))
        return out if isinstance(out, Tensor) else out[self.number]


Tree = None | tuple["Tree", "Tree"]
"""How a tensor was added up: None, if it was not, or from what two others are."""

Sums = Mapping[int, tuple[Tensor, Tensor, Tensor]]
"""Sums that were computed, by their id: themselves, and the two that were added."""


@dataclass(frozen=True, eq=False)
class Write:
    """What was added to the stream.

    Attributes:
        stream: the stream that it was added to.
        terms: what was added; several, where they were added up first, side by side.
        tree: how they were: None stands for a term, a pair for the sum of two.
    """

    stream: Tensor
    terms: tuple[Tensor, ...]
    tree: Tree


Event = LinearCall | AttentionCall | ModuleCall | ConvCall


@dataclass(eq=False)
class LayerTrace:
    """What happened in one layer.

    Attributes:
        entering: the stream that entered.
        events: the calls of functions and modules in it, in order.
        writes: what was added to the stream.
        leaving: the stream that left.
        gives_tensor: whether the layer gives nothing beside the stream.
        by_hand: whether something looks like attention that no known function computes.
    """

    entering: Tensor
    events: list[Event] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    leaving: Tensor | None = None
    gives_tensor: bool = True
    by_hand: bool = False

    def of(self, kind: type) -> list[Any]:
        """The calls of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def is_sum(self) -> bool:
        """Whether the stream that left is what entered and what was written."""
        last = self.writes[-1].stream + sum(self.writes[-1].terms) if self.writes else self.entering
        return self.leaving is not None and close(self.leaving, last)


@dataclass(frozen=True, eq=False)
class Trace:
    """What happened in a run.

    Attributes:
        tokens: what was read.
        layers: by layer.
        before: the calls below the layers.
        after: those above.
        logits: what came out.
    """

    tokens: Tokens
    layers: tuple[LayerTrace, ...]
    before: tuple[Event, ...]
    after: tuple[Event, ...]
    logits: Tensor | None


def trace(
    model: nn.Module, blocks: Iterable[nn.Module], tokens: Tokens, run: Callable[[Tokens], Any]
) -> Trace:
    """Run a model once, and note what happens.

    Every layer starts from a stream of its own, and so does what reads it after each write: what
    depends on what then shows sublayer by sublayer.
    """
    recorder = _Recorder(model, blocks, tokens.shape[1])
    with recorder.recording():
        logits = run(tokens)
    outside = tuple(recorder.before), tuple(recorder.after)
    return Trace(tokens, tuple(recorder.traces), *outside, logits)


class _Recorder(Interception):
    """Notes the calls of functions and modules."""

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module], n_pos: int):
        handlers = {CONV: self.conv, LINEAR: self.linear, ATTENTION: self.attention}
        is_double = next(model.parameters()).dtype == torch.float64
        super().__init__({**handlers, "add": self.add}, exact=is_double)
        self.layers = Layers(blocks, self.enter, self.leave)
        self.n_pos = n_pos
        self.watched = {
            module: partial(self.called, path)
            for path, module in model.named_modules()
            if path and module not in set(blocks)
        }
        self.traces: list[LayerTrace] = []
        self.before: list[Event] = []
        self.after: list[Event] = []
        self.sums: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.stream = torch.empty(0)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, everything is noted."""
        with module_hooks(after=self.watched), self.layers.followed(), self:
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """PyTorch's protocol; a softmax over keys that no attention function computes is noted."""
        out = super().__torch_function__(func, types, args, kwargs)
        is_softmax = getattr(func, "__name__", "") in ("softmax", "_softmax")
        is_over_keys = is_softmax and out.ndim >= 3 and out.shape[-2:] == (self.n_pos, self.n_pos)
        if is_over_keys and self.layers.running is not None:
            self.traces[self.layers.running].by_hand = True
        return out

    @property
    def events(self) -> list[Event]:
        """Where calls are noted now."""
        if self.layers.running is not None:
            return self.traces[self.layers.running].events
        return self.after if self.traces else self.before

    def enter(self, layer: int, x: Stream) -> Stream:
        """A layer begins."""
        self.stream = x.detach().requires_grad_()
        self.traces.append(LayerTrace(self.stream))
        self.sums.clear()
        return self.stream

    def leave(self, layer: int, x: Stream) -> Stream:
        """A layer ends."""
        self.traces[layer].leaving = x
        self.traces[layer].gives_tensor = self.layers.gives_tensor
        return x

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        """Two tensors are added: a write, if one of them is the stream."""
        if self.layers.running is None:
            return left + right
        here = self.traces[self.layers.running]
        for one, other in ((left, right), (right, left)):
            if same(one, self.stream) and other.shape == one.shape:
                tree = _tree(other, self.sums)
                terms = added_up(other, tree, self.sums)
                here.writes.append(Write(one, terms, tree))
                self.stream = (one + other).detach().requires_grad_()
                return self.stream
        out = left + right
        if left.shape == right.shape == self.stream.shape:
            self.sums[id(out)] = (out, left, right)
        return out

    def conv(self, **arguments: Any) -> Tensor:
        """A convolution."""
        out, layers = CONV(**arguments), self.layers
        self.events.append(ConvCall(layers.running, layers.n_pos, out=out, **arguments))
        return out

    def linear(self, **arguments: Any) -> Tensor:
        """A linear map."""
        out = LINEAR(**arguments)
        self.events.append(LinearCall(out=out, **arguments))
        return out

    def attention(self, **arguments: Any) -> Tensor:
        """Attention."""
        out = ATTENTION(**arguments)
        query, key, value = (arguments[name] for name in ("query", "key", "value"))
        scale = arguments.get("scale") or query.shape[-1] ** -0.5
        mask = arguments.get("attn_mask")
        biased = mask is not None and mask.is_floating_point() and bool(visible_bias(mask).any())
        self.events.append(AttentionCall(query, key, value, out, float(scale), biased))
        return out

    def called(self, path: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A module has run."""
        given = tuple(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        made = [out] if isinstance(out, Tensor) else out
        if isinstance(out, Tensor) or (isinstance(out, tuple) and len(out) == len(given) > 1):
            for number, (x, y) in enumerate(zip(given, made, strict=False)):
                if isinstance(y, Tensor):
                    self.events.append(ModuleCall(path, module, x, y, given, number))


def _tree(x: Tensor, sums: Sums) -> Tree:
    """How a tensor was added up from what neither depends on the other."""
    if id(x) not in sums:
        return None
    _, left, right = sums[id(x)]
    if depends(left, right) or depends(right, left):
        return None
    return _tree(left, sums), _tree(right, sums)


def added_up(x: Tensor, tree: Tree, sums: Sums) -> tuple[Tensor, ...]:
    """What a tensor was added up from."""
    if tree is None:
        return (x,)
    _, left, right = sums[id(x)]
    return (*added_up(left, tree[0], sums), *added_up(right, tree[1], sums))


def hides(mask: Tensor) -> Tensor:
    """Which keys an additive mask hides: the least number there is, or -inf, is added to them."""
    return mask <= torch.finfo(mask.dtype).min / 2


def sees(mask: Tensor | None, is_causal: bool, n_pos: int) -> Bool[Tensor, "query key"]:
    """Which keys attention with these arguments lets any head of any sequence see."""
    seen = torch.ones(n_pos, n_pos, dtype=torch.bool)
    seen = seen.tril() if is_causal else seen
    if mask is None:
        return seen
    shown = mask if mask.dtype == torch.bool else ~hides(mask)
    shown = (
        shown.expand(*shown.shape[:-2], n_pos, n_pos).flatten(0, -3)
        if shown.ndim > 2
        else shown[None]
    )
    return seen & shown.any(0).cpu()


def visible_bias(mask: Tensor) -> Tensor:
    """What an additive mask adds to the scores of the keys that it does not hide."""
    return mask.masked_fill(hides(mask), 0.0)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether they are one tensor, or views of one that hold the same."""
    return one is other or (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.data_ptr() == other.data_ptr()
        and one.stride() == other.stride()
    )


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree but for rounding, of whichever is the coarser."""
    if one.shape != other.shape:
        return False
    step = max(torch.finfo(x.dtype).eps for x in (one, other))
    one, other = one.detach().double(), other.detach().double()
    size = float(torch.maximum(one.abs().max(), other.abs().max()))
    return float((one - other).abs().max()) <= max(ROUNDING, 4 * step) * size


def depends(what: Tensor, on: Tensor) -> bool:
    """Whether one depends on the other, by autograd."""
    if not what.requires_grad or not on.requires_grad:
        return False
    grads = torch.autograd.grad(what.sum(), on, retain_graph=True, allow_unused=True)
    return grads[0] is not None


def plain_norm(module: nn.Module, width: int, name: str) -> FrozenNorm | None:
    """A module as a norm `x C diag(γ) / s + β`, if it is one; None if it computes something else.

    Every reading of its parameters is tried on random vectors: with and without centring, γ as it
    stands or as an offset from 1, and each of its small numbers under the root.
    """
    parameters = dict(module.named_parameters(recurse=False))
    vectors = {key: x for key, x in parameters.items() if x.shape == (width,)}
    if len(vectors) != len(parameters) or len(vectors) > 2 or list(module.children()):
        return None
    weight = vectors.pop("weight", None)
    if weight is None and vectors and "bias" not in vectors:
        weight = vectors.pop(next(iter(vectors)))
    bias = next(iter(vectors.values()), None)
    like = weight if weight is not None else next(module.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(4, width, generator=generator) + 1).to(like)
    try:
        with torch.no_grad():
            y = module.forward(x)  # hooks on it are others' concern
    except Exception:
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    gains = [None] if weight is None else [maybe_wide(weight), maybe_wide(weight + 1)]
    numbers = {v for v in vars(module).values() if isinstance(v, float) and 0 <= v < 0.1} or {0.0}
    for centered, gain, eps in product((False, True), gains, sorted(numbers)):
        norm = FrozenNorm(name, centered, gain, maybe_wide(bias), eps)
        found = norm(x.to(torch.promote_types(x.dtype, torch.float32)), norm_scale(norm, x))
        found = found if norm.offset is None else found + norm.offset
        # Two readings may differ by a γ near 1 only: what is compared is all of it.
        if float((found - y).abs().max()) <= 1e-5 * float(y.abs().max()):
            return norm
    return None


def norm_scale(norm: FrozenNorm, x: Tensor) -> Float[Tensor, "... 1"]:
    """s, what a norm divides by."""
    centred = norm.center(x.to(torch.promote_types(x.dtype, torch.float32)))
    return (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
