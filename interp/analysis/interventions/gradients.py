"""How a metric depends on activations: one forward pass, one backward, no parameter touched."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interp.analysis.interventions.metrics import InductionScore, LogitMetric, Metric
from interp.analysis.interventions.replacements import Numbers
from interp.models import HookedSequenceModel
from interp.models.shapes import Stream, Tokens
from interp.views import Hook, View, undisturbed
from interp.views.entries import entries_of
from interp.views.outputs import Outputs, OutputsOfLogits, OutputsOfStream


@dataclass(frozen=True, eq=False)
class Gradients:
    """A metric of each sequence, and by hook point the activations and the metric's gradient."""

    values: Float64[Tensor, " batch"]
    activations: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


def gradients(
    seen: View, tokens: Tokens, metric: Metric, names: Collection[str], numbers: Numbers
) -> Gradients:
    """The gradient of a metric with respect to the activations at these hook points.

    Raises:
        ValueError: one of them is silent, or the metric gives more than one number per sequence.
    """
    kept: dict[str, Tensor] = {}
    with undisturbed(seen.model), torch.enable_grad():
        listeners = [_listener(name, kept) for name in names]
        values = _measured(seen, tokens, metric, listeners, numbers)
        if silent := sorted(set(names) - set(kept)):
            raise ValueError(f"{seen.name}: nothing was computed at {', '.join(silent)}")
        total = values.sum()
        found: Sequence[Tensor | None] = [None] * len(kept)
        if total.requires_grad:
            found = torch.autograd.grad(total, list(kept.values()), allow_unused=True)
    # Without a gradient: what comes after all that the metric reads.
    return Gradients(
        values.detach(),
        {name: x.detach() for name, x in kept.items()},
        {
            name: torch.zeros_like(x) if gradient is None else gradient
            for (name, x), gradient in zip(kept.items(), found, strict=True)
        },
    )


def _listener(name: str, kept: dict[str, Tensor]) -> Hook:
    def keep(activation: Tensor, hook: Any) -> Tensor:
        if not activation.requires_grad:  # the lowest of all, where no parameter has a gradient
            activation = activation.detach().requires_grad_()
        kept[name] = activation
        return activation

    return name, keep


def _measured(
    seen: View, tokens: Tokens, metric: Metric, hooks: list[Hook], numbers: Numbers
) -> Float64[Tensor, " batch"]:
    if isinstance(metric, InductionScore):
        return _from_attention(seen, tokens, metric, hooks)
    if not isinstance(metric, LogitMetric):
        raise TypeError(f"{metric!r} reads neither logits nor attention")
    positions = metric.positions(tokens.shape[1])
    return metric.read(_outputs(seen, tokens, positions, hooks), tokens, numbers)


def _outputs(
    seen: View, tokens: Tokens, positions: Sequence[int], hooks: Sequence[Hook]
) -> Outputs:
    model = seen.model
    if isinstance(model, HookedSequenceModel):
        with model.hooks(fwd_hooks=list(hooks)):
            stream = model(tokens, stop_at_layer=seen.n_layers)[:, positions]
            ends = model.W_U, model.unembed.b_U
            return OutputsOfStream(model.ln_final(stream), *ends)

    def cut(stream: Stream, hook: Any) -> Float[Tensor, "batch measured d_model"]:
        return stream[:, positions]

    device = next(model.parameters()).device
    cuts = [*hooks, ("unembed.hook_in", cut)]
    logits = model.run_with_hooks(tokens.to(device), fwd_hooks=cuts, return_type="logits")
    return OutputsOfLogits(logits)


def _from_attention(
    seen: View, tokens: Tokens, metric: InductionScore, hooks: Sequence[Hook]
) -> Float64[Tensor, " batch"]:
    scores: dict[int, Tensor] = {}

    def hear(layer: int) -> Hook:
        def read(pattern: Tensor, hook: Any) -> None:
            scores[layer] = metric.read(layer, entries_of(pattern), tokens)

        return f"blocks.{layer}.attn.hook_pattern", read

    _outputs(seen, tokens, [0], [*hooks, *map(hear, metric.layers)])
    return torch.cat(list(scores.values()), dim=1).mean(1)
