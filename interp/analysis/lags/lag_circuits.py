"""Scores and outputs of a head above a convolution, split over the lags that it reads.

`score(t, s) = Σ_ij x_{t-i} Q_i K_jᵀ x_{s-j}ᵀ / √d_head + constants`, and output
`Σ_s A(t, s) Σ_j x_{s-j} V_j W_O + constants`. The weights give one circuit per pair of lags; on a
sequence, with the norms frozen at its own scales, the split is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from transformer_lens import FactoredMatrix

from interp.analysis.circuits.head_maps import (
    HeadMaps,
    Route,
    by_layer,
    check_distance,
    head_maps,
    lag_names,
    refuse_unread,
)
from interp.analysis.circuits.reads import TOKENS_AT_ONCE, Reads, activations, read_heads
from interp.analysis.probes.probe import check_one_sequence, handed_in
from interp.models.description import Attending
from interp.models.linear import Channel
from interp.models.shapes import Heads, KeyMask, Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, Sampling
from interp.views import View, view

LONGEST = 1_024

BIAS = "bias of the score"
"""What an attention layer adds to its scores, by the distance say: a cell of its own."""


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
            writes. Where what heads write goes through taps, it is what is written at the query's
            own position; `outputs` has all.
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
        tokens: one sequence `[1 pos]` of at most 1,024 tokens, to split its scores and outputs; the
            mean scales of the weights' circuits then come from it.
        distance: with rotary positions the circuits depend on t - s: give them at this distance.
            On tokens every score has its own.

    Raises:
        TypeError: another library's model, whose convolutions cannot be read yet.
        ValueError: no such head, a head that reads no earlier token, several or too long
            sequences, or a distance without rotary positions.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> circuits = lag_circuits(model, "L1H3", torch.arange(6)[None])
    >>> circuits.qk[0, 1].shape, circuits.scores.labels["key_lag"][:2]
    (torch.Size([32, 32]), ('lag 0', 'lag 1'))
    """
    viewed = view(model)
    maps = head_maps(viewed, [head], past_mlps=tokens is not None)[head]
    check_reads_back(maps)
    check_distance(viewed, [maps], distance)
    if tokens is not None:
        also = ", or use lag_pair_shares for many"
        check_one_sequence(viewed, tokens, LONGEST, "scores are split", also)
    viewed.check_finite()
    captured = None
    if tokens is not None:
        names = [*maps.hooks, *maps.bias_hooks, maps.attending.pattern]
        captured = activations(viewed, tokens, names)
    queries, keys, values = read_heads([maps], tokens, captured=captured)[head].values()
    W_O, scale = maps.W_O, maps.attending.scale
    pairs = {
        (i, j): FactoredMatrix(maps.turned(query, distance) * scale, key.T)
        for i, query in enumerate(queries.maps)
        for j, key in enumerate(keys.maps)
    }
    ov = {j: FactoredMatrix(value, W_O) for j, value in enumerate(values.maps)}
    on_tokens = () if tokens is None or captured is None else _on_sequence(maps, tokens, captured)
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
        positions, a relative-position bias) as one more lag, for every head that reads an earlier
        token through its weights. An MLP between a convolution and the head is no map of the stream
        and a source of its own, "L0.mlp", beside the lags.

    Raises:
        TypeError: another library's model, whose convolutions cannot be read yet.
        ValueError: no head reads an earlier token through its weights; tokens that the model cannot
            read.

    Source: ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> shares = lag_pair_shares(model, torch.arange(20).reshape(2, 10))
    >>> shares.values.shape, shares.values.sum((1, 2)).round(3).tolist()
    ((4, 3, 3), [1.0, 1.0, 1.0, 1.0])
    """
    viewed = view(model)
    viewed.check_tokens(tokens)
    sampling = Sampling.of(groups, len(tokens))
    heads = heads_that_read_back(viewed)
    viewed.check_finite()
    some_at_once = tokens.split(TOKENS_AT_ONCE // tokens.shape[1] or 1)
    samples = torch.cat([_shares(viewed, heads, some) for some in some_at_once])
    others = *_sources(heads), "constants"
    query_lags, key_lags = ((*lag_names(_most(heads, c)), *others) for c in ("q", "k"))
    return Result.from_samples(
        "lag_pair_shares",
        samples.numpy(),
        ("head", "query_lag", "key_lag"),
        labels={"head": tuple(heads), "query_lag": query_lags, "key_lag": key_lags},
        unit="share of score variance",
        provenance=handed_in(viewed, tokens, sampling),
        groups=sampling,
    )


def heads_that_read_back(viewed: View, past_mlps: bool = True) -> dict[str, HeadMaps]:
    """Every head that reads an earlier token through its weights, MLPs on the way aside.

    Raises:
        TypeError: there are convolutions that cannot be read yet.
        ValueError: there is no such head.
    """
    refuse_unread(viewed)
    heads = head_maps(viewed, past_mlps=past_mlps)
    back = {label: head for label, head in heads.items() if head.reads_back}
    if not back:
        raise ValueError(
            f"{viewed.name} has {len(heads)} heads, and none reads an earlier token through "
            "its weights: none lies directly above a convolution of two or more lags that is "
            "linear with its gates and norms held, and no keys are smeared"
        )
    return back


def check_reads_back(head: HeadMaps) -> None:
    """Refuse a head that reads the current token only: there is nothing to split.

    Raises:
        TypeError: there are convolutions that cannot be read yet.
        ValueError: neither a convolution directly below it nor smeared keys.
    """
    if head.reads_back:
        return
    refuse_unread(head.viewed)
    convolved = {*head.viewed.lags, *filter(head.viewed.taps, range(head.viewed.n_layers))}
    convs = sorted(layer for layer in convolved if layer < head.source)
    why = (
        f"the convolution in layer {convs[-1]}, or what lies between the two, is not linear with "
        "gates and norms held"
        if convs
        else "no convolution with two or more lags lies below it, and its keys are not smeared"
    )
    raise ValueError(f"{head.label} reads no earlier token through its weights: {why}")


@dataclass(frozen=True, eq=False)
class Split:
    """One head's queries, keys or values as the sum of `terms` over their third axis.

    `names` are "lag 0", "lag 1", ... and the parameters of the constants; there are `lags` of the
    former. Queries and keys are as they meet: after smearing and rotation.
    """

    names: tuple[str, ...]
    lags: int
    terms: Heads

    @classmethod
    def of(
        cls,
        way: Route,
        attending: Attending,
        captured: Mapping[str, Tensor],
        key_mask: KeyMask | None = None,
    ) -> "Split":
        """From the activations at `way.hooks`."""
        stream, frozen = captured[way.source], way.frozen(captured)
        lags = way.parts(stream, frozen, key_mask)
        constants = way.constants(stream.shape[1], frozen, key_mask)
        shown = [*lags, *(x.expand(len(stream), -1, -1) for x in constants.values())]
        terms = torch.stack(shown, dim=2)
        if way.end.channel != "v":
            terms = attending.turned(terms)
        names = (*lag_names(len(lags)), *constants)
        return cls(names, len(lags), terms)

    @property
    def total(self) -> Float[Tensor, "batch pos d_head"]:
        """The query, key or value itself."""
        return self.terms.sum(2)

    def gathered(self, lags: int, sources: Sequence[str]) -> "Split":
        """As many lags, then what each source adds, then all constants in one term.

        Those that there are not are zero.
        """
        named = dict(zip(self.names, self.terms.unbind(2), strict=True))
        nothing = torch.zeros_like(self.terms[:, :, 0])
        wanted = (*lag_names(lags), *sources)
        rest = [term for name, term in named.items() if name not in wanted]
        constants = sum(rest, start=nothing)
        terms = [*(named.get(name, nothing) for name in wanted), constants]
        return Split((*wanted, "constants"), lags, torch.stack(terms, dim=2))


def _most(heads: Mapping[str, HeadMaps], channel: Channel) -> int:
    """The largest number of lags that any head's queries, keys or values have."""
    return max(head.routes[channel].lags for head in heads.values())


def _sources(heads: Mapping[str, HeadMaps]) -> tuple[str, ...]:
    """What is added to the stream between the lags and any of these heads."""
    return tuple(dict.fromkeys(name for head in heads.values() for name in head.route("k").sources))


def _shares(
    viewed: View, heads: Mapping[str, HeadMaps], tokens: Tokens
) -> Float64[Tensor, "batch head query key"]:
    n_query, n_key, sources = _most(heads, "q"), _most(heads, "k"), _sources(heads)
    shares = []
    for layer, some in by_layer(heads.values()).items():  # its heads all read the same stream
        names = [name for head in some for name in (*head.hooks, *head.bias_hooks)]
        captured = activations(viewed, tokens, names)
        for head in some:
            q = Split.of(head.routes["q"], head.attending, captured).gathered(n_query, sources)
            k = Split.of(head.routes["k"], head.attending, captured).gathered(n_key, sources)
            bias = None
            if head.attending.bias is not None:
                bias = captured[head.attending.bias][:, head.index] / head.attending.scale
            shares.append(_shares_of(q, k, viewed.visible(layer, tokens.shape[1]), bias))
    return torch.stack(shares, dim=1).cpu()


def _shares_of(
    q: Split,
    k: Split,
    visible: Bool[Tensor, "query key"],
    bias: Float[Tensor, "batch query key"] | None,
) -> Float64[Tensor, "batch query_lag key_lag"]:
    scores = torch.einsum("bqd,bkd->bqk", q.total.double(), k.total.double())
    scores = scores if bias is None else scores + bias.double()
    visible = visible.to(scores.device)
    means = (scores * visible).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)
    # Deviations from each query's mean add up to 0, so the pairs need no mean of their own.
    deviations = (scores - means) * visible
    parts = torch.einsum("bqk,bqid,bkjd->bij", deviations, q.terms.double(), k.terms.double())
    if bias is not None:  # whatever is added to the scores is a constant of them
        parts[:, -1, -1] += (deviations * bias.double()).sum((1, 2))
    return parts / deviations.square().sum((1, 2))[:, None, None]


def _on_sequence(
    head: HeadMaps, tokens: Tokens, captured: Mapping[str, Tensor]
) -> tuple[Result, Result]:
    """The parts of every pair of terms in the scores, and of every value term in the output."""
    viewed, attending = head.viewed, head.attending
    q, k, v = (Split.of(way, attending, captured) for way in head.routes.values())
    scores = torch.einsum("qid,kjd->ijqk", q.terms[0], k.terms[0]) * attending.scale
    query_names, key_names = q.names, k.names
    if attending.bias is not None:
        scores = F.pad(scores, (0, 0, 0, 0, 0, 1, 0, 1))
        scores[-1, -1] = captured[attending.bias][0, head.index]
        query_names, key_names = (*q.names, BIAS), (*k.names, BIAS)
    hidden = ~viewed.visible(head.layer, tokens.shape[1]).to(scores.device)
    scores = scores.masked_fill(hidden, torch.nan)
    written = torch.einsum("qk,kjd->jqd", captured[attending.pattern][0, head.index], v.terms[0])
    outputs = head.written(written)
    positions, width = tuple(range(tokens.shape[1])), tuple(range(outputs.shape[-1]))
    origin = {
        **handed_in(viewed, tokens),
        "head": head.label,
        "source": head.routes["q"].source,
        "scales": "of this sequence",
        "words": viewed.words(tokens[0].tolist()),
    }
    return Result(
        "lag_scores",
        scores.double().cpu().numpy(),
        ("query_lag", "key_lag", "query", "key"),
        labels={
            "query_lag": query_names,
            "key_lag": key_names,
            "query": positions,
            "key": positions,
        },
        unit="score",
        provenance=origin,
    ), Result(
        "lag_outputs",
        outputs.double().cpu().numpy(),
        ("value_lag", "query", "d_model"),
        labels={"value_lag": v.names, "query": positions, "d_model": width},
        provenance=origin,
    )
