"""Public names, each written once: a package's import lines say what it offers.

`from interp.x.y import z as z` offers z, to type checkers (PEP 484) and to readers alike, and
`from .x import *` offers all that x does. A package that is to cost nothing has these lines under
`if TYPE_CHECKING`: they are read here, not run, and a name brings in its module when it is first
used.
"""

import ast
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec, resolve_name
from pkgutil import iter_modules
from pkgutil import resolve_name as value_of
from typing import Any

_PROVIDED: dict[str, str] = {}


def offered(package: str) -> dict[str, str]:
    """Where each name that a package offers comes from, as "module:name"; nothing is imported."""
    homes: dict[str, str] = {}
    for node in ast.walk(ast.parse(_source(package))):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            if alias.name == "*":
                homes |= offered(module)
            elif alias.name == alias.asname:
                part = f"{module}.{alias.name}:" if node.module is None else None
                homes[alias.name] = part or f"{module}:{alias.name}"
    return homes


def attach(
    package: str, renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """A package's `__getattr__`, `__dir__` and `__all__`, from its own import lines.

    Args:
        package: its `__name__`.
        renamed: what earlier names are called now; who uses one gets the new name.
    """
    homes = offered(package)
    names = sorted(name for name, home in homes.items() if not home.endswith(":"))
    earlier = renamed or {}

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}{_hint(name, earlier, homes)}"
            )
        value = value_of(homes[name])
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        folders = sys.modules[package].__path__
        return sorted({*homes, *(part.name for part in iter_modules(folders) if part.ispkg)})

    return getattr_, dir_, names


def provide(role: str, home: str) -> None:
    """Enter who plays a role for modules that lie below it, as "module:name"; nothing is imported.

    `Result.plot` asks for the role "figure" and knows of no picture, as pandas finds its plots.
    """
    _PROVIDED[role] = home


def provided(role: str) -> Any:
    """What was entered for a role; its module is imported when it is first asked for."""
    return value_of(_PROVIDED[role])


def _source(package: str) -> str:
    spec = find_spec(package)
    source = getattr(spec and spec.loader, "get_source", lambda name: None)(package)
    if source is None:
        raise ImportError(f"the source of {package} is not there, and says what it offers")
    return source


def _hint(name: str, renamed: Mapping[str, str], homes: Mapping[str, str]) -> str:
    if name in renamed:
        return f". It is called {renamed[name]!r} now"
    by_lower = {public.lower(): public for public in homes}
    nearest = get_close_matches(name.lower(), by_lower, n=1)
    return f". Did you mean {by_lower[nearest[0]]!r}?" if nearest else ""
