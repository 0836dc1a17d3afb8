"""A circuit: two thin factors, and the questions that are answered without their product."""

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix

from interp.analysis.circuits.matching import Rows, matches
from interp.results.result import Result

ENTRIES_AT_ONCE = 4_000_000
"""How many entries of the product are there at a time: 16 MB in float32."""
ROUNDING = 1e-4
"""How far the bound of an entry may be off."""
LARGEST_VIEW = 4_000_000
"""The most entries that are worth looking at."""

Chosen = Sequence[int | str] | int | str
"""Tokens as text or numbers, or positions: several, or one alone."""


@dataclass(frozen=True, eq=False)
class Side:
    """What the rows or columns stand for.

    `kind` is "token", "position" or "direction"; directions of the stream have no names. The factor
    is the product of the two `reads`: a table (W_E, W_pos, the columns of W_U) and a map.
    """

    role: str
    kind: str
    words: Callable[[list[int]], list[str]] = field(
        repr=False, default=lambda ids: [*map(str, ids)]
    )
    find: Callable[[str], int] | None = field(repr=False, default=None)
    reads: tuple[Float[Tensor, "_ d_model"], Float[Tensor, "d_model d_head"]] | None = field(
        repr=False, default=None
    )

    @property
    def axis(self) -> str:
        """Such as "query_token", "predicted_token", "key_position"."""
        return f"{self.role}_{self.kind}"

    def numbers(self, chosen: Chosen, size: int) -> list[int]:
        """The rows or columns that are meant by numbers or by text, each once."""
        several = [chosen] if isinstance(chosen, int | str) else chosen
        numbers = [self._number(one) for one in several]
        for number in numbers:
            if not 0 <= number < size:
                raise ValueError(f"{self.kind} {number} does not exist; there are 0 to {size - 1}")
        if len(numbers) == 0 or len(set(numbers)) < len(numbers):
            twice = [n for n, times in Counter(numbers).items() if times > 1]
            what = f"name {twice} twice" if twice else "are none"
            raise ValueError(f"the {self.role} {self.kind}s {what}; give each once")
        return numbers

    def _number(self, one: int | str) -> int:
        if not isinstance(one, str):
            return operator.index(one)
        if self.find is None:
            raise ValueError(
                f"{one!r} is text, but {self.kind}s have numbers here"
                + ("; the model has no tokenizer" if self.kind == "token" else "")
            )
        return self.find(one)

    def labels(self, numbers: Sequence[int]) -> list[str | int]:
        """A name for each, all different: tokens that read alike get their numbers behind."""
        if self.kind != "token":
            return [*numbers]
        words = self.words([*numbers])
        times = Counter(words)
        return [
            word if times[word] == 1 else f"{word} #{number}"
            for word, number in zip(words, numbers, strict=True)
        ]


class Circuit(FactoredMatrix):
    """One head's circuit as TransformerLens's `FactoredMatrix`, A [row d_head] @ B [d_head column].

    `S` are its singular values, `svd()` and `eigenvalues` come from the factors too, and `AB`, the
    product, is for small circuits only: through a vocabulary of 50,000 it would take 10 GB. The
    questions below need blocks of it at most.

    Args:
        A: the left factor.
        B: the right factor.
        name: "qk_circuit" or "ov_circuit".
        rows: what the rows stand for.
        columns: what the columns stand for.
        unit: of an entry.
        provenance: model, head, basis, what is folded in and what is left out.
    """

    def __init__(
        self,
        A: Float[Tensor, "_ d_head"],
        B: Float[Tensor, "d_head _"],
        *,
        name: str,
        rows: Side,
        columns: Side,
        unit: str,
        provenance: Mapping[str, Any],
    ):
        super().__init__(A, B)
        self.name, self.rows, self.columns = name, rows, columns
        self.unit, self.provenance = unit, dict(provenance)

    def __repr__(self) -> str:
        known = self.provenance
        return (
            f"Circuit({self.name} of {known['head']}: {self.ldim} {self.rows.kind}s x {self.rdim} "
            f"{self.columns.kind}s, rank {self.mdim}; {known['model']})"
        )

    def centred(self) -> "Circuit":
        """The circuit with each row's mean taken off.

        A constant along a row changes nothing: the softmax over keys, or over predictions, cancels
        it. What is large only through such a constant is no longer large here.
        """
        return Circuit(
            self.A,
            self.B - self.B.mean(1, keepdim=True),
            name=self.name,
            rows=self.rows,
            columns=self.columns,
            unit=self.unit,
            provenance={**self.provenance, "centred": "each row's mean is taken off"},
        )

    def top_pairs(self, k: int = 10, *, largest: bool = True) -> pd.DataFrame:
        """Which k entries are the largest, or with `largest=False` the most negative?

        Exactly, a block of rows at a time; blocks whose rows and columns are too short to reach
        that high are left out.

        Returns:
            A row per entry, in order: both words, both numbers ("query_id", "key_id") and the
            value.

        Raises:
            ValueError: the residual basis, whose directions have no names; or k is below 1 or more
                than there are entries.
        """
        self._need_names("top_pairs")
        if not 1 <= operator.index(k) <= self.ldim * self.rdim:
            raise ValueError(f"k is {k}, but must be 1 to the {self.ldim * self.rdim} entries")
        sign = 1 if largest else -1
        even = self.make_even()
        rows, columns = _highest(sign * even.A, even.B, k)
        values = (self.A[rows].double() * self.B[:, columns].T.double()).sum(1)
        sides = ((self.rows, rows.tolist()), (self.columns, columns.tolist()))
        words = {side.axis: side.words(numbers) for side, numbers in sides}
        numbers = {f"{side.role}_id": numbers for side, numbers in sides}
        return pd.DataFrame({**words, **numbers, "value": values.tolist()})

    def diagonal_preference(self) -> Result:
        """Does a row prefer itself? How far the diagonal stands out of its rows, in deviations.

        Mean over rows of (diagonal - row mean) / row deviation; 0 is none. Two deviations say how
        far from 0 chance takes it, and `z` divides by the larger:

        * `shuffled`: over all shuffles of the columns, exactly. Would a random pairing of tokens
          stand out as much from this circuit?
        * `rotated`: over random (Haar) rotations between the two factors, in the whitened
          embedding. Would maps that know nothing of each other? Random weights lie within this one
          only: where the vocabulary is large, the other is far too narrow for them.

        Raises:
            ValueError: rows and columns are not the same tokens or positions.
        """
        self._need_names("diagonal_preference")
        if self.rows.kind != self.columns.kind or self.ldim != self.rdim:
            raise ValueError(
                f"the rows are {self.ldim} {self.rows.kind}s and the columns {self.rdim} "
                f"{self.columns.kind}s, so there is no diagonal"
            )
        itself = torch.eye(self.mdim).to(self.A)
        table, keys = self.columns.reads or (self.B.T, itself)
        found = matches(Rows.of(table), itself[None], keys[None], asking=Rows.of(self.A))
        value, shuffled, rotated = map(float, (found.value, found.shuffled, found.rotated))
        z = value / max(shuffled, rotated) if rotated > 0 else math.nan
        units = dict.fromkeys(("diagonal_preference", "shuffled", "rotated"), "row deviations")
        return Result(
            "diagonal_preference",
            np.array([value, shuffled, rotated, z]),
            ("measure",),
            labels={"measure": (*units, "z")},
            chance=np.array([0.0, math.nan, math.nan, 0.0]),
            unit={**units, "z": "deviations"},
            provenance=self.provenance,
        )

    def subset(self, rows: Chosen, columns: Chosen | None = None) -> Result:
        """The entries of chosen rows and columns, to look at.

        Args:
            rows: tokens as text or numbers, or positions; or one alone.
            columns: likewise; default: the same as the rows.

        Returns:
            A Result over two axes, such as "query_token" and "key_token". Its `plot()` is a heatmap
            to hover over.

        Raises:
            ValueError: text that is not one token, a number that does not exist, one given twice,
                or more entries than anybody could look at.
        """
        columns = rows if columns is None else columns
        across, down = self.rows.numbers(rows, self.ldim), self.columns.numbers(columns, self.rdim)
        if len(across) * len(down) > LARGEST_VIEW:
            raise ValueError(
                f"{len(across)} x {len(down)} entries are more than can be looked at; choose at "
                f"most {LARGEST_VIEW:,}, or ask top_pairs for the largest"
            )
        return Result(
            self.name,
            (self.A[across].double() @ self.B[:, down].double()).cpu().numpy(),
            (self.rows.axis, self.columns.axis),
            labels={
                self.rows.axis: self.rows.labels(across),
                self.columns.axis: self.columns.labels(down),
            },
            unit=self.unit,
            provenance=self.provenance,
        )

    def _need_names(self, question: str) -> None:
        if self.rows.kind == "direction" or self.columns.kind == "direction":
            raise ValueError(
                f"{question} asks about tokens or positions, but this circuit is in the residual "
                'basis, whose directions have no names; choose basis="vocabulary" or "positions"'
            )


def _highest(
    A: Float[Tensor, "_ d_head"], B: Float[Tensor, "d_head _"], k: int
) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    """Rows and columns of the k highest entries of A @ B, highest first.

    No entry is above |row| |column| (Cauchy and Schwarz), so both are taken longest first and only
    as far as they can reach the lowest of the best so far: in trained circuits, under 1 % of all.
    """
    lengths, by_row = A.norm(dim=1).sort(descending=True)
    widths, by_column = B.norm(dim=0).sort(descending=True)
    A, B = A[by_row], B[:, by_column]
    best, places, start = A.new_full((k,), -torch.inf), by_row.new_zeros(2, k), 0
    while start < len(A):
        floor = best[-1] - ROUNDING * best[-1].abs()
        n_columns = int((widths * lengths[start] >= floor).sum())
        if n_columns == 0:
            break
        # A short first block is enough for a floor; sorting much more would take longest of all.
        at_once = ENTRIES_AT_ONCE if start else len(widths) + k
        rows = slice(start, start + max(1, at_once // n_columns))
        block = A[rows] @ B[:, :n_columns]
        high = (block.amax(1) > best[-1]).nonzero()[:, 0]
        high_rows = block[high]
        row, column = (high_rows > best[-1]).nonzero(as_tuple=True)
        best, order = torch.cat([best, high_rows[row, column]]).topk(k)
        found = torch.stack([start + high[row], column])
        places = torch.cat([places, found], dim=1)[:, order]
        start = rows.stop
    return by_row[places[0]], by_column[places[1]]
