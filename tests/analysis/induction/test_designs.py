"""Models planted by hand on which it is easy to say yes, or no, too early.

All of them are one-hot (`planted.Subspaces`): lag 1 of L0 puts the token before into `previous`,
the heads of L1 and later layers attend as `LOOKS` says and write what `WRITES` says.
"""

import functools
import re

import numpy as np
import pytest
import torch

from interp.analysis import induction_circuit, repeated_sequence_loss
from interp.models import MLP, Attention, Conv, HookedAttnAttn, HookedConvAttn
from interp.results.intervals import ratio_interval, student_t
from tests.analysis import planted

V, N, SEQUENCES = 30, 10, 5
N_POS = 2 * N + 1
SPACES = planted.Subspaces(V, N_POS)
SPARE = SPACES.d_model  # the first channel that is nobody's
FLAG = V + N_POS + 1  # a channel of a head that neither tokens nor positions use
D_HEAD = FLAG + 2
GAIN = 20.0


def bare(*layers, **options):
    return planted.bare(layers or two(1), d_vocab=V, n_ctx=N_POS, **options)


def two(n_heads, **options):
    return Conv(2, bias=False), heads(n_heads, **options)


def heads(n_heads, **options):
    return Attention(n_heads, D_HEAD, bias=False, **options)


def before(model, lag=1):
    """A lag of L0 writes the token so far back into `previous`."""
    planted._identity(model.conv(0).W_conv[lag], SPACES.token, SPACES.previous)


# ------------------------------------------------------------------------------------ what they see


def match(attn, head, gain=GAIN):
    """The token after the current one's occurrence, where the convolution shifts by one."""
    planted._match(attn, head, SPACES.token, SPACES.previous, gain)


def weak_match(attn, head):
    """The same, but most of it goes to BOS; about 0.08 is left."""
    match(attn, head, gain=8.0)
    to_bos(attn, head, gain=8.0 + 2.4)


def back(distance):
    """The position so far back; the first ones see what there is."""

    def look(attn, head, gain=planted.SURE):
        start, scale = SPACES.position.start, gain / attn.scale
        for position in range(distance, N_POS):
            attn.W_Q[head, start + position, V + position - distance] = scale
        for position in range(N_POS):
            attn.W_K[head, start + position, V + position] = 1.0

    return look


def to_bos(attn, head, gain=GAIN):
    attn.W_Q[head, SPACES.token, FLAG] = gain / attn.scale
    attn.W_K[head, planted.BOS, FLAG] = 1.0


def to_duplicate(attn, head):
    planted._match(attn, head, SPACES.token, SPACES.token, GAIN)


def to_other_duplicate(attn, head):
    to_duplicate(attn, head)
    planted._match(attn, head, SPACES.position, SPACES.position, -GAIN, at=V)


def anywhere(attn, head):
    """Everything that is there, in equal parts."""


def all_but_bos(attn, head):
    to_bos(attn, head, gain=-GAIN)


def even_tokens(attn, head):
    """The tokens of one class, whichever the query is."""
    attn.W_Q[head, SPACES.token, FLAG] = GAIN / attn.scale
    attn.W_K[head, 0:V:2, FLAG] = 1.0


def next_in_the_alphabet(attn, head):
    """Token b for a query b - 1: a skip-trigram's key."""
    planted._match(attn, head, slice(0, V - 1), slice(1, V), GAIN)


LOOKS = {
    "match": match,
    "weak match": weak_match,
    "n - 1 back": back(N - 1),
    "n back": back(N),
    "two back": back(2),
    "previous": back(1),
    "itself": back(0),
    "bos": to_bos,
    "duplicate": to_duplicate,
    "other duplicate": to_other_duplicate,
    "anywhere": anywhere,
    "all but bos": all_but_bos,
    "even tokens": even_tokens,
    "next in the alphabet": next_in_the_alphabet,
}

# ---------------------------------------------------------------------------------- what they write


def copies(attn, head, gain=1.0):
    """Raises the attended token."""
    attn.W_V[head, :V, :V] = torch.eye(V)
    attn.W_O[head, :V, SPACES.output] = gain * torch.eye(V).double()


def lowers(attn, head):
    copies(attn, head, gain=-1.0)


def another_token(attn, head):
    copies(attn, head)
    attn.W_O[head, :V, SPACES.output] = torch.eye(V).roll(1, dims=1).double()


def at_random(attn, head):
    copies(attn, head)
    generator = torch.Generator().manual_seed(0)
    attn.W_O[head, :V, SPACES.output] = torch.randn(V, V, generator=generator).double()


def nothing(attn, head):
    copies(attn, head, gain=0.0)


def no_values(attn, head):
    copies(attn, head)
    attn.W_V[head].zero_()


def where_nobody_reads(attn, head):
    attn.W_V[head, :V, :V] = torch.eye(V)
    attn.W_O[head, :V, SPACES.previous] = torch.eye(V).double()


def all_tokens_alike(attn, head):
    copies(attn, head)
    attn.W_O[head, :V, SPACES.output] = 1.0


def the_token_before(attn, head):
    attn.W_V[head, SPACES.previous, :V] = torch.eye(V).double()
    attn.W_O[head, :V, SPACES.output] = torch.eye(V).double()


def the_position(attn, head):
    attn.W_V[head, SPACES.position, :N_POS] = torch.eye(N_POS).double()
    attn.W_O[head, :N_POS, SPACES.output.start : SPACES.output.start + N_POS] = torch.eye(
        N_POS
    ).double()


WRITES = {
    "copies": copies,
    "lowers": lowers,
    "another token": another_token,
    "at random": at_random,
    "nothing": nothing,
    "no values": no_values,
    "where nobody reads": where_nobody_reads,
    "all tokens alike": all_tokens_alike,
    "the token before": the_token_before,
    "the position": the_position,
}


def one_head(look, write):
    return several((look, write))


def several(*pairs, **options):
    """Heads side by side in one layer."""
    model = bare(*two(len(pairs)), **options)
    with torch.no_grad():
        before(model)
        for head, (look, write) in enumerate(pairs):
            LOOKS[look](model.attn(1), head)
            WRITES[write](model.attn(1), head)
    return model


# ------------------------------------------------------------------------------- further designs


@torch.no_grad()
def erased_by_a_head():
    model = bare(Conv(2, bias=False), heads(1), heads(1))
    before(model)
    match(model.attn(1), 0)
    copies(model.attn(1), 0)
    back(0)(model.attn(2), 0)
    model.attn(2).W_V[0, SPACES.output, :V] = torch.eye(V).double()
    model.attn(2).W_O[0, :V, SPACES.output] = -torch.eye(V).double()
    return model


@torch.no_grad()
def erased_by_an_mlp():
    model = bare(*two(1, mlp=MLP(V, "relu")))
    before(model)
    match(model.attn(1), 0)
    copies(model.attn(1), 0)
    mlp = model.blocks[1].mlp
    mlp.W_in[SPACES.output] = torch.eye(V).double()
    mlp.W_out[:, SPACES.output] = -torch.eye(V).double()
    return model


@torch.no_grad()
def match_detector():
    """L1H0 says that there is a match; only then L2H0 looks at all tokens and copies them."""
    model = bare(Conv(2, bias=False), heads(1), heads(1))
    before(model)
    first, second = model.attn(1), model.attn(2)
    match(first, 0)
    to_bos(first, 0, gain=GAIN / 2)
    first.W_V[0, 1:V, 0] = 1.0
    first.W_O[0, 0, SPARE] = 1.0
    to_bos(second, 0)
    second.W_Q[0, SPARE, FLAG] = -2 * GAIN / second.scale
    copies(second, 0)
    return model


@torch.no_grad()
def two_after():
    """Lag 2 instead of lag 1: the token two after the occurrence is copied."""
    model = bare(Conv(3, bias=False), heads(1))
    before(model, lag=2)
    match(model.attn(1), 0)
    copies(model.attn(1), 0)
    return model


@torch.no_grad()
def bigrams():
    """The convolution predicts from the token before; the heads do nothing."""
    model = bare(*two(2))
    model.conv(0).W_conv[0, SPACES.token, SPACES.output] = torch.eye(V).roll(3, dims=1).double()
    return model


@torch.no_grad()
def copying_convolution():
    """Copies of one length are copied by distance."""
    model = bare(Conv(N, bias=False), heads(2))
    planted._identity(model.conv(0).W_conv[N - 1], SPACES.token, SPACES.output)
    return model


@torch.no_grad()
def in_two_layers(shift, look="match", write="copies"):
    """L0H0 puts the token so far back into `previous`, or nothing; L1H0 is the head."""
    model = bare(heads(1), heads(1))
    if shift is not None:
        back(shift)(model.attn(0), 0)
        planted._copy(model.attn(0), 0, SPACES.token, SPACES.previous)
    LOOKS[look](model.attn(1), 0)
    WRITES[write](model.attn(1), 0)
    return model


def random_weights(preset, scale, seed):
    model = preset(d_vocab=V, d_model=32, n_heads=4, n_ctx=N_POS, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2].startswith(("W_Q", "W_K", "W_V", "W_O", "W_conv")):
                parameter *= scale
    return model


NONE = {
    # It attends right, and what it writes is no use.
    **{
        f"match, {write}": functools.partial(one_head, "match", write)
        for write in WRITES
        if write != "copies"
    },
    "match, erased by a head": erased_by_a_head,
    "match, erased by an MLP": erased_by_an_mlp,
    "match, undone by its twin": lambda: several(("match", "copies"), ("match", "lowers")),
    "match, only a detector": match_detector,
    # It copies, and attends elsewhere.
    **{
        f"{look}, copies": functools.partial(one_head, look, "copies")
        for look in LOOKS
        if look not in ("match", "weak match")
    },
    "two after, copies": two_after,
    # Neither, or both in different heads.
    "anywhere, lowers": lambda: one_head("anywhere", "lowers"),
    "previous, lowers": lambda: one_head("previous", "lowers"),
    "next in the alphabet, another token": lambda: one_head(
        "next in the alphabet", "another token"
    ),
    "match, nothing, and anywhere, copies": lambda: several(
        ("match", "nothing"), ("anywhere", "copies")
    ),
    "match, nothing, and n - 1 back, copies": lambda: several(
        ("match", "nothing"), ("n - 1 back", "copies")
    ),
    "weak matches, nothing, and all but bos, copies": lambda: several(
        *[("weak match", "nothing")] * 4, ("all but bos", "copies")
    ),
    "weak matches, nothing": lambda: several(*[("weak match", "nothing")] * 4),
    "weak matches, lower": lambda: several(*[("weak match", "lowers")] * 4),
    "bigrams": bigrams,
    "a copying convolution": copying_convolution,
    "a previous-token head alone": lambda: in_two_layers(1, "anywhere", "nothing"),
    "no previous-token head": lambda: in_two_layers(None),
    "the head below looks two back": lambda: in_two_layers(2),
    "the head below looks at itself": lambda: in_two_layers(0),
    "random weights, conv": lambda: random_weights(HookedConvAttn, 4.0, 0),
    "random weights, attn": lambda: random_weights(HookedAttnAttn, 4.0, 1),
}

IN_ORDER = {
    "n - 1 back, copies",
    "match, nothing, and n - 1 back, copies",
    "a copying convolution",
}
IN_ANY_ORDER = {
    "all but bos, copies",
    "anywhere, copies",
    "match, only a detector",
    "match, nothing, and anywhere, copies",
    "weak matches, nothing, and all but bos, copies",
}


def of(model, **options):
    return induction_circuit(model, **{"n": N, "n_sequences": SEQUENCES, "n_random": 2, **options})


def test_the_designs_that_something_helps_are_among_those_without_a_circuit():
    assert len(NONE) == 42
    assert set(NONE) >= IN_ORDER | IN_ANY_ORDER


@pytest.mark.parametrize("design", NONE)
def test_no_circuit_is_said_where_there_is_none(design):
    found = of(NONE[design]())
    assert not found.found
    assert found.sentence.startswith("No induction circuit: ")
    assert "The second copy's loss is " in found.sentence
    assert ("Something copies" in found.sentence) == (design in IN_ORDER)
    if design in IN_ANY_ORDER:
        assert found.sentence.endswith("What helps is which tokens there were, in whatever order.")
    assert found.edges == ()


# ------------------------------------------------------------------------------- what is found


@torch.no_grad()
def backup(n_backups=1):
    """L1H0 copies and says so; each later head copies only if none before it does."""
    model = bare(Conv(2, bias=False), *[heads(1)] * (1 + n_backups))
    before(model)
    for layer in range(1, 2 + n_backups):
        attn = model.attn(layer)
        match(attn, 0)
        to_bos(attn, 0, gain=GAIN / 2)
        copies(attn, 0)
        attn.W_V[0, planted.BOS].zero_()
        attn.W_V[0, 1:V, V] = 1.0  # it attends to something that is not BOS,
        attn.W_O[0, V, SPARE] = 1.0  # and says so
        if layer > 1:
            attn.W_Q[0, SPARE, FLAG] = 2 * GAIN / attn.scale
    return model


YES = {
    "five that do the same": (
        lambda: several(*[("match", "copies")] * 5, logit_gain=40.0),
        {f"L1H{head}" for head in range(5)},
    ),
    "a backup that wakes": (backup, {"L1H0", "L2H0"}),
    "two backups that wake": (lambda: backup(2), {"L1H0", "L2H0", "L3H0"}),
    "six weak ones": (
        lambda: several(*[("weak match", "copies")] * 6, logit_gain=20.0),
        {f"L1H{head}" for head in range(6)},
    ),
    "six weak ones beside one without use": (
        lambda: several(("match", "nothing"), *[("weak match", "copies")] * 6, logit_gain=20.0),
        {f"L1H{head}" for head in range(7)},
    ),
    "one beside a positional one": (
        lambda: several(("match", "copies"), ("n - 1 back", "copies"), logit_gain=40.0),
        {"L1H0"},
    ),
    "one beside a bag of words": (
        lambda: several(("match", "copies"), ("all but bos", "copies")),
        {"L1H0"},
    ),
    "one beside one without use": (
        lambda: several(("match", "copies"), ("match", "nothing")),
        {"L1H0", "L1H1"},
    ),
    "below a previous-token head": (lambda: in_two_layers(1), {"L1H0"}),
}


@functools.cache
def yes(design):
    model, _ = YES[design]
    return of(model())


@pytest.mark.parametrize("design", YES)
def test_a_circuit_is_found(design):
    found = yes(design)
    assert found.found
    assert set(found.heads) == YES[design][1]
    assert found.drop.low > 1
    assert found.worth.low > 1
    assert found.explained.low > 0.7
    assert found.order.low > 1
    assert f"{found.drop.value:.2f} nats (95 %: " in found.sentence
    assert (
        f"explain{'s' * (len(found.heads) == 1)} {100 * found.explained.value:.0f} % of that"
        in (found.sentence)
    )


def test_most_heads_limits_what_is_followed_up_and_not_what_is_tested():
    found = yes("five that do the same")
    assert list(found.removal) == ["+".join(found.heads), *found.heads[:4]]
    followed = {edge.head for edge in found.edges}
    assert followed == set(found.heads[:4])
    assert "The other 1 were not followed up." in found.sentence
    assert found.removal[found.heads[0]].value == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("design", "n_backups"), [("a backup that wakes", 1), ("two backups that wake", 2)]
)
def test_a_backup_is_followed_up_as_it_is_when_it_wakes(design, n_backups):
    found = yes(design)
    assert found.woken == tuple(f"L{layer}H0" for layer in range(2, 2 + n_backups))
    assert float(found.scores.sel(measure="score", head="L2H0")) < 0.01
    assert found.graph.provenance["heads"]["L2H0"] > 0.9
    assert found.graph.provenance["rounds"] == 1 + n_backups
    for head in found.heads:
        into = {edge.label: edge for edge in found.edges if edge.receiver == head}
        assert into[f"L0.lag1->{head}.k"].score.high < -0.8
    last = found.heads[-1]
    assert found.removal[last].low > 1
    assert f"{last} attend" in found.sentence or f"and {last} attend" in found.sentence
    assert len(found.plot().data) > 0


def test_the_positional_head_is_named_and_averaged_over():
    found = yes("one beside a positional one")
    assert found.distant == ("L1H1",)
    assert "L1H1 attends to the same place by distance, whatever stands there" in found.sentence
    assert found.removal["L1H0"].value == found.removal["+".join(found.heads)].value


def test_heads_that_match_less_than_least_together_are_none():
    model = YES["six weak ones"][0]()
    assert not of(model, least=0.5).found  # 6 x 0.08 = 0.48
    assert of(model, least=0.45).found


def test_a_circuit_carries_its_share_of_what_the_repetition_is_worth():
    model = several(("match", "copies"), ("all but bos", "copies"))
    with torch.no_grad():
        model.attn(1).W_O[0] *= 0.1
        model.attn(1).W_O[1] *= 10
    assert of(model, share=0.1).found
    found = of(model, share=0.9)
    assert not found.found
    assert "less than 90 % of what the repetition is worth" in found.sentence
    explained = re.search(r"L1H0 explains (\d+) % of that", found.sentence)
    assert explained is not None
    assert 10 < int(explained[1]) < 90


def test_drop_and_worth_are_those_of_brute_force():
    """One head, one-hot attention: losses from the tokens alone."""
    found = yes("below a previous-token head")
    losses = repeated_sequence_loss(in_two_layers(1), n=N, n_sequences=SEQUENCES)
    assert found.drop.value == pytest.approx(float(losses.sel(measure="drop")), abs=1e-9)


# --------------------------------------------------------------------------------- the interval


def test_the_interval_of_a_ratio_holds_it_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        whole = random.normal(3, 1, 20)
        low, high = ratio_interval(
            (0.4 * whole + random.normal(0.3, 0.3, 20)).tolist(), whole.tolist()
        )
        hits += low <= 0.5 <= high
    assert 0.92 < hits / 400 < 0.98


@pytest.mark.parametrize("n", [2, 3, 9])
def test_the_interval_of_a_ratio_ends_where_the_difference_is_just_significant(n):
    random = np.random.default_rng(n)
    whole = random.normal(5, 0.5, n) if n > 2 else np.array([5.0, 5.1])
    part = 0.4 * whole + random.normal(0, 0.02, n)
    bounds = ratio_interval(part.tolist(), whole.tolist())
    assert bounds[0] < part.mean() / whole.mean() < bounds[1]
    for ratio in bounds:
        left = part - ratio * whole
        error = left.std(ddof=1) / np.sqrt(n)
        assert abs(left.mean()) / error == pytest.approx(student_t(0.975, n - 1))


def test_the_interval_of_a_ratio_needs_a_denominator():
    low, high = ratio_interval([1.0, 2.0, 3.0], [-1.0, 0.5, 1.0])
    assert np.isnan([low, high]).all()
