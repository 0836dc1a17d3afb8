"""The course networks, against a second implementation in plain PyTorch.

`ConvAttn` and `AttnAttn` below are written from the description of those networks alone, and share
no code with the library.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from interp.models import HookedAttnAttn, HookedConvAttn
from tests.models import zoo
from tests.models.zoo import N_CTX

D_VOCAB, D_MODEL = 19, 6


class QKV(nn.Module):
    """One attention head with square maps, no biases and no output map."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("W_Q", "W_K", "W_V"):
            linear = nn.Linear(D_MODEL, D_MODEL, bias=False)
            nn.init.xavier_normal_(linear.weight)
            self.add_module(name, linear)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        scores = self.W_Q(x) @ self.W_K(x).transpose(1, 2) / D_MODEL**0.5
        pattern = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return pattern.nan_to_num(0.0) @ self.W_V(x)  # a query that sees no key reads nothing


class Network(nn.Module):
    """What the two have in common: embeddings, who sees whom, and the unembedding."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.embeddings = nn.Embedding(D_VOCAB, D_MODEL)
        self.lm_head = nn.Linear(D_MODEL, D_VOCAB)

    def hidden(self, real: Tensor) -> Tensor:
        n = real.shape[1]
        future = torch.ones(n, n, dtype=torch.bool).triu(1) & self.causal
        return future | ~real[:, None, :]

    def body(self, x: Tensor, real: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        return self.lm_head(self.body(self.embeddings(tokens), real))


class ConvAttn(Network):
    def __init__(self, causal: bool = True) -> None:
        super().__init__(causal)
        self.conv = nn.Conv1d(D_MODEL, D_MODEL, kernel_size=3, padding=1)
        self.register_buffer("filter_mask", torch.tensor([1.0, 1.0, 0.0]))
        self.qkv = QKV()

    def body(self, x: Tensor, real: Tensor) -> Tensor:
        # A convolution knows padding as zeros, at the ends and anywhere else.
        x = (x * real[..., None]).transpose(1, 2)
        weight = self.conv.weight * self.filter_mask
        x = nn.functional.conv1d(x, weight, self.conv.bias, padding=1).transpose(1, 2)
        return self.qkv(x, self.hidden(real))


class AttnAttn(Network):
    def __init__(self, causal: bool = True) -> None:
        super().__init__(causal)
        self.qkv1, self.qkv2 = QKV(), QKV()

    def body(self, x: Tensor, real: Tensor) -> Tensor:
        hidden = self.hidden(real)
        return self.qkv2(self.qkv1(x, hidden), hidden)


KINDS: dict[str, tuple[type[Network], Any]] = {
    "conv-attn": (ConvAttn, HookedConvAttn.from_course),
    "attn-attn": (AttnAttn, HookedAttnAttn.from_course),
}


def network(kind: str, causal: bool = True) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return KINDS[kind][0](causal).double()


def tokens() -> Tensor:
    return zoo.tokens(4, d_vocab=D_VOCAB)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_the_loaded_model_computes_what_the_network_computes(kind: str, causal: bool) -> None:
    theirs = network(kind, causal)
    ours = KINDS[kind][1](theirs.state_dict(), causal=causal)
    assert not ours.training
    assert ours.W_E.dtype == torch.float64
    assert_close(ours(tokens()), theirs(tokens()), rtol=0, atol=1e-10)
    mask = zoo.right_padding(N_CTX, 6, 3, 1)
    padded, expected = ours(tokens(), attention_mask=mask), theirs(tokens(), mask)
    assert_close(padded[mask], expected[mask], rtol=0, atol=1e-10)
    left = mask.flip(-1)
    assert_close(
        ours(tokens(), attention_mask=left)[left], theirs(tokens(), left)[left], rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_mask_leaks_the_future_and_ours_does_not(kind: str) -> None:
    state, other = network(kind).state_dict(), tokens()
    other[:, -1] = (other[:, -1] + 1) % D_VOCAB
    for causal in (True, False):
        model = KINDS[kind][1](state, causal=causal)
        change = (model(tokens()) - model(other))[:, :-1].abs().max()
        assert change < 1e-12 if causal else change > 1e-3


def test_the_convolution_never_reads_the_next_token() -> None:
    theirs = network("conv-attn")
    model = HookedConvAttn.from_course(theirs.state_dict(), causal=False)
    other = tokens()
    other[:, 5] = (other[:, 5] + 1) % D_VOCAB
    outs = [model.run_with_cache(batch)[1]["blocks.0.hook_conv_out"] for batch in (tokens(), other)]
    moved = (outs[0] - outs[1]).abs().amax((0, 2)) > 1e-9
    assert moved.tolist() == [t in (5, 6) for t in range(N_CTX)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_where_it_belongs(kind: str) -> None:
    state = network(kind).state_dict()
    model = KINDS[kind][1](state)
    assert torch.equal(model.W_E, state["embeddings.weight"])
    assert torch.equal(model.W_U, state["lm_head.weight"].T)
    assert torch.equal(model.b_U, state["lm_head.bias"])
    if kind == "conv-attn":
        assert torch.equal(model.W_Q[0, 0], state["qkv.W_Q.weight"].T)
        assert torch.equal(model.conv(0).W[0], state["conv.weight"][:, :, 1].T)  # this token
        assert torch.equal(model.conv(0).W[1], state["conv.weight"][:, :, 0].T)  # the one before
    else:
        assert torch.equal(model.W_K[1, 0], state["qkv2.W_K.weight"].T)
        assert torch.equal(model.W_V[0, 0], state["qkv1.W_V.weight"].T)
    assert torch.equal(model.W_O[0, 0], torch.eye(D_MODEL))


def test_the_weights_are_copies() -> None:
    theirs = network("conv-attn")
    model = HookedConvAttn.from_course(theirs.state_dict())
    before = model(tokens())
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.mul_(-3)
    assert torch.equal(model(tokens()), before)


def test_the_mask_buffer_may_be_missing_and_of_any_shape() -> None:
    theirs = network("conv-attn")
    state = theirs.state_dict()
    expected = HookedConvAttn.from_course(state)(tokens())
    state["filter_mask"] = state["filter_mask"].view(1, 1, 3).expand(D_MODEL, D_MODEL, 3)
    assert torch.equal(HookedConvAttn.from_course(state)(tokens()), expected)
    del state["filter_mask"]
    assert torch.equal(HookedConvAttn.from_course(state)(tokens()), expected)


def test_the_context_is_as_long_as_asked() -> None:
    state = network("attn-attn").state_dict()
    model = HookedAttnAttn.from_course(state, n_ctx=4)
    with pytest.raises(ValueError, match="n_ctx=4"):
        model(tokens())


def edited(kind: str, **changes: Tensor | None) -> dict[str, Tensor]:
    state: dict[str, Any] = dict(network(kind).state_dict())
    for key, value in changes.items():
        state[key.replace("__", ".")] = value
    return {key: value for key, value in state.items() if value is not None}


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no embeddings": ("conv-attn", {"embeddings__weight": None}, "embeddings.weight is missing"),
    "flat embeddings": (
        "conv-attn",
        {"embeddings__weight": torch.zeros(9)},
        r"embeddings.weight is of shape \(9,\), but must be \[vocab, d_model\]",
    ),
    "missing key": ("conv-attn", {"qkv__W_K__weight": None}, "key 'qkv.W_K.weight' is missing"),
    "missing bias": ("attn-attn", {"lm_head__bias": None}, "key 'lm_head.bias' is missing"),
    "misspelt key": (
        "attn-attn",
        {"qkv2__W_V__weight": None, "qkv2__Wv__weight": torch.zeros(6, 6)},
        "key 'qkv2.W_V.weight' is missing; did you mean .*'qkv2.Wv.weight'",
    ),
    "surplus key": (
        "conv-attn",
        {"qkv__W_O__weight": torch.zeros(6, 6)},
        "key 'qkv.W_O.weight' has no place in this model",
    ),
    "a bias too many": (
        "attn-attn",
        {"qkv1__W_Q__bias": torch.zeros(6)},
        "key 'qkv1.W_Q.bias' has no place in this model",
    ),
    "kernel of five": (
        "conv-attn",
        {"conv__weight": torch.zeros(6, 6, 5)},
        r"'conv.weight' has shape \(6, 6, 5\), but must be \(6, 6, 3\)",
    ),
    "narrow head": (
        "attn-attn",
        {"qkv2__W_Q__weight": torch.zeros(3, 6)},
        r"'qkv2.W_Q.weight' has shape \(3, 6\), but must be \(6, 6\)",
    ),
    "a mask that leaks": (
        "conv-attn",
        {"filter_mask": torch.ones(3)},
        r"filter_mask is \[1.0, 1.0, 1.0\], but must be \[1, 1, 0\], or the future leaks",
    ),
    "half a mask that leaks": (
        "conv-attn",
        {"filter_mask": torch.stack([torch.tensor([1.0, 1, 0]), torch.ones(3)])[:, None]},
        r"filter_mask is \[1.0, 1.0, 1.0\], .* or the future leaks",
    ),
    "a mask of another length": (
        "conv-attn",
        {"filter_mask": torch.ones(4)},
        r"filter_mask has shape \(4,\)",
    ),
    "a mask without a convolution": (
        "attn-attn",
        {"filter_mask": torch.tensor([1.0, 1.0, 0.0])},
        "key 'filter_mask' has no place in this model",
    ),
    "the other network": ("attn-attn", {}, "key 'conv.weight' is missing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_key_is_named(name: str) -> None:
    kind, changes, message = WRONG[name]
    load = HookedConvAttn.from_course if name == "the other network" else KINDS[kind][1]
    with pytest.raises(ValueError, match=f"course network: .*{message}"):
        load(edited(kind, **changes))
