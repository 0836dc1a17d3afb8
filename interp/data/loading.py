"""Where text comes from: local files, a Hugging Face dataset, or the Python documentation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import glob, has_magic
from itertools import islice
from pathlib import Path

from interp.data.corpus import HUGGING_FACE, KNOWN, PYTHON_DOCS, Corpus, Documents
from interp.data.hugging_face import dataset_path, read_dataset
from interp.data.python_docs import package_of, read_python_docs


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
        dataset_path(source)
    elif source != PYTHON_DOCS:
        _files(source)


def _first(documents: Documents, limit: int | None) -> Documents:
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
