"""Training: a frozen recipe, the Hugging Face Trainer, and what is measured on the way."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.training.recipe import Recipe
    from interp.training.run import train

_HOME = {"Recipe": "interp.training.recipe", "train": "interp.training.run"}

__all__ = ["Recipe", "train"]


def __getattr__(name: str) -> Any:
    # A recipe can be read without the Trainer, which takes seconds to import.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
