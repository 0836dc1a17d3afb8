"""From a recipe to a trained model: checks first, then data, then the Trainer, then the card."""

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch

from interp.data.prepared import Prepared, Settings, prepare, table_of
from interp.training.callbacks import ProbeCallback
from interp.training.card import write_card
from interp.training.directory import (
    DATA,
    alone_in,
    check_space,
    check_writable,
    last_checkpoint,
    steps_of,
    sweep,
    write_whole,
)
from interp.training.progress import MetricsFile, ProgressBar, say
from interp.training.recipe import Recipe
from interp.training.snapshots import SnapshotCallback
from interp.training.trainer import (
    SequenceTrainer,
    arguments,
    check_tracker,
    close_tracker,
    processes,
)

RECIPE, HISTORY, BLOCKS = "recipe.toml", "history.json", "blocks.json"


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
    data: str | Path | None = None,
) -> Path:
    """Train a model and write it, its history and its card into a directory.

    A run can be killed at any moment and resumed; on the same machine it ends with the same weights
    bit for bit. Under `accelerate launch` all processes train one model.

    Args:
        recipe: a `Recipe`, the name of a bundled one, or a TOML file.
        directory: where everything goes; by default `runs/<recipe name>`.
        resume: go on from the directory's last checkpoint, or begin if there is none yet.
        report_to: a tracker of the Trainer's: "tensorboard", "wandb", "trackio", or "none".
        data: where the tokenizer and the packed blocks lie, by default the directory's `data/`.
            Several runs can share one: what is there already is not made again.

    Returns:
        The directory: model and tokenizer as `interp.load` reads them, `recipe.toml`,
        `metrics.csv` (every number as it was measured, a line for each), `history.json` (the same
        by step, in the end), a model card, and `checkpoints/`. Where the recipe asks for snapshots,
        also `snapshots/` and `development.parquet`.

    Raises:
        FileExistsError: the directory holds a run, and `resume` is False; or another process is
            training in it.
        PermissionError: the directory cannot be written to.
        OSError: the disk has too little room for the run, or got full; what was written stays.
        ValueError: the recipe or its corpus cannot be trained on, or the tracker is not installed.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    directory = Path(directory) if directory is not None else Path("runs") / recipe.name
    _check_recipe(recipe)
    check_tracker(report_to)
    _check_directory(directory, recipe, resume)
    with ExitStack() as held:
        if processes().is_main_process:
            held.enter_context(alone_in(directory))
            sweep(directory)
            _check_room(directory, recipe)
            if resume:
                _say_where_it_goes_on(directory, recipe)
        with processes().main_process_first():
            prepared = blocks_for(recipe, directory / DATA if data is None else data)
        _run(recipe, directory, prepared, report_to)
    return directory


def _run(recipe: Recipe, directory: Path, prepared: Prepared, report_to: str) -> None:
    checkpoint = last_checkpoint(directory)
    is_main = processes().is_main_process
    if is_main:
        _write_origin(directory, recipe, prepared, checkpoint)
    recipe = recipe.settled(len(prepared.train))
    if prepared.stream is not None:
        done = 0 if checkpoint is None else steps_of(checkpoint)
        prepared.stream.seed, prepared.stream.start = recipe.seed, done * recipe.batch_size
    model = recipe.build(len(prepared.tokenizer), prepared.tokenizer)
    trainer = SequenceTrainer(model, recipe, prepared, arguments(recipe, directory, report_to))
    tokens_per_step = recipe.batch_size * recipe.n_ctx
    trainer.add_callback(MetricsFile(directory, tokens_per_step))
    trainer.add_callback(ProgressBar(recipe.name, tokens_per_step))
    trainer.add_callback(ProbeCallback(trainer.whole_model, trainer.log, prepared.held_out))
    if recipe.snapshots:
        trainer.add_callback(
            SnapshotCallback(
                trainer.whole_model, recipe, directory, prepared.train, prepared.held_out
            )
        )
    if checkpoint is not None and steps_of(checkpoint) == recipe.steps:
        trainer.restore(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model(str(directory))
    if is_main:
        write_whole(directory / HISTORY, json.dumps(trainer.state.log_history, indent=1) + "\n")
        write_card(directory, recipe, prepared)
        close_tracker(report_to)


def _check_recipe(recipe: Recipe) -> None:
    recipe.check()
    n = processes().num_processes
    if recipe.batch_size % n:
        raise ValueError(
            f"recipe: batch_size is {recipe.batch_size}, which {n} processes cannot share equally"
        )


def _check_directory(directory: Path, recipe: Recipe, resume: bool) -> None:
    """Whether this run may write there, and would not mix with another one."""
    last, stored = last_checkpoint(directory), directory / RECIPE
    if not resume and last is not None:
        raise FileExistsError(
            f"{directory} already holds a run; resume it, or choose another directory"
        )
    check_writable(directory)
    if resume and stored.is_file() and Recipe.load(stored) != recipe:
        raise ValueError(
            f"{stored} differs from the recipe to resume; train it into another directory"
        )


def _say_where_it_goes_on(directory: Path, recipe: Recipe) -> None:
    last = last_checkpoint(directory)
    say(
        f"{recipe.name}: going on from {last.name}"
        if last
        else f"{recipe.name}: no checkpoint yet, beginning at step 0"
    )


def _check_room(directory: Path, recipe: Recipe) -> None:
    model = recipe.build(recipe.vocab_size)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # The optimizer keeps at most two numbers for each weight; the last model is kept, too.
    check_space(directory, 3 * weights, (1 + recipe.snapshots) * weights)


def blocks_for(recipe: Recipe, data: str | Path) -> Prepared:
    """What a recipe trains on, found in the directory `data` or made there.

    Raises:
        ValueError: the corpus cannot be used, or is too little text for one batch.
    """
    settings = Settings(
        recipe.corpus,
        recipe.held_out,
        cast(Literal["bpe", "characters"], recipe.tokenizer),
        recipe.vocab_size,
        recipe.n_ctx,
        recipe.held_out_documents if recipe.streaming else None,
    )
    try:
        prepared = prepare(settings, data)
    except ValueError as error:
        raise ValueError(f"recipe: corpus is {recipe.corpus!r}: {error}") from error
    if len(prepared.train) < recipe.batch_size:
        raise ValueError(
            f"recipe: the corpus gives {len(prepared.train)} blocks of n_ctx={recipe.n_ctx}, fewer "
            f"than batch_size={recipe.batch_size}; use more text, shorter blocks or a smaller batch"
        )
    return prepared


def _write_origin(
    directory: Path, recipe: Recipe, prepared: Prepared, checkpoint: Path | None
) -> None:
    """Recipe and blocks, which a resumed run must find as they were when it began."""
    tables = {"train": prepared.train, "held_out": prepared.held_out}
    names = {part: table_of(table).name for part, table in tables.items()}
    stored = directory / BLOCKS
    if checkpoint and stored.is_file() and json.loads(stored.read_text()) != names:
        raise ValueError(
            f"{directory} was trained on other blocks: they are gone, and the corpus has changed "
            "since; train it anew, in another directory"
        )
    write_whole(directory / RECIPE, recipe.to_toml())
    write_whole(stored, json.dumps(names, indent=1) + "\n")
