"""A corpus made ready to train on: tokenizer and blocks, made once and shared by many runs."""

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from interp.data.blocks import open_table, pack
from interp.data.corpus import Corpus
from interp.data.loading import load_corpus
from interp.data.stream import BlockStream
from interp.data.tokenizer import train_tokenizer

TOKENIZER_DOCUMENTS = 50_000
"""How many documents of a corpus that is streamed its tokenizer is made of."""

_MANIFEST, _CHUNKS = "manifest.json", "chunks.json"


@dataclass(frozen=True)
class Settings:
    """What decides, with the corpus itself, which blocks a model reads.

    Args:
        corpus: a source, as `load_corpus` takes it.
        held_out: expected share of its documents in the held-out blocks.
        kind: "bpe" or "characters".
        vocab_size: tokens in the vocabulary.
        n_ctx: tokens in a block.
        held_out_documents: for a corpus too large to pack: pack no more than so many held-out
            documents, and stream what is trained on. None packs everything.
    """

    corpus: str
    held_out: float
    kind: Literal["bpe", "characters"]
    vocab_size: int
    n_ctx: int
    held_out_documents: int | None = None

    @property
    def key(self) -> str:
        """A name for these settings and no others."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Prepared:
    """Blocks of text, as `pack` writes them, and the tokenizer that made them.

    Args:
        tokenizer: trained on the training documents.
        train: blocks to train on; of a corpus that is streamed, those of its first documents.
        held_out: blocks of the documents that are never trained on.
        description: one sentence on the text, for a model card.
        stream: where a corpus is streamed, all of its blocks to train on.
    """

    tokenizer: PreTrainedTokenizerFast
    train: Dataset
    held_out: Dataset
    description: str
    stream: BlockStream | None = None


def prepare(settings: Settings, directory: str | Path) -> Prepared:
    """Read a corpus, train a tokenizer on it and pack it into blocks, or find that all done.

    What is found is used as it is, even if the corpus has changed since (a package was installed, a
    file was added): all runs that share a directory read the same blocks. To read the corpus anew,
    delete the directory.

    Args:
        settings: which corpus, tokenizer and blocks.
        directory: where tables and tokenizers lie, those of other settings too.

    Raises:
        FileNotFoundError: the corpus is not there.
        ValueError: the corpus or a setting cannot be used; the message says why.
    """
    directory = Path(directory)
    manifest = directory / f"prepared-{settings.key}"
    if not manifest.is_dir():
        _prepare(settings, directory, manifest)
    stored = json.loads((manifest / _MANIFEST).read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(manifest)
    stream = None
    if settings.held_out_documents is not None:
        corpus = load_corpus(settings.corpus, held_out=settings.held_out)
        # It tokenises in a thread of its own, and a tokenizer cannot serve two.
        own = PreTrainedTokenizerFast.from_pretrained(manifest)
        stream = BlockStream(corpus, own, settings.n_ctx, manifest / _CHUNKS)
    return Prepared(
        tokenizer,
        open_table(directory / stored["train"]),
        open_table(directory / stored["held_out"]),
        stored["description"],
        stream,
    )


def _prepare(settings: Settings, directory: Path, manifest: Path) -> None:
    corpus = load_corpus(settings.corpus, held_out=settings.held_out)
    parts = _parts(corpus, settings.held_out_documents)
    tokenizer = train_tokenizer(parts["train"], settings.vocab_size, settings.kind)
    tables = {
        part: table_of(
            pack(documents, tokenizer, settings.n_ctx, directory, group_of=corpus.group_of)
        ).name
        for part, documents in parts.items()
    }
    with tempfile.TemporaryDirectory(prefix=".preparing-", dir=directory) as scratch:
        unfinished = Path(scratch) / manifest.name
        tokenizer.save_pretrained(unfinished)
        content = {**asdict(settings), "description": corpus.description, **tables}
        (unfinished / _MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
        try:
            unfinished.rename(manifest)
        except OSError:
            if not manifest.is_dir():  # another process was faster: it found the same
                raise


def _parts(corpus: Corpus, held_out_documents: int | None) -> dict[str, Iterable[str]]:
    """The documents to make a tokenizer and tables of: all, or the first of each part."""
    train, held_out = corpus.split("train"), corpus.split("validation")
    if held_out_documents is None:
        return {"train": train, "held_out": held_out}
    return {
        "train": list(islice(train.stream(), TOKENIZER_DOCUMENTS)),
        "held_out": list(islice(held_out.stream(), held_out_documents)),
    }


def table_of(blocks: Dataset) -> Path:
    """The directory of a packed table."""
    return Path(blocks.cache_files[0]["filename"]).parent
