"""A corpus too large to pack: its blocks are made while a model trains on them."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from interp.data.blocks import cut_into_blocks
from interp.data.corpus import Corpus

DOCUMENTS_AT_ONCE = 2_000
"""How many documents are tokenised together and shuffled among themselves: some 10 MB of text."""

Chunk = np.ndarray[Any, np.dtype[np.integer[Any]]]


class BlockStream(IterableDataset):
    """The blocks of a corpus's training documents, without end: after the last comes the first.

    Documents are taken in the source's order, a chunk at a time, and the blocks of a chunk are
    shuffled. A few tokens at the end of each chunk are dropped, or all if they fill no block. While
    one chunk is trained on, the next is tokenised.

    How many blocks each chunk has is written to a file. So a run that goes on after `start` blocks
    reads past the documents of all chunks before, but tokenises none of them, and then gives
    exactly the blocks that an uninterrupted run would.

    Args:
        corpus: its training documents are read, repeated ones too.
        tokenizer: any fast tokenizer with a BOS token.
        n_ctx: tokens in a block, BOS included.
        sizes: the file with the number of blocks of each chunk; made if missing.
        seed: of the order within each chunk.
        start: how many blocks to leave out.

    Raises:
        ValueError: while it is read, if the documents fill no block.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerFast,
        n_ctx: int,
        sizes: Path,
        *,
        seed: int = 0,
        start: int = 0,
    ):
        self.corpus, self.tokenizer, self.n_ctx = corpus.split("train"), tokenizer, n_ctx
        self.sizes, self.seed, self.start = sizes, seed, start

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for chunk in _one_ahead(self._chunks()):
            for block in chunk:
                yield {"input_ids": torch.from_numpy(block.astype(np.int64))}

    def _chunks(self) -> Iterator[Chunk]:
        """What comes after `start`, one shuffled chunk after the other."""
        to_skip = self.start
        for turn in count():
            seen = 0
            for number, texts in enumerate(_in_chunks(self.corpus.stream())):
                size = self._known_sizes().get(number)
                if size is None or size > to_skip:
                    chunk = self._chunk(texts)
                    self._note(number, size := len(chunk))
                    order = np.random.default_rng([self.seed, turn, number]).permutation(size)
                    yield chunk[order[to_skip:]]
                to_skip = max(0, to_skip - size)
                seen += size
            if seen == 0:
                raise ValueError(
                    f"corpus {self.corpus.name!r} fills no block of n_ctx={self.n_ctx}; use a "
                    "smaller n_ctx or more text"
                )

    def _chunk(self, texts: list[str]) -> Chunk:
        dtype = np.uint16 if len(self.tokenizer) <= 2**16 else np.int32
        try:
            blocks = list(cut_into_blocks(texts, self.tokenizer, self.n_ctx))
        except ValueError:  # the last documents of a corpus may fill no block
            blocks = []
        return np.array(blocks, dtype=dtype).reshape(-1, self.n_ctx)

    def _known_sizes(self) -> dict[int, int]:
        if not self.sizes.is_file():
            return {}
        return dict(enumerate(json.loads(self.sizes.read_text())))

    def _note(self, number: int, size: int) -> None:
        known = self._known_sizes()
        if number in known:
            if known[number] != size:
                raise ValueError(
                    f"corpus {self.corpus.name!r} has changed since {self.sizes} was written: its "
                    f"chunk {number} has {size} blocks and had {known[number]}; begin anew, with "
                    "another data directory"
                )
            return
        aside = self.sizes.with_name(f".unfinished-{os.getpid()}-{self.sizes.name}")
        aside.write_text(json.dumps([*known.values(), size]))
        aside.replace(self.sizes)


def _in_chunks(documents: Iterator[str]) -> Iterator[list[str]]:
    while texts := list(islice(documents, DOCUMENTS_AT_ONCE)):
        yield texts


def _one_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks; each is made while the one before is used."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, chunks)
        while True:
            chunk = coming.result()
            coming = worker.submit(next, chunks)
            yield chunk
