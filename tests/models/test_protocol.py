"""What an analysis may ask of a model: the answers, and that asking disturbs nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interp.models import HookedSequenceModel
from interp.views import Entries, undisturbed, view
from tests.models import zoo
from tests.models.test_text import WORDS, tokenizer
from tests.models.zoo import N_CTX

QUERIES = torch.tensor([7, 3, 3, 0, 5, 6])
KEYS = torch.tensor([7, 0, 2, 0, 4, 1])


def captured_by(model: Any, tokens: Tensor) -> dict[int, list[Tensor]]:
    """Entries in no order, along a diagonal, and of one key."""
    captured: dict[int, list[Tensor]] = {}

    def keep(layer: int, entries: Entries) -> None:
        later, first = torch.arange(1, N_CTX), torch.zeros(N_CTX - 1, dtype=torch.long)
        asked = ((QUERIES, KEYS), (later, later - 1), (later, first))
        captured[layer] = [entries(*pair).clone() for pair in asked]

    view(model).read_attention(tokens, keep)
    return captured


def entries_of(pattern: Tensor) -> list[Tensor]:
    later = torch.arange(1, N_CTX)
    asked = ((QUERIES, KEYS), (later, later - 1), (later, torch.zeros_like(later)))
    return [pattern[:, :, queries, keys] for queries, keys in asked]


def test_entries_are_those_of_the_pattern(model: HookedSequenceModel) -> None:
    if not model.attention_layers:
        with pytest.raises(ValueError, match="no attention layer with a pattern"):
            captured_by(model, zoo.tokens())
        return
    _, cache = model.run_with_cache(zoo.tokens())
    captured = captured_by(model, zoo.tokens())
    assert list(captured) == list(model.attention_layers)
    for layer, entries in captured.items():
        for got, expected in zip(entries, entries_of(cache["pattern", layer]), strict=True):
            assert_close(got, expected, rtol=0, atol=1e-12)


def test_who_changes_a_pattern_changes_what_is_heard() -> None:
    model = zoo.build("attn-attn: as it comes")
    uniform = torch.ones(N_CTX, N_CTX).tril().double()
    uniform = uniform / uniform.sum(-1, keepdim=True)
    for layer in (0, 1):
        name = f"blocks.{layer}.attn.hook_pattern"
        with model.hooks([(name, lambda pattern, hook: uniform.expand_as(pattern))]):
            captured = captured_by(model, zoo.tokens())[layer]
        for got, expected in zip(captured, entries_of(uniform.expand(3, 3, -1, -1)), strict=True):
            assert_close(got, expected)


def test_asking_disturbs_nothing() -> None:
    model = zoo.build("dropout").train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    one, two = (captured_by(model, zoo.tokens()) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(one[1], two[1], strict=True))  # no dropout
    assert not one[1][0].requires_grad
    assert [module.training for module in model.modules()] == modes
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error() -> None:
    model = zoo.build("dropout").train()

    def fail(layer: int, entries: Entries) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        view(model).read_attention(zoo.tokens(), fail)
    assert all(module.training for module in model.modules())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    with undisturbed(model):
        assert not model.training


def test_what_a_view_knows() -> None:
    model = zoo.build("deep")
    viewed = view(model)
    assert viewed.heads == {1: 3, 3: 2, 4: 2}
    assert viewed.head_labels == ("L1H0", "L1H1", "L1H2", "L3H0", "L3H1", "L4H0", "L4H1")
    assert (viewed.n_ctx, viewed.d_vocab) == (N_CTX, zoo.D_VOCAB)
    assert viewed.name == "HookedSequenceModel"
    assert (viewed.bos, viewed.special_tokens, viewed.words([3, 1])) == (0, (), ["3", "1"])
    model.tokenizer, model.loaded_from = tokenizer(), "my-model"
    assert viewed.name == "my-model (HookedSequenceModel)"
    # The model has more rows than the tokenizer has words: no probe should draw those either.
    unused = range(len(WORDS), zoo.D_VOCAB)
    assert viewed.special_tokens == (0, 1, 2, *unused)
    assert (viewed.bos, viewed.words([3, 4])) == (0, ["the", "cat"])
    assert_close(viewed.logits(zoo.tokens()), model(zoo.tokens()), rtol=0, atol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_uniform_attention(causal: bool) -> None:
    model = zoo.build("attn: as it comes" if causal else "not causal")
    viewed, layer = view(model), model.attention_layers[0]
    chance = viewed.uniform(layer, QUERIES, KEYS, N_CTX)
    expected = [1 / (q + 1) if causal else 1 / N_CTX for q in QUERIES.tolist()]
    assert_close(chance, torch.tensor(expected, dtype=torch.float64))
    assert viewed.causal(layer) is causal


def test_a_compiled_model_answers_for_the_one_inside() -> None:
    model = zoo.build("attn: as it comes")
    compiled = captured_by(torch.compile(model, backend="eager"), zoo.tokens())
    for got, expected in zip(compiled[0], captured_by(model, zoo.tokens())[0], strict=True):
        assert torch.equal(got, expected)


def test_what_cannot_be_viewed_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"Linear cannot be analysed; give an interp model, such as"
    ):
        view(torch.nn.Linear(2, 2))


def test_a_weight_that_is_not_finite_is_named() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        model = zoo.build("conv-attn: as it comes")
        view(model).check_finite()
        with torch.no_grad():
            model.conv(0).W_conv[1, 2, 3] = value
        with pytest.raises(ValueError, match=r"weight 'blocks\.0\.conv\.W_conv' holds NaN or inf"):
            view(model).check_finite()


def test_tokens_that_cannot_be_read_are_refused(unchecked: None) -> None:
    viewed = view(zoo.build("attn: as it comes"))
    viewed.check_tokens(zoo.tokens())
    for tokens, message in (
        (torch.zeros(1, 3), "torch.float32 of shape .* must be whole numbers"),
        (torch.zeros(3, dtype=torch.long), r"of shape \(3,\)"),
        (zoo.tokens(1, N_CTX + 1), f"{N_CTX + 1} tokens, but must have 2 to n_ctx={N_CTX}"),
        (zoo.tokens(1, 1), "have 1 tokens, but must have 2 to"),
        (torch.full((1, 3), zoo.D_VOCAB), f"token {zoo.D_VOCAB} is outside the vocabulary"),
        (torch.full((1, 3), -2), "token -2 is outside the vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            viewed.check_tokens(tokens)
    with pytest.raises(TypeError, match=r"tokens are list; give model\.to_tokens"):
        viewed.check_tokens([[1, 2]])  # type: ignore[arg-type]
