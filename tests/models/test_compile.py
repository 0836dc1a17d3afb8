"""A compiled model computes what the eager one does, and never skips a hook in silence."""

import inspect
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interp.models import HookedSequenceModel
from interp.models.kernels import Visibility
from tests.models import zoo

pytestmark = [
    pytest.mark.usefixtures("unchecked", "readable_by_dynamo"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # PyTorch's own
]

TRACED = {
    "conv-attn: as it comes": "blocks.0.conv.hook_lags",
    "smeared-attn: rotary, rms": "blocks.0.attn.hook_smeared_k",
    "attn-attn: shortformer": "blocks.1.attn.hook_pattern",
    "gpt: post, large eps": "blocks.1.mlp.hook_post",
    "course": "blocks.1.attn.hook_v",
}


@pytest.fixture
def readable_by_dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The tests' shape checks wrap a dataclass's methods in something dynamo cannot trace.
    for method in (Visibility.__init__, Visibility.mask):
        monkeypatch.setattr(Visibility, method.__name__, inspect.unwrap(method))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: HookedSequenceModel, backend: str = "eager") -> Any:
    # fullgraph: a break would be an error, so nothing is left to eager code by accident.
    return torch.compile(model, backend=backend, fullgraph=True, dynamic=False)


def twice(activation: Tensor, hook: Any) -> Tensor:
    return 2 * activation


@pytest.mark.parametrize("name", TRACED)
def test_a_hook_attached_after_compiling_is_heard(name: str) -> None:
    model = zoo.build(name)
    quick, tokens = compiled(model), zoo.tokens()
    with torch.no_grad():
        plain = model(tokens)
        assert_close(quick(tokens), plain, rtol=0, atol=1e-11)
        captured: list[Tensor] = []
        with model.hooks([(TRACED[name], lambda activation, hook: captured.append(activation))]):
            assert_close(quick(tokens), plain, rtol=0, atol=1e-11)
        assert len(captured) == 1
        with model.hooks([(TRACED[name], twice)]):
            changed = model(tokens)
            assert_close(quick(tokens), changed, rtol=0, atol=1e-11)
        assert (changed - plain).abs().max() > 1e-3
        assert_close(quick(tokens), plain, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_every_hook_is_heard_by_a_compiled_model() -> None:
    model = zoo.build("deep")
    quick, tokens = compiled(model), zoo.tokens()
    captured: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        captured[hook.name] = activation

    with torch.no_grad():
        quick(tokens)
        with model.hooks([(lambda name: True, keep)]):
            logits = quick(tokens)
        expected, cache = model.run_with_cache(tokens)
    assert set(captured) == set(model.hook_dict)
    assert_close(logits, expected, rtol=0, atol=1e-11)
    for name, activation in captured.items():
        assert_close(activation, cache[name], rtol=0, atol=1e-11, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv-attn: as it comes", "smeared-attn: rotary, rms"])
def test_gradients_flow_through_the_compiled_model(name: str) -> None:
    model = zoo.build(name)
    quick, mask = compiled(model, "aot_eager"), zoo.right_padding(zoo.N_CTX, 5, 2)
    model(zoo.tokens(), "loss", attention_mask=mask).backward()
    expected = {key: weight.grad for key, weight in model.named_parameters()}
    model.zero_grad()
    quick(zoo.tokens(), "loss", attention_mask=mask).backward()
    for key, weight in model.named_parameters():
        assert_close(weight.grad, expected[key], rtol=0, atol=1e-11, msg=key)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="inductor needs a C++ compiler")
def test_the_default_compiler_agrees_hooked_or_not() -> None:
    model = zoo.build("conv-attn: as it comes", torch.float32)
    quick, tokens = compiled(model, "inductor"), zoo.tokens()
    with torch.no_grad():
        assert_close(quick(tokens), model(tokens), rtol=0, atol=1e-5)
        with model.hooks([("blocks.0.conv.hook_lags", twice)]):
            changed = model(tokens)
            assert_close(quick(tokens), changed, rtol=0, atol=1e-5)
    assert (changed - model(tokens)).abs().max() > 1e-3
