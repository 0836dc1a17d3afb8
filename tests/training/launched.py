"""What `accelerate launch` runs in the tests of several processes: train, and note who did what.

accelerate launch ... launched.py RECIPE DIRECTORY NOTES
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState

from interp.data import prepared
from interp.training import Recipe, callbacks, train


def noted(work: Callable[..., Any], notes: Path) -> Callable[..., Any]:
    """The same function; every call is a line: its name and its process."""

    def wrapped(*args: Any) -> Any:
        with notes.open("a") as file:
            file.write(f"{work.__name__} {os.environ['RANK']}\n")
        return work(*args)

    return wrapped


def pass_for_gpus() -> None:
    """Accelerate splits models between GPUs only, though PyTorch would do it on CPUs, too."""
    begin = PartialState.__init__

    def begin_as_gpus(self: PartialState, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = begin_as_gpus


def main() -> None:
    torch.set_num_threads(1)
    recipe, directory, notes = sys.argv[1:]
    prepared._prepare = noted(prepared._prepare, Path(notes))
    callbacks.probe = noted(callbacks.probe, Path(notes))
    if "ACCELERATE_USE_FSDP" in os.environ:
        pass_for_gpus()
    train(Recipe.load(recipe), directory, resume=True)


if __name__ == "__main__":
    main()
