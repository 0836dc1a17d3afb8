"""What a model is measured on, and how a result says so."""

from collections.abc import Iterable
from typing import Any

from interp.analysis.result import versions
from interp.analysis.sequences import RepeatedTokens, repeated_tokens
from interp.models.protocol import View
from interp.models.shapes import Tokens


def probe_for(
    seen: View,
    n: int,
    n_sequences: int,
    seed: int,
    *,
    copies: int = 2,
    exclude: Iterable[int] = (),
) -> RepeatedTokens:
    """Repeated random tokens that fit a model: with its BOS, and without its special tokens."""
    return repeated_tokens(
        n,
        d_vocab=seen.d_vocab,
        bos=seen.bos,
        exclude=(*seen.special_tokens, *exclude),
        copies=copies,
        n_sequences=n_sequences,
        n_ctx=seen.n_ctx,
        seed=seed,
    )


def origin_of(seen: View, probe: RepeatedTokens) -> dict[str, Any]:
    """The provenance of a measurement on repeated random tokens."""
    return {
        "model": seen.name,
        "n": probe.n,
        "copies": probe.copies,
        "random_tokens": "with replacement" if probe.with_replacement else "distinct",
        "bos": seen.bos,
        "seed": probe.seed,
        "versions": versions(),
    }


def handed_in(seen: View, tokens: Tokens) -> dict[str, Any]:
    """The provenance of a measurement on the caller's tokens."""
    return {
        "model": seen.name,
        "tokens": "handed in",
        "length": tokens.shape[1],
        "versions": versions(),
    }
