"""The loss in chunks is the loss, and never holds all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interp.models import HookedAttnAttn, HookedConvAttn, HookedGPT, HookedSequenceModel
from interp.models import losses as module
from interp.models.losses import linear_cross_entropy, loss_and_accuracy
from interp.training.loss import NextTokenLoss


@pytest.fixture(params=[7 * 19, 10**6], ids=["chunks", "one chunk"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Seven rows of nineteen logits at once, so that the last chunk is a short one; or all."""
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", request.param)
    return request.param


def given(bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    W_U = torch.randn(6, 19, generator=generator, dtype=torch.float64, requires_grad=True)
    b_U = torch.randn(19, generator=generator, dtype=torch.float64, requires_grad=True)
    return x, W_U, b_U if bias else None, torch.randint(19, (5, 8), generator=generator)


def by_hand(x: Tensor, W_U: Tensor, b_U: Tensor | None, targets: Tensor) -> Tensor:
    logits = x @ W_U if b_U is None else x @ W_U + b_U
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_cross_entropy_and_so_are_its_gradients(at_once: int, bias: bool):
    x, W_U, b_U, targets = given(bias)
    wanted = [tensor for tensor in (x, W_U, b_U) if tensor is not None]
    expected, found = by_hand(x, W_U, b_U, targets), linear_cross_entropy(x, W_U, b_U, targets)
    torch.testing.assert_close(found, expected)
    # Three times the loss: what comes from above is part of the gradient.
    for one, other in zip(
        torch.autograd.grad(3 * found, wanted),
        torch.autograd.grad(3 * expected, wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_large_logits_overflow_nothing():
    x, W_U, b_U, targets = given(bias=True)
    found = linear_cross_entropy(x.float() * 1e4, W_U.float(), b_U, targets)
    torch.testing.assert_close(found, by_hand(x * 1e4, W_U, b_U, targets).float())


def test_a_second_derivative_is_refused():
    x, W_U, b_U, targets = given(bias=True)
    (gradient,) = torch.autograd.grad(
        linear_cross_entropy(x, W_U, b_U, targets), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_losses_and_hits_of_single_tokens(at_once: int):
    x, W_U, b_U, targets = given(bias=True)
    losses, hits = loss_and_accuracy(x, W_U, b_U, targets)
    logits = x @ W_U + b_U
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(losses, expected)
    assert torch.equal(hits, (logits.argmax(-1) == targets).double())


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("training", [True, False])
def test_never_all_logits(training: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 10_000)
    model = HookedConvAttn(d_vocab=1_000, d_model=8, n_heads=2, n_ctx=64)
    tokens = torch.randint(1_000, (4, 64), generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        loss = NextTokenLoss(model).train(training)(tokens)["loss"]
        if training:
            loss.backward()
    # Attention of a head to all positions, or a chunk: 4 x 63 x 1,000 logits would be 252,000.
    assert largest.elements <= max(10_000, 4 * 2 * 64 * 64)


SIZES = {"d_vocab": 60, "d_model": 16, "n_heads": 2, "n_ctx": 12}
MODELS = [
    HookedConvAttn(**SIZES),
    HookedAttnAttn(**SIZES, unembed_bias=False),
    HookedGPT(**SIZES, n_layers=1, tied=True),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_training_sees_the_model_s_own_loss(model: HookedSequenceModel):
    model.double()
    tokens = torch.randint(60, (3, 12), generator=torch.Generator().manual_seed(1))
    model(tokens, return_type="loss").backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = NextTokenLoss(model).train()(tokens)["loss"]
    found.backward()
    torch.testing.assert_close(found, model(tokens, return_type="loss"))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], msg=name)


def test_hooks_before_the_unembedding_are_heard_and_obeyed():
    model = HookedConvAttn(**SIZES)
    tokens = torch.randint(60, (3, 12), generator=torch.Generator().manual_seed(1))
    wrapped, name = NextTokenLoss(model).train(), "ln_final.hook_normalized"
    with model.hooks(fwd_hooks=[(name, lambda x, hook: 0 * x)]):
        found = wrapped(tokens)["loss"]
    uniform_but_for_bias = F.cross_entropy(
        model.unembed.b_U.expand(33, -1), tokens[:, 1:].flatten()
    )
    torch.testing.assert_close(found, uniform_but_for_bias)


def test_evaluating_measures_each_block():
    model = HookedConvAttn(**SIZES)
    tokens = torch.randint(60, (3, 12), generator=torch.Generator().manual_seed(1))
    measures = NextTokenLoss(model).eval()(tokens)["measures"]
    logits, losses = model(tokens, return_type="both", loss_per_token=True)
    hits = (logits[:, :-1].argmax(-1) == tokens[:, 1:]).float()
    expected = torch.stack([losses.mean(1), hits.mean(1)], dim=-1)
    torch.testing.assert_close(measures, expected)


def test_bfloat16_products_with_float32_sums():
    x, W_U, b_U, targets = given(bias=True)
    x, W_U, b_U = (tensor.detach().float().requires_grad_() for tensor in (x, W_U, b_U))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy(x, W_U, b_U, targets)
    gradients = torch.autograd.grad(found, (x, W_U, b_U))
    exact = by_hand(x, W_U, b_U, targets)
    assert found.dtype == torch.float32
    assert found != exact
    torch.testing.assert_close(found, exact, rtol=0.01, atol=0)
    for one, other in zip(gradients, torch.autograd.grad(exact, (x, W_U, b_U)), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=2e-3)
