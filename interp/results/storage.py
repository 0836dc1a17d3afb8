"""Fields with arrays to one JSON text and back, bit for bit; text to a file, whole or not."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "interp.Result", 1
ARRAYS = ("values", "standard_error", "chance")


def to_json(fields: Mapping[str, Any]) -> str:
    """One JSON text. JSON has no NaN: what is not finite is written as a string float() reads."""
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            value = [x if math.isfinite(x) else str(x) for x in value.ravel().tolist()]
        content[name] = dict(value) if isinstance(value, Mapping) else value
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def from_json(text: str) -> dict[str, Any]:
    """The fields that `to_json` wrote; ValueError, TypeError or KeyError for any other text."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f'its "format" is not "{FORMAT}"')
    if (version := content.pop("version", None)) != VERSION:
        raise ValueError(f"its version is {version!r}, this interp reads {VERSION}")
    content["axes"] = tuple(content["axes"])
    shape = tuple(len(content["labels"][axis]) for axis in content["axes"])
    for name in ARRAYS:
        if content[name] is not None:
            content[name] = np.array([float(x) for x in content[name]]).reshape(shape)
    return content


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all: beside its place first, then moved there.

    Raises:
        FileNotFoundError: the directory it should go to does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: make the directory {target.parent} first")
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
