"""What an analysis may ask of any model: one of ours, or a `transformer_lens.TransformerBridge`.

`view(model)` answers the same questions for both. An analysis written against a view runs on
either, and what a model cannot answer is refused at once, with the reason.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.models.bridge import BridgeView
from interp.models.description import Writer
from interp.models.entries import Entries, entries_from_parts, entries_of
from interp.models.outputs import Outputs, OutputsOfStream, at_positions
from interp.models.replay import run_from
from interp.models.sequence import HookedSequenceModel
from interp.models.shapes import Heads, Logits, Scores, Stream, Tokens
from interp.models.view import Ear, Hear, Hook, Start, View, undisturbed

__all__ = ["Entries", "Hook", "Start", "View", "undisturbed", "view"]


def view(model: Any) -> View:
    """The view of a model; a TypeError says what can be viewed."""
    if isinstance(model, HookedSequenceModel):
        return _OurView(model)
    # A compiled model answers for the one inside it: reading activations needs no compiled graph.
    if isinstance(inner := getattr(model, "_orig_mod", None), HookedSequenceModel):
        return _OurView(inner)
    _refuse_inputs(model)
    if all(hasattr(model, name) for name in ("cfg", "blocks", "run_with_hooks", "hook_dict")):
        return BridgeView(model)
    raise TypeError(
        f"{type(model).__name__} cannot be analysed; give an interp model, such as "
        "interp.load('conv-attn'), or wrap a Hugging Face model with "
        "transformer_lens.TransformerBridge.boot_transformers(...)"
    )


def _refuse_inputs(model: Any) -> None:
    """Refuse a Hugging Face model, in a bridge or not, that one sequence of tokens cannot run."""
    inner = getattr(model, "original_model", model)
    config = getattr(inner, "config", None)
    remedy = "give a model that reads one sequence of tokens, such as GPT-2, Llama or BERT"
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"{type(inner).__name__} is an encoder-decoder, and those cannot be analysed yet; "
            f"{remedy}"
        )
    reads = getattr(inner, "main_input_name", "input_ids")
    if (
        config is not None
        and isinstance(reads, str)
        and reads not in ("input_ids", "inputs_embeds")
    ):
        raise TypeError(
            f"{type(inner).__name__} reads {reads} (images or sound) and no tokens, so it cannot "
            f"be analysed; {remedy}"
        )


class _OurView(View):
    model: HookedSequenceModel
    starts_anywhere = True

    def __init__(self, model: HookedSequenceModel):
        self.model = model
        self.n_ctx, self.d_vocab = model.config.n_ctx, model.config.d_vocab
        self.n_layers = len(model.blocks)

    @property
    def heads(self) -> dict[int, int]:
        return {i: spec.n_heads for i, spec in self.model.config.attention_layers.items()}

    def key_heads(self, layer: int) -> int:
        return self.heads[layer]

    @property
    def lags(self) -> dict[int, int]:
        return {layer: self.model.conv(layer).lags for layer in self.model.conv_layers}

    @cached_property
    def writers(self) -> tuple[Writer, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        model = self.model
        enters = model.pos_embed is not None and model.positions_enter_stream
        writers = [Writer.embedding(kind) for kind in ("embed", "pos_embed")[: 1 + enters]]
        for layer in range(self.n_layers):
            writers += [sublayer.writer for sublayer in model.sublayers(layer)]
        return tuple(writers)

    @property
    def sums_up(self) -> bool:
        config = self.model.config
        return config.residual and config.norm_place != "post"

    def check_heads(self, layers: Collection[int]) -> None:
        pass  # the description is that of the config, which the layers are built from

    def bent_heads(self, layer: int) -> str | None:
        return None

    @property
    def hooks(self) -> Collection[str]:
        return self.model.hook_dict.keys()

    def causal(self, layer: int) -> bool:
        return self.model.attn(layer).causal

    def output_map(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        return self.model.attn(layer).W_O

    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        return self.model.attn(layer).b_O

    def held_patterns(self, layer: int, pattern: Scores) -> list[Hook]:
        heard: dict[str, Heads] = {}

        def at_values(v: Heads, hook: Any) -> None:
            heard["v"] = v

        def at_z(z: Heads, hook: Any) -> Heads:
            # All copies of a sequence share one pattern: one product serves them all.
            v = heard.pop("v").unflatten(0, (-1, len(pattern)))
            mixed = pattern @ v.permute(1, 3, 2, 0, 4).flatten(3)
            return mixed.unflatten(3, (len(v), -1)).permute(3, 0, 2, 1, 4).flatten(0, 1)

        prefix = f"blocks.{layer}.attn."
        return [(prefix + "hook_v", at_values), (prefix + "hook_z", at_z)]

    def logits(self, tokens: Tokens) -> Logits:
        with undisturbed(self.model):
            return self.model(tokens)

    def outputs(
        self,
        tokens: Tokens,
        *,
        positions: Sequence[int] | None = None,
        start: Start | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Outputs:
        model = self.model
        with undisturbed(model), model.hooks(fwd_hooks=list(hooks)):
            stream = at_positions(self._stream(tokens, start, self.n_layers), positions)
            return OutputsOfStream(
                model.ln_final(stream), model.unembed, model.W_U, model.unembed.b_U
            )

    def _stream(self, tokens: Tokens, start: Start | None, stop: int) -> Stream:
        if start is None:
            return self.model(tokens, stop_at_layer=stop)
        return run_from(self.model, start, stop)

    def _run_with_ears(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        hear: Hear,
        start: Start | None,
        hooks: Sequence[Hook],
    ) -> None:
        last = layers[-1]
        with self.model.hooks(fwd_hooks=list(hooks)):
            # Only now can it be told whether anybody changes the patterns.
            ears = [ear for layer in layers for ear in self._ears(layer, layer == last, hear)]
            with self.model.hooks(fwd_hooks=[*ears]):
                self._stream(tokens, start, last + 1)

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
