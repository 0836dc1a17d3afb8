"""Blocks: BOS first, nothing lost but the rest, and a table that is whole or not there."""

import shutil
import tempfile
from itertools import cycle, pairwise

import datasets
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from transformers import PreTrainedTokenizerFast, default_data_collator

from interp.data import blocks as blocks_module
from interp.data.blocks import pack
from interp.data.corpus import Corpus
from interp.data.tokenizer import BOS, train_tokenizer

LETTERS = train_tokenizer(["abcdefghijklmnopqrstuvwxyz<|>"], kind="characters")


def spelled(dataset: datasets.Dataset) -> list[str]:
    """Blocks as text, with `^` for BOS."""
    return [LETTERS.decode(row).replace(BOS, "^") for row in dataset["input_ids"]]


def packed(documents: list[str], n_ctx: int) -> list[str]:
    """The same without a table to keep; no blocks where there is too little text."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            return spelled(pack(documents, LETTERS, n_ctx, directory))
        except ValueError:
            return []


class Interrupted:
    """Documents that can be read whole once; the second time something happens half way."""

    def __init__(self, documents, event):
        self.documents, self.event, self.reads = documents, event, 0

    def __iter__(self):
        self.reads += 1
        for i, text in enumerate(self.documents):
            if self.reads == 2 and i == len(self.documents) // 2:
                self.event()
            yield text


# -------------------------------------------------------------------------- what a block holds


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (["abcdefg"], ["^abc", "^def"]),  # the last, partial block is dropped
        (["ab", "cdef"], ["^ab^", "^cde"]),  # an end at the end of a block counts
        (["a", "bcdef"], ["^a^b", "^cde"]),
        (["abc", "def"], ["^abc", "^def"]),  # an end between two blocks: no second BOS
        (["a", "b", "c", "d"], ["^a^b", "^c^d"]),
        (["", "ab", "", "c", ""], ["^ab^"]),  # empty documents leave no trace
    ],
)
def test_documents_are_joined_and_cut(documents, expected):
    assert packed(documents, 4) == expected


@given(st.lists(st.text("abcdefgh", max_size=12)), st.integers(2, 9))
def test_every_block_begins_with_bos_and_only_the_rest_is_lost(documents, n_ctx):
    blocks, text = packed(documents, n_ctx), "".join(documents)
    assert all(len(block) == n_ctx and block[0] == "^" for block in blocks)
    assert not any("^^" in block for block in blocks)
    kept = "".join(blocks).replace("^", "")
    assert text.startswith(kept)
    assert len(text) - len(kept) < n_ctx - 1


@given(st.lists(st.integers(0, 12)), st.integers(2, 9))
def test_bos_stands_between_any_two_documents_and_never_inside_one(lengths, n_ctx):
    names = cycle("xyz")
    documents = [next(names) * n for n in lengths if n]
    pairs = [pair for block in packed(documents, n_ctx) for pair in pairwise(block[1:])]
    assert all(a == b or "^" in (a, b) for a, b in pairs)
    joints = sum(a != "^" == b for a, b in pairs)
    assert joints < max(len(documents), 1)


def test_a_special_token_spelled_out_in_a_document_is_text(tmp_path):
    [block] = pack([f"a{BOS}b"], LETTERS, 10, tmp_path)["input_ids"]
    assert block.tolist().count(LETTERS.bos_token_id) == 1
    assert LETTERS.decode(block) == f"{BOS}a{BOS}b"


def test_any_batch_size_cuts_the_same_blocks(tmp_path, monkeypatch):
    documents = [letter * n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz")]
    whole = spelled(pack(documents, LETTERS, 7, tmp_path / "whole"))
    monkeypatch.setattr(blocks_module, "_CHARACTERS_AT_ONCE", 10)
    monkeypatch.setattr(blocks_module, "_BLOCKS_AT_ONCE", 3)
    assert spelled(pack(documents, LETTERS, 7, tmp_path / "pieces")) == whole
    assert len(whole) > 50


def test_a_split_of_a_corpus_is_packed(tmp_path):
    corpus = Corpus("a", "A.", lambda: ["abc", "def", "abc"], lambda: ["xyz"])
    assert spelled(pack(corpus.split("train"), LETTERS, 4, tmp_path)) == ["^abc", "^def"]
    assert spelled(pack(corpus.split("validation"), LETTERS, 4, tmp_path)) == ["^xyz"]


# --------------------------------------------------------------------------------- its groups


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (["abcdefg"], ["document 0", "document 0"]),
        (["ab", "cdef"], ["document 0", "document 1"]),  # ^ab^ | ^cde
        (["a", "bcdef"], ["document 1", "document 1"]),  # ^a^b: b and the BOS before it are two
        (["a", "b", "c", "d"], ["document 1", "document 3"]),
        (["", "abc", "def"], ["document 1", "document 2"]),
    ],
)
def test_a_block_is_of_the_document_with_the_most_of_it(documents, expected, tmp_path):
    assert pack(documents, LETTERS, 4, tmp_path)["group"][:] == expected


def test_documents_may_belong_together(tmp_path):
    documents = ["xaa", "xbb", "ycccccc"]
    blocks = pack(documents, LETTERS, 4, tmp_path, group_of=lambda text: text[0])
    assert blocks["group"][:] == ["x", "x", "y", "y"]
    assert blocks[:2]["group"] == ["x", "x"]
    corpus = Corpus("a", "A.", lambda: documents, group_of=lambda text: text[0])
    assert pack(corpus, LETTERS, 4, tmp_path)["group"][:] == ["x", "x", "y", "y"]
    # Other groups are another table; the same ones are the same.
    apart = pack(documents, LETTERS, 4, tmp_path)
    assert apart["group"][:] == ["document 0", "document 1", "document 2", "document 2"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_group_is_named(tmp_path):
    with pytest.raises(TypeError, match="group_of gives 3 for the document that begins 'abc'"):
        pack(["abc"], LETTERS, 4, tmp_path, group_of=len)


@given(st.lists(st.integers(0, 12), max_size=9), st.integers(2, 9))
def test_a_group_has_most_of_its_block(lengths, n_ctx):
    documents = [letter * n for letter, n in zip("abcdefghi", lengths, strict=False)]
    with tempfile.TemporaryDirectory() as directory:
        try:
            blocks = pack(documents, LETTERS, n_ctx, directory, group_of=lambda text: text[:1])
        except ValueError:
            return
        for block, group in zip(spelled(blocks), blocks["group"], strict=True):
            counts = {letter: block.count(letter) for letter in set(block[1:]) - {"^"}}
            # The BOS before a document counts as its own.
            assert not counts or counts.get(group, 0) + 1 >= max(counts.values())


# ------------------------------------------------------------------------------ as a dataset


def test_the_trainer_gets_int64_from_16_bits_on_disk(tmp_path):
    dataset = pack(["abcdefghi"], LETTERS, 4, tmp_path)
    assert dataset.features["input_ids"].feature.dtype == "uint16"
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=default_data_collator)
    [batch] = loader
    a = LETTERS.convert_tokens_to_ids("a")
    expected = [[0, a, a + 1, a + 2], [0, a + 3, a + 4, a + 5], [0, a + 6, a + 7, a + 8]]
    assert batch["input_ids"].tolist() == expected
    assert batch["input_ids"].dtype == torch.int64


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "int32")])
def test_the_type_on_disk_holds_every_token(tmp_path, vocab_size, dtype):
    signs = "".join(chr(0x10000 + i) for i in range(vocab_size - 3))
    tokenizer = train_tokenizer([signs], vocab_size, "characters")
    dataset = pack([signs[-2:]], tokenizer, 3, tmp_path)
    assert len(tokenizer) == vocab_size
    assert dataset.features["input_ids"].feature.dtype == dtype
    assert dataset[0]["input_ids"].tolist() == [0, vocab_size - 2, vocab_size - 1]


# ------------------------------------------------------------------------------ the table on disk


def test_a_table_is_used_again_without_tokenising(tmp_path, monkeypatch):
    first = pack(["abcdef"], LETTERS, 4, tmp_path)

    def refuse(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(blocks_module, "_tokenise", refuse)
    again = pack(["abcdef"], LETTERS, 4, tmp_path)
    assert spelled(again) == spelled(first) == ["^abc", "^def"]
    with pytest.raises(AssertionError, match="tokenised again"):
        pack(["abcdeg"], LETTERS, 4, tmp_path)


def test_the_name_covers_documents_tokenizer_and_context(tmp_path):
    other = train_tokenizer(["abcdefghijklmnopqrstuvwxyz"], kind="characters")
    variants = [
        (["abcd", "ef"], LETTERS, 4),
        (["abc", "def"], LETTERS, 4),
        (["def", "abc"], LETTERS, 4),
        (["abcd", "ef"], LETTERS, 3),
        (["abcd", "ef"], other, 4),
    ]
    for n, variant in enumerate(variants, start=1):
        pack(*variant, tmp_path)
        assert len(list(tmp_path.iterdir())) == n


def test_the_last_call_of_the_tokenizer_does_not_change_the_name(tmp_path):
    tokenizer = train_tokenizer(["abcdefghijklmnopqrstuvwxyz<|>"], kind="characters")
    before = tokenizer.backend_tokenizer.to_str()
    tokenizer(["a", "abc"], padding="max_length", truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.to_str() != before
    for one in (LETTERS, tokenizer):
        assert spelled(pack(["abcdef"], one, 4, tmp_path)) == ["^abc", "^def"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_nothing(tmp_path, error):
    def interrupt():
        raise error

    documents = Interrupted(["abcdef"] * 6, interrupt)
    with pytest.raises(error):
        pack(documents, LETTERS, 4, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(pack(documents, LETTERS, 4, tmp_path)) == 12


def test_what_a_killed_run_leaves_is_never_taken_for_a_table(tmp_path):
    killed = tmp_path / "killed"

    def copy_the_unfinished():
        shutil.copytree(tmp_path / "running", killed)

    documents = Interrupted(["abcdef"] * 6, copy_the_unfinished)
    whole = pack(documents, LETTERS, 4, tmp_path / "running")
    [left] = killed.iterdir()
    assert left.name.startswith(".packing-")
    assert spelled(pack(documents, LETTERS, 4, killed)) == spelled(whole)
    assert left.is_dir()


def test_two_processes_may_pack_the_same_at_once(tmp_path):
    documents = ["abcdef"] * 6
    racing = Interrupted(documents, lambda: pack(documents, LETTERS, 4, tmp_path))
    assert len(pack(racing, LETTERS, 4, tmp_path)) == 12
    assert [path.name[0] != "." for path in tmp_path.iterdir()] == [True]


# ------------------------------------------------------------------------------------- refusals


def test_too_little_text_says_how_many_tokens_there_were(tmp_path):
    with pytest.raises(ValueError, match=r"hold 6 tokens, fewer than the 7 .* n_ctx=8"):
        pack(["abc", "de"], LETTERS, 8, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(pack(["abc", "de"], LETTERS, 7, tmp_path)) == 1


@pytest.mark.parametrize("n_ctx", [1, 0, -3])
def test_a_context_without_room_for_text_is_refused(tmp_path, n_ctx):
    with pytest.raises(ValueError, match=f"n_ctx={n_ctx} leaves no room"):
        pack(["abc"], LETTERS, n_ctx, tmp_path)


def test_a_tokenizer_without_bos_is_refused(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=LETTERS.backend_tokenizer)
    with pytest.raises(ValueError, match="no BOS token"):
        pack(["abc"], tokenizer, 4, tmp_path)


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [("abc", "one string"), (iter(["abc"]), "read only once"), (map(str, "abc"), "is a map")],
)
def test_documents_that_cannot_be_read_twice_are_refused(tmp_path, documents, complaint):
    with pytest.raises(TypeError, match=complaint):
        pack(documents, LETTERS, 4, tmp_path)
    assert not any(tmp_path.iterdir())
