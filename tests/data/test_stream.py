"""A stream gives the blocks of the training documents, and goes on exactly where it was left."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from interp.data import stream as stream_module
from interp.data.blocks import cut_into_blocks
from interp.data.corpus import Corpus
from interp.data.stream import BlockStream
from interp.data.tokenizer import train_tokenizer

LETTERS = train_tokenizer(["abcdefghijklmnopqrstuvwxyz0123456789 "], kind="characters")
N_CTX = 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "DOCUMENTS_AT_ONCE", 5)


class Documents:
    """Twenty-three documents of different lengths; counts how often it was opened."""

    def __init__(self, n: int = 23):
        self.texts = [f"{number} " + "abc xyz " * (1 + number % 4) for number in range(n)]

    def __call__(self) -> list[str]:
        return self.texts


def stream_of(tmp_path: Path, n: int = 23, **options) -> BlockStream:
    corpus = Corpus("letters", "Letters.", Documents(n), held_out=0.1)
    return BlockStream(corpus, LETTERS, N_CTX, tmp_path / "sizes.json", **options)


def first(stream: BlockStream, n: int) -> list[tuple[int, ...]]:
    return [tuple(item["input_ids"].tolist()) for item in islice(stream, n)]


def one_turn(stream: BlockStream) -> list[list[tuple[int, ...]]]:
    """All blocks, by chunk, in the source's order."""
    texts = list(stream.corpus.stream())
    chunks = [texts[at : at + 5] for at in range(0, len(texts), 5)]
    return [[tuple(b) for b in cut_into_blocks(some, LETTERS, N_CTX)] for some in chunks]


def test_the_blocks_are_those_of_the_training_documents_shuffled_by_chunk(tmp_path: Path):
    stream = stream_of(tmp_path)
    given = first(stream, 500)
    at = 0
    in_order = True
    for chunk in one_turn(stream):
        some = given[at : at + len(chunk)]
        assert Counter(some) == Counter(chunk)
        in_order = in_order and some == chunk
        at += len(chunk)
    assert not in_order
    held_out = set(stream.corpus.split("validation").stream())
    assert held_out
    assert held_out.isdisjoint(stream.corpus.stream())


def test_blocks_are_what_a_trainer_wants(tmp_path: Path):
    [item] = islice(stream_of(tmp_path), 1)
    assert list(item) == ["input_ids"]
    assert item["input_ids"].dtype == torch.long
    assert item["input_ids"].shape == (N_CTX,)


def test_the_seed_decides_the_order(tmp_path: Path):
    assert first(stream_of(tmp_path), 60) == first(stream_of(tmp_path), 60)
    assert first(stream_of(tmp_path), 60) != first(stream_of(tmp_path, seed=1), 60)


def test_after_the_last_document_comes_the_first_in_another_order(tmp_path: Path):
    stream = stream_of(tmp_path)
    size = sum(map(len, one_turn(stream)))
    given = first(stream, 2 * size)
    assert Counter(given[:size]) == Counter(given[size:])
    assert given[:size] != given[size:]


@pytest.mark.parametrize("known", [True, False])
def test_going_on_gives_what_was_left(tmp_path: Path, known: bool):
    whole = first(stream_of(tmp_path), 200)
    size = sum(json.loads((tmp_path / "sizes.json").read_text()))
    assert size < 120  # so that it starts in the second turn, too
    for start in (0, 1, 7, 23, 60, size - 1, size, size + 1, 150):
        if not known:
            (tmp_path / "sizes.json").unlink()
        assert first(stream_of(tmp_path, start=start), 50) == whole[start : start + 50], start


def test_what_was_trained_on_is_not_tokenised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes = [len(chunk) for chunk in one_turn(stream_of(tmp_path))]
    first(stream_of(tmp_path), sum(sizes) + 1)
    tokenised = []
    cut = stream_module.cut_into_blocks

    def count(texts, *args):
        tokenised.append(texts)
        return cut(texts, *args)

    monkeypatch.setattr(stream_module, "cut_into_blocks", count)
    first(stream_of(tmp_path, start=sum(sizes[:3])), 1)
    texts = list(stream_of(tmp_path).corpus.stream())
    assert tokenised[0] == texts[15:20]


def test_a_chunk_that_fills_no_block_is_passed_over(tmp_path: Path):
    corpus = Corpus("two", "Two.", lambda: ["abcdefgh"] * 5 + ["z"], held_out=1e-9)
    stream = BlockStream(corpus, LETTERS, N_CTX, tmp_path / "sizes.json")
    whole = first(stream, 30)
    assert json.loads((tmp_path / "sizes.json").read_text())[1] == 0
    assert (
        first(BlockStream(corpus, LETTERS, N_CTX, tmp_path / "sizes.json", start=9), 21)
        == whole[9:]
    )


def test_a_corpus_that_fills_no_block_is_refused(tmp_path: Path):
    corpus = Corpus("short", "Short.", lambda: ["ab"], held_out=1e-9)
    with pytest.raises(ValueError, match=r"'short' fills no block of n_ctx=8"):
        first(BlockStream(corpus, LETTERS, N_CTX, tmp_path / "sizes.json"), 1)


def test_a_corpus_that_has_changed_is_refused(tmp_path: Path):
    first(stream_of(tmp_path), 30)
    other = Corpus("letters", "Letters.", lambda: ["abc"] * 100, held_out=1e-9)
    with pytest.raises(ValueError, match=r"'letters' has changed since"):
        first(BlockStream(other, LETTERS, N_CTX, tmp_path / "sizes.json"), 30)


def test_a_stream_of_documents_drops_blank_ones_and_keeps_repeated_ones():
    letters = list("abcdefghij")
    corpus = Corpus("a", "A.", lambda: [*letters, "", " \n", *letters], held_out=0.5)
    assert list(corpus.stream()) == letters * 2
    train, held_out = (list(corpus.split(part).stream()) for part in ("train", "validation"))
    assert sorted(train + held_out) == sorted(letters * 2)
    assert set(train).isdisjoint(held_out)
    own = Corpus("a", "A.", lambda: ["b", "c", "b"], validation_documents=lambda: ["", "c"])
    assert list(own.split("train").stream()) == ["b", "c", "b"]
    assert list(own.split("validation").stream()) == ["c"]
    assert list(own.stream()) == ["c", "b", "c", "b"]
