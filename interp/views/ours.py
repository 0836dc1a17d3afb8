"""The view of an interp model."""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from interp.models.block import Block
from interp.models.description import Sublayer, Writer
from interp.models.hooks import undisturbed
from interp.models.linear import FrozenNorm
from interp.models.sequence import HookedSequenceModel
from interp.models.shapes import Heads, Logits, Scores, Stream, Tokens
from interp.views.entries import entries_from_parts, entries_of
from interp.views.outputs import Outputs, OutputsOfStream, at_positions
from interp.views.protocol import ReadEntries, ReadHook, View
from interp.views.replay import run_from
from interp.views.running import Hook, Start


class OurView(View):
    """Each layer describes itself; patterns need not be built to be read."""

    model: HookedSequenceModel
    starts_anywhere = True
    starts_within = True
    starts_from_tables = True

    def __init__(self, model: HookedSequenceModel):
        self.model = model
        self.n_ctx, self.d_vocab = model.config.n_ctx, model.config.d_vocab
        self.n_layers = len(model.blocks)

    @property
    def heads(self) -> dict[int, int]:
        return {i: spec.n_heads for i, spec in self.model.config.attention_layers.items()}

    def key_heads(self, layer: int) -> int:
        return self.heads[layer]

    @cached_property
    def writers(self) -> tuple[Writer, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        model = self.model
        tables = ("embed", "pos_embed")[: 1 + self.positions_enter_stream]
        writers = [Writer.embedding(kind) for kind in tables]
        for layer in range(self.n_layers):
            writers += [sublayer.writer for sublayer in model.sublayers(layer)]
        return tuple(writers)

    def taps(self, layer: int) -> Mapping[str, Float[Tensor, "lag channel"]]:
        block = cast(Block, self.model.blocks[layer])
        mlp = {} if block.mlp is None or block.mlp.taps_out is None else {"mlp": block.mlp.taps_out}
        return {**block.mixer.taps(), **mlp}

    def sublayers(self, layer: int) -> tuple[Sublayer, ...]:
        return self.model.sublayers(layer)

    @property
    def residual(self) -> bool:
        return self.model.config.residual

    @property
    def last_norm(self) -> FrozenNorm | None:
        return FrozenNorm.of(self.model.ln_final, "ln_final")

    @property
    def unembedding(
        self,
    ) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " vocab"] | None]:
        return self.model.W_U, self.model.unembed.b_U

    @property
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        return self.model.W_E

    @property
    def position_table(self) -> Float[Tensor, "pos d_model"] | None:
        return None if self.model.pos_embed is None else self.model.W_pos

    @property
    def positions_enter_stream(self) -> bool:
        return self.model.pos_embed is not None and self.model.positions_enter_stream

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

    def untrained(self, seed: int) -> "OurView":
        twin = type(self.model).from_config(self.model.config, seed=seed)
        return OurView(twin.to(device=self.model.W_E.device, dtype=self.model.W_E.dtype))

    def output_map(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        return self.model.attn(layer).W_O

    def output_bias(self, layer: int) -> Float[Tensor, " d_model"] | None:
        return self.model.attn(layer).b_O

    def held_patterns(self, layer: int, pattern: Scores) -> list[Hook]:
        captured: dict[str, Heads] = {}

        def at_values(v: Heads, hook: Any) -> None:
            captured["v"] = v

        def at_z(z: Heads, hook: Any) -> Heads:
            # All copies of a sequence share one pattern: one product serves them all.
            v = captured.pop("v").unflatten(0, (-1, len(pattern)))
            mixed = pattern @ v.permute(1, 3, 2, 0, 4).flatten(3)
            return mixed.unflatten(3, (len(v), -1)).permute(3, 0, 2, 1, 4).flatten(0, 1)

        prefix = f"blocks.{layer}.attn."
        values = prefix + self.model.attn(layer).value_hook
        return [(values, at_values), (prefix + "hook_z", at_z)]

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
        with self.running(), model.hooks(fwd_hooks=list(hooks)):
            stream = at_positions(self._stream(tokens, start, self.n_layers), positions)
            return OutputsOfStream(model.ln_final(stream), model.W_U, model.unembed.b_U)

    def _stream(self, tokens: Tokens, start: Start | None, stop: int) -> Stream:
        if start is None:
            return self.model(tokens, stop_at_layer=stop)
        return run_from(self.model, start, stop)

    def _run_with_read_hooks(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        read: ReadEntries,
        start: Start | None,
        hooks: Sequence[Hook],
    ) -> None:
        last = layers[-1]
        with self.model.hooks(fwd_hooks=list(hooks)):
            # Only now is it known whether anybody changes the patterns.
            read_hooks = [
                read_hook
                for layer in layers
                for read_hook in self._read_hooks(layer, layer == last, read)
            ]
            with self.model.hooks(fwd_hooks=[*read_hooks]):
                self._stream(tokens, start, last + 1)

    def _read_hooks(self, layer: int, is_last: bool, read: ReadEntries) -> list[ReadHook]:
        attn, prefix = self.model.attn(layer), f"blocks.{layer}.attn."
        changed = attn.hook_pattern.is_listened_to() or attn.hook_attn_scores.is_listened_to()
        if changed or self.keeps_gradients:
            # Somebody may be changing the pattern: read what the layer really uses.
            return [(prefix + "hook_pattern", lambda p, hook: read(layer, entries_of(p)))]
        captured: dict[str, Heads] = {}

        def at_queries(q: Heads, hook: Any) -> None:
            captured["q"] = q

        def at_keys(k: Heads, hook: Any) -> None:
            captured["k"] = k
            if is_last:  # what the layer would make of its values is nobody's concern
                at_sum(attn.log_sum_exp(captured["q"], k), hook)

        def at_sum(lse: Float[Tensor, "batch query head"], hook: Any) -> None:
            read(layer, entries_from_parts(attn, captured["q"], captured["k"], lse))

        read_hooks: list[ReadHook] = [
            (prefix + attn.query_hook, at_queries),
            (prefix + attn.key_hook, at_keys),
        ]
        return read_hooks if is_last else [*read_hooks, (prefix + "hook_log_sum_exp", at_sum)]
