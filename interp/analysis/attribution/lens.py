"""The logit lens: what would the model predict if it stopped after this layer?"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analysis.attribution.readout import Choice, Question
from interp.analysis.losses.in_context import LOGITS_AT_ONCE
from interp.analysis.probes.probe import check_one_sequence, handed_in
from interp.models.shapes import Stream, Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, RunningMean, Sampling
from interp.views import View, keeping, undisturbed, view
from interp.views.outputs import at_positions, wide

MEASURES = {"loss": "nats", "rank": "tokens", "probability": "probability"}
LONGEST = 512


def logit_lens(
    model: Any,
    tokens: Tokens,
    *,
    correct: Choice | None = None,
    positions: Sequence[int] | None = None,
    per_position: bool = False,
    groups: Groups | None = None,
) -> Result:
    """How well is the correct token predicted after each layer, if the model stopped there?

    Each stream goes through the model's own last norm, with a scale of its own, and unembedding.
    What it says of early layers holds as far as they write in the last layer's terms.

    Args:
        model: one of ours, or a `TransformerBridge`.
        tokens: `[batch pos]`.
        correct: one token id, one per sequence, or one per position. Default: the next token.
        positions: where it is read; position t predicts token t + 1. Default: all.
        per_position: keep the positions apart instead of averaging over them.
        groups: which text each sequence is from, as in `loss_by_position`.

    Returns:
        A Result over "measure" and "layer" (and "position"): the mean over sequences of `loss` in
        nats, `rank` (how many tokens are likelier; 0 is the top) and `probability`. Layers are
        "embed", then "L0", "L1", ...; the last is what the model predicts. Chance is the uniform
        prediction, for the rank a random one.

    Raises:
        ValueError: a token or position that does not exist; a weight that is NaN; a bridge that
            does more to its logits than a norm and an unembedding.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> lens = logit_lens(model, torch.arange(20).reshape(2, 10))
    >>> lens.labels["layer"], lens.sel(measure="loss").values.shape
    (('embed', 'L0', 'L1'), (3,))
    """
    viewed = view(model)
    viewed.check_tokens(tokens)
    sampling = Sampling.of(groups, len(tokens))
    question = Question.of(viewed, tokens, correct, None, positions)
    viewed.check_finite()
    running = RunningMean(sampling)
    n_vocab = viewed.d_vocab
    at_once = max(1, LOGITS_AT_ONCE // (tokens.shape[1] * n_vocab))
    for start in range(0, len(tokens), at_once):
        rows = slice(start, start + at_once)
        targets = question.correct[rows]
        with undisturbed(viewed.model):
            layers = [
                _measured(logits, targets.to(logits.device))
                for logits in _lens(viewed, tokens[rows], question.positions)
            ]
        samples = torch.stack(layers, dim=2).cpu().numpy()  # batch measure layer asked
        running.add(samples if per_position else samples.mean(-1))
    where = {"position": tuple(question.positions)} if per_position else {}
    chance = np.array([np.log(n_vocab), (n_vocab - 1) / 2, 1 / n_vocab])
    return Result(
        "logit_lens",
        running.mean,
        ("measure", "layer", *where),
        labels={"measure": tuple(MEASURES), "layer": _names(viewed), **where},
        standard_error=running.standard_error,
        chance=chance.reshape(3, 1, *[1 for _ in where]),
        unit=MEASURES,
        provenance={**handed_in(viewed, tokens, sampling), "positions": question.where},
    )


def lens_tokens(model: Any, tokens: Tokens, k: int = 5) -> Result:
    """Which tokens would the model predict after each layer, at each position of one sequence?

    Args:
        model: one of ours, or a `TransformerBridge`.
        tokens: one sequence, `[1 pos]`, of at most 512 tokens.
        k: how many tokens to name, likeliest first.

    Returns:
        A Result over "layer", "position" and "choice" (1 is the likeliest): probabilities. The
        tokens themselves are in its provenance: `top` as ids and `top_words` as text, nested like
        the values. Its `plot()` is the table that the logit lens is known by.

    Raises:
        ValueError: several or too long sequences, a k that the vocabulary has not, a weight that is
            NaN, or a bridge that does more to its logits than a norm and an unembedding.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> lens_tokens(model, torch.arange(5)[None], k=2).values.shape
    (3, 5, 2)
    """
    viewed = view(model)
    check_one_sequence(viewed, tokens, LONGEST, "the table is")
    n_pos = tokens.shape[1]
    if not 1 <= k <= viewed.d_vocab:
        raise ValueError(f"k is {k}, but must be 1 to {viewed.d_vocab}, the size of the vocabulary")
    viewed.check_finite()
    with undisturbed(viewed.model):
        best = [
            wide(logits[0]).softmax(-1).topk(k) for logits in _lens(viewed, tokens, range(n_pos))
        ]
    top = [chosen.indices.tolist() for chosen in best]
    return Result(
        "lens_tokens",
        torch.stack([chosen.values.double() for chosen in best]).cpu().numpy(),
        ("layer", "position", "choice"),
        labels={
            "layer": _names(viewed),
            "position": tuple(range(n_pos)),
            "choice": tuple(range(1, k + 1)),
        },
        unit="probability",
        provenance={
            **handed_in(viewed, tokens),
            "words": viewed.words(tokens[0].tolist()),
            "top": top,
            "top_words": [[viewed.words(row) for row in layer] for layer in top],
        },
    )


def _names(viewed: View) -> tuple[str, ...]:
    return ("embed", *(f"L{layer}" for layer in range(viewed.n_layers)))


def _lens(
    viewed: View, tokens: Tokens, positions: Sequence[int]
) -> Iterator[Float[Tensor, "batch asked vocab"]]:
    """The logits after the embedding and after each layer, one layer's at a time."""
    streams = ["blocks.0.hook_resid_pre"]
    streams += [f"blocks.{layer}.hook_resid_post" for layer in range(viewed.n_layers)]
    kept: dict[str, Stream] = {}
    last = viewed.outputs(tokens, positions=positions, hooks=keeping(streams, kept)).logits()
    for name in streams[:-1]:
        yield viewed.unembed(at_positions(kept[name], positions))
    _check_readout(viewed, viewed.unembed(at_positions(kept[streams[-1]], positions)), last)
    yield last


def _check_readout(viewed: View, lens: Tensor, logits: Tensor) -> None:
    off = float((lens - logits).abs().max())
    if off > 1e-3 * float(logits.abs().max()):
        raise ValueError(
            f"{viewed.name} does more to its logits than its last norm and its unembedding: they "
            f"differ by up to {off:.2g} (capped logits, say). The lens would not end at what it "
            "predicts"
        )


def _measured(
    logits: Float[Tensor, "batch asked vocab"], targets: Int[Tensor, "batch asked"]
) -> Float[Tensor, "batch measure asked"]:
    logits = wide(logits)
    right = logits.gather(-1, targets[..., None])
    loss = (logits.logsumexp(-1) - right[..., 0]).double()
    rank = (logits > right).sum(-1).double()
    return torch.stack([loss, rank, (-loss).exp()], dim=1)
