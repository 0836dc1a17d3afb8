"""Repeated random tokens: what they hold, where they come from, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.analysis.probes.sequences import repeated_tokens


@given(
    n=st.integers(2, 20),
    spare=st.integers(0, 20),
    copies=st.integers(2, 4),
    n_sequences=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    with_bos=st.booleans(),
)
def test_copies_are_equal_distinct_and_free_of_special_tokens(
    n, spare, copies, n_sequences, seed, with_bos
):
    special = {3, 7}
    bos = 5 if with_bos else None
    d_vocab = 8 + n + spare
    probe = repeated_tokens(
        n,
        d_vocab=d_vocab,
        bos=bos,
        exclude=special,
        copies=copies,
        n_sequences=n_sequences,
        seed=seed,
    )
    tokens = probe.tokens
    assert tokens.dtype == torch.int64
    assert tokens.shape == (n_sequences, with_bos + copies * n)
    assert not with_bos or (tokens[:, 0] == 5).all()
    first = tokens[:, list(probe.positions(0))]
    for copy in range(1, copies):
        assert torch.equal(tokens[:, list(probe.positions(copy))], first)
    for row in first.tolist():
        assert len(set(row)) == n
        assert not set(row) & (special | {bos})
        assert set(row) <= set(range(d_vocab))
    assert not probe.with_replacement


def test_positions_are_worked_out_by_hand():
    probe = repeated_tokens(5, d_vocab=100, bos=0, copies=3)
    assert [list(probe.positions(copy)) for copy in range(3)] == [
        [1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10],
        [11, 12, 13, 14, 15],
    ]
    assert list(repeated_tokens(2, d_vocab=9).positions(1)) == [2, 3]
    with pytest.raises(ValueError, match="copies 0 to 2"):
        probe.positions(3)


def test_replacement_only_where_it_must_be_and_labelled():
    # 10 tokens, of which the BOS and two others are never drawn: 7 are left.
    enough = repeated_tokens(7, d_vocab=10, bos=0, exclude=(1, 2))
    assert not enough.with_replacement
    assert enough.tokens[:, 1:8].sort().values.eq(torch.arange(3, 10)).all()
    short = repeated_tokens(8, d_vocab=10, bos=0, exclude=(1, 2))
    assert short.with_replacement
    assert set(short.tokens[:, 1:].flatten().tolist()) == set(range(3, 10))


def test_every_allowed_token_is_about_equally_likely():
    probe = repeated_tokens(5, d_vocab=20, n_sequences=4000)
    counts = torch.bincount(probe.tokens[:, :5].flatten(), minlength=20)
    # 4000 x 5 / 20 = 1000 each, with a standard deviation of sqrt(4000 x 1/4 x 3/4) = 27
    assert (counts - 1000).abs().max() < 5 * 27


def test_the_seed_decides_and_the_global_state_is_left_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = repeated_tokens(10, d_vocab=50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(repeated_tokens(10, d_vocab=50, seed=3).tokens, one.tokens)
    assert not torch.equal(repeated_tokens(10, d_vocab=50, seed=4).tokens, one.tokens)
    assert not torch.equal(one.tokens[0], one.tokens[1])


def test_a_default_device_changes_nothing():
    with torch.device("meta"):
        probe = repeated_tokens(10, d_vocab=50, bos=0, seed=3)
    assert torch.equal(probe.tokens, repeated_tokens(10, d_vocab=50, bos=0, seed=3).tokens)


def test_fewer_sequences_are_the_first_of_more():
    few, many = (repeated_tokens(10, d_vocab=50, n_sequences=k).tokens for k in (3, 8))
    assert torch.equal(few, many[:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1}, "n=1 is too small; it must be at least 2"),
        ({"copies": 1}, "copies=1 is too small"),
        ({"n_sequences": 0}, "n_sequences=0 is too small"),
        ({"bos": 50}, "bos=50 is not one of the 50 tokens"),
        ({"bos": -1}, "bos=-1"),
        ({"n_ctx": 20, "bos": 0}, "make 21 positions.*n_ctx=20; choose n of at most 9"),
        ({"exclude": range(49)}, "1 of d_vocab=50 tokens are left"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        repeated_tokens(**{"n": 10, "d_vocab": 50, **arguments})


def test_exactly_the_context_fits():
    assert repeated_tokens(10, d_vocab=50, n_ctx=20).tokens.shape[1] == 20
