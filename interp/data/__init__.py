"""From text to blocks of tokens.

Example:
    ```python
    corpus = load_corpus("python-docs")
    tokenizer = train_tokenizer(corpus.split("train"), vocab_size=1024)
    blocks = pack(corpus.split("train"), tokenizer, n_ctx=256, directory="blocks")
    ```
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.data.blocks import pack as pack
    from interp.data.corpus import Corpus as Corpus
    from interp.data.loading import load_corpus as load_corpus
    from interp.data.tokenizer import train_tokenizer as train_tokenizer
else:
    # Loaded when asked for: blocks and tokenizer bring `datasets` and `transformers` with them.
    from interp.public import attach

    __getattr__, __dir__, __all__ = attach(__name__)
