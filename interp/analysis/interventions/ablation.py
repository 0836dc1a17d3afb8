"""Removing parts of a model: what do heads, layers, lags or positions do for what it predicts?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any, Literal

import numpy as np

from interp.analysis.interventions.controls import (
    Control,
    Draws,
    check_control,
    default_control,
    random_orders,
)
from interp.analysis.interventions.edits import Change
from interp.analysis.interventions.effects import (
    Row,
    control_rows,
    effect_rows,
    effects,
    mean_and_error,
    unit_axes,
)
from interp.analysis.interventions.metrics import Metric, metric_of
from interp.analysis.interventions.replacements import source_of
from interp.analysis.interventions.sweep import Sweep, as_tokens, check_measure
from interp.analysis.interventions.units import Catalogue, Given, Unit
from interp.analysis.probes.probe import handed_in
from interp.analysis.probes.sequences import RepeatedTokens
from interp.models.checks import require_choice
from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, Sampling
from interp.views import View, view

Method = Literal["zero", "mean", "resample", "pattern_preserving"]


def ablate(
    model: Any,
    tokens: Tokens | RepeatedTokens | Sequence[Sequence[int]],
    units: Given = "heads",
    method: Method = "zero",
    metric: str | Metric | Any = "loss",
    *,
    reference: Tokens | None = None,
    groups: Groups | None = None,
    pairs: bool = False,
    cumulative: bool = False,
    control: Control | None = None,
    n_random: int = 10,
    seed: int = 0,
    max_batch: int | None = None,
) -> Result:
    """What does a model lose without a head, a layer, a lag, a position? All of them in one pass.

    Args:
        model: one of ours, or a `TransformerBridge`.
        tokens: `[batch pos]`, all of one length.
        units: "heads", "layers", "lags", "positions", or a unit as the table in
            `interventions.units` writes it: "L1H3", "L0.lag1", "L0.lag1->L1H3.k" (the lag as that
            head's keys alone see it), "blocks.1.mlp.hook_post[:, 5]", "L1H3+L1H5" for both at once;
            or a list of these. Hooks
            of one's own, by a name for them, are run under: `{"my name": fwd_hooks}`.
        method: what is put in a unit's place:

            * `zero`: nothing;
            * `mean`: what each position holds on average over the reference;
            * `resample`: what it holds in another sequence;
            * `pattern_preserving` (Olsson et al. 2022): nothing, and every attention pattern is
              held at its clean value, so that no later head can look elsewhere.
        metric: "loss", "loss_per_token", "second_copy_loss", "in_context_learning_score",
            `InductionScore(heads)`, `LogitDifference(answer, other)`, or a function of logits
            `[batch pos vocab]` and tokens that gives one number per sequence.
        reference: the sequences that `mean` and `resample` take from; the tokens themselves.
        groups: which text each sequence is from, as in `loss_by_position`; repeated random tokens
            need none.
        pairs: remove every pair of units, too.
        cumulative: remove units one after the other, largest effect first.
        control: what an effect is compared with, as removing anything hurts: as many random
            "units" of the same kind, or the same change of the stream turned into random
            "directions", or "none". By default units where there are others enough, else
            directions, where the unit writes to the stream.
        n_random: how many random draws; one proves nothing.
        seed: of the random draws, and of which sequence `resample` takes from.
        max_batch: the most sequences in one forward pass; by default what fits into free memory.

    Returns:
        A Result over "measure" and "head" ("component", if there are others than heads):

        * `effect`: the metric without the unit minus the clean one, with its standard error over
          sequences (paired), or over groups of them;
        * `clean`: the metric of the model as it is;
        * `random`, `random_low`, `random_high`: mean, least and greatest effect of the draws.

        Units at every position have an axis "position", as has loss_per_token. `pairs` gives axes
        "head" and "other", single effects on the diagonal, and a measure `interaction`: what a pair
        does beyond the sum of its two. `cumulative` gives an axis "removed": what is removed last.

    Raises:
        ValueError: before any forward pass, with the remedy: tokens the model cannot read or of
            different lengths, an unknown unit, a metric of the wrong shape, a mean or another
            sequence where there is one only.

    Source: Olsson et al., In-context Learning and Induction Heads (2022); Wang et al.,
    Interpretability in the Wild (2022), for direct paths.

    >>> import torch
    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=64)
    >>> tokens = torch.arange(80).reshape(4, 20)
    >>> result = ablate(model, tokens)
    >>> result.labels["head"]
    ('L1H0', 'L1H1', 'L1H2', 'L1H3')
    >>> ablate(model, tokens, ["L0.lag1", "L0.lag1->L1H3.k"], "mean").axes
    ('measure', 'component')
    """
    viewed = view(model)
    drawn = isinstance(tokens, RepeatedTokens)
    tokens = as_tokens(viewed, tokens)
    sampling = Sampling.of(groups, len(tokens))
    _check_options(method, control, n_random, pairs and cumulative)
    judged = metric_of(metric)
    catalogue = Catalogue.of(viewed, tokens.shape[1])
    chosen = catalogue.units(units)
    _check_method(viewed, method, judged, tokens, reference)
    check_measure(viewed, judged, tokens, max_batch)
    if control is None:
        control = default_control(catalogue, chosen)
    elif control != "none":
        check_control(control, catalogue, chosen)
    viewed.check_finite()
    sweep = Sweep(
        viewed,
        tokens,
        judged,
        source_of(viewed, tokens, method, reference, seed, max_batch),
        max_batch,
        holds_patterns=method == "pattern_preserving",
        task="ablating",
    )
    ablation = _Ablation(sweep, catalogue, chosen, control, n_random, seed, sampling)
    origin = {
        **handed_in(viewed, tokens, sampling),
        **({"sequences": "drawn independently"} if drawn and not sampling.grouped else {}),
        "variant": f"{method.replace('_', ' ')} ablation, {judged.name.replace('_', ' ')}",
        "method": method,
        "metric": judged.name,
        "control": control,
        **({"n_random": n_random} if control != "none" else {}),
        "seed": seed,
    }
    if pairs:
        return ablation.pairs(origin)
    return ablation.cumulative(origin) if cumulative else ablation.singles(origin)


@dataclass(frozen=True, eq=False)
class _Ablation:
    """What is removed, and what that is compared with."""

    sweep: Sweep
    catalogue: Catalogue
    units: Sequence[Unit]
    control: Control
    n_random: int
    seed: int
    sampling: Sampling

    def singles(self, origin: Mapping[str, Any]) -> Result:
        """Each unit by itself."""
        draws = self._draws(self.units)
        clean, changed = self._measure(draws.changes)
        rows = effect_rows(clean, changed, draws.controls, self.sampling)
        axes = unit_axes(self.units, self._positions)
        return self._result("ablation_effect", rows, axes, origin)

    def pairs(self, origin: Mapping[str, Any]) -> Result:
        """Each pair of units; a pair is compared with all the others."""
        n = len(self.units)
        both = list(combinations(range(n), 2))
        joint = [self.units[i] + self.units[j] for i, j in both]
        clean, changed = self._measure([Change(unit) for unit in (*self.units, *joint)])
        one = {(i, i): i for i in range(n)}
        cells = one | {pair: n + k for k, pair in enumerate(both)}
        grid = [cells[min(i, j), max(i, j)] for i in range(n) for j in range(n)]
        others = [[n + k for k in range(len(both)) if n + k != cell] for cell in grid]
        rows = effect_rows(clean, changed[grid], [[] for _ in grid], self.sampling)
        parts = changed[:n] - clean
        beyond = (changed[grid] - clean) - (parts[:, None] + parts[None]).reshape(
            changed[grid].shape
        )
        diagonal = [i * n + i for i in range(n)]
        mean, error = mean_and_error(beyond, self.sampling)
        mean[diagonal], error[diagonal] = np.nan, np.nan
        rows["interaction"] = mean, error
        if self.control != "none":
            rows |= control_rows((changed - clean).mean(1), others)
        labels = [unit.label for unit in self.units]
        axes = unit_axes(self.units, self._positions)
        axis = next(iter(axes))
        return self._result(
            "pair_ablation_effect", rows, {axis: labels, "other": labels, **axes}, origin
        )

    def cumulative(self, origin: Mapping[str, Any]) -> Result:
        """One unit after the other, the largest effect first."""
        clean, changed = self._measure([Change(unit) for unit in self.units])
        sizes = np.abs((changed - clean).reshape(len(self.units), -1).mean(1))
        order = [self.units[i] for i in np.argsort(-sizes, kind="stable")]
        draws = self._orders(order)
        clean, changed = self._measure(draws.changes)
        rows = effect_rows(clean, changed, draws.controls, self.sampling)
        axes: dict[str, Sequence[Any]] = {"removed": [unit.label for unit in order]}
        if self._positions is not None:
            axes["position"] = self._positions
        return self._result("cumulative_ablation_effect", rows, axes, origin)

    def _orders(self, order: Sequence[Unit]) -> Draws:
        removed = list(accumulate(order))
        if self.control != "units":
            return self._draws(removed)
        draws = Draws.without(removed)
        orders = random_orders(self.catalogue, order, self.n_random, self.seed)
        for chosen in orders:
            for step, unit in enumerate(accumulate(chosen)):
                draws.controls[step].append(len(draws.changes))
                draws.changes.append(Change(unit))
        return draws

    def _draws(self, units: Sequence[Unit]) -> Draws:
        if self.control == "units":
            return Draws.of_units(self.catalogue, units, self.n_random, self.seed)
        if self.control == "directions":
            width = self.sweep.viewed.model.cfg.d_model
            return Draws.of_directions(units, self.n_random, self.seed, width)
        return Draws.without(units)

    @property
    def _positions(self) -> tuple[int, ...] | None:
        return self.sweep.metric.positions_measured(self.sweep.tokens.shape[1])

    def _measure(self, changes: Sequence[Change]) -> tuple[np.ndarray, np.ndarray]:
        clean, changed = self.sweep.measure(changes)
        return clean.numpy(), changed.numpy()

    def _result(
        self,
        name: str,
        rows: Mapping[str, Row],
        axes: Mapping[str, Sequence[Any]],
        origin: Mapping[str, Any],
    ) -> Result:
        return effects(name, rows, axes, self.sweep.metric.unit, origin)


def _check_options(
    method: Method, control: Control | None, n_random: int, both_orders: bool
) -> None:
    """Refuse a method or control that there is not, and two orders at once."""
    require_choice("method", method, Method)
    if control is not None:
        require_choice("control", control, Control)
    if n_random < 1:
        raise ValueError(f"n_random={n_random} must be at least 1; control='none' draws nothing")
    if both_orders:
        raise ValueError("pairs and cumulative are two questions; ask for one of them")


def _check_method(
    viewed: View, method: Method, metric: Metric, tokens: Tokens, reference: Tokens | None
) -> None:
    """Refuse what a method cannot do to this model, metric or these tokens."""
    if method == "pattern_preserving" and metric.reads_attention:
        raise ValueError(
            "pattern_preserving holds every attention pattern at its clean value, so "
            f"{metric.name} cannot change; use method='zero'"
        )
    if method not in ("mean", "resample"):
        if reference is not None:
            raise ValueError(f"method={method!r} takes nothing from a reference; leave it out")
        return
    if reference is None:
        if len(tokens) == 1:
            raise ValueError(
                f"method={method!r} takes its values from other sequences, but there is one only; "
                "give several, or a reference"
            )
        return
    viewed.check_tokens(reference)
    if reference.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"the reference has sequences of {reference.shape[1]} tokens, the tokens of "
            f"{tokens.shape[1]}; both must be of one length"
        )
