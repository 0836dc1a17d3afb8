"""Attribution along paths: where does what a head adds to the logit come from?"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from interp.analysis.attribution.logits import Attributions, over_sequences, scaled_direction
from interp.analysis.attribution.readout import Choice, Question
from interp.analysis.attribution.stream import Activations, StreamParts
from interp.analysis.circuits.head_maps import HeadMaps, Route, head_maps
from interp.analysis.probes.probe import handed_in
from interp.models.shapes import Stream, Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, Sampling
from interp.views import view

Values = Float[Tensor, "batch pos d_head"]


def path_attribution(
    model: Any,
    tokens: Tokens,
    heads: str | Sequence[str] | None = None,
    *,
    correct: Choice | None = None,
    incorrect: Choice | Literal["mean"] | None = None,
    positions: Sequence[int] | None = None,
    per_position: bool = True,
    groups: Groups | None = None,
) -> Result:
    """Along which paths does a head add to the logit: from which part, through which lag?

    A head writes what its values carry. With its attention pattern and every norm's scale frozen,
    they are a sum: over what was in the stream that enters the convolutions below the head (the
    embedding, positions, earlier heads, MLPs, biases), over the lags, and over the parameters that
    add a constant along the way. Each term is a path, and a head's paths add up to the head's
    attribution exactly. Between attention layers the paths are V-composition: what an earlier head
    writes and this one moves. Lag 0 counts in the residual path around the convolution.

    Args:
        model: an interp model.
        tokens: `[batch pos]`.
        heads: "L1H3", or several; default all.
        correct: as in `logit_attribution`.
        incorrect: as there.
        positions: as there.
        per_position: as there.
        groups: as there.

    Returns:
        A Result over "path" and "position", in logits: the mean over sequences. Paths are written
        "embed > lag 1 > L1H3", "L0H2 > L1H3" where no convolution lies directly below the head, and
        "blocks.0.conv.b_conv > L1H3" for a constant.

    Raises:
        ValueError: a model whose heads' biases are not known; no such head; a token or position
            that does not exist; a weight that is NaN.

    Source: the path expansion of Elhage et al. 2021; convolutions in it are ours.

    >>> import torch
    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16, positions="none")
    >>> tokens = torch.arange(20).reshape(2, 10)
    >>> paths = path_attribution(model, tokens, "L1H1", per_position=False)
    >>> paths.labels["path"][:2]
    ('embed > lag 0 > L1H1', 'embed > lag 1 > L1H1')
    """
    viewed = view(model)
    viewed.check_tokens(tokens)
    sampling = Sampling.of(groups, len(tokens))
    wanted = (heads,) if isinstance(heads, str) else tuple(heads or viewed.head_labels)
    maps = head_maps(viewed, wanted).values()
    _refuse_unknown(maps)
    question = Question.of(viewed, tokens, correct, incorrect, positions)
    stream = StreamParts(viewed)
    _refuse_replaced(maps, stream)
    viewed.check_finite()
    names = {name for head in maps for name in (*head.routes["v"].hooks, head.attending.pattern)}

    def attribute(rows: slice) -> Attributions:
        activations, _ = stream.run(tokens[rows], names)
        direction = scaled_direction(question, stream, activations, rows)
        return {
            path: (question.at(written) * direction).sum(-1)
            for head in maps
            for path, written in _paths(stream, head, activations)
        }

    origin = {
        **handed_in(viewed, tokens, sampling),
        "variant": question.described,
        "heads": list(wanted),
    }
    name, axis = "path_attribution", "path"
    return over_sequences(name, axis, attribute, question, origin, per_position, sampling)


def _refuse_unknown(heads: Iterable[HeadMaps]) -> None:
    for head in heads:
        if not head.routes["v"].end.has_constants:
            raise ValueError(
                f"{head.viewed.name}: which biases its heads have is not known here, so the paths "
                "into a head would not add up; ask logit_attribution (what a head adds in all) or "
                "path_patch (one path)"
            )


def _refuse_replaced(heads: Iterable[HeadMaps], stream: StreamParts) -> None:
    for head in heads:
        if not stream.residual and stream.end(head.layer) < stream.end() - 1:
            raise ValueError(
                f"{head.label}: this model has no residual stream, so a later layer replaces what "
                "the head writes, and it adds to no logit directly; only a last layer's heads do"
            )


def _paths(
    stream: StreamParts, head: HeadMaps, activations: Activations
) -> Iterator[tuple[str, Stream]]:
    """What each path writes to the last stream."""
    pattern = activations[head.attending.pattern][:, head.index]
    first, last = stream.end(head.layer), stream.end()
    for name, values in _values(stream, head.routes["v"], activations):
        written = head.written(pattern @ values)
        yield f"{name} > {head.label}", stream.carry(written, activations, first, last)


def _values(
    stream: StreamParts, way: Route, activations: Activations
) -> Iterator[tuple[str, Values]]:
    """The head's values as a sum over where they come from."""
    frozen, n_pos = way.frozen(activations), activations["hook_embed"].shape[1]
    for source, part in stream.parts(activations, before=way.layer):
        for lag, values in enumerate(way.parts(part, frozen)):
            yield (f"{source} > lag {lag}" if way.lags > 1 else source), values
    for parameter, values in way.constants(n_pos, frozen).items():
        yield parameter, values.expand(len(activations["hook_embed"]), -1, -1)
