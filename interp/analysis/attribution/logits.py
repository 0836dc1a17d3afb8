"""Direct logit attribution: the last residual stream is a sum, and so is every logit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.attribution.readout import Choice, Question
from interp.analysis.attribution.stream import Activations, By, StreamParts
from interp.analysis.heads.targets import TOKENS_AT_ONCE
from interp.analysis.probes.probe import handed_in
from interp.models.checks import require_choice
from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, RunningMean, Sampling
from interp.views import View, view
from interp.views.outputs import Outputs

Attributions = dict[str, Float[Tensor, "batch asked"]]
"""What each part adds, by its label, in some of the sequences and at the positions asked about."""

ROUNDING = 1e-4
"""How far a sum of parts may lie from the logit, relative to the parts, and still be rounding."""


def logit_attribution(
    model: Any,
    tokens: Tokens,
    *,
    correct: Choice | None = None,
    incorrect: Choice | Literal["mean"] | None = None,
    by: By = "heads",
    positions: Sequence[int] | None = None,
    per_position: bool = True,
    groups: Groups | None = None,
) -> Result:
    """What does each part of the model add to the logit of the correct token?

    Direct effects only: what a part writes to the stream and the unembedding reads, the last norm's
    scale frozen at its value. Gain and centring are folded in; offsets and biases are parts of
    their own, under their parameters' names. The parts add up to the logit. Nothing of the size of
    the vocabulary is computed, and no activation outlives its batch.

    Works with norms after the sublayers too (each part goes through the later norms, their scales
    frozen), and without a residual stream, where the last sublayer's parts are all there is.

    Args:
        model: one of ours, or a `TransformerBridge`.
        tokens: `[batch pos]`.
        correct: whose logit: one token id, one per sequence, or one per position. Default: the next
            token.
        incorrect: subtract this token's logit; "mean" subtracts the mean over the vocabulary, which
            no prediction depends on.
        by: "heads" for heads, conv lags and MLPs; "layers" for what each sublayer writes, its bias
            included.
        positions: where the logits are read; position t predicts token t + 1. Default: all.
        per_position: False averages each sequence over the positions, and the standard error is
            then that of this mean.
        groups: which text each sequence is from, as in `loss_by_position`.

    Returns:
        A Result over "part" and "position", in logits: the mean over sequences.
        Parts are written like the units of `ablate` and `patch`: "embed", "pos_embed",
        "L1H3", "L0.lag1", "L1.mlp", and whatever else writes to the stream of a bridge, such as
        "L0.conv", "L3.mamba", "L2.linear_attn"; biases are "blocks.1.attn.b_O", "ln_final.b",
        "unembed.b_U".

    Raises:
        ValueError: a token or position that does not exist; a weight that is NaN; a bridge some of
            whose layers add more to the stream than its sublayers' hook points show; one whose
            logits are no sum of such parts (capped logits, say).

    Source: Elhage et al. 2021; TransformerLens calls it `logit_attrs`.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> tokens = torch.arange(10)[None]
    >>> parts = logit_attribution(model, tokens, correct=7)
    >>> total = torch.tensor(parts.values).sum(0).float()
    >>> torch.allclose(total, model(tokens)[0, :, 7], atol=1e-5)
    True
    """
    require_choice("by", by, By)
    viewed = view(model)
    viewed.check_tokens(tokens)
    sampling = Sampling.of(groups, len(tokens))
    question = Question.of(viewed, tokens, correct, incorrect, positions)
    viewed.check_finite()
    stream = StreamParts(viewed, by)

    def attribute(rows: slice) -> Attributions:
        activations, outputs = stream.run(tokens[rows])
        direction = scaled_direction(question, stream, activations, rows)
        parts = {
            label: (question.at(part) * direction).sum(-1)
            for label, part in stream.parts(activations)
        }
        parts |= question.biases(rows)
        _check_sum(viewed, question, outputs, parts, rows, by)
        return parts

    origin = {**handed_in(viewed, tokens, sampling), "variant": question.described, "by": by}
    name, axis = "logit_attribution", "part"
    return over_sequences(name, axis, attribute, question, origin, per_position, sampling)


def scaled_direction(
    question: Question, stream: StreamParts, activations: Activations, rows: slice
) -> Float[Tensor, "batch asked d_model"]:
    """What the stream itself is multiplied with: the last norm's scale is in it."""
    direction, scale = question.directions(rows), stream.scale(activations)
    return direction if scale is None else direction / question.at(scale)


def over_sequences(
    name: str,
    axis: str,
    attribute: Callable[[slice], Attributions],
    question: Question,
    origin: Mapping[str, Any],
    per_position: bool,
    sampling: Sampling,
) -> Result:
    """The mean over sequences of what `attribute` gives for some of them, a few at a time."""
    running, labels = RunningMean(sampling), ()
    n_pos, n_sequences = int(origin["length"]), len(question.correct)
    at_once = max(1, TOKENS_AT_ONCE // n_pos)
    for start in range(0, n_sequences, at_once):
        with torch.no_grad():
            parts = attribute(slice(start, start + at_once))
        labels = tuple(parts)
        samples = torch.stack([part.double() for part in parts.values()], dim=1).cpu().numpy()
        running.add(samples if per_position else samples.mean(-1))
    where = {"position": tuple(question.positions)} if per_position else {}
    return Result(
        name,
        running.mean,
        (axis, *where),
        labels={axis: labels, **where},
        standard_error=running.standard_error,
        unit="logit",
        provenance={**origin, "positions": question.where},
    )


def _check_sum(
    viewed: View, question: Question, outputs: Outputs, parts: Attributions, rows: slice, by: By
) -> None:
    """A model may do more to its logits than a norm and an unembedding."""
    total = torch.stack(list(parts.values()))
    off = (total.sum(0) - question.answer(outputs, rows)).abs()
    # A model in 16 bits has rounded its logits, and what it unembeds.
    step = torch.finfo(question.readout.W_U.dtype).eps
    if bool((off <= max(ROUNDING, 4 * step) * total.abs().sum(0)).all()):
        return
    remedy = "try by='layers', or a model without" if by == "heads" else "give a model without"
    raise ValueError(
        f"{viewed.name}: the parts miss the logit by up to {float(off.max()):.2g}, so something "
        f"else adds to it or bends it (capped or multiplied logits, say); {remedy}"
    )
