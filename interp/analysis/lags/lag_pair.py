"""One pair of lags taken out of a head's scores, or another sequence's in its place: a control."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.head_maps import head_maps
from interp.analysis.circuits.reads import activations
from interp.analysis.lags.lag_circuits import Split, check_reads_back
from interp.models.shapes import KeyMask, Scores, Tokens
from interp.views import view

Hooks = list[tuple[str, Callable[..., Tensor | None]]]


def without_lag_pair(
    model: Any, head: str, pair: tuple[int, int], of: Tokens | None = None
) -> Hooks:
    """Hooks under which a head's scores lack what one pair of a query lag and a key lag adds.

    For the pair (i, j) what is subtracted at `hook_attn_scores` is

        part[t, s] = x_{t-i} Q_i K_jᵀ x_{s-j}ᵀ · scale

    with x the stream that enters the head's convolution, Q_i and K_j its maps from there, and the
    norms in them frozen at the scales of the run itself; constants stay. Anything can be measured
    under these hooks, and those of several heads or pairs can be put together.

    Is it more than a disturbance of that size would do? With `of`, x is the stream of these other
    sequences: the same part of the same head, for tokens that are not there. That is the control
    to show beside the removal. It only is one if what the head matches stands elsewhere in these
    sequences than in those that are run: every sequence that repeats itself after n tokens has its
    matches at the same places, and its part takes away what the removal does.

    Some removals are decided by algebra. On distinct random tokens, written twice, only (0, 1)
    tells a model of one attention layer over two lags, without positions, the place after a
    token's first occurrence from those that follow it. Without that pair the induction score is
    what any of these places gets, trained or not: a check of the hooks, and no finding.

    Args:
        model: an interp model.
        head: "L1H3".
        pair: the query lag and the key lag; (0, 1) is where an induction head above a convolution
            matches the current token with the token before the key.
        of: other sequences `[batch pos]` whose part is subtracted instead, of as many positions as
            those that are run. Row b of a batch lacks the part of row b of these, counted round
            again where the batch is larger.

    Returns:
        `fwd_hooks` for `model.run_with_hooks`, or for `model.hooks(fwd_hooks=...)`.

    Raises:
        TypeError: another library's model, whose convolutions cannot be read yet.
        ValueError: no such head, a head that reads no earlier token, or a lag that it has not;
            other sequences that the model cannot read or, when it runs, of another length.

    >>> from interp.analysis import induction_score
    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=64)
    >>> with model.hooks(fwd_hooks=without_lag_pair(model, "L1H3", (0, 1))):
    ...     scores = induction_score(model, n=20, n_sequences=4)
    >>> other = torch.randint(100, (4, 41))
    >>> with model.hooks(fwd_hooks=without_lag_pair(model, "L1H3", (0, 1), of=other)):
    ...     control = induction_score(model, n=20, n_sequences=4)
    """
    viewed = view(model)
    maps = head_maps(viewed, [head], past_mlps=True)[head]
    ways, attending, index = maps.routes, maps.attending, maps.index
    check_reads_back(maps)
    query_lag, key_lag = pair
    for name, lag, way in (("query", query_lag, ways["q"]), ("key", key_lag, ways["k"])):
        if not 0 <= lag < way.lags:
            raise ValueError(
                f"pair is {pair!r}, but the {name} lags of {head} are 0 to {way.lags - 1}"
            )
    names, site = maps.hooks, attending.scores

    def ends(captured: Mapping[str, Tensor], real: KeyMask | None) -> tuple[Tensor, Tensor]:
        """The pair's term of every query and of every key, `[batch pos d_head]`."""
        q, k = (Split.of(ways[channel], attending, captured, real) for channel in ("q", "k"))
        return q.terms[:, :, query_lag], k.terms[:, :, key_lag]

    def less(scores: Scores, q: Tensor, k: Tensor) -> Scores:
        changed = scores.clone()
        changed[:, index] -= (torch.einsum("bqd,bkd->bqk", q, k) * attending.scale).to(scores)
        return changed

    if of is not None:
        viewed.check_tokens(of, at_least=1)
        others, n_pos = ends(activations(viewed, of, names), None), of.shape[1]

        def subtract_other(scores: Scores, hook: Any) -> Scores:
            if scores.shape[-1] != n_pos:
                raise ValueError(
                    f"the sequences that are run have {scores.shape[-1]} positions, those whose "
                    f"part is subtracted {n_pos}; give `of` as many"
                )
            rows = torch.arange(len(scores)) % len(of)
            return less(scores, *(end[rows] for end in others))

        return [(site, subtract_other)]

    captured: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        captured[hook.name] = activation.to(torch.promote_types(activation.dtype, torch.float32))

    def subtract(scores: Scores, hook: Any) -> Scores:
        own = ends(captured, real_keys(scores[:, index]))
        captured.clear()
        return less(scores, *own)

    return [*((name, keep) for name in names), (site, subtract)]


def real_keys(scores: Float[Tensor, "batch query key"]) -> KeyMask | None:
    """Which keys are no padding: padding is hidden from the last query too, the future is not."""
    real = scores[:, -1].isfinite()
    return None if real.all() else real
