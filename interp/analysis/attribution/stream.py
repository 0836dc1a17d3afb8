"""The last residual stream as a sum: embeddings, lags, heads, MLPs and biases, one at a time.

With the norms' scales frozen at their cached values the sum is exact, in three kinds of model:

* pre-norm: the stream is the sum of everything that was written to it;
* post-norm: every norm stands on the stream itself, and each part goes through all later ones as
  `C diag(γ) / s`; the norms' offsets are parts of their own;
* without a residual stream: the last sublayer replaces what was there, and its parts are all.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from interp.models.description import Sublayer, Writer
from interp.models.linear import FrozenNorm, wide
from interp.models.shapes import Stream, Tokens
from interp.views import View, keeping
from interp.views.outputs import Outputs

By = Literal["heads", "layers"]
Activations = Mapping[str, Tensor]
Part = tuple[str, Float[Tensor, "... d_model"]]
"""A part's label and what it writes, which may be the same everywhere."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A write to the stream, and the norm that stands on the stream after it (post-norm)."""

    layer: int
    hooks: tuple[str, ...]
    parts: Callable[[Activations], Iterator[Part]]
    norm: FrozenNorm | None = None


class StreamParts:
    """What an attribution asks of a model: run it, and give the parts of its last stream.

    Args:
        viewed: the model.
        by: "heads" gives heads and lags one by one, "layers" each sublayer as a whole.

    Raises:
        ValueError: what the model writes does not add up; the message names the layer, and what is
            missing.
    """

    def __init__(self, viewed: View, by: By = "heads"):
        self.viewed, self.by = viewed, by
        self.residual, self.last_norm = viewed.residual, viewed.last_norm
        self._check()
        self.steps = (
            _whole(viewed.written_by(-1)),
            *(
                _step(sublayer, by)
                for layer in range(viewed.n_layers)
                for sublayer in viewed.sublayers(layer)
            ),
        )

    def _check(self) -> None:
        self.viewed.check_writers(range(-1, self.viewed.n_layers))
        split: Collection[int] = self.viewed.heads if self.by == "heads" else ()
        self.viewed.check_heads(split)
        for layer in split:
            if reason := self.viewed.bent_heads(layer):
                raise ValueError(
                    f"{self.viewed.name}: layer {layer}: {reason}, so its heads are no parts of "
                    "the stream; ask by='layers'"
                )

    def end(self, before: int | None = None) -> int:
        """How many steps come before a layer; before None, all."""
        if before is None:
            return len(self.steps)
        return sum(step.layer < before for step in self.steps)

    def run(self, tokens: Tokens, more: Collection[str] = ()) -> tuple[Activations, Outputs]:
        """Run the model: what the parts are made of, and what it predicts, to compare them with."""
        names = {hook for step in self.steps for hook in step.hooks} | {*more}
        norms = [*(step.norm for step in self.steps), self.last_norm]
        names |= {norm.factor.hook for norm in norms if norm is not None}
        kept: dict[str, Tensor] = {}
        outputs = self.viewed.outputs(tokens, hooks=keeping(names, kept))
        return {name: wide(activation) for name, activation in kept.items()}, outputs

    def scale(self, activations: Activations) -> Float[Tensor, "batch pos 1"] | None:
        """What the last norm divides by; None where there is none."""
        return None if self.last_norm is None else activations[self.last_norm.factor.hook]

    def parts(
        self, activations: Activations, before: int | None = None
    ) -> Iterator[tuple[str, Stream]]:
        """The parts of the stream before a layer, or of the last stream, one at a time."""
        end = self.end(before)
        shape = activations[self.steps[0].hooks[0]].shape
        for index in range(0 if self.residual else end - 1, end):
            step = self.steps[index]
            for label, x in step.parts(activations):
                yield label, self.carry(x, activations, index, end).expand(shape)
            if step.norm is not None and step.norm.offset is not None:
                offset = self.carry(step.norm.offset, activations, index + 1, end)
                yield f"{step.norm.name}.b", offset.expand(shape)

    def carry(self, x: Tensor, activations: Activations, start: int, end: int) -> Tensor:
        """What becomes of a part that step `start` wrote, by the time step `end` reads it."""
        for step in self.steps[start:end]:
            if step.norm is not None:
                x = step.norm(x, activations[step.norm.factor.hook])
        return x


def _whole(writers: Sequence[Writer], norm: FrozenNorm | None = None) -> Stage:
    """What is written at once: the embeddings, or one sublayer's sum."""

    def parts(activations: Activations) -> Iterator[Part]:
        for writer in writers:
            yield writer.label, writer.term(activations[writer.hook])

    return Stage(writers[0].layer, tuple(writer.hook for writer in writers), parts, norm)


def _step(sublayer: Sublayer, by: By) -> Stage:
    norm = sublayer.norm if sublayer.post_norm else None
    if by == "layers" or not sublayer.terms:
        return _whole([sublayer.writer], norm)

    def parts(activations: Activations) -> Iterator[Part]:
        for term in sublayer.terms:
            yield term.label, term.written(activations[term.place.hook])
        yield from sublayer.constants().items()

    hooks = tuple(dict.fromkeys(term.place.hook for term in sublayer.terms))
    return Stage(sublayer.writer.layer, hooks, parts, norm)
