"""A corpus is made ready once; who asks again, or at the same time, finds the same."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch

from interp.data import prepared as prepared_module
from interp.data.loading import load_corpus
from interp.data.prepared import Prepared, Settings, prepare, table_of

N_CTX = 16


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    directory = tmp_path / "corpus"
    directory.mkdir()
    for number in range(40):
        (directory / f"{number}.txt").write_text(f"document {number} " * 30)
    return directory


def settings(directory: Path, **changes) -> Settings:
    return Settings(
        **{
            "corpus": str(directory / "*.txt"),
            "held_out": 0.3,
            "kind": "bpe",
            "vocab_size": 300,
            "n_ctx": N_CTX,
            **changes,
        }
    )


def same(one: Prepared, other: Prepared) -> bool:
    return all(
        torch.equal(a[:]["input_ids"], b[:]["input_ids"])
        for a, b in ((one.train, other.train), (one.held_out, other.held_out))
    )


def test_it_is_the_corpus_packed(corpus: Path, tmp_path: Path):
    found = prepare(settings(corpus), tmp_path / "data")
    source = load_corpus(str(corpus / "*.txt"), held_out=0.3)
    text = found.tokenizer.decode(found.held_out[0]["input_ids"][1:])
    assert text.strip() in "".join(source.split("validation"))
    assert len(found.tokenizer) > 290
    assert found.description == source.description
    assert found.stream is None
    ours, again = found.tokenizer, prepare(settings(corpus), tmp_path / "data").tokenizer
    assert ours.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()


def test_what_is_there_is_not_made_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = prepare(settings(corpus), tmp_path / "data")
    (corpus / "new.txt").write_text("A document that came later. " * 40)
    monkeypatch.setattr(prepared_module, "load_corpus", None)  # nobody reads it
    assert same(prepare(settings(corpus), tmp_path / "data"), before)


@pytest.mark.parametrize(
    "change",
    [{"held_out": 0.5}, {"kind": "characters"}, {"vocab_size": 280}, {"n_ctx": 8}, {"corpus": ""}],
)
def test_other_settings_are_other_blocks(corpus: Path, tmp_path: Path, change: dict):
    if "corpus" in change:
        change = {"corpus": str(corpus / "1*.txt")}
    prepare(settings(corpus), tmp_path / "data")
    prepare(settings(corpus, **change), tmp_path / "data")
    assert len(list((tmp_path / "data").glob("prepared-*"))) == 2


def test_two_at_once_agree(corpus: Path, tmp_path: Path):
    with ThreadPoolExecutor(2) as workers:
        one, other = workers.map(lambda _: prepare(settings(corpus), tmp_path / "data"), range(2))
    assert same(one, other)
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {
        f"prepared-{settings(corpus).key}",
        table_of(one.train).name,
        table_of(one.held_out).name,
    }


def test_a_stream_packs_no_more_than_it_must(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prepared_module, "TOKENIZER_DOCUMENTS", 6)
    found = prepare(settings(corpus, held_out_documents=3), tmp_path / "data")
    source = load_corpus(str(corpus / "*.txt"), held_out=0.3)
    manifest = tmp_path / "data" / f"prepared-{settings(corpus, held_out_documents=3).key}"
    assert json.loads((manifest / "manifest.json").read_text())["held_out_documents"] == 3

    def whole(blocks) -> str:
        return "".join(found.tokenizer.decode(block[1:]) for block in blocks["input_ids"])

    held_out, train = (
        "<|bos|>".join(islice(source.split(part), n))
        for part, n in (("validation", 3), ("train", 6))
    )
    assert held_out.startswith(whole(found.held_out))
    assert train.startswith(whole(found.train))
    assert len(held_out) - len(whole(found.held_out)) < 200
    assert found.stream is not None
    assert len(list(islice(found.stream, 200))) == 200  # more than the corpus has, again and again


def test_a_corpus_too_small_to_hold_out_says_so(corpus: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"held_out=0\.001"):
        prepare(settings(corpus, held_out=0.001), tmp_path / "data")
    with pytest.raises(ValueError, match=r"held_out=0\.001"):
        prepare(settings(corpus, held_out=0.001, held_out_documents=3), tmp_path / "data")
