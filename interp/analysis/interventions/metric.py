"""What every metric has: a name, a unit, checks, and the work that it asks for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from interp.models.shapes import Tokens
from interp.views import View
from interp.views.outputs import Outputs

Values = Float[Tensor, "batch *measured"]
Numbers = Int[Tensor, " batch"]
"""Which of the sequences each row is: rows may be some of them only, or all several times over."""


class Metric(ABC):
    """What all metrics have.

    Attributes:
        name: what a result calls it.
        unit: "nats", "probability", "logits", or nothing.
    """

    name: str
    unit: str

    def check(self, seen: View, tokens: Tokens) -> None:
        """Refuse tokens or a model that this cannot be measured on, before any forward pass."""
        return

    def positions_measured(self, n_pos: int) -> tuple[int, ...] | None:
        """The positions that there is one number for; None for one number per sequence."""
        return None


class LogitMetric(Metric):
    """A metric of what the model predicts."""

    holds_logits = False
    """Whether all logits of the positions are there at once."""

    takes_all = False
    """Whether it must be shown all sequences at once."""

    @abstractmethod
    def positions(self, n_pos: int) -> Sequence[int]:
        """Whose predictions are read."""

    @abstractmethod
    def read(self, outputs: Outputs, tokens: Tokens, numbers: Numbers) -> Values:
        """The numbers in float64, from the predictions at these positions; tokens are whole."""
