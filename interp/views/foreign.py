"""The view of a model that somebody else wrote, whose attention patterns stand at hook points."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from interp.models.description import stream_hook
from interp.models.hooks import undisturbed, without_hooks
from interp.models.shapes import Logits, Scores, Stream, Tokens
from interp.views.convolutions import Layers, started
from interp.views.entries import Entries, entries_of
from interp.views.interception import apart
from interp.views.outputs import NoOutputs, Outputs, OutputsOfLogits, at_positions
from interp.views.protocol import ReadEntries, ReadHook, View
from interp.views.running import Hook, Start

_can_start: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()


class NotComputedError(ValueError):
    """A fused kernel left no pattern to read."""


class ForeignView(View):
    """Patterns are reduced in the hook and never stored."""

    spells_out = True

    def __init__(self, model: Any, n_ctx: int, d_vocab: int, n_layers: int):
        self.model = model
        self.n_ctx, self.d_vocab, self.n_layers = n_ctx, d_vocab, n_layers
        self._visibility: dict[int, dict[int, Tensor]] = {}

    @property
    def predicts(self) -> bool:
        """Whether the model gives logits."""
        return True

    @property
    @abstractmethod
    def _blocks(self) -> Sequence[nn.Module]:
        """The layers."""

    @property
    def starts_anywhere(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether lower layers can be passed over: held against whole runs on a few tokens, once.

        Not where a layer gives more than the stream, or reads what others below it have kept.
        """
        if self.model not in _can_start:
            with apart(), without_hooks(self.model):
                _can_start[self.model] = self._starts_alike()
        return _can_start[self.model]

    def _starts_alike(self) -> bool:
        last = stream_hook(self.n_layers - 1, "resid_post")
        middles = {self.n_layers // 2, self.n_layers - 1}
        names = {layer: stream_hook(layer, "resid_pre") for layer in middles}
        if not {last, *names.values()} <= set(self.hooks):
            return False
        tokens = torch.arange(min(8, self.n_ctx))[None] % self.d_vocab
        layers, plain = Layers(self._blocks), []
        layers.on_leaving = plain.append
        with layers.followed():
            whole = self.capture(tokens, [last, *names.values()])
        if not all(plain):
            return False
        self.capture(tokens.flip(1), [last])  # what a layer keeps of a run is another's now
        for layer, name in names.items():
            above = self.capture(tokens, [last], start=Start(layer, whole[name]))
            if not torch.equal(above[last], whole[last]):
                return False
        return True

    def _run_from(
        self, tokens: Tokens, hooks: Sequence[Hook], return_type: str | None, start: Start | None
    ) -> Any:
        if start is None:
            return self._run(tokens, hooks, return_type)
        with started(self._blocks, start.layer, start.stream):
            return self._run(tokens, hooks, return_type)

    @abstractmethod
    def _run(self, tokens: Tokens, hooks: Sequence[Hook], return_type: str | None) -> Any:
        """Run the model under hooks, and give its logits, or nothing if they are not asked for."""

    @property
    @abstractmethod
    def _query_hooks(self) -> Collection[str]:
        """Hook points at which queries can be silenced."""

    def _pattern(self, layer: int) -> str:
        return f"blocks.{layer}.attn.hook_pattern"

    def visible(self, layer: int, n_pos: int) -> Bool[Tensor, "query key"]:
        """Where the layer pays attention once its queries are zero, so that it has no preferences.

        Configs name windows, chunks and local layers in too many ways to trust a reading of them.
        """
        if n_pos not in self._visibility:
            self._visibility[n_pos] = self._measured_visibility(n_pos)
        return self._visibility[n_pos][layer]

    def _measured_visibility(self, n_pos: int) -> dict[int, Tensor]:
        visible: dict[int, Tensor] = {}
        queries, keys = torch.ones(n_pos, n_pos).nonzero(as_tuple=True)

        def read(layer: int, entries: Entries) -> None:
            paid = entries(queries, keys) > 0
            visible[layer] = paid.any(0).any(0).view(n_pos, n_pos).cpu()

        def silence(query: Tensor, hook: Any) -> Tensor:
            return torch.zeros_like(query)

        tokens = torch.full((1, n_pos), self._ordinary_token)
        with apart(), without_hooks(self.model):
            self.read_attention(tokens, read, hooks=[(name, silence) for name in self._query_hooks])
        return visible

    @property
    def _ordinary_token(self) -> int:
        """One that no model masks out, as some do with padding."""
        config = getattr(self.model.original_model, "config", None)
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        special = {*self.special_tokens, *(getattr(config, name, None) for name in names)}
        return next(token for token in range(self.d_vocab) if token not in special)

    def held_patterns(self, layer: int, pattern: Scores) -> list[Hook]:
        """The pattern, put in."""

        def at_pattern(found: Scores, hook: Any) -> Scores:
            return pattern.repeat(len(found) // len(pattern), 1, 1, 1)

        return [(self._pattern(layer), at_pattern)]

    def logits(self, tokens: Tokens) -> Logits:
        """The model's logits."""
        with undisturbed(self.model):
            return self._run(tokens, (), "logits")

    def outputs(
        self,
        tokens: Tokens,
        *,
        positions: Sequence[int] | None = None,
        start: Start | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Outputs:
        """From the logits; those of other positions are not computed."""

        def cut(stream: Stream, hook: Any) -> Tensor:
            return at_positions(stream, positions)

        at = "unembed.hook_in"
        cuts = [(at, cut)] if positions is not None and at in self.hooks else []
        with self.running():
            asked = "logits" if self.predicts else None
            logits = self._run_from(tokens, [*hooks, *cuts], asked, start)
        if not self.predicts:
            return NoOutputs(self.name)
        return OutputsOfLogits(logits if cuts else at_positions(logits, positions))

    def _place(self, tokens: Tokens) -> Tokens:
        return tokens.to(next(self.model.parameters()).device)

    def _run_with_read_hooks(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        read: ReadEntries,
        start: Start | None,
        hooks: Sequence[Hook],
    ) -> None:
        silent = {layer: self.heads[layer] for layer in layers}

        def at_pattern(layer: int, pattern: Scores) -> None:
            self._check_pattern(layer, silent.pop(layer), pattern)
            self._refuse_silence([lower for lower in silent if lower < layer])
            read(layer, entries_of(pattern))

        def read_hook(layer: int) -> ReadHook:
            return self._pattern(layer), lambda pattern, hook: at_pattern(layer, pattern)

        read_hooks = [read_hook(layer) for layer in layers]
        self._run_from(tokens, [*hooks, *read_hooks], None, start)
        self._refuse_silence(list(silent))

    def _check_pattern(self, layer: int, n_heads: int, pattern: Scores) -> None:
        if pattern.shape[1] != n_heads:
            raise ValueError(
                f"{self.name}: layer {layer} has {pattern.shape[1]} heads, but cfg.n_heads is "
                f"{n_heads}; bridges whose layers differ in heads cannot be scored"
            )

    def _refuse_silence(self, layers: list[int]) -> None:
        if layers:
            raise NotComputedError(
                f"{self.name}: the attention patterns of layers {layers} were not computed; load "
                'the Hugging Face model with attn_implementation="eager"'
            )

    def _silence(self, names: Sequence[str]) -> str:
        message = super()._silence(names)
        if not any(name.endswith(("pattern", "attn_scores")) for name in names):
            return message
        return f'{message}; load the Hugging Face model with attn_implementation="eager"'
