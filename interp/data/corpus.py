"""Where text comes from: local files, a Hugging Face dataset, or the Python documentation.

A corpus is read in a stream, again and again, and knows which of its documents are held out.
"""

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from interp.data.python_docs import read_python_docs

PYTHON_DOCS = "python-docs"
HUGGING_FACE = "hf:"

Reader = Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, with a held-out part.

    Iterating gives each document (str) once: identical ones are dropped, and those without any
    text. Whether a document is held out depends on a hash of its content, never on its position, so
    it stays where it is when others come or go. A dataset with its own validation split keeps that one.
    Reading keeps 8 bytes of hash (about 80 in Python) per document in memory, and one document.

    Attributes:
        name: Short name, as it was asked for.
        description: One sentence for the model card.
        held_out: Expected share of documents in the validation part.
        part: Which part iterating gives: `"all"`, `"train"` or `"validation"`.

    Raises:
        ValueError: When read, if there is no document.
    """

    name: str
    description: str
    documents: Reader = field(repr=False)
    validation_documents: Reader | None = field(default=None, repr=False)
    held_out: float = 0.02
    part: Literal["all", "train", "validation"] = "all"

    def split(self, part: Literal["train", "validation"]) -> "Corpus":
        """The same corpus, of which only this part is read."""
        if part not in ("train", "validation"):
            raise ValueError(f"part={part!r} is unknown; use 'train' or 'validation'")
        return replace(self, part=part)

    def __iter__(self) -> Iterator[str]:
        read = 0
        for text, is_held_out in self._documents_once():
            if self.part == "all" or is_held_out == (self.part == "validation"):
                read += 1
                yield text
        if read == 0:
            raise ValueError(self._why_empty())

    def _documents_once(self) -> Iterator[tuple[str, bool]]:
        seen: set[int] = set()
        # Held-out documents go first, so that a copy of one in the training text is the one dropped.
        for own, reader in ((True, self.validation_documents), (False, self.documents)):
            for text in reader() if reader else ():
                key = _content_key(text)
                if key not in seen and not text.isspace() and text:
                    seen.add(key)
                    chosen = self.validation_documents is None and key < self.held_out * 2**64
                    yield text, own or chosen

    def _why_empty(self) -> str:
        if self.part == "all":
            return f"corpus {self.name!r} is empty: it holds no document with any text"
        return (
            f"corpus {self.name!r} has no {self.part} document at held_out={self.held_out}: each is "
            "chosen by its hash, so a few documents may all fall on one side. Change held_out, or "
            "cut the files into more documents with separator="
        )


def _content_key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def load_corpus(
    source: str | Path | Sequence[str | Path],
    *,
    held_out: float = 0.02,
    max_documents: int | None = None,
    separator: str | None = None,
    text_column: str = "text",
) -> Corpus:
    """Which documents does this source hold?

    Args:
        source: One of

            - `"python-docs"`: the documentation strings of the running Python and of every
              installed package. No download; one document per source file.
            - a path, several paths, or a glob such as `"books/**/*.txt"`: UTF-8 text files, one
              document each, or more with `separator`.
            - `"hf:OWNER/NAME"` or `"hf:OWNER/NAME:CONFIG"`: a Hugging Face dataset, streamed. The two that this
              field uses are `"hf:Salesforce/wikitext:wikitext-103-raw-v1"` and
              `"hf:Skylion007/openwebtext"`. A local directory works too: `"hf:./my-dataset"`.
        held_out: Expected share of documents in the validation split, between 0 and 1. Unused where
            the dataset has its own.
        max_documents: Read no more than the first so many documents of the source.
        separator: Text files only: the string between two documents of one file, for example
            `"<|endoftext|>"` or a few newlines.
        text_column: Datasets only: the column that holds the text.

    Raises:
        FileNotFoundError: A path or a glob has no file.
        ValueError: The source is unknown, a file is empty or not UTF-8, a dataset has no training
            split or no such column, or a number is out of range.

    >>> corpus = load_corpus(__file__, separator="\\n\\n\\n", held_out=0.3)
    >>> train, validation = set(corpus.split("train")), set(corpus.split("validation"))
    >>> train | validation == set(corpus) and not train & validation
    True
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} must lie between 0 and 1, both excluded; try 0.02")
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents={max_documents} must be at least 1, or None for all")
    if source == PYTHON_DOCS:
        corpus = _python_docs()
    elif isinstance(source, str) and source.startswith(HUGGING_FACE):
        corpus = _hugging_face(source, text_column)
    else:
        corpus = _text_files(source, separator)
    return replace(corpus, documents=_first(corpus.documents, max_documents), held_out=held_out)


def _first(documents: Reader, limit: int | None) -> Reader:
    return documents if limit is None else lambda: islice(documents(), limit)


def _python_docs() -> Corpus:
    documents, description = read_python_docs()
    return Corpus(PYTHON_DOCS, description, lambda: documents)


def _text_files(source: str | Path | Sequence[str | Path], separator: str | None) -> Corpus:
    given = [source] if isinstance(source, str | Path) else list(source)
    paths = list(dict.fromkeys(path for one in given for path in _matches(str(one))))
    if not paths:
        raise ValueError(f"no path given; {_KNOWN}")
    if separator == "":
        raise ValueError("separator='' cuts nowhere; give the text between documents, or None")
    n_characters = sum(len(_read(path)) for path in paths)  # every file is good before any work
    names = ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    return Corpus(
        name=paths[0].stem if len(paths) == 1 else f"{len(paths)} files",
        description=f"{n_characters:,} characters of text from {len(paths)} file(s): {names}.",
        documents=lambda: _file_documents(paths, separator),
    )


def _matches(pattern: str) -> list[Path]:
    """The file of this name, or else the files that the glob finds, sorted."""
    path = Path(pattern)
    if path.is_dir():
        raise ValueError(f"{pattern!r} is a directory; write '{pattern}/**/*.txt' for the files in it")
    if path.exists():
        return [path]
    if glob.has_magic(pattern):
        found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        if not (files := [path for path in found if path.is_file()]):
            raise FileNotFoundError(f"no file matches {pattern!r}")
        return files
    if path.parent == Path() and not path.suffix:
        raise ValueError(f"unknown source {pattern!r}; {_KNOWN}")
    raise FileNotFoundError(f"no file {pattern!r}; {_KNOWN}")


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}: {error.reason}); convert it to UTF-8 first"
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty; leave it out")
    return text


def _file_documents(paths: Sequence[Path], separator: str | None) -> Iterator[str]:
    for path in paths:
        text = _read(path)
        yield from [text] if separator is None else text.split(separator)


def _hugging_face(source: str, text_column: str) -> Corpus:
    # `datasets` takes a second to import, which text files need not wait for.
    from datasets import load_dataset

    path, _, config = source.removeprefix(HUGGING_FACE).partition(":")
    if not path:
        raise ValueError(f"{source!r} names no dataset; {_KNOWN}")
    splits: Mapping[str, Iterable[Mapping[str, Any]]] = load_dataset(
        path, config or None, streaming=True
    )
    if "train" not in splits:
        raise ValueError(f"{source!r} has no split 'train', only {sorted(splits)}")
    _check_column(source, splits["train"], text_column)
    validation = splits.get("validation")
    return Corpus(
        name=source,
        description=f"The Hugging Face dataset {path}{', configuration ' + config if config else ''}.",
        documents=lambda: _rows(splits["train"], text_column),
        validation_documents=validation and (lambda: _rows(validation, text_column)),
    )


def _check_column(source: str, rows: Iterable[Mapping[str, Any]], text_column: str) -> None:
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{source!r} is empty: its training split has no row")
    if not isinstance(first.get(text_column), str):
        texts = sorted(name for name, value in first.items() if isinstance(value, str))
        raise ValueError(
            f"{source!r} has no text column {text_column!r}; its text columns are {texts}: "
            "give one as text_column="
        )


def _rows(rows: Iterable[Mapping[str, Any]], text_column: str) -> Iterator[str]:
    return (row[text_column] or "" for row in rows)


_KNOWN = (
    f"a source is {PYTHON_DOCS!r}, the path or glob of text files ('books/*.txt'), or "
    f"'{HUGGING_FACE}OWNER/NAME[:CONFIG]' for a Hugging Face dataset"
)
