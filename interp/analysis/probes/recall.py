"""Associative recall: pairs of a key and a value, and then keys whose value is to be recalled."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

PER_QUERY = 2
"""Positions a query takes: its key, and one where its value would stand."""


@dataclass(frozen=True, eq=False)
class RecallTokens:
    """`[BOS] k1 v1 k2 v2 ... f k2 f f k1 f ...`: pairs, then keys again, with filler between.

    Attributes:
        tokens: the sequences, on the CPU.
        pair: which pair each query asks for, from 0, in the order of the sequence.
        query: the position of the key that is asked for: the model is to predict its value there.
        values: the value of each pair, the choices that a recall has.
        start: position of the first key: 1 after a BOS, else 0.
        seed: what all was drawn from.
        parts: the tokens that keys, values and fillers are drawn from, each as first and last.
    """

    tokens: Int64[Tensor, "batch pos"]
    pair: Int64[Tensor, "batch asked"]
    query: Int64[Tensor, "batch asked"]
    values: Int64[Tensor, "batch pair"]
    start: int
    seed: int
    parts: dict[str, tuple[int, int]]

    @property
    def key(self) -> Int64[Tensor, "batch asked"]:
        """The position of each query's key in its pair; its value stands one later."""
        return self.start + 2 * self.pair

    @property
    def distance(self) -> Int64[Tensor, "batch asked"]:
        """How many positions lie between a key's two occurrences."""
        return self.query - self.key

    @property
    def target(self) -> Int64[Tensor, "batch asked"]:
        """The value that each query asks for."""
        return self.values.gather(1, self.pair)


def mqar_tokens(
    n_pairs: int = 8,
    n: int = 64,
    *,
    d_vocab: int,
    power: float = 0.01,
    bos: int | None = None,
    exclude: Iterable[int] = (),
    n_sequences: int = 50,
    n_ctx: int | None = None,
    seed: int = 0,
) -> RecallTokens:
    """Sequences for multi-query associative recall: pairs, then every key once more.

    After the pairs come S = (n - 2 n_pairs) // 2 slots of two positions. Pair after pair draws one
    that is still free, slot i = 1, 2, ... with probability proportional to

        i^(power - 1)

    so that most keys are asked for soon, and a few much later; `power=1` is uniform. As pairs draw
    in their order, the first are asked for somewhat sooner, unless it is uniform. The key stands in
    its slot's first position. The second, where its value would stand, holds filler as all other
    positions do: nothing but the pair itself says what a key's value is. Keys of a sequence are
    distinct, and so are its values. Keys, values and fillers come from the first, the second and
    the last third of the tokens that may be drawn, in the order of their numbers.

    A seed gives the same tokens whatever the device and the global random state, which is left
    alone; fewer sequences are a prefix of more.

    Args:
        n_pairs: how many pairs, and queries, a sequence has.
        n: length of a sequence without its BOS.
        d_vocab: tokens are drawn from 0 to d_vocab - 1.
        power: the exponent a, over 0. Zoology's is 0.01.
        bos: put first, and never drawn; None for a model without one.
        exclude: never drawn either: special tokens.
        n_sequences: how many sequences to make.
        n_ctx: the model's longest context, where it has one.
        seed: every choice comes from it.

    Raises:
        ValueError: a number below its bound, a BOS outside the vocabulary, a vocabulary too small
            for so many pairs, no room for the queries, or sequences longer than n_ctx.

    Source: Arora, Eyuboglu et al., Zoology (2023, arXiv 2312.04927). There, keys and values are the
    two halves of the vocabulary, and fillers are any token; here, fillers are no key and no value.

    >>> probe = mqar_tokens(2, 12, d_vocab=30, n_sequences=3)
    >>> probe.tokens.shape, probe.query.shape
    (torch.Size([3, 12]), torch.Size([3, 2]))
    >>> bool((probe.tokens.gather(1, probe.query) == probe.tokens.gather(1, probe.key)).all())
    True
    """
    _at_least(n_pairs=(n_pairs, 1), n_sequences=(n_sequences, 1))
    if not power > 0:
        raise ValueError(f"power={power} must be over 0; Zoology's is 0.01, and 1 is uniform")
    if n < (2 + PER_QUERY) * n_pairs:
        raise ValueError(
            f"n={n} has no room for n_pairs={n_pairs} pairs and as many queries, which take "
            f"{2 + PER_QUERY} positions each; choose n of at least {(2 + PER_QUERY) * n_pairs}, "
            f"or n_pairs of at most {n // (2 + PER_QUERY)}"
        )
    _fits(n, bos, n_ctx, f"n of at least {(2 + PER_QUERY) * n_pairs}")
    parts = _parts(n_pairs, d_vocab, bos, exclude)
    slots = torch.arange(1, 1 + (n - 2 * n_pairs) // PER_QUERY, dtype=torch.float64, device="cpu")
    random = _Columns(n_sequences, [len(parts[0]), len(parts[1]), len(slots), n], seed)
    keys, values = (parts[i][random[i].argsort(1)[:, :n_pairs]] for i in (0, 1))
    # The largest of log-weights with Gumbel noise, in order, are successive draws without return.
    noisy = (power - 1) * slots.log() - (-random[2].log()).log()
    order = noisy.argsort(1, descending=True)[:, :n_pairs]
    tokens = parts[2][(random[3] * len(parts[2])).long()]
    tokens[:, 0 : 2 * n_pairs : 2], tokens[:, 1 : 2 * n_pairs : 2] = keys, values
    position = 2 * n_pairs + PER_QUERY * order
    tokens.scatter_(1, position, keys)
    query, pair = position.sort(1)
    return _probe(tokens, pair, query, values, bos, seed, parts)


def ar_tokens(
    n_pairs: int = 8,
    n: int | None = None,
    *,
    d_vocab: int,
    bos: int | None = None,
    exclude: Iterable[int] = (),
    n_sequences: int = 50,
    n_ctx: int | None = None,
    seed: int = 0,
) -> RecallTokens:
    """Sequences for associative recall: pairs, and one key more at the end.

    Each sequence is asked for every one of its pairs in turn: rows i n_pairs to (i + 1) n_pairs - 1
    are alike but for the last token.

    Args:
        n_pairs: how many pairs a sequence has.
        n: length of a sequence without its BOS: filler is put between the pairs and the query.
            None: 2 n_pairs + 1, no filler.
        d_vocab: tokens are drawn from 0 to d_vocab - 1; in thirds, as by `mqar_tokens`.
        bos: put first, and never drawn; None for a model without one.
        exclude: never drawn either: special tokens.
        n_sequences: how many sequences to make; `tokens` has n_pairs times as many rows.
        n_ctx: the model's longest context, where it has one.
        seed: every choice comes from it.

    Raises:
        ValueError: as `mqar_tokens`.

    >>> probe = ar_tokens(3, d_vocab=30, n_sequences=2)
    >>> probe.tokens.shape, probe.pair[:, 0].tolist(), probe.distance[:3, 0].tolist()
    (torch.Size([6, 7]), [0, 1, 2, 0, 1, 2], [6, 4, 2])
    """
    _at_least(n_pairs=(n_pairs, 1), n_sequences=(n_sequences, 1))
    n = 2 * n_pairs + 1 if n is None else n
    if n < 2 * n_pairs + 1:
        raise ValueError(
            f"n={n} has no room for n_pairs={n_pairs} pairs and a query; choose n of at least "
            f"{2 * n_pairs + 1}, or n_pairs of at most {max(0, (n - 1) // 2)}"
        )
    _fits(n, bos, n_ctx, f"n of at least {2 * n_pairs + 1}")
    parts = _parts(n_pairs, d_vocab, bos, exclude)
    random = _Columns(n_sequences, [len(parts[0]), len(parts[1]), n], seed)
    keys, values = (parts[i][random[i].argsort(1)[:, :n_pairs]] for i in (0, 1))
    tokens = parts[2][(random[2] * len(parts[2])).long()]
    tokens[:, 0 : 2 * n_pairs : 2], tokens[:, 1 : 2 * n_pairs : 2] = keys, values
    tokens = tokens.repeat_interleave(n_pairs, 0)
    tokens[:, -1] = keys.flatten()
    pair = torch.arange(n_pairs, device="cpu").repeat(n_sequences)[:, None]
    query = torch.full_like(pair, n - 1)
    return _probe(tokens, pair, query, values.repeat_interleave(n_pairs, 0), bos, seed, parts)


class _Columns:
    """Uniform numbers in (0, 1), a row per sequence, cut into blocks of columns.

    All of one draw: so fewer sequences are a prefix of more.
    """

    def __init__(self, n_sequences: int, widths: list[int], seed: int):
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = torch.rand(
            (n_sequences, sum(widths)), generator=generator, dtype=torch.float64, device="cpu"
        )
        self._blocks = drawn.clamp_min(torch.finfo(torch.float64).tiny).split(widths, 1)

    def __getitem__(self, block: int) -> Float64[Tensor, "batch column"]:
        return self._blocks[block]


def _at_least(**numbers: tuple[int, int]) -> None:
    for name, (value, bound) in numbers.items():
        if value < bound:
            raise ValueError(f"{name}={value} is too small; it must be at least {bound}")


def _fits(n: int, bos: int | None, n_ctx: int | None, least: str) -> None:
    length = n + (bos is not None)
    if n_ctx is not None and length > n_ctx:
        also = " and BOS" if bos is not None else ""
        raise ValueError(
            f"n={n} tokens{also} make {length} positions, over n_ctx={n_ctx}; choose n of at most "
            f"{n_ctx - (bos is not None)}: fewer pairs take {least}"
        )


def _parts(
    n_pairs: int, d_vocab: int, bos: int | None, exclude: Iterable[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of keys, values and fillers: thirds of what may be drawn."""
    if bos is not None and not 0 <= bos < d_vocab:
        raise ValueError(f"bos={bos} is not one of the {d_vocab} tokens 0 to {d_vocab - 1}")
    never = {*exclude, bos}
    allowed = torch.tensor(
        [token for token in range(d_vocab) if token not in never], dtype=torch.int64, device="cpu"
    )
    third = len(allowed) // 3
    if third < n_pairs:
        raise ValueError(
            f"{len(allowed)} of d_vocab={d_vocab} tokens are left to draw from, a third of them, "
            f"{third}, for keys; n_pairs={n_pairs} needs as many: choose fewer pairs, or exclude "
            "fewer tokens"
        )
    return allowed[:third], allowed[third : 2 * third], allowed[2 * third :]


def _probe(
    tokens: Tensor,
    pair: Tensor,
    query: Tensor,
    values: Tensor,
    bos: int | None,
    seed: int,
    parts: tuple[Tensor, Tensor, Tensor],
) -> RecallTokens:
    start = int(bos is not None)
    if bos is not None:
        tokens = torch.cat([torch.full((len(tokens), 1), bos, device="cpu"), tokens], 1)
    named = zip(("keys", "values", "fillers"), parts, strict=True)
    ranges = {name: (int(part[0]), int(part[-1])) for name, part in named}
    return RecallTokens(tokens, pair, query + start, values, start, seed, ranges)
