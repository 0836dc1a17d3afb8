"""Where a result comes from, as plain text and numbers."""

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any


def versions() -> dict[str, str]:
    """The versions that a provenance names: Python, interp, PyTorch and TransformerLens."""
    found = {"python": platform.python_version()}
    for package in ("interp", "torch", "transformer_lens"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def json_copy(name: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A result's provenance as JSON gives it back; TypeError where it holds more than that."""
    try:
        return json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: the provenance is more than numbers and text: {error}") from error
