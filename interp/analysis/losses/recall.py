"""Associative recall as behaviour: is the value of a key known that was read some time ago?"""

from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analysis.losses.in_context import in_batches
from interp.analysis.probes.recall import RecallTokens, ar_tokens, mqar_tokens
from interp.models.shapes import Tokens
from interp.results.result import Result, versions
from interp.results.sampling import Sampling
from interp.views import View, view

By = Literal["query", "distance"]
UNITS = {"accuracy": "fraction", "accuracy_among_values": "fraction", "loss": "nats"}


def mqar(
    model: Any,
    *,
    n_pairs: int = 8,
    n: int = 64,
    power: float = 0.01,
    by: By = "query",
    n_sequences: int = 50,
    seed: int = 0,
) -> Result:
    """Does the model recall every key's value? Multi-query associative recall.

    Measured on `[BOS] k1 v1 k2 v2 ...`, after which every key stands once more, with filler between
    (`mqar_tokens`). The prediction at a key's second occurrence should be its value.

    Args:
        model: one of ours, or a `TransformerBridge`.
        n_pairs: how many pairs, and queries, a sequence has.
        n: length of a sequence without its BOS.
        power: keys are asked for at slots i = 1, 2, ... with probability proportional to
            i^(power - 1); 1 is uniform.
        by: "query": the first that is asked in a sequence, the second, ... "distance": how many
            positions a key's two occurrences are apart, in powers of two.
        n_sequences: how many sequences to make.
        seed: of the sequences.

    Returns:
        A Result over "measure" and "query" (1 is the first) or "distance" (label 4 holds 4 to 7;
        NaN where no query of the sequences has such a distance). The measures:

        * `accuracy`: the share of queries whose value is the likeliest of all tokens; chance is
            1 / vocabulary.
        * `accuracy_among_values`: the share whose value is the likeliest of the sequence's values,
            half counted for two equal ones; chance is 1 / n_pairs, and so is all that a model gets
            that knows which values there are, and not whose they are. One that reads from a query's
            place which pair it is likely for can get a little more (0.3 of 4 pairs in 24 tokens),
            but not with `power=1`, where every order is as likely.
        * `loss`: of the value, in nats; chance is ln(vocabulary).

        Errors are over sequences, whose queries are not independent.

    Raises:
        ValueError: sizes that do not fit the vocabulary or the context, a weight that is NaN, or a
            bidirectional model, which predicts no next token.

    Source: Arora, Eyuboglu et al., Zoology (2023, arXiv 2312.04927).

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=128)
    >>> recall = mqar(model, n_pairs=4, n=32, n_sequences=6)
    >>> recall.axes, recall.labels["query"]
    (('measure', 'query'), (1, 2, 3, 4))
    >>> mqar(model, n_pairs=4, n=32, by="distance", n_sequences=6).labels["distance"]
    (2, 4, 8, 16)
    """
    if by not in get_args(By):
        raise ValueError(f"by={by!r} is not one of {', '.join(map(repr, get_args(By)))}")
    viewed = view(model)
    probe = mqar_tokens(
        n_pairs,
        n,
        d_vocab=viewed.d_vocab,
        power=power,
        bos=viewed.bos,
        exclude=viewed.special_tokens,
        n_sequences=n_sequences,
        n_ctx=viewed.n_ctx,
        seed=seed,
    )
    samples = _recalled(viewed, probe, "mqar").numpy()
    origin = {**_origin(viewed, probe), "power": power}
    if by == "query":
        return Result.from_samples(
            "mqar",
            samples,
            ("measure", "query"),
            labels={"measure": tuple(UNITS), "query": tuple(range(1, n_pairs + 1))},
            **_details(viewed, n_pairs, origin),
        )
    bins = [2**i for i in range(1, (n - 1).bit_length())]
    exponents = np.frexp(probe.distance.numpy())[1] - 1
    columns = [_of_bin(samples, exponents == i) for i in range(1, len(bins) + 1)]
    means, errors, counts = zip(*columns, strict=True)
    details = _details(viewed, n_pairs, {**origin, "n_queries": counts, "n_sequences": n_sequences})
    return Result(
        "mqar",
        np.stack(means, 1),
        ("measure", "distance"),
        labels={"measure": tuple(UNITS), "distance": bins},
        standard_error=np.stack(errors, 1),
        **details,
    )


def ar(
    model: Any,
    *,
    n_pairs: int = 8,
    n: int | None = None,
    n_sequences: int = 50,
    seed: int = 0,
) -> Result:
    """Does the model recall the value of one key? Associative recall, of each pair in turn.

    Measured on `[BOS] k1 v1 k2 v2 ... k`, k being the key of one of the pairs: the prediction there
    should be its value. Every sequence is asked for each of its pairs.

    Args:
        model: one of ours, or a `TransformerBridge`.
        n_pairs: how many pairs a sequence has.
        n: length of a sequence without its BOS, filled up between pairs and query; None: no filler.
        n_sequences: how many sequences to make.
        seed: of the sequences.

    Returns:
        A Result over "measure", which are those of `mqar`, and "distance": how many positions a
        pair's key and the query are apart. Errors are over sequences.

    Raises:
        ValueError: as `mqar`.

    Source: the task is that of Arora, Rathi et al., Mechanistic evaluation of Transformers and
    state space models (2025, arXiv 2505.15105), who put a divider before the query.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=128)
    >>> recall = ar(model, n_pairs=4, n_sequences=6)
    >>> recall.labels["distance"], recall.sel(measure="accuracy_among_values").chance.tolist()
    ((2, 4, 6, 8), [0.25, 0.25, 0.25, 0.25])
    """
    viewed = view(model)
    probe = ar_tokens(
        n_pairs,
        n,
        d_vocab=viewed.d_vocab,
        bos=viewed.bos,
        exclude=viewed.special_tokens,
        n_sequences=n_sequences,
        n_ctx=viewed.n_ctx,
        seed=seed,
    )
    rows = _recalled(viewed, probe, "ar")[:, :, 0]
    samples = rows.unflatten(0, (n_sequences, n_pairs)).transpose(1, 2).flip(2)
    distances = probe.distance[:n_pairs, 0].flip(0).tolist()
    return Result.from_samples(
        "ar",
        samples.numpy(),
        ("measure", "distance"),
        labels={"measure": tuple(UNITS), "distance": distances},
        **_details(viewed, n_pairs, _origin(viewed, probe)),
    )


def _recalled(viewed: View, probe: RecallTokens, name: str) -> Float[Tensor, "batch measure asked"]:
    """Every measure of every query, a batch of sequences at a time."""
    parts = in_batches(viewed, probe.tokens, name)
    sizes = [len(part) for part in parts]
    rest = (x.split(sizes) for x in (probe.query, probe.pair, probe.values))
    return torch.cat([_of_batch(viewed, *given) for given in zip(parts, *rest, strict=True)])


def _of_batch(
    viewed: View,
    tokens: Tokens,
    query: Int[Tensor, "batch asked"],
    pair: Int[Tensor, "batch asked"],
    values: Int[Tensor, "batch pair"],
) -> Float[Tensor, "batch measure asked"]:
    first = int(query.min())
    positions = range(first, int(query.max()) + 1)
    outputs, at = viewed.outputs(tokens, positions=positions), query - first
    targets = torch.zeros(len(tokens), len(positions), dtype=torch.int64)
    targets.scatter_(1, at, values.gather(1, pair))
    loss, hit = (x.double().cpu().gather(1, at) for x in outputs.losses_and_hits(targets))
    choices = values[:, None].expand(-1, len(positions), -1)
    logits = outputs.logits_of(choices).double().cpu()
    logits = logits.gather(1, at[:, :, None].expand(-1, -1, values.shape[1]))
    likeliest = (logits == logits.amax(-1, keepdim=True)).double()
    chosen = likeliest.gather(2, pair[:, :, None])[:, :, 0] / likeliest.sum(-1)
    return torch.stack([hit, chosen, loss], 1)


def _of_bin(
    samples: Float[np.ndarray, "batch measure asked"], chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean over some of the queries, its error over their sequences, and how many there are."""
    sequence, _ = chosen.nonzero()
    some = samples.swapaxes(1, 2)[chosen]
    if not len(some):
        return np.full(len(UNITS), np.nan), np.full(len(UNITS), np.nan), 0
    return *Sampling.of(sequence, len(some)).mean_and_error(some), len(some)


def _details(viewed: View, n_pairs: int, origin: dict[str, Any]) -> dict[str, Any]:
    chance = [[1 / viewed.d_vocab], [1 / n_pairs], [np.log(viewed.d_vocab)]]
    return {"chance": np.array(chance), "unit": UNITS, "provenance": origin}


def _origin(viewed: View, probe: RecallTokens) -> dict[str, Any]:
    return {
        "model": viewed.name,
        "n_pairs": probe.values.shape[1],
        "n": probe.tokens.shape[1] - probe.start,
        "bos": viewed.bos,
        **{part: f"{first} to {last}" for part, (first, last) in probe.parts.items()},
        "seed": probe.seed,
        "versions": versions(),
    }
