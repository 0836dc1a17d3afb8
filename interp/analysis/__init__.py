"""Analyses: one function, one question; a model and tokens in, a labelled `Result` out."""

from interp.analysis.context import (
    in_context_learning_score,
    loss_by_position,
    repeated_sequence_loss,
)
from interp.analysis.heads import (
    duplicate_token_score,
    first_token_score,
    head_scores,
    induction_score,
    previous_token_score,
)
from interp.analysis.patterns import attention_pattern
from interp.analysis.result import Result
from interp.analysis.sequences import RepeatedTokens, repeated_tokens

__all__ = [
    "RepeatedTokens",
    "Result",
    "attention_pattern",
    "duplicate_token_score",
    "first_token_score",
    "head_scores",
    "in_context_learning_score",
    "induction_score",
    "loss_by_position",
    "previous_token_score",
    "repeated_sequence_loss",
    "repeated_tokens",
]
