"""What is measured while a model trains: its heads, and what they do for its predictions."""

from collections.abc import Callable
from typing import Any, cast

from datasets import Dataset
from torch import Tensor
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from interp.analysis import head_scores, in_context_learning_score, repeated_sequence_loss
from interp.analysis.probes.sequences import copy_length
from interp.models import HookedSequenceModel
from interp.models.shapes import Tokens
from interp.training.loss import NextTokenLoss
from interp.views import view

TEXT_BLOCKS = 256
PROBE_SEQUENCES = 32


class ProbeCallback(TrainerCallback):
    """After every evaluation, log the best heads, the repeated-sequence loss and the ICL score."""

    def __init__(
        self,
        whole_model: Callable[[], HookedSequenceModel | PreTrainedModel | None],
        log: Callable[[dict[str, float]], None],
        text: Dataset,
    ):
        self.whole_model, self.log = whole_model, log
        self.text = cast(Tensor, text[:TEXT_BLOCKS]["input_ids"])

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The Trainer calls this on every process; the one that is given the model measures it."""
        model = self.whole_model()
        if model is not None:
            self.log(probe(NextTokenLoss.of(model).analysable, self.text))


def probe(model: Any, text: Tokens) -> dict[str, float]:
    """The numbers of one moment of training, under the names that the history uses."""
    n = copy_length(view(model).n_ctx)
    scores = head_scores(model, n=n, n_sequences=PROBE_SEQUENCES)
    repeated = repeated_sequence_loss(model, n=n, n_sequences=PROBE_SEQUENCES)
    best = {
        f"best_{kind}": float(scores.sel(score=kind).values.max())
        for kind in scores.labels["score"]
    }
    losses = {str(name): float(repeated.sel(measure=name)) for name in repeated.labels["measure"]}
    icl = float(in_context_learning_score(model, text))
    return {**best, **losses, "in_context_learning_score": icl}
