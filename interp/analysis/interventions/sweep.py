"""Many interventions in one pass: what a model is judged at, with and without each of them.

Changes that enter the model at the same place are stacked along the batch and run together, from
there on: what lies below is computed once. A change of what heads or lags write is added to the
stream, so in the last layer it needs no layer at all, only the end of the model.

On a model that somebody else has hooked, and on a `TransformerBridge`, passes begin at the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

from interp.analysis.interventions.edits import Batch, Change, Entry, names_for, pattern_hook
from interp.analysis.interventions.measuring import Reading, is_felt
from interp.analysis.interventions.memory import rows_that_fit
from interp.analysis.interventions.metrics import LogitMetric, Metric
from interp.analysis.interventions.replacements import Numbers, Source
from interp.models.shapes import Tokens
from interp.views import Hook, View, undisturbed

Clean = Float64[Tensor, "batch *measured"]
Changed = Float64[Tensor, "change batch *measured"]

SECONDS_BEFORE_BAR = 2.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """How changes are measured.

    Attributes:
        seen: the model.
        tokens: the sequences, `[batch pos]`.
        metric: what is measured of each sequence.
        source: where the values that are put in come from.
        max_batch: the most sequences in one forward pass; None is as many as memory allows.
        holds_patterns: whether every attention pattern is held at its clean value.
        task: what a progress bar says.
    """

    seen: View
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
        takes_all = isinstance(self.metric, LogitMetric) and self.metric.takes_all
        parts = numbers.split(len(numbers) if takes_all else at_once)
        clean, changed = [], []
        total = len(changes) * len(parts)
        with (
            undisturbed(self.seen.model),
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
        bridged, metric = not self.seen.starts_anywhere, self.metric
        patterns = any("pattern" in site.hook for change in changes for site in change.unit.sites)
        return rows_that_fit(
            self.seen,
            self.tokens.shape[1],
            with_patterns=bridged or patterns or self.holds_patterns,
            with_logits=bridged or (isinstance(metric, LogitMetric) and metric.holds_logits),
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of the sequences, and what the model makes of them undisturbed."""

    sweep: Sweep
    reading: Reading
    batch: Batch
    clean: Clean

    @classmethod
    def of(cls, sweep: Sweep, numbers: Numbers, changes: Sequence[Change]) -> "_Part":
        """Run the model on them, keeping what the changes will need."""
        seen, tokens = sweep.seen, sweep.tokens[numbers]
        starts = seen.starts_anywhere and seen.is_silent
        felt = [change for change in changes if is_felt(change.unit, sweep.metric)]
        names = {name for change in felt for name in names_for(seen, change)}
        if sweep.holds_patterns and felt:
            names |= {pattern_hook(layer) for layer in seen.heads}
        kept: dict[str, Tensor] = {}
        reading = Reading(seen, sweep.metric, numbers, tokens)
        clean = reading.undisturbed([_keeper(name, kept) for name in names])
        kept |= seen.capture(tokens, names - set(kept))
        sources = {site.hook for change in felt for site in change.unit.sources}
        other = sweep.source.values(seen, numbers, sources, kept)
        batch = Batch(seen, tokens, kept, other, starts, sweep.holds_patterns)
        return cls(sweep, reading, batch, clean)

    def measure(self, changes: Sequence[Change], at_once: int, bar: tqdm) -> Changed:
        """The metric under each change, so many changes at a time."""
        values: dict[int, Tensor] = {}
        for members in self._together(changes):
            for first in range(0, len(members), at_once):
                some = members[first : first + at_once]
                measured = self._under([changes[number] for number in some])
                values |= zip(some, measured, strict=True)
                bar.update(len(some))
        unfelt = [number for number in range(len(changes)) if number not in values]
        bar.update(len(unfelt))
        everything = [values.get(number, self.clean) for number in range(len(changes))]
        return torch.stack(everything) if everything else self.clean.new_empty(0, *self.clean.shape)

    def _together(self, changes: Sequence[Change]) -> list[list[int]]:
        """The numbers of the changes that enter alike; those with hooks of their own are alone."""
        groups: dict[object, list[int]] = {}
        for number, change in enumerate(changes):
            unit = change.unit
            if not is_felt(unit, self.sweep.metric):
                continue
            if unit.hooks:
                groups[number] = [number]
                continue
            entry = Entry.of(unit.sites, self.sweep.seen) if self.batch.starts else None
            groups.setdefault(entry, []).append(number)
        return list(groups.values())

    def _under(self, changes: Sequence[Change]) -> Changed:
        if own := changes[0].unit.hooks:
            return self.reading.changed(1, None, own)
        start, edits = self.batch.start([self.batch.edits(change) for change in changes])
        return self.reading.changed(len(changes), start, self.batch.hooks(edits))


def _keeper(name: str, kept: dict[str, Tensor]) -> Hook:
    def keep(activation: Tensor, hook: Any) -> None:
        kept[name] = activation

    return name, keep
