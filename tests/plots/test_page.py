"""A page is one file: everything in it once, nothing outside it, all text escaped."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from interp.plots.attention import view
from interp.plots.page import Section, write_page
from interp.results.result import Result

EVIL = "<script>alert('x')</script> & \"more\""


def result() -> Result:
    return Result("induction_score", np.array([0.1, 0.9]), ("head",), {"head": ("L1H0", "L1H1")})


def attention():
    return view(["<bos>", EVIL], np.array([[[1.0, 0.0], [0.5, 0.5]]]), ["L1H1"])


class Reader(HTMLParser):
    """Gathers a page's tags, ids and text, scripts and styles left out."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data


def read(path: Path, sections: list[Section], **more: str) -> tuple[str, Reader]:
    write_page(path, "Heads", sections, **more)
    text = path.read_text(encoding="utf-8")
    return text, Reader(text)


def test_libraries_come_once_and_only_if_used(tmp_path):
    figure = result().plot()
    path = tmp_path / "page.html"
    sections = [Section("a", "", (figure, attention())), Section("b", "", (figure, attention()))]
    text, _ = read(path, sections)
    assert text.count("plotly.js v") == 1
    assert text.count("var CircuitsVis=(") == 1
    assert text.index("var CircuitsVis=(") < text.index("CircuitsVis.render(")
    text, _ = read(path, [Section("a", "", (figure,))])
    assert "CircuitsVis" not in text
    text, _ = read(path, [Section("a", "", (result(),))])
    assert "plotly.js v" not in text
    assert len(text) < 20_000


def test_every_figure_is_drawn_in_a_place_of_its_own(tmp_path):
    figure = result().plot()
    text, page = read(tmp_path / "page.html", [Section("a", "", (figure, result(), figure))])
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert places == re.findall(r'^<script>draw\("([^"]+)"', text, flags=re.MULTILINE)
    assert len(set(places)) == 2


def test_it_asks_for_nothing(tmp_path):
    _, page = read(tmp_path / "page.html", [Section("a", "", (result().plot(), attention()))])
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "href", "action", "data"} & set(attributes)
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_text_is_escaped_wherever_it_stands(tmp_path):
    sections = [Section(EVIL, f"{EVIL}\n\nsecond paragraph")]
    write_page(tmp_path / "page.html", EVIL, sections, lead=EVIL)
    page = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.text.count(EVIL) == 5
    assert "script" not in [tag for tag, _ in page.tags]
    assert [tag for tag, _ in page.tags].count("p") == 3


def test_what_cannot_be_shown_is_refused_before_anything_is_written(tmp_path):
    contents = [result()]
    sections = [Section("a", "", contents)]
    contents.append(7)  # only now: the tests' type checker would refuse it in the section
    with pytest.raises(TypeError, match="cannot show 7"):
        write_page(tmp_path / "page.html", "x", sections)
    assert not list(tmp_path.iterdir())


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        write_page(tmp_path / "missing" / "page.html", "x", [])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium to look at it")
def test_a_browser_shows_it_all_without_complaint(tmp_path):
    path = tmp_path / "page.html"
    write_page(path, "Heads", [Section("a", "", (result().plot(), attention(), attention()))])
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    options += ["--disable-background-networking", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    shown = subprocess.run(
        ["chromium", *options, path.as_uri()], capture_output=True, text=True, timeout=300
    )
    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count("L1H1 Zoomed") >= 2
    assert 'class="main-svg"' in shown.stdout
    assert "highest L1H1 0.900" in shown.stdout
