"""Frozen factors, norms' scales and gates: those of sequences, or means for the weights alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.routes import Route
from interp.models import HookedSequenceModel
from interp.models.linear import Constants, Factor, Frozen, FrozenNorm, later, stay
from interp.models.shapes import Tokens
from interp.views import undisturbed, view

TOKENS_AT_ONCE = 4_096


@dataclass(frozen=True)
class MeanScales:
    """The mean of every frozen factor, and where they come from."""

    scales: Frozen
    origin: str


def hear(
    model: HookedSequenceModel, tokens: Tokens, names: Iterable[str], stop: int
) -> dict[str, Tensor]:
    """The activations at these hook points; nothing above layer `stop` is computed."""
    heard: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        heard[hook.name] = activation.to(torch.promote_types(activation.dtype, torch.float32))

    with undisturbed(model):
        ears: list[Any] = [(name, keep) for name in dict.fromkeys(names)]
        model.run_with_hooks(tokens, fwd_hooks=ears, stop_at_layer=stop)
    return heard


def scales_of(route: Route, heard: Mapping[str, Tensor]) -> dict[str, Factor]:
    """A route's frozen factors, among what was captured."""
    return {factor.name: factor.of(heard[factor.hook]) for factor in route.factors}


def names_for(route: Route) -> list[str]:
    """What a route's parts and constants are made of: its source and its frozen factors."""
    return [route.source, *(factor.hook for factor in route.factors)]


def mean_scales(
    model: HookedSequenceModel,
    route: Route,
    tokens: Tokens | None,
    frequencies: Float[Tensor, " vocab"] | None,
) -> MeanScales:
    """Mean scales over tokens; without, what the embedding under unigram frequencies implies.

    Raises:
        ValueError: the stream is not the embedding, so that without tokens nothing is known of it.
    """
    if not route.factors:
        return MeanScales({}, "no norm")
    if tokens is not None:
        return MeanScales(_heard_scales(model, route, tokens), "tokens")
    if any(not conv.is_implied for conv in route.convs):
        raise ValueError(
            f"{route.head} reads through a gated convolution, whose gates depend on the tokens. "
            "Give tokens, and the maps are those at their mean"
        )
    if route.layer == 0:
        moments = embedding_moments(model, frequencies, positions=True)
        weights = "uniform" if frequencies is None else "given"
        return MeanScales(_implied(route, moments), f"embedding under {weights} frequencies")
    if route.convs:
        raise ValueError(
            f"{route.head} reads {route.source}, which is not the embedding: how the norms scale "
            "it cannot be told from the weights. Give tokens"
        )
    # Without a convolution there is one norm, and its scale a factor of everything.
    return MeanScales(
        {factor.name: 1.0 for factor in route.factors}, "1: a common factor, left out"
    )


def _heard_scales(model: HookedSequenceModel, route: Route, tokens: Tokens) -> Frozen:
    view(model).check_tokens(tokens, at_least=1)
    totals: dict[str, Factor] = {}
    names = [factor.hook for factor in route.factors]
    for some in tokens.split(max(1, TOKENS_AT_ONCE // tokens.shape[1])):
        heard = hear(model, some, names, stop=top(route) + 1)
        for factor in route.factors:
            totals[factor.name] = totals.get(factor.name, 0.0) + factor.total(heard[factor.hook])
    return {name: total / tokens.numel() for name, total in totals.items()}


def top(route: Route) -> int:
    """The layer of the head."""
    return route.layer + len(route.convs)


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a stream at one position; positions are taken as independent."""

    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]


def embedding_moments(
    model: HookedSequenceModel, frequencies: Float[Tensor, " vocab"] | None, positions: bool = False
) -> Moments:
    """Of the embedding under unigram frequencies (default: uniform).

    With `positions` the table of positions is counted in, where it enters the stream.
    """
    weights = check_frequencies(model, frequencies)
    moments = _moments(model.W_E.detach(), weights)
    if not positions or not model.positions_enter_stream or model.pos_embed is None:
        return moments
    table = model.W_pos.detach()
    where = _moments(table, torch.ones(len(table), device=table.device) / len(table))
    return Moments(moments.mean + where.mean, moments.covariance + where.covariance)


def check_frequencies(
    model: HookedSequenceModel, frequencies: Float[Tensor, " vocab"] | None
) -> Float[Tensor, " vocab"]:
    """Frequencies that add up to 1; uniform where none are given.

    Raises:
        ValueError: not one number of at least 0 per token, or none above 0.
    """
    d_vocab, device = model.config.d_vocab, model.W_E.device
    if frequencies is None:
        return torch.full((d_vocab,), 1 / d_vocab, dtype=torch.float64, device=device)
    given = torch.as_tensor(frequencies, dtype=torch.float64, device=device)
    if (
        given.shape != (d_vocab,)
        or not given.isfinite().all()
        or given.min() < 0
        or not given.any()
    ):
        raise ValueError(
            f"frequencies have shape {tuple(given.shape)}; give one finite number of at least 0 "
            f"for each of the {d_vocab} tokens, such as torch.bincount(tokens.flatten(), "
            f"minlength={d_vocab})"
        )
    return given / given.sum()


def _moments(rows: Float[Tensor, "vocab d_model"], weights: Float[Tensor, " vocab"]) -> Moments:
    weights = weights.double()
    width = rows.shape[1]
    mean = torch.zeros(width, dtype=torch.float64, device=rows.device)
    square = mean.new_zeros(width, width)
    chunks = zip(rows.split(TOKENS_AT_ONCE), weights.split(TOKENS_AT_ONCE), strict=True)
    for some, weight in chunks:
        wide = some.double()
        mean += weight @ wide
        square += (wide * weight[:, None]).T @ wide
    return Moments(mean, square - torch.outer(mean, mean))


def _implied(route: Route, moments: Moments) -> Frozen:
    """The root mean square of what each norm divides by, from the lowest to the highest."""
    scales: dict[str, Factor] = {}
    maps = torch.eye(len(moments.mean)).to(route.end.weight)[None]
    constants: Constants = {}
    n_pos = route.lags  # the last of these positions has all its lags, like every later one
    for conv in route.convs:
        if conv.norm is not None:
            seen = maps, constants
            if conv.post_norm:
                before = conv.written_constants(constants, n_pos, scales, later)
                seen = conv.written(maps, scales, stay), before
            scales[conv.norm.name] = _root_mean_square(conv.norm, moments, *seen)
        maps = conv.parts(maps, scales, stay)
        constants = conv.constants(constants, n_pos, scales, later)
    if (norm := route.end.norm) is not None:
        scales[norm.name] = _root_mean_square(norm, moments, maps, constants)
    return scales


def _root_mean_square(
    norm: FrozenNorm, moments: Moments, maps: Float[Tensor, "lag d_model d_model"], more: Constants
) -> float:
    maps = norm.center(maps.double())
    mean = moments.mean @ maps.sum(0)
    for constant in more.values():
        mean = mean + norm.center(constant[0, -1].double())
    variance = sum(((moments.covariance @ one) * one).sum(0) for one in maps)
    return float(((mean.square() + variance).mean() + norm.eps).sqrt())
