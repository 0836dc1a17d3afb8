"""Many interventions in one pass: what a model is judged at, with and without each of them.

Changes that enter the model at the same place are stacked along the batch and run together, from
there on: what lies below is computed once. A change of what heads or lags write is added to the
stream, so in the last layer it needs no layer at all, only the end of the model.

On a model that somebody else has hooked, and on a `TransformerBridge`, passes begin at the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

from interp.analysis.interventions.edits import Batch, Change, Entry, names_for
from interp.analysis.interventions.memory import rows_that_fit
from interp.analysis.interventions.metrics import Metric, Pass
from interp.analysis.interventions.replacements import Numbers, Source
from interp.analysis.interventions.units import Unit
from interp.analysis.probes.sequences import RepeatedTokens
from interp.models.shapes import Tokens
from interp.views import View, keeping, undisturbed

Clean = Float64[Tensor, "batch *measured"]
Changed = Float64[Tensor, "change batch *measured"]

SECONDS_BEFORE_BAR = 2.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """How changes are measured.

    Attributes:
        viewed: the model.
        tokens: the sequences, `[batch pos]`.
        metric: what is measured of each sequence.
        source: where the values that are put in come from.
        max_batch: the most sequences in one forward pass; None is as many as memory allows.
        holds_patterns: whether every attention pattern is held at its clean value.
        task: what a progress bar says.
    """

    viewed: View
    tokens: Tokens
    metric: Metric
    source: Source
    max_batch: int | None = None
    holds_patterns: bool = False
    task: str = "intervening"

    def measure(self, changes: Sequence[Change]) -> tuple[Clean, Changed]:
        """The metric of every sequence undisturbed, and under each change."""
        at_once = self._rows(changes)
        numbers = torch.arange(len(self.tokens))
        parts = numbers.split(len(numbers) if self.metric.takes_all else at_once)
        clean, changed = [], []
        total = len(changes) * len(parts)
        with (
            undisturbed(self.viewed.model),
            tqdm(total=total, desc=self.task, delay=SECONDS_BEFORE_BAR, disable=None) as bar,
        ):
            for some in parts:
                part = _Part.of(self, some, changes)
                clean.append(part.clean)
                changed.append(part.measure(changes, max(1, at_once // len(some)), bar))
        return torch.cat(clean), torch.cat(changed, dim=1)

    def _rows(self, changes: Sequence[Change]) -> int:
        if self.max_batch is not None:
            return self.max_batch
        bridged, spelled_out = self.viewed.spells_out, {*self.viewed.patterns.values()}
        patterns = any(site.hook in spelled_out for one in changes for site in one.unit.sites)
        return rows_that_fit(
            self.viewed,
            self.tokens.shape[1],
            with_patterns=bridged or patterns or self.holds_patterns,
            with_logits=bridged or self.metric.holds_logits,
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the sequences, and what the model makes of them undisturbed."""

    sweep: Sweep
    run: Pass
    batch: Batch
    clean: Clean

    @classmethod
    def of(cls, sweep: Sweep, numbers: Numbers, changes: Sequence[Change]) -> "_Part":
        """Run the model on them, keeping what the changes will need."""
        viewed, tokens = sweep.viewed, sweep.tokens[numbers]
        starts = viewed.starts_anywhere and viewed.is_silent
        changing = [change for change in changes if _matters(sweep, change.unit)]
        names = {name for change in changing for name in names_for(viewed, change)}
        if sweep.holds_patterns and changing:
            names |= {*viewed.patterns.values()}
        kept: dict[str, Tensor] = {}
        run = Pass(viewed, tokens, numbers, hooks=keeping(names, kept))
        clean = sweep.metric.measure(run).cpu()
        kept |= viewed.capture(tokens, names - set(kept))
        sources = {site.hook for change in changing for site in change.unit.sources}
        other = sweep.source.values(viewed, numbers, sources, kept)
        batch = Batch(viewed, tokens, kept, other, starts, sweep.holds_patterns)
        return cls(sweep, run, batch, clean)

    def measure(self, changes: Sequence[Change], at_once: int, bar: tqdm) -> Changed:
        """The metric under each change, so many changes at a time."""
        values: dict[int, Tensor] = {}
        for members in self._together(changes):
            for first in range(0, len(members), at_once):
                some = members[first : first + at_once]
                measured = self._under([changes[number] for number in some])
                values |= zip(some, measured, strict=True)
                bar.update(len(some))
        bar.update(len(changes) - len(values))
        everything = [values.get(number, self.clean) for number in range(len(changes))]
        return torch.stack(everything) if everything else self.clean.new_empty(0, *self.clean.shape)

    def _together(self, changes: Sequence[Change]) -> list[list[int]]:
        """The numbers of the changes that enter alike; those with hooks of their own are alone."""
        groups: dict[object, list[int]] = {}
        for number, change in enumerate(changes):
            unit = change.unit
            if not _matters(self.sweep, unit):
                continue
            if unit.hooks:
                groups[number] = [number]
                continue
            entry = Entry.of(unit.sites, self.sweep.viewed) if self.batch.starts else None
            groups.setdefault(entry, []).append(number)
        return list(groups.values())

    def _under(self, changes: Sequence[Change]) -> Changed:
        if own := changes[0].unit.hooks:
            return self.sweep.metric.measure(replace(self.run, hooks=own)).cpu()[None]
        start, edits = self.batch.start([self.batch.edits(change) for change in changes])
        copies = len(changes)
        run = replace(
            self.run,
            tokens=self.run.tokens.repeat(copies, 1),
            numbers=self.run.numbers.repeat(copies),
            start=start,
            hooks=self.batch.hooks(edits),
        )
        return self.sweep.metric.measure(run).unflatten(0, (copies, -1)).cpu()


def _matters(sweep: Sweep, unit: Unit) -> bool:
    """Whether a unit comes before what the metric reads; else changing it changes nothing."""
    sites = unit.sites
    return bool(unit.hooks) or any(sweep.metric.depends_on(sweep.viewed, site) for site in sites)


def as_tokens(viewed: View, tokens: Any) -> Tokens:
    """Sequences of one length as a tensor; refuses what the model cannot read."""
    if isinstance(tokens, RepeatedTokens):
        tokens = tokens.tokens
    if isinstance(tokens, list | tuple):
        lengths = sorted({len(sequence) for sequence in tokens})
        if len(lengths) > 1:
            raise ValueError(
                f"the sequences have {', '.join(map(str, lengths))} tokens, but must all be of one "
                "length; cut them to the shortest"
            )
        tokens = torch.stack([torch.as_tensor(sequence) for sequence in tokens])
    viewed.check_tokens(tokens)
    return tokens


def check_measure(viewed: View, metric: Metric, tokens: Tokens, max_batch: int | None) -> None:
    """Refuse a metric that cannot be measured on these tokens, or not so few at a time."""
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch={max_batch} must be at least 1")
    if metric.takes_all and max_batch is not None and max_batch < len(tokens):
        raise ValueError(
            f"max_batch={max_batch}, but the metric {metric.name} is shown all {len(tokens)} "
            "sequences at once; give fewer sequences or a larger max_batch"
        )
    metric.check(viewed, tokens)
