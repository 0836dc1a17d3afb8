"""Mechanistic interpretability of small sequence models.

The names most readers need are here: `interp.load`, `interp.induction_score`, `interp.report`.
Importing the package costs nothing: a name brings in its module, and PyTorch with it, when it is
first used.

Example:
    >>> import interp
    >>> "conv-attn" in interp.available()
    True
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

# What type checkers and editors see; tests/test_package.py holds it equal to _NAMES.
if TYPE_CHECKING:
    from interp.analysis import (
        Result,
        head_scores,
        in_context_learning_score,
        induction_score,
        loss_by_position,
        repeated_sequence_loss,
        repeated_tokens,
    )
    from interp.data import load_corpus, pack, train_tokenizer
    from interp.models import (
        MLP,
        ActivationCache,
        Attention,
        Conv,
        HookedAttn,
        HookedAttnAttn,
        HookedConvAttn,
        HookedGPT,
        HookedSequenceModel,
        HookedSmearedAttn,
        ModelConfig,
        available,
        load,
    )
    from interp.report import report
    from interp.training import Recipe, train

    __version__: str

_NAMES = {
    "interp.models": (
        "ModelConfig",
        "Conv",
        "Attention",
        "MLP",
        "HookedSequenceModel",
        "HookedConvAttn",
        "HookedAttnAttn",
        "HookedAttn",
        "HookedSmearedAttn",
        "HookedGPT",
        "ActivationCache",
        "load",
        "available",
    ),
    "interp.analysis": (
        "Result",
        "induction_score",
        "head_scores",
        "repeated_sequence_loss",
        "in_context_learning_score",
        "loss_by_position",
        "repeated_tokens",
    ),
    "interp.data": ("load_corpus", "train_tokenizer", "pack"),
    "interp.training": ("Recipe", "train"),
    "interp.report": ("report",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "MLP",
    "ActivationCache",
    "Attention",
    "Conv",
    "HookedAttn",
    "HookedAttnAttn",
    "HookedConvAttn",
    "HookedGPT",
    "HookedSequenceModel",
    "HookedSmearedAttn",
    "ModelConfig",
    "Recipe",
    "Result",
    "available",
    "head_scores",
    "in_context_learning_score",
    "induction_score",
    "load",
    "load_corpus",
    "loss_by_position",
    "pack",
    "repeated_sequence_loss",
    "repeated_tokens",
    "report",
    "train",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("interp")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'interp' has no attribute {name!r}{_suggestion(name)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    by_lower = {public.lower(): public for public in __all__}
    nearest = get_close_matches(name.lower(), by_lower, n=1)
    return f". Did you mean {by_lower[nearest[0]]!r}?" if nearest else ""


class _Face(ModuleType):
    """Keeps `interp.report` the function: importing the module of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
