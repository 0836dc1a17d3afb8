"""Analyses: one function, one question; a model and tokens in, a labelled `Result` out."""

from typing import TYPE_CHECKING

from interp.analysis.attribution.lens import lens_tokens as lens_tokens
from interp.analysis.attribution.lens import logit_lens as logit_lens
from interp.analysis.attribution.logits import logit_attribution as logit_attribution
from interp.analysis.attribution.paths import path_attribution as path_attribution
from interp.analysis.circuits.composition import composition_scores as composition_scores
from interp.analysis.circuits.factored import Circuit as Circuit
from interp.analysis.circuits.matching import diagonal_preference as diagonal_preference
from interp.analysis.circuits.matching import match_table as match_table
from interp.analysis.circuits.matching import previous_token_match as previous_token_match
from interp.analysis.circuits.positional import positional_circuit as positional_circuit
from interp.analysis.circuits.qk_ov import ov_circuit as ov_circuit
from interp.analysis.circuits.qk_ov import qk_circuit as qk_circuit
from interp.analysis.circuits.reads import Reads as Reads
from interp.analysis.circuits.reads import reads as reads
from interp.analysis.development.comparison import tokens_to_reach as tokens_to_reach
from interp.analysis.development.development import best_head as best_head
from interp.analysis.development.development import development as development
from interp.analysis.development.phases import phase_change as phase_change
from interp.analysis.development.training_tables import recorded as recorded
from interp.analysis.development.training_tables import suite as suite
from interp.analysis.development.training_tables import suite_table as suite_table
from interp.analysis.development.training_tables import training_curves as training_curves
from interp.analysis.heads.copying import copying_score as copying_score
from interp.analysis.heads.patterns import attention_pattern as attention_pattern
from interp.analysis.heads.scores import duplicate_token_score as duplicate_token_score
from interp.analysis.heads.scores import first_token_score as first_token_score
from interp.analysis.heads.scores import head_scores as head_scores
from interp.analysis.heads.scores import induction_score as induction_score
from interp.analysis.heads.scores import previous_token_score as previous_token_score
from interp.analysis.induction.induction_circuit import InductionCircuit as InductionCircuit
from interp.analysis.induction.induction_circuit import induction_circuit as induction_circuit
from interp.analysis.interventions.ablation import ablate as ablate
from interp.analysis.interventions.attribution_patching import (
    attribution_patch as attribution_patch,
)
from interp.analysis.interventions.metrics import InductionScore as InductionScore
from interp.analysis.interventions.metrics import LogitDifference as LogitDifference
from interp.analysis.interventions.patching import patch as patch
from interp.analysis.interventions.patching import path_patch as path_patch
from interp.analysis.lags.convolutions import conv_lags as conv_lags
from interp.analysis.lags.convolutions import conv_singular_values as conv_singular_values
from interp.analysis.lags.convolutions import conv_weights as conv_weights
from interp.analysis.lags.lag_circuits import LagCircuits as LagCircuits
from interp.analysis.lags.lag_circuits import lag_circuits as lag_circuits
from interp.analysis.lags.lag_circuits import lag_pair_shares as lag_pair_shares
from interp.analysis.lags.lag_pair import without_lag_pair as without_lag_pair
from interp.analysis.lags.smeared_keys import detect_smeared_keys as detect_smeared_keys
from interp.analysis.losses.in_context import in_context_learning_score as in_context_learning_score
from interp.analysis.losses.in_context import loss_by_position as loss_by_position
from interp.analysis.losses.in_context import repeated_sequence_loss as repeated_sequence_loss
from interp.analysis.losses.recall import ar as ar
from interp.analysis.losses.recall import mqar as mqar
from interp.analysis.probes.recall import RecallTokens as RecallTokens
from interp.analysis.probes.recall import ar_tokens as ar_tokens
from interp.analysis.probes.recall import mqar_tokens as mqar_tokens
from interp.analysis.probes.sequences import RepeatedTokens as RepeatedTokens
from interp.analysis.probes.sequences import repeated_tokens as repeated_tokens
from interp.results.result import Result as Result
from interp.results.result import over_samples as over_samples
from interp.results.sampling import stretches as stretches

if not TYPE_CHECKING:
    from interp.public import attach

    __getattr__, __dir__, __all__ = attach(__name__, renamed={"circuit": "induction_circuit"})
