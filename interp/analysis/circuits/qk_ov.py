"""One head's circuits, from the weights: which key a query attends to, and what that writes."""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.factored import Circuit, Side
from interp.analysis.circuits.head_maps import HeadMaps, at_distance, check_distance, head_maps
from interp.analysis.circuits.reads import HeadReads, Reads, read_heads
from interp.models.checks import require_choice
from interp.models.linear import wide
from interp.models.shapes import Tokens
from interp.results.result import versions
from interp.views import View, view

QKBasis = Literal["residual", "vocabulary", "positions"]
OVBasis = Literal["residual", "vocabulary"]
DIRECTION = "direction"


def qk_circuit(
    model: Any,
    head: str,
    *,
    basis: QKBasis = "residual",
    lags: tuple[int, int] = (0, 0),
    distance: int = 0,
    tokens: Tokens | None = None,
) -> Circuit:
    """Which key does a query attend to? The head's W_Q W_Kᵀ, in one of three bases.

    * `residual`: W_QK, between directions of the stream.
    * `vocabulary`: W_E W_QK W_Eᵀ, between query tokens and key tokens.
    * `positions`: W_pos W_QK W_posᵀ, between query positions and key positions; those of keys after
      the query too, though a causal head never sees them.

    An entry is a part of the attention score before it is divided by √d_head. Above convolutions,
    and for smeared keys, the head reads several tokens through a map each: `lags=(i, j)` is the
    circuit between the token i before the query and the token j before the key. An induction head
    of conv-attn matches tokens at (0, 1). The norms' gains and centring are folded in. Their scales
    depend on the input: mean scales stand for them where the stream is the embedding's or tokens
    are given; else they are a common factor, and left out. So are biases. The provenance says
    which.

    Args:
        model: one of ours, or a `TransformerBridge`.
        head: "L1H3".
        basis: see above.
        lags: how far before the query, and before the key, the tokens are.
        distance: from key to query. With rotary positions the circuit depends on it.
        tokens: `[batch pos]`, to measure the mean scales on.

    Returns:
        A `FactoredMatrix` with `top_pairs`, `diagonal_preference` and `subset`.

    Raises:
        ValueError: no such head, basis, lag or distance; a weight that is NaN; tokens or positions
            that do not reach the head directly; or a scale that cannot be known without tokens.

    Source: Elhage et al. 2021; the lags are ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> circuit = qk_circuit(model, "L1H3", basis="vocabulary", lags=(0, 1))
    >>> circuit.shape, list(circuit.top_pairs(2))
    (torch.Size([100, 100]), ['query_token', 'key_token', 'query_id', 'key_id', 'value'])
    """
    require_choice("basis", basis, QKBasis)
    if not isinstance(lags, tuple | list) or len(lags) != 2:
        raise ValueError(
            f"lags is {lags!r}, but must be two: how far before the query, and before the key, the "
            "tokens are, such as (0, 1)"
        )
    viewed = view(model)
    maps = head_maps(viewed, [head])[head]
    check_distance(viewed, [maps], distance)
    table, kind = None, DIRECTION
    if basis == "vocabulary":
        maps.check_embedding()
        table, kind = wide(viewed.embedding), "token"
    elif basis == "positions":
        table, kind = maps.check_positions(), "position"
    viewed.check_finite()
    read = read_heads([maps], tokens)[head]
    if basis == "positions" and not viewed.positions_enter_stream:
        read = _of_added_positions(maps, read)
    query, key = maps.turned(_at(read["q"], lags[0]), distance), _at(read["k"], lags[1])
    reads = None if table is None else (table, key)
    A, B = (query, key) if table is None else (table @ query, table @ key)
    return Circuit(
        A,
        B.T,
        name="qk_circuit",
        rows=_side("query", kind, viewed),
        columns=_side("key", kind, viewed, reads),
        unit="unscaled attention score",
        provenance={
            **_origin(maps, basis, read, "qk"),
            "query_lag": lags[0],
            "key_lag": lags[1],
            **at_distance([maps], distance),
        },
    )


def ov_circuit(
    model: Any,
    head: str,
    *,
    basis: OVBasis = "residual",
    lag: int = 0,
    tokens: Tokens | None = None,
) -> Circuit:
    """What is written when a token is attended to? The head's W_V W_O, in one of two bases.

    * `residual`: W_OV, between directions of the stream.
    * `vocabulary`: W_E W_OV W_U, from the attended token to what every token's logit gains by the
      direct way, the last norm's gain and centring folded in and its scale left out.

    Above convolutions, `lag=j` is the circuit of the token j before the attended position. What
    holds of norms, scales and biases in `qk_circuit` holds here too.

    Args:
        model: one of ours, or a `TransformerBridge`.
        head: "L1H3".
        basis: see above.
        lag: how far before the attended position the token is.
        tokens: `[batch pos]`, to measure the mean scales on.

    Returns:
        A `FactoredMatrix` with `top_pairs`, `diagonal_preference` and `subset`.

    Raises:
        ValueError: as `qk_circuit`; or the unembedding does not read what the head writes.

    Source: Elhage et al. 2021; the lags are ours.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> ov_circuit(model, "L0H3", basis="vocabulary").subset([3, 14], [15]).values.shape
    (2, 1)
    """
    require_choice("basis", basis, OVBasis)
    viewed = view(model)
    maps = head_maps(viewed, [head])[head]
    kind, reads = DIRECTION, None
    if basis == "vocabulary":
        maps.check_embedding()
        maps.check_output()
    viewed.check_finite()
    read = read_heads([maps], tokens)[head]
    A, B = _at(read["v"], lag), maps.output
    if basis == "vocabulary":
        A, kind, last = wide(viewed.embedding) @ A, "token", viewed.last_norm
        reads = (wide(viewed.unembedding[0]).T, (B if last is None else last.behind(B)).T)
        B = (reads[0] @ reads[1]).T
    return Circuit(
        A,
        B,
        name="ov_circuit",
        rows=_side("source", kind, viewed),
        columns=_side("predicted", kind, viewed, reads),
        unit="unscaled logit" if kind == "token" else "",
        provenance={**_origin(maps, basis, read, "v"), "value_lag": lag},
    )


def _at(read: Reads, lag: int) -> Float[Tensor, "d_model d_head"]:
    if not 0 <= operator.index(lag) < read.lags:
        names = {"q": "queries", "k": "keys", "v": "values"}[read.channel]
        there = (
            "the current token alone, which is lag 0"
            if read.lags == 1
            else f"lags 0 to {read.lags - 1}, the current token being lag 0"
        )
        raise ValueError(
            f"lag {lag} does not exist: the {names} of {read.head} read {there}. Convolutions "
            "directly below a head give it lags, and smearing its keys"
        )
    return read.maps[lag]


def _of_added_positions(maps: HeadMaps, read: HeadReads) -> HeadReads:
    """Positions that are added to queries and keys come after convolutions and norms."""

    def past(one: Reads) -> Reads:
        way = maps.routes[one.channel].past_the_norm()
        return replace(one, maps=way.maps({}), scales={}, scales_from="no norm")

    return {channel: past(one) for channel, one in read.items()}


def _left_out(maps: HeadMaps, read: HeadReads, channels: str) -> list[str]:
    """What the circuits of these channels leave out, by name; "v" goes on to the logits."""
    if not all(way.end.has_constants for way in maps.routes.values()):
        return ["all biases", *(maps.unmapped if "v" in channels else ())]
    names = {name for c, one in read.items() if c in channels for name in one.constants}
    if "v" in channels:
        last, (_, b_U) = maps.viewed.last_norm, maps.viewed.unembedding
        names.update(maps.sublayer.constants())
        names.update(maps.unmapped)
        names.update(["unembed.b_U"] if b_U is not None else [])
        names.update([f"{last.name}.b"] if last is not None and last.offset is not None else [])
    return sorted(names)


def _origin(maps: HeadMaps, basis: str, read: HeadReads, channels: str) -> dict[str, Any]:
    positions = "pos_embed.W_pos" if basis == "positions" else None
    return {
        "model": maps.viewed.name,
        "head": maps.label,
        "basis": basis,
        "folded_in": "gains and centring of norms",
        "scales": read["q"].scales_from,
        "left_out": [name for name in _left_out(maps, read, channels) if name != positions],
        "versions": versions(),
    }


def _side(role: str, kind: str, viewed: View, reads: tuple[Tensor, Tensor] | None = None) -> Side:
    if kind != "token":
        return Side(role, kind, reads=reads)
    find = None if viewed.tokenizer is None else _finder(viewed.tokenizer)
    return Side(role, kind, viewed.words, find, reads)


def _finder(tokenizer: Any) -> Callable[[str], int]:
    def find(text: str) -> int:
        numbers = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(numbers) != 1:
            parts = [tokenizer.decode([number]) for number in numbers]
            raise ValueError(f"{text!r} is {len(numbers)} tokens, {parts}, but must be exactly one")
        return numbers[0]

    return find
