"""A corpus: read in a stream, again and again, it knows which of its documents are held out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal

PYTHON_DOCS = "python-docs"
HUGGING_FACE = "hf:"
KNOWN = (
    f"a source is {PYTHON_DOCS!r}, the path or the glob of text files ('books/*.txt'), or "
    f"'{HUGGING_FACE}OWNER/NAME[:CONFIG]' for a Hugging Face dataset"
)
"""How a corpus is called by name; what each means, `interp.data.loading` knows."""

_KEY_BYTES = 8

Documents = Callable[[], Iterable[str]]


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
    documents: Documents = field(repr=False)
    validation_documents: Documents | None = field(default=None, repr=False)
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
