"""Which token at the query is looked for as which token at the key, head by head?"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.diagonal_preference import Matches, Rows, matches
from interp.analysis.circuits.reads import HeadReads, Reads, all_reads
from interp.analysis.circuits.routes import at_distance, check_distance, ours, place_of, turn_at
from interp.models import HookedSequenceModel
from interp.models.shapes import Tokens
from interp.results.result import Result, versions
from interp.views import view


def match_table(
    model: Any,
    *,
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    distance: int = 0,
) -> Result:
    """Which token at the query is looked for as which token at the key, head by head?

    The cell of query lag i and key lag j is `match[i, j]` of the circuit `W_E Q_i K_jᵀ W_Eᵀ`: by
    how many deviations a token's score with itself stands out among its scores with all tokens, on
    average over the vocabulary. Cell (0, 0) is a duplicate-token head's; an induction head above a
    convolution, or with smeared keys, matches at (0, 1): the current token with the token before
    the key.

    Args:
        model: an interp model.
        tokens: `[batch pos]` for the mean scales of the norms; default: those that the embedding
            implies.
        frequencies: how frequent each token is, for that; default: all alike.
        distance: with rotary positions the circuit depends on t - s; give it at this distance.

    Returns:
        A Result over "head", "query_lag", "key_lag" and "measure":

        * `match`;
        * `shuffled`: its deviation, around 0, over all shuffles of the vocabulary at the key;
        * `rotated`: its deviation, around 0, if the key's map read the embedding through a random
          (Haar) rotation. Random weights lie within this one (those of one lag twice, through the
          same convolution, within √2 of it), but not within the other, which is narrow where the
          vocabulary is large.

        NaN for a lag that a head does not have.

    Raises:
        TypeError: not an interp model.
        ValueError: no heads; a head whose stream holds no embedding; a head that reads what other
            layers wrote through a convolution and a norm, without tokens.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> match_table(model).sel(head="L1H0", measure="match").values.shape
    (2, 2)
    """
    model = ours(model, 'qk_circuit(model, "L1H3").diagonal_preference(), one head at a time')
    seen = view(model)
    if not seen.heads:
        raise ValueError(f"{seen.name} has no attention layer, so nothing is matched")
    check_distance(model, distance)
    seen.check_finite()
    read = all_reads(model, seen.head_labels, tokens, frequencies)
    for one in read.values():
        if why := embedding_is_hidden(model, one["q"]):
            raise ValueError(f"{one['q'].head}: {why}")
    rows = Rows.of(model.W_E)
    found = {head: head_matches(model, rows, one, distance) for head, one in read.items()}
    shape = [max(one[c].lags for one in read.values()) for c in ("q", "k")]
    values = np.full((len(found), *shape, 3), np.nan)
    for cells, one in zip(values, found.values(), strict=True):
        n_query, n_key = one.value.shape
        cells[:n_query, :n_key] = torch.stack([one.value, one.shuffled, one.rotated], -1).numpy()
    return Result(
        "match_table",
        values,
        ("head", "query_lag", "key_lag", "measure"),
        labels={
            "head": tuple(found),
            "query_lag": tuple(f"lag {lag}" for lag in range(shape[0])),
            "key_lag": tuple(f"lag {lag}" for lag in range(shape[1])),
            "measure": ("match", "shuffled", "rotated"),
        },
        chance=np.array([0.0, np.nan, np.nan]),
        unit="deviations",
        provenance={
            "model": seen.name,
            "circuit": "W_E Q_i K_j^T W_E^T",
            "scales": next(iter(read.values()))["q"].scales_from,
            **at_distance(model, distance),
            "versions": versions(),
        },
    )


def diagonal_preference(
    model: Any,
    *,
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    distance: int = 0,
) -> Result:
    """How far does a head look for the query's own token, at the key itself?

    Cell (0, 0) of `match_table`, which says what the arguments are and what is refused. A
    duplicate-token head has it. `Circuit.diagonal_preference` asks the same of any one circuit.

    Returns:
        A Result over "head" and "measure": `match`, its two deviations by chance `shuffled` and
        `rotated`, and `z`, the match over the larger of these.

    Source: ours.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> diagonal_preference(model).sel(measure="z").labels["head"]
    ('L0H0', 'L0H1', 'L0H2', 'L0H3')
    """
    found = match_table(model, tokens=tokens, frequencies=frequencies, distance=distance)
    return _cell(found, "diagonal_preference", "lag 0")


def previous_token_match(
    model: Any,
    *,
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    distance: int = 0,
) -> Result:
    """How far does a head look for the query's own token just before the key, as induction needs?

    Cell (0, 1) of `match_table`, which says what the arguments are and what is refused.

    Returns:
        A Result over "head" and "measure", as `diagonal_preference` gives; NaN for a head whose
        keys read one token only.

    Raises:
        ValueError: no head's keys read the token before, by a convolution or by smeared keys. In a
            model of attention layers an earlier head brings it: ask `composition_scores`.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> previous_token_match(model).labels["measure"]
    ('match', 'shuffled', 'rotated', 'z')
    """
    found = match_table(model, tokens=tokens, frequencies=frequencies, distance=distance)
    if "lag 1" not in found.labels["key_lag"]:
        raise ValueError(
            f"{found.provenance['model']}: no head's keys read the token before, by a convolution "
            "or by smeared keys; where an earlier head brings it, ask composition_scores"
        )
    return _cell(found, "previous_token_match", "lag 1")


def _cell(table: Result, name: str, key_lag: str) -> Result:
    cell = table.sel(query_lag="lag 0", key_lag=key_lag)
    match, *nulls = cell.values.T
    return Result(
        name,
        np.stack([match, *nulls, match / np.maximum(*nulls)], axis=1),
        ("head", "measure"),
        labels={"head": cell.labels["head"], "measure": (*cell.labels["measure"], "z")},
        chance=np.array([0.0, np.nan, np.nan, 0.0]),
        unit="deviations",
        provenance=table.provenance,
    )


def head_matches(
    model: HookedSequenceModel, rows: Rows, read: HeadReads, distance: int = 0
) -> Matches:
    """The matches of every query lag with every key lag of one head."""
    layer, _ = place_of(model, read["q"].head)
    turn = turn_at(model.attn(layer), distance)
    return matches(rows, read["q"].maps @ turn, read["k"].maps)


def embedding_is_hidden(model: HookedSequenceModel, read: Reads) -> str:
    """Why the embedding is no part of the stream that is read; empty where it is."""
    if read.layer == 0:
        return ""
    if not model.config.residual:
        return f"without a residual stream, {read.source} does not hold the embedding"
    if model.config.norm_place == "post":
        return f"{read.source} is normalised (post-norm), and the embedding is no term of it"
    return ""
