"""From text to blocks of tokens.

Example:
    ```python
    corpus = load_corpus("python-docs")
    tokenizer = train_tokenizer(corpus.split("train"), vocab_size=1024)
    blocks = pack(corpus.split("train"), tokenizer, n_ctx=256, directory="blocks")
    ```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.data.blocks import pack
    from interp.data.corpus import Corpus, load_corpus
    from interp.data.tokenizer import train_tokenizer

__all__ = ["Corpus", "load_corpus", "pack", "train_tokenizer"]

# Loaded when asked for: blocks and tokenizer bring `datasets` and `transformers` with them.
_HOME = {
    "Corpus": "interp.data.corpus",
    "load_corpus": "interp.data.corpus",
    "pack": "interp.data.blocks",
    "train_tokenizer": "interp.data.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
