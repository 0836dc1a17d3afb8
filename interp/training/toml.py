"""TOML files and what they may hold, with errors that name file, key, value and remedy."""

import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_type_hints

from interp.models.hooks import nearest


class _Kind(NamedTuple):
    """What TOML may hold for a field of one type, in types and in words."""

    kind: type | UnionType
    words: str
    make: Callable[[Any], Any] = lambda value: value


_KINDS: dict[Any, _Kind] = {
    str: _Kind(str, "text in quotes"),
    int: _Kind(int, "a whole number"),
    bool: _Kind(bool, "true or false"),
    float: _Kind(int | float, "a number", float),
    float | None: _Kind(int | float, "a number", float),
    tuple[str, ...]: _Kind(list, "a list of names", lambda names: tuple(map(str, names))),
    Mapping[str, Any]: _Kind(dict, "a table"),
}


def bundled() -> dict[str, Path]:
    """The recipes and suites that ship with the package, by name."""
    root = Path(str(resources.files("interp"))) / "training" / "recipes"
    return {path.stem: path for path in sorted(root.glob("*.toml"))}


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ValueError: it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise ValueError(f"{path} is not TOML: {error}") from error


def fields_from(data: Mapping[str, Any], kind: type, owner: str) -> dict[str, Any]:
    """The arguments of a dataclass from what a TOML file holds.

    Raises:
        ValueError: an unknown key, or a value of another type than the field has.
    """
    types = get_type_hints(kind)
    arguments = {}
    for key, value in data.items():
        if key not in types:
            raise ValueError(f"{owner}: unknown key {key!r}{nearest(key, types)}")
        expected = _KINDS[types[key]]
        # To Python true is a whole number.
        is_one = isinstance(value, expected.kind) and isinstance(value, bool) == (
            types[key] is bool
        )
        if not is_one:
            raise ValueError(f"{owner}: {key} is {value!r}, but must be {expected.words}")
        arguments[key] = expected.make(value)
    return arguments
