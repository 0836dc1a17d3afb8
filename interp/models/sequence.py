"""HookedSequenceModel: tokens to logits through a residual stream that anyone can listen to."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.utilities.slice import Slice

from interp.models.build import build_blocks, build_norm, build_positions, initialise
from interp.models.cache import ActivationCache
from interp.models.checks import require_choice
from interp.models.config import ModelConfig
from interp.models.embedding import Embed, TiedUnembed, Unembed
from interp.models.folding import fold_norms
from interp.models.hooks import HookPoint, nearest
from interp.models.hub import HubMixin
from interp.models.lens_config import LensConfig
from interp.models.shapes import KeyMask, Logits, Positions, Stream, Tokens
from interp.models.text import TextMixin
from interp.models.weights import WeightsMixin

ReturnType = Literal["logits", "loss", "both"]


class HookedSequenceModel(HubMixin, TextMixin, WeightsMixin, HookedRootModule):
    """Any model that a `ModelConfig` describes, with a hook point on everything worth hearing.

    >>> import torch
    >>> from interp.models import Attention, Conv, ModelConfig
    >>> layers = (Conv(lags=2), Attention(n_heads=4, d_head=8))
    >>> model = HookedSequenceModel(ModelConfig(d_vocab=50, d_model=32, n_ctx=16, layers=layers))
    >>> logits, cache = model.run_with_cache(torch.randint(50, (2, 10)))
    >>> logits.shape, cache["pattern", 1].shape
    (torch.Size([2, 10, 50]), torch.Size([2, 4, 10, 10]))

    Args:
        config: sizes and layers.
        seed: of the initial weights; the global random state is neither read nor written.
        tokenizer: a `PreTrainedTokenizerFast`, for the methods that take or give text.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, tokenizer: Any = None):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.embed = Embed(config.d_vocab, config.d_model)
        self.hook_embed = HookPoint()
        self.pos_embed = build_positions(config)
        if self.pos_embed is not None:
            self.hook_pos_embed = HookPoint()
        self.positions_enter_stream = config.positions != "shortformer"
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(build_blocks(config))
        self.ln_final = nn.Identity() if config.norm_place == "post" else build_norm(config)
        if config.tied:
            self.unembed = TiedUnembed(self.embed, config.unembed_bias)
        else:
            self.unembed = Unembed(config.d_model, config.d_vocab, config.unembed_bias)
        initialise(self, config, seed)
        self.setup()

    @classmethod
    def from_config(cls, config: ModelConfig, *, seed: int = 0, tokenizer: Any = None) -> Self:
        """A fresh model of this class for any config, its preset's defaults ignored."""
        model = cls.__new__(cls)
        HookedSequenceModel.__init__(model, config, seed=seed, tokenizer=tokenizer)
        return model

    @property
    def cfg(self) -> LensConfig:
        """The facts that TransformerLens's tools ask a model for."""
        return LensConfig.of(self.config, self.embed.W_E)

    def forward(
        self,
        tokens: Tokens | str | Sequence[str],
        return_type: ReturnType = "logits",
        *,
        loss_per_token: bool = False,
        attention_mask: Shaped[Tensor, "batch pos"] | None = None,
        stop_at_layer: int | None = None,
    ) -> Any:
        """Logits, the next-token loss, or both.

        Args:
            tokens: `[batch pos]`, or text if the model has a tokenizer; texts of several lengths
                are padded, and their padding is masked.
            return_type: "logits" `[batch pos vocab]`, "loss" (nats, a scalar), or "both" as a pair.
            loss_per_token: give the loss as `[batch pos-1]`, one per predicted token; 0 where that
                is padding.
            attention_mask: 1 or True for real tokens, 0 or False for padding, which is never
                attended to.
            stop_at_layer: return the stream `[batch pos d_model]` before this block instead;
                nothing later is computed.

        Raises:
            ValueError: a wrong return type, tokens outside the vocabulary or longer than n_ctx, a
                mask of another shape, a loss of a single token.
        """
        tokens, key_mask = self._check_input(tokens, return_type, attention_mask)
        stream = self._stream(tokens, key_mask, self._check_layer(stop_at_layer))
        if stop_at_layer is not None:
            return stream
        logits = self.unembed(self.ln_final(stream))
        if return_type == "logits":
            return logits
        loss = next_token_loss(logits, tokens, key_mask, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def _stream(self, tokens: Tokens, key_mask: KeyMask | None, stop: int) -> Stream:
        stream, positions = self._embed(tokens)
        for block in self.blocks[:stop]:
            stream = block(stream, positions, key_mask)
        return stream

    def _embed(self, tokens: Tokens) -> tuple[Stream, Stream | None]:
        embed = self.hook_embed(self.embed(tokens))
        if self.pos_embed is None:
            return self.dropout(embed), None
        row: Positions = self.pos_embed(tokens.shape[1])
        positions = self.hook_pos_embed(row.expand_as(embed))
        if self.positions_enter_stream:
            return self.dropout(embed + positions), None
        return self.dropout(embed), positions

    def _check_input(
        self, tokens: Any, return_type: str, attention_mask: Tensor | None
    ) -> tuple[Tokens, KeyMask | None]:
        require_choice("return_type", return_type, ReturnType)
        if not isinstance(tokens, Tensor):
            tokens, padding = self._encode(tokens)
            attention_mask = padding if attention_mask is None else attention_mask
        self._check_tokens(tokens, needs_target=return_type != "logits")
        tokens = tokens.to(self.embed.W_E.device, torch.long)
        if attention_mask is None:
            return tokens, None
        if attention_mask.shape != tokens.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but tokens have "
                f"{tuple(tokens.shape)}; give one mask entry per token"
            )
        return tokens, attention_mask.to(tokens.device).bool()

    def _check_tokens(self, tokens: Tensor, needs_target: bool) -> None:
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ValueError(
                f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, but must be whole "
                "numbers of shape [batch, pos]; add a batch dimension with tokens[None]"
            )
        n_pos, n_ctx = tokens.shape[1], self.config.n_ctx
        if not 1 <= n_pos <= n_ctx or tokens.shape[0] == 0:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}, but the model reads at least one "
                f"sequence of 1 to n_ctx={n_ctx} tokens; cut the sequence or make a model with a "
                "longer context"
            )
        if needs_target and n_pos == 1:
            raise ValueError(
                "a loss needs a next token, but the sequence has 1 token; give 2 or more"
            )
        # Looking at the values would stall a GPU and break a compiled graph; there PyTorch's own
        # check has to do.
        if not torch.compiler.is_compiling() and tokens.device.type == "cpu":
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.config.d_vocab:
                raise ValueError(
                    f"token {low if low < 0 else high} is outside the vocabulary of "
                    f"{self.config.d_vocab}; was the text tokenized with another model's tokenizer?"
                )

    def _check_layer(self, stop_at_layer: int | None) -> int:
        n_layers = len(self.blocks)
        if stop_at_layer is None:
            return n_layers
        if not 0 <= stop_at_layer <= n_layers:
            raise ValueError(
                f"stop_at_layer is {stop_at_layer}, but the model has layers 0 to {n_layers - 1}; "
                f"give 0 to {n_layers}"
            )
        return stop_at_layer

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, ActivationCache]:
        """What `forward` returns, and every activation that `names_filter` asks for (default: all).

        Takes TransformerLens's arguments: `names_filter`, `device`, `remove_batch_dim`, `incl_bwd`,
        `pos_slice`.
        """
        if isinstance(names := kwargs.get("names_filter"), str):
            self._check_hook_name(names)
        elif isinstance(names, list):
            for name in names:
                self._check_hook_name(name)
        out, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        cache = ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        cache.cuts_positions = Slice.unwrap(kwargs.get("pos_slice")).mode != "identity"
        return out, cache

    def get_caching_hooks(self, *args: Any, pos_slice: Any = None, **kwargs: Any) -> Any:
        """As in TransformerLens, but the position axis is each hook point's own (`pos_dim`).

        TransformerLens guesses it from the hook's name, and would cut the heads of a smeared or
        rotated key.
        """
        cache, forward_hooks, backward_hooks = super().get_caching_hooks(*args, **kwargs)
        cut = Slice.unwrap(pos_slice)
        if cut.mode == "identity" or cut.slice is None:
            return cache, forward_hooks, backward_hooks

        def cut_positions(_: Tensor, hook: HookPoint) -> None:
            cache[hook.name] = cut.apply(cache[hook.name], dim=cast(int, hook.pos_dim))

        with_cuts = [
            pair for name, save in forward_hooks for pair in ((name, save), (name, cut_positions))
        ]
        return cache, with_cuts, backward_hooks

    def add_hook(self, name: str | Callable[[str], bool], *args: Any, **kwargs: Any) -> None:
        """TransformerLens's `add_hook`; an unknown name is an error that suggests the nearest."""
        if isinstance(name, str):
            self._check_hook_name(name)
        super().add_hook(name, *args, **kwargs)

    def _enable_hook_with_name(
        self,
        name: str,
        hook: Any,
        dir: Literal["fwd", "bwd"],  # noqa: A002 TransformerLens's name
    ) -> None:
        self._check_hook_name(name)
        super()._enable_hook_with_name(name, hook, dir)

    def _check_hook_name(self, name: str) -> None:
        if name not in self.hook_dict:
            raise ValueError(
                f"{name!r} is no hook point of this model{nearest(name, self.hook_dict)}"
            )

    def fold_norms(self) -> Self:
        """The equal model whose norms have gain 1 and offset 0, folded into the maps they feed."""
        return fold_norms(self, partial(self.from_config, tokenizer=self.tokenizer))


def next_token_loss(
    logits: Logits, tokens: Tokens, key_mask: KeyMask | None, per_token: bool
) -> Float[Tensor, "..."]:
    """Cross-entropy in nats of each token given those before it; the mean is over real tokens."""
    targets = tokens[:, 1:]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none")
    loss = loss.view(targets.shape)
    if key_mask is None:
        return loss if per_token else loss.mean()
    real = key_mask[:, 1:] & key_mask[:, :-1]
    loss = loss * real
    return loss if per_token else loss.sum() / real.sum().clamp(min=1)
