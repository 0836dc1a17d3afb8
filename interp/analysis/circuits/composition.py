"""Composition: does a later head read what an earlier one wrote, more than chance would have it?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from interp.analysis.circuits.head_maps import (
    HeadMaps,
    at_distance,
    check_distance,
    check_pre_norm,
    convolutions,
    lag_maps,
    lag_names,
    layer_heads,
    padded,
    unmapped,
)
from interp.analysis.circuits.rotations import Baseline, Spectra, baseline, spectra
from interp.models.linear import Channel, LinearLayer
from interp.results.result import Result, versions
from interp.views import View, view

KINDS = ("Q", "K", "V")
MEASURES = ("score", "excess", "spread", "z", "p_corrected")
UNITS = ("ratio", "ratio", "ratio", "deviations", "probability")
FAMILY_WISE = 0.05
"""How often one pair of random maps, or more, may survive the correction."""


def composition_scores(
    model: Any, *, distance: int = 0, n_rotations: int = 200, seed: int = 0
) -> Result:
    """How strongly does each head read what each earlier head or conv lag writes?

    For an earlier head 1 and a later head 2, in the Frobenius norm (Elhage et al. 2021):

    * `Q`: |W_OV1 W_QK2| / (|W_OV1| |W_QK2|): what head 1 writes decides where head 2 looks from;
    * `K`: |W_OV1 W_QK2ᵀ| / (|W_OV1| |W_QK2|): ... decides what head 2 finds there;
    * `V`: |W_OV1 W_OV2| / (|W_OV1| |W_OV2|): ... is passed on.

    For a convolution, W_conv[j] without the residual path's identity stands in W_OV1's place. Only
    the direct way through the stream counts: what passes through an MLP, a convolution or a third
    head on the way does not, and what a convolution between gates writes has no map of its own
    (the provenance names it). Norms' gains and centring are folded in, their scales cancel, and
    biases are no part of it.

    A head that makes its queries, keys or values of several tokens (taps, smeared keys) reads
    through a map per lag, and each has a score of its own. Of the key at s, the map from what head
    1 wrote at s - j stands in `K`, its other side the queries as a whole:

        |W_OV1 K_j [Q_0 ... Q_n]ᵀ| / (|W_OV1| |K_j [Q_0 ... Q_n]ᵀ|),

    * K_j: W_K2 of lag j, smearing or taps folded in;
    * [Q_0 ... Q_n]: W_Q2 of all lags of the query beside each other, turned by the distance.

    In the same way the values' lags stand in `V`, and W_OV1 of a head 1 whose values have several
    lags is that of all of them beside each other: what it writes, whatever it was made of.

    The baseline is a random (Haar) rotation of the stream between the two actual maps, so that
    their spectra are kept. Where norms take the mean off, it turns what is left. So what is tested
    is whether the maps are arranged at all, and not whether they are a circuit: training arranges
    all of a model around a few directions. Of the 27 pairs of the bundled `attn-attn`, 22 survive,
    9 of them below chance, and in the suite's runs z lies beyond 3.3 for 12 to 21 pairs at steps 86
    to 232, before any head has an induction score above 0.02. Compare excesses, and cut the path.

    Args:
        model: one of ours, or a `TransformerBridge` whose attention weights can be read.
        distance: from query to key, for rotary positions, where W_QK depends on it.
        n_rotations: random rotations of the stream.
        seed: of the rotations.

    Returns:
        A Result over "measure", "kind" (Q, K, V), "source" ("L0H3", or "L0 lag 1" of a
        convolution) and "target" ("L1H3" for the current token, "L1H3 lag 1" for what it reads of
        the token before); NaN where the source is not below the target, or a map is zero or not
        there, as of keys that read one token only:

        * `score`: as above, from 0 to 1; its chance level is the baseline's mean;
        * `excess`: the score minus the baseline's mean;
        * `spread`: the baseline's deviation;
        * `z`: excess over spread, negative where a head reads less of what was written than it
          would by chance; NaN where no rotation changes the score;
        * `p_corrected`: how often chance would take any one of all pairs so far, up or down:
          `2 (1 + k) / (1 + n_rotations)`, where k rotations have a pair with as high a z, or as
          low a z if this one is low (Westfall and Young 1993). It is no smaller than
          `2 / (1 + n_rotations)`, however high the z. Under 0.05, a pair survives.

        The provenance counts the pairs, those that survive, and those that survive below chance.

    Raises:
        ValueError: nothing to compose, post-norm, weights that cannot be read or are NaN, a
            distance without rotary positions.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> found = composition_scores(model).sel(measure="score", kind="K")
    >>> found.labels["source"], found.labels["target"]
    (('L0 lag 0', 'L0 lag 1'), ('L1H0', 'L1H1', 'L1H2', 'L1H3'))
    """
    if n_rotations < 2:
        raise ValueError(f"n_rotations is {n_rotations}, but a spread needs at least 2")
    viewed = view(model)
    convs = convolutions(viewed)
    gated = [layer for layer, conv in convs.items() if not conv.is_implied]
    convs = {layer: conv for layer, conv in convs.items() if conv.is_implied}
    _check_layers(viewed, convs)
    firsts = [layer_heads(viewed, layer)[0] for layer in viewed.heads]
    check_distance(viewed, firsts, distance)
    viewed.check_finite()
    writers, readers = _sides(viewed, convs, distance)
    sources = [label for side in writers for label in side.labels]
    targets = [label for side in readers["Q"] for label in side.labels]
    columns = [side for kind in KINDS for side in readers[kind]]
    scores = _scores(viewed, writers, columns)
    left, right = (torch.cat([side.spectra for side in sides]) for sides in (writers, columns))
    chance = baseline(scores, left, right, n_rotations, seed)
    shape = (len(MEASURES), len(sources), len(KINDS), len(targets))
    survives = chance.p < FAMILY_WISE
    return Result(
        "composition_scores",
        _values(scores, chance).view(shape).transpose(1, 2).numpy(),
        ("measure", "kind", "source", "target"),
        labels={"measure": MEASURES, "kind": KINDS, "source": sources, "target": targets},
        chance=_chances(chance).view(shape).transpose(1, 2).numpy(),
        unit=dict(zip(MEASURES, UNITS, strict=True)),
        provenance={
            "model": viewed.name,
            "baseline": "Haar rotations between the two maps",
            "n_rotations": n_rotations,
            "seed": seed,
            **at_distance(firsts, distance),
            "n_pairs": int(scores.isfinite().sum()),
            "n_surviving": int(survives.sum()),
            "n_surviving_below": int((survives & (chance.z < 0)).sum()),
            "survives": f"p_corrected < {FAMILY_WISE} (most extreme pair of each rotation)",
            "smallest_p": 2 / (1 + n_rotations),
            "left_out": _left_out(gated, unmapped(firsts)),
            "versions": versions(),
        },
    )


def _left_out(gated: Sequence[int], late: Sequence[str]) -> str:
    between = [f"what L{layer} writes, by gates that depend on the tokens" for layer in gated]
    return "; ".join(["biases", "ways through MLPs, convolutions and third heads", *between, *late])


@dataclass(frozen=True, eq=False)
class _Side:
    """What the heads or lags of a layer write, or read in one way: `[head d_head d_model]`.

    The half of a map that is turned away from the stream is reduced to its triangular factor: it
    has the whole map's norms and products.
    """

    layer: int
    labels: tuple[str, ...]
    maps: Float[Tensor, "head d_head d_model"]
    spectra: Spectra


def _values(scores: Float64[Tensor, "_ _"], chance: Baseline) -> Float64[Tensor, "_ _ _"]:
    """The measures, in the order of MEASURES."""
    return torch.stack([scores, scores - chance.mean, chance.spread, chance.z, chance.p])


def _chances(chance: Baseline) -> Float64[Tensor, "_ _ _"]:
    """What rotations give on average."""
    zero = torch.zeros_like(chance.mean).where(chance.mean.isfinite(), torch.nan)
    unknown = torch.full_like(zero, torch.nan)
    return torch.stack([chance.mean, zero, unknown, zero, unknown])


def _reaches(viewed: View, source: int, target: int) -> bool:
    return source + 1 == target or (viewed.residual and source < target)


def _check_layers(viewed: View, convs: Mapping[int, LinearLayer]) -> None:
    below = (*viewed.heads, *convs)
    if not any(_reaches(viewed, source, target) for target in viewed.heads for source in below):
        raise ValueError(
            f"{viewed.name} has no head that reads what another head or a convolution wrote, "
            "so nothing composes"
        )


def _sides(
    viewed: View, convs: Mapping[int, LinearLayer], distance: int
) -> tuple[list[_Side], Mapping[str, list[_Side]]]:
    """Who writes, and who reads as Q, K and V, from the lowest layer to the highest."""
    writers, readers = [], {kind: [] for kind in KINDS}
    norm = layer_heads(viewed, min(viewed.heads))[0].sublayer.norm
    d_model = layer_heads(viewed, min(viewed.heads))[0].output.shape[-1]
    width = d_model - (norm is not None and norm.centered)
    for layer in sorted((*viewed.heads, *convs)):
        if layer in convs:
            check_pre_norm(viewed, viewed.sublayers(layer)[0])
            lags = lag_maps(viewed, convs[layer])
            lags = lags if (own := convs[layer].norm) is None else own.writing(lags)
            names = tuple(f"L{layer} lag {lag}" for lag in range(len(lags)))
            writers.append(_Side(layer, names, lags, spectra(lags, width)))
            continue
        heads = layer_heads(viewed, layer)
        check_pre_norm(viewed, heads[0].sublayer)
        names = tuple(head.label for head in heads)
        W_O = torch.stack([head.output for head in heads])
        W_V = _by_lag(heads, "v")
        if any(_reaches(viewed, writer.layer, layer) for writer in writers):
            for kind, maps in _reading(heads, W_V, W_O, distance).items():
                lags, flat = _names(names, maps), maps.flatten(0, 1)
                readers[kind].append(_Side(layer, lags, flat, spectra(flat, width)))
        maps = _triangle(W_V) @ W_O
        writers.append(_Side(layer, names, maps, spectra(maps, width)))
    highest = readers["Q"][-1].layer
    return [side for side in writers if side.layer < highest], readers


def _by_lag(
    heads: Sequence[HeadMaps], channel: Channel
) -> Float[Tensor, "lag head d_model d_head"]:
    ends = [head.attending.channel(head.index, channel) for head in heads]
    maps = [end.maps(None, {f.name: f.unknown for f in end.factors}) for end in ends]
    return torch.stack(padded(maps), dim=1)


def _reading(
    heads: Sequence[HeadMaps], W_V: Tensor, W_O: Tensor, distance: int
) -> dict[str, Float[Tensor, "head lag _ d_model"]]:
    """What each lag of a query, key or value reads; zeros where one has fewer lags than others."""
    W_Q, W_K = heads[0].turned(_by_lag(heads, "q"), distance), _by_lag(heads, "k")
    maps = {
        "Q": _triangle(W_K) @ W_Q.mT,
        "K": _triangle(W_Q) @ W_K.mT,
        "V": _triangle(W_O.mT[None]) @ W_V.mT,
    }
    n_lags = max(map(len, maps.values()))
    padding = {kind: (0,) * 7 + (n_lags - len(lags),) for kind, lags in maps.items()}
    return {kind: F.pad(lags, padding[kind]).transpose(0, 1) for kind, lags in maps.items()}


def _names(heads: Sequence[str], maps: Float[Tensor, "head lag _ d_model"]) -> tuple[str, ...]:
    """A head stands for what reads the current token, and its lags for what reads earlier ones."""
    lags = ("", *(f" {lag}" for lag in lag_names(maps.shape[1])[1:]))
    return tuple(head + lag for head in heads for lag in lags)


def _triangle(maps: Float[Tensor, "lag head d_model d_head"]) -> Float[Tensor, "head _ d_head"]:
    """The triangular factor of all lags beside each other."""
    return torch.linalg.qr(maps.transpose(0, 1).flatten(1, 2), mode="r").R


def _scores(viewed: View, writers: list[_Side], readers: list[_Side]) -> Float64[Tensor, "_ _"]:
    """The score of each writer with each reader; NaN where nothing gets from one to the other."""
    rows = []
    for writer in writers:
        blocks = []
        for reader in readers:
            block = torch.full((len(writer.labels), len(reader.labels)), torch.nan)
            if _reaches(viewed, writer.layer, reader.layer):
                products = torch.einsum("akm,blm->abkl", writer.maps, reader.maps)
                norms = (side.maps.flatten(1).norm(dim=-1) for side in (writer, reader))
                block = products.flatten(2).norm(dim=-1) / torch.outer(*norms)
            blocks.append(block.double().cpu())
        rows.append(torch.cat(blocks, dim=1))
    return torch.cat(rows)
