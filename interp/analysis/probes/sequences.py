"""Synthetic probes: token sequences made from a seed, on which a head's behaviour shows itself."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RepeatedTokens:
    """`[BOS] + r + r + ...`, r being `n` random tokens: the second copy can be told from the first.

    Attributes:
        tokens: the sequences, on the CPU. Position 0 is BOS and the last SEP, where there is one.
        n: length of one copy.
        copies: how often r stands in each sequence.
        start: position of the first copy: 1 after a BOS, else 0.
        seed: what `tokens` were drawn from.
        with_replacement: whether r may repeat a token, as it must where there are fewer than n.
    """

    tokens: Int64[Tensor, "batch pos"]
    n: int
    copies: int
    start: int
    seed: int
    with_replacement: bool

    def positions(self, copy: int) -> range:
        """The positions of copy number `copy`, counted from 0.

        >>> repeated_tokens(5, d_vocab=100, bos=0).positions(1)
        range(6, 11)
        """
        if not 0 <= copy < self.copies:
            raise ValueError(f"copy={copy}: the sequence has copies 0 to {self.copies - 1}")
        first = self.start + copy * self.n
        return range(first, first + self.n)


def repeated_tokens(
    n: int = 50,
    *,
    d_vocab: int,
    bos: int | None = None,
    sep: int | None = None,
    exclude: Iterable[int] = (),
    copies: int = 2,
    n_sequences: int = 50,
    n_ctx: int | None = None,
    seed: int = 0,
) -> RepeatedTokens:
    """Sequences `[BOS] + r + r`, where r is n random tokens: what does a model do with a repeat?

    The tokens of one r are distinct, so that each token of the second copy has exactly one earlier
    occurrence. Only where n exceeds the number of tokens to draw from are they drawn with
    replacement, and `with_replacement` says so. A seed gives the same tokens whatever the device
    and the global random state, which is left alone; fewer sequences are a prefix of more.

    Args:
        n: length of r.
        d_vocab: tokens are drawn from 0 to d_vocab - 1.
        bos: put before the first copy, and never drawn; None for a model without one.
        sep: put after the last copy, and never drawn; for models such as BERT.
        exclude: never drawn either: special tokens, tokens too common or too rare.
        copies: how often r stands in the sequence.
        n_sequences: how many sequences to make.
        n_ctx: the model's longest context, where it has one.
        seed: every choice comes from it.

    Raises:
        ValueError: a number below its bound, a BOS or SEP outside the vocabulary, fewer than two
            tokens to draw from, or sequences longer than n_ctx.

    Source: Olsson et al., In-context Learning and Induction Heads (2022).

    >>> probe = repeated_tokens(3, d_vocab=50, bos=0, n_sequences=2)
    >>> probe.tokens.shape, bool((probe.tokens[:, 1:4] == probe.tokens[:, 4:]).all())
    (torch.Size([2, 7]), True)
    """
    for name, value, bound in (("n", n, 2), ("copies", copies, 2), ("n_sequences", n_sequences, 1)):
        if value < bound:
            raise ValueError(f"{name}={value} is too small; it must be at least {bound}")
    markers = {name: x for name, x in (("bos", bos), ("sep", sep)) if x is not None}
    for name, marker in markers.items():
        if not 0 <= marker < d_vocab:
            raise ValueError(
                f"{name}={marker} is not one of the {d_vocab} tokens 0 to {d_vocab - 1}"
            )
    length = len(markers) + copies * n
    if n_ctx is not None and length > n_ctx:
        also = "".join(f" and {name.upper()}" for name in markers)
        raise ValueError(
            f"{copies} copies of n={n} tokens{also} make {length} positions, over "
            f"n_ctx={n_ctx}; choose n of at most {(n_ctx - len(markers)) // copies}"
        )
    never = {*exclude, *markers.values()}
    allowed = torch.tensor(
        [token for token in range(d_vocab) if token not in never], dtype=torch.int64, device="cpu"
    )
    if len(allowed) < 2:
        raise ValueError(
            f"{len(allowed)} of d_vocab={d_vocab} tokens are left to draw from, two are needed; "
            "exclude fewer"
        )
    with_replacement = n > len(allowed)
    generator = torch.Generator("cpu").manual_seed(seed)
    once = [_draw(allowed, n, with_replacement, generator) for _ in range(n_sequences)]
    tokens = torch.stack(once).repeat(1, copies)
    around = {
        name: torch.full((n_sequences, 1), marker, device="cpu") for name, marker in markers.items()
    }
    tokens = torch.cat(
        [around.get("bos", tokens[:, :0]), tokens, around.get("sep", tokens[:, :0])], 1
    )
    return RepeatedTokens(tokens, n, copies, int("bos" in around), seed, with_replacement)


def second_copy(tokens: Int[Tensor, "batch pos"]) -> range | None:
    """The positions of the second r in `[BOS] + r + r`, or `[CLS] + r + r + [SEP]`, if that it is.

    >>> second_copy(torch.tensor([[9, 1, 2, 3, 1, 2, 3, 8]]))
    range(4, 7)
    """
    n_pos = tokens.shape[1]
    ends = (n_pos, n_pos - 1) if n_pos % 2 == 0 else (n_pos,)
    for end in ends:
        n = end // 2
        if n >= 2 and torch.equal(tokens[:, end - 2 * n : end - n], tokens[:, end - n : end]):
            return range(end - n, end)
    return None


def copy_length(n_ctx: int, usual: int = 50) -> int:
    """The length of one copy: the usual one, or as much as a short context holds twice after BOS.

    >>> copy_length(256), copy_length(32)
    (50, 15)
    """
    return min(usual, (n_ctx - 1) // 2)


def _draw(
    allowed: Int64[Tensor, " vocab"], n: int, with_replacement: bool, generator: torch.Generator
) -> Int64[Tensor, " pos"]:
    if with_replacement:
        return allowed[torch.randint(len(allowed), (n,), generator=generator, device="cpu")]
    return allowed[torch.randperm(len(allowed), generator=generator, device="cpu")[:n]]
