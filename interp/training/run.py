"""From a recipe to a trained model, by the Hugging Face Trainer."""

import json
import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from interp.data import load_corpus, pack, train_tokenizer
from interp.data.corpus import Corpus
from interp.models import HookedSequenceModel
from interp.models.shapes import Tokens
from interp.training.callbacks import ProbeCallback
from interp.training.card import write_card
from interp.training.recipe import Recipe

RECIPE, HISTORY, CHECKPOINTS, DATA = "recipe.toml", "history.json", "checkpoints", "data"


class NextTokenLoss(nn.Module):
    """Our model as the Trainer wants one: a batch in, a dictionary with the loss out.

    It has no `config`, which the Trainer would take for a Hugging Face one and write to.
    """

    def __init__(self, model: HookedSequenceModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tokens) -> dict[str, Tensor]:
        """The mean next-token loss of a batch of blocks."""
        return {"loss": self.model(input_ids, return_type="loss")}


class SequenceTrainer(Trainer):
    """The Trainer, with checkpoints that `interp.load` reads."""

    @property
    def sequence_model(self) -> HookedSequenceModel:
        """The model that is being trained, whatever it is wrapped in."""
        return cast(
            NextTokenLoss, self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        ).model

    def _save(
        self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        self.sequence_model.save_pretrained(cast(str, output_dir or self.args.output_dir))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        stored = HookedSequenceModel.from_pretrained(resume_from_checkpoint)
        self.sequence_model.load_state_dict(stored.state_dict())


@contextmanager
def global_random_state_kept() -> Iterator[None]:
    """The Trainer seeds the global generators; give them back as they were."""
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002 (the Trainer uses it)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@global_random_state_kept()
def train(
    recipe: Recipe | str | Path,
    directory: str | Path | None = None,
    *,
    resume: bool = False,
    report_to: str = "none",
) -> Path:
    """Train a model and write it, its history and its card into a directory.

    Args:
        recipe: a `Recipe`, the name of a bundled one, or a TOML file.
        directory: where everything goes; by default `runs/<recipe name>`.
        resume: go on from the directory's last checkpoint.
        report_to: a tracker of the Trainer's: "tensorboard", "wandb", "trackio", or "none".

    Returns:
        The directory: model and tokenizer as `interp.load` reads them, `recipe.toml`,
        `history.json` (every logged number, by step), a model card, and `checkpoints/`.

    Raises:
        FileExistsError: the directory holds a run, and `resume` is False.
        FileNotFoundError: `resume` is True, and there is no checkpoint to go on from.
        ValueError: the recipe or its corpus cannot be trained on.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    directory = Path(directory) if directory is not None else Path("runs") / recipe.name
    recipe.build(recipe.vocab_size)  # sizes that do not fit are refused now, not after tokenising
    checkpoint = _last_checkpoint(directory, recipe, resume)
    corpus = load_corpus(recipe.corpus, held_out=recipe.held_out)
    (directory / RECIPE).write_text(recipe.to_toml())
    tokenizer = _tokenizer(corpus, recipe, checkpoint)
    blocks = {
        part: pack(corpus.split(part), tokenizer, recipe.n_ctx, directory / DATA)
        for part in ("train", "validation")
    }
    _check_blocks(blocks["train"], recipe)
    model = recipe.build(len(tokenizer), tokenizer)
    trainer = SequenceTrainer(
        model=NextTokenLoss(model),
        args=_arguments(recipe, directory, report_to),
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
    )
    trainer.add_callback(ProbeCallback(model, trainer.log, blocks["validation"]))
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        model.save_pretrained(directory)
        (directory / HISTORY).write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
        write_card(directory, recipe, corpus, blocks["train"], blocks["validation"])
    return directory


def _last_checkpoint(directory: Path, recipe: Recipe, resume: bool) -> str | None:
    """The checkpoint to go on from, if any, and a directory that can be written to."""
    checkpoints = directory / CHECKPOINTS
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if resume and last is None:
        raise FileNotFoundError(
            f"{directory} holds no checkpoint to resume from; train without resume first"
        )
    if not resume and last is not None:
        raise FileExistsError(
            f"{directory} already holds a run; resume it, or choose another directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        raise PermissionError(f"{directory} cannot be written to; choose another directory")
    if resume and (stored := (directory / RECIPE)).is_file():
        before = Recipe.from_toml(stored.read_text())
        if before != recipe:
            raise ValueError(
                f"{stored} differs from the recipe to resume; train it into another directory"
            )
    return last


def _tokenizer(corpus: Corpus, recipe: Recipe, checkpoint: str | None) -> PreTrainedTokenizerFast:
    if checkpoint is not None:
        return HookedSequenceModel.from_pretrained(checkpoint).tokenizer
    kind = cast(Literal["bpe", "characters"], recipe.tokenizer)
    return train_tokenizer(corpus.split("train"), recipe.vocab_size, kind)


def _check_blocks(blocks: Dataset, recipe: Recipe) -> None:
    if len(blocks) < recipe.batch_size:
        raise ValueError(
            f"recipe: the corpus gives {len(blocks)} blocks of n_ctx={recipe.n_ctx}, fewer than"
            f" batch_size={recipe.batch_size}; use more text, shorter blocks or a smaller batch"
        )


def _arguments(recipe: Recipe, directory: Path, report_to: str) -> TrainingArguments:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.batch_size % processes:
        raise ValueError(
            f"recipe: batch_size is {recipe.batch_size}, which {processes} processes cannot share"
        )
    return TrainingArguments(
        output_dir=str(directory / CHECKPOINTS),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // processes,
        per_device_eval_batch_size=32,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(recipe.warmup_ratio * recipe.steps),
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch",
        seed=recipe.seed,
        data_seed=recipe.seed,
        eval_strategy="steps",
        eval_steps=recipe.probe_steps,
        logging_steps=max(1, recipe.probe_steps // 10),
        save_steps=recipe.save_steps,
        save_total_limit=2,
        prediction_loss_only=True,
        label_names=["input_ids"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        torch_compile=recipe.compile,
        report_to=report_to,
    )
