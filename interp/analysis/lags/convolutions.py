"""The weights of convolutions, lag by lag, as they stand: the picture that the course drew."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.head_maps import convolutions, lag_maps, lag_names, refuse_unread
from interp.models.linear import LinearLayer
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


def conv_weights(model: Any, layer: int | None = None) -> Result:
    """What does a convolution apply to the token at each lag? Its weights, to look at.

    The gain and centring of the norm before it are folded in; without a norm, as in a checkpoint
    from `HookedConvAttn.from_course`, these are the weights as they are. The residual path, which
    carries the current token past the convolution, is not in them.

    Args:
        model: an interp model.
        layer: which convolution; needed where there are several.

    Returns:
        A Result over "lag", "input" and "output"; of a depthwise convolution, a number per channel,
        over "lag" and "channel", the centring left out.

    Raises:
        TypeError: another library's model, whose convolutions cannot be read yet.
        ValueError: no convolution, several and no layer, a layer that is none, or one between
            gates, whose maps depend on the tokens.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> conv_weights(model).values.shape
    (2, 32, 32)
    """
    viewed, conv = _chosen(model, layer)
    weights = lag_maps(viewed, conv)
    channels = tuple(range(weights.shape[-1]))
    axes, labels = ("lag", "input", "output"), {"input": channels, "output": channels}
    if conv.depthwise:
        axes, labels = ("lag", "channel"), {"channel": channels}
        weights = _per_channel(weights, conv)
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
        A Result over "conv" (labelled "L0"), "lag" and "measure"; NaN for lags that a convolution
        does not have, and for the direction of one that is zero.

    Raises:
        TypeError: another library's model, whose convolutions cannot be read yet.
        ValueError: no convolution, or one between gates, whose maps depend on the tokens.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> round(float(conv_lags(model).sel(conv="L0", lag="lag 0", measure="alignment")), 6)
    1.0
    """
    viewed = view(model)
    convs = _convolutions(viewed)
    viewed.check_finite()
    n_lags = max(conv.lags for conv in convs.values())
    values = np.full((len(convs), n_lags, len(MEASURES)), np.nan)
    for row, conv in zip(values, convs.values(), strict=True):
        weights = lag_maps(viewed, conv).double()
        for cell, weight in zip(row, weights, strict=False):
            found = _measures(weight, weights[0])
            cell[:] = [found[name] for name in MEASURES]
    return Result(
        "conv_lags",
        values,
        ("conv", "lag", "measure"),
        labels={
            "conv": tuple(f"L{layer}" for layer in convs),
            "lag": lag_names(n_lags),
            "measure": MEASURES,
        },
        unit=UNITS,
        provenance=_origin(viewed),
    )


def conv_singular_values(model: Any, layer: int | None = None) -> Result:
    """How many directions does each lag of a convolution carry, and how strongly?

    Args:
        model: an interp model.
        layer: which convolution; needed where there are several.

    Returns:
        A Result over "lag" and "rank": the singular values of what `conv_weights` shows, falling.

    Raises:
        TypeError: another library's model, whose convolutions cannot be read yet.
        ValueError: no convolution, several and no layer, a layer that is none, or one between
            gates, whose maps depend on the tokens.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> conv_singular_values(model).values.shape
    (2, 32)
    """
    viewed, conv = _chosen(model, layer)
    values = torch.linalg.svdvals(lag_maps(viewed, conv).double()).cpu().numpy()
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


def _per_channel(
    weights: Float[Tensor, "lag d_model d_model"], conv: LinearLayer
) -> Float[Tensor, "lag d_model"]:
    """Of a depthwise convolution, the centring left out: it takes 1 / d_model of each scalar."""
    scalars = weights.diagonal(dim1=1, dim2=2)
    centred = conv.norm is not None and conv.norm.centered and not conv.post_norm
    return scalars / (1 - 1 / weights.shape[-1]) if centred else scalars


def _convolutions(viewed: View) -> dict[int, LinearLayer]:
    found = convolutions(viewed)
    if not found:
        refuse_unread(viewed)
        raise ValueError(f"{viewed.name} has no convolution")
    return found


def _origin(viewed: View, **more: int) -> dict[str, Any]:
    return {"model": viewed.name, **more, "versions": versions()}


def _chosen(model: Any, layer: int | None) -> tuple[View, LinearLayer]:
    """The convolution that is asked for, of a model that may be asked."""
    viewed = view(model)
    convs = _convolutions(viewed)
    layers = tuple(convs)
    if layer is None and len(layers) > 1:
        raise ValueError(f"there are convolutions in layers {layers}; give one of them as layer")
    chosen = max(layers) if layer is None else layer
    if chosen not in convs:
        raise ValueError(f"layer {chosen} has no convolution; the conv layers are {layers}")
    viewed.check_finite()
    return viewed, convs[chosen]


def _measures(
    weight: Float[Tensor, "d_model d_model"], current: Float[Tensor, "d_model d_model"]
) -> Mapping[str, float]:
    squares = torch.linalg.svdvals(weight).square()
    identity = torch.eye(len(weight)).to(weight)
    return {
        "norm": float(squares.sum().sqrt()),
        "largest": float(squares.max().sqrt()),
        "directions": float(squares.sum().square() / squares.square().sum()),
        "alignment": _cosine(weight, current),
        "identity": _cosine(weight, identity),
    }


def _cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()))
