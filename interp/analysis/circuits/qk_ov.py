"""One head's circuits, from the weights: which key a query attends to, and what that writes."""

import operator
from collections.abc import Callable
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.bridge_maps import folded as folded_maps
from interp.analysis.circuits.factored import Circuit, Side
from interp.analysis.circuits.head_maps import Folded
from interp.analysis.circuits.reads import HeadReads, Reads
from interp.models.shapes import Tokens
from interp.results.result import versions
from interp.views import View

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
            that do not reach the head directly; or a scale that cannot be told without tokens.

    Source: Elhage et al. 2021; the lags are ours.

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16)
    >>> circuit = qk_circuit(model, "L1H3", basis="vocabulary", lags=(0, 1))
    >>> circuit.shape, list(circuit.top_pairs(2))
    (torch.Size([100, 100]), ['query_token', 'key_token', 'query_id', 'key_id', 'value'])
    """
    _check_basis(basis, QKBasis)
    if not isinstance(lags, tuple | list) or len(lags) != 2:
        raise ValueError(
            f"lags is {lags!r}, but must be two: how far before the query, and before the key, the "
            "tokens are, such as (0, 1)"
        )
    folded = folded_maps(model)
    layer, _ = folded.place(head)
    turn = folded.rotation(layer, distance)
    table, kind = None, DIRECTION
    if basis == "vocabulary":
        folded.check_embedding(head)
        table, kind = folded.embedding(), "token"
    elif basis == "positions":
        table, kind = folded.position_table(head), "position"
    folded.seen.check_finite()
    read = folded.read(head, tokens)
    if basis == "positions":
        read = folded.position_reads(read)
    query, key = _at(read["q"], lags[0]), _at(read["k"], lags[1])
    query = query if turn is None else query @ turn
    reads = None if table is None else (table, key)
    A, B = (query, key) if table is None else (table @ query, table @ key)
    return Circuit(
        A,
        B.T,
        name="qk_circuit",
        rows=_side("query", kind, folded.seen),
        columns=_side("key", kind, folded.seen, reads),
        unit="unscaled attention score",
        provenance={
            **_origin(folded, head, basis, read, "qk"),
            "query_lag": lags[0],
            "key_lag": lags[1],
            **folded.at(distance),
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
    _check_basis(basis, OVBasis)
    folded = folded_maps(model)
    layer, index = folded.place(head)
    kind, reads = DIRECTION, None
    if basis == "vocabulary":
        folded.check_embedding(head)
        folded.check_output(layer)
    folded.seen.check_finite()
    read = folded.read(head, tokens)
    A, B = _at(read["v"], lag), folded.outputs(layer)[index]
    if basis == "vocabulary":
        A, kind = folded.embedding() @ A, "token"
        reads = (folded.unembedding().T, folded.last_norm().behind(B).T)
        B = (reads[0] @ reads[1]).T
    return Circuit(
        A,
        B,
        name="ov_circuit",
        rows=_side("source", kind, folded.seen),
        columns=_side("predicted", kind, folded.seen, reads),
        unit="unscaled logit" if kind == "token" else "",
        provenance={**_origin(folded, head, basis, read, "v"), "value_lag": lag},
    )


def _check_basis(basis: str, kind: Any) -> None:
    if basis not in get_args(kind):
        raise ValueError(f"basis is {basis!r}; choose one of {', '.join(get_args(kind))}")


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


def _origin(
    folded: Folded, head: str, basis: str, read: HeadReads, channels: str
) -> dict[str, Any]:
    positions = "pos_embed.W_pos" if basis == "positions" else None
    return {
        "model": folded.seen.name,
        "head": head,
        "basis": basis,
        "folded_in": "gains and centring of norms",
        "scales": read["q"].scales_from,
        "left_out": [name for name in folded.biases(read, channels) if name != positions],
        "versions": versions(),
    }


def _side(role: str, kind: str, seen: View, reads: tuple[Tensor, Tensor] | None = None) -> Side:
    if kind != "token":
        return Side(role, kind, reads=reads)
    find = None if seen.tokenizer is None else _finder(seen.tokenizer)
    return Side(role, kind, seen.words, find, reads)


def _finder(tokenizer: Any) -> Callable[[str], int]:
    def find(text: str) -> int:
        numbers = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(numbers) != 1:
            parts = [tokenizer.decode([number]) for number in numbers]
            raise ValueError(f"{text!r} is {len(numbers)} tokens, {parts}, but must be exactly one")
        return numbers[0]

    return find
