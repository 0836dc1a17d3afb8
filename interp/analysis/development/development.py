"""How a measurement grows while a model trains: any analysis, at every checkpoint of a run."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from interp.analysis.probes.probe import TAKEN_AS_INDEPENDENT
from interp.results.result import Label, Result, over_samples
from interp.results.sampling import Groups, Sampling
from interp.views.revisions import Checkpoints, check_next, check_steps

Analysis = Callable[..., Result]
Pairs = Iterable[tuple[int, Any]]


def development(
    checkpoints: Checkpoints | str | Path | Pairs,
    analysis: Analysis,
    *,
    samples: Mapping[str, Iterable[Any]] | None = None,
    groups: Groups | None = None,
    tokens_per_step: float | None = None,
) -> Result:
    """How does what an analysis measures develop while a model trains?

    One model is in memory at a time, and a progress bar counts them.

    Args:
        checkpoints: the directory of a run, or the name of a hub repository (`Checkpoints` says
            more, and chooses steps), or any iterable of (step, model) in ascending order of the
            steps. In place of a model there may be a function that loads it.
        analysis: from a model to a `Result`. `functools.partial(loss_by_position, tokens=text)`
            fixes what else it takes.
        samples: one of the analysis's keyword arguments, and the values it takes one after the
            other: `{"seed": range(50)}`, or `{"tokens": text.split(1)}`. They become an axis
            "sample", over which `phase_change` draws its bootstrap; let each stand for one
            sequence, or for a few. At every step they are the same.
        groups: which text each sample is from, where samples are neighbours in one: one label per
            sample. Errors are then over the groups' means, and the bootstrap draws groups. (An
            analysis of many sequences takes `groups` of its own: fix them with the tokens.)
        tokens_per_step: what turns steps into tokens, where the run itself does not say.

    Returns:
        The analysis's Result with a leading axis "step", after it "sample" where asked for, then
        its own axes, with its standard errors and chance levels. What its provenance says
        differently at different steps stands there by step.

    Raises:
        FileNotFoundError: a run without snapshots, or a repository that the hub does not give.
        ValueError: steps repeated or out of order, `samples` of other than one argument, or
            Results that differ in their labels between steps.
        TypeError: the analysis returns no Result.

    >>> from functools import partial
    >>> from interp.analysis import induction_score
    >>> from interp.models import HookedConvAttn
    >>> sizes = {"d_vocab": 60, "d_model": 16, "n_heads": 2, "n_ctx": 64}
    >>> models = [(step, HookedConvAttn(**sizes, seed=step)) for step in (0, 10, 100)]
    >>> grown = development(models, partial(induction_score, n=20, n_sequences=4))
    >>> grown.axes, grown.labels["step"]
    (('step', 'head'), (0, 10, 100))
    """
    if tokens_per_step is not None and not tokens_per_step > 0:
        raise ValueError(f"tokens_per_step={tokens_per_step} must be above 0")
    if samples is None and groups is not None:
        raise ValueError(
            "groups are of samples, and there are none; partial(analysis, tokens=text, groups=...) "
            "groups the sequences of one measurement"
        )
    measure = analysis if samples is None else _over(samples, analysis, groups)
    run = _opened(checkpoints)
    results: dict[Label, Result] = {}
    before = None
    total = len(run) if isinstance(run, Sized) else None
    with tqdm(total=total, desc="measuring", unit=" checkpoints", disable=None) as bar:
        for step, model in run:
            check_next(step, before)
            _add(results, "step", step, measure(_loaded(model)))
            before = step
            del model  # before the next one is made
            bar.update()
    if before is None:
        raise ValueError("there are no checkpoints; give at least one (step, model)")
    return _stacked(results, "step", _origin(run, tokens_per_step))


def _opened(checkpoints: Checkpoints | str | Path | Pairs) -> Checkpoints | Pairs:
    """What to go through. What can be refused before a model is loaded is refused here."""
    if isinstance(checkpoints, str) and "/" in checkpoints and not Path(checkpoints).exists():
        return Checkpoints.from_hub(checkpoints)
    if isinstance(checkpoints, str | Path):
        return Checkpoints.from_run(checkpoints)
    if isinstance(checkpoints, Sequence):
        check_steps(step for step, _ in checkpoints)
    return checkpoints


def _loaded(model: Any) -> Any:
    return model() if callable(model) and not isinstance(model, nn.Module) else model


def _origin(run: Checkpoints | Pairs, tokens_per_step: float | None) -> dict[str, Any]:
    origin = dict(run.origin) if isinstance(run, Checkpoints) else {}
    if "run" in origin:
        origin["model"] = origin["run"]
    return origin if tokens_per_step is None else {**origin, "tokens_per_step": tokens_per_step}


def _over(
    samples: Mapping[str, Iterable[Any]], analysis: Analysis, groups: Groups | None
) -> Analysis:
    """The analysis of a model on each sample, along an axis of that name."""
    if len(samples) != 1:
        raise ValueError(
            f"samples name {len(samples)} arguments, {tuple(samples)}; give one argument of the "
            'analysis with its values, such as {"seed": range(50)}'
        )
    [(argument, given)] = samples.items()
    values = list(given)
    if len(values) < 2:
        raise ValueError(f"samples give {argument!r} {len(values)} value(s); give at least 2")
    sampling = Sampling.of(groups, len(values))

    def measure(model: Any) -> Result:
        results: dict[Label, Result] = {}
        for number, value in enumerate(values):
            _add(results, "sample", number, analysis(model, **{argument: value}))
        origin: dict[str, Any] = {"samples": f"{len(values)} values of {argument}"}
        if sampling.grouped:
            origin |= {"sample_groups": sampling.codes.tolist(), "n_groups": sampling.n_groups}
        elif argument == "tokens":
            origin["sequences"] = TAKEN_AS_INDEPENDENT
        if all("n_sequences" in result.provenance for result in results.values()):
            origin["n_sequences"] = sum(r.provenance["n_sequences"] for r in results.values())
        return _stacked(results, "sample", origin)

    return measure


def _add(results: dict[Label, Result], axis: str, label: Label, result: Result) -> None:
    """Put one more result beside those there are, if it is like them."""
    if not isinstance(result, Result):
        raise TypeError(f"the analysis returned {result!r}; it must return a Result")
    if axis in result.axes:
        raise ValueError(
            f"{result.name} has an axis {axis!r} of its own; choose from it with sel()"
        )
    first_label, first = next(iter(results.items()), (label, result))
    for what in ("name", "axes", "unit"):
        ours, theirs = getattr(result, what), getattr(first, what)
        if ours != theirs:
            raise ValueError(
                f"at {axis} {label} the {what} is {ours!r}, at {axis} {first_label} it was "
                f"{theirs!r}; every one must be alike"
            )
    for name in first.axes:
        if result.labels[name] != first.labels[name]:
            raise ValueError(
                f"{result.name}: at {axis} {label} the labels of {name!r} are "
                f"{result.labels[name]}, at {axis} {first_label} they were {first.labels[name]}; "
                "only models of one shape can be compared"
            )
    results[label] = result


def _stacked(results: Mapping[Label, Result], axis: str, origin: Mapping[str, Any]) -> Result:
    """Results that are alike as one, with a leading axis."""
    parts = list(results.values())
    first = parts[0]

    def stack(arrays: list[np.ndarray | None]) -> np.ndarray | None:
        if all(array is None for array in arrays):
            return None
        unknown = np.full(first.values.shape, np.nan)
        return np.stack([unknown if array is None else array for array in arrays])

    return Result(
        first.name,
        np.stack([part.values for part in parts]),
        (axis, *first.axes),
        labels={axis: tuple(results), **first.labels},
        standard_error=stack([part.standard_error for part in parts]),
        chance=stack([part.chance for part in parts]),
        unit=first.unit,
        provenance={**_provenance(results, axis), **origin},
    )


def _provenance(results: Mapping[Label, Result], axis: str) -> dict[str, Any]:
    """What all results say alike; what they say differently by step, and of samples not at all."""
    agreed: dict[str, Any] = {}
    for key in dict.fromkeys(key for result in results.values() for key in result.provenance):
        said = {str(label): result.provenance.get(key) for label, result in results.items()}
        first, *others = said.values()
        if all(other == first for other in others):
            agreed[key] = first
        elif axis == "step":
            agreed[key] = said
    return agreed


def best_head(result: Result) -> Result:
    """At each step the score of the head that is highest then: the outline of all heads' curves.

    With an axis "sample" it is the highest on average, the same head for all samples.

    Raises:
        ValueError: axes other than "step", "sample" and "head".

    >>> labels = {"step": (0, 10), "head": ("L0H0", "L0H1")}
    >>> scores = Result("score", np.array([[0.2, 0.1], [0.3, 0.9]]), ("step", "head"), labels)
    >>> best_head(scores).values
    array([0.2, 0.9])
    """
    if not {"step", "head"} <= set(result.axes) <= {"step", "sample", "head"}:
        raise ValueError(
            f'{result.name} has the axes {result.axes}; the best head is looked for among "step" '
            'and "head": choose the rest with sel()'
        )
    mean = over_samples(result)
    best = np.nan_to_num(mean.values, nan=-np.inf).argmax(axis=mean.axes.index("head"))
    heads = result.labels["head"]
    rows = [
        result.sel(step=step, head=heads[head])
        for step, head in zip(result.labels["step"], best, strict=True)
    ]
    return _stacked(dict(zip(result.labels["step"], rows, strict=True)), "step", result.provenance)
