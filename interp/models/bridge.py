"""The view of a `transformer_lens.TransformerBridge`: any Hugging Face model, patterns in hooks."""

from typing import Any

from interp.models.entries import entries_of
from interp.models.shapes import Logits, Scores, Tokens
from interp.models.view import Ear, Hear, View, undisturbed


class BridgeView(View):
    """Patterns are reduced in the hook and never stored."""

    def __init__(self, model: Any):
        self.model = model
        self.n_ctx, self.d_vocab = int(model.cfg.n_ctx), int(model.cfg.d_vocab)

    @property
    def heads(self) -> dict[int, int]:
        """Layers with a pattern to hook; a hybrid's other layers have none."""
        layers = range(self.model.cfg.n_layers)
        hooked = [layer for layer in layers if self._pattern(layer) in self.model.hook_dict]
        return dict.fromkeys(hooked, int(self.model.cfg.n_heads))

    @property
    def name(self) -> str:
        """The checkpoint's name and the architecture."""
        cfg = self.model.cfg
        return f"{cfg.model_name} ({cfg.architecture or type(self.model).__name__})"

    def _pattern(self, layer: int) -> str:
        return f"blocks.{layer}.attn.hook_pattern"

    def causal(self, layer: int) -> bool:
        """False for encoders such as BERT."""
        return self.model.cfg.attention_dir == "causal"

    def window(self, layer: int) -> int | None:
        """As the Hugging Face config gives it, for the layers that slide."""
        config = getattr(self.model.original_model, "config", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and kinds[layer] != "sliding_attention":
            return None
        return getattr(config, "sliding_window", None)

    def logits(self, tokens: Tokens) -> Logits:
        """The model's logits."""
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
