"""Interventions one at a time, in the plainest way: one full forward each, one hook each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.models import HookedSequenceModel

Hook = tuple[str, Callable[[Tensor, Any], Tensor]]


def tokens_for(model: HookedSequenceModel, n_sequences: int = 4, n_pos: int = 13, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.d_vocab, (n_sequences, n_pos), generator=generator)


@torch.no_grad()
def logits_under(model: Any, tokens: Tensor, *hooks: Hook) -> Tensor:
    return model.run_with_hooks(tokens, fwd_hooks=list(hooks)).double()


def token_losses(logits: Tensor, tokens: Tensor) -> np.ndarray:
    """Minus the log-probability of each next token, written out: [batch pos-1]."""
    log_probabilities = logits - logits.exp().sum(-1, keepdim=True).log()
    return np.array(
        [
            [-float(log_probabilities[b, t, tokens[b, t + 1]]) for t in range(tokens.shape[1] - 1)]
            for b in range(len(tokens))
        ]
    )


def effect(model: Any, tokens: Tensor, *hooks: Hook) -> np.ndarray:
    """Each sequence's mean loss under hooks, minus that without."""
    clean = token_losses(logits_under(model, tokens), tokens)
    return (token_losses(logits_under(model, tokens, *hooks), tokens) - clean).mean(1)


@torch.no_grad()
def activations(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    return {**model.run_with_cache(tokens)[1]}


def put(name: str, where: tuple, value: Tensor | float) -> Hook:
    """Writes a value over a part, indexed batch and all; a copy is changed."""

    def write(activation: Tensor, hook: Any) -> Tensor:
        new = activation.clone()
        new[where] = value[where] if isinstance(value, Tensor) else value
        return new

    return name, write


def head(layer: int, index: int, value: Tensor | float = 0.0) -> Hook:
    """What one head writes to the stream, by `hook_result`."""
    return put(f"blocks.{layer}.attn.hook_result", (slice(None), slice(None), index), value)


def held_patterns(cache: dict[str, Tensor]) -> list[Hook]:
    names = [name for name in cache if name.endswith("attn.hook_pattern")]
    return [put(name, (slice(None),), cache[name]) for name in names]
