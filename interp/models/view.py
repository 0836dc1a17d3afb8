"""The questions that an analysis may ask of any model, whoever wrote it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.entries import Entries, Index
from interp.models.shapes import Logits, Tokens

Hear = Callable[[int, Entries], None]
Ear = tuple[str, Callable[..., None]]


class EverythingHeard(Exception):  # noqa: N818 - a signal, no error
    """Raised in a hook, and caught where the model is run: nothing above is worth computing."""


class View(ABC):
    """The questions. A model is left as it was: its mode, its hooks, its gradients."""

    model: Any
    n_ctx: int
    d_vocab: int

    @property
    @abstractmethod
    def heads(self) -> dict[int, int]:
        """The number of heads of every layer that has any."""

    @abstractmethod
    def causal(self, layer: int) -> bool:
        """Whether the layer's queries see no later key."""

    def window(self, layer: int) -> int | None:
        """How many keys back a query sees, itself included; None where it sees all of them."""
        return None

    @abstractmethod
    def logits(self, tokens: Tokens) -> Logits:
        """The model's logits."""

    @abstractmethod
    def _run_with_ears(self, tokens: Tokens, hear: Hear) -> None:
        """Run the model and call `hear` for each layer, from the lowest to the highest."""

    def listen_to_attention(self, tokens: Tokens, hear: Hear) -> None:
        """Run the model and let `hear(layer, entries)` read the attention of each layer in turn.

        Entries can be read during the call only: no pattern is kept. Once the last layer's are
        read the model stops, and nothing above them is computed.

        Raises:
            ValueError: the model has no heads.
        """
        if not self.heads:
            raise ValueError(
                f"{self.name} has no attention layer with a pattern, so it has no heads to score"
            )
        last = max(self.heads)

        def hear_and_stop(layer: int, entries: Entries) -> None:
            hear(layer, entries)
            if layer == last:
                raise EverythingHeard

        with undisturbed(self.model), suppress(EverythingHeard):
            self._run_with_ears(tokens, hear_and_stop)

    def uniform(
        self, layer: int, queries: Index, keys: Index, n_pos: int
    ) -> Float[Tensor, " entry"]:
        """The attention that a head without preferences pays: equal among the keys in sight."""
        seen = queries + 1 if self.causal(layer) else torch.full_like(queries, n_pos)
        window = self.window(layer) or n_pos
        return (queries - keys < window).double() / seen.clamp(max=window)

    @property
    def head_labels(self) -> tuple[str, ...]:
        """L1H3 for head 3 of layer 1; every layer counts, conv layers too."""
        return tuple(f"L{layer}H{head}" for layer, n in self.heads.items() for head in range(n))

    @property
    def name(self) -> str:
        """What a result calls the model."""
        loaded_from = getattr(self.model, "loaded_from", None)
        kind = type(self.model).__name__
        return f"{loaded_from} ({kind})" if loaded_from else kind

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        return getattr(self.model, "tokenizer", None)

    @property
    def special_tokens(self) -> tuple[int, ...]:
        """Tokens that no probe should draw: BOS, padding and their like, and unused rows of W_E."""
        if self.tokenizer is None:
            return ()
        unused = range(len(self.tokenizer), self.d_vocab)
        return tuple(sorted({*self.tokenizer.all_special_ids, *unused}))

    def words(self, tokens: list[int]) -> list[str]:
        """Each token as a reader sees it; without a tokenizer, its number."""
        if self.tokenizer is None:
            return [str(token) for token in tokens]
        return [self.tokenizer.decode([token]) for token in tokens]

    @property
    def bos(self) -> int:
        """What starts a sequence: the tokenizer's BOS, else its end token; without one, 0."""
        names = ("bos_token_id", "eos_token_id")
        candidates = (getattr(self.tokenizer, name, None) for name in names)
        return next((token for token in candidates if token is not None), 0)

    def check_finite(self) -> None:
        """Refuse a model with a NaN or an infinity in it, naming the weight."""
        for name, weight in self.model.named_parameters():
            # The extremes take one pass and no memory; a NaN is both the least and the greatest.
            if weight.numel() and not all(x.isfinite() for x in weight.detach().aminmax()):
                raise ValueError(
                    f"{self.name}: weight {name!r} holds NaN or infinity, so every result would "
                    "be NaN; load or train the model again"
                )

    def check_tokens(self, tokens: Tokens, at_least: int = 2) -> None:
        """Refuse tokens that the model cannot read, before any work."""
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens are {type(tokens).__name__}; give model.to_tokens(text)")
        whole = not (
            tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool
        )
        if tokens.ndim != 2 or tokens.shape[0] == 0 or not whole:
            raise ValueError(
                f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, but must be whole "
                "numbers of shape [batch, pos] with at least one sequence"
            )
        if not at_least <= tokens.shape[1] <= self.n_ctx:
            raise ValueError(
                f"the sequences have {tokens.shape[1]} tokens, but must have {at_least} to "
                f"n_ctx={self.n_ctx}"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.d_vocab:
            raise ValueError(
                f"token {low if low < 0 else high} is outside the vocabulary of {self.d_vocab}"
            )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; outside, every module's mode is as it was."""
    # A bridge does not count the Hugging Face model that it wraps among its modules.
    inner = getattr(model, "original_model", None)
    modules = {*model.modules(), *(inner.modules() if isinstance(inner, nn.Module) else ())}
    modes = {module: module.training for module in modules}
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
