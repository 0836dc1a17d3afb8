"""Many runs from one file: the same recipe, with what makes each member different, at many seeds.

```toml
name = "formation"
seeds = [0, 1, 2]
steps = 2000                    # any key of a recipe, for all members

[model]                         # likewise; a member's own [member.model] is laid over it
d_model = 128
n_heads = 4

[corpora]                       # optional; the first is the one of members that name none
docs = "python-docs"
prose = "literary/*.txt"

[[member]]
name = "conv-attn"
architecture = "HookedConvAttn"
corpora = ["docs", "prose"]

[[member]]
name = "one-lag"
architecture = "HookedConvAttn"
model = { lags = 1 }
```
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from interp.models.hooks import nearest
from interp.training.flops import flops_of
from interp.training.recipe import Recipe
from interp.training.toml import bundled, read_toml

DATA, TABLE, RECIPE, SCORES = "data", "development.parquet", "recipe.toml", "scores.json"
_OWN_KEYS = ("seeds", "corpora", "member")


@dataclass(frozen=True)
class Run:
    """One member of a suite, on one corpus, with one seed."""

    member: str
    corpus: str
    recipe: Recipe

    def is_finished(self, directory: Path) -> bool:
        """Whether it was trained to its end: the scores are what `train` writes last.

        Raises:
            ValueError: what lies there was trained by another recipe.
        """
        place = directory / self.recipe.name
        if (stored := place / RECIPE).is_file():
            before, now = (asdict(recipe) for recipe in (Recipe.load(stored), self.recipe))
            for key, value in now.items():
                if before[key] != value:
                    raise ValueError(
                        f"{place} was begun with {key} = {before[key]!r}, and the suite now says "
                        f"{value!r}; give the suite another directory, or remove this run"
                    )
        return (place / SCORES).is_file()


@dataclass(frozen=True)
class Suite:
    """A named list of runs, each checked: `for run in Suite.load("formation"): run.recipe`.

    All members with a seed come before any with the next, so that a suite that was stopped early
    has compared them all.

    Raises:
        ValueError: an unknown key, a wrong value, a member that cannot be built; the message names
            suite, member, key, value and remedy.
    """

    name: str
    runs: tuple[Run, ...]

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """A suite by the name of a bundled one, or from a TOML file."""
        path = bundled().get(str(name), Path(name))
        if not path.is_file():
            known = ", ".join(sorted(key for key, file in bundled().items() if is_suite(file)))
            raise FileNotFoundError(
                f"{name} is no TOML file and no bundled suite; those are {known or 'none'}"
            )
        data = read_toml(path)
        try:
            return cls(_text(data, "name"), tuple(_runs(data)))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"suite {name}: {error}") from error

    def only(
        self,
        members: Collection[str] = (),
        seeds: Collection[int] = (),
        corpora: Collection[str] = (),
    ) -> Self:
        """The suite's runs of these members, seeds and corpora; of all where none are given.

        Raises:
            ValueError: a member, seed or corpus that the suite does not have.
        """
        for what, wanted, there in (
            ("member", members, {run.member for run in self}),
            ("seed", seeds, {run.recipe.seed for run in self}),
            ("corpus", corpora, {run.corpus for run in self}),
        ):
            for one in wanted:
                if one not in there:
                    known = ", ".join(map(str, sorted(there, key=str)))
                    raise ValueError(f"{self.name} has no {what} {one!r}; it has {known}")
        chosen = (
            run
            for run in self
            if (not members or run.member in members)
            and (not seeds or run.recipe.seed in seeds)
            and (not corpora or run.corpus in corpora)
        )
        return type(self)(self.name, tuple(chosen))


def is_suite(path: Path) -> bool:
    """Whether a TOML file describes a suite rather than one recipe."""
    return "member" in read_toml(path)


def train_suite(
    suite: Suite | str | Path,
    directory: str | Path | None = None,
    *,
    members: Collection[str] = (),
    seeds: Collection[int] = (),
    corpora: Collection[str] = (),
    report_to: str = "none",
) -> Path:
    """Train the runs of a suite that are not finished, one after the other.

    Stopped at any moment, the same call goes on. Called several times at once, the workers share
    the runs out among them: each passes over what another one is training. Blocks and tokenizers
    are made once, in `data/`.

    Args:
        suite: a `Suite`, a bundled name or a TOML file.
        directory: where the runs go, each in a directory of its own; by default `runs/<suite>`.
        members: train these only.
        seeds: train these only.
        corpora: train on these only, by their names in the suite.
        report_to: a tracker, as for `train`.

    Returns:
        The directory. Where the recipes ask for snapshots, its `development.parquet` holds what
        `collect` finds.

    Raises:
        ValueError: what cannot be trained; all runs are checked before the first is trained.
    """
    # Reading a suite needs no Trainer, which takes seconds to import.
    from interp.training.run import blocks_for, train
    from interp.training.snapshots import write_table

    suite = suite if isinstance(suite, Suite) else Suite.load(suite)
    directory = Path(directory) if directory is not None else Path("runs") / suite.name
    wanted = suite.only(members, seeds, corpora)
    missing = [run for run in wanted if not run.is_finished(directory)]
    for run in missing:
        run.recipe.check()
    for run in missing:
        blocks_for(run.recipe, directory / DATA)  # a corpus that will not do is refused now
    for run in missing:
        if run.is_finished(directory):  # by another worker, meanwhile
            continue
        place = directory / run.recipe.name
        try:
            train(run.recipe, place, resume=True, report_to=report_to, data=directory / DATA)
        except FileExistsError:  # another worker has it
            continue
    if any((directory / run.recipe.name / TABLE).is_file() for run in suite):
        write_table(collect(suite, directory), directory / TABLE)
    return directory


def collect(suite: Suite, directory: str | Path) -> pd.DataFrame:
    """What all runs of a suite were measured to do while they trained, in one table.

    Returns:
        The rows of each run's `development.parquet` (see `interp.training.snapshots.measured`),
        after the columns `run`, `member`, `architecture`, `corpus`, `positions`, `seed`,
        `parameters`, `flops_per_token` and, of these, `unembedding_flops`. A run that has not
        begun has no rows.
    """
    frames = []
    for run in suite:
        table = Path(directory) / run.recipe.name / TABLE
        if table.is_file():
            frame = pd.read_parquet(table)
            for place, (column, value) in enumerate(_facts(run).items()):
                frame.insert(place, column, value)
            frames.append(frame)
    if not frames:
        raise FileNotFoundError(f"{directory} holds no {TABLE} of any run of {suite.name}")
    return pd.concat(frames, ignore_index=True)


def _facts(run: Run) -> dict[str, Any]:
    recipe = run.recipe
    model = recipe.build(recipe.vocab_size)
    flops = flops_of(model, recipe.n_ctx)
    return {
        "run": recipe.name,
        "member": run.member,
        "architecture": recipe.architecture,
        "corpus": run.corpus,
        "positions": getattr(model.config, "positions", ""),
        "seed": recipe.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops_per_token": flops.total,
        "unembedding_flops": flops.unembedding,
    }


def _runs(data: Mapping[str, Any]) -> Iterator[Run]:
    common = {key: value for key, value in data.items() if key not in _OWN_KEYS}
    seeds, members = _seeds(data), _members(data)
    corpora = data.get("corpora", {})
    if corpora and "corpus" in common:
        raise ValueError("give corpus or [corpora], not both")
    for seed in seeds:
        for member in members:
            for corpus in _corpora(member, corpora):
                yield _run(common, member, corpora, corpus, seed, is_first=seed == seeds[0])


def _run(
    common: Mapping[str, Any],
    member: Mapping[str, Any],
    corpora: Mapping[str, str],
    corpus: str,
    seed: int,
    is_first: bool,
) -> Run:
    name = member["name"]
    parts = [name, *([corpus] if corpora else []), f"seed{seed}"]
    own = {key: value for key, value in member.items() if key != "corpora"}
    settings = {**common, **own, "name": "-".join(parts), "seed": seed}
    settings["model"] = {**common.get("model", {}), **member.get("model", {})}
    if corpora:
        settings["corpus"] = corpora[corpus]
    try:
        recipe = Recipe.from_data(settings)
        if is_first:
            recipe.build(recipe.vocab_size)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"member {name!r}: {error}") from error
    return Run(name, corpus if corpora else recipe.corpus, recipe)


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value or "/" in value:
        raise ValueError(f"{key} is {value!r}, but must be text without a slash")
    return value


def _seeds(data: Mapping[str, Any]) -> Sequence[int]:
    seeds = data.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"seeds is {seeds!r}, but must be a list of whole numbers: [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {seeds}, but a seed must not be repeated")
    return seeds


def _members(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    members = data.get("member")
    if not isinstance(members, list) or not members:
        raise ValueError("there is no [[member]]; give one, or train it with interp train")
    names = []
    for member in members:
        names.append(_text(member, "name"))
        if "seed" in member:
            raise ValueError(f"member {names[-1]!r}: seed is the suite's to give; see seeds")
        if names.count(names[-1]) > 1:
            raise ValueError(f"two members are called {names[-1]!r}; give each its own name")
    return members


def _corpora(member: Mapping[str, Any], corpora: Mapping[str, str]) -> Sequence[str]:
    wanted = member.get("corpora", list(corpora)[:1] or [""])
    owner = f"member {member['name']!r}"
    if not isinstance(wanted, list) or not wanted:
        raise ValueError(f"{owner}: corpora is {wanted!r}, but must be a list of names")
    for one in wanted:
        if one not in (corpora or [""]):
            hint = nearest(str(one), corpora)
            raise ValueError(f"{owner}: corpora names {one!r}, which [corpora] does not have{hint}")
    return wanted
