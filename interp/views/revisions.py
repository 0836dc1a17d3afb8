"""The models of one training run, by step: from its directory, or from revisions on the hub.

Nothing is loaded before it is asked for: a run of any length takes the memory of one model.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import hf_hub_download, list_repo_refs
from huggingface_hub.errors import EntryNotFoundError

from interp.models.hub import CONFIG, WEIGHTS
from interp.models.sequence import HookedSequenceModel
from interp.views.loading import load

SNAPSHOTS, RECIPE = "snapshots", "recipe.toml"
SNAPSHOT = re.compile(r"step(\d+)")
REVISION = re.compile(r"(?:step|checkpoint-)(\d+)")
"""Pythia's and most others' names, and stanford-crfm's."""


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """A training run as its steps and a way to load the model of each.

    Args:
        steps: in ascending order.
        load: from a step to its model.
        origin: what is known of the run, for a result's provenance: "run", "architecture",
            "training_seed", "corpus", "tokens_per_step", ...

    Raises:
        ValueError: no steps, or steps that are negative, repeated or out of order.

    >>> from interp.models import HookedAttn
    >>> sizes = {"d_vocab": 9, "d_model": 8, "n_heads": 1}
    >>> run = Checkpoints((0, 10), lambda step: HookedAttn(**sizes, seed=step))
    >>> [(step, type(model).__name__) for step, model in run]
    [(0, 'HookedAttn'), (10, 'HookedAttn')]
    """

    steps: tuple[int, ...]
    load: Callable[[int], Any]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for step in self.steps:
            yield step, self.load(step)

    def at(self, steps: Iterable[int]) -> Self:
        """The same run at these of its steps only.

        Raises:
            ValueError: a step that the run does not have; the message lists those it has.
        """
        chosen = tuple(steps)
        for step in chosen:
            if step not in self.steps:
                raise ValueError(f"the run has no step {step}; its steps are {_listed(self.steps)}")
        return replace(self, steps=chosen)

    @classmethod
    def from_run(cls, directory: str | Path, *, device: str | torch.device = "cpu") -> Self:
        """The snapshots of a training directory, which `interp.train` wrote.

        Its recipe says how many tokens one step reads.

        Raises:
            FileNotFoundError: there is no such directory, it holds no snapshots, or one of them
                lacks a file.
        """
        directory = Path(directory)
        folders = _snapshots(directory)
        for folder in folders.values():
            for name in (CONFIG, WEIGHTS):
                if not (folder / name).is_file():
                    raise FileNotFoundError(
                        f"{folder} holds no {name}; delete it, or write it anew"
                    )
        return cls(
            tuple(folders),
            lambda step: load(folders[step], device=device),
            {"run": directory.resolve().name, **told_by_recipe(directory)},
        )

    @classmethod
    def from_hub(
        cls,
        repository: str,
        *,
        tokens_per_step: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The revisions of a hub repository that are named by step, as Pythia's "step1000".

        Branches and tags called `step{N}` or `checkpoint-{N}` count. A repository of ours gives
        our models, any other a `TransformerBridge`. The hub's cache keeps every revision that was
        loaded.

        Args:
            repository: such as "EleutherAI/pythia-70m".
            tokens_per_step: how many tokens one step reads; 2,097,152 for Pythia.
            device: where the weights go.
            dtype: of the weights; by default as saved, and float32 in a bridge.

        Raises:
            FileNotFoundError: no such repository, or the hub cannot be reached.
            ValueError: none of its revisions is named by step.
        """
        names = _revisions(repository)
        ours = _is_ours(repository, next(iter(names.values())))
        origin: dict[str, Any] = {"run": repository}
        if tokens_per_step is not None:
            origin["tokens_per_step"] = tokens_per_step

        def load_revision(step: int) -> Any:
            if ours:
                return HookedSequenceModel.from_pretrained(
                    repository, revision=names[step], device=device, dtype=dtype
                )
            return _bridge(repository, names[step], device, dtype or torch.float32)

        return cls(tuple(names), load_revision, origin)


def check_steps(steps: Iterable[int]) -> None:
    """Refuse steps that are not whole, at least 0 and ascending, and an empty run.

    >>> check_steps([0, 20, 10])
    Traceback (most recent call last):
    ValueError: step 10 comes after step 20; give the checkpoints in ascending order of their steps
    """
    before = None
    for step in steps:
        check_next(step, before)
        before = step
    if before is None:
        raise ValueError("there are no checkpoints; give at least one (step, model)")


def check_next(step: int, before: int | None) -> None:
    """Refuse a step that cannot follow the one before it."""
    if not isinstance(step, Integral) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step {step!r} is not a whole number of at least 0")
    if step == before:
        raise ValueError(f"step {step} is there twice; give one model for each step")
    if before is not None and step < before:
        raise ValueError(
            f"step {step} comes after step {before}; give the checkpoints in ascending order of "
            "their steps"
        )


def _snapshots(directory: Path) -> dict[int, Path]:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory; give the one that a run wrote")
    found = (directory / SNAPSHOTS).glob("step*")
    numbered = {int(match[1]): path for path in found if (match := SNAPSHOT.fullmatch(path.name))}
    if not numbered:
        raise FileNotFoundError(
            f"{directory} holds no {SNAPSHOTS}/step<N>: the run kept no model on its way; train "
            "with a recipe that keeps snapshots"
        )
    return dict(sorted(numbered.items()))


def told_by_recipe(directory: Path) -> dict[str, Any]:
    """What a run's recipe says of it, for a provenance; nothing where there is no recipe."""
    path = directory / RECIPE
    if not path.is_file():
        return {}
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    names = {"architecture": "architecture", "training_seed": "seed", "corpus": "corpus"}
    origin = {ours: recipe[theirs] for ours, theirs in names.items() if theirs in recipe}
    if "batch_size" in recipe and "n_ctx" in recipe:
        origin["tokens_per_step"] = recipe["batch_size"] * recipe["n_ctx"]
    return origin


def _revisions(repository: str) -> dict[int, str]:
    """The repository's revisions by step, in ascending order."""
    try:
        refs = list_repo_refs(repository)
    except Exception as error:  # a lost connection is called what the hub's HTTP library calls it
        raise FileNotFoundError(
            f"{repository!r} is no directory and no repository that the hub gives: {error}"
        ) from error
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    numbered = {int(match[1]): name for name in names if (match := REVISION.fullmatch(name))}
    if not numbered:
        raise ValueError(
            f"{repository!r} has no revision called step<N> or checkpoint-<N>; its revisions are "
            f"{_listed(names)}"
        )
    return dict(sorted(numbered.items()))


def _is_ours(repository: str, revision: str) -> bool:
    """Whether a revision holds one of our models. Its config tells."""
    try:
        path = hf_hub_download(repository, CONFIG, revision=revision)
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository!r} holds no {CONFIG} at revision {revision!r}"
        ) from error
    return "architecture" in json.loads(Path(path).read_text(encoding="utf-8"))


def _bridge(repository: str, revision: str, device: str | torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        repository, revision=revision, device=device, dtype=dtype
    )


def _listed(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:16]) + (f", ... ({len(shown)} in all)" if len(shown) > 16 else "")
