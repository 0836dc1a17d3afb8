"""Text to token ids: byte-level BPE or one token per character.

`<|bos|>` (id 0) stands before, between and after documents, so it is BOS and EOS; `<|pad|>` (id 1)
pads on the right. The character tokenizer also has `<|unk|>` (id 2) for what it never saw.

A document may happen to contain the characters "<|bos|>". Training and `pack` read them as plain
text, so that no document forges a boundary. In `tokenizer("<|bos|>Hello")` they mean the special
token, as with every Hugging Face tokenizer, unless the call says `split_special_tokens=True`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, PAD, UNK = "<|bos|>", "<|pad|>", "<|unk|>"
SPECIAL_TOKENS = {"bos_token": BOS, "eos_token": BOS, "pad_token": PAD}
"""What `PreTrainedTokenizerFast(tokenizer_file=..., **SPECIAL_TOKENS)` needs to know."""

_BYTES = 256


def train_tokenizer(
    documents: Iterable[str],
    vocab_size: int = 1024,
    kind: Literal["bpe", "characters"] = "bpe",
    *,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Which tokens suit these documents best?

    `bpe` is GPT-2's byte-level byte-pair encoding: every text can be encoded, and decoding gives
    the same text back. `characters` gives each of the commonest characters a token. The documents
    are read once, in a stream, and the same ones always give the same tokenizer.

    Args:
        documents: Texts, for example the training split of a `Corpus`.
        vocab_size: Upper bound on the number of tokens, the special ones included. Little text may
            give fewer: a pair has to occur twice to become a token.
        kind: `"bpe"` or `"characters"`.
        model_max_length: The context of the model that it is made for. Longer texts are still
            encoded whole, with a warning. None: no bound.

    Raises:
        TypeError: `documents` is one string.
        ValueError: `kind` is unknown, `vocab_size` is too small, or there is no text.

    Source: Sennrich et al. (arXiv 1508.07909); the byte-level form is that of GPT-2.

    >>> tokenizer = train_tokenizer(["low lower lowest"] * 2, vocab_size=262)
    >>> tokenizer.decode(tokenizer("lowest, naïvely").input_ids)
    'lowest, naïvely'
    """
    if isinstance(documents, str):
        raise TypeError("documents is one string; hand in a list of texts, [text], or a Corpus")
    if kind not in ("bpe", "characters"):
        raise ValueError(f"kind={kind!r} is unknown; use 'bpe' or 'characters'")
    is_bpe = kind == "bpe"
    tokenizer = (_train_bpe if is_bpe else _train_characters)(documents, vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
        **({} if is_bpe else {"unk_token": UNK}),
    )


def _train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    bound = _BYTES + len({BOS, PAD})
    if vocab_size < bound:
        raise ValueError(
            f"vocab_size={vocab_size} is below {bound}: byte-level BPE needs a token for each of "
            f"the {_BYTES} bytes and {bound - _BYTES} special ones; use at least {bound}, or "
            "kind='characters'"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_some_text(documents), trainer)
    return tokenizer


def _train_characters(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    special = [BOS, PAD, UNK]
    if vocab_size <= len(special):
        raise ValueError(
            f"vocab_size={vocab_size} leaves no room for a character beside the {len(special)} "
            f"special tokens; use at least {len(special) + 1}"
        )
    counts: Counter[str] = Counter()
    for text in _some_text(documents):
        counts.update(text)
    # Ties go to the lower code point, so that the order of the documents does not matter.
    commonest = sorted(counts, key=lambda character: (-counts[character], character))
    characters = sorted(commonest[: vocab_size - len(special)])
    vocab = {token: i for i, token in enumerate([*special, *characters])}
    # BPE without merges splits into characters, faster than a regular expression does.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNK, fuse_unk=False))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _some_text(documents: Iterable[str]) -> Iterator[str]:
    """The documents, unchanged; an error if not one of them has a character."""
    empty = True
    for text in documents:
        empty = empty and not text
        yield text
    if empty:
        raise ValueError("no text to train a tokenizer on: every document is empty")
