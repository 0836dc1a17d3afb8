"""The models of a run at log-spaced steps, and what each of them was measured to do."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from interp.analysis import head_scores, repeated_sequence_loss
from interp.analysis.losses.in_context import early_and_late
from interp.analysis.probes.sequences import copy_length
from interp.models import HookedSequenceModel
from interp.models.shapes import Tokens
from interp.results.sampling import Sampling
from interp.training.directory import publish, unfinished, write_whole
from interp.training.loss import NextTokenLoss
from interp.training.recipe import Recipe
from interp.training.text import Text, spread
from interp.views import view

SNAPSHOTS, TABLE = "snapshots", "development.parquet"
TRAIN_SHARE = 4
"""One block of training text is measured for so many held-out ones."""
_BLOCKS_AT_ONCE = 16


def snapshot_steps(n: int, last: int) -> tuple[int, ...]:
    """Step 0, then steps from a hundredth of the run to its last with equal ratios between them.

    Earlier than that nothing has formed. Rounded, and where that would repeat a step, the next one
    is taken.

    >>> snapshot_steps(4, 1000)
    (0, 10, 100, 1000)
    >>> snapshot_steps(8, 100)
    (0, 1, 2, 5, 10, 22, 46, 100)
    >>> snapshot_steps(9, 4)
    (0, 1, 2, 3, 4)
    """
    n = min(n, last + 1)
    steps = [0]
    spaced = [last] if n == 2 else np.geomspace(max(1, last / 100), last, n - 1)
    for still_to_come, step in zip(reversed(range(n - 1)), spaced, strict=True):
        steps.append(min(max(steps[-1] + 1, round(step)), last - still_to_come))
    return tuple(steps)


class SnapshotCallback(TrainerCallback):
    """Keep and measure the model at a recipe's snapshot steps.

    `whole_model` is asked on every process, and gives the model on the one that measures.

    Each snapshot is a directory `snapshots/step{N}` that `interp.load` reads. What it was measured
    to do is added to `development.parquet`, a row per number: `step`, `tokens`, and the columns of
    `measured`. A run that is resumed takes later snapshots anew, and no row twice.
    """

    def __init__(
        self,
        whole_model: Callable[[], HookedSequenceModel | PreTrainedModel | None],
        recipe: Recipe,
        directory: Path,
        train: Dataset,
        held_out: Dataset,
    ):
        self.whole_model, self.directory = whole_model, directory
        self.steps = set(snapshot_steps(recipe.snapshots, recipe.steps))
        self.tokens_per_step = recipe.batch_size * recipe.n_ctx
        self.text = {
            "validation": spread(held_out, recipe.snapshot_blocks),
            "train": spread(train, max(2, recipe.snapshot_blocks // TRAIN_SHARE)),
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Step 0, unless the run goes on from a later one."""
        if state.global_step == 0:
            self._take(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the Trainer saves: a checkpoint is never ahead of the table."""
        self._take(state)

    def _take(self, state: TrainerState) -> None:
        step = state.global_step
        if step not in self.steps or (model := self.whole_model()) is None:
            return
        snapshot = self.directory / SNAPSHOTS / f"step{step}"
        trained = NextTokenLoss.of(model)
        trained.save(unfinished(snapshot))
        publish(snapshot)
        rows = measured(trained.analysable, self.text)
        rows.insert(0, "step", step)
        rows.insert(1, "tokens", step * self.tokens_per_step)
        append(rows, self.directory / TABLE)


def append(rows: pd.DataFrame, path: Path) -> None:
    """Add the rows of one step to a table, in place of what it holds of that step and later ones.

    The table is written aside and then moved: it is there whole, or as it was before.
    """
    if path.is_file():
        before = pd.read_parquet(path)
        earlier = before.loc[before["step"] < rows["step"].min()]
        rows = pd.concat([earlier, rows], ignore_index=True)
    write_table(rows, path)


def write_table(rows: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet, whole or not at all."""
    content = io.BytesIO()
    rows.to_parquet(content, index=False, compression="zstd")
    write_whole(path, content.getvalue())


def measured(model: Any, text: Mapping[str, Text]) -> pd.DataFrame:
    """What a model does at one moment of its training, a row per number.

    `text` holds blocks for "validation" and "train".
    Columns: `analysis`, `measure`, `axis` ("head", "lag", "position", or nothing), `label` on it
    ("L1H0", "L0 lag 1", "17-18"), `value`, `standard_error` (over random sequences, or over the
    groups of blocks), `chance`, `unit`, `n_sequences`, `n_groups` (of text).
    """
    n = copy_length(view(model).n_ctx)
    heads, repeated = head_scores(model, n=n), repeated_sequence_loss(model, n=n)
    frames = [
        heads.to_frame().rename(columns={"score": "measure", "head": "label"}).assign(axis="head"),
        repeated.to_frame(),
    ]
    frames = [
        frame.assign(analysis=result.name, n_sequences=result.provenance["n_sequences"])
        for frame, result in zip(frames, (heads, repeated), strict=True)
    ]
    frames += [_on_text(model, blocks, part) for part, blocks in text.items()]
    frames += [pd.DataFrame(_parameters(model))]
    columns = ["analysis", "measure", "axis", "label", "value", "standard_error", "chance", "unit"]
    table = pd.concat(frames, ignore_index=True).reindex(
        columns=[*columns, "n_sequences", "n_groups"]
    )
    counts = {"n_sequences": "Int64", "n_groups": "Int64"}
    return table.fillna({"axis": "", "label": ""}).astype({**counts, "chance": float})


def position_bins(length: int) -> list[tuple[int, int]]:
    """First and last of neighbouring positions that are taken together, from 1 to `length` - 1.

    A bin is an eighth of its first position wide, so that they look equal on a log scale.

    >>> position_bins(24)[-4:]
    [(14, 15), (16, 18), (19, 21), (22, 23)]
    """
    bins, first = [], 1
    while first < length:
        last = min(first + first // 8, length - 1)
        bins.append((first, last))
        first = last + 1
    return bins


def _on_text(model: Any, text: Text, part: str) -> pd.DataFrame:
    """Loss and accuracy; of held-out text the loss by position and the ICL score, too."""
    losses, hits = _losses(model, text.tokens)
    length = text.tokens.shape[1]
    rows = [
        ("text", f"{part}_loss", "", "", losses.mean(1), "nats"),
        ("text", f"{part}_accuracy", "", "", hits.double().mean(1), "fraction"),
    ]
    if part == "validation":
        early, late = early_and_late(length)
        name = "in_context_learning_score"
        rows.append((name, name, "", "", losses[:, late - 1] - losses[:, early - 1], "nats"))
        for first, last in position_bins(length):
            label = f"{first}" if first == last else f"{first}-{last}"
            inside = losses[:, first - 1 : last].mean(1)
            rows.append(("loss_by_position", "loss", "position", label, inside, "nats"))
    sampling = Sampling.of(text.groups, len(text.tokens))
    return pd.DataFrame([_row(sampling, *row) for row in rows])


def _row(
    sampling: Sampling,
    analysis: str,
    measure: str,
    axis: str,
    label: str,
    samples: Tensor,
    unit: str,
) -> dict[str, Any]:
    mean, error = sampling.mean_and_error(samples.numpy())
    return {
        "analysis": analysis,
        "measure": measure,
        "axis": axis,
        "label": label,
        "value": float(mean),
        "standard_error": float(error),
        "unit": unit,
        "n_sequences": len(samples),
        "n_groups": sampling.n_groups,
    }


@torch.no_grad()
def _losses(model: Any, text: Tokens) -> tuple[Tensor, Tensor]:
    """Each token's loss in nats and whether it was the likeliest, `[batch pos-1]`."""
    viewed, losses, hits = view(model), [], []
    for some in text.split(_BLOCKS_AT_ONCE):
        predicted = viewed.outputs(some, positions=range(text.shape[1] - 1))
        loss, hit = predicted.losses_and_hits(some[:, 1:])
        losses.append(loss.double().cpu())
        hits.append(hit.bool().cpu())
    return torch.cat(losses), torch.cat(hits)


def _parameters(model: Any) -> Iterator[dict[str, Any]]:
    """Every head's share of smearing, sigmoid(α), and the Frobenius norm of every lag's map.

    Of our own models: others have other parameters.
    """
    if not isinstance(model, HookedSequenceModel):
        return
    for layer in model.attention_layers:
        smear = model.attn(layer).smear
        shares: Sequence[float] = [] if smear is None else smear.detach().sigmoid().tolist()
        for head, share in enumerate(shares):
            what = {"analysis": "smear", "measure": "share", "axis": "head"}
            yield {**what, "label": f"L{layer}H{head}", "value": share, "unit": "fraction"}
    for layer in model.conv_layers:
        for lag, norm in enumerate(model.conv(layer).W.detach().norm(dim=(1, 2)).tolist()):
            what = {"analysis": "conv", "measure": "norm", "axis": "lag"}
            yield {**what, "label": f"L{layer} lag {lag}", "value": norm, "unit": ""}
