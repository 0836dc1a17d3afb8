"""Documents to blocks of tokens on disk, named by what is in them.

A block is BOS and then `n_ctx - 1` tokens of text. Documents follow one another with a BOS between
them, and the stream is cut wherever a block is full. So position 0 is always BOS, as in the probes
that the analyses use, and no block holds two BOS in a row.

Blocks of one text are alike, so each carries the group of the document that most of its tokens are
from: an error over blocks is an error over these groups.
"""

import hashlib
import json
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

_FILE = "blocks.arrow"
# Hashed with the rest: raise it when the same documents would be cut into other blocks.
_FORMAT = "interp blocks 2"
GroupOf = Callable[[str], str]
"""From a document to the name of those that it belongs with."""

_CHARACTERS_AT_ONCE = 1_000_000
_BLOCKS_AT_ONCE = 1_024


def pack(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    n_ctx: int,
    directory: str | Path,
    *,
    group_of: GroupOf | None = None,
) -> Dataset:
    """What does a model with this tokenizer and context read, block by block?

    The table lies in `directory/<hash>`, where the hash covers the documents, their groups, the
    tokenizer and `n_ctx`. If it is there already it is used again: the documents are hashed, not
    tokenised. It is written under a temporary name and renamed when whole, so a killed run leaves
    no half table (only a `.packing-*` directory, which may be deleted).

    Tokens are stored as uint16 where the vocabulary fits, else as int32: a half or a quarter of the
    size of int64. Rows come out as torch tensors, and there `datasets` widens them to int64, which
    is what cross entropy asks for. The file is memory-mapped; what is held at once, while packing
    too, is a batch of documents of about a megabyte, or one longer document.

    A model is measured on a table's text with the error that its groups warrant:

    ```python
    text = blocks[:128]
    interp.loss_by_position(model, text["input_ids"], groups=text["group"])
    ```

    Special tokens spelled out in a document are plain text here, so only the packer writes BOS.

    Args:
        documents: Texts that can be read twice: a list, a `Corpus` or one of its splits. Empty ones
            are skipped.
        tokenizer: Any fast tokenizer with a BOS token.
        n_ctx: Tokens in a block, BOS included; at least 2.
        directory: Where tables are kept; made if missing.
        group_of: Which documents belong together, as a name for each. By default what the corpus
            says: of `python-docs` the package, as the files of one package are alike; else every
            document is a group of its own.

    Returns:
        A dataset with the columns `input_ids` [n_ctx] and `group`, the group that most of the
        block's tokens are from (the first of them, where two have as many). The last, partial block
        is dropped.

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
    group_of = getattr(documents, "group_of", None) if group_of is None else group_of
    grouped = _Grouped(documents, group_of)
    table = Path(directory) / _content_hash(grouped, tokenizer, n_ctx)
    if not table.is_dir():
        _write_whole(table, grouped, tokenizer, n_ctx)
    return open_table(table)


def open_table(table: Path) -> Dataset:
    """The blocks in a directory that `pack` has written."""
    return Dataset.from_file(str(table / _FILE)).with_format("torch")


class _Grouped:
    """Documents with the names of their groups, read as often as one likes."""

    def __init__(self, documents: Iterable[str], group_of: GroupOf | None):
        self.documents, self.group_of = documents, group_of

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for number, text in enumerate(self.documents):
            group = f"document {number}" if self.group_of is None else self.group_of(text)
            if not isinstance(group, str):
                raise TypeError(
                    f"group_of gives {group!r} for the document that begins {text[:40]!r}; a "
                    "group's name is a string"
                )
            yield text, group


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


def _content_hash(documents: _Grouped, tokenizer: PreTrainedTokenizerFast, n_ctx: int) -> str:
    settings = [_FORMAT, n_ctx, _bos(tokenizer), _serialise(tokenizer)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for parts in tqdm(documents, desc="hashing", unit=" documents", disable=None):
        for content in map(str.encode, parts):
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
    table: Path, documents: _Grouped, tokenizer: PreTrainedTokenizerFast, n_ctx: int
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


def _tokenise(
    documents: Iterable[tuple[str, str]], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], str]]:
    """The tokens of each document, and its group."""
    for batch in _batches(documents):
        texts, groups = zip(*batch, strict=True)
        tokens = tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        yield from zip(tokens, groups, strict=True)


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Documents in batches big enough for the fast tokenizer and small enough for memory."""
    batch: list[tuple[str, str]] = []
    n_characters = 0
    for text, group in documents:
        batch.append((text, group))
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
    yield from (block for block, _ in _cut(((text, "") for text in documents), tokenizer, n_ctx))


def _cut(
    documents: Iterable[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, n_ctx: int
) -> Iterator[tuple[list[int], str]]:
    """The same of documents with the names of their groups: blocks with theirs."""
    bos, width = _bos(tokenizer), n_ctx - 1
    stream: list[int] = []
    owners: deque[tuple[str, int]] = deque()  # the stream's groups, and how many tokens each has
    n_blocks = 0
    for tokens, group in _tokenise(documents, tokenizer):
        if not tokens:
            continue
        # A document at the start of a block needs no BOS beside the block's own.
        before, stream = len(stream), [*stream, bos, *tokens] if stream else tokens
        owners.append((group, len(stream) - before))
        whole = len(stream) - len(stream) % width
        for start in range(0, whole, width):
            yield [bos, *stream[start : start + width]], _most(owners, width)
        n_blocks += whole // width
        stream = stream[whole:]
    if n_blocks == 0:
        raise ValueError(
            f"the documents hold {len(stream)} tokens, fewer than the {width} of one block of "
            f"n_ctx={n_ctx}; use a smaller n_ctx or more text"
        )


def _most(owners: deque[tuple[str, int]], width: int) -> str:
    """The group with the most of the next so many tokens, which are taken off."""
    counts: Counter[str] = Counter()
    while width:
        group, n = owners.popleft()
        taken = min(n, width)
        counts[group] += taken
        width -= taken
        if n > taken:
            owners.appendleft((group, n - taken))
    return counts.most_common(1)[0][0]


def _write(file: Path, documents: _Grouped, tokenizer: PreTrainedTokenizerFast, n_ctx: int) -> None:
    dtype = "uint16" if len(tokenizer) <= np.iinfo(np.uint16).max + 1 else "int32"
    columns = {"input_ids": List(Value(dtype), length=n_ctx), "group": Value("string")}
    schema = Features(columns).arrow_schema
    shown = iter(tqdm(documents, desc="packing", unit=" documents", disable=None))
    blocks = _cut(shown, tokenizer, n_ctx)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while some := list(islice(blocks, _BLOCKS_AT_ONCE)):
            tokens, groups = zip(*some, strict=True)
            flat = pa.array(np.array(tokens, dtype=dtype).reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, n_ctx)
            whole = {"input_ids": column, "group": pa.array(groups)}
            writer.write_table(pa.table(whole, schema=schema))
