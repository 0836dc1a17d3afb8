"""One pair of lags taken out of a head's scores: does the head still do its work?"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.maps.routes import ours, place_of
from interp.analysis.maps.scales import names_for
from interp.analysis.maps.splits import Split, check_reads_back, routes
from interp.models.shapes import KeyMask, Scores

Hooks = list[tuple[str, Callable[..., Tensor | None]]]


def without_lag_pair(model: Any, head: str, pair: tuple[int, int]) -> Hooks:
    """Hooks under which a head's scores lack what one pair of a query lag and a key lag adds.

    Exactly that part is subtracted at `hook_attn_scores`, the norms frozen at the scales of the run
    itself; constants stay. Anything can be measured under them. Hooks of several heads or pairs can
    be put together.

    Args:
        model: an interp model.
        head: "L1H3".
        pair: the query lag and the key lag; (0, 1) is where an induction head above a convolution
            matches the current token with the token before the key.

    Returns:
        `fwd_hooks` for `model.run_with_hooks`, or for `model.hooks(fwd_hooks=...)`.

    Raises:
        TypeError: not an interp model.
        ValueError: no such head, a head that reads no earlier token, or a lag that it has not.

    >>> from interp.analysis import induction_score
    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=64)
    >>> with model.hooks(fwd_hooks=without_lag_pair(model, "L1H3", (0, 1))):
    ...     scores = induction_score(model, n=20, n_sequences=4)
    """
    model = ours(model)
    layer, index = place_of(model, head)
    ways, attn = routes(model, head), model.attn(layer)
    check_reads_back(model, ways)
    query_lag, key_lag = pair
    for name, lag, way in (("query", query_lag, ways["q"]), ("key", key_lag, ways["k"])):
        if not 0 <= lag < way.lags:
            raise ValueError(
                f"pair is {pair!r}, but the {name} lags of {head} are 0 to {way.lags - 1}"
            )
    heard: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        heard[hook.name] = activation.to(torch.promote_types(activation.dtype, torch.float32))

    def subtract(scores: Scores, hook: Any) -> Scores:
        real = real_keys(scores[:, index])
        q, k = (Split.of(ways[channel], attn, heard, real) for channel in ("q", "k"))
        heard.clear()
        part = torch.einsum("bqd,bkd->bqk", q.terms[:, :, query_lag], k.terms[:, :, key_lag])
        changed = scores.clone()
        changed[:, index] -= (part * attn.scale).to(scores)
        return changed

    listeners: Hooks = [(name, keep) for name in names_for(ways["q"])]
    return [*listeners, (f"blocks.{layer}.attn.hook_attn_scores", subtract)]


def real_keys(scores: Float[Tensor, "batch query key"]) -> KeyMask | None:
    """Which keys are no padding: padding is hidden from the last query too, the future is not."""
    real = scores[:, -1].isfinite()
    return None if real.all() else real
