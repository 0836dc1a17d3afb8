"""Activation patching of everything at once, to first order: the gradient's estimate."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from interp.analysis.interventions.edits import Batch, Change, Edit, edited, names_for
from interp.analysis.interventions.effects import Row, effects, unit_axes
from interp.analysis.interventions.memory import rows_that_fit
from interp.analysis.interventions.metrics import Metric, Pass
from interp.analysis.interventions.patching import Direction, Runs
from interp.analysis.interventions.replacements import Numbers, OtherRun
from interp.analysis.interventions.units import Unit
from interp.models.hooks import nearest
from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.results.sampling import Groups
from interp.views import View, keeping


def attribution_patch(
    model: Any,
    clean: Tokens,
    corrupted: Tokens,
    units: str | Sequence[str] = "heads",
    metric: str | Metric | Any = "loss",
    direction: Direction = "denoise",
    *,
    exact: str | Sequence[str] | None = "all",
    groups: Groups | None = None,
    max_batch: int | None = None,
) -> Result:
    """What would patching each unit do, by one gradient? And how far is that from the truth?

    Attribution patching: the effect of putting an activation of one run into the other is estimated
    as the difference of the two activations times the metric's gradient. One forward pass of one
    input and one forward and backward pass of the other give the estimate for every unit. It is
    exact where the metric is linear in what is changed, and wrong where a softmax or a norm
    saturates: that is why it comes with the exact effect. For a path, what reaches the receiver is
    exact, and what follows is to first order.

    Args:
        model: one of ours, or a `TransformerBridge`.
        clean: `[batch pos]`.
        corrupted: as many sequences of the same length, each the counterpart of a clean one.
        units: as in `patch`.
        metric: as in `patch`; one number per sequence.
        direction: as in `patch`.
        exact: which of the units are patched as well: "all", some of them, or None.
        groups: as in `patch`.
        max_batch: the most sequences in one pass; by default what fits into free memory.

    Returns:
        A Result over "measure" and "head" ("component", if there are others than heads), and
        "position" for units at every position:

        * `estimate`: the estimated effect, patched minus unpatched, in the metric's own unit;
        * `exact`: the effect itself, NaN where it was not asked for;
        * `error`: estimate minus exact, its standard error being that of paired sequences.

        Its provenance has their `correlation` over units (None for fewer than three).

    Raises:
        ValueError: before any forward pass: as in `patch`; a metric with several numbers per
            sequence; units to be patched that are not among the units.

    Source: Nanda, Attribution Patching (2023); Syed, Rager and Conmy, Attribution Patching
    Outperforms Automated Circuit Discovery (2023), for paths.

    >>> import torch
    >>> from interp.models import HookedAttnAttn
    >>> model = HookedAttnAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> clean = torch.arange(20).reshape(2, 10)
    >>> patched = attribution_patch(model, clean, clean.flip(0), exact="L1H0")
    >>> patched.sel(measure="exact").values.round(1).tolist()[:2]
    [nan, nan]
    """
    runs = Runs.checked(model, clean, corrupted, metric, direction, max_batch, groups)
    if runs.positions is not None:
        raise ValueError(
            f"{runs.metric.name} has several numbers per sequence, and a gradient is of one; give "
            "a metric with one number per sequence, such as 'loss'"
        )
    chosen = runs.catalogue.units(units)
    if own := [unit.label for unit in chosen if unit.hooks]:
        raise ValueError(
            f"{own[0]!r} stands for hooks of your own, and what they would change is not known "
            "before they run; name a unit, or use ablate"
        )
    tried = _tried(runs, exact, chosen)
    labels = [unit.label for unit in chosen]
    estimates = _estimates(runs, chosen).numpy()
    rows = {"estimate": runs.mean_and_error(estimates)}
    rows |= _compared(runs, estimates, tried, labels)
    correlation = _correlation(rows["estimate"][0], rows["exact"][0])
    origin, axes = {**runs.origin, "correlation": correlation}, unit_axes(chosen, None)
    return effects("attribution_patching", rows, axes, runs.metric.unit, origin)


def _tried(
    runs: Runs, exact: str | Sequence[str] | None, units: Sequence[Unit]
) -> tuple[Unit, ...]:
    """The units that are patched as well."""
    if exact is None:
        return ()
    known = {unit.label: unit for unit in units}
    labels = known if exact == "all" else [unit.label for unit in runs.catalogue.units(exact)]
    if missing := [label for label in labels if label not in known]:
        raise ValueError(
            f"exact asks for {missing[0]}, which is not among the units{nearest(missing[0], known)}"
        )
    return tuple(known[label] for label in labels)


def _estimates(runs: Runs, units: Sequence[Unit]) -> Float64[Tensor, "unit batch"]:
    """The first-order effect of every unit in every sequence."""
    numbers = torch.arange(len(runs.tokens))
    return torch.cat([_some(runs, units, some) for some in numbers.split(_at_once(runs))], dim=1)


def _at_once(runs: Runs) -> int:
    if runs.metric.takes_all:
        return len(runs.tokens)
    if runs.max_batch is not None:
        return runs.max_batch
    n_pos = runs.tokens.shape[1]
    fitting = rows_that_fit(runs.viewed, n_pos, with_patterns=True, with_logits=True)
    return max(1, fitting // runs.viewed.n_layers)  # the graph keeps every layer's activations


def _some(runs: Runs, units: Sequence[Unit], numbers: Numbers) -> Float64[Tensor, "unit batch"]:
    viewed, tokens = runs.viewed, runs.tokens[numbers]
    changes = [Change(unit) for unit in units]
    names = {name for change in changes for name in names_for(viewed, change)}
    names |= {site.hook for unit in units for site in unit.sites}
    at = gradients(viewed, tokens, runs.metric, names, numbers)
    sources = {site.hook for unit in units for site in unit.sources}
    with torch.no_grad():
        other = OtherRun(runs.source).values(viewed, numbers, sources, at.activations)
        starts = viewed.starts_anywhere and viewed.is_silent
        batch = Batch(viewed, tokens, at.activations, other, starts)
        estimates = []
        for change in changes:
            effect = torch.zeros(len(tokens), dtype=torch.float64)
            done: list[Edit] = []
            # What an edit changes is what it finds, which those below it have changed already.
            for hook, here in groupby(batch.edits(change), key=lambda edit: edit.site.hook):
                edits = list(here)
                before = batch.now(done, [hook])[hook]
                product = (edited(before, edits) - before).double() * at.gradients[hook].double()
                effect += product.flatten(1).sum(1).cpu()
                done += edits
            estimates.append(effect)
    return torch.stack(estimates)


def _compared(
    runs: Runs, estimates: np.ndarray, tried: Sequence[Unit], labels: Sequence[str]
) -> dict[str, Row]:
    """The exact effects, and by how much the estimates miss them."""
    exact = np.full_like(estimates, np.nan)
    if tried:
        before, after = runs.sweep(runs.tokens).measure([Change(unit) for unit in tried])
        exact[[labels.index(unit.label) for unit in tried]] = (after - before).numpy()
    return {
        "exact": runs.mean_and_error(exact),
        "error": runs.mean_and_error(estimates - exact),
    }


def _correlation(estimates: np.ndarray, exact: np.ndarray) -> float | None:
    """Pearson's, over the units that were patched."""
    known = np.isfinite(exact)
    pairs = np.stack([estimates[known], exact[known]])
    if known.sum() < 3 or not (pairs.std(1) > 0).all():
        return None
    return float(np.corrcoef(pairs)[0, 1])


@dataclass(frozen=True, eq=False)
class Gradients:
    """By hook point, activations and the gradient that a metric has there."""

    activations: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


def gradients(
    viewed: View, tokens: Tokens, metric: Metric, names: Collection[str], numbers: Numbers
) -> Gradients:
    """How a metric depends on activations: one forward pass, one backward, no parameter touched.

    Raises:
        ValueError: one of the hook points is silent.
    """
    kept: dict[str, Tensor] = {}
    with viewed.gradients():
        total = metric.measure(Pass(viewed, tokens, numbers, hooks=keeping(names, kept))).sum()
        found: Sequence[Tensor | None] = [None] * len(kept)
        if total.requires_grad:
            found = torch.autograd.grad(total, list(kept.values()), allow_unused=True)
    # Without a gradient: what comes after all that the metric reads.
    gradients = {
        name: torch.zeros_like(x) if gradient is None else gradient
        for (name, x), gradient in zip(kept.items(), found, strict=True)
    }
    activations = {name: x.detach() for name, x in kept.items()}
    # An attention metric stops the pass where nothing above can change it.
    for name, x in viewed.capture(tokens, set(names) - set(kept)).items():
        activations[name], gradients[name] = x, torch.zeros_like(x)
    return Gradients(activations, gradients)
