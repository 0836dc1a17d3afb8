"""Blocks to measure a model on, with the texts that they are from."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from datasets import Dataset
from torch import Tensor

from interp.models.shapes import Tokens
from interp.results.sampling import stretches


class Text(NamedTuple):
    """Some blocks of a table.

    Attributes:
        tokens: `[batch pos]`.
        groups: the group of each block, as `pack` wrote it; of a table from before it did,
            stretches of the chosen blocks.
    """

    tokens: Tokens
    groups: Sequence[str]


def text_of(blocks: Dataset, where: Sequence[int] | None = None) -> Text:
    """All blocks of a table, or those at these places, which are in order."""
    some = blocks[:] if where is None else blocks[list(where)]
    tokens = cast(Tensor, some["input_ids"])
    return Text(tokens, some["group"] if "group" in some else stretches(len(tokens)))


def spread(blocks: Dataset, n: int) -> Text:
    """Up to n blocks from all over the text; neighbours are of one document."""
    where = np.unique(np.linspace(0, len(blocks) - 1, min(n, len(blocks))).round().astype(int))
    return text_of(blocks, where.tolist())
