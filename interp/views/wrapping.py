"""Any module with TransformerLens's hook points: for models that no bridge can boot.

`interp.wrap(model)` runs the module once on a few tokens, reads from it what it is made of
(`interp.views.plan`), and gives a model that runs the module's own code with hook points in it.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import HookedRootModule

from interp.models.checks import require
from interp.models.hooks import HookPoint, nearest, undisturbed
from interp.models.lens_config import LensConfig
from interp.models.linear import FrozenNorm, later
from interp.models.shapes import Stream, Tokens
from interp.views.convolutions import ConvCall, Convolution, LagPoints, Layers
from interp.views.interception import ATTENTION, CONV, LINEAR, Interception, apart, module_hooks
from interp.views.plan import (
    Attends,
    LayerPlan,
    NormBehind,
    Plan,
    check_layers_ran,
    read_plan,
    sites_of,
)
from interp.views.running import EverythingCaptured
from interp.views.trace import (
    N_TOKENS,
    Tree,
    added_up,
    hides,
    norm_scale,
    plain_norm,
    same,
    trace,
    visible_bias,
)


def wrap(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    layers: str | None = None,
    n_ctx: int | None = None,
) -> "WrappedModel":
    """Give any module TransformerLens's hook points, so that every analysis can view it.

    For models that TransformerLens cannot boot: new architectures, and one's own. What is needed is
    that the module reads tokens `[batch pos]`, has its layers in a list, and calls
    `F.scaled_dot_product_attention` where it attends. It is run once on a few tokens to see what it
    is made of; its own code computes everything, and its weights and mode stay as they are.

    * `blocks.{l}.hook_resid_pre`, `.hook_resid_mid`, `.hook_resid_post` `[batch pos d_model]`, and
      what is added to the stream, `.hook_attn_out`, `.hook_conv_out`, `.hook_mixer_out`,
      `.hook_mlp_out`, wherever it is added with a plus;
    * `blocks.{l}.attn.hook_q`, `.hook_k`, `.hook_v`, `.hook_z` `[batch pos head d_head]`,
      `.hook_attn_scores` and `.hook_pattern` `[batch head query key]`; queries and keys as they
      meet: normalised, mixed and turned as the model does;
    * `blocks.{l}.conv.hook_lags` `[batch lag pos channel]`: what each lag of a depthwise causal
      convolution adds, before what follows it. Where a layer has several they are
      `blocks.{l}.k_conv.hook_lags` and the like, by what they stand on;
    * `blocks.{l}.ln1.hook_scale`, `.ln2.hook_scale`, `ln_final.hook_scale` `[batch pos 1]`;
      `hook_embed`: all that enters layer 0; `unembed.hook_in`.

    Args:
        model: the module. A Hugging Face model runs with `attn_implementation="sdpa"` inside.
        tokenizer: for text, words and special tokens.
        layers: the path of the list of layers, such as "model.layers"; default: the longest one
            that lies in no other.
        n_ctx: the longest sequence; default: what the config or a table of positions says.

    Returns:
        A `WrappedModel`, which is called and hooked as a TransformerLens model.

    Raises:
        TypeError: a compiled or quantised module, one that reads no tokens, or an encoder-decoder.
        ValueError: no list of layers or several as long, layers that attend with a softmax of their
            own, convolutions that a fused kernel computes, or a context that is not known.

    >>> from torch import nn
    >>> import torch.nn.functional as F
    >>> class Layer(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.qkv = nn.LayerNorm(32), nn.Linear(32, 96)
    ...         self.out = nn.Linear(32, 32)
    ...     def forward(self, x):
    ...         heads = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    ...         z = F.scaled_dot_product_attention(*heads, is_causal=True)
    ...         return x + self.out(z.transpose(1, 2).flatten(2))
    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 50)
    ...         self.layers = nn.ModuleList([Layer(), Layer()])
    ...     def forward(self, tokens):
    ...         x = self.embed(tokens)
    ...         for layer in self.layers:
    ...             x = layer(x)
    ...         return self.head(x)
    >>> model = wrap(Model(), n_ctx=64)
    >>> logits, cache = model.run_with_cache(torch.arange(10)[None])
    >>> cache["blocks.1.attn.hook_pattern"].shape
    torch.Size([1, 4, 10, 10])
    """
    _check_module(model)
    path, blocks = _layers(model, layers)
    return WrappedModel(model, tokenizer, path, blocks, n_ctx)


class _Points(nn.Module):
    """Hook points under names with dots."""

    def add(self, name: str) -> HookPoint:
        """A hook point; what lies on the way to it is made."""
        first, _, rest = name.partition(".")
        if not rest:
            # Heads come before the width, as in TransformerLens.
            point = HookPoint(pos_dim=-3 if first in _BY_HEAD else -2)
            setattr(self, first, point)
            return point
        if not hasattr(self, first):
            setattr(self, first, _Points())
        return cast(_Points, getattr(self, first)).add(rest)


_BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z")


class WrappedModel(HookedRootModule):
    """A module that runs its own code, with hook points in it. `interp.wrap` makes one.

    Attributes:
        original_model: the module.
        tokenizer: its tokenizer, or None.
        plan: what it is made of.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        path: str,
        layers: Sequence[nn.Module],
        n_ctx: int | None,
    ):
        super().__init__()
        self.original_model, self.tokenizer = model, tokenizer
        self._path, self._layer_modules = path, tuple(layers)
        self._run_config = _RunConfig.of(model)
        d_vocab = _vocabulary(model)
        self.n_ctx = _context(model, n_ctx)
        self.plan = self._read(d_vocab)
        self.measured: dict[int, tuple[Any, Any]] = {}
        self._lags = LagPoints(self.plan.found, sites_of(self.plan))
        self._make_points()
        self.setup()
        self.cfg = self._config()

    def _read(self, d_vocab: int) -> Plan:
        generator = torch.Generator().manual_seed(0)
        n_pos = min(N_TOKENS, self.n_ctx)
        tokens = torch.randint(d_vocab, (2, n_pos), generator=generator).to(self._device)
        blocks = self._layer_modules
        with undisturbed(self.original_model), torch.enable_grad(), self._run_config.used():
            seen = trace(self.original_model, blocks, tokens, self._logits_of)
            check_layers_ran(self.original_model, blocks, seen)
            backwards = self.entering(tokens.flip(1))
            return read_plan(self.original_model, blocks, seen, backwards, d_vocab)

    def entering(self, tokens: Tokens) -> Stream:
        """What enters layer 0; nothing above is computed."""
        found: list[Stream] = []

        def keep(layer: int, stream: Stream) -> Stream:
            found.append(stream.detach())
            raise EverythingCaptured

        with (
            suppress(EverythingCaptured),
            apart(),
            self.ready(),
            Layers(self._layer_modules, keep).followed(),
        ):
            self._logits_of(tokens)
        return found[0]

    def ready(self) -> AbstractContextManager[None]:
        """Inside, the module calls the functions that are taken up."""
        return self._run_config.used()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the module is called with beside the tokens."""
        return self._run_config.arguments

    @property
    def _device(self) -> torch.device:
        return next(self.original_model.parameters()).device

    def _make_points(self) -> None:
        self.hook_embed = HookPoint()
        blocks = [_Points() for _ in self.plan.layers]
        self.blocks = nn.ModuleList(blocks)
        for number, (points, layer) in enumerate(zip(blocks, self.plan.layers, strict=True)):
            names = ["hook_resid_pre", "hook_resid_post"]
            names += ["hook_resid_mid"] if layer.has_middle else []
            names += [write.hook.split(".", 2)[2] for write in layer.writes]
            names += [f"{name}.hook_scale" for name in layer.norms]
            if layer.attends is not None:
                names += [f"attn.hook_{x}" for x in ("q", "k", "v", "z", "attn_scores", "pattern")]
                names += ["attn.hook_score_bias"] if layer.attends.has_bias else []
                norms = layer.attends.norms_behind
                names += [f"attn.hook_{x}_factor" for norm in norms for x in norm.channels]
            for name in dict.fromkeys(names):
                points.add(name)
            for conv in self.plan.found.of_layer(number):
                name = self._lags.hooks[conv].split(".", 2)[2]
                self._lags.points[self._lags.hooks[conv]] = points.add(name)
            if layer.gated is not None:
                points.add("conv.hook_gates")
                self._lags.behind_gates.add(layer.gated.conv)
        self.ln_final, self.unembed = _Points(), _Points()
        if self.plan.last_norm is not None:
            self.ln_final.add("hook_scale")
        if self.plan.unembed is not None:
            self.unembed.add("hook_in")

    def _config(self) -> LensConfig:
        attends = [layer.attends for layer in self.plan.layers if layer.attends is not None]
        weight = next(self.original_model.parameters())
        widths = [one.weight.shape[1] // one.heads for one in attends if one.weight is not None]
        return LensConfig(
            n_layers=len(self.plan.layers),
            n_heads=max((one.heads for one in attends), default=0),
            d_model=self.plan.d_model,
            d_head=max(widths, default=0),
            d_mlp=0,
            d_vocab=self.plan.d_vocab,
            n_ctx=self.n_ctx,
            attn_only=not any(w.is_mlp for layer in self.plan.layers for w in layer.writes),
            normalization_type=None,
            device=weight.device,
            dtype=weight.dtype,
        )

    def forward(
        self, tokens: Tokens, return_type: str | None = "logits"
    ) -> Float[Tensor, "batch _ vocab"] | None:
        """The module's own logits, at the positions that a hook on `unembed.hook_in` leaves.

        Raises:
            ValueError: another return type, or the module gives no logits.
        """
        if return_type not in ("logits", None):
            raise ValueError(f'return_type is {return_type!r}; choose "logits" or None')
        points = self.hook_dict.items()
        hooked = {name for name, point in points if point.fwd_hooks or point.bwd_hooks}
        with self._run_config.used(), self._intercepted(hooked):
            logits = self._logits_of(tokens.to(self._device))
        if return_type is None:
            return None
        if logits is None or not self.plan.has_logits:
            raise ValueError(
                f"{type(self.original_model).__name__} gives no logits over its "
                f"{self.plan.d_vocab} tokens; ask what its heads attend to, or give the model with "
                "its language-model head"
            )
        return logits

    def _logits_of(self, tokens: Tokens) -> Tensor | None:
        out = self.original_model(tokens, **self._run_config.arguments)
        logits = getattr(out, "logits", None)
        if logits is None:
            logits = next((x for x in _tensors(out) if x.ndim == 3), None)
        return logits

    @contextmanager
    def _intercepted(self, hooked: Collection[str]) -> Iterator[None]:
        """Inside, the hook points that somebody listens to are on the way."""
        if not hooked:
            yield
            return
        run = _Pass(self, hooked)
        with ExitStack() as stack:
            stack.enter_context(module_hooks(after=run.norms()))
            stack.enter_context(run.layers.followed())
            # The functions come last: what the others do is not intercepted.
            stack.enter_context(Interception(run.handlers(), exact=self._is_double))
            yield

    @property
    def _is_double(self) -> bool:
        return next(self.original_model.parameters()).dtype == torch.float64

    def add_hook(self, name: Any, *args: Any, **kwargs: Any) -> None:
        """TransformerLens's `add_hook`; an unknown name is an error that suggests the nearest."""
        if isinstance(name, str):
            self._check_hook_name(name)
        super().add_hook(name, *args, **kwargs)

    def _check_hook_name(self, name: str) -> None:
        if name not in self.hook_dict:
            raise ValueError(
                f"{name!r} is no hook point of this model{nearest(name, self.hook_dict)}"
            )


class _Pass:
    """One run: which stream it is that runs, and what is handed to whom."""

    def __init__(self, model: WrappedModel, hooked: Collection[str]):
        self.model, self.hooked = model, hooked
        self.layers = Layers(model._layer_modules, self._enter, self._leave)
        self.stream: Tensor | None = None
        self.n_writes = 0
        self.calls: dict[Convolution, ConvCall] = {}
        self.thirds: tuple[Tensor, ...] = ()
        self.sums: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def point(self, name: str) -> HookPoint:
        """A hook point of the layer that runs."""
        return cast(HookPoint, self.model.hook_dict[f"blocks.{self.layers.running}.{name}"])

    def handlers(self) -> dict[Any, Callable[..., Any]]:
        """What to call in the place of which function: only what is listened to."""
        handlers: dict[Any, Callable[..., Any]] = {}
        if any(".hook_lags" in name for name in self.hooked):
            handlers[CONV] = self.model._lags.answering(self.layers, self.calls)
        if any(".attn.hook_" in name for name in self.hooked):
            handlers[ATTENTION] = self._attend
        if any(name.endswith(("_out", "hook_resid_mid")) for name in self.hooked):
            handlers["add"] = self._add
        gated = any(".conv.hook_" in name for name in self.hooked)
        if "unembed.hook_in" in self.hooked or gated:
            handlers[LINEAR] = self._linear
        return handlers

    def norms(self) -> dict[nn.Module, Callable[..., Any]]:
        """What to call after which norm."""
        hooks: dict[nn.Module, Callable[..., Any]] = {}
        for layer, plan in enumerate(self.model.plan.layers):
            for name, path in plan.norms.items():
                if f"blocks.{layer}.{name}.hook_scale" in self.hooked:
                    hooks |= self._norm(path, f"blocks.{layer}.{name}")
            hooks |= self._norms_behind(layer, plan)
        if (path := self.model.plan.last_norm) and "ln_final.hook_scale" in self.hooked:
            hooks |= self._norm(path, "ln_final")
        return hooks

    def _norm(self, path: str, name: str) -> dict[nn.Module, Callable[..., Any]]:
        module = self.model.original_model.get_submodule(path)
        norm = plain_norm(module, self.model.plan.d_model, name)
        assert norm is not None
        return {module: partial(self._normalise, norm)}

    def _norms_behind(self, layer: int, plan: LayerPlan) -> dict[nn.Module, Callable[..., Any]]:
        """What to call after norms of queries and keys, to show what they multiply with."""
        hooks: dict[nn.Module, Callable[..., Any]] = {}
        for norm in () if plan.attends is None else plan.attends.norms_behind:
            names = [f"blocks.{layer}.attn.hook_{channel}_factor" for channel in norm.channels]
            if not any(name in self.hooked for name in names):
                continue

            module = self.model.original_model.get_submodule(norm.path)
            hooks[module] = partial(self._show_factors, norm, names)
        return hooks

    def _show_factors(
        self,
        norm: NormBehind,
        names: Sequence[str],
        module: nn.Module,
        args: Any,
        kwargs: Any,
        out: Any,
    ) -> None:
        given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        made = [out] if isinstance(out, Tensor) else out
        for name, x, y in zip(names, given, made, strict=True):
            factor = (y / x).nan_to_num()
            self.model.hook_dict[name](factor.transpose(1, 2) if norm.heads_first else factor)

    def _enter(self, layer: int, stream: Stream) -> Stream:
        if layer == 0:
            stream = self.model.hook_embed(stream)
        stream = self.model.hook_dict[f"blocks.{layer}.hook_resid_pre"](stream)
        self.stream, self.n_writes = stream, 0
        self.sums.clear()
        return stream

    def _leave(self, layer: int, stream: Stream) -> Stream:
        return self.model.hook_dict[f"blocks.{layer}.hook_resid_post"](stream)

    def _add(self, left: Tensor, right: Tensor) -> Tensor:
        if self.layers.running is None or self.stream is None:
            return left + right
        plan = self.model.plan.layers[self.layers.running]
        for one, other in ((left, right), (right, left)):
            if same(one, self.stream) and other.shape == one.shape and plan.writes:
                self.stream = self._write(plan, one, other)
                return self.stream
        out = left + right
        if left.shape == right.shape == self.stream.shape:
            self.sums[id(out)] = (out, left, right)
        return out

    def _write(self, plan: LayerPlan, stream: Stream, written: Stream) -> Stream:
        first = sum(map(_leaves, plan.trees[: self.n_writes]))
        tree = plan.trees[self.n_writes]
        some = plan.writes[first : first + _leaves(tree)]
        if any(write.hook in self.hooked for write in some):
            terms = zip(some, added_up(written, tree, self.sums), strict=True)
            parts = [self.model.hook_dict[write.hook](term) for write, term in terms]
            written = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        self.n_writes += 1
        stream = stream + written
        after = plan.writes[first + len(some) :]
        if plan.has_middle and after and after[0].is_mlp and not some[-1].is_mlp:
            stream = self.point("hook_resid_mid")(stream)
        return stream

    def _normalise(
        self, norm: FrozenNorm, module: nn.Module, args: Any, kwargs: Any, out: Tensor
    ) -> Tensor:
        x = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        scale = norm_scale(norm, x)
        point = self.model.hook_dict[norm.factor.hook]
        changed = point(scale)
        if changed is scale and not point.bwd_hooks:
            return out  # read only: what the module computed stands
        normalised = norm(x.to(scale.dtype), changed)
        return (normalised if norm.offset is None else normalised + norm.offset).to(out)

    def _linear(self, **arguments: Any) -> Tensor:
        plan, weight = self.model.plan, arguments["weight"]
        if self.layers.running is None:
            if plan.unembed is not None and weight is plan.unembed[0]:
                arguments["input"] = self.model.hook_dict["unembed.hook_in"](arguments["input"])
            return LINEAR(**arguments)
        gated = plan.layers[self.layers.running].gated
        if gated is not None and weight is gated.out_weight and gated.conv in self.calls:
            terms = self.calls.pop(gated.conv).terms() * self.thirds[gated.order[2]][:, None]
            arguments["input"] = self.point("conv.hook_lags")(terms).sum(1)
        out = LINEAR(**arguments)
        if gated is not None and weight is gated.weight:
            self.thirds = out.chunk(3, -1)
            if (gates := self.point("conv.hook_gates")).is_listened_to():
                before, after = (self.thirds[gated.order[n]] for n in (0, 2))
                lags = range(gated.conv.lags)
                gates(torch.stack([after * later(before, lag) for lag in lags], dim=1))
        return out

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        running = self.layers.running
        attends = None if running is None else self.model.plan.layers[running].attends
        if attends is None or not any(f"blocks.{running}.attn." in name for name in self.hooked):
            return ATTENTION(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                enable_gqa=enable_gqa,
            )  # fmt: skip
        q = self._by_head("hook_q", query)
        # Where queries share keys some models repeat them first: each is shown once.
        k, v = (
            self._by_head(f"hook_{name}", x[:, :: x.shape[1] // attends.key_heads])
            for name, x in (("k", key), ("v", value))
        )
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        prefix = f"blocks.{running}.attn.hook_"
        if any(
            f"{prefix}{name}" in self.hooked for name in ("attn_scores", "pattern", "score_bias")
        ):
            z = self._spelled_out(attends, q, k, v, attn_mask, is_causal, scale)
        else:
            z = ATTENTION(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
        return self._by_head("hook_z", z)

    def _by_head(self, name: str, x: Float[Tensor, "batch head pos d_head"]) -> Tensor:
        return self.point(f"attn.{name}")(x.transpose(1, 2)).transpose(1, 2)

    def _spelled_out(
        self,
        attends: Attends,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
    ) -> Tensor:
        # The kernels compute 16-bit inputs in float32; so does this, or the two would differ.
        dtype = torch.promote_types(q.dtype, torch.float32)
        scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
        if is_causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            bias = visible_bias(mask).to(dtype).expand_as(scores)
            if attends.has_bias:
                bias = self.point("attn.hook_score_bias")(bias)
            scores = (scores + bias).masked_fill(hides(mask), -torch.inf)
        pattern = self.point("attn.hook_pattern")(
            self.point("attn.hook_attn_scores")(scores).softmax(-1).nan_to_num()
        )
        return (pattern @ v.to(dtype)).to(v.dtype)


def _leaves(tree: Tree) -> int:
    return 1 if tree is None else sum(map(_leaves, tree))


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        yield from (x for x in out.values() if isinstance(x, Tensor))
    elif isinstance(out, tuple | list):
        yield from (x for x in out if isinstance(x, Tensor))


@dataclass(frozen=True)
class _RunConfig:
    """How a module has to be run for its functions to be called.

    Attributes:
        model: the module.
        arguments: what to call it with beside the tokens.
        switches: what a Hugging Face model is switched to for the run, by what is switched.
    """

    model: Any
    arguments: Mapping[str, Any]
    switches: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> "_RunConfig":
        """A Hugging Face model keeps no states, and attends by `sdpa`; others run as they are."""
        takes = inspect.signature(model.forward).parameters
        switches = {"attn": "sdpa"}
        if next(model.parameters()).dtype == torch.float64:
            switches["experts"] = "eager"  # the others know no float64
        config = getattr(model, "config", None)
        switches = {
            name: wanted
            for name, wanted in switches.items()
            if hasattr(model, f"set_{name}_implementation")
            and getattr(config, f"_{name}_implementation", wanted) not in (wanted, None)
        }
        return cls(model, {"use_cache": False} if "use_cache" in takes else {}, switches)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, it is so; outside, as it was."""
        config = getattr(self.model, "config", None)
        before = {name: getattr(config, f"_{name}_implementation") for name in self.switches}
        try:
            for name, wanted in self.switches.items():
                with suppress(ValueError):  # it has none, or attends by hand, which will show
                    getattr(self.model, f"set_{name}_implementation")(wanted)
            yield
        finally:
            for name, earlier in before.items():
                getattr(self.model, f"set_{name}_implementation")(earlier)


def _check_module(model: Any) -> None:
    """Refuse what cannot be run with hook points in it, before any work."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is no torch.nn.Module; give the model itself")
    name = type(model).__name__
    if isinstance(model, HookedRootModule) or hasattr(model, "hook_dict"):
        raise TypeError(f"{name} has hook points of its own; give it to the analyses as it is")
    for path, module in model.named_modules():
        kind = type(module)
        where = f"{name}: {path or 'the model'}"
        if kind.__name__ == "OptimizedModule":
            raise TypeError(
                f"{where} is compiled, and a compiled graph calls no function that could be taken "
                "up; wrap the module inside, model._orig_mod"
            )
        packed = [x.dtype for x in module.parameters(recurse=False) if not x.is_floating_point()]
        if packed or "quant" in kind.__module__ or "bitsandbytes" in kind.__module__:
            raise TypeError(
                f"{where} is quantised ({kind.__name__}), and its weights cannot be read as "
                "numbers; load the model without quantisation, in bfloat16 say"
            )
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"{name} is an encoder-decoder, which reads two sequences; wrap its encoder "
            "(model.get_encoder())"
        )
    reads = getattr(model, "main_input_name", "input_ids")
    if config is not None and reads not in ("input_ids", "inputs_embeds"):
        raise TypeError(
            f"{name} reads {reads} and no tokens; wrap the part that reads tokens, such as "
            "model.text_model"
        )


def _layers(model: nn.Module, path: str | None) -> tuple[str, Sequence[nn.Module]]:
    """The list of layers: the longest of those that lie in no other."""
    name = type(model).__name__
    lists = {
        where: module
        for where, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    if path is not None:
        require(
            path in lists,
            f"{name} has no list of modules {path!r}{nearest(path, lists)}; its lists are "
            f"{', '.join(lists) or 'none'}",
        )
        return path, list(lists[path])
    outer = {
        where: found
        for where, found in lists.items()
        if not any(where.startswith(f"{other}.") for other in lists if other != where)
    }
    longest = max((len(found) for found in outer.values()), default=0)
    if longest == 0:
        raise ValueError(
            f"{name} has no list of modules (torch.nn.ModuleList) that could be its layers; put "
            "its layers into one"
        )
    chosen = [where for where, found in outer.items() if len(found) == longest]
    if len(chosen) > 1:
        raise ValueError(
            f"{name} has several lists of {longest} modules, {', '.join(chosen)}; say which are "
            f'its layers: wrap(model, layers="{chosen[0]}")'
        )
    return chosen[0], list(outer[chosen[0]])


def _vocabulary(model: nn.Module) -> int:
    """How many tokens it has a row for."""
    if (n := getattr(_text_config(model), "vocab_size", None)) is not None:
        return int(n)
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    if not tables:
        raise TypeError(
            f"{type(model).__name__} has no embedding (torch.nn.Embedding), so that it reads no "
            "tokens; wrap the part that reads tokens"
        )
    return tables[0]


def _text_config(model: Any) -> Any:
    """The Hugging Face config of what reads tokens, or None."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")


def _context(model: nn.Module, given: int | None) -> int:
    """The longest sequence that it reads."""
    if given is not None:
        require(
            isinstance(given, int) and given >= 2,
            f"n_ctx is {given!r}; give a whole number of at least 2",
        )
        return given
    config = _text_config(model)
    for name in _CONTEXTS:
        if isinstance(n := getattr(config, name, None), int):
            return n
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    if len(tables) == 2:  # of tokens, and of positions
        return tables[1]
    if hasattr(config, "vocab_size"):  # a recurrent model of Hugging Face's has no longest one
        return UNBOUNDED
    raise ValueError(
        f"{type(model).__name__}: how long a sequence may be is not known; give it: "
        "wrap(model, n_ctx=1024)"
    )


UNBOUNDED = 1_048_576
"""The context of a model that has no longest sequence."""
