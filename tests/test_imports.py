"""Who imports whom: no circles, whatever kind of import closes them."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADS_ALL = {"interp.plots.figures": "interp.plots"}
"""Modules that import all of a package, under names that stand nowhere in the code."""


def modules(folder: Path) -> dict[str, Path]:
    """Every module of a package by its name."""
    found = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, found: Mapping[str, Path]) -> Iterator[str]:
    """What a module imports: at the top, in functions, for type checkers only, or as a string.

    `from package import module` imports that module, and `from package import name` the package.
    """
    path = found[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            parts = (f"{origin}.{alias.name}" for alias in node.names)
            yield from (part if part in found else origin for part in parts)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "resolve_name"):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value).partition(":")[0]
            elif module.partition(".")[0] == "interp":
                assert module in {*LOADS_ALL, "interp.public"}, f"{module} imports an unknown name"


def called(node: ast.Call) -> str:
    """The last part of what is called."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def graph(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """Every module with those of ours that it imports."""
    edges: dict[str, set[str]] = {}
    for module in found:
        edges[module] = {*imported(module, found)} & {*found} - {module}
        if package := LOADS_ALL.get(module):
            edges[module] |= {one for one in found if one.rpartition(".")[0] == package} - {module}
    return edges


def test_no_imports_run_in_a_circle():
    edges = graph(modules(ROOT / "interp"))
    assert sum(map(len, edges.values())) > 500
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    "closing",
    [
        "from ring.low import low",
        "from . import low",
        "def late():\n    from ring.low import low",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ring.low import Low",
        "from importlib import import_module\nimport_module('ring.low')",
        "from importlib import import_module\nimport_module('ring')",
    ],
)
def test_a_circle_is_found_however_it_is_closed(tmp_path: Path, closing: str):
    package = tmp_path / "ring"
    package.mkdir()
    (package / "__init__.py").write_text("from ring.high import high as high\n")
    (package / "low.py").write_text("import ring.high\n")
    (package / "high.py").write_text(closing)
    with pytest.raises(CycleError):
        TopologicalSorter(graph(modules(package))).prepare()


def test_a_part_of_a_package_is_no_import_of_the_package(tmp_path: Path):
    package = tmp_path / "ring"
    package.mkdir()
    (package / "__init__.py").write_text("from ring.high import high as high\n")
    (package / "low.py").write_text("low = 1\n")
    (package / "high.py").write_text("from ring import low\n")
    edges = graph(modules(package))
    assert edges == {"ring": {"ring.high"}, "ring.low": set(), "ring.high": {"ring.low"}}
