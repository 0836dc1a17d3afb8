"""Where text comes from: local files, a Hugging Face dataset, or the Python documentation.

A corpus is read in a stream, again and again, and knows which of its documents are held out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import glob, has_magic
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Literal

from interp.data.python_docs import package_of, read_python_docs

PYTHON_DOCS = "python-docs"
HUGGING_FACE = "hf:"

KNOWN = (
    f"a source is {PYTHON_DOCS!r}, the path or the glob of text files ('books/*.txt'), or "
    f"'{HUGGING_FACE}OWNER/NAME[:CONFIG]' for a Hugging Face dataset"
)
_KEY_BYTES = 8

Reader = Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, some of them held out.

    Iterating gives every document (str) once: identical ones are dropped, and blank ones. Whether a
    document is held out is decided by a hash of its content, never by its position, so it stays on
    its side when others come or go. A dataset that has a validation split of its own keeps it.
    In memory are the document at hand and a hash of each one seen, some 80 bytes.

    Attributes:
        name: Short name of the source.
        description: One sentence for the model card.
        documents: Opens the source and gives its documents, those held out by hash included.
        validation_documents: The same for the validation split, where the source has its own.
        held_out: Expected share of documents that the hash holds out.
        part: What iterating gives: `"all"`, `"train"` or `"validation"`.
        group_of: From a document to the name of those that it is like, for errors over blocks of
            text (`pack`); None where every document stands by itself.

    Raises:
        ValueError: While it is read, if there turns out to be no document.

    >>> corpus = Corpus("greetings", "Two greetings.", lambda: ["hello", "goodbye", "hello"])
    >>> list(corpus)
    ['hello', 'goodbye']
    """

    name: str
    description: str
    documents: Reader = field(repr=False)
    validation_documents: Reader | None = field(default=None, repr=False)
    held_out: float = 0.02
    part: Literal["all", "train", "validation"] = "all"
    group_of: Callable[[str], str] | None = field(default=None, repr=False)

    def split(self, part: Literal["train", "validation"]) -> "Corpus":
        """The same corpus, read in this part only."""
        if part not in ("train", "validation"):
            raise ValueError(f"part={part!r} is unknown; use 'train' or 'validation'")
        return replace(self, part=part)

    def __iter__(self) -> Iterator[str]:
        return self._some(self._by_own_split() if self.validation_documents else self._by_hash())

    def _some(self, documents: Iterator[str]) -> Iterator[str]:
        is_empty = True
        for text in documents:
            is_empty = False
            yield text
        if is_empty:
            raise ValueError(self._why_empty())

    def stream(self) -> Iterator[str]:
        """As iterating, but documents that come again are given again, and none is remembered.

        For a corpus too large to remember. Copies of a document are on the same side of the hash.
        """
        return self._some(self._repeated())

    def _repeated(self) -> Iterator[str]:
        if self.validation_documents is None:
            yield from (text for key, text in _keyed(self.documents()) if self._has(key))
            return
        if self.part != "train":
            yield from (text for _, text in _keyed(self.validation_documents()))
        if self.part != "validation":
            yield from (text for _, text in _keyed(self.documents()))

    def _has(self, key: int) -> bool:
        """Whether the hash puts a document into this part."""
        is_held_out = key < self.held_out * 2 ** (8 * _KEY_BYTES)
        return self.part == "all" or is_held_out == (self.part == "validation")

    def _by_hash(self) -> Iterator[str]:
        yield from (text for key, text in _distinct(self.documents(), set()) if self._has(key))

    def _by_own_split(self) -> Iterator[str]:
        assert self.validation_documents is not None
        seen: set[int] = set()
        # Held-out text comes first, so that its copy in the training text is the one dropped.
        for _, text in _distinct(self.validation_documents(), seen):
            if self.part != "train":
                yield text
        if self.part != "validation":
            yield from (text for _, text in _distinct(self.documents(), seen))

    def _why_empty(self) -> str:
        if self.part == "all" or self.validation_documents:
            return f"corpus {self.name!r} is empty: no document of part {self.part!r} has any text"
        return (
            f"corpus {self.name!r} has no {self.part} document at held_out={self.held_out}: a hash "
            "decides for each, so a few may all fall on one side. Change held_out, or cut the "
            "files into more documents with separator="
        )


def _distinct(documents: Iterable[str], seen: set[int]) -> Iterator[tuple[int, str]]:
    """Each document that is not blank and not seen yet, after the hash of its content."""
    for key, text in _keyed(documents):
        if key not in seen:
            seen.add(key)
            yield key, text


def _keyed(documents: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each document that is not blank, after the hash of its content."""
    for text in documents:
        if text.strip():
            digest = blake2b(text.encode(), digest_size=_KEY_BYTES).digest()
            yield int.from_bytes(digest, "little"), text


def load_corpus(
    source: str | Path | Sequence[str | Path],
    *,
    held_out: float = 0.02,
    max_documents: int | None = None,
    separator: str | None = None,
    text_column: str = "text",
) -> Corpus:
    r"""Which documents does this source hold?

    Args:
        source: One of

            - `"python-docs"`: the documentation strings of the running Python and of every
              installed package. No download; one document per source file. Reading takes about a
              minute, and then the documents stay in memory.
            - a path, several paths, or a glob such as `"books/**/*.txt"`: UTF-8 text files, one
              document each, or more with `separator`.
            - `"hf:OWNER/NAME"` or `"hf:OWNER/NAME:CONFIG"`: a Hugging Face dataset, streamed. The
              two that this field uses are `"hf:Salesforce/wikitext:wikitext-103-raw-v1"`, whose
              lines are put together to articles, and `"hf:Skylion007/openwebtext"`. A local
              directory of parquet, JSON lines or text works too: `"hf:./my-dataset"`.
        held_out: Expected share of documents in the validation split, between 0 and 1. Unused
            where a dataset has its own.
        max_documents: Read no more than the source's first so many documents; its own validation
            split is not cut.
        separator: Text files only: what stands between two documents of a file, for example
            `"<|endoftext|>"` or a few newlines.
        text_column: Datasets only: the column that holds the text.

    Raises:
        FileNotFoundError: A path or a glob has no file.
        ValueError: The source is unknown, a file is empty or not UTF-8, a dataset has no training
            split or no such column, or an argument is out of range.

    >>> corpus = load_corpus(__file__, separator="\n\n\n", held_out=0.3)
    >>> train, validation = set(corpus.split("train")), set(corpus.split("validation"))
    >>> train | validation == set(corpus), train & validation
    (True, set())
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} must lie between 0 and 1, both excluded; try 0.02")
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents={max_documents} must be at least 1, or None for all")
    if separator == "":
        raise ValueError("separator='' cuts nowhere; give the text between documents, or None")
    if source == PYTHON_DOCS:
        corpus = _python_docs()
    elif isinstance(source, str) and source.startswith(HUGGING_FACE):
        from interp.data.hugging_face import read_dataset

        corpus = read_dataset(source, text_column)
    else:
        corpus = _text_files(source, separator)
    return replace(corpus, documents=_first(corpus.documents, max_documents), held_out=held_out)


def check_source(source: str) -> None:
    """Refuse a source that is not there, at once and without reading it.

    Raises:
        FileNotFoundError: a path, a glob or a local dataset has no file.
        ValueError: the source is unknown.
    """
    if source.startswith(HUGGING_FACE):
        from interp.data.hugging_face import dataset_path

        dataset_path(source)
    elif source != PYTHON_DOCS:
        _files(source)


def _first(documents: Reader, limit: int | None) -> Reader:
    return documents if limit is None else lambda: islice(documents(), limit)


def _python_docs() -> Corpus:
    documents, description = read_python_docs()
    # Files of one package are alike: over documents the error of a mean loss is 0.6 of what it is
    # over packages, and blocks taken as independent give 0.13 of it.
    return Corpus(PYTHON_DOCS, description, lambda: documents, group_of=package_of)


def _text_files(source: str | Path | Sequence[str | Path], separator: str | None) -> Corpus:
    given = [source] if isinstance(source, str | Path) else source
    paths = list(dict.fromkeys(path for one in given for path in _files(str(one))))
    if not paths:
        raise ValueError(f"no path given; {KNOWN}")
    n_characters = sum(len(_read(path)) for path in paths)  # so that a bad file is named at once
    names = ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    return Corpus(
        name=paths[0].stem if len(paths) == 1 else f"{paths[0].stem} and {len(paths) - 1} more",
        description=f"Text files, {n_characters:,} characters in {len(paths)}: {names}.",
        documents=lambda: _cut(paths, separator),
    )


def _files(pattern: str) -> list[Path]:
    """The file of this name or, if there is none, what it matches as a glob, sorted."""
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        raise ValueError(f"{pattern!r} is a directory; a glob such as '*.txt' takes files from it")
    if has_magic(pattern):
        # Path.glob refuses absolute patterns.
        found = sorted(Path(name) for name in glob(pattern, recursive=True))  # noqa: PTH207
        if files := [path for path in found if path.is_file()]:
            return files
        raise FileNotFoundError(f"no file matches {pattern!r}")
    if path.name == pattern and not path.suffix:
        raise ValueError(f"unknown source {pattern!r}; {KNOWN}")
    raise FileNotFoundError(f"no file {pattern!r}; {KNOWN}")


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}: {error.reason}); convert it first"
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty; leave it out")
    return text


def _cut(paths: Sequence[Path], separator: str | None) -> Iterator[str]:
    for path in paths:
        yield from [_read(path)] if separator is None else _read(path).split(separator)
