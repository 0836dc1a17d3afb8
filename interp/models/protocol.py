"""What an analysis may ask of any model: one of ours, or a `transformer_lens.TransformerBridge`.

`view(model)` answers the same questions for both. An analysis written against a view runs on
either, and what a model cannot answer is refused at once, with the reason.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from interp.models.attention import Attention
from interp.models.sequence import HookedSequenceModel
from interp.models.shapes import Heads, Logits, Scores, Tokens

Index = Int[Tensor, " entry"]
Entries = Callable[[Index, Index], Float[Tensor, "batch head entry"]]
"""The attention that each query of the first list pays to the key in the same place of the
second."""

ENTRIES_AT_ONCE = 256
"""How many entries are multiplied out in one go: few enough for a cache, and for long lists."""

Hear = Callable[[int, Entries], None]
Ear = tuple[str, Callable[..., None]]


class EverythingHeard(Exception):
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
        """The attention that each query pays to a key if it has no preference among those it sees."""
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

    @property
    def bos(self) -> int:
        """What starts a sequence: the tokenizer's BOS or else its end token; 0 without tokenizer."""
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

    def _run_with_ears(self, tokens: Tokens, hear: Hear) -> None:
        last = max(self.heads)
        ears = [ear for layer in self.heads for ear in self._ears(layer, layer == last, hear)]
        self.model.run_with_hooks(tokens, fwd_hooks=ears, stop_at_layer=last + 1)

    def _ears(self, layer: int, is_last: bool, hear: Hear) -> list[Ear]:
        attn, prefix = self.model.attn(layer), f"blocks.{layer}.attn."
        if attn.hook_pattern.is_listened_to() or attn.hook_attn_scores.is_listened_to():
            # Somebody may be changing the pattern: read what the layer really uses.
            return [(prefix + "hook_pattern", lambda p, hook: hear(layer, entries_of(p)))]
        heard: dict[str, Heads] = {}

        def at_queries(q: Heads, hook: Any) -> None:
            heard["q"] = q

        def at_keys(k: Heads, hook: Any) -> None:
            heard["k"] = k
            if is_last:  # what the layer would make of its values is nobody's concern
                at_sum(attn.log_sum_exp(heard["q"], k), hook)

        def at_sum(lse: Float[Tensor, "batch query head"], hook: Any) -> None:
            hear(layer, _entries_from_parts(attn, heard["q"], heard["k"], lse))

        ears: list[Ear] = [
            (prefix + attn.query_hook, at_queries),
            (prefix + attn.key_hook, at_keys),
        ]
        return ears if is_last else [*ears, (prefix + "hook_log_sum_exp", at_sum)]


class _BridgeView(View):
    def __init__(self, model: Any):
        self.model = model
        self.n_ctx, self.d_vocab = int(model.cfg.n_ctx), int(model.cfg.d_vocab)

    @property
    def heads(self) -> dict[int, int]:
        layers = range(self.model.cfg.n_layers)
        hooked = [layer for layer in layers if self._pattern(layer) in self.model.hook_dict]
        return dict.fromkeys(hooked, int(self.model.cfg.n_heads))

    @property
    def name(self) -> str:
        cfg = self.model.cfg
        return f"{cfg.model_name} ({cfg.architecture or type(self.model).__name__})"

    def _pattern(self, layer: int) -> str:
        return f"blocks.{layer}.attn.hook_pattern"

    def causal(self, layer: int) -> bool:
        return self.model.cfg.attention_dir == "causal"

    def window(self, layer: int) -> int | None:
        config = getattr(self.model.original_model, "config", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] != "sliding_attention":
            return None
        return getattr(config, "sliding_window", None)

    def logits(self, tokens: Tokens) -> Logits:
        with undisturbed(self.model):
            return self.model(self._place(tokens), return_type="logits")

    def _place(self, tokens: Tokens) -> Tokens:
        return tokens.to(next(self.model.parameters()).device)

    def _run_with_ears(self, tokens: Tokens, hear: Hear) -> None:
        silent = self.heads

        def at_pattern(layer: int, pattern: Scores) -> None:
            self._check_pattern(layer, silent.pop(layer), pattern)
            self._refuse_silence([lower for lower in silent if lower < layer])
            hear(layer, entries_of(pattern))

        def ear(layer: int) -> Ear:
            return self._pattern(layer), lambda pattern, hook: at_pattern(layer, pattern)

        ears = [ear(layer) for layer in silent]
        self.model.run_with_hooks(self._place(tokens), fwd_hooks=ears, return_type=None)
        self._refuse_silence(list(silent))

    def _check_pattern(self, layer: int, n_heads: int, pattern: Scores) -> None:
        if pattern.shape[1] != n_heads:
            raise ValueError(
                f"{self.name}: layer {layer} has {pattern.shape[1]} heads, but cfg.n_heads is "
                f"{n_heads}; bridges whose layers differ in heads cannot be scored"
            )

    def _refuse_silence(self, layers: list[int]) -> None:
        if layers:
            raise ValueError(
                f"{self.name}: the attention patterns of layers {layers} were not computed; load "
                'the Hugging Face model with attn_implementation="eager"'
            )


def entries_of(pattern: Scores) -> Entries:
    """Entries read from a whole pattern."""
    return lambda queries, keys: pattern[:, :, queries, keys]


def _entries_from_parts(
    attn: Attention, q: Heads, k: Heads, lse: Float[Tensor, "batch query head"]
) -> Entries:
    """Entries as exp(score - log-sum-exp): one dot product each, and no pattern."""
    wide = torch.promote_types(q.dtype, torch.float32)

    def some(queries: Index, keys: Index) -> Float[Tensor, "batch entry head"]:
        scores = (_rows(q, queries).to(wide) * _rows(k, keys).to(wide)).sum(-1) * attn.scale
        return torch.exp(scores - _rows(lse, queries).to(wide))

    def read(queries: Index, keys: Index) -> Float[Tensor, "batch head entry"]:
        pairs = zip(queries.split(ENTRIES_AT_ONCE), keys.split(ENTRIES_AT_ONCE), strict=True)
        return torch.cat([some(*pair) for pair in pairs], dim=1).transpose(1, 2)

    return read


def _rows(
    x: Shaped[Tensor, "batch pos *rest"], index: Index
) -> Shaped[Tensor, "batch entry *rest"]:
    """x[:, index], as a view where the index runs through a range or stands still."""
    first, steps = int(index[0]), index.diff()
    if (steps == 1).all():
        return x[:, first : first + len(index)]
    if (steps == 0).all():
        return x[:, first : first + 1].expand(-1, len(index), *x.shape[2:])
    return x[:, index]
