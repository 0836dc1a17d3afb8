"""What an intervention is judged by: one number per sequence, and only the work that it takes.

A metric says which positions' predictions it reads (`LogitMetric`), or which heads' attention
(`AttentionMetric`); nothing else is computed. `metric_of` makes one of a name or of a function of
(logits, tokens).

A metric of one's own is a class with a name, a unit, and `read`. The logit of each sequence's first
token at its end, of which no other position's logits are computed:

>>> import torch
>>> from interp.analysis import ablate
>>> from interp.models import HookedAttnAttn
>>> class FirstTokenAgain(LogitMetric):
...     name, unit = "first_token_again", "logits"
...     def positions(self, n_pos):
...         return [n_pos - 1]
...     def read(self, outputs, tokens, numbers):
...         return outputs.logits_of(tokens[:, :1, None]).double()[:, 0, 0]
>>> model = HookedAttnAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=16)
>>> tokens = torch.arange(20).reshape(2, 10)
>>> ablate(model, tokens, metric=FirstTokenAgain(), control="none").unit
'logits'

And how much some heads attend to the first token, for which the model is run up to their layer:

>>> class ToFirstToken(AttentionMetric):
...     name = "to_first_token"
...     def read(self, entries, tokens):
...         queries = torch.arange(1, tokens.shape[1])
...         return entries(queries, torch.zeros_like(queries)).double().mean(-1)
>>> result = ablate(model, tokens, metric=ToFirstToken("L1H0"), control="none")
>>> result.sel(measure="effect", head="L1H1").values.tolist()
0.0
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.analysis.heads.targets import stripe
from interp.analysis.interventions.replacements import Numbers
from interp.analysis.interventions.units import Site
from interp.analysis.losses.in_context import early_and_late
from interp.analysis.probes.sequences import second_copy
from interp.models.description import Step
from interp.models.hooks import nearest
from interp.models.shapes import Tokens
from interp.views import Entries, Hook, Start, View
from interp.views.outputs import Outputs

PerSequence = int | Sequence[int] | Int[Tensor, " batch"]
"""A token for all sequences, or one for each."""

Values = Float[Tensor, "batch *measured"]


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass of a model that a metric is read from.

    Attributes:
        viewed: the model.
        tokens: the sequences, or several copies of them one after the other.
        numbers: which of all sequences each row is.
        start: where the pass begins, if not at the tokens.
        hooks: what is run under.
        attention: what the metric read of each layer's attention in the undisturbed pass: of what
            lies below a start, nothing has changed.
    """

    viewed: View
    tokens: Tokens
    numbers: Numbers
    start: Start | None = None
    hooks: Sequence[Hook] = ()
    attention: dict[int, Tensor] = field(default_factory=dict)


class Metric(ABC):
    """What all metrics have.

    Attributes:
        name: what a result calls it.
        unit: "nats", "probability", "logits", or nothing.
        holds_logits: whether all logits of the positions are there at once.
        takes_all: whether it must be shown all sequences at once.
        reads_attention: whether it reads where heads look, and no prediction.
    """

    name: str
    unit: str
    holds_logits = False
    takes_all = False
    reads_attention = False

    def check(self, viewed: View, tokens: Tokens) -> None:
        """Refuse tokens or a model that this cannot be measured on, before any forward pass."""
        return

    def positions_measured(self, n_pos: int) -> tuple[int, ...] | None:
        """The positions that there is one number for; None for one number per sequence."""
        return None

    def depends_on(self, viewed: View, site: Site) -> bool:
        """Whether what changes there comes before what it reads; else it changes nothing."""
        return True

    @abstractmethod
    def measure(self, run: Pass) -> Values:
        """Run the model as far as it takes, and read the numbers."""


class LogitMetric(Metric):
    """A metric of what the model predicts."""

    @abstractmethod
    def positions(self, n_pos: int) -> Sequence[int]:
        """Whose predictions are read."""

    @abstractmethod
    def read(self, outputs: Outputs, tokens: Tokens, numbers: Numbers) -> Values:
        """The numbers in float64, from the predictions at these positions.

        Args:
            outputs: gives losses or logits, of these positions only.
            tokens: `[batch pos]`, whole; some of the sequences only, or all several times over.
            numbers: which of all sequences each row is.
        """

    def measure(self, run: Pass) -> Values:
        """From the predictions at the metric's positions."""
        positions = self.positions(run.tokens.shape[1])
        outputs = run.viewed.outputs(
            run.tokens, positions=positions, start=run.start, hooks=run.hooks
        )
        return self.read(outputs, run.tokens, run.numbers)


@dataclass(frozen=True)
class AttentionMetric(Metric):
    """A metric of what some heads attend to, its mean over these heads; needs no logits.

    Attributes:
        heads: "L1H3", or several.
    """

    heads: tuple[str, ...] | str
    unit = "probability"
    reads_attention = True

    @abstractmethod
    def read(self, entries: Entries, tokens: Tokens) -> Float[Tensor, "batch head"]:
        """A number in float64 for every head of a layer.

        Args:
            entries: `entries(queries, keys)` gives the attention that each query of the first list
                pays to the key in the same place of the second, `[batch head entry]`.
            tokens: `[batch pos]`; rows of the attention may be these several times over.
        """

    def check(self, viewed: View, tokens: Tokens) -> None:
        """The heads have to be there."""
        for head in self._labels:
            if head not in viewed.head_labels:
                hint = nearest(head, viewed.head_labels)
                raise ValueError(f"{self.name}: {viewed.name} has no head {head!r}{hint}")

    @property
    def _labels(self) -> tuple[str, ...]:
        return (self.heads,) if isinstance(self.heads, str) else tuple(self.heads)

    def layers(self, viewed: View) -> dict[int, list[int]]:
        """The heads of every layer that is read."""
        chosen: dict[int, list[int]] = {}
        for layer, head in map(viewed.head, self._labels):
            chosen.setdefault(layer, []).append(head)
        return dict(sorted(chosen.items()))

    def depends_on(self, viewed: View, site: Site) -> bool:
        """A layer's own pattern sees its queries and keys changed, but not what it writes."""
        last = max(self.layers(viewed))
        is_written = site.stream is not None and site.reads[1] > Step.BEFORE
        return site.reads[0] < last or (site.reads[0] == last and not is_written)

    def measure(self, run: Pass) -> Values:
        """From the attention of the heads' layers, up to the last of which the model is run."""
        chosen, start = self.layers(run.viewed), run.start
        first = 0 if start is None else start.layer + (start.mixed is not None)
        read: dict[int, Tensor] = {}

        def at_layer(layer: int, entries: Entries) -> None:
            read[layer] = self.read(entries, run.tokens)[:, chosen[layer]].cpu()

        run.viewed.read_attention(
            run.tokens,
            at_layer,
            layers=[layer for layer in chosen if layer >= first],
            start=start,
            hooks=run.hooks,
        )
        if not run.attention:
            run.attention.update(read)
        # Below the start nothing changes.
        copies = len(run.tokens) // len(next(iter(run.attention.values())))
        below = {
            layer: value.repeat(copies, 1)
            for layer, value in run.attention.items()
            if layer not in read
        }
        return torch.cat([*below.values(), *read.values()], dim=1).mean(1)


@dataclass(frozen=True)
class Loss(LogitMetric):
    """Next-token loss, as its mean over a sequence or token by token.

    Attributes:
        per_token: one number for each token but the first.
    """

    per_token: bool = False
    unit = "nats"

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """loss, or loss_per_token."""
        return "loss_per_token" if self.per_token else "loss"

    def check(self, viewed: View, tokens: Tokens) -> None:
        """The model has to predict next tokens."""
        viewed.check_predicts_next(self.name)

    def positions_measured(self, n_pos: int) -> tuple[int, ...] | None:
        """Each predicted token, if asked for."""
        return tuple(range(1, n_pos)) if self.per_token else None

    def positions(self, n_pos: int) -> Sequence[int]:
        """All but the last."""
        return range(n_pos - 1)

    def read(self, outputs: Outputs, tokens: Tokens, numbers: Numbers) -> Values:
        """In nats."""
        losses = outputs.losses(tokens[:, 1:]).double()
        return losses if self.per_token else losses.mean(1)


@dataclass(frozen=True)
class SecondCopyLoss(LogitMetric):
    """Mean loss on the second copy of `[BOS] + r + r`, but for its first, unpredictable token."""

    name = "second_copy_loss"
    unit = "nats"

    def check(self, viewed: View, tokens: Tokens) -> None:
        """The model has to predict next tokens, and the sequences to repeat themselves."""
        viewed.check_predicts_next(self.name)
        copy = second_copy(tokens)
        if copy is None or copy.stop < tokens.shape[1]:
            raise UnrepeatedError(self.name)

    def positions(self, n_pos: int) -> Sequence[int]:
        """From the first to the last but one of the second copy."""
        return range(n_pos - n_pos // 2, n_pos - 1)

    def read(self, outputs: Outputs, tokens: Tokens, numbers: Numbers) -> Values:
        """In nats."""
        return outputs.losses(tokens[:, 1 - tokens.shape[1] // 2 :]).double().mean(1)


@dataclass(frozen=True)
class InContextLearning(LogitMetric):
    """Loss of a late token minus loss of an early one (Olsson et al. 2022); negative is good.

    Attributes:
        early: its position; the default is that of `in_context_learning_score`.
        late: likewise.
    """

    early: int | None = None
    late: int | None = None
    name = "in_context_learning_score"
    unit = "nats"

    def check(self, viewed: View, tokens: Tokens) -> None:
        """The model has to predict next tokens, and both positions to be there, in order."""
        viewed.check_predicts_next(self.name)
        n_pos = tokens.shape[1]
        early, late = self._both(n_pos)
        if not 1 <= early < late < n_pos:
            raise ValueError(
                f"early={early} and late={late} must be positions of a sequence of {n_pos} tokens "
                f"with 1 <= early < late <= {n_pos - 1}"
            )

    def _both(self, n_pos: int) -> tuple[int, int]:
        early, late = early_and_late(n_pos)
        return (
            early if self.early is None else self.early,
            late if self.late is None else self.late,
        )

    def positions(self, n_pos: int) -> Sequence[int]:
        """One before each of the two."""
        return tuple(target - 1 for target in self._both(n_pos))

    def read(self, outputs: Outputs, tokens: Tokens, numbers: Numbers) -> Values:
        """In nats."""
        losses = outputs.losses(tokens[:, self._both(tokens.shape[1])]).double()
        return losses[:, 1] - losses[:, 0]


@dataclass(frozen=True, eq=False)
class LogitDifference(LogitMetric):
    """The logit of one token minus that of another, at one position.

    Attributes:
        answer: the token that should be predicted.
        other: the one that should not.
        position: where they are predicted from.
    """

    answer: PerSequence
    other: PerSequence
    position: int = -1
    name = "logit_difference"
    unit = "logits"

    def check(self, viewed: View, tokens: Tokens) -> None:
        """One token or one per sequence, each in the vocabulary."""
        n_sequences, n_pos = tokens.shape
        if not -n_pos <= self.position < n_pos:
            raise ValueError(
                f"position={self.position} must be from {-n_pos} to {n_pos - 1} in sequences of "
                f"{n_pos} tokens"
            )
        for name in ("answer", "other"):
            choice = torch.as_tensor(getattr(self, name))
            if choice.ndim > 1 or (choice.ndim == 1 and len(choice) != n_sequences):
                raise ValueError(
                    f"{name} has shape {tuple(choice.shape)}; give one token, or one for each of "
                    f"the {n_sequences} sequences"
                )
            inside = not choice.is_floating_point() and (choice >= 0) & (choice < viewed.d_vocab)
            if not torch.as_tensor(inside).all():
                raise ValueError(f"{name} must be whole numbers from 0 to {viewed.d_vocab - 1}")

    def positions(self, n_pos: int) -> Sequence[int]:
        """One."""
        return (self.position % n_pos,)

    def read(self, outputs: Outputs, tokens: Tokens, numbers: Numbers) -> Values:
        """In logits."""
        both = [torch.as_tensor(choice).cpu() for choice in (self.answer, self.other)]
        pairs = [choice[numbers] if choice.ndim else choice.expand(len(numbers)) for choice in both]
        logits = outputs.logits_of(torch.stack(pairs, dim=1)[:, None]).double()[:, 0]
        return logits[:, 0] - logits[:, 1]


@dataclass(frozen=True, eq=False)
class Function(LogitMetric):
    """Any function of logits `[batch pos vocab]` and tokens, giving one number per sequence.

    It is shown all sequences at once, and all positions.
    """

    function: Callable[[Any, Any], Any]
    unit = ""
    holds_logits = True
    takes_all = True

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The function's own."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def check(self, viewed: View, tokens: Tokens) -> None:
        """Try it on logits of zero: its result needs the right shape."""
        self._call(torch.zeros(*tokens.shape, viewed.d_vocab), tokens)

    def positions(self, n_pos: int) -> Sequence[int]:
        """All."""
        return range(n_pos)

    def read(self, outputs: Outputs, tokens: Tokens, numbers: Numbers) -> Values:
        """Whatever the function gives."""
        logits, at_once = outputs.logits(), int(numbers.max()) + 1
        pairs = zip(logits.split(at_once), tokens.split(at_once), strict=True)
        return torch.cat([self._call(*pair) for pair in pairs])

    def _call(self, logits: Tensor, tokens: Tokens) -> Values:
        given = self.function(logits, tokens.to(logits.device))
        if not isinstance(given, Tensor) or given.shape != tokens.shape[:1]:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(
                f"the metric {self.name} gave {shape} for {len(tokens)} sequences; it must give a "
                f"tensor of shape ({len(tokens)},): one number per sequence, not averaged"
            )
        return given.double()


@dataclass(frozen=True)
class InductionScore(AttentionMetric):
    """Mean induction score of the chosen heads, on `[BOS] + r + r`; needs no logits.

    For a bidirectional model, on `[CLS] + r + r + [SEP]`.

    Attributes:
        heads: "L1H3", or several.
    """

    name = "induction_score"

    def check(self, viewed: View, tokens: Tokens) -> None:
        """The heads have to be there, and the sequences to repeat themselves."""
        if second_copy(tokens) is None:
            raise UnrepeatedError(self.name)
        super().check(viewed, tokens)

    def read(self, entries: Entries, tokens: Tokens) -> Float[Tensor, "batch head"]:
        """The attention to the token after the current token's first occurrence."""
        copy = second_copy(tokens)
        if copy is None:
            raise UnrepeatedError(self.name)
        target = stripe(copy, offset=len(copy) - 1)
        return entries(target.queries, target.keys).double().mean(-1)


class UnrepeatedError(ValueError):
    """Sequences whose second half, but for a first token, does not repeat the first."""

    def __init__(self, metric: str, which: str = "these sequences"):
        super().__init__(
            f"{metric} is measured on sequences [BOS] + r + r, whose second half repeats the "
            f"first, and {which} do not; give interp.repeated_tokens(...).tokens"
        )
        self.metric = metric


NAMED = {
    metric.name: metric
    for metric in (Loss(), Loss(per_token=True), SecondCopyLoss(), InContextLearning())
}


def metric_of(given: Any) -> Metric:
    """A metric, from its name, a function of (logits, tokens), or itself.

    >>> metric_of("loss").unit
    'nats'
    >>> metric_of(lambda logits, tokens: logits[:, -1].amax(-1)).name
    '<lambda>'

    Raises:
        ValueError: a name that there is not.
        TypeError: something else.
    """
    if isinstance(given, Metric):
        return given
    if isinstance(given, str):
        if given not in NAMED:
            raise ValueError(
                f"there is no metric {given!r}; the names are {', '.join(NAMED)}. InductionScore "
                "and LogitDifference take heads or tokens, and a function of (logits, tokens) "
                "will do as well"
            )
        return NAMED[given]
    if callable(given):
        return Function(given)
    raise TypeError(
        f"metric is {given!r}; give a name such as 'loss', a function of (logits, tokens), or a "
        "Metric"
    )
