"""The weights of convolutions, lag by lag, as they stand: the picture that the course drew."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.head_maps import convolutions, lag_maps, lag_names, refuse_unread
from interp.models.linear import LinearLayer, wide
from interp.results.result import Result, versions
from interp.views import View, view

MEASURES = ("norm", "largest", "directions", "alignment", "identity")
UNITS = {
    "norm": "Frobenius norm",
    "largest": "singular value",
    "directions": "number",
    "alignment": "cosine",
    "identity": "cosine",
}


def conv_weights(model: Any, layer: int | str | None = None) -> Result:
    """What does a convolution apply to the token at each lag? Its weights, to look at.

    Of a convolution that reads the stream, the gain and centring of the norm before it are folded
    in; without a norm, as in a checkpoint from `HookedConvAttn.from_course`, these are the weights
    as they are. Of a depthwise convolution anywhere else (on keys or values, between gates, inside
    a mixer, on what attention or an MLP writes) these are its taps as they are. What goes past a
    convolution, such as the current token by a residual path, is not in them.

    Args:
        model: an interp model, or any other that can be viewed.
        layer: which convolution; needed where there are several: its layer, or its label where
            that has several, such as "L0.k".

    Returns:
        A Result over "lag", "input" and "output"; of a depthwise convolution, a number per channel,
        over "lag" and "channel", the centring left out.

    Raises:
        TypeError: a model with convolutions that cannot be read.
        ValueError: no convolution, several and no layer, or a layer that is none.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> conv_weights(model).values.shape
    (2, 32, 32)
    """
    viewed, conv = _chosen(model, layer)
    weights = conv.shown
    channels = tuple(range(weights.shape[-1]))
    axes, labels = ("lag", "input", "output"), {"input": channels, "output": channels}
    if weights.ndim == 2:
        axes, labels = ("lag", "channel"), {"channel": channels}
    return Result(
        "conv_weights",
        weights.double().cpu().numpy(),
        axes,
        labels={"lag": tuple(range(len(weights))), **labels},
        provenance=_origin(viewed, layer=conv.layer),
    )


def conv_lags(model: Any) -> Result:
    """How large is each lag of each convolution, and how does it lie to the current token's?

    Measured on the weights that `conv_weights` shows:

    * `norm`: the Frobenius norm, and `largest`: the largest singular value;
    * `directions`: how many singular values carry it, (Σσ²)² / Σσ⁴, from 1 to d_model;
    * `alignment`: the cosine with lag 0, as matrices. A convolution that smears the whole stream,
      without residual, has 1;
    * `identity`: the cosine with the identity: 1 hands the token on as it is.

    These see the convolution, not what a head makes of it: `detect_smeared_keys` does that.

    Args:
        model: an interp model.

    Returns:
        A Result over "conv" (labelled "L0", or "L0.k" by what it stands on), "lag" and "measure";
        NaN for lags that a convolution does not have, and for the direction of one that is zero.

    Raises:
        TypeError: a model with convolutions that cannot be read.
        ValueError: no convolution.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> round(float(conv_lags(model).sel(conv="L0", lag="lag 0", measure="alignment")), 6)
    1.0
    """
    viewed = view(model)
    convs = _kernels(viewed)
    viewed.check_finite()
    n_lags = max(len(conv.maps) for conv in convs.values())
    values = np.full((len(convs), n_lags, len(MEASURES)), np.nan)
    for row, conv in zip(values, convs.values(), strict=True):
        for cell, weight in zip(row, conv.maps.double(), strict=False):
            found = _measures(weight, conv.maps[0].double())
            cell[:] = [found[name] for name in MEASURES]
    return Result(
        "conv_lags",
        values,
        ("conv", "lag", "measure"),
        labels={
            "conv": tuple(convs),
            "lag": lag_names(n_lags),
            "measure": MEASURES,
        },
        unit=UNITS,
        provenance=_origin(viewed),
    )


def conv_singular_values(model: Any, layer: int | str | None = None) -> Result:
    """How many directions does each lag of a convolution carry, and how strongly?

    Args:
        model: an interp model, or any other that can be viewed.
        layer: which convolution, as in `conv_weights`.

    Returns:
        A Result over "lag" and "rank": the singular values of what `conv_weights` shows, falling.

    Raises:
        TypeError: a model with convolutions that cannot be read.
        ValueError: no convolution, several and no layer, or a layer that is none.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> conv_singular_values(model).values.shape
    (2, 32)
    """
    viewed, conv = _chosen(model, layer)
    values = _singular_values(conv.maps.double()).cpu().numpy()
    return Result(
        "conv_singular_values",
        values,
        ("lag", "rank"),
        labels={
            "lag": lag_names(len(values)),
            "rank": tuple(range(1, values.shape[1] + 1)),
        },
        unit="singular value",
        provenance=_origin(viewed, layer=conv.layer),
    )


@dataclass(frozen=True, eq=False)
class Kernel:
    """The weights of one convolution.

    Attributes:
        layer: its layer.
        maps: a matrix per lag, or the diagonal of one.
        shown: the same as a reader sees it: a number per channel of what is depthwise.
    """

    layer: int
    maps: Float[Tensor, "lag d_in d_out"] | Float[Tensor, "lag channel"]
    shown: Float[Tensor, "lag d_in d_out"] | Float[Tensor, "lag channel"]


def _per_channel(
    weights: Float[Tensor, "lag d_model d_model"], conv: LinearLayer
) -> Float[Tensor, "lag d_model"]:
    """Of a depthwise convolution, the centring left out: it takes 1 / d_model of each scalar."""
    scalars = weights.diagonal(dim1=1, dim2=2)
    centred = conv.norm is not None and conv.norm.centered and not conv.post_norm
    return scalars / (1 - 1 / weights.shape[-1]) if centred else scalars


def _kernels(viewed: View) -> dict[str, Kernel]:
    """Those of all convolutions, by label: "L0", or "L0.k" by what it stands on."""
    kernels: dict[str, Kernel] = {}
    linear = {n: conv for n, conv in convolutions(viewed).items() if conv.is_implied}
    for layer in range(viewed.n_layers):
        if layer in linear:
            maps = lag_maps(viewed, linear[layer])
            shown = _per_channel(maps, linear[layer]) if linear[layer].depthwise else maps
            kernels[f"L{layer}"] = Kernel(layer, maps, shown)
        for site, taps in viewed.taps(layer).items():
            label = ".".join(filter(None, (f"L{layer}", site)))
            kernels[label] = Kernel(layer, wide(taps), wide(taps))
    if not kernels:
        refuse_unread(viewed)
        raise ValueError(f"{viewed.name} has no convolution")
    return kernels


def _origin(viewed: View, **more: int) -> dict[str, Any]:
    return {"model": viewed.name, **more, "versions": versions()}


def _chosen(model: Any, layer: int | str | None) -> tuple[View, Kernel]:
    """The convolution that is asked for, of a model that may be asked."""
    viewed = view(model)
    kernels = _kernels(viewed)
    layers = tuple(dict.fromkeys(kernel.layer for kernel in kernels.values()))
    if layer is None and len(layers) > 1:
        raise ValueError(f"there are convolutions in layers {layers}; give one of them as layer")
    wanted = max(layers) if layer is None else layer
    chosen = [label for label, one in kernels.items() if wanted in (label, one.layer)]
    if not chosen:
        raise ValueError(
            f"layer {wanted} has no convolution; the conv layers are {layers}, and their "
            f"convolutions {', '.join(kernels)}"
        )
    if len(chosen) > 1:
        raise ValueError(
            f"layer {wanted} has several convolutions, {', '.join(chosen)}; give one of them"
        )
    viewed.check_finite()
    return viewed, kernels[chosen[0]]


def _singular_values(
    weights: Float[Tensor, "*_ d_in d_out"] | Float[Tensor, "*_ channel"],
) -> Tensor:
    """Of matrices, or of the diagonals of some, falling."""
    if weights.ndim == 3:
        return torch.linalg.svdvals(weights)
    return weights.abs().sort(dim=-1, descending=True).values


def _measures(weight: Tensor, current: Tensor) -> Mapping[str, float]:
    """Of a lag's map, or of the diagonal of one."""
    squares = _singular_values(weight[None])[0].square()
    identity = torch.eye(len(weight)).to(weight) if weight.ndim == 2 else torch.ones_like(weight)
    return {
        "norm": float(squares.sum().sqrt()),
        "largest": float(squares.max().sqrt()),
        "directions": float(squares.sum().square() / squares.square().sum()),
        "alignment": _cosine(weight, current),
        "identity": _cosine(weight, identity),
    }


def _cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()))
