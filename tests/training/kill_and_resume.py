"""Kill a run again and again, at random moments, and see that resuming loses nothing.

    python tests/training/kill_and_resume.py --kills 20

One run is left alone. Others, of the same recipe, are killed (SIGKILL: nothing can be tidied up) at
moments drawn evenly from its duration, and resumed by `interp train --resume` until they are
through. Every one has to end with the same weights and the same losses, bit for bit, and no moment
may leave a directory `checkpoint-N` that is not a whole checkpoint.

The runs fork from a process that has imported everything, so that a kill hits the run and not its
imports.
"""

import argparse
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PRELOADED = ["interp.cli", "interp.training.run"]
LOG, THROUGH = "log", "got through"
SAME = ("metrics.csv", "recipe.toml", "scores.json", "blocks.json", "development.parquet")
PROMISED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def write_recipe(directory: Path) -> Path:
    """A corpus and a run of seconds that saves often, so that many kills hit a checkpoint."""
    words = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
    for number in range(60):
        choose = random.Random(number)
        text = " ".join(choose.choice(words) for _ in range(1000))
        (directory / f"{number:02}.txt").write_text(f"File {number}. {text}.")
    recipe = directory / "recipe.toml"
    recipe.write_text(
        f'name = "killed"\ncorpus = "{directory}/*.txt"\nheld_out = 0.3\nvocab_size = 300\n'
        "n_ctx = 32\nsteps = 60\nprobe_steps = 20\nsave_steps = 3\nsnapshots = 4\n"
        "snapshot_blocks = 8\n[model]\nd_model = 64\nn_heads = 2\n"
    )
    return recipe


def run(recipe: Path, directory: Path) -> None:
    """`interp train RECIPE --out DIRECTORY --resume`, in a process of its own."""
    import torch

    from interp.cli import app

    torch.set_num_threads(1)
    log = (directory.parent / LOG).open("a")
    with log, redirect_stdout(log), redirect_stderr(log):
        app(["train", str(recipe), "--out", str(directory), "--resume"], standalone_mode=False)


def where(directory: Path) -> str:
    """What a run that was just killed was doing, as far as its directory tells."""
    checkpoints = directory / "checkpoints"
    if any(checkpoints.glob(".unfinished-*")) or any(checkpoints.glob(".doomed-*")):
        return "writing or dropping a checkpoint"
    if any(directory.glob(".unfinished-*")):
        return "writing something else"
    if not any(checkpoints.glob("checkpoint-*")):
        return "before the first checkpoint" if any(directory.glob("blocks.json")) else "preparing"
    if (checkpoints / "checkpoint-60").is_dir():
        return "after the last step"
    return "between checkpoints"


def check_checkpoints(directory: Path) -> None:
    """Whatever is called a checkpoint is one."""
    for checkpoint in (directory / "checkpoints").glob("checkpoint-*"):
        missing = [name for name in PROMISED if not (checkpoint / name).is_file()]
        assert not missing, f"{checkpoint.name} lacks {missing}"


def start(recipe: Path, directory: Path) -> ForkServerProcess:
    """A run, forked from a process that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=run, args=(recipe, directory))
    process.start()
    return process


def finish(process: ForkServerProcess, directory: Path) -> None:
    """Wait for a run that nobody kills, and insist that it gets through."""
    process.join()
    assert process.exitcode == 0, (directory.parent / LOG).read_text()


def kills(recipe: Path, directory: Path, n: int, seconds: float, seed: int) -> Iterator[str]:
    """Start or resume runs and kill n of them; what each was doing, or that it got through."""
    choose = random.Random(seed)
    while n:
        process = start(recipe, directory)
        process.join(choose.uniform(0, seconds))
        if process.is_alive():
            process.kill()
            process.join()
            check_checkpoints(directory)
            n -= 1
            yield where(directory)
        else:
            finish(process, directory)
            yield THROUGH


def compare(first: Path, second: Path) -> None:
    """Two finished runs have everything in common that does not tell the time."""
    import torch
    from safetensors.torch import load_file

    one, other = (load_file(path / "model.safetensors") for path in (first, second))
    found = [name for name in one if not torch.equal(one[name], other[name])]
    found += [name for name in SAME if (first / name).read_bytes() != (second / name).read_bytes()]
    assert not found, f"{second} differs from {first} in {', '.join(found)}"


def kill_and_resume(n: int, seed: int, scratch: Path) -> Counter[str]:
    """Kill runs n times; how often each thing was interrupted, and how many runs got through."""
    recipe, alone, killed = write_recipe(scratch), scratch / "alone", scratch / "killed"
    finish(start(recipe, scratch / "first"), alone)  # waits for the imports
    began = time.monotonic()
    finish(start(recipe, alone), alone)
    seconds = time.monotonic() - began
    print(f"left alone, a run takes {seconds:.1f} s")
    found: Counter[str] = Counter()
    for what in kills(recipe, killed, n, seconds, seed):
        print(f"  {what}", flush=True)
        found[what] += 1
        if what == THROUGH:
            compare(alone, killed)
            shutil.rmtree(killed)
    finish(start(recipe, killed), killed)
    compare(alone, killed)
    found[THROUGH] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = kill_and_resume(arguments.kills, arguments.seed, Path(scratch))
    through = found.pop(THROUGH)
    for what, count in found.most_common():
        print(f"{count:3} killed {what}")
    print(f"{through:3} runs got through, all with the weights of the one left alone")


if __name__ == "__main__":
    main()
