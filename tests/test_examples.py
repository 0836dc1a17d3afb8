"""The numbered notebooks run, and are short."""

import re
import runpy
from pathlib import Path

import pytest

import interp

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("[0-9]*.py"))
PAGES = sorted((EXAMPLES.parent / "docs").glob("*.md"))
TWO_SCREENS = 120
"""Lines, text included."""


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_are_some():
    assert [path.name for path in NOTEBOOKS][:1] == ["1_downloaded_models.py"]


def test_it_runs_anywhere(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(notebook), run_name="__main__")
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


def test_it_is_short_and_is_a_page(notebook: Path):
    text = notebook.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= TWO_SCREENS
    assert re.match(r"# %% \[markdown\]\n# # ", text)
    pages = [path for path in PAGES if f"notebook: examples/{notebook.name}" in path.read_text()]
    assert len(pages) == 1


def test_what_the_first_says_of_its_model_is_so():
    notebook = runpy.run_path(str(EXAMPLES / "1_downloaded_models.py"))
    model, probe, sites, keys = (notebook[x] for x in ("model", "probe", "sites", "keys"))
    drop = float(interp.repeated_sequence_loss(model).sel(measure="drop"))
    effects = interp.ablate(model, probe, sites, metric="second_copy_loss").sel(measure="effect")
    lost = dict(zip(sites, effects.values, strict=True))
    assert lost.pop("L0.k.lag1") > 0.9 * drop > 3.5
    assert max(lost.values()) < 0.05 * drop
    head = keys.sel(head=interp.induction_score(model).best())
    assert float(head.sel(measure="alignment")) < 0.2
    assert float(head.sel(measure="lag_share_1")) > 0.8
    assert float(head.sel(measure="smear")) < 0.1
