"""Analyses: one function, one question; a model and tokens in, a labelled `Result` out."""

from interp.analysis.attribution.lens import lens_tokens, logit_lens
from interp.analysis.attribution.logits import logit_attribution
from interp.analysis.attribution.paths import path_attribution
from interp.analysis.circuits.composition import composition_scores
from interp.analysis.circuits.factored import Circuit
from interp.analysis.circuits.matching import diagonal_preference, match_table, previous_token_match
from interp.analysis.circuits.positional import positional_circuit
from interp.analysis.circuits.qk_ov import ov_circuit, qk_circuit
from interp.analysis.circuits.reads import Reads, reads
from interp.analysis.development.comparison import tokens_to_reach
from interp.analysis.development.development import best_head, development
from interp.analysis.development.phases import phase_change
from interp.analysis.development.training_tables import (
    recorded,
    suite,
    suite_table,
    training_curves,
)
from interp.analysis.heads.copying import copying_score
from interp.analysis.heads.patterns import attention_pattern
from interp.analysis.heads.scores import (
    duplicate_token_score,
    first_token_score,
    head_scores,
    induction_score,
    previous_token_score,
)
from interp.analysis.induction.induction_circuit import InductionCircuit, circuit
from interp.analysis.interventions.ablation import ablate
from interp.analysis.interventions.attribution_patching import attribution_patch
from interp.analysis.interventions.metrics import InductionScore, LogitDifference
from interp.analysis.interventions.patching import patch, path_patch
from interp.analysis.lags.convolutions import conv_lags, conv_singular_values, conv_weights
from interp.analysis.lags.lag_circuits import LagCircuits, lag_circuits, lag_pair_shares
from interp.analysis.lags.lag_pair import without_lag_pair
from interp.analysis.lags.smeared_keys import detect_smeared_keys
from interp.analysis.losses.in_context import (
    in_context_learning_score,
    loss_by_position,
    repeated_sequence_loss,
)
from interp.analysis.probes.sequences import RepeatedTokens, repeated_tokens
from interp.results.result import Result, over_samples
from interp.results.sampling import stretches

__all__ = [
    "Circuit",
    "InductionCircuit",
    "InductionScore",
    "LagCircuits",
    "LogitDifference",
    "Reads",
    "RepeatedTokens",
    "Result",
    "ablate",
    "attention_pattern",
    "attribution_patch",
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
    "logit_attribution",
    "logit_lens",
    "loss_by_position",
    "match_table",
    "ov_circuit",
    "over_samples",
    "patch",
    "path_attribution",
    "path_patch",
    "phase_change",
    "positional_circuit",
    "previous_token_match",
    "previous_token_score",
    "qk_circuit",
    "reads",
    "recorded",
    "repeated_sequence_loss",
    "repeated_tokens",
    "stretches",
    "suite",
    "suite_table",
    "tokens_to_reach",
    "training_curves",
    "without_lag_pair",
]
