"""The weights of convolutions, lag by lag, as they stand: the picture that the course drew."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.routes import linear_layer, ours
from interp.models import HookedSequenceModel
from interp.models.linear import stay, wide
from interp.results.result import Result, versions
from interp.views import view

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
        TypeError: not an interp model.
        ValueError: no convolution, several and no layer, or a layer that is none.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> conv_weights(model).values.shape
    (2, 32, 32)
    """
    model = ours(model)
    layer = _chosen(model, layer)
    view(model).check_finite()
    channels = tuple(range(model.config.d_model))
    axes, labels = ("lag", "input", "output"), {"input": channels, "output": channels}
    weights = folded_weights(model, layer)
    if model.conv(layer).depthwise:
        axes, labels = ("lag", "channel"), {"channel": channels}
        weights = _per_channel(model, layer)
    return Result(
        "conv_weights",
        weights.double().cpu().numpy(),
        axes,
        labels={"lag": tuple(range(len(weights))), **labels},
        provenance={"model": view(model).name, "layer": layer, "versions": versions()},
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
        TypeError: not an interp model.
        ValueError: no convolution.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> round(float(conv_lags(model).sel(conv="L0", lag="lag 0", measure="alignment")), 6)
    1.0
    """
    model = ours(model)
    if not model.conv_layers:
        raise ValueError(f"{view(model).name} has no convolution")
    view(model).check_finite()
    n_lags = max(model.conv(layer).lags for layer in model.conv_layers)
    values = np.full((len(model.conv_layers), n_lags, len(MEASURES)), np.nan)
    for row, layer in zip(values, model.conv_layers, strict=True):
        weights = folded_weights(model, layer).double()
        for cell, weight in zip(row, weights, strict=False):
            found = _measures(weight, weights[0])
            cell[:] = [found[name] for name in MEASURES]
    return Result(
        "conv_lags",
        values,
        ("conv", "lag", "measure"),
        labels={
            "conv": tuple(f"L{layer}" for layer in model.conv_layers),
            "lag": tuple(f"lag {lag}" for lag in range(n_lags)),
            "measure": MEASURES,
        },
        unit=UNITS,
        provenance={"model": view(model).name, "versions": versions()},
    )


def conv_singular_values(model: Any, layer: int | None = None) -> Result:
    """How many directions does each lag of a convolution carry, and how strongly?

    Args:
        model: an interp model.
        layer: which convolution; needed where there are several.

    Returns:
        A Result over "lag" and "rank": the singular values of what `conv_weights` shows, falling.

    Raises:
        TypeError: not an interp model.
        ValueError: no convolution, several and no layer, or a layer that is none.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> conv_singular_values(model).values.shape
    (2, 32)
    """
    model = ours(model)
    layer = _chosen(model, layer)
    view(model).check_finite()
    values = torch.linalg.svdvals(folded_weights(model, layer).double()).cpu().numpy()
    return Result(
        "conv_singular_values",
        values,
        ("lag", "rank"),
        labels={
            "lag": tuple(f"lag {lag}" for lag in range(len(values))),
            "rank": tuple(range(1, values.shape[1] + 1)),
        },
        unit="singular value",
        provenance={"model": view(model).name, "layer": layer, "versions": versions()},
    )


def folded_weights(model: HookedSequenceModel, layer: int) -> Float[Tensor, "lag d_model d_model"]:
    """C diag(γ) W_conv of every lag; with post-norm or none, the weights as they are."""
    linear = linear_layer(model, layer)
    identity = torch.eye(model.config.d_model).to(wide(model.W_E))
    if linear.norm is not None and not linear.post_norm:
        identity = linear.norm(identity, 1.0)
    return torch.stack(list(linear.terms(identity, {}, stay)))


def _per_channel(model: HookedSequenceModel, layer: int) -> Float[Tensor, "lag d_model"]:
    linear = linear_layer(model, layer)
    identity = torch.eye(model.config.d_model).to(wide(model.W_E))
    scalars = torch.stack(list(linear.terms(identity, {}, stay))).diagonal(dim1=1, dim2=2)
    if linear.norm is None or linear.post_norm or linear.norm.gain is None:
        return scalars
    return scalars * linear.norm.gain


def _chosen(model: HookedSequenceModel, layer: int | None) -> int:
    layers = model.conv_layers
    if not layers:
        raise ValueError(f"{view(model).name} has no convolution")
    if layer is None and len(layers) > 1:
        raise ValueError(f"there are convolutions in layers {layers}; give one of them as layer")
    chosen = max(layers) if layer is None else layer
    model.conv(chosen)  # refuses a layer without one, naming those there are
    return chosen


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
