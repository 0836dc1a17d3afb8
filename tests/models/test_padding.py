"""The key padding mask: what is not real is never attended to, convolved or scored."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interp.models import Attention, Conv
from interp.models.layers import CausalConv
from interp.models.layers import Conv as ConvSpec
from interp.models.layers.attention import smeared
from tests.models import zoo
from tests.models.zoo import HEADS, N_CTX, SMEARED, config

LEFT_PADDED = {
    "conv": config(Conv(lags=3, lag_bias=True), HEADS, positions="none"),
    "smeared": config(SMEARED, HEADS, positions="none"),
    "smeared, rotary": config(Conv(), SMEARED, positions="rotary"),
    "not causal": config(Conv(), Attention(n_heads=3, d_head=4, causal=False), positions="none"),
}


def left_padding(*lengths: int) -> Tensor:
    return zoo.right_padding(*lengths).flip(-1)


@pytest.mark.parametrize("name", LEFT_PADDED)
@pytest.mark.parametrize("hooked", [False, True])
def test_padding_on_the_left_is_as_if_it_were_not_there(name: str, hooked: bool) -> None:
    # Without absolute positions nothing else tells where the sequence starts.
    model = zoo.from_config(LEFT_PADDED[name])
    tokens, lengths = zoo.tokens(), (N_CTX, 5, 2)
    hooks = zoo.listening(model) if hooked else {}
    padded = model.run_with_hooks(tokens, attention_mask=left_padding(*lengths), **hooks)
    assert padded.isfinite().all()
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, -length:])
        assert_close(padded[row : row + 1, -length:], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("name", ["conv-attn: as it comes", "smeared-attn: rotary, rms", "post"])
def test_queries_that_see_no_key_give_finite_logits_and_gradients(name: str, hooked: bool) -> None:
    model = zoo.build(name)
    hooks = zoo.listening(model) if hooked else {}
    mask = left_padding(N_CTX, 3, 0)
    with model.hooks(**hooks):
        logits, loss = model(zoo.tokens(), "both", attention_mask=mask)
        loss.backward()
    assert logits.isfinite().all()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    assert model.embed.W_E.grad.abs().max() > 1e-6


def test_padded_keys_get_no_attention_and_rows_without_keys_none_at_all() -> None:
    model, mask = zoo.build("deep"), left_padding(N_CTX, 3, 0)
    mask[0, 2] = False  # a hole in the middle
    _, cache = model.run_with_cache(zoo.tokens(), attention_mask=mask)
    for layer in model.attention_layers:
        pattern = cache["pattern", layer]
        assert not pattern.transpose(1, 3)[~mask].any()
        sees_a_key = mask.cumsum(-1) > 0
        mass = pattern.sum(-1).transpose(1, 2)
        assert_close(mass, sees_a_key[..., None].expand_as(mass).to(mass))
        assert not cache["z", layer][~sees_a_key].any()


def test_a_batch_of_padding_alone_costs_nothing() -> None:
    model = zoo.build("conv-attn: as it comes")
    nothing_real = torch.zeros(3, N_CTX, dtype=torch.bool)
    assert model(zoo.tokens(), "loss", attention_mask=nothing_real).item() == 0.0


def test_tokens_under_padding_do_not_matter() -> None:
    model, mask = zoo.build("deep"), zoo.right_padding(N_CTX, 4, 2)
    tokens = zoo.tokens()
    other = torch.where(mask, tokens, zoo.tokens(seed=9))
    assert not torch.equal(tokens, other)
    one, two = (model(batch, attention_mask=mask)[mask] for batch in (tokens, other))
    assert_close(one, two, rtol=0, atol=0)
    losses = [model(batch, "loss", attention_mask=mask) for batch in (tokens, other)]
    assert_close(losses[0], losses[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("as_ints", [torch.int64, torch.float32])
def test_the_mask_may_be_of_ones_and_zeros(as_ints: torch.dtype) -> None:
    model, mask = zoo.build("conv-attn: as it comes"), zoo.right_padding(N_CTX, 4, 2)
    logits = model(zoo.tokens(), attention_mask=mask)
    assert torch.equal(model(zoo.tokens(), attention_mask=mask.to(as_ints)), logits)
    assert not torch.equal(model(zoo.tokens()), logits)


def test_a_convolution_reads_zero_where_there_is_padding() -> None:
    # Worked by hand: one channel, weights 1, 10, 100 at lags 0, 1, 2, a bias of 0.5.
    conv = CausalConv(1, ConvSpec(lags=3))
    with torch.no_grad():
        conv.W_conv.copy_(torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1))
        conv.b_conv.fill_(0.5)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1)
    assert conv(x).flatten().tolist() == [1.5, 12.5, 123.5, 234.5]
    mask = torch.tensor([[True, False, True, True]])
    assert conv(x, key_mask=mask).flatten().tolist() == [1.5, 10.5, 103.5, 34.5]


def test_a_missing_token_has_no_lag_bias() -> None:
    conv = CausalConv(1, ConvSpec(lags=2, bias=False, lag_bias=True, depthwise=True))
    with torch.no_grad():
        conv.W_conv.fill_(0.0)
        conv.b_lags.copy_(torch.tensor([[1.0], [10.0]]))
    x = torch.zeros(1, 4, 1)
    assert conv(x).flatten().tolist() == [1, 11, 11, 11]
    mask = torch.tensor([[True, False, True, True]])
    assert conv(x, key_mask=mask).flatten().tolist() == [1, 10, 1, 11]


def test_smearing_by_hand() -> None:
    keys = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1).expand(1, 4, 2, 1)
    share = torch.tensor([0.75, 1.0])  # the second head keeps its keys
    mixed = sum(smeared(keys, share, None))[0, :, :, 0].T.tolist()
    assert mixed == [[1, 1.75, 3.5, 7], [1, 2, 4, 8]]
    mask = torch.tensor([[False, True, True, False]])
    # The first real key, after padding, stays as it is.
    assert sum(smeared(keys, share, mask))[0, 1:3, 0, 0].tolist() == [2, 3.5]


def test_a_mask_of_another_shape_is_refused(unchecked: None) -> None:
    model = zoo.build("attn: as it comes")
    with pytest.raises(ValueError, match=r"mask has shape \(3, 7\), but tokens have \(3, 8\)"):
        model(zoo.tokens(), attention_mask=torch.ones(3, 7))
