"""What does training cost? Against a plain PyTorch loop and TransformerLens's, in turns.

    python benchmarks/training.py

Targets: at least 0.9 of the tokens per second of a plain PyTorch loop over the same network in
plain PyTorch, and at least 1.3 of those of `transformer_lens.tools.training` over its native model
of the same shape. All read the same blocks, with AdamW and clipped gradients. Measured is the loop:
no evaluation, no checkpoint, no start. Then: bfloat16 autocast and torch.compile, and the loss.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from rivals.losses import LOSSES, inputs, step
from rivals.native import native_twin
from rivals.plain import Plain
from rivals.timing import in_turns, ratio, show
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformer_lens.tools.training import TrainConfig
from transformer_lens.tools.training import train as their_train

from interp.data.prepared import Prepared
from interp.models import HookedAttnAttn
from interp.training.progress import MetricsFile, ProgressBar
from interp.training.recipe import Recipe
from interp.training.trainer import SequenceTrainer, arguments

STEPS, ROUNDS = 16, 5
STARTING = 4
"""Steps that are not measured: the first ones make states and fill caches."""

SHAPES = ((128, 1_024), (256, 5_000))
"""Width and vocabulary."""


class Clocked(Dataset[dict[str, Tensor]]):
    """Blocks that note the processor's time whenever a batch is fetched."""

    def __init__(self, blocks: Tensor, name: str = "input_ids"):
        self.blocks, self.name, self.fetched = blocks, name, list[float]()

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        self.fetched.append(time.process_time())
        return [{self.name: block} for block in self.blocks[indices]]

    def select_columns(self, name: str) -> "Clocked":
        """There is no other column."""
        return self

    def seconds(self) -> float:
        """Of one step, on average."""
        return (self.fetched[-1] - self.fetched[STARTING]) / (len(self.fetched) - 1 - STARTING)


def recipe_for(d_model: int, d_vocab: int) -> Recipe:
    return Recipe(
        architecture="HookedAttnAttn",
        model={"d_model": d_model, "n_heads": d_model // 32, "unembed_bias": False},
        vocab_size=d_vocab,
        steps=STEPS,
        probe_steps=10**6,
        save_steps=10**6,
    )


def ours(recipe: Recipe, blocks: Tensor, precision: str = "no") -> float:
    """interp.train's loop, with its progress bar and metrics file."""
    data = Clocked(blocks)
    with tempfile.TemporaryDirectory() as directory, redirect_stderr(StringIO()):
        path = Path(directory)
        args = arguments(recipe, path, "none")
        args.mixed_precision = precision
        prepared = Prepared(cast(Any, None), cast(Any, data), cast(Any, Clocked(blocks[:1])), "")
        trainer = SequenceTrainer(recipe.build(recipe.vocab_size), recipe, prepared, args)
        trainer.add_callback(MetricsFile(path, recipe.batch_size * recipe.n_ctx))
        trainer.add_callback(ProgressBar("", recipe.batch_size * recipe.n_ctx))
        trainer.train()
    return data.seconds()


def plain(recipe: Recipe, blocks: Tensor) -> float:
    """What one writes without a library."""
    model: nn.Module = Plain(cast(HookedAttnAttn, recipe.build(recipe.vocab_size)))
    data = Clocked(blocks, "tokens")
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, (0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for batch in first(DataLoader(data, recipe.batch_size, shuffle=True), STEPS):
        tokens = batch["tokens"]
        logits = model(tokens)[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return data.seconds()


def first(batches: DataLoader[Any], n: int) -> Iterator[Any]:
    for _, batch in zip(range(n), batches, strict=False):
        yield batch


def theirs(recipe: Recipe, blocks: Tensor) -> float:
    """TransformerLens's."""
    data = Clocked(blocks, "tokens")
    config = TrainConfig(
        num_epochs=1,
        batch_size=recipe.batch_size,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_steps=STEPS - 1,
        print_every=None,
        device="cpu",
    )
    twin = native_twin(cast(HookedAttnAttn, recipe.build(recipe.vocab_size)))
    with redirect_stderr(StringIO()):
        their_train(twin, config, data)
    return data.seconds()


def loops() -> None:
    """The three loops."""
    rows = []
    for d_model, d_vocab in SHAPES:
        recipe = recipe_for(d_model, d_vocab)
        blocks = blocks_for(recipe)
        contestants = {"interp": ours, "plain": plain, "TransformerLens": theirs}
        times = turns({name: partial(contestants[name], recipe, blocks) for name in contestants})
        speed = recipe.batch_size * recipe.n_ctx / sorted(times["interp"])[ROUNDS // 2]
        faster = [f"{ratio(times, name, 'interp'):.2f}" for name in ("plain", "TransformerLens")]
        rows.append([f"{d_model}", f"{d_vocab:,}", f"{speed:,.0f}", *faster])
    columns = [
        "width",
        "vocabulary",
        "interp's tokens/s",
        "against plain",
        "against TransformerLens",
    ]
    show("Training attn-attn, 8 blocks of 256 tokens per step", columns, rows)


def precisions() -> None:
    """The same loop with bfloat16 autocast, and compiled."""
    rows = []
    for d_model, d_vocab in SHAPES:
        recipe = recipe_for(d_model, d_vocab)
        blocks = blocks_for(recipe)
        times = turns(
            {
                "float32": partial(ours, recipe, blocks),
                "bfloat16": partial(ours, recipe, blocks, precision="bf16"),
                "compiled": partial(ours, recipe.replace(compile=True), blocks),
            }
        )
        faster = [f"{ratio(times, 'float32', name):.2f}" for name in ("bfloat16", "compiled")]
        rows.append([f"{d_model}", f"{d_vocab:,}", *faster])
    columns = ["width", "vocabulary", "bfloat16 autocast", "torch.compile"]
    show("Speed against float32 as it is", columns, rows)


def losses() -> None:
    """From the stream to the gradients of the loss."""
    rows = []
    for d_vocab in (1_024, 50_000):
        given = inputs(d_vocab)
        expected = step("whole", given)
        for name in LOSSES:
            torch.testing.assert_close(step(name, given), expected, rtol=1e-4, atol=1e-7)
        times = in_turns({name: partial(step, name, given) for name in LOSSES}, rounds=3)
        rows += [
            [f"{d_vocab:,}", name, f"{ratio(times, name, 'whole'):.2f}", peak(d_vocab, name)]
            for name in LOSSES
        ]
    columns = ["vocabulary", "loss", "time, of all logits at once", "memory"]
    show("The loss of 8 x 256 tokens and its gradients, width 128", columns, rows)


def peak(d_vocab: int, name: str) -> str:
    command = [sys.executable, "-m", "rivals.losses", str(d_vocab), name]
    here = Path(__file__).parent
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=here)
    return f"{float(found.stdout):,.0f} MB"


def blocks_for(recipe: Recipe) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (recipe.batch_size * STEPS, recipe.n_ctx)
    return torch.randint(recipe.vocab_size, shape, generator=generator)


def turns(contestants: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds per step of each, A B A B ..., after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(ROUNDS + 1):
        for name, run in contestants.items():
            seconds = run()
            if turn:
                times[name].append(seconds)
    return times


def main() -> None:
    torch.set_num_threads(1)  # a core is a core, on every machine
    loops()
    losses()
    precisions()


if __name__ == "__main__":
    main()
