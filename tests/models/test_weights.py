"""A model's weights under TransformerLens's names, against the modules that hold them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from interp.models import MLP, Attention, Conv, HookedSequenceModel
from tests.models import zoo
from tests.models.zoo import D_MODEL, D_VOCAB, HEADS, N_CTX, config

MIXED = config(Conv(lags=3, mlp=MLP(5)), HEADS, Conv(), Attention(n_heads=3, d_head=4, mlp=MLP(7)))


def mixed(**changes: Any) -> HookedSequenceModel:
    return zoo.from_config(MIXED.replace(**changes))


def test_stacks_run_over_the_layers_with_heads() -> None:
    model = mixed()
    assert model.attention_layers == (1, 3)
    assert model.conv_layers == (0, 2)
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        stack = getattr(model, name)
        for row, layer in enumerate(model.attention_layers):
            assert torch.equal(stack[row], getattr(model.blocks[layer].attn, name)), name
    assert model.W_Q.shape == model.W_K.shape == model.W_V.shape == (2, 3, D_MODEL, 4)
    assert model.W_O.shape == (2, 3, 4, D_MODEL)
    assert model.b_Q.shape == (2, 3, 4)
    assert model.b_O.shape == (2, D_MODEL)
    assert torch.equal(model.W_E, model.embed.W_E)
    assert torch.equal(model.W_pos, model.pos_embed.W_pos)
    assert torch.equal(model.W_U, model.unembed.W_U)
    assert torch.equal(model.b_U, model.unembed.b_U)


def test_a_bias_that_is_not_there_is_zero() -> None:
    model = zoo.build("no biases")
    for name in ("b_Q", "b_K", "b_V", "b_O", "b_U"):
        assert not getattr(model, name).any()
    assert model.b_U.shape == (D_VOCAB,)
    assert model.b_V.dtype == torch.float64
    assert model.accumulated_bias(2).tolist() == [0.0] * D_MODEL


def test_a_tied_unembedding_is_the_embedding() -> None:
    model = zoo.build("tied")
    assert torch.equal(model.W_U, model.W_E.T)
    assert "unembed.W_U" not in dict(model.named_parameters())
    with torch.no_grad():
        model.W_E[3] = 7.0
    assert (model.W_U[:, 3] == 7).all()


def test_circuits_are_the_explicit_products() -> None:
    model = mixed()
    for row, layer in enumerate(model.attention_layers):
        attn = model.attn(layer)
        for head in range(3):
            qk = attn.W_Q[head] @ attn.W_K[head].T
            ov = attn.W_V[head] @ attn.W_O[head]
            assert_close(model.QK[row, head].AB, qk, rtol=0, atol=1e-12)
            assert_close(model.OV[row, head].AB, ov, rtol=0, atol=1e-12)
    assert model.QK.shape == (2, 3, D_MODEL, D_MODEL)


def test_circuits_are_what_the_heads_do() -> None:
    # With nothing else in the way a score is x_q QK x_kᵀ / √d_head, and a head writes A x OV.
    spec = Attention(n_heads=3, d_head=4, bias=False)
    model = zoo.from_config(config(spec, positions="none", norm="none"))
    _, cache = model.run_with_cache(zoo.tokens())
    x = cache["hook_embed"]
    scores = torch.einsum("bqm,hmn,bkn->bhqk", x, model.QK.AB[0], x) / 2
    visible = torch.ones(N_CTX, N_CTX).tril().bool()
    assert_close(cache["attn_scores", 0][..., visible], scores[..., visible], rtol=0, atol=1e-12)
    written = torch.einsum("bhqk,bkm,hmn->bqhn", cache["pattern", 0], x, model.OV.AB[0])
    assert_close(cache["result", 0], written, rtol=0, atol=1e-12)


def test_the_output_map_that_is_not_there_is_a_slice_of_the_identity() -> None:
    model = zoo.build("no output map")
    assert torch.equal(model.W_O[0].flatten(0, 1), torch.eye(D_MODEL).double())
    _, cache = model.run_with_cache(zoo.tokens())
    assert_close(cache["attn_out", 1], cache["z", 1].flatten(2), rtol=0, atol=1e-13)


def test_a_depthwise_convolution_is_a_diagonal_one() -> None:
    deep = zoo.build("depthwise, rms, lag bias").conv(0)
    assert deep.W.shape == (3, D_MODEL, D_MODEL)
    assert torch.equal(deep.W, torch.diag_embed(deep.W_conv))
    x = torch.randn(2, 5, D_MODEL, generator=torch.Generator().manual_seed(0)).double()
    by_hand = deep.b_conv.expand(2, 5, -1).clone()
    for lag in range(3):
        by_hand[:, lag:] += x[:, : 5 - lag] @ deep.W[lag] + deep.b_lags[lag]
    assert_close(deep(x), by_hand, rtol=0, atol=1e-12)


def test_accumulated_biases_are_the_stream_of_a_model_that_writes_nothing_else() -> None:
    # With every map at zero, each layer writes its biases: the stream is their sum.
    model = mixed(positions="none")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.rsplit(".", 1)[-1] in ("W_E", "W_conv", "W_O", "W_out"):
                weight.zero_()
    _, cache = model.run_with_cache(zoo.tokens())
    for layer in range(4):
        expected = cache["resid_pre", layer][0, 0]
        assert_close(model.accumulated_bias(layer), expected, rtol=0, atol=1e-13)
    end = cache["resid_post", -1][1, 2]
    assert_close(model.accumulated_bias(4), end, rtol=0, atol=1e-13)
    middle = cache["resid_mid", 3][0, 0]
    assert_close(model.accumulated_bias(3, mlp_input=True), middle, rtol=0, atol=1e-13)


def test_accumulated_biases_by_name() -> None:
    # TransformerLens's contract: b_O of every layer before, and b_out unless it is left out.
    model = mixed()
    conv, mlp = model.conv(0).b_conv, model.blocks[0].mlp.b_out
    assert torch.equal(model.accumulated_bias(0), torch.zeros(D_MODEL).double())
    assert_close(model.accumulated_bias(1), conv + mlp)
    assert_close(model.accumulated_bias(1, include_mlp_biases=False), conv)
    assert_close(model.accumulated_bias(0, mlp_input=True), conv)
    assert_close(model.accumulated_bias(2), conv + mlp + model.attn(1).b_O)


@pytest.mark.parametrize("layer", [-1, 5])
def test_biases_up_to_a_layer_that_is_not_there_are_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer is {layer}, but must be 0 to 4"):
        mixed().accumulated_bias(layer)


def test_directions_and_biases_of_tokens_give_logits() -> None:
    model, tokens = mixed(), torch.tensor([[0, 5], [7, 22]])
    _, cache = model.run_with_cache(zoo.tokens())
    read = cache["resid_post", -1]
    scaled = (read - read.mean(-1, keepdim=True)) / cache["ln_final.hook_scale"]
    logits = model(zoo.tokens())
    for token in (3, torch.tensor(3)):
        total = scaled @ model.tokens_to_residual_directions(token) + model.logit_bias(token)
        assert_close(total, logits[..., 3], rtol=0, atol=1e-11)
    assert model.tokens_to_residual_directions(tokens).shape == (2, 2, D_MODEL)
    assert model.logit_bias(tokens).shape == (2, 2)
    folded = model.fold_norms()
    assert_close(
        folded.tokens_to_residual_directions(tokens), model.tokens_to_residual_directions(tokens)
    )
    assert_close(folded.logit_bias(tokens), model.logit_bias(tokens))


REFUSED: dict[str, tuple[str, Callable[[HookedSequenceModel], Any], str]] = {
    "heads of a conv layer": ("deep", lambda m: m.attn(0), r"layer 0 has no heads; .* \(1, 3, 4\)"),
    "heads of no layer": ("deep", lambda m: m.attn(9), "layer 9 has no heads"),
    "lags of an attention layer": (
        "deep",
        lambda m: m.conv(1),
        r"layer 1 has no convolution; the conv layers are \(0, 2\)",
    ),
    "unequal heads": (
        "deep",
        lambda m: m.W_Q,
        r"W_Q cannot be stacked: its shapes differ .*\(2, 12, 4\).*; use model.attn\(layer\)",
    ),
    "no heads": ("conv alone", lambda m: m.W_O, "W_O: this model has no attention layer"),
    "no circuits": ("conv alone", lambda m: m.QK, "W_Q: this model has no attention layer"),
    "no positions": (
        "no positions",
        lambda m: m.W_pos,
        r"no table of positions \(rotary or none\)",
    ),
    "rotary positions": ("rotary", lambda m: m.W_pos, "no table of positions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_model_does_not_have_is_refused(name: str) -> None:
    kind, ask, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ask(zoo.build(kind))


def test_what_transformer_lens_asks_of_a_model() -> None:
    cfg = zoo.build("deep").cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_mlp) == (5, 3, 6, 20)
    assert (cfg.d_model, cfg.d_vocab, cfg.n_ctx) == (D_MODEL, D_VOCAB, N_CTX)
    assert (cfg.attn_only, cfg.normalization_type, cfg.dtype) == (False, "LN", torch.float64)
    bare = zoo.build("no biases, no norm", torch.float32).cfg
    assert (bare.attn_only, bare.normalization_type, bare.dtype) == (True, None, torch.float32)
    assert zoo.build("rms").cfg.normalization_type == "RMS"
    assert zoo.build("conv alone").cfg.n_heads == 0
