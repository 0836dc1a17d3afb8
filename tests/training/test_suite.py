"""A suite is many recipes from one file: merged, checked before any work, trained once each."""

import re
import threading
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.training import Recipe
from interp.training.directory import alone_in
from interp.training.flops import flops_per_token
from interp.training.suite import Suite, collect, train_suite

COMMON = """
name = "trial"
seeds = [0, 3]
steps = 4
probe_steps = 4
snapshots = 3
snapshot_blocks = 8
vocab_size = 300
n_ctx = 32
held_out = 0.3

[model]
d_model = 16
n_heads = 2
positions = "none"
"""
MEMBERS = """
[corpora]
words = "{corpus}"
again = "{corpus}"

[[member]]
name = "plain"
architecture = "HookedAttn"
corpora = ["words", "again"]
model = {{ positions = "learned" }}

[[member]]
name = "held"
optimizer = "muon"
held_at_zero = ["blocks.0.conv.W_conv.1"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def file(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("suite"), COMMON + MEMBERS.format(corpus=corpus))


@pytest.fixture(scope="module")
def directory(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_suite(file, tmp_path_factory.mktemp("runs") / "trial")


NAMES = [
    *("plain-words-seed0", "plain-again-seed0", "held-words-seed0"),
    *("plain-words-seed3", "plain-again-seed3", "held-words-seed3"),
]


def test_a_member_is_the_common_keys_with_its_own_over_them(file: Path, corpus: str):
    suite = Suite.load(file)
    assert (suite.name, len(suite)) == ("trial", 6)
    assert [run.recipe.name for run in suite] == NAMES  # all members of a seed before the next
    plain, _, held, *_ = (run.recipe for run in suite)
    assert plain == Recipe(
        name="plain-words-seed0",
        architecture="HookedAttn",
        corpus=corpus,
        steps=4,
        probe_steps=4,
        snapshots=3,
        snapshot_blocks=8,
        vocab_size=300,
        n_ctx=32,
        held_out=0.3,
        model={"d_model": 16, "n_heads": 2, "positions": "learned"},
    )
    assert held.model["positions"] == "none"
    assert (held.optimizer, held.held_at_zero) == ("muon", ("blocks.0.conv.W_conv.1",))
    assert [run.recipe.seed for run in suite] == [0, 0, 0, 3, 3, 3]


def test_a_suite_of_one_corpus_leaves_it_out_of_the_names(tmp_path: Path):
    text = COMMON.replace("steps = 4\n", 'steps = 4\ncorpus = "a.txt"\n', 1)
    [first, _] = Suite.load(write(tmp_path, text + '[[member]]\nname = "one"'))
    assert (first.recipe.name, first.recipe.corpus, first.corpus) == ("one-seed0", "a.txt", "a.txt")


def test_a_part_of_a_suite(file: Path):
    suite = Suite.load(file)
    assert [run.recipe.name for run in suite.only(["held"])] == NAMES[2::3]
    assert [run.recipe.name for run in suite.only(seeds=[3])] == NAMES[3:]
    with pytest.raises(ValueError, match=r"no member 'heldd'; it has held, plain"):
        suite.only(["heldd"])
    assert [run.recipe.name for run in suite.only(corpora=["again"])] == NAMES[1::3]
    with pytest.raises(ValueError, match=r"no corpus 'agan'; it has again, words"):
        suite.only(corpora=["agan"])
    with pytest.raises(ValueError, match=r"no seed 1; it has 0, 3"):
        suite.only(seeds=[1])


@pytest.mark.parametrize("name", ["formation", "sites"])
def test_bundled_suites_can_be_built(name: str):
    suite = Suite.load(name)
    assert len(suite) == len({run.recipe.name for run in suite})
    assert {run.recipe.steps for run in suite} == {suite.runs[0].recipe.steps}


# ------------------------------------------------------------------------------------- training


def test_every_run_is_trained_and_measured(directory: Path):
    assert {path.name for path in directory.iterdir()} == {*NAMES, "data", "development.parquet"}
    held = interp.load(str(directory / "held-words-seed0"))
    assert not held.conv(0).W_conv[1].any()
    table = pd.read_parquet(directory / "development.parquet")
    assert list(table["run"].unique()) == NAMES
    assert list(table["step"].unique()) == [0, 1, 4]
    facts = table.groupby("run")[["member", "corpus", "seed", "positions", "architecture"]].first()
    assert facts.loc["plain-again-seed3"].tolist() == [
        *("plain", "again", 3, "learned", "HookedAttn")
    ]
    first = table[table["run"] == "held-words-seed0"].iloc[0]
    assert first["parameters"] == sum(p.numel() for p in held.parameters())
    flops = flops_per_token(held.config)
    assert (first["flops_per_token"], first["unembedding_flops"]) == (
        flops.total,
        flops.unembedding,
    )


def test_a_runs_rows_are_its_own(directory: Path):
    table = pd.read_parquet(directory / "development.parquet")
    own = pd.read_parquet(directory / NAMES[4] / "development.parquet")
    rows = table[table["run"] == NAMES[4]].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows[own.columns], own)


def test_the_blocks_are_packed_once(directory: Path):
    manifests = list((directory / "data").glob("prepared-*"))
    tables = [path for path in (directory / "data").iterdir() if path not in manifests]
    assert (len(manifests), len(tables)) == (1, 2)  # both corpora are the same here
    assert not any((directory / name / "data").exists() for name in NAMES)


def test_what_is_finished_is_not_trained_again(directory: Path, file: Path):
    before = {name: (directory / name / "scores.json").stat().st_mtime_ns for name in NAMES}
    weights = directory / NAMES[0] / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    # As if it had been killed while it wrote its card.
    (directory / NAMES[1] / "scores.json").unlink()
    train_suite(file, directory)
    after = {name: (directory / name / "scores.json").stat().st_mtime_ns for name in NAMES}
    assert [name for name in NAMES if before[name] != after[name]] == [NAMES[1]]
    assert weights.stat().st_mtime_ns == stamp


def test_what_another_worker_trains_is_passed_over(file: Path, tmp_path: Path, directory: Path):
    place = tmp_path / "trial"
    taken = place / NAMES[2]
    taken.mkdir(parents=True)
    (place / "data").symlink_to(directory / "data")
    holding, finished = threading.Event(), threading.Event()

    def other_worker() -> None:
        with alone_in(taken):
            holding.set()
            finished.wait(60)

    worker = threading.Thread(target=other_worker)
    worker.start()
    holding.wait(60)
    try:
        train_suite(file, place, members=["held"])
    finally:
        finished.set()
        worker.join()
    assert not (taken / "model.safetensors").exists()
    assert (place / NAMES[5] / "scores.json").is_file()
    assert set(pd.read_parquet(place / "development.parquet")["run"]) == {NAMES[5]}


def test_runs_of_another_recipe_are_not_mixed_in(directory: Path, file: Path, tmp_path: Path):
    changed = file.read_text().replace("steps = 4", "steps = 5", 1)
    with pytest.raises(ValueError, match=r"begun with steps = 4, and the suite now says 5"):
        train_suite(write(tmp_path, changed), directory)


def test_a_suite_that_has_not_begun_has_no_table(file: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no development\.parquet"):
        collect(Suite.load(file), tmp_path)


def test_from_the_command_line(file: Path, directory: Path, tmp_path: Path):
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "data").symlink_to(directory / "data")
    flags = ["--out", str(tmp_path / "trial"), "--only", "plain", "--seed", "3"]
    result = CliRunner().invoke(app, ["suite", str(file), *flags])
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "trial").iterdir()}
    assert names == {NAMES[3], NAMES[4], "data", "development.parquet"}
    result = CliRunner().invoke(app, ["train", str(file)])
    assert result.exit_code == 1
    assert "interp suite" in result.output


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 4", "stepps = 4", ["'plain'", "unknown key 'stepps'", "'steps'"]),
        ("steps = 4", "steps = 0", ["'plain'", "steps is 0", "at least 1"]),
        ("steps = 4", 'steps = "4"', ["steps is '4'", "a whole number"]),
        ("n_heads = 2", "n_heads = 3", ["'plain'", "d_model=16", "n_heads=3"]),
        ("n_heads = 2", "n_head = 2", ["'plain'", "n_head"]),
        ("vocab_size = 300", "vocab_size = 200", ["vocab_size is 200", "at least 258"]),
        ("seeds = [0, 3]", "seeds = []", ["seeds is []", "[0, 1, 2]"]),
        ("seeds = [0, 3]", "seeds = [0, 0]", ["seeds is [0, 0]", "repeated"]),
        ("seeds = [0, 3]", "seeds = [-1]", ["'plain'", "seed is -1"]),
        ("seeds = [0, 3]", "", ["seeds is None"]),
        ('name = "trial"', "", ["name is None"]),
        ('name = "plain"', 'name = "held"', ["two members", "'held'"]),
        ('name = "plain"', 'name = "a/b"', ["name is 'a/b'"]),
        ('name = "plain"', 'name = "plain"\nseed = 1', ["'plain'", "seed", "seeds"]),
        ('"words", "again"', '"words", "agian"', ["'plain'", "'agian'", "'again'"]),
        ('"words", "again"', "", ["'plain'", "corpora is []"]),
        ('["words", "again"]', '"words"', ["'plain'", "corpora is 'words'"]),
        ("steps = 4", 'steps = 4\ncorpus = "x"', ["corpus or [corpora]"]),
        ("W_conv.1", "W_conv.2", ["'held'", "W_conv.2", "slices 0 to 1"]),
        ("name", "= name", ["not TOML"]),
    ],
)
def test_a_mistake_is_named_with_its_member(
    file: Path, tmp_path: Path, old: str, new: str, words: list[str]
):
    path = write(tmp_path, file.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match="(?s)suite.*" + ".*".join(map(re.escape, words))):
        train_suite(path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_recipe_is_no_suite(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no \[\[member\]\].*interp train"):
        Suite.load(write(tmp_path, 'name = "x"\nseeds = [0]'))
    with pytest.raises(FileNotFoundError, match="formation"):
        Suite.load("formatoin")


def test_a_corpus_that_will_not_do_is_refused_before_any_training(file: Path, tmp_path: Path):
    (tmp_path / "short.txt").write_text("Hardly a word.\n" * 3)
    text = re.sub('again = ".*"', f'again = "{tmp_path / "short.txt"}"', file.read_text())
    with pytest.raises(ValueError, match="fewer than the 31 of one block"):
        train_suite(write(tmp_path, text), tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["data"]
