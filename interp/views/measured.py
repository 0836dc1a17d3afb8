r"""What the heads of a wrapped module read: maps that are measured, and not looked up.

Between the norm before a layer and its attention stand projections, convolutions, delays, norms of
queries and keys, and rotations, in whatever code. All of it but those norms is linear: with them
held, the keys are

    k_t = (Σ_j n_{t-j} M_j + b_t) ⊙ f_t R_t,

n being the normalised stream. M_j is what autograd says, `M_j = ∂k_t / ∂n_{t-j}`, with the
layer's own code run on a few tokens and n put in the place of the norm's output; b_t is what comes
out where n is 0; R_t is read from how one and the same vector comes out at every position. f is
what the norms of queries and keys multiply with, per token. A random n then has to come out as the
formula says, or the layer is no such map and is refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from interp.models.hooks import undisturbed
from interp.models.linear import (
    CHANNELS,
    Channel,
    Constants,
    Factor,
    Freezing,
    Frozen,
    LinearChannel,
    Move,
    Parts,
    everywhere,
    later,
    wide,
)
from interp.models.shapes import Heads
from interp.views.convolutions import Layers, passed_over
from interp.views.interception import ATTENTION, Interception, apart, module_hooks
from interp.views.wrapping import WrappedModel

BEYOND = 2
"""How many tokens further back than its convolutions a layer is looked at: a delay by hand."""

AGREES = 1e-4
"""How far a random input may come out from what the maps say, relative, in float32."""


class _Attends(Exception):  # noqa: N818 - a signal, no error
    """Raised where the layer attends: nothing above is of interest."""


@dataclass(frozen=True, eq=False)
class Turning:
    """R_t: pairs of channels, turned and scaled by what depends on the position alone.

    Attributes:
        first: one channel of every pair.
        second: the other.
        by: what position t multiplies first + i second with.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    by: Complex[Tensor, "pos pair"]

    def __call__(self, x: Float[Tensor, "... pos any d_head"], start: int, sign: int = 1) -> Tensor:
        """x R, from a position on; with sign -1 back again."""
        first, second = list(self.first), list(self.second)
        by = self.by[start : start + x.shape[-3], None]
        pair = torch.complex(x[..., first].to(by.real), x[..., second].to(by.real))
        turned = pair * by if sign > 0 else pair / by
        out = x.clone()
        out[..., first], out[..., second] = turned.real.to(x), turned.imag.to(x)
        return out


@dataclass(frozen=True, eq=False)
class Normalised(Freezing):
    """f: what a norm of queries or keys multiplies each channel of each head with.

    Attributes:
        head: which of them.
        gain: what f would be for vectors whose mean square is 1.
    """

    head: int
    gain: Float[Tensor, " d_head"]

    @property
    def unknown(self) -> Factor:
        """The gain: the length is a common factor of all scores."""
        return self.gain

    def of(self, activation: Float[Tensor, "batch pos head d_head"]) -> Tensor:
        """This head's."""
        return activation[:, :, self.head]

    def total(self, activation: Float[Tensor, "batch pos head d_head"]) -> Factor:
        """By channel."""
        return activation[:, :, self.head].double().sum((0, 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredChannel(LinearChannel):
    """k_t = (Σ_j n_{t-j} M_j + b_t) ⊙ f_t: a map for every lag, and a norm behind.

    Attributes:
        by_lag: M.
        bias_at: gives b of the first so many positions.
        norm_behind: f, or None.
        turned_back: from what stands at `computed`, what stood before positions turned it.
    """

    by_lag: Float[Tensor, "lag d_model d_head"]
    bias_at: Callable[[int], Float[Tensor, "pos d_head"]]
    norm_behind: Normalised | None
    turned_back: Callable[[Tensor], Tensor]

    @property
    def lags(self) -> int:
        """As many as there are maps."""
        return len(self.by_lag)

    @property
    def factors(self) -> tuple[Freezing, ...]:
        """The norm's scale, and that of the norm behind."""
        behind = () if self.norm_behind is None else (self.norm_behind,)
        return (*super().factors, *behind)

    def of(self, activation: Float[Tensor, "batch pos _ d_head"]) -> Tensor:
        """This head's, as it is before positions turn it."""
        return self.turned_back(activation)[:, :, self.head]

    def implied(
        self,
        mean_square: Callable[[Tensor, Constants], float],
        below: Tensor,
        constants: Constants,
        frozen: Frozen,
    ) -> Frozen:
        """What the norm behind multiplies with, for vectors of the mean square that is implied."""
        if self.norm_behind is None:
            return {}
        n_pos = max((x.shape[-2] for x in constants.values()), default=self.lags)
        plain = replace(self, norm_behind=None)
        added = plain.constants(constants, n_pos, frozen, later)
        size = mean_square(plain.maps(below, frozen), added)
        return {self.norm_behind.name: self.norm_behind.gain / size**0.5}

    def maps(self, below: Float[Tensor, "_ d_model d_model"] | None, frozen: Frozen) -> Tensor:
        """The map of each lag, for a position that has all its lags."""
        read = self.by_lag if self.norm is None else self.norm.reading(self.by_lag)
        read = read / self._scale(frozen)
        if below is not None:
            read = _summed(
                ((i + j, one @ map_) for i, one in enumerate(below) for j, map_ in enumerate(read))
            )
        return self._behind(read, frozen)

    def parts(
        self, parts: Parts, frozen: Frozen, move: Move
    ) -> Float[Tensor, "lag batch pos d_head"]:
        """What each lag adds to the query, key or value, on sequences."""
        return self._behind(self._moved(parts, frozen, move), frozen)

    def constants(self, below: Constants, n_pos: int, frozen: Frozen, move: Move) -> Constants:
        """What each constant adds to it, those from below and its own."""
        own = {name: self._moved(x[None], frozen, move).sum(0) for name, x in below.items()}
        if self.norm is not None and self.norm.offset is not None:
            offset = everywhere(self.norm.offset, n_pos)[None]
            own[f"{self.norm.name}.b"] = self._through(offset, move).sum(0)
        bias = self.bias_at(n_pos)
        if bias.any():
            own[f"{self.name}.b_{self.channel.upper()}"] = bias[None]
        return {name: self._behind(x, frozen) for name, x in own.items()}

    def _moved(self, x: Tensor, frozen: Frozen, move: Move) -> Tensor:
        read = x if self.norm is None else self.norm(x, self._scale(frozen))
        return self._through(read, move)

    def _through(self, n: Float[Tensor, "_ batch pos d_model"], move: Move) -> Tensor:
        return _summed(
            (i + j, move(one @ map_, j))
            for j, map_ in enumerate(self.by_lag)
            for i, one in enumerate(n)
        )

    def _behind(self, x: Tensor, frozen: Frozen) -> Tensor:
        return (
            x
            if self.norm_behind is None
            else x * torch.as_tensor(frozen[self.norm_behind.name]).to(x)
        )


def _summed(terms: Iterable[tuple[int, Tensor]]) -> Tensor:
    """Those of each lag added up, by lag."""
    by_lag: dict[int, Tensor] = {}
    for lag, term in terms:
        by_lag[lag] = by_lag[lag] + term if lag in by_lag else term
    return torch.stack([by_lag[lag] for lag in sorted(by_lag)])


class Measured:
    """The maps of one layer's heads, measured when they are asked for.

    Args:
        model: the wrapped module.
        layer: the layer.
    """

    def __init__(self, model: WrappedModel, layer: int):
        attends = model.plan.layers[layer].attends
        assert attends is not None
        self.model, self.layer, self.attends = model, layer, attends
        module = model.original_model
        self.norm = None if attends.norm is None else module.get_submodule(attends.norm)
        self.behind = [module.get_submodule(norm.path) for norm in attends.norms_behind]
        self.reach = attends.reach
        self._still: dict[int, dict[Channel, Heads]] = {}
        self._maps: dict[int, dict[Channel, Tensor]] = {}
        self._turning: Turning | None = None

    def key_head(self, head: int) -> int:
        """The number of the head of keys and values that a head of queries uses."""
        return head * self.attends.key_heads // self.attends.heads

    def maps(self, head: int) -> dict[Channel, Float[Tensor, "lag d_model d_head"]]:
        """M_j of queries, keys and values.

        Raises:
            ValueError: they are no linear maps of the normalised stream.
        """
        if head not in self._maps:
            self._maps[head] = self._measured(head)
        return self._maps[head]

    def _measured(self, head: int) -> dict[Channel, Tensor]:
        n_pos = self.reach + BEYOND + 1
        found: dict[Channel, Tensor] = {}
        shown = self._nothing(n_pos)
        for channel in CHANNELS:
            index, width = self._index(head, channel), shown[channel].shape[-1]
            n = self._zeros(width, n_pos).requires_grad_()
            with torch.enable_grad():
                each = torch.arange(width)
                last = self.run(n)[channel][each, n_pos - 1, index, each]
                (grad,) = torch.autograd.grad(last.sum(), n, allow_unused=True)
            by_lag = torch.zeros_like(n) if grad is None else grad
            by_lag = by_lag.detach().flip(1).permute(1, 2, 0)  # lag, d_model, d_head
            lags = 1 + max((j for j, one in enumerate(by_lag) if one.any()), default=0)
            if lags == n_pos:
                raise ValueError(
                    self._refusal(f"its {channel} reach further back than {n_pos} tokens")
                )
            by_lag = by_lag[:lags]
            if channel != "v":
                by_lag = self.turning(n_pos)(by_lag[..., None, None, :], n_pos - 1, -1)[
                    ..., 0, 0, :
                ]
            found[channel] = wide(by_lag)
        self._check(head, found)
        return found

    def _check(self, head: int, found: Mapping[Channel, Tensor]) -> None:
        """A random n comes out as the maps say."""
        n_pos = self.reach + BEYOND + 3
        generator = torch.Generator().manual_seed(0)
        n = torch.randn(2, n_pos, self.model.plan.d_model, generator=generator)
        n = n.to(self._zeros(1, 1))
        shown = self.run(n)
        for channel, by_lag in found.items():
            index = self._index(head, channel)
            expected = self.bias(head, channel, n_pos) + sum(
                torch.nn.functional.pad(n.to(one) @ one, (0, 0, j, 0))[:, :n_pos]
                for j, one in enumerate(by_lag)
            )
            computed = self.turned_back(channel, shown[channel])[:, :, index]
            size = float(computed.abs().max().clamp_min(1e-30))
            if not float((expected - computed).abs().max()) <= AGREES * size:
                raise ValueError(
                    self._refusal(
                        f"its {channel} are no linear map of the normalised stream, even with "
                        "norms held"
                    )
                )

    def bias(self, head: int, channel: Channel, n_pos: int) -> Float[Tensor, "pos d_head"]:
        """b: what comes out where nothing comes in."""
        shown = self.turned_back(channel, self._nothing(n_pos)[channel])
        return wide(shown[0, :, self._index(head, channel)])

    def _nothing(self, n_pos: int) -> dict[Channel, Heads]:
        """What comes out where nothing comes in."""
        if n_pos not in self._still:
            self._still = {n_pos: self.run(self._zeros(1, n_pos))}
        return self._still[n_pos]

    def gain(self, channel: Channel, head: int) -> Float[Tensor, " d_head"]:
        """What their norm makes of each channel of a vector whose mean square is 1."""
        norm = next(one for one in self.attends.norms_behind if channel in one.channels)
        module = self.model.original_model.get_submodule(norm.path)
        generator = torch.Generator().manual_seed(2)
        given = []
        for name in norm.channels:
            heads = self.attends.heads if name == "q" else self.attends.key_heads
            shape = (1, heads, 1) if norm.heads_first else (1, 1, heads)
            width = self._nothing(1)[name].shape[-1]
            x = 1_000 * torch.randn(*shape, width, generator=generator)
            given.append(x.to(self._zeros(1, 1)))
        called = norm.channels.index(channel)
        with torch.no_grad():
            out = module.forward(*given) if norm.is_joint else module.forward(given[called])
        made = out if isinstance(out, Tensor) else out[called]
        gain = made / given[called] * given[called].square().mean(-1, keepdim=True).sqrt()
        return wide(gain.flatten(0, 2)[self._index(head, channel)])

    def turned_back(self, channel: Channel, x: Heads) -> Heads:
        """What stood before positions turned it."""
        return x if channel == "v" else self.turning(x.shape[1])(x, 0, -1)

    def turning(self, n_pos: int) -> Turning:
        """R, for so many positions.

        Raises:
            ValueError: positions do something else than turn pairs of channels.
        """
        if self._turning is None or len(self._turning.by) < n_pos:
            self._turning = self._measured_turning(max(n_pos, 64))
        return self._turning

    def _measured_turning(self, n_pos: int) -> Turning:
        n_pos = min(n_pos, self.model.n_ctx)
        generator = torch.Generator().manual_seed(1)
        vectors = torch.randn(4, 1, 1, self.model.plan.d_model, generator=generator)
        apart = self.reach + BEYOND + 1  # so far apart that no position sees another's
        phases = torch.arange(n_pos)[None] % apart == torch.arange(apart)[:, None]
        n = (vectors.to(self._zeros(1, 1)) * phases[None, ..., None].to(self._device)).flatten(0, 1)
        rows = phases.long().argmax(0)
        moved: dict[Channel, Tensor] = {}
        shown, still = self.run(n), self._nothing(n_pos)
        for channel in ("q", "k"):
            x = (shown[channel] - still[channel]).unflatten(0, (4, apart))
            x = x[:, rows.to(x.device), torch.arange(n_pos)]  # vector, pos, head, d_head
            moved[channel] = x.transpose(1, 2).flatten(0, 1).double()
        # Both at once: a channel in which keys are zero may be one in which queries are not.
        sizes = {name: x.abs().amax().clamp_min(1e-30) for name, x in moved.items()}
        turning = _fitted(torch.cat([x / sizes[name] for name, x in moved.items()]))
        if turning is None:
            raise ValueError(
                self._refusal(
                    "positions change its queries and keys in another way than by turning pairs of "
                    "channels, both alike"
                )
            )
        return turning

    @cached_property
    def turns(self) -> bool:
        """Whether the same n comes out differently at different positions that have all lags."""
        generator = torch.Generator().manual_seed(3)
        row = torch.randn(self.model.plan.d_model, generator=generator).to(self._zeros(1, 1))
        n_pos = min(self.reach + BEYOND + 8, self.model.n_ctx)
        keys = self.run(row.expand(1, n_pos, -1).contiguous())["k"][:, self.reach + BEYOND :]
        return float((keys - keys[:, :1]).abs().max()) > AGREES * float(keys.abs().max())

    def _index(self, head: int, channel: Channel) -> int:
        return head if channel == "q" else self.key_head(head)

    @property
    def _device(self) -> torch.device:
        return next(self.model.original_model.parameters()).device

    def _zeros(self, batch: int, n_pos: int) -> Tensor:
        like = next(self.model.original_model.parameters())
        return torch.zeros(
            batch, n_pos, self.model.plan.d_model, dtype=like.dtype, device=like.device
        )

    def _refusal(self, why: str) -> str:
        name = type(self.model.original_model).__name__
        return (
            f"{name}: what the heads of layer {self.layer} read cannot be told from its weights: "
            f"{why}. Head scores, ablation and patching need no weights"
        )

    def run(self, n: Float[Tensor, "batch pos d_model"]) -> dict[Channel, Heads]:
        """What the layer attends with, n being what its norm gives: before norms, as it is turned.

        Raises:
            ValueError: the layer did not attend.
        """
        found: dict[Channel, Heads] = {}
        tokens = torch.zeros(1, n.shape[1], dtype=torch.long, device=self._device)

        def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if layers.running != self.layer:
                return ATTENTION(query, key, value, *args, **kwargs)
            step = key.shape[1] // self.attends.key_heads
            ends: dict[Channel, Tensor] = {"q": query, "k": key[:, ::step], "v": value[:, ::step]}
            found.update({name: x.transpose(1, 2) for name, x in ends.items()})
            raise _Attends

        def put(module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> Tensor:
            return n.to(out.dtype)

        def enter(layer: int, stream: Tensor) -> Tensor:
            if layer != self.layer:
                return stream
            # Shapes may be read from the stream: it is as many sequences as n.
            return n if self.norm is None else torch.zeros_like(n)

        layers = Layers(self.model._layer_modules, enter)
        after: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(self.behind, _unchanged)
        if self.norm is not None:
            after[self.norm] = put
        model, plain = self.model, self.model.plan.gives_tensor
        lower = zip(model._layer_modules[: self.layer], plain, strict=False)
        below = [block for block, one in lower if one]  # what they would write is put aside anyhow
        with (
            apart(),
            undisturbed(model),
            torch.set_grad_enabled(n.requires_grad),
            model.ready(),
        ):
            try:
                with (
                    passed_over(below),
                    module_hooks(after=after),
                    layers.followed(),
                    Interception({ATTENTION: attend}, exact=n.dtype == torch.float64),
                ):
                    model.original_model(tokens, **model.arguments)
            except _Attends:
                return found
        raise ValueError(self._refusal("it did not attend"))


def _unchanged(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
    """A norm of queries or keys that lets pass what it is given."""
    given = tuple(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    return given[0] if isinstance(out, Tensor) else given


def _fitted(x: Float[Tensor, "vector pos d_head"]) -> Turning | None:
    """R, from the same vectors at every position; None if they are not turned pair by pair.

    Half of the channels with the other half (Llama), neighbours (GPT-J), or the first channels
    only, either way.
    """
    size = x.abs().amax().clamp_min(1e-30)
    still = (x - x[:, :1]).abs().amax((0, 1)) <= 1e-6 * size
    width = x.shape[-1]
    turned = [channel for channel in range(width) if not still[channel]]
    if not turned:
        by = torch.ones(x.shape[1], 0, dtype=torch.complex128, device=x.device)
        return Turning((), (), by)
    # What turns slowest may not show on few tokens: channels up to the last that does are paired.
    for n in dict.fromkeys((len(turned), turned[-1] + 1, 2 * ((turned[-1] + 2) // 2), width)):
        if n % 2 or n > width:
            continue
        for first, second in (
            (range(n // 2), range(n // 2, n)),
            (range(0, n, 2), range(1, n, 2)),
        ):
            pair = torch.complex(x[..., list(first)], x[..., list(second)])
            length = pair[:, :1].abs().square().sum(0)
            by = (pair * pair[:, :1].conj()).sum(0) / length
            by = torch.where(length > 0, by, torch.ones_like(by))  # nothing is there to turn
            turning = Turning(tuple(first), tuple(second), by)
            if _agrees(turning, x):
                return turning
    return None


def _agrees(turning: Turning, x: Float[Tensor, "vector pos d_head"]) -> bool:
    at_first = x[:, :1].expand_as(x).unsqueeze(-2)
    missed = turning(at_first, 0)[..., 0, :] - x
    return float(missed.abs().amax()) <= AGREES * float(x.abs().amax())
