"""The documentation strings of installed packages: what is read, and in which order."""

import gc
import sysconfig
import warnings
from pathlib import Path

import pytest

from interp.data import load_corpus, python_docs

MODULE = '''"""Shapes.

    Indented, and more to say.
"""
import nothing_is_imported

class Circle:
    """A round shape."""

    def area(self):
        """How big it is."""
        def helper():
            "A helper."

    def copy(self):
        """A round shape."""

    def silent(self):
        x = "no docstring"
        "nor this"

try:
    import fast
except ImportError:
    async def slow():
        r"""A slow one: \\d."""
else:
    if fast:
        def quick(): 'A quick one.'
'''

PAGE = r"""# shapes.round

Shapes.

Indented, and more to say.

## Circle

A round shape.

## Circle.area

How big it is.

## Circle.area.helper

A helper.

## slow

A slow one: \d.

## quick

A quick one.
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes directories of source files the only ones that the running Python has."""

    def install(*roots: dict[str, str | bytes]) -> None:
        paths = [tmp_path / f"root{i}" for i in range(len(roots))]
        for path, files in zip(paths, roots, strict=True):
            for name, content in files.items():
                file = path / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content if isinstance(content, bytes) else content.encode())
        monkeypatch.setattr(python_docs, "_installed", lambda: paths)

    return install


def documents() -> list[str]:
    return list(load_corpus("python-docs"))


def test_a_file_becomes_a_page(install):
    install({"shapes/round.py": MODULE})
    assert documents() == [PAGE]


def test_pages_are_in_the_order_of_roots_and_sorted_paths(install):
    install(
        {"z.py": "'Z.'", "a/__init__.py": "'A.'", "a/b.py": "'B.'"},
        {"a.py": "'Another.'", "__init__.py": "'Root.'"},
    )
    titles = [page.splitlines()[0] for page in documents()]
    assert titles == ["# a", "# a.b", "# z", "# __init__", "# a"]


def test_a_docstring_is_told_once(install):
    install({"a.py": "'Same.'", "b.py": "'Same.'\ndef f(): 'New.'", "c.py": "def g(): 'New.'"})
    assert documents() == ["# a\n\nSame.\n", "# b\n\n## f\n\nNew.\n"]


def test_what_cannot_be_parsed_is_counted(install):
    install(
        {
            "good.py": "'Good.'",
            "python2.py": "print 'hello'",
            "nul.py": b"x = '\0'",
            "latin.py": b"'caf\xe9'",
            "declared.py": b"# coding: latin-1\n'Caf\xe9.'",
            "deep.py": "(" * 300 + ")" * 300,
            "notes.txt": "'Not Python.'",
        }
    )
    corpus = load_corpus("python-docs")
    assert list(corpus) == ["# declared\n\nCafé.\n", "# good\n\nGood.\n"]
    assert "6 source files, of which 4 could not be parsed" in corpus.description


def test_half_a_surrogate_pair_is_replaced(install):
    install({"a.py": r"'Half \ud800 a pair.'"})
    assert documents() == ["# a\n\nHalf ? a pair.\n"]


def test_packages_inside_a_root_belong_to_another_root(install):
    install({"json.py": "'JSON.'", "site-packages/pip.py": "'No.'", "x/site-packages/y.py": "'Y.'"})
    assert [page.splitlines()[0] for page in documents()] == ["# json", "# x.site-packages.y"]


def test_the_description_names_no_path(install, tmp_path):
    install({"a.py": "'A.'"})
    description = load_corpus("python-docs").description
    assert "1 documents" in description
    assert not any(part in description for part in ("/", "\\", tmp_path.name))


def test_nothing_documented_is_an_error(install):
    install({"a.py": "x = 1"})
    with pytest.raises(ValueError, match="'python-docs' is empty"):
        documents()


def test_warnings_of_others_stay_quiet_and_the_collector_is_left_as_found(install):
    install({"a.py": r"'Bad \d escape.'"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert documents() == ["# a\n\nBad \\d escape.\n"]
    assert gc.isenabled()
    gc.disable()
    try:
        documents()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_running_python_is_read_once():
    roots = python_docs._installed()
    assert len(roots) == len(set(roots)) >= 2
    assert roots[0] == Path(sysconfig.get_path("stdlib")).resolve()
    stdlib = set(python_docs._python_files(roots[0]))
    assert roots[0] / "json" / "__init__.py" in stdlib
    assert not any(roots[1] in path.parents for path in stdlib)
    assert any(path.parent.name == "datasets" for path in python_docs._python_files(roots[1]))
