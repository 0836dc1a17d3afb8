"""Blocks: BOS first, nothing lost but the rest, and a table that is whole or not there."""

import os
import tempfile
from pathlib import Path

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
BOS_ID = LETTERS.bos_token_id


def spelled(dataset: datasets.Dataset) -> list[str]:
    """Blocks as text, with `^` for BOS."""
    return [LETTERS.decode(row).replace(BOS, "^") for row in dataset["input_ids"]]


def tables(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


# ----------------------------------------------------------------------------------- what a block holds


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (["abcdefg"], ["^abc", "^def"]),  # the last, partial block is dropped
        (["ab", "cdef"], ["^ab^", "^cde"]),  # a document ends inside a block, and is seen to end
        (["a", "bcdef"], ["^a^b", "^cde"]),
        (["abc", "def"], ["^abc", "^def"]),  # an end between two blocks: no second BOS
        (["a", "b", "c", "d"], ["^a^b", "^^c^"]),  # replaced below
        (["", "abc", ""], ["^abc"]),
    ],
)
def test_documents_are_joined_and_cut(tmp_path, documents, expected):
    assert spelled(pack(documents, LETTERS, 4, tmp_path)) == expected


letters = st.text("abcdefgh", max_size=12)


@given(st.lists(letters), st.integers(2, 9))
def test_every_block_begins_with_bos_and_the_text_comes_back(documents, n_ctx):
    text = "".join(documents)
    n_joints = max(len([d for d in documents if d]) - 1, 0)
    with tempfile.TemporaryDirectory() as directory:
        try:
            packed = spelled(pack(documents, LETTERS, n_ctx, directory))
        except ValueError:
            assert len(text) + n_joints < n_ctx - 1 + n_joints
            return
    assert all(block[0] == "^" and len(block) == n_ctx for block in packed)
    assert "^^" not in "".join(block[1:] for block in packed).replace("", "")
    kept = "".join(packed).replace("^", "")
    assert text.startswith(kept)
    assert len(text) - len(kept) < n_ctx - 1
