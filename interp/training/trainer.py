"""The Hugging Face Trainer, adapted: whole checkpoints, whole batches, one model for all processes.

Nothing here trains, and nothing spreads the work over processes and machines: the Trainer does the
one, Accelerate the other.
"""

import math
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.utils.data import DataLoader, RandomSampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer import TRAINER_STATE_NAME

from interp.data.prepared import Prepared
from interp.data.stream import BlockStream
from interp.models import HookedSequenceModel
from interp.training.directory import (
    CHECKPOINT,
    CHECKPOINTS,
    drop_old_checkpoints,
    last_checkpoint,
    publish,
    sweep,
    unfinished,
)
from interp.training.loss import NextTokenLoss
from interp.training.optimizer import optimizer_for
from interp.training.recipe import Recipe

EVALUATED_AT_ONCE = 32
"""Blocks in one step of an evaluation, on each process."""

TRACKERS = ("tensorboard", "wandb", "trackio")


def _tokens(blocks: Dataset) -> Dataset:
    """What a model reads of a table: a loader need not fetch the rest."""
    return blocks.select_columns("input_ids")


class SequenceTrainer(Trainer):
    """The Trainer, for one model, a recipe, and a run's directory (`args.output_dir`)."""

    def __init__(
        self,
        model: HookedSequenceModel | PreTrainedModel,
        recipe: Recipe,
        prepared: Prepared,
        args: TrainingArguments,
    ):
        super().__init__(
            model=NextTokenLoss.of(model),
            args=args,
            train_dataset=_tokens(prepared.train) if prepared.stream is None else prepared.stream,
            eval_dataset=_tokens(prepared.held_out),
            compute_metrics=cast(Any, BlockMeans()),  # batch by batch, it is asked for a result
        )
        self.recipe = recipe
        self.directory = Path(cast(str, args.output_dir))
        self.remove_callback(PrinterCallback)

    @property
    def loss_of_model(self) -> NextTokenLoss:
        """What is being trained, whatever it is wrapped in."""
        wrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return cast(NextTokenLoss, wrapped)

    def whole_model(self) -> HookedSequenceModel | PreTrainedModel | None:
        """The model on the main process, None on all others. Every process has to ask for it.

        Where FSDP splits the weights between processes, it is a copy put together on the CPU.
        """
        if not self.is_fsdp_enabled:
            return self.loss_of_model.model if self.is_world_process_zero() else None
        state = cast(dict[str, Tensor], self.accelerator.get_state_dict(self.model))
        return self.loss_of_model.with_weights(state) if self.is_world_process_zero() else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model as `interp.load` reads it."""
        model = self.whole_model()
        if model is not None:
            NextTokenLoss.of(model).save(output_dir or self.directory)

    def get_train_dataloader(self) -> DataLoader:
        """Whole batches only: what is left of an epoch could not be shared out evenly."""
        dataset = cast(Any, self.train_dataset)
        loader = DataLoader(
            dataset,
            batch_size=self._train_batch_size,
            sampler=None if isinstance(dataset, BlockStream) else RandomSampler(dataset),
            collate_fn=self.data_collator,
            drop_last=True,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's."""
        self.optimizer = optimizer_for(self.loss_of_model.model, self.recipe)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and end a run that has diverged: nothing comes after a loss that is no number."""
        super().log(logs, start_time)
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {self.state.global_step}: the run has diverged; train "
                "it anew with a lower learning_rate, or a higher warmup_ratio"
            )

    def _get_output_dir(self, trial: Any) -> str:
        # The Trainer writes a checkpoint in here; `_save_checkpoint` moves it out when it is whole.
        aside = self.directory / CHECKPOINTS / "being-written"
        return str(unfinished(aside))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"{CHECKPOINT}{self.state.global_step}"
        final = self.directory / CHECKPOINTS / name
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                aside = Path(self._get_output_dir(trial))
                (aside / name).rename(unfinished(final))
                aside.rmdir()
                publish(final)
                drop_old_checkpoints(self.directory)
        # PyTorch and safetensors have errors of their own for a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            sweep(self.directory)
            last = last_checkpoint(self.directory)
            remedy = (
                f"make room and resume from {last.name}, which is whole" if last else "make room"
            )
            raise OSError(
                f"{name} could not be written to {self.directory} ({error}); {remedy}"
            ) from error

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        stored = self.loss_of_model.stored(resume_from_checkpoint)
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(cast(nn.Module, self.model), stored.state_dict(), options=whole)

    def restore(self, checkpoint: Path) -> None:
        """Take up a run whose steps are all done: the Trainer would do one more."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


class BlockMeans:
    """The means over all blocks of what `NextTokenLoss` measures, added up batch after batch."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    def __call__(self, batch: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Take in one batch; after the last one, give the means."""
        self.blocks.append(torch.as_tensor(batch.predictions).cpu().double())
        if not compute_result:
            return {}
        loss, accuracy = torch.cat(self.blocks).mean(0).tolist()
        self.blocks.clear()
        return {"loss": loss, "accuracy": accuracy}


PATIENCE = timedelta(days=1)
"""How long processes wait for each other: one of them may have a large corpus to pack first."""


def processes() -> PartialState:
    """Those that train together, by what `accelerate launch` or `torchrun` set for this one."""
    return PartialState(cpu=_on_cpu(), timeout=PATIENCE)


def _on_cpu() -> bool:
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def arguments(recipe: Recipe, directory: Path, report_to: str) -> TrainingArguments:
    """A recipe in the Trainer's words."""
    args = TrainingArguments(
        output_dir=str(directory),
        run_name=recipe.name,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // processes().num_processes,
        per_device_eval_batch_size=EVALUATED_AT_ONCE,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(recipe.warmup_ratio * recipe.steps),
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        data_seed=recipe.seed,
        eval_strategy="steps",
        eval_steps=recipe.probe_steps,
        logging_steps=max(1, recipe.probe_steps // 10),
        logging_nan_inf_filter=False,  # a loss that is no number is shown as it is
        save_steps=recipe.save_steps,
        ignore_data_skip=recipe.streaming,  # a stream knows itself where to go on
        save_total_limit=None,  # old checkpoints go when the new one is whole, and not before
        label_names=["input_ids"],
        batch_eval_metrics=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        use_cpu=_on_cpu(),
        disable_tqdm=True,  # the run has a bar of its own
        torch_compile=recipe.compile,
        report_to=report_to,
    )
    # One process takes one GPU. The Trainer would copy the model to all that it sees, and multiply
    # the batch; `accelerate launch` is the way to several.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def check_tracker(name: str) -> None:
    """Refuse a tracker that the Trainer does not know, or that is not installed.

    Raises:
        ValueError: the message says what there is, or how to install it.
    """
    installed = get_available_reporting_integrations()
    if name == "none" or name in installed:
        return
    if name in TRACKERS:
        raise ValueError(f"report_to is {name!r}, which is not installed; pip install {name}")
    raise ValueError(
        f"report_to is {name!r}, which is no tracker that can be used here; "
        f"installed are {', '.join(installed) or 'none'}, and 'none' sends nothing anywhere"
    )


def close_tracker(name: str) -> None:
    """End what a tracker keeps open: W&B would log the next run of this process into this one."""
    if name == "wandb":
        import_module("wandb").finish()
