"""Documents to blocks of tokens on disk, named by what is in them.

A block is BOS and then `n_ctx - 1` tokens of text. Documents follow one another with a BOS between
them, and the stream is cut wherever a block is full. So position 0 is always BOS, as in the probes
that the analyses use, and no block holds two BOS in a row.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

_FILE = "blocks.arrow"
# Hashed with the rest: raise it when the same documents would be cut into other blocks.
_FORMAT = "interp blocks 1"
_CHARACTERS_AT_ONCE = 1_000_000
_BLOCKS_AT_ONCE = 1_024


def pack(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    n_ctx: int,
    directory: str | Path,
) -> Dataset:
    """What does a model with this tokenizer and context read, block by block?

    The table lies in `directory/<hash>`, where the hash covers the documents, the tokenizer and
    `n_ctx`. If it is there already it is used again: the documents are hashed, not tokenised. It is
    written under a temporary name and renamed when whole, so a killed run leaves no half table
    (only a `.packing-*` directory, which may be deleted).

    Tokens are stored as uint16 where the vocabulary fits, else as int32: a half or a quarter of the
    size of int64. Rows come out as torch tensors, and there `datasets` widens them to int64, which
    is what cross entropy asks for. The file is memory-mapped; what is held at once, while packing
    too, is a batch of documents of about a megabyte, or one longer document.

    Special tokens spelled out in a document are plain text here, so only the packer writes BOS.

    Args:
        documents: Texts that can be read twice: a list, a `Corpus` or one of its splits. Empty ones
            are skipped.
        tokenizer: Any fast tokenizer with a BOS token.
        n_ctx: Tokens in a block, BOS included; at least 2.
        directory: Where tables are kept; made if missing.

    Returns:
        A dataset with one column, `input_ids` [n_ctx]. The last, partial block is dropped.

    Raises:
        TypeError: `documents` is one string, or an iterator that can be read only once.
        ValueError: `n_ctx` is below 2, the tokenizer has no BOS, or the documents fill no block.

    >>> from interp.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["abc"], kind="characters")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     blocks = pack(["ab", "ca"], tokenizer, n_ctx=3, directory=directory)
    ...     [tokenizer.decode(block) for block in blocks["input_ids"]]
    ['<|bos|>ab', '<|bos|>ca']
    """
    _check(documents, tokenizer, n_ctx)
    table = Path(directory) / _content_hash(documents, tokenizer, n_ctx)
    if not table.is_dir():
        _write_whole(table, documents, tokenizer, n_ctx)
    return open_table(table)


def open_table(table: Path) -> Dataset:
    """The blocks in a directory that `pack` has written."""
    return Dataset.from_file(str(table / _FILE)).with_format("torch")


def _check(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, n_ctx: int) -> None:
    if isinstance(documents, str):
        raise TypeError("documents is one string; hand in a list of texts, [text], or a Corpus")
    if isinstance(documents, Iterator):
        raise TypeError(
            f"documents is a {type(documents).__name__}, which can be read only once, and pack "
            "reads twice (to hash, then to tokenise); hand in a list or a Corpus"
        )
    if n_ctx < 2:
        raise ValueError(f"n_ctx={n_ctx} leaves no room for text after BOS; use at least 2")
    _bos(tokenizer)


def _content_hash(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, n_ctx: int) -> str:
    settings = [_FORMAT, n_ctx, _bos(tokenizer), _serialise(tokenizer)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for text in tqdm(documents, desc="hashing", unit=" documents", disable=None):
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little"))  # where one document ends
        digest.update(content)
    return digest.hexdigest()[:32]


def _bos(tokenizer: PreTrainedTokenizerFast) -> int:
    bos = tokenizer.bos_token_id
    if not isinstance(bos, int):
        raise ValueError(
            "the tokenizer has no BOS token, and every block begins with one; set "
            "tokenizer.bos_token, or make a tokenizer with train_tokenizer"
        )
    return bos


def _serialise(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer as JSON, without the padding and truncation that its last call left in it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({key: state[key] for key in state if key not in ("padding", "truncation")})


def _write_whole(
    table: Path, documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, n_ctx: int
) -> None:
    """Writes the table under a temporary name, then renames: it exists whole or not at all."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=table.parent) as scratch:
        unfinished = Path(scratch) / table.name
        unfinished.mkdir()
        _write(unfinished / _FILE, documents, tokenizer, n_ctx)
        try:
            unfinished.rename(table)
        except OSError:
            if not table.is_dir():  # another process was faster: its table is the same
                raise


def _tokenise(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
    for batch in _batches(documents):
        yield from tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups big enough for the fast tokenizer and small enough for memory."""
    batch: list[str] = []
    n_characters = 0
    for text in documents:
        batch.append(text)
        n_characters += len(text)
        if n_characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def cut_into_blocks(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, n_ctx: int
) -> Iterator[list[int]]:
    """Blocks of `n_ctx` tokens, each with its own BOS; what fills no block in the end is dropped.

    Raises:
        ValueError: in the end, if there was no block.
    """
    bos, width = _bos(tokenizer), n_ctx - 1
    stream: list[int] = []
    n_blocks = 0
    for tokens in _tokenise(documents, tokenizer):
        if not tokens:
            continue
        # A document at the start of a block needs no BOS beside the block's own.
        stream = [*stream, bos, *tokens] if stream else tokens
        whole = len(stream) - len(stream) % width
        for start in range(0, whole, width):
            yield [bos, *stream[start : start + width]]
        n_blocks += whole // width
        stream = stream[whole:]
    if n_blocks == 0:
        raise ValueError(
            f"the documents hold {len(stream)} tokens, fewer than the {width} of one block of "
            f"n_ctx={n_ctx}; use a smaller n_ctx or more text"
        )


def _write(
    file: Path, documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, n_ctx: int
) -> None:
    dtype = "uint16" if len(tokenizer) <= np.iinfo(np.uint16).max + 1 else "int32"
    schema = Features({"input_ids": List(Value(dtype), length=n_ctx)}).arrow_schema
    told = iter(tqdm(documents, desc="packing", unit=" documents", disable=None))
    blocks = cut_into_blocks(told, tokenizer, n_ctx)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while group := list(islice(blocks, _BLOCKS_AT_ONCE)):
            flat = pa.array(np.array(group, dtype=dtype).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, n_ctx)
            writer.write_table(pa.table({"input_ids": column}, schema=schema))
