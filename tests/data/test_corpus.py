"""Corpora: what a source holds, and which of it is held out."""

import inspect
import json
import re
from pathlib import Path

import datasets
import hypothesis.strategies as st
import pytest
from hypothesis import given

from interp.data.corpus import Corpus
from interp.data.loading import load_corpus

# Past the type checker that the tests run under: a caller may have none.
split = inspect.unwrap(Corpus.split)

documents_strategy = st.lists(st.text(st.characters(exclude_categories=["Cs"])))


def corpus_of(documents, **options):
    return Corpus("a name", "A description.", lambda: documents, **options)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_rows(path: Path, texts: list[str], column: str = "text") -> Path:
    return write(path, "".join(json.dumps({column: text}) + "\n" for text in texts))


# ------------------------------------------------------------------------------------ documents


def test_identical_and_blank_documents_are_dropped():
    corpus = corpus_of(["b", "", "a", "b", " \n", "c", "a"])
    assert list(corpus) == ["b", "a", "c"]


def test_a_corpus_is_read_again_and_again():
    corpus = corpus_of(["a", "b"])
    assert list(corpus) == list(corpus) == ["a", "b"]


def test_a_corpus_streams():
    def endless():
        n = 0
        while True:
            yield str(n)
            n += 1

    first = iter(Corpus("endless", "Numbers.", endless))
    assert [next(first) for _ in range(3)] == ["0", "1", "2"]


@pytest.mark.parametrize("documents", [[], [""], [" ", "\n\t"]])
def test_an_empty_corpus_is_an_error(documents):
    with pytest.raises(ValueError, match="'a name' is empty"):
        list(corpus_of(documents))


# ---------------------------------------------------------------------------------------- splits


def halves(documents: list[str], held_out: float = 0.5) -> tuple[list[str], list[str]]:
    """Both splits, [] where there is none."""
    corpus, found = corpus_of(documents, held_out=held_out), []
    for part in ("train", "validation"):
        try:
            found.append(list(corpus.split(part)))
        except ValueError:
            found.append([])
    return found[0], found[1]


@given(documents_strategy)
def test_the_splits_share_nothing_and_lose_nothing(documents):
    train, validation = halves(documents)
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted({text for text in documents if text.strip()})


@given(documents_strategy, documents_strategy)
def test_a_document_stays_on_its_side_when_others_come(documents, others):
    train, validation = halves(documents)
    more_train, more_validation = halves([*others, *reversed(documents)])
    assert set(train) <= set(more_train)
    assert set(validation) <= set(more_validation)


@pytest.mark.parametrize("held_out", [0.02, 0.3])
def test_about_the_asked_share_is_held_out(held_out):
    n = 10_000
    _, validation = halves([f"document {i}" for i in range(n)], held_out)
    spread = (n * held_out * (1 - held_out)) ** 0.5
    assert abs(len(validation) - n * held_out) < 4 * spread


def test_the_choice_is_the_same_on_every_machine():
    """These sides came out when the hash was chosen; another choice would leak held-out text."""
    train, validation = halves(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"])
    assert validation == ["epsilon"]
    assert train == ["alpha", "beta", "gamma", "delta", "zeta"]


def test_a_split_that_got_nothing_says_what_to_do():
    corpus = corpus_of(["one document"], held_out=1e-9)
    assert list(corpus.split("train")) == ["one document"]
    with pytest.raises(ValueError, match=r"no validation document at held_out=1e-09.*separator="):
        list(corpus.split("validation"))


def test_an_own_validation_split_is_kept_and_its_copies_leave_the_training_text():
    corpus = corpus_of(["a", "b", "c", "a"], validation_documents=lambda: ["d", "b", "d"])
    assert list(corpus.split("train")) == ["a", "c"]
    assert list(corpus.split("validation")) == ["d", "b"]
    assert sorted(corpus) == ["a", "b", "c", "d"]


def test_reading_an_own_validation_split_leaves_the_training_split_alone():
    def unread():
        raise AssertionError("the training split was opened")

    corpus = Corpus("a name", "A description.", unread, validation_documents=lambda: ["a"])
    assert list(corpus.split("validation")) == ["a"]


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part='test' is unknown"):
        split(corpus_of(["a"]), "test")


# ------------------------------------------------------------------------------------ text files


def test_one_document_per_file_paragraphs_together(tmp_path):
    path = write(tmp_path / "book.txt", "One.\n\nTwo, naïvely.\n")
    corpus = load_corpus(path)
    assert list(corpus) == ["One.\n\nTwo, naïvely.\n"]
    assert corpus.name == "book"
    assert "book.txt" in corpus.description
    assert "20 characters" in corpus.description
    assert str(tmp_path) not in corpus.description


def test_several_paths_keep_their_order_and_count_once(tmp_path):
    b, a = write(tmp_path / "b.txt", "B"), write(tmp_path / "a.txt", "A")
    assert list(load_corpus([b, str(a), b])) == ["B", "A"]


def test_a_glob_is_sorted_and_may_go_deep(tmp_path):
    for name in ("z.txt", "a/b/c.txt", "m.txt", "m.md"):
        write(tmp_path / name, name)
    assert list(load_corpus(f"{tmp_path}/**/*.txt")) == ["a/b/c.txt", "m.txt", "z.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    write(tmp_path / "x.txt", "x")
    path = write(tmp_path / "[x].txt", "brackets")
    assert list(load_corpus(path)) == ["brackets"]


def test_a_separator_cuts_a_file_into_documents(tmp_path):
    path = write(tmp_path / "stories.txt", "One.\n<|end|>\nTwo.\n<|end|>\n")
    assert list(load_corpus(path, separator="\n<|end|>\n")) == ["One.", "Two."]


def test_max_documents_takes_the_first(tmp_path):
    path = write(tmp_path / "letters.txt", "a b c d")
    assert list(load_corpus(path, separator=" ", max_documents=2)) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "empty"), (b" \n", "empty"), (b"good \xff", r"not UTF-8 \(byte 5: invalid start")],
)
def test_a_bad_file_is_named_when_the_corpus_is_loaded(tmp_path, content, complaint):
    good, bad = write(tmp_path / "good.txt", "text"), tmp_path / "bad.txt"
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.txt is {complaint}"):
        load_corpus([good, bad])


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("missing.txt", "no file '.*missing.txt'"),
        ("Salesforce/wikitext", "'hf:OWNER/NAME"),
        ("*.nothing", "no file matches '.*nothing'"),
        ("hf:./missing", r"no directory './missing'"),
    ],
)
def test_a_missing_file_is_named(source, complaint):
    with pytest.raises(FileNotFoundError, match=complaint):
        load_corpus(source)


@pytest.mark.parametrize("source", ["wikipedia", "python_docs", [], "hf:"])
def test_an_unknown_source_is_told_the_known_ones(source):
    with pytest.raises(ValueError, match=r"'python-docs'.*glob.*'hf:OWNER/NAME"):
        load_corpus(source)


def test_a_directory_is_told_to_be_a_glob(tmp_path):
    with pytest.raises(ValueError, match=r"is a directory; a glob such as '\*.txt'"):
        load_corpus(tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"held_out": 0.0}, "held_out=0.0 must lie between 0 and 1"),
        ({"held_out": 1.0}, "held_out=1.0 must lie between 0 and 1"),
        ({"max_documents": 0}, "max_documents=0 must be at least 1"),
        ({"separator": ""}, "separator='' cuts nowhere"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_read(options, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        load_corpus("missing.txt", **options)


# ---------------------------------------------------------------------------- Hugging Face datasets


@pytest.fixture
def streamed(monkeypatch):
    """The arguments of every call to `load_dataset`, which answers with a given dataset."""
    calls, answer = [], {}

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls, answer


def test_a_dataset_with_its_own_validation_split(tmp_path):
    write_rows(tmp_path / "train.jsonl", ["one", "two", "three", "one", ""])
    write_rows(tmp_path / "validation.jsonl", ["four", "two"])
    corpus = load_corpus(f"hf:{tmp_path}")
    assert list(corpus.split("train")) == ["one", "three"]
    assert list(corpus.split("validation")) == ["four", "two"]
    assert corpus.name == tmp_path.name
    assert str(tmp_path) not in corpus.description


def test_a_dataset_without_one_is_split_by_hash(tmp_path):
    rows = [f"row {i}" for i in range(40)]
    write_rows(tmp_path / "train.jsonl", rows, column="body")
    corpus = load_corpus(f"hf:{tmp_path}", text_column="body", held_out=0.5)
    train, validation = halves(rows)
    assert list(corpus.split("train")) == train
    assert list(corpus.split("validation")) == validation


def test_name_and_configuration_of_a_dataset_on_the_hub(streamed):
    calls, answer = streamed
    answer["train"] = [{"text": "hello"}]
    corpus = load_corpus("hf:Salesforce/wikitext:wikitext-103-raw-v1")
    load_corpus("hf:Skylion007/openwebtext")
    assert calls == [
        (("Salesforce/wikitext", "wikitext-103-raw-v1"), {"streaming": True}),
        (("Skylion007/openwebtext", None), {"streaming": True}),
    ]
    assert corpus.name == "Salesforce/wikitext:wikitext-103-raw-v1"


def test_the_lines_of_wikitext_are_put_together_to_articles(streamed):
    _, answer = streamed
    lines = ["", " = Robert Boulter = \n", "", " Actor . \n", " = = Career = = \n", " a = b \n"]
    answer["train"] = [{"text": line} for line in [*lines, "", " = Du Fu = \n", " Poet . \n"]]
    assert list(load_corpus("hf:Salesforce/wikitext:wikitext-2-raw-v1")) == [
        " = Robert Boulter = \n Actor . \n = = Career = = \n a = b \n",
        " = Du Fu = \n Poet . \n",
    ]


def test_a_dataset_without_a_training_split_names_those_it_has(streamed):
    streamed[1]["test"] = [{"text": "hello"}]
    with pytest.raises(ValueError, match=r"no split 'train', only \['test'\]"):
        load_corpus("hf:owner/name")


def test_a_missing_column_names_those_there_are(tmp_path):
    write_rows(tmp_path / "train.jsonl", ["one"], column="body")
    with pytest.raises(ValueError, match=r"no column 'text'; it has \['body'\]"):
        load_corpus(f"hf:{tmp_path}")


def test_an_empty_dataset_is_an_error(streamed):
    streamed[1]["train"] = []
    with pytest.raises(ValueError, match="'hf:owner/name' is empty"):
        load_corpus("hf:owner/name")
