"""The documentation strings of the running Python and of every installed package, as documents.

Technical text that every machine has: no download. Source files are parsed and never imported.
"""

import ast
import gc
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from tqdm.auto import tqdm

_NAMED = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_HOLDS_STATEMENTS = ast.stmt | ast.excepthandler | ast.match_case
_PACKAGES = {"site-packages", "dist-packages"}

# Test data and templates: broken on purpose, of another Python, nested too deep, or a dead link.
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, OSError)


def read_python_docs() -> tuple[list[str], str]:
    """What do the installed packages say about themselves?

    One document per source file reads like a page of documentation: the module's name and text,
    then those of each class and function in source order. A docstring that occurred before, in any
    file, is left out; so is a file with none left. Standard library first, then by sorted path.

    Returns:
        The documents, and one sentence about them that names no path.
    """
    files = [(path, root) for root in _installed() for path in sorted(_python_files(root))]
    documents: list[str] = []
    seen: set[str] = set()
    n_skipped = 0
    with _quick_and_quiet():
        for path, root in tqdm(files, desc="reading docstrings", unit=" files", disable=None):
            try:
                found = list(_docstrings(ast.parse(path.read_bytes()), ""))
            except _UNREADABLE:
                n_skipped += 1
                continue
            if new := _not_in(seen, found):
                documents.append(_page(_module_name(path.relative_to(root)), new))
    return documents, _describe(documents, len(files), n_skipped)


def _installed() -> list[Path]:
    """Where the running Python imports from, each directory once."""
    names = ("stdlib", "purelib", "platlib")
    return list(dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in names))


def _python_files(root: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(root):
        if Path(directory) == root:
            # The standard library may contain site-packages: a root of its own, or not ours at all.
            below[:] = [name for name in below if name not in _PACKAGES]
        yield from (Path(directory, name) for name in files if name.endswith(".py"))


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Parsing a great deal of code that is not ours."""
    was_enabled = gc.isenabled()
    gc.disable()  # a syntax tree has no cycles, and looking for them takes a fifth of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            yield
    finally:
        if was_enabled:
            gc.enable()


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Source order: a thing, then what is defined inside it, also inside its branches and loops."""
    if isinstance(node, ast.Module | _NAMED) and (text := ast.get_docstring(node)):
        # An escape in a docstring may spell half a surrogate pair, which no encoding accepts.
        yield name, text.encode("utf-8", "replace").decode()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _NAMED):
            yield from _docstrings(child, f"{name}.{child.name}".lstrip("."))
        elif isinstance(child, _HOLDS_STATEMENTS):
            yield from _docstrings(child, name)


def _not_in(seen: set[str], found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    new = []
    for name, text in found:
        if text.strip() and text not in seen:
            seen.add(text)
            new.append((name, text))
    return new


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _page(module: str, docstrings: list[tuple[str, str]]) -> str:
    """Markdown, one heading per name. The page has its title even if the module says nothing."""
    sections = [f"# {module}"]
    for name, text in docstrings:
        sections += [f"## {name}", text] if name else [text]
    return "\n\n".join(sections) + "\n"


def package_of(document: str) -> str:
    r"""The package that a document is from, or the module where it is in none.

    >>> package_of("# numpy.linalg\n\nLinear algebra."), package_of("# abc\n")
    ('numpy', 'abc')
    """
    return document.partition("\n")[0].removeprefix("# ").partition(".")[0]


def _describe(documents: list[str], n_files: int, n_skipped: int) -> str:
    n_packages = len({dist.name for dist in metadata.distributions()})
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    return (
        f"Documentation strings of Python {platform.python_version()}'s standard library and of "
        f"{n_packages} installed packages: {len(documents):,} documents, {megabytes:.1f} MB, from "
        f"{n_files:,} source files, of which {n_skipped} could not be parsed."
    )
