"""Tokenizers: every text comes back, boundaries cannot be forged, and files carry it all."""

import inspect
import time

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from transformers import PreTrainedTokenizerFast

from interp.data.tokenizer import BOS, PAD, SPECIAL_TOKENS, UNK, train_tokenizer

DOCUMENTS = [
    "the cat sat on the mat; the dog sat on the log\n",
    'def sat(cat: str) -> str:\n    """Where the cat sat."""\n    return "the mat"\n',
    "naïve café, 東京, \t tabs\r\n and   spaces 🦔",
] * 3

any_text = st.text(st.characters(exclude_categories=["Cs"]))

# Past the type checker that the tests run under: a caller may have none.
unchecked = inspect.unwrap(train_tokenizer)


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_tokenizer(DOCUMENTS, vocab_size=300)


@pytest.fixture(scope="module")
def characters() -> PreTrainedTokenizerFast:
    return train_tokenizer(DOCUMENTS, kind="characters")


@pytest.fixture(params=["bpe", "characters"])
def either(request) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, split_special_tokens=True).input_ids


# ------------------------------------------------------------------------------- there and back


@given(any_text)
@example("don't  clean , up . this ?")
@example(" leading, trailing ")
@example("\r\n\u2028\x00\x85")
@example(BOS + "<|bos|" + PAD)
def test_bytes_bring_any_text_back(bpe, text):
    assert bpe.decode(bpe(text).input_ids) == text
    assert bpe.decode(plain(bpe, text)) == text


@given(st.text(st.sampled_from(sorted(set("".join(DOCUMENTS))))))
@example(" a ,b .\n")
def test_known_characters_come_back_one_token_each(characters, text):
    ids = characters(text).input_ids
    assert len(ids) == len(text)
    assert characters.decode(ids) == text


def test_an_unknown_character_is_one_unknown_token(characters):
    ids = characters("c字字t").input_ids
    assert characters.convert_ids_to_tokens(ids) == ["c", UNK, UNK, "t"]


def test_pairs_that_occur_most_are_merged_first():
    """By hand: 'ab' occurs four times, then 'abc' twice; 'cd' once is never merged."""
    tokenizer = train_tokenizer(["abc", "abc", "ab", "ab", "cd"], vocab_size=300)
    assert len(tokenizer) == 258 + 2
    assert tokenizer.tokenize("ab abc cd") == ["ab", "Ġ", "abc", "Ġ", "c", "d"]


def test_words_begin_at_a_space_as_in_gpt2(bpe):
    assert bpe.tokenize("the cat sat") == ["the", "Ġcat", "Ġsat"]


def test_the_commonest_characters_are_kept_and_ties_go_to_the_lower_code_point():
    tokenizer = train_tokenizer(["zzz", "cab"], vocab_size=6, kind="characters")
    assert tokenizer.get_vocab() == {BOS: 0, PAD: 1, UNK: 2, "a": 3, "b": 4, "z": 5}


# ------------------------------------------------------------------------------- special tokens


def test_bos_is_eos_and_padding_is_on_the_right(either):
    assert either.bos_token_id == either.eos_token_id == 0
    assert either.pad_token_id == 1
    padded = either(["the cat", "t"], padding=True)
    assert padded.input_ids[1][0] == either.convert_tokens_to_ids("t")
    assert set(padded.input_ids[1][1:]) == {1}
    assert padded.attention_mask[1] == [1] + [0] * (len(padded.input_ids[1]) - 1)


def test_nothing_is_added_to_a_text(either):
    assert 0 not in either("the cat").input_ids


def test_a_special_token_spelled_out_is_special_only_where_asked(either):
    assert either(f"{BOS}t").input_ids == [0, either.convert_tokens_to_ids("t")]
    ids = plain(either, f"{BOS}t")
    assert 0 not in ids
    assert len(ids) > 2


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_a_special_token_in_the_documents_is_text_to_learn_from(kind):
    with_it = train_tokenizer([f"xy{BOS}"] * 9, vocab_size=300, kind=kind)
    assert {"<", "|", "b"} <= set(with_it.get_vocab())
    assert list(with_it.get_vocab().values()).count(0) == 1
    assert with_it.convert_tokens_to_ids(BOS) == 0


# ------------------------------------------------------------------------- size and determinism


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_the_same_documents_give_the_same_tokenizer(kind):
    first, second = (train_tokenizer(iter(DOCUMENTS), 320, kind) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


@pytest.mark.parametrize("vocab_size", [258, 270])
def test_the_vocabulary_has_the_asked_size(vocab_size):
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size)
    assert len(tokenizer) == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))


@pytest.mark.parametrize(
    ("kind", "bound"), [("bpe", 258), ("characters", 4)], ids=["bpe", "characters"]
)
def test_a_vocabulary_too_small_is_refused_with_the_bound(kind, bound):
    train_tokenizer(["a"], bound, kind)
    with pytest.raises(ValueError, match=rf"vocab_size={bound - 1} .*at least {bound}\b"):
        train_tokenizer(["a"], bound - 1, kind)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
@pytest.mark.parametrize("documents", [[], [""], iter(["", ""])])
def test_no_text_is_an_error(kind, documents):
    with pytest.raises(ValueError, match="no text to train a tokenizer on"):
        train_tokenizer(documents, 300, kind)


def test_one_string_is_not_a_list_of_documents():
    with pytest.raises(TypeError, match="documents is one string"):
        train_tokenizer("the cat")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='words' is unknown"):
        unchecked(["the cat"], kind="words")


def test_the_longest_text_is_the_one_of_the_model_it_is_made_for():
    assert train_tokenizer(["a"], kind="characters", model_max_length=32).model_max_length == 32
    assert train_tokenizer(["a"], kind="characters").model_max_length > 2**40


# ---------------------------------------------------------------------------------------- on disk


def described(tokenizer: PreTrainedTokenizerFast) -> tuple:
    special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    text = f"{BOS}the naïve cat ,sat 字\n"
    encoded = tokenizer(text).input_ids, plain(tokenizer, text)
    return special, encoded, tokenizer.decode(encoded[0]), tokenizer.padding_side


def test_a_saved_tokenizer_is_the_same(either, tmp_path):
    either.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert described(again) == described(either)
    assert again.model_max_length == either.model_max_length


def test_tokenizer_json_alone_carries_it_with_the_names_of_the_special_tokens(either, tmp_path):
    either.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), **SPECIAL_TOKENS
    )
    assert described(again) == described(either)


# ------------------------------------------------------------------------------------------ speed


@pytest.mark.parametrize("text", ["the cat sat on the mat\n", "a", " ", "\n", "🦔"])
def test_time_grows_with_length_and_no_faster(either, text):
    """Quadratic time would make it 64 times slower for 8 times the text."""

    def seconds(n_characters: int) -> float:
        document = text * (n_characters // len(text))
        start = time.process_time()
        either(document)
        return time.process_time() - start

    short = min(seconds(25_000) for _ in range(3))
    long = min(seconds(200_000) for _ in range(3))
    assert long < 25 * short
