"""A gated short convolution, held to its formula; every analysis takes it by its description."""

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.models import MLP, Attention, Conv, GatedConv, HookedSequenceModel, ModelConfig
from interp.models.layers import KINDS
from tests.models import zoo

HEADS = Attention(n_heads=3, d_head=4)
STACKS = {
    "one": (GatedConv(lags=3), HEADS),
    "two in a row": (GatedConv(lags=2), GatedConv(lags=3, bias=False), HEADS),
    "below a convolution": (GatedConv(lags=2), Conv(lags=2), HEADS),
    "with an MLP": (GatedConv(lags=3, mlp=MLP(16)), HEADS),
}


def build(layers: tuple, **options) -> HookedSequenceModel:
    return zoo.from_config(zoo.config(*layers, **options), torch.float64)


def shifted(x: Tensor, lag: int) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :lag]), x[:, : x.shape[1] - lag]], dim=1)


def by_formula(model: HookedSequenceModel, x: Tensor, real: Tensor | None = None) -> Tensor:
    """(C_t ⊙ Σ_j w_j ⊙ B_{t-j} ⊙ u_{t-j}) W_out + b_conv, from what enters the convolution."""
    conv = model.conv(0)
    B, C, u = (
        x @ getattr(conv, f"W_{name}")
        + (0 if getattr(conv, f"b_{name}") is None else getattr(conv, f"b_{name}"))
        for name in "BCX"
    )
    B = B if real is None else B * real[..., None]
    lags = sum(row * shifted(B * u, lag) for lag, row in enumerate(conv.W_conv))
    return C * lags @ conv.W_out + (0 if conv.b_conv is None else conv.b_conv)


def entering(model: HookedSequenceModel, cache) -> Tensor:
    norm = model.blocks[0].ln1
    return cache["blocks.0.ln1.hook_normalized"] * norm.w + norm.b


@pytest.mark.parametrize("stack", STACKS)
def test_it_is_its_formula(stack: str):
    model, tokens = build(STACKS[stack]), zoo.tokens()
    _, cache = model.run_with_cache(tokens)
    out = by_formula(model, entering(model, cache))
    torch.testing.assert_close(cache["blocks.0.hook_conv_out"], out, rtol=0, atol=1e-12)


def test_padding_is_zero_to_it():
    model, tokens = build(STACKS["one"]), zoo.tokens(batch=3)
    real = zoo.right_padding(8, 5, 3).flip(1)
    _, cache = model.run_with_cache(tokens, attention_mask=real)
    out = by_formula(model, entering(model, cache), real.double())
    torch.testing.assert_close(cache["blocks.0.hook_conv_out"], out, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hook", ["hook_lags", "hook_gates"])
@pytest.mark.parametrize("stack", STACKS)
def test_listening_changes_nothing(stack: str, hook: str):
    model, tokens = build(STACKS[stack]), zoo.tokens()
    quiet = model(tokens)
    name = f"blocks.0.conv.{hook}"
    captured = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: None)])
    torch.testing.assert_close(captured, quiet, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lag", range(3))
def test_removing_a_lag_equals_zeroing_its_tap(lag: int):
    model, tokens = build(STACKS["one"]), zoo.tokens(batch=4)
    found = interp.ablate(model, tokens, f"L0.lag{lag}", control="none")
    clean = model(tokens, return_type="loss")
    with torch.no_grad():
        model.conv(0).W_conv[lag] = 0
    effect = (model(tokens, return_type="loss") - clean).item()
    assert found.sel(measure="effect").values.item() == pytest.approx(effect, abs=1e-12)


@pytest.mark.parametrize("stack", STACKS)
def test_what_a_head_reads_through_it_is_exact(stack: str):
    """The cells of the scores add up to the scores, gates and norms frozen at their own values."""
    model, tokens = build(STACKS[stack]), zoo.tokens(batch=1)
    layer = len(STACKS[stack]) - 1
    head = f"L{layer}H1"
    if stack == "with an MLP":  # without tokens it is not known what that adds
        with pytest.raises(ValueError, match="reads no earlier token"):
            interp.lag_circuits(model, head)
    circuits = interp.lag_circuits(model, head, tokens)
    sources = [name for name in circuits.scores.labels["key_lag"] if name.endswith(".mlp")]
    assert sources == (["L0.mlp"] if stack == "with an MLP" else [])
    _, cache = model.run_with_cache(tokens)
    scores = cache["attn_scores", layer][0, 1].detach()
    visible = scores.isfinite()
    total = torch.tensor(np.nansum(circuits.scores.values, axis=(0, 1)))
    torch.testing.assert_close(total[visible], scores[visible], rtol=0, atol=1e-10)


@pytest.mark.parametrize("stack", STACKS)
def test_the_parts_of_a_logit_add_up(stack: str):
    model, tokens = build(STACKS[stack]), zoo.tokens(batch=2)
    parts = interp.logit_attribution(model, tokens, correct=3)
    total = parts.values.sum(0)
    logits = model(tokens)[..., 3].mean(0).detach().numpy()
    np.testing.assert_allclose(total, logits, rtol=0, atol=1e-10)
    assert "L0.lag1" in parts.labels["part"]


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("stack", STACKS)
def test_folded_norms_change_nothing(stack: str, norm: str):
    model, tokens = build(STACKS[stack], norm=norm), zoo.tokens()
    folded = model.fold_norms()
    torch.testing.assert_close(folded(tokens), model(tokens), rtol=0, atol=1e-12)


def test_the_future_stays_out():
    model, tokens = build((GatedConv(lags=4), GatedConv(lags=2))), zoo.tokens()
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % zoo.D_VOCAB
    assert torch.equal(model(tokens)[:, :5], model(changed)[:, :5])


def test_a_planted_shift_is_found():
    """Gates of 1, only lag 1 open, u the stream: the head below it reads the token before alone."""
    layers = (GatedConv(lags=2), Attention(n_heads=2, d_head=6))
    config = ModelConfig(
        d_vocab=40,
        d_model=12,
        n_ctx=16,
        layers=layers,
        positions="none",
        norm="none",
        residual=False,
    )
    model = HookedSequenceModel(config).double()
    conv = model.conv(0)
    with torch.no_grad():
        for name in ("W_B", "W_C"):
            getattr(conv, name).zero_()
        conv.b_B.fill_(1)
        conv.b_C.fill_(1)
        conv.W_X.copy_(torch.eye(12))
        conv.W_out.copy_(torch.eye(12))
        conv.W_conv[0], conv.W_conv[1] = 0, 1
    tokens = torch.randint(40, (8, 12), generator=torch.Generator().manual_seed(0))
    shares = interp.detect_smeared_keys(model, tokens).sel(channel="k", measure="lag_share_1")
    np.testing.assert_allclose(shares.values, 1.0, atol=1e-9)


def test_weights_alone_do_not_say_what_gates_do():
    model = build(STACKS["one"])
    with pytest.raises(ValueError, match=r"gate.*Give tokens"):
        interp.detect_smeared_keys(model)
    assert interp.detect_smeared_keys(model, zoo.tokens(batch=6)).values.size


def test_it_is_saved_trained_and_counted(tmp_path):
    from interp.training.flops import flops_per_token
    from interp.training.optimizer import layouts_of

    config = zoo.config(*STACKS["one"])
    assert ModelConfig.from_json(config.to_json()) == config
    assert KINDS["gated_conv"] is GatedConv
    d = zoo.D_MODEL
    heads = flops_per_token(zoo.config(HEADS)).layers
    assert flops_per_token(config).layers - heads == 2 * (4 * d * d + 5 * d)
    model = zoo.from_config(config, torch.float32)
    layouts = layouts_of(model)
    assert {f"blocks.0.conv.{name}" for name in ("W_B", "W_C", "W_X", "W_out")} <= set(layouts)
    assert "blocks.0.conv.W_conv" not in layouts
    model.save_pretrained(tmp_path / "gated")
    again = interp.load(str(tmp_path / "gated"))
    assert torch.equal(again(zoo.tokens()), model(zoo.tokens()))
    model(zoo.tokens(), return_type="loss").backward()
    assert all(p.grad is not None for p in model.conv(0).parameters())


@pytest.mark.parametrize(
    ("made", "words"),
    [({"lags": 0}, "lags is 0"), ({"lags": 9}, "lags=9.*n_ctx=8")],
)
def test_bad_sizes_are_refused(made: dict, words: str):
    with pytest.raises(ValueError, match=words):
        zoo.config(GatedConv(**made), HEADS)
