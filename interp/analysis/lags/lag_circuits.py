"""Scores and outputs of a head above a convolution, split over the lags that it reads.

`score(t, s) = Σ_ij x_{t-i} Q_i K_jᵀ x_{s-j}ᵀ / √d_head + constants`, and output
`Σ_s A(t, s) Σ_j x_{s-j} V_j W_O + constants`. The weights give one circuit per pair of lags; on a
sequence, with the norms frozen at its own scales, the split is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from transformer_lens import FactoredMatrix

from interp.analysis.circuits.frozen_factors import TOKENS_AT_ONCE, hear, mean_scales, names_for
from interp.analysis.circuits.reads import Reads, reads
from interp.analysis.circuits.routes import Channel, Route, ours, place_of, rotation
from interp.analysis.lags.lag_terms import Split, check_reads_back, routes
from interp.analysis.probes.probe import handed_in
from interp.models import HookedSequenceModel
from interp.models.linear import wide
from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, Sampling
from interp.views import view

LONGEST = 256


@dataclass(frozen=True, eq=False)
class LagCircuits:
    """One head's circuits: one per pair of a query lag and a key lag, and one per value lag.

    Attributes:
        head: "L1H3".
        distance: from key to query, for which `qk` holds; without rotary positions it does not
            matter.
        queries: what the head's queries read, with the constants by name.
        keys: what its keys read.
        values: what its values read.
        qk: `qk[i, j]` [d_model d_model] is Q_i R K_jᵀ / √d_head, R being the rotation over
            `distance`: `x_{t-i} qk[i, j] x_{s-j}ᵀ` is this pair's part of the score.
        ov: `ov[j]` [d_model d_model] is V_j W_O: what the token at lag j of an attended position
            writes.
        scores: on given tokens, the part of every pair in every score, over "query_lag",
            "key_lag", "query" and "key". Constants stand beside the lags under the names of their
            parameters. All pairs add up to the model's scores; NaN where a query may not look.
        outputs: on given tokens, the part of every value lag in what the head writes, over
            "value_lag", "query" and "d_model", the pattern frozen.
    """

    head: str
    distance: int
    queries: Reads
    keys: Reads
    values: Reads
    qk: Mapping[tuple[int, int], FactoredMatrix]
    ov: Mapping[int, FactoredMatrix]
    scores: Result | None = None
    outputs: Result | None = None


def lag_circuits(
    model: Any, head: str, tokens: Tokens | None = None, *, distance: int = 0
) -> LagCircuits:
    """Which token before the query meets which token before the key, and what do values carry?

    For a head directly above one or several convolutions, or with smeared keys. Norms and gains,
    the residual path and the convolutions' biases are in it.

    Args:
        model: an interp model.
        head: "L1H3".
        tokens: one sequence `[1 pos]` of at most 256 tokens, to split its scores and outputs; the
            mean scales of the weights' circuits then come from it.
        distance: with rotary positions the circuits depend on t - s: give them at this distance.
            On tokens every score has its own.

    Raises:
        TypeError: not an interp model.
        ValueError: no such head, a head that reads no earlier token, several or too long
            sequences, or a distance without rotary positions.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> circuits = lag_circuits(model, "L1H3", torch.arange(6)[None])
    >>> circuits.qk[0, 1].shape, circuits.scores.labels["key_lag"][:2]
    (torch.Size([32, 32]), ('lag 0', 'lag 1'))
    """
    model = ours(model)
    layer, index = place_of(model, head)
    ways, attn = routes(model, head), model.attn(layer)
    check_reads_back(model, ways)
    turn = rotation(attn, distance) * attn.scale
    if tokens is not None:
        _check_one_sequence(model, tokens)
    view(model).check_finite()
    scales = mean_scales(model, ways["q"], tokens, None)
    queries, keys, values = (reads(model, head, channel, scales=scales) for channel in ways)
    W_O = wide(attn.W_O[index])
    pairs = {
        (i, j): FactoredMatrix(query @ turn, key.T)
        for i, query in enumerate(queries.maps)
        for j, key in enumerate(keys.maps)
    }
    ov = {j: FactoredMatrix(value, W_O) for j, value in enumerate(values.maps)}
    on_tokens = () if tokens is None else _on_sequence(model, ways, tokens)
    return LagCircuits(head, distance, queries, keys, values, pairs, ov, *on_tokens)


def lag_pair_shares(model: Any, tokens: Tokens, *, groups: Groups | None = None) -> Result:
    """Through which pair of lags do each head's scores come about?

    A head chooses among keys by how their scores differ. This is the part of every pair of terms in
    those differences: the covariance of its scores with all scores over the keys that a query sees,
    divided by their variance. Parts add up to 1 and can be negative, where a pair works against
    the others.

    Args:
        model: an interp model.
        tokens: `[batch pos]` of text, or of repeated random tokens to see an induction head at its
            work.
        groups: which text each sequence is from, as in `loss_by_position`.

    Returns:
        A Result over "head", "query_lag" and "key_lag", with the constants (biases, shortformer
        positions) as one more lag, for every head that reads an earlier token through its weights.

    Raises:
        TypeError: not an interp model.
        ValueError: no head reads an earlier token through its weights; tokens that the model cannot
            read.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> shares = lag_pair_shares(model, torch.arange(20).reshape(2, 10))
    >>> shares.values.shape, shares.values.sum((1, 2)).round(3).tolist()
    ((4, 3, 3), [1.0, 1.0, 1.0, 1.0])
    """
    model = ours(model)
    seen = view(model)
    seen.check_tokens(tokens)
    sampling = Sampling.of(groups, len(tokens))
    ways = heads_that_read_back(model)
    seen.check_finite()
    samples = torch.cat(
        [
            _shares(model, ways, some)
            for some in tokens.split(TOKENS_AT_ONCE // tokens.shape[1] or 1)
        ]
    )
    query_lags, key_lags = (
        (*(f"lag {lag}" for lag in range(_most(ways, channel))), "constants")
        for channel in ("q", "k")
    )
    return Result.from_samples(
        "lag_pair_shares",
        samples.numpy(),
        ("head", "query_lag", "key_lag"),
        labels={"head": tuple(ways), "query_lag": query_lags, "key_lag": key_lags},
        unit="share of score variance",
        provenance=handed_in(seen, tokens, sampling),
        groups=sampling,
    )


def heads_that_read_back(model: HookedSequenceModel) -> dict[str, dict[Channel, Route]]:
    """Every head that reads an earlier token through its weights, and its three ways.

    Raises:
        ValueError: there is none.
    """
    heads = view(model).head_labels
    ways = {head: routes(model, head) for head in heads}
    back = {head: way for head, way in ways.items() if any(w.lags > 1 for w in way.values())}
    if not back:
        raise ValueError(
            f"{view(model).name} has {len(heads)} heads, and none reads an earlier token through "
            "its weights: none lies directly above a convolution of two or more lags, and no keys "
            "are smeared"
        )
    return back


def _most(ways: Mapping[str, Mapping[Channel, Route]], channel: Channel) -> int:
    """The largest number of lags that any head's queries, keys or values have."""
    return max(way[channel].lags for way in ways.values())


def _shares(
    model: HookedSequenceModel, ways: Mapping[str, Mapping[Channel, Route]], tokens: Tokens
) -> Float64[Tensor, "batch head query key"]:
    n_query, n_key = _most(ways, "q"), _most(ways, "k")
    heard: dict[int, dict[str, Tensor]] = {}
    shares = []
    for head, way in ways.items():
        layer, _ = place_of(model, head)
        if layer not in heard:  # its heads all read the same stream
            heard[layer] = hear(model, tokens, names_for(way["q"]), stop=layer + 1)
        attn = model.attn(layer)
        q = Split.of(way["q"], attn, heard[layer]).gathered(n_query)
        k = Split.of(way["k"], attn, heard[layer]).gathered(n_key)
        shares.append(_shares_of(q, k, attn.causal))
    return torch.stack(shares, dim=1).cpu()


def _shares_of(q: Split, k: Split, causal: bool) -> Float64[Tensor, "batch query key"]:
    scores = torch.einsum("bqd,bkd->bqk", q.total.double(), k.total.double())
    visible = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
    visible = visible.tril() if causal else visible
    means = (scores * visible).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)
    # Deviations from each query's mean add up to 0, so the pairs need no mean of their own.
    deviations = (scores - means) * visible
    parts = torch.einsum("bqk,bqid,bkjd->bij", deviations, q.terms.double(), k.terms.double())
    return parts / deviations.square().sum((1, 2))[:, None, None]


def _check_one_sequence(model: HookedSequenceModel, tokens: Tokens) -> None:
    view(model).check_tokens(tokens, at_least=1)
    if tokens.shape[0] != 1 or tokens.shape[1] > LONGEST:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}, but scores are split on one sequence of at "
            f"most {LONGEST} tokens; give tokens[:1, :{LONGEST}], or use lag_pair_shares for many"
        )


def _on_sequence(
    model: HookedSequenceModel, ways: Mapping[Channel, Route], tokens: Tokens
) -> tuple[Result, Result]:
    """The parts of every pair of terms in the scores, and of every value term in the output."""
    head = ways["q"].head
    layer, index = place_of(model, head)
    attn, pattern = model.attn(layer), f"blocks.{layer}.attn.hook_pattern"
    heard = hear(model, tokens, [*names_for(ways["q"]), pattern], stop=layer + 1)
    q, k, v = (Split.of(way, attn, heard) for way in ways.values())
    scores = torch.einsum("qid,kjd->ijqk", q.terms[0], k.terms[0]) * attn.scale
    if attn.causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, torch.nan)
    written = torch.einsum("qk,kjd->jqd", heard[pattern][0, index], v.terms[0])
    outputs = written @ wide(attn.W_O[index])
    positions, width = tuple(range(tokens.shape[1])), tuple(range(outputs.shape[-1]))
    origin = {
        **handed_in(view(model), tokens),
        "head": head,
        "source": ways["q"].source,
        "scales": "of this sequence",
        "words": view(model).words(tokens[0].tolist()),
    }
    return Result(
        "lag_scores",
        scores.double().cpu().numpy(),
        ("query_lag", "key_lag", "query", "key"),
        labels={"query_lag": q.names, "key_lag": k.names, "query": positions, "key": positions},
        unit="score",
        provenance=origin,
    ), Result(
        "lag_outputs",
        outputs.double().cpu().numpy(),
        ("value_lag", "query", "d_model"),
        labels={
            "value_lag": v.names,
            "query": positions,
            "d_model": width,
        },
        provenance=origin,
    )
