"""Which logit is asked about, and the direction of the last stream that it is read from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.linear import FrozenNorm, wide
from interp.models.shapes import Tokens
from interp.views import View
from interp.views.outputs import Outputs, at_positions

Choice = int | Int[Tensor, "..."]
"""One token for all, one per sequence, or one per sequence and position."""

Which = Int[Tensor, "..."] | Literal["mean"]
"""Tokens, or the mean over the vocabulary."""


@dataclass(frozen=True, eq=False)
class Readout:
    """From the last stream to logits: a norm, and W_U.

    A logit is `(x C / s) · direction + biases`, the norm's gain and centring being folded into the
    direction and its offset into the biases.
    """

    norm: FrozenNorm | None
    W_U: Float[Tensor, "d_model vocab"]
    b_U: Float[Tensor, " vocab"] | None

    @classmethod
    def of(cls, viewed: View) -> "Readout":
        """Of a model; a ValueError where it does not say how its stream becomes logits."""
        return cls(viewed.last_norm, *viewed.unembedding)

    @property
    def offset(self) -> Float[Tensor, " d_model"] | None:
        """The last norm's."""
        return None if self.norm is None else self.norm.offset

    def directions(self, tokens: Which) -> Float[Tensor, "... d_model"]:
        """What the normalised stream is multiplied with for the logits of these tokens."""
        columns = _rows_of(self.W_U.T, tokens)
        return columns if self.norm is None else self.norm.direction(columns)

    def biases(self, tokens: Which) -> dict[str, Float[Tensor, "..."]]:
        """The parts of these tokens' logits that nothing in the stream writes."""
        biases = {}
        if self.offset is not None:
            biases["ln_final.b"] = _rows_of(self.W_U.T, tokens) @ wide(self.offset)
        if self.b_U is not None:
            biases["unembed.b_U"] = _rows_of(self.b_U, tokens)
        return biases


@dataclass(frozen=True, eq=False)
class Question:
    """The logit of `correct`, or how far it lies above that of `incorrect`, at some positions."""

    readout: Readout
    positions: Sequence[int]
    correct: Int[Tensor, "batch asked"]
    incorrect: Int[Tensor, "batch asked"] | Literal["mean"] | None

    @classmethod
    def of(
        cls,
        viewed: View,
        tokens: Tokens,
        correct: Choice | None,
        incorrect: Choice | Literal["mean"] | None,
        positions: Sequence[int] | None,
    ) -> "Question":
        """Checked before any forward pass.

        Raises:
            ValueError: no `correct` for a model that predicts no next token; a position outside the
                sequence or without a next token, or tokens that are
                not of the vocabulary or not one for all, per sequence, or per token.
        """
        if correct is None:
            viewed.check_predicts_next("next token to take as `correct`; say which token is")
        asked = _positions(positions, tokens.shape[1], needs_next=correct is None)
        if correct is None:
            right = tokens[:, [position + 1 for position in asked]]
        else:
            right = _choice("correct", correct, viewed, tokens, asked)
        wrong: Any = incorrect
        if incorrect is not None and not (isinstance(incorrect, str) and incorrect == "mean"):
            wrong = _choice("incorrect", incorrect, viewed, tokens, asked)
        return cls(Readout.of(viewed), asked, right, wrong)

    def directions(self, rows: slice) -> Float[Tensor, "batch asked d_model"]:
        """What the stream over its scale is multiplied with, for some of the sequences."""
        right = self.readout.directions(self._some(self.correct, rows))
        if self.incorrect is None:
            return right
        return right - self.readout.directions(self._some(self.incorrect, rows))

    def biases(self, rows: slice) -> dict[str, Float[Tensor, "batch asked"]]:
        """What no part of the stream adds, by parameter."""
        right = self.readout.biases(self._some(self.correct, rows))
        if self.incorrect is None:
            return right
        wrong = self.readout.biases(self._some(self.incorrect, rows))
        return {name: bias - wrong[name] for name, bias in right.items()}

    def at(self, stream: Float[Tensor, "batch pos _"]) -> Float[Tensor, "batch asked _"]:
        """The positions that are asked about."""
        return at_positions(stream, self.positions)

    def answer(self, outputs: Outputs, rows: slice) -> Float[Tensor, "batch asked"]:
        """What the attributions have to add up to, from what the model predicts."""
        there = outputs.at(self.positions)
        right = there.logits_of(self.correct[rows][..., None])[..., 0]
        if self.incorrect is None:
            return right
        if isinstance(self.incorrect, str):
            return right - there.mean_logit()
        return right - there.logits_of(self.incorrect[rows][..., None])[..., 0]

    @property
    def described(self) -> str:
        """What the numbers are a part of."""
        other = {None: "logit", "mean": "logit minus mean logit"}
        if self.incorrect is None or isinstance(self.incorrect, str):
            return other[self.incorrect]
        return "logit difference"

    @property
    def where(self) -> str:
        """The positions as a reader would say them."""
        first, last = self.positions[0], self.positions[-1]
        if list(self.positions) == list(range(first, last + 1)):
            return f"{first} to {last}"
        return ", ".join(map(str, self.positions))

    def _some(self, which: Which, rows: slice) -> Which:
        return which if isinstance(which, str) else which[rows].to(self.readout.W_U.device)


def _rows_of(table: Float[Tensor, "vocab *_"], tokens: Which) -> Float[Tensor, "..."]:
    return wide(table).mean(0) if isinstance(tokens, str) else wide(table[tokens])


def _positions(positions: Sequence[int] | None, n_pos: int, needs_next: bool) -> Sequence[int]:
    end = n_pos - needs_next
    if positions is None:
        return range(end)
    asked = [position + n_pos if position < 0 else position for position in positions]
    if not asked or len(set(asked)) < len(asked) or not all(0 <= p < end for p in asked):
        next_token = "; the last has no next token: give `correct`" if needs_next else ""
        raise ValueError(
            f"positions are {list(positions)}, but must be different ones, at least one, of the "
            f"0 to {end - 1} of a sequence of {n_pos} tokens{next_token}"
        )
    return asked


def _choice(
    name: str, chosen: Any, viewed: View, tokens: Tokens, asked: Sequence[int]
) -> Int[Tensor, "batch asked"]:
    if isinstance(chosen, str):
        also = ", or 'mean'" if name == "incorrect" else ""
        raise ValueError(f"{name} is {chosen!r}, but must be token ids{also}")
    given = torch.as_tensor(chosen)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"{name} holds {given.dtype}, but must hold token ids")
    batch, n_pos = tokens.shape
    if given.ndim == 1 and len(given) == batch:
        given = given[:, None].expand(batch, len(asked))
    elif given.shape == (batch, n_pos):
        given = given[:, list(asked)]
    elif given.ndim != 0 and given.shape != (batch, len(asked)):
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}; give one token, one for each of the {batch} "
            f"sequences, or {batch} x {n_pos}, one for each position"
        )
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= viewed.d_vocab:
        raise ValueError(
            f"{name} holds token {low if low < 0 else high}, which is outside the vocabulary of "
            f"{viewed.d_vocab}"
        )
    return given.expand(batch, len(asked)).long()
