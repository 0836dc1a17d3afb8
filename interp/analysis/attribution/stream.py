"""The last residual stream as a sum: embeddings, lags, heads, MLPs and biases, one at a time.

With the norms' scales frozen at their cached values the sum is exact, in three kinds of model:

* pre-norm: the stream is the sum of everything that was written to it;
* post-norm: every norm stands on the stream itself, and each part goes through all later ones as
  `C diag(γ) / s`; the norms' offsets are parts of their own;
* without a residual stream: the last sublayer replaces what was there, and its parts are all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor

from interp.models import HookedSequenceModel
from interp.models.block import Block
from interp.models.description import Sublayer, Writer
from interp.models.linear import FrozenNorm, wide
from interp.models.norm import Norm
from interp.models.shapes import Stream, Tokens
from interp.views import EverythingHeard, View, undisturbed

By = Literal["heads", "layers"]
Heard = Mapping[str, Tensor]
Part = tuple[str, Float[Tensor, "... d_model"]]
"""A part's label and what it writes, which may be the same everywhere."""


class StreamParts(ABC):
    """What an attribution asks of a model: run it, and give the parts of its last stream."""

    @abstractmethod
    def hear(self, tokens: Tokens) -> Heard:
        """Run the model and keep what the parts are made of."""

    @abstractmethod
    def parts(self, heard: Heard) -> Iterator[tuple[str, Stream]]:
        """The parts of the stream that the last norm reads, one at a time."""

    def scale(self, heard: Heard) -> Float[Tensor, "batch pos 1"] | None:
        """What the last norm divides by; None where there is none."""
        return heard.get("ln_final.hook_scale")


@dataclass(frozen=True, eq=False)
class Step:
    """A write to the stream, and the norm that stands on the stream after it (post-norm)."""

    names: tuple[str, ...]
    parts: Callable[[Heard], Iterator[Part]]
    norm: FrozenNorm | None = None


class OurParts(StreamParts):
    """Of an interp model."""

    def __init__(self, model: HookedSequenceModel, by: By = "heads"):
        self.model, self.residual = model, model.config.residual
        self.steps = tuple(_steps(model, by))

    def names(self, before: int | None = None) -> list[str]:
        """The hook points that the parts before a layer (default: all) are made of."""
        steps = self.steps[: self.end(before)]
        names = {name: None for step in steps for name in step.names}
        norms = {f"{step.norm.name}.hook_scale": None for step in steps if step.norm is not None}
        return [*names, *norms]

    def end(self, before: int | None) -> int:
        """How many steps come before a layer; before None, all."""
        blocks = cast(list[Block], list(self.model.blocks)[:before])
        return 1 + sum(1 + (block.mlp is not None) for block in blocks)

    def hear(self, tokens: Tokens, more: tuple[str, ...] = ()) -> Heard:
        """Run up to the last norm: no logit is computed."""
        heard: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any) -> None:
            heard[hook.name] = wide(activation)
            if hook.name == "ln_final.hook_scale":
                raise EverythingHeard

        names = [*self.names(), *more]
        if isinstance(self.model.ln_final, Norm):
            names.append("ln_final.hook_scale")
        ears: list[Any] = [(name, keep) for name in dict.fromkeys(names)]
        stop = None if isinstance(self.model.ln_final, Norm) else len(self.model.blocks)
        with undisturbed(self.model), suppress(EverythingHeard):
            self.model.run_with_hooks(tokens, fwd_hooks=ears, stop_at_layer=stop)
        return heard

    def parts(self, heard: Heard, before: int | None = None) -> Iterator[tuple[str, Stream]]:
        """The parts of the stream before a layer, or of the last stream."""
        end = self.end(before)
        shape = heard["hook_embed"].shape
        for index in range(0 if self.residual else end - 1, end):
            step = self.steps[index]
            for label, x in step.parts(heard):
                yield label, self.carry(x, heard, index, end).expand(shape)
            if step.norm is not None and step.norm.offset is not None:
                offset = self.carry(step.norm.offset, heard, index + 1, end)
                yield f"{step.norm.name}.b", offset.expand(shape)

    def carry(self, x: Tensor, heard: Heard, start: int, end: int) -> Tensor:
        """What becomes of a part that step `start` wrote, by the time step `end` reads it."""
        for step in self.steps[start:end]:
            if step.norm is not None:
                x = step.norm(x, heard[f"{step.norm.name}.hook_scale"])
        return x


class BridgeParts(StreamParts):
    """Of a `TransformerBridge`."""

    def __init__(self, seen: View, by: By = "heads"):
        self.seen, self.model, self.by = seen, seen.model, by

    def check(self) -> None:
        """Refuse what does not add up, before any work.

        Raises:
            ValueError: the message names the layer, and what is missing.
        """
        self.seen.check_writers(range(-1, self.seen.n_layers))
        self.seen.check_heads(self._split())
        for layer in self._split():
            if reason := self.seen.bent_heads(layer):
                raise ValueError(
                    f"{self.seen.name}: layer {layer}: {reason}, so its heads are no parts of the "
                    "stream; ask by='layers'"
                )

    def hear(self, tokens: Tokens) -> Heard:
        """Run the model; its logits are kept to compare the sum with."""
        names = {writer.hook for writer in self.seen.writers} | {"ln_final.hook_scale"}
        names |= {f"blocks.{layer}.attn.hook_z" for layer in self._split()}
        device = next(self.model.parameters()).device
        heard: dict[str, Tensor] = {}

        def keep(name: str, activation: Any, hook: Any) -> None:
            heard[name] = wide(activation)

        # A bridge calls some hook points by another name than the one that they were asked for by.
        ears: list[Any] = [(name, partial(keep, name)) for name in names & set(self.seen.hooks)]
        with undisturbed(self.model):
            logits = self.model.run_with_hooks(
                tokens.to(device), fwd_hooks=ears, return_type="logits"
            )
        return {**heard, "logits": wide(logits)}

    def parts(self, heard: Heard) -> Iterator[tuple[str, Stream]]:
        """The embeddings, then layer by layer what was written."""
        split = self._split()
        for writer in self.seen.writers:
            if writer.kind == "attn" and writer.layer in split:
                yield from self._heads(writer, heard)
            else:
                yield writer.label, writer.term(heard[writer.hook])

    def _split(self) -> Collection[int]:
        """The layers whose attention is given head by head."""
        return self.seen.heads if self.by == "heads" else ()

    def _heads(self, writer: Writer, heard: Heard) -> Iterator[tuple[str, Stream]]:
        layer = writer.layer
        z, W_O = heard[f"blocks.{layer}.attn.hook_z"], wide(self.seen.output_map(layer))
        for head in range(len(W_O)):
            yield f"L{layer}H{head}", writer.term(z[:, :, head] @ W_O[head])
        if (b_O := self.seen.output_bias(layer)) is not None:
            yield f"blocks.{layer}.attn.b_O", writer.term(wide(b_O)).expand_as(heard[writer.hook])


def stream_parts(seen: View, by: By) -> StreamParts:
    """The parts of a model of ours or of a bridge."""
    if isinstance(seen.model, HookedSequenceModel):
        return OurParts(seen.model, by)
    parts = BridgeParts(seen, by)
    parts.check()
    return parts


def _steps(model: HookedSequenceModel, by: By) -> Iterator[Step]:
    positions = model.pos_embed is not None and model.positions_enter_stream
    embeddings = ("hook_embed", "hook_pos_embed") if positions else ("hook_embed",)
    yield Step(embeddings, lambda heard: ((n.removeprefix("hook_"), heard[n]) for n in embeddings))
    for layer, block in enumerate(cast(list[Block], list(model.blocks))):
        for sublayer in block.sublayers(layer):
            yield _step(sublayer, by)


def _step(sublayer: Sublayer, by: By) -> Step:
    writer, terms = sublayer.writer, sublayer.terms
    norm = sublayer.norm if sublayer.post_norm else None
    if by == "layers" or not terms:
        whole = (writer.hook,)
        return Step(whole, lambda heard: iter([(writer.label, heard[writer.hook])]), norm)

    def parts(heard: Heard) -> Iterator[Part]:
        for term in terms:
            yield term.label, term.written(heard[term.place.hook])
        yield from sublayer.constants().items()

    return Step(tuple(dict.fromkeys(term.place.hook for term in terms)), parts, norm)
