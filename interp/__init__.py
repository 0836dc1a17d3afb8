"""Mechanistic interpretability of small sequence models.

The names most readers need are here: `interp.load`, `interp.head_scores`, `interp.write_report`.
Importing the package costs nothing: a name brings in its module, and PyTorch with it, when it is
first used.

Example:
    >>> import interp
    >>> "conv-attn" in interp.available()
    True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# What type checkers and editors see; tests/test_package.py holds it equal to _NAMES.
if TYPE_CHECKING:
    from interp.analysis import (
        InductionScore,
        LogitDifference,
        Result,
        ablate,
        attention_pattern,
        attribution_patch,
        best_head,
        circuit,
        composition_scores,
        conv_lags,
        conv_singular_values,
        conv_weights,
        copying_score,
        detect_smeared_keys,
        development,
        diagonal_preference,
        duplicate_token_score,
        first_token_score,
        head_scores,
        in_context_learning_score,
        induction_score,
        lag_circuits,
        lag_pair_shares,
        lens_tokens,
        logit_attribution,
        logit_lens,
        loss_by_position,
        match_table,
        ov_circuit,
        patch,
        path_attribution,
        path_patch,
        phase_change,
        positional_circuit,
        previous_token_match,
        previous_token_score,
        qk_circuit,
        repeated_sequence_loss,
        repeated_tokens,
        stretches,
        tokens_to_reach,
        without_lag_pair,
    )
    from interp.data import load_corpus, pack, train_tokenizer
    from interp.models import (
        MLP,
        ActivationCache,
        Attention,
        Checkpoints,
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
    from interp.report import write_report
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
        "Checkpoints",
    ),
    "interp.analysis": (
        "Result",
        "induction_score",
        "head_scores",
        "previous_token_match",
        "previous_token_score",
        "duplicate_token_score",
        "first_token_score",
        "attention_pattern",
        "repeated_sequence_loss",
        "in_context_learning_score",
        "loss_by_position",
        "repeated_tokens",
        "development",
        "diagonal_preference",
        "best_head",
        "phase_change",
        "tokens_to_reach",
        "logit_attribution",
        "path_attribution",
        "logit_lens",
        "lens_tokens",
        "ablate",
        "patch",
        "path_patch",
        "attribution_patch",
        "circuit",
        "InductionScore",
        "LogitDifference",
        "composition_scores",
        "copying_score",
        "ov_circuit",
        "positional_circuit",
        "qk_circuit",
        "detect_smeared_keys",
        "lag_circuits",
        "lag_pair_shares",
        "match_table",
        "without_lag_pair",
        "stretches",
        "conv_weights",
        "conv_lags",
        "conv_singular_values",
    ),
    "interp.data": ("load_corpus", "train_tokenizer", "pack"),
    "interp.training": ("Recipe", "train"),
    "interp.report": ("write_report",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "MLP",
    "ActivationCache",
    "Attention",
    "Checkpoints",
    "Conv",
    "HookedAttn",
    "HookedAttnAttn",
    "HookedConvAttn",
    "HookedGPT",
    "HookedSequenceModel",
    "HookedSmearedAttn",
    "InductionScore",
    "LogitDifference",
    "ModelConfig",
    "Recipe",
    "Result",
    "ablate",
    "attention_pattern",
    "attribution_patch",
    "available",
    "best_head",
    "circuit",
    "composition_scores",
    "conv_lags",
    "conv_singular_values",
    "conv_weights",
    "copying_score",
    "detect_smeared_keys",
    "development",
    "diagonal_preference",
    "duplicate_token_score",
    "first_token_score",
    "head_scores",
    "in_context_learning_score",
    "induction_score",
    "lag_circuits",
    "lag_pair_shares",
    "lens_tokens",
    "load",
    "load_corpus",
    "logit_attribution",
    "logit_lens",
    "loss_by_position",
    "match_table",
    "ov_circuit",
    "pack",
    "patch",
    "path_attribution",
    "path_patch",
    "phase_change",
    "positional_circuit",
    "previous_token_match",
    "previous_token_score",
    "qk_circuit",
    "repeated_sequence_loss",
    "repeated_tokens",
    "stretches",
    "tokens_to_reach",
    "train",
    "train_tokenizer",
    "without_lag_pair",
    "write_report",
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
