"""A metric, measured on several copies of the same sequences in one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from interp.analysis.interventions.metrics import InductionScore, LogitMetric, Metric
from interp.analysis.interventions.replacements import Numbers
from interp.analysis.interventions.units import Site, Unit, stream_hook
from interp.models.shapes import Tokens
from interp.views import Entries, Hook, Start, View

Measured = Float64[Tensor, "copy batch *measured"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Reads a metric of some sequences.

    Attributes:
        seen: the model.
        metric: what is measured.
        numbers: which sequences these are, among all.
        tokens: the sequences.
    """

    seen: View
    metric: Metric
    numbers: Numbers
    tokens: Tokens
    _undisturbed: dict[int, Tensor] = field(default_factory=dict)

    def undisturbed(self, hooks: Sequence[Hook]) -> Float64[Tensor, "batch *measured"]:
        """The metric of each sequence, under hooks that only listen. Comes before any `changed`."""
        return self.changed(1, None, hooks)[0]

    def changed(self, copies: int, start: Start | None, hooks: Sequence[Hook]) -> Measured:
        """The metric of each sequence in each of the copies, which the hooks make differ."""
        if isinstance(self.metric, LogitMetric):
            values = self._from_logits(self.metric, copies, start, hooks)
        elif isinstance(self.metric, InductionScore):
            values = self._from_attention(self.metric, copies, start, hooks)
        else:
            raise TypeError(f"{self.metric!r} reads neither logits nor attention")
        return values.unflatten(0, (copies, -1)).cpu()

    def _from_logits(
        self, metric: LogitMetric, copies: int, start: Start | None, hooks: Sequence[Hook]
    ) -> Tensor:
        tokens = self.tokens.repeat(copies, 1)
        positions = metric.positions(tokens.shape[1])
        outputs = self.seen.outputs(tokens, positions=positions, start=start, hooks=hooks)
        return metric.read(outputs, tokens, self.numbers.repeat(copies))

    def _from_attention(
        self, metric: InductionScore, copies: int, start: Start | None, hooks: Sequence[Hook]
    ) -> Tensor:
        tokens, scores = self.tokens.repeat(copies, 1), {}
        first = 0 if start is None else start.layer + (start.mixed is not None)

        def hear(layer: int, entries: Entries) -> None:
            scores[layer] = metric.read(layer, entries, tokens).cpu()

        self.seen.listen_to_attention(
            tokens,
            hear,
            layers=[layer for layer in metric.layers if layer >= first],
            start=start,
            hooks=hooks,
        )
        if not self._undisturbed:
            self._undisturbed.update(scores)
        # Below the start nothing changes.
        below = {
            layer: score.repeat(copies, 1)
            for layer, score in self._undisturbed.items()
            if layer not in scores
        }
        return torch.cat([*below.values(), *scores.values()], dim=1).mean(1)


def is_felt(unit: Unit, metric: Metric) -> bool:
    """Whether a unit comes before what a metric reads; otherwise changing it changes nothing."""
    if unit.hooks or not isinstance(metric, InductionScore):
        return True
    last = max(metric.layers)
    # A layer's own pattern sees its queries and keys changed, but not what it writes.
    return any(
        site.reads[0] < last or (site.reads[0] == last and not _is_written(site))
        for site in unit.sites
    )


def _is_written(site: Site) -> bool:
    hook = stream_hook(site)
    return hook is not None and not hook.endswith("hook_resid_pre")
