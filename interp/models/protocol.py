"""What an analysis may ask of any model: one of ours, or a `transformer_lens.TransformerBridge`.

`view(model)` answers the same questions for both. An analysis written against a view runs on
either, and what a model cannot answer is refused at once, with the reason.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.attention import Attention
from interp.models.sequence import HookedSequenceModel
from interp.models.shapes import Heads, Logits, Scores, Tokens

Index = Int[Tensor, " entry"]
Entries = Callable[[Index, Index], Float[Tensor, "batch head entry"]]
"""The attention of each query in the first list to the key in the same place of the second."""


class View(ABC):
    """The questions.

    Nothing here changes the model: gradients are off, dropout too, and hooks are taken away.
    """

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

    @abstractmethod
    def listen_to_attention(self, tokens: Tokens, hear: Callable[[int, Entries], None]) -> None:
        """Run the model and let `hear(layer, entries)` read each layer's attention as it comes.

        Nothing above the last attention layer is run.
        """

    @abstractmethod
    def logits(self, tokens: Tokens) -> Logits:
        """The model's logits."""

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
    def special_tokens(self) -> tuple[int, ...]:
        """Tokens that no probe should draw: BOS, padding and their like."""
        tokenizer = getattr(self.model, "tokenizer", None)
        return () if tokenizer is None else tuple(sorted(set(tokenizer.all_special_ids)))

    @property
    def bos(self) -> int:
        """The token that starts a sequence: the tokenizer's BOS, or its end token, or else 0."""
        tokenizer = getattr(self.model, "tokenizer", None)
        candidates = (
            getattr(tokenizer, "bos_token_id", None),
            getattr(tokenizer, "eos_token_id", None),
        )
        return next((token for token in candidates if token is not None), 0)

    def check_finite(self) -> None:
        """Refuse a model with a NaN or an infinity in it, naming the weight."""
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise ValueError(
                    f"{self.name}: weight {name!r} holds NaN or infinity, "
                    "so every score would be NaN"
                )

    def check_tokens(self, tokens: Tokens, at_least: int = 2) -> None:
        """Refuse tokens that the model cannot read, before any work."""
        if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.is_floating_point():
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


def view(model: Any) -> View:
    """The view of a model; a TypeError says what can be viewed."""
    if isinstance(model, HookedSequenceModel):
        return _OurView(model)
    # A compiled model answers for the one inside it: reading activations needs no compiled graph.
    if isinstance(inner := getattr(model, "_orig_mod", None), HookedSequenceModel):
        return _OurView(inner)
    if all(hasattr(model, name) for name in ("cfg", "blocks", "run_with_hooks", "hook_dict")):
        return _BridgeView(model)
    raise TypeError(
        f"{type(model).__name__} cannot be analysed; give an interp model, or wrap a Hugging Face "
        "model with transformer_lens.TransformerBridge.boot_transformers(...)"
    )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; outside, every module's mode is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


class _OurView(View):
    def __init__(self, model: HookedSequenceModel):
        self.model = model
        self.n_ctx, self.d_vocab = model.config.n_ctx, model.config.d_vocab

    @property
    def heads(self) -> dict[int, int]:
        return {i: spec.n_heads for i, spec in self.model.config.attention_layers.items()}

    def causal(self, layer: int) -> bool:
        return self.model.attn(layer).causal

    def logits(self, tokens: Tokens) -> Logits:
        with undisturbed(self.model):
            return self.model(tokens)

    def listen_to_attention(self, tokens: Tokens, hear: Callable[[int, Entries], None]) -> None:
        hooks = [hook for layer in self.heads for hook in self._ears(layer, hear)]
        with undisturbed(self.model):
            last = max(self.heads)
            self.model.run_with_hooks(tokens, fwd_hooks=hooks, stop_at_layer=last + 1)

    def _ears(self, layer: int, hear: Callable[[int, Entries], None]) -> list[tuple[str, Any]]:
        attn, prefix = self.model.attn(layer), f"blocks.{layer}.attn."
        if attn.hook_pattern.is_listened_to() or attn.hook_attn_scores.is_listened_to():
            # Somebody may be changing the pattern: read what the layer really uses.
            return [
                (prefix + "hook_pattern", lambda pattern, hook: hear(layer, entries_of(pattern)))
            ]
        heard: dict[str, Heads] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda value, hook: heard.__setitem__(name, value)

        def finish(lse: Float[Tensor, "batch query head"], hook: Any) -> None:
            hear(layer, _entries_from_parts(attn, heard["q"], heard["k"], lse))

        return [
            (prefix + attn.query_hook, keep("q")),
            (prefix + attn.key_hook, keep("k")),
            (prefix + "hook_log_sum_exp", finish),
        ]


class _BridgeView(View):
    def __init__(self, model: Any):
        self.model = model
        self.n_ctx, self.d_vocab = int(model.cfg.n_ctx), int(model.cfg.d_vocab)
        if not self.heads:
            raise ValueError(
                f"{type(model).__name__} has no attention pattern to hook; it cannot be scored"
            )

    @property
    def heads(self) -> dict[int, int]:
        layers = range(self.model.cfg.n_layers)
        hooked = (layer for layer in layers if self._pattern(layer) in self.model.hook_dict)
        return dict.fromkeys(hooked, int(self.model.cfg.n_heads))

    @property
    def name(self) -> str:
        return str(getattr(self.model.cfg, "model_name", None) or type(self.model).__name__)

    def _pattern(self, layer: int) -> str:
        return f"blocks.{layer}.attn.hook_pattern"

    def causal(self, layer: int) -> bool:
        return True

    def logits(self, tokens: Tokens) -> Logits:
        with undisturbed(self.model):
            return self.model(tokens.to(self.model.cfg.device), return_type="logits")

    def listen_to_attention(self, tokens: Tokens, hear: Callable[[int, Entries], None]) -> None:
        heard: set[int] = set()

        def ear(layer: int) -> Callable[..., None]:
            def reduce(pattern: Tensor, hook: Any) -> None:
                heard.add(layer)
                hear(layer, entries_of(pattern))

            return reduce

        hooks = [(self._pattern(layer), ear(layer)) for layer in self.heads]
        with undisturbed(self.model):
            self.model.run_with_hooks(
                tokens.to(self.model.cfg.device), fwd_hooks=hooks, return_type=None
            )
        if silent := sorted(set(self.heads) - heard):
            raise ValueError(
                f"{self.name}: the attention patterns of layers {silent} were not computed; load "
                'the model with attn_implementation="eager"'
            )


def entries_of(pattern: Scores) -> Entries:
    """Entries read from a whole pattern."""
    return lambda queries, keys: pattern[:, :, queries, keys]


def _entries_from_parts(
    attn: Attention, q: Heads, k: Heads, lse: Float[Tensor, "batch query head"]
) -> Entries:
    """Entries as exp(score - log-sum-exp): one dot product each, and no pattern."""

    def read(queries: Index, keys: Index) -> Float[Tensor, "batch head entry"]:
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = (q[:, queries].to(wide) * k[:, keys].to(wide)).sum(-1) * attn.scale
        return torch.exp(scores - lse[:, queries].to(wide)).transpose(1, 2)

    return read
