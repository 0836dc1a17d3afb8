"""Hugging Face datasets as corpora: streamed from the hub, or from a local directory."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.data.corpus import HUGGING_FACE, KNOWN, Corpus, Documents

Rows = Iterable[Mapping[str, Any]]


def read_dataset(source: str, text_column: str) -> Corpus:
    """The training documents of a dataset, in a stream, and its validation documents if it has any.

    Raises:
        FileNotFoundError: a local directory that is not there.
        ValueError: no training split, or no such column.
    """
    # What only looks at names need not wait for this import.
    from datasets import load_dataset

    path, config = dataset_path(source)
    is_local = Path(path).is_dir()
    splits = {str(k): v for k, v in load_dataset(path, config or None, streaming=True).items()}
    if "train" not in splits:
        raise ValueError(f"{source!r} has no split 'train', only {sorted(splits)}")
    _check_column(source, splits["train"], text_column)
    together = _articles if path == "Salesforce/wikitext" else iter

    def reader(split: str) -> Documents:
        return lambda: together(row[text_column] or "" for row in splits[split])

    name = Path(path).name if is_local else path  # a model card names no path of this machine
    return Corpus(
        name=f"{name}:{config}" if config else name,
        description=f"The {'local' if is_local else 'Hugging Face'} dataset {name}"
        + (f", configuration {config}." if config else "."),
        documents=reader("train"),
        validation_documents=reader("validation") if "validation" in splits else None,
    )


def dataset_path(source: str) -> tuple[str, str]:
    """Where a dataset is, a hub repository or a local directory, and its configuration, if any.

    >>> dataset_path("hf:Salesforce/wikitext:wikitext-103-raw-v1")
    ('Salesforce/wikitext', 'wikitext-103-raw-v1')
    """
    path, _, config = source.removeprefix(HUGGING_FACE).partition(":")
    if not path:
        raise ValueError(f"{source!r} names no dataset; {KNOWN}")
    if path.startswith((".", "/")) and not Path(path).is_dir():
        raise FileNotFoundError(f"no directory {path!r} with a dataset; {KNOWN}")
    return path, config


def _check_column(source: str, rows: Rows, text_column: str) -> None:
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{source!r} is empty: its training split has no row")
    if text_column not in first:
        raise ValueError(
            f"{source!r} has no column {text_column!r}; it has {sorted(first)}: name one of them "
            "as text_column="
        )


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's rows are lines; an article begins at a first-level heading, ` = Title = `."""
    article: list[str] = []
    for line in lines:
        if re.fullmatch(r" = [^=]+ = \n", line) and article:
            yield "".join(article)
            article = []
        article.append(line)
    yield "".join(article)
