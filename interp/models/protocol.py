"""What an analysis may ask of any model: one of ours, or a `transformer_lens.TransformerBridge`.

`view(model)` answers the same questions for both. An analysis written against a view runs on
either, and what a model cannot answer is refused at once, with the reason.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.models.bridge import BridgeView
from interp.models.entries import Entries, entries_from_parts, entries_of
from interp.models.sequence import HookedSequenceModel
from interp.models.shapes import Heads, Logits, Tokens
from interp.models.view import Ear, Hear, View, undisturbed

__all__ = ["Entries", "View", "undisturbed", "view"]


def view(model: Any) -> View:
    """The view of a model; a TypeError says what can be viewed."""
    if isinstance(model, HookedSequenceModel):
        return _OurView(model)
    # A compiled model answers for the one inside it: reading activations needs no compiled graph.
    if isinstance(inner := getattr(model, "_orig_mod", None), HookedSequenceModel):
        return _OurView(inner)
    if all(hasattr(model, name) for name in ("cfg", "blocks", "run_with_hooks", "hook_dict")):
        return BridgeView(model)
    raise TypeError(
        f"{type(model).__name__} cannot be analysed; give an interp model, such as "
        "interp.load('conv-attn'), or wrap a Hugging Face model with "
        "transformer_lens.TransformerBridge.boot_transformers(...)"
    )


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
            hear(layer, entries_from_parts(attn, heard["q"], heard["k"], lse))

        ears: list[Ear] = [
            (prefix + attn.query_hook, at_queries),
            (prefix + attn.key_hook, at_keys),
        ]
        return ears if is_last else [*ears, (prefix + "hook_log_sum_exp", at_sum)]
