"""The command line turns arguments into calls."""

from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.training import Recipe

run = CliRunner().invoke


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    interp.HookedConvAttn(d_vocab=60, d_model=16, n_heads=2, n_ctx=48).save_pretrained(directory)
    return directory


def test_score_prints_a_table_and_writes_the_page(saved: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    result = run(app, ["score", str(saved), "--out", str(page), "--n-sequences", "5"])
    assert result.exit_code == 0, result.output
    scores = interp.head_scores(interp.load(str(saved)), n=23, n_sequences=5)
    assert f"{float(scores.sel(score='induction', head='L1H0')):.3f}" in result.output
    assert "L1H1" in page.read_text()


def test_a_mistake_is_one_line(tmp_path: Path):
    result = run(app, ["score", "conv-atn", "--out", str(tmp_path / "x.html")])
    assert result.exit_code == 1
    assert "conv-atn" in result.output
    assert "'conv-attn'" in result.output
    assert "Traceback" not in result.output


def test_a_page_in_no_directory_is_refused(saved: Path):
    result = run(app, ["score", str(saved), "--out", "no/such/place.html"])
    assert result.exit_code == 1
    assert "there is no directory" in result.output


def test_models_lists_what_ships():
    result = run(app, ["models"])
    assert result.output.split() == list(interp.available())


def test_train_has_a_flag_for_every_field_of_a_recipe():
    flags = run(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert all(f"--{item.name.replace('_', '-')}" in flags for item in fields(Recipe))


def test_train_trains(tmp_path: Path):
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"{number} one two three four five six " * 20)
    flags = {
        "--corpus": str(tmp_path / "*.txt"),
        "--out": str(tmp_path / "run"),
        "--model": "d_model=24",
        "--held-out": "0.3",
        "--vocab-size": "300",
        "--n-ctx": "16",
        "--steps": "2",
        "--probe-steps": "2",
    }
    result = run(app, ["train", "conv-attn", *(word for flag in flags.items() for word in flag)])
    assert result.exit_code == 0, result.output
    assert interp.load(str(tmp_path / "run")).config.d_model == 24
