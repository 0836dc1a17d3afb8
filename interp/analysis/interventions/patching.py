"""Activations of one run put into another: which of them carry what the two runs differ in?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from interp.analysis.interventions.edits import Change
from interp.analysis.interventions.effects import Row, effects, mean_and_error, unit_axes
from interp.analysis.interventions.metrics import Metric, UnrepeatedError, metric_of
from interp.analysis.interventions.replacements import OtherRun
from interp.analysis.interventions.sweep import Sweep, as_tokens, check_measure
from interp.analysis.interventions.units import Catalogue, Unit
from interp.analysis.probes.probe import handed_in
from interp.models.checks import require_choice
from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, Sampling
from interp.views import View, view

Direction = Literal["denoise", "noise"]

NO_GAP = 1e-9
"""Inputs whose metrics differ by less do not differ."""


def patch(
    model: Any,
    clean: Tokens,
    corrupted: Tokens,
    units: str | Sequence[str] = "heads",
    metric: str | Metric | Any = "loss",
    direction: Direction = "denoise",
    *,
    groups: Groups | None = None,
    max_batch: int | None = None,
) -> Result:
    """Which activations carry what a clean and a corrupted input differ in? In one pass.

    Activation patching. `denoise` runs the corrupted input and puts in one activation of the clean
    run: what is enough to bring the clean behaviour back. `noise` runs the clean input and puts in
    one activation of the corrupted run: what it cannot do without.

    Args:
        model: one of ours, or a `TransformerBridge`.
        clean: `[batch pos]`.
        corrupted: as many sequences of the same length, each the counterpart of a clean one.
        units: what is put in, all of it in turn: "heads" (z), "q", "k", "v", "pattern",
            "resid_pre@*" (each layer at each position), "attn_out", "conv_out", "lags", "mlp_out",
            or anything that `interp.analysis.interventions.units` says how to write.
        metric: as in `ablate`. It is measured on the input that is run, so one that compares the
            same two tokens on both inputs is best: `LogitDifference(answer, other)`.
        direction: "denoise" or "noise".
        groups: which text each pair of sequences is from, as in `loss_by_position`.
        max_batch: the most sequences in one forward pass; by default what fits into free memory.

    Returns:
        A Result over "measure" and "head" ("component", if there are others than heads), and
        "position" for units at every position:

        * `share`: how much of the difference between the two inputs' metrics the unit makes up: 0
          is none, 1 all of it. A ratio of means over sequences; NaN where the inputs do not differ;
        * `effect`: the same in the metric's own unit: patched minus unpatched;
        * `clean` and `corrupted`: the metric of the two inputs.

    Raises:
        ValueError: before any forward pass, with the remedy: inputs of different shapes, an unknown
            unit or direction, a metric of the wrong shape.

    Source: Meng et al. (2022); Heimersheim and Nanda, How to use and interpret activation patching
    (2024). Values equal those of `transformer_lens.patching`.

    >>> import torch
    >>> from interp.analysis.interventions.metrics import LogitDifference
    >>> from interp.models import HookedAttnAttn
    >>> model = HookedAttnAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> clean = torch.arange(20).reshape(2, 10)
    >>> patched = patch(model, clean, clean.flip(0), "heads", LogitDifference([3, 4], [4, 3]))
    >>> patched.labels["measure"], patched.labels["head"]
    (('share', 'effect', 'clean', 'corrupted'), ('L0H0', 'L0H1', 'L1H0', 'L1H1'))
    """
    runs = Runs.checked(model, clean, corrupted, metric, direction, max_batch, groups)
    chosen = runs.catalogue.units(units)
    rows = runs.measure(chosen)
    axes = unit_axes(chosen, runs.positions)
    return runs.result("patching_effect", rows, axes)


def path_patch(
    model: Any,
    sender: str | Sequence[str],
    receivers: str | Sequence[str],
    clean: Tokens,
    corrupted: Tokens,
    metric: str | Metric | Any = "loss",
    direction: Direction = "denoise",
    *,
    groups: Groups | None = None,
    max_batch: int | None = None,
) -> Result:
    """What does one component read of another directly, and does it matter for the end?

    The sender's activation is put in from the other run, and what every layer between it and the
    receiver writes is held as it was. What reaches the receiver so is kept, and the model run once
    more with the receiver alone changed; everything after it goes its way. Senders joined by + are
    replaced together, each in what it writes when only it is. A receiver in parts, such as a whole
    layer, gets each part from the sender directly, and its MLP also what its heads make of that.

    Args:
        model: one of ours, or a `TransformerBridge`.
        sender: a head, a conv lag, a layer, the embedding; several; or a form such as "L0.lag*".
        receivers: a head's queries, keys or values ("L1H3.k"), all three ("L1H3"), a conv lag, an
            MLP, "logits" for the end of the model; several; or a form such as "L1H*.k".
        clean: `[batch pos]`.
        corrupted: as many sequences of the same length.
        metric: as in `patch`.
        direction: as in `patch`.
        groups: as in `patch`.
        max_batch: the most sequences in one forward pass; by default what fits into free memory.

    Returns:
        A Result over "measure" (those of `patch`), "sender" and "receiver"; NaN where the receiver
        does not come after the sender.

    Raises:
        ValueError: as in `patch`; or no receiver comes after a sender.

    Source: Wang et al., Interpretability in the Wild (2022), section 3.1 and appendix B.

    >>> import torch
    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
    >>> clean = torch.arange(20).reshape(2, 10)
    >>> hops = path_patch(model, "L0.lag*", ["L1H0.q", "L1H0.k"], clean, clean.flip(0))
    >>> hops.labels["sender"], hops.labels["receiver"]
    (('L0.lag0', 'L0.lag1'), ('L1H0.q', 'L1H0.k'))
    """
    runs = Runs.checked(model, clean, corrupted, metric, direction, max_batch, groups)
    senders = runs.catalogue.units(sender)
    ends = runs.catalogue.receivers(receivers)
    labels = [end.label for end in ends]
    paths = {
        (one.label, end.label): runs.catalogue.path(one, end) for one in senders for end in ends
    }
    there = {ends: path for ends, path in paths.items() if path is not None}
    if not there:
        raise ValueError(
            f"nothing goes from {senders[0].label} to {labels[0]}, which does not come after it; "
            "name a receiver above the sender"
        )
    known = runs.measure(list(there.values()))
    rows = {
        name: (_spread(value, paths, there), _spread(error, paths, there))
        for name, (value, error) in known.items()
    }
    axes: dict[str, Sequence[Any]] = {"sender": [one.label for one in senders], "receiver": labels}
    if runs.positions is not None:
        axes["position"] = runs.positions
    return runs.result("path_patching_effect", rows, axes)


@dataclass(frozen=True, eq=False)
class Runs:
    """Two inputs: the one that is run, and the one that activations are taken from."""

    viewed: View
    tokens: Tokens
    source: Tokens
    metric: Metric
    direction: Direction
    catalogue: Catalogue
    max_batch: int | None
    sampling: Sampling

    @classmethod
    def checked(
        cls,
        model: Any,
        clean: Any,
        corrupted: Any,
        metric: Any,
        direction: Direction,
        max_batch: int | None,
        groups: Groups | None,
    ) -> "Runs":
        """Refuses whatever can be refused before a forward pass."""
        viewed = view(model)
        clean, corrupted = as_tokens(viewed, clean), as_tokens(viewed, corrupted)
        if clean.shape != corrupted.shape:
            raise ValueError(
                f"clean has shape {tuple(clean.shape)} and corrupted {tuple(corrupted.shape)}; "
                "each clean sequence needs a corrupted one of its length"
            )
        sampling = Sampling.of(groups, len(clean))
        require_choice("direction", direction, Direction)
        judged = metric_of(metric)
        for name, tokens in (("clean", clean), ("corrupted", corrupted)):
            try:
                check_measure(viewed, judged, tokens, max_batch)
            except UnrepeatedError as error:
                raise ValueError(
                    f"the {name} tokens do not repeat themselves, but {error.metric} is measured "
                    "on both inputs and reads sequences [BOS] + r + r; give as clean and as "
                    "corrupted repeated_tokens(...).tokens of different seeds, or a metric that "
                    "is defined on both, such as 'loss' or a function of (logits, tokens)"
                ) from error
        viewed.check_finite()
        run, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
        catalogue = Catalogue.of(viewed, clean.shape[1])
        return cls(viewed, run, source, judged, direction, catalogue, max_batch, sampling)

    @property
    def positions(self) -> tuple[int, ...] | None:
        """The positions that the metric has a number for."""
        return self.metric.positions_measured(self.tokens.shape[1])

    def measure(self, units: Sequence[Unit]) -> dict[str, Row]:
        """What each unit's activation from the source does to the run."""
        before, after = self.sweep(self.tokens).measure([Change(unit) for unit in units])
        there, _ = self.sweep(self.source).measure([])
        base, changed, aim = (values.numpy() for values in (before, after, there))
        both = (aim, base) if self.direction == "denoise" else (base, aim)
        clean, corrupted = (
            self.mean_and_error(np.broadcast_to(values, changed.shape)) for values in both
        )
        return {
            "share": self._share(changed - base, aim - base),
            "effect": self.mean_and_error(changed - base),
            "clean": clean,
            "corrupted": corrupted,
        }

    def mean_and_error(self, samples: np.ndarray) -> Row:
        """Of one number per unit and sequence."""
        return mean_and_error(samples, self.sampling)

    def _share(self, effect: np.ndarray, gap: np.ndarray) -> Row:
        """The ratio of the means over sequences, and its error to first order (delta method)."""
        whole = gap.mean(0)
        whole = np.where(np.abs(whole) > NO_GAP, whole, np.nan)
        share = effect.mean(1) / whole
        _, error = self.mean_and_error(effect - share[:, None] * gap)
        return share, error / np.abs(whole)

    def sweep(self, tokens: Tokens) -> Sweep:
        """Measures what the source's activations do on these tokens."""
        source = OtherRun(self.source)
        return Sweep(self.viewed, tokens, self.metric, source, self.max_batch, task="patching")

    def result(
        self, name: str, rows: Mapping[str, Row], axes: Mapping[str, Sequence[Any]]
    ) -> Result:
        """The rows under their labels, with where they come from."""
        units = dict.fromkeys(rows, self.metric.unit) | {"share": "fraction"}
        return effects(name, rows, axes, units, self.origin)

    @property
    def origin(self) -> dict[str, Any]:
        """What a provenance says of both inputs."""
        named = {"denoise": "denoising", "noise": "noising"}[self.direction]
        return {
            **handed_in(self.viewed, self.tokens, self.sampling),
            "variant": f"{named}, {self.metric.name.replace('_', ' ')}",
            "direction": self.direction,
            "metric": self.metric.name,
        }


def _spread(values: np.ndarray, paths: Mapping[Any, Any], there: Mapping[Any, Any]) -> np.ndarray:
    """A value per path that there is, as one per pair; NaN where there is none."""
    known = dict(zip(there, values, strict=True))
    return np.stack([known.get(ends, np.full_like(values[0], np.nan)) for ends in paths])
