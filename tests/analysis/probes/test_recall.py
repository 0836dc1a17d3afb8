"""Associative recall's sequences: what they hold, how far queries are, and what is refused."""

from collections import Counter
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.analysis import ar_tokens, mqar_tokens

SIZES = {
    "n_pairs": st.integers(1, 6),
    "spare": st.integers(0, 20),
    "n_sequences": st.integers(1, 4),
    "seed": st.integers(0, 2**31),
    "with_bos": st.booleans(),
}


def third(token: int, d_vocab: int, never: set[int]) -> int:
    """Which third of the tokens that may be drawn one is in: counted, one by one."""
    allowed = [other for other in range(d_vocab) if other not in never]
    return min(2, allowed.index(token) // (len(allowed) // 3))


def read(row: list[int], n_pairs: int) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """A sequence without BOS, as a reader takes it: pairs, and the place and key of each query."""
    pairs = dict(zip(row[: 2 * n_pairs : 2], row[1 : 2 * n_pairs : 2], strict=True))
    later = enumerate(row[2 * n_pairs :], start=2 * n_pairs)
    return pairs, [(place, token) for place, token in later if token in pairs]


@given(**SIZES)
def test_each_key_stands_in_its_pair_and_in_one_query(n_pairs, spare, n_sequences, seed, with_bos):
    special, bos, d_vocab, n = {3, 7}, 5 if with_bos else None, 9 + 3 * n_pairs + spare, 24 + spare
    probe = mqar_tokens(
        n_pairs, n, d_vocab=d_vocab, bos=bos, exclude=special, n_sequences=n_sequences, seed=seed
    )
    assert probe.tokens.dtype == torch.int64
    assert probe.tokens.shape == (n_sequences, n + with_bos)
    never = special | ({bos} if with_bos else set())
    for number, whole in enumerate(probe.tokens.tolist()):
        row = whole[with_bos:]
        assert not with_bos or whole[0] == bos
        assert not never & set(row)
        pairs, queries = read(row, n_pairs)
        assert len(pairs) == len(set(pairs.values())) == n_pairs
        assert Counter(key for _, key in queries) == Counter(list(pairs))
        assert all((place - 2 * n_pairs) % 2 == 0 for place, _ in queries)
        parts = [third(token, d_vocab, never) for token in row]
        where = {place for place, _ in queries}
        assert parts[: 2 * n_pairs] == [0, 1] * n_pairs
        assert all(
            part == (0 if place in where else 2)
            for place, part in list(enumerate(parts))[2 * n_pairs :]
        )
        # What the probe says of its queries is what a reader finds.
        assert probe.query[number].tolist() == [place + with_bos for place, _ in queries]
        assert probe.target[number].tolist() == [pairs[key] for _, key in queries]
        first = [row.index(key) + with_bos for _, key in queries]
        assert probe.key[number].tolist() == first
        assert probe.values[number].tolist() == list(pairs.values())
        apart = [place + with_bos - start for (place, _), start in zip(queries, first, strict=True)]
        assert probe.distance[number].tolist() == apart


@given(**SIZES)
def test_one_query_asks_for_each_pair_in_turn(n_pairs, spare, n_sequences, seed, with_bos):
    bos, n = 0 if with_bos else None, 2 * n_pairs + 1 + spare
    probe = ar_tokens(
        n_pairs, n, d_vocab=1 + 3 * n_pairs + spare, bos=bos, n_sequences=n_sequences, seed=seed
    )
    assert probe.tokens.shape == (n_sequences * n_pairs, n + with_bos)
    for number, whole in enumerate(probe.tokens.tolist()):
        row, asked = whole[with_bos:], number % n_pairs
        pairs, queries = read(row, n_pairs)
        assert queries == [(n - 1, row[2 * asked])]
        assert row[:-1] == probe.tokens[number - asked, with_bos:-1].tolist()
        assert probe.target[number].tolist() == [pairs[row[-1]]]
        assert probe.distance[number].tolist() == [n - 1 - 2 * asked]


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0, 2.0])
def test_slots_are_drawn_one_after_the_other_by_the_power_law(power):
    n_pairs, n_slots, n_sequences = 2, 4, 20_000
    n = 2 * (n_pairs + n_slots)
    probe = mqar_tokens(n_pairs, n, d_vocab=30, power=power, n_sequences=n_sequences)
    slots = (probe.query - 2 * n_pairs) // 2 + 1
    by_pair = torch.zeros_like(slots).scatter_(1, probe.pair, slots)
    found = Counter(map(tuple, by_pair.tolist()))
    weights = {slot: slot ** (power - 1) for slot in range(1, n_slots + 1)}
    whole = sum(weights.values())
    for first, second in permutations(weights, 2):
        expected = weights[first] / whole * weights[second] / (whole - weights[first])
        deviation = (n_sequences * expected * (1 - expected)) ** 0.5
        assert abs(found[first, second] - n_sequences * expected) < 5 * deviation


def test_every_token_of_a_part_is_about_equally_likely():
    probe = mqar_tokens(2, 8, d_vocab=15, n_sequences=5000)
    counts = torch.bincount(probe.tokens[:, 0], minlength=15)
    # 5000 / 5 = 1000 each, with a standard deviation of sqrt(5000 x 1/5 x 4/5) = 28
    assert (counts[:5] - 1000).abs().max() < 5 * 28
    assert counts[5:].sum() == 0
    filler = torch.bincount(probe.tokens[:, 5], minlength=15)
    assert (filler[10:] - 1000).abs().max() < 5 * 28


@pytest.mark.parametrize("make", [mqar_tokens, ar_tokens])
def test_the_seed_decides_and_the_global_state_is_left_alone(make):
    state = torch.get_rng_state()
    one = make(4, 20, d_vocab=50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(make(4, 20, d_vocab=50, seed=3).tokens, one.tokens)
    assert not torch.equal(make(4, 20, d_vocab=50, seed=4).tokens, one.tokens)
    with torch.device("meta"):
        elsewhere = make(4, 20, d_vocab=50, seed=3, bos=None)
    assert torch.equal(elsewhere.tokens, one.tokens)
    few = make(4, 20, d_vocab=50, seed=3, n_sequences=3)
    assert torch.equal(few.tokens, one.tokens[: len(few.tokens)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_pairs": 0}, "n_pairs=0 is too small; it must be at least 1"),
        ({"n_sequences": 0}, "n_sequences=0 is too small"),
        ({"bos": 50}, "bos=50 is not one of the 50 tokens"),
        ({"n_ctx": 20, "bos": 0}, "n=20 tokens and BOS make 21 positions, over n_ctx=20.*most 19"),
        ({"n_ctx": 19}, "choose n of at most 19"),
        ({"exclude": range(39)}, "11 of d_vocab=50 tokens .* 3, for keys; n_pairs=4 needs"),
    ],
)
@pytest.mark.parametrize("make", [mqar_tokens, ar_tokens])
def test_bad_input_is_refused_with_the_remedy(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**{"n_pairs": 4, "n": 20, "d_vocab": 50, **arguments})


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (mqar_tokens, {"n": 15}, "n=15 has no room for n_pairs=4.*at least 16, or n_pairs of at"),
        (ar_tokens, {"n": 8}, "n=8 has no room for n_pairs=4.*at least 9, or n_pairs of at most 3"),
        (mqar_tokens, {"power": 0.0}, "power=0.0 must be over 0"),
        (mqar_tokens, {"power": float("nan")}, "power=nan must be over 0"),
    ],
)
def test_what_only_one_of_them_refuses(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**{"n_pairs": 4, "n": 20, "d_vocab": 50, **arguments})


def test_exactly_the_room_is_enough():
    assert mqar_tokens(4, 16, d_vocab=12, n_ctx=16).tokens.shape == (50, 16)
    assert ar_tokens(4, d_vocab=12, n_ctx=9).tokens.shape == (200, 9)
