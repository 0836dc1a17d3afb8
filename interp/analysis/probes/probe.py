"""What a model is measured on, and how a result says so."""

from collections.abc import Iterable
from typing import Any

from interp.analysis.probes.sequences import RepeatedTokens, repeated_tokens
from interp.models.shapes import Tokens
from interp.results.result import versions
from interp.results.sampling import Sampling
from interp.views import View

TAKEN_AS_INDEPENDENT = "taken as independent"


def probe_for(
    viewed: View,
    n: int,
    n_sequences: int,
    seed: int,
    *,
    copies: int = 2,
    exclude: Iterable[int] = (),
) -> RepeatedTokens:
    """Repeated random tokens that fit a model: with its BOS, and without its special tokens.

    For a bidirectional model with the tokens that it was trained to find around a text:
    `[CLS] + r + r + [SEP]`.
    """
    return repeated_tokens(
        n,
        d_vocab=viewed.d_vocab,
        bos=viewed.bos,
        sep=viewed.separator,
        exclude=(*viewed.special_tokens, *exclude),
        copies=copies,
        n_sequences=n_sequences,
        n_ctx=viewed.n_ctx,
        seed=seed,
    )


def origin_of(viewed: View, probe: RepeatedTokens) -> dict[str, Any]:
    """The provenance of a measurement on repeated random tokens."""
    return {
        "model": viewed.name,
        "n": probe.n,
        "copies": probe.copies,
        "random_tokens": "with replacement" if probe.with_replacement else "distinct",
        "bos": viewed.bos,
        **({} if viewed.separator is None else {"sep": viewed.separator}),
        "seed": probe.seed,
        "versions": versions(),
    }


def check_one_sequence(
    viewed: View, tokens: Tokens, longest: int, what: str, also: str = ""
) -> None:
    """Refuse several sequences, and one too long for `what` is made of it, before any work."""
    viewed.check_tokens(tokens, at_least=1)
    if tokens.shape[0] != 1 or tokens.shape[1] > longest:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}, but {what} of one sequence of at most "
            f"{longest} tokens; give tokens[:1, :{longest}]{also}"
        )


def handed_in(viewed: View, tokens: Tokens, sampling: Sampling | None = None) -> dict[str, Any]:
    """The provenance of a measurement on the caller's tokens.

    With the sampling of several sequences it says what the errors are over, in plain words where
    nobody said which sequences belong together.
    """
    origin = {
        "model": viewed.name,
        "tokens": "handed in",
        "length": tokens.shape[1],
        "versions": versions(),
    }
    if sampling is None:
        return origin
    if not sampling.grouped and len(tokens) > 1:
        origin["sequences"] = TAKEN_AS_INDEPENDENT
    return {**origin, **sampling.origin}
