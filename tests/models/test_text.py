"""Text in and out of a model, and generation."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from interp.models import HookedAttn, HookedConvAttn, HookedSequenceModel
from tests.models import zoo
from tests.models.zoo import D_VOCAB, N_CTX

WORDS = ["<s>", "</s>", "<pad>", "the", "cat", "sat", "on", "mat", "a"]


def tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """One token per word, so that every expected value can be worked out by eye."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def reader(**options: Any) -> HookedSequenceModel:
    sizes: dict[str, Any] = {"d_vocab": len(WORDS), "d_model": 12, "n_heads": 3, "n_ctx": N_CTX}
    model = HookedConvAttn(**sizes, **({"tokenizer": tokenizer()} | options))
    return zoo.randomise(model.double().eval())


def test_text_becomes_tokens() -> None:
    model = reader()
    assert model.to_tokens("the cat sat").tolist() == [[0, 3, 4, 5]]
    assert model.to_tokens("the cat", prepend_bos=False).tolist() == [[3, 4]]
    assert model.to_tokens("").tolist() == [[0]]
    both = model.to_tokens(["the cat sat", "mat"])
    assert both.tolist() == [[0, 3, 4, 5], [0, 7, 2, 2]]
    assert both.dtype == torch.long


def test_tokens_become_text() -> None:
    model = reader()
    assert model.to_string(torch.tensor([3, 4])) == "the cat"
    assert model.to_string([3, 4, 5]) == "the cat sat"
    assert model.to_string(4) == "cat"
    assert model.to_string(torch.tensor([[3, 4], [6, 7]])) == ["the cat", "on mat"]


def test_one_string_per_token() -> None:
    model = reader()
    expected = ["<s>", "the", "cat"]
    assert model.to_str_tokens("the cat") == expected
    assert model.to_str_tokens("the cat", prepend_bos=False) == expected[1:]
    for tokens in ([0, 3, 4], torch.tensor([0, 3, 4]), torch.tensor([[0, 3, 4]])):
        assert model.to_str_tokens(tokens) == expected
    with pytest.raises(ValueError, match="reads one sequence, but was given 2"):
        model.to_str_tokens(torch.zeros(2, 3, dtype=torch.long))


def test_a_single_token() -> None:
    model = reader()
    assert model.to_single_token("sat") == 5
    with pytest.raises(ValueError, match=r"'the cat' is 2 tokens, \['the', 'cat'\], but .* one"):
        model.to_single_token("the cat")
    with pytest.raises(ValueError, match="'' is 0 tokens"):
        model.to_single_token("")


def test_forward_reads_text_and_ignores_the_padding_it_added() -> None:
    model, texts = reader(), ["the cat sat on a mat", "mat"]
    logits, loss = model(texts, "both")
    losses = []
    for row, text in enumerate(texts):
        tokens = model.to_tokens(text)
        assert_close(logits[row, : tokens.shape[1]], model(tokens)[0], rtol=0, atol=1e-11)
        assert_close(model(text), model(tokens), rtol=0, atol=0)
        losses.append(model(tokens, "loss", loss_per_token=True))
    assert_close(loss, torch.cat(losses, dim=1).mean(), rtol=0, atol=1e-11)
    _, cache = model.run_with_cache("the cat")
    assert cache["pattern", 1].shape == (1, 3, 3, 3)
    assert cache.logit_attrs(cache.decompose_resid(), "cat").shape == (4, 1, 3)


def test_what_needs_a_tokenizer_says_so() -> None:
    model = reader(tokenizer=None)
    for ask in (
        lambda: model("the cat"),
        lambda: model.to_tokens("the"),
        lambda: model.to_str_tokens([1]),
        lambda: model.to_single_token("the"),
        lambda: model.to_string([1]),
        lambda: model.generate("the cat"),
    ):
        with pytest.raises(ValueError, match=r"no tokenizer; set model.tokenizer, or give tokens"):
            ask()


def test_special_tokens_that_are_missing_are_asked_for() -> None:
    model = reader(tokenizer=tokenizer(bos_token=None))
    with pytest.raises(ValueError, match="no BOS token; call with prepend_bos=False"):
        model.to_tokens("the")
    model = reader(tokenizer=tokenizer(pad_token=None))
    assert model.to_tokens(["the cat", "a mat"]).shape == (2, 3)
    with pytest.raises(ValueError, match="no padding token"):
        model.to_tokens(["the cat", "mat"])
    with pytest.raises(ValueError, match="no text in the list"):
        model.to_tokens([])


def greedy_by_hand(model: HookedSequenceModel, tokens: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        best = model(tokens[:, -N_CTX:])[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    return tokens


def sampler() -> HookedSequenceModel:
    sizes: dict[str, Any] = {"d_vocab": D_VOCAB, "d_model": 12, "n_heads": 3, "n_ctx": N_CTX}
    return zoo.randomise(HookedAttn(**sizes).double().eval())


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}]
)
@pytest.mark.parametrize("length", [1, N_CTX - 2, 3 * N_CTX])
def test_greedy_is_the_argmax_and_long_sequences_slide(
    options: dict[str, Any], length: int
) -> None:
    # More tokens than the context holds: only the last n_ctx are read.
    model, prompt = sampler(), zoo.tokens(3, length)
    out = model.generate(prompt, 12, **options)
    assert torch.equal(out, greedy_by_hand(model, prompt, 12))
    assert len(set(out[:, length:].flatten().tolist())) > 1


def test_sampling_follows_its_seed_and_leaves_the_global_state_alone() -> None:
    model, prompt = sampler(), zoo.tokens(4, 3)
    before = torch.get_rng_state()
    one, same, other = (model.generate(prompt, 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[:, :3], prompt)
    assert one.shape == (4, 13)


def first_samples(options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The model's distribution after one prompt, and how often each token was sampled."""
    model, prompt = sampler(), zoo.tokens(1, 3).expand(4000, -1)
    sampled = model.generate(prompt, 1, **options)[:, -1]
    probabilities = model(prompt[:1])[0, -1].softmax(-1)
    return probabilities, torch.bincount(sampled, minlength=D_VOCAB) / len(sampled)


def test_sampling_draws_from_the_models_own_distribution() -> None:
    probabilities, frequencies = first_samples({})
    assert (probabilities - frequencies).abs().max() < 0.03
    assert (frequencies > 0).sum() > 5


def test_temperature_sharpens() -> None:
    probabilities, frequencies = first_samples({"temperature": 0.5})
    sharper = probabilities.pow(2) / probabilities.pow(2).sum()
    assert (sharper - frequencies).abs().max() < 0.03
    assert (sharper - probabilities).abs().max() > 0.1


@pytest.mark.parametrize("top_k", [2, 5, 100])
def test_top_k_keeps_the_k_likeliest(top_k: int) -> None:
    probabilities, frequencies = first_samples({"top_k": top_k})
    kept = probabilities.topk(min(top_k, D_VOCAB)).indices
    expected = torch.zeros_like(probabilities)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert (expected - frequencies).abs().max() < 0.03
    assert not frequencies[expected == 0].any()


@pytest.mark.parametrize("top_p", [0.5, 0.9])
def test_top_p_keeps_the_fewest_that_reach_p(top_p: float) -> None:
    probabilities, frequencies = first_samples({"top_p": top_p})
    ordered, order = probabilities.sort(descending=True)
    count = int((ordered.cumsum(0) < top_p).sum()) + 1
    assert ordered[:count].sum() >= top_p > ordered[: count - 1].sum()
    assert not frequencies[order[count:]].any()
    assert (frequencies[order[:count]] - ordered[:count] / ordered[:count].sum()).abs().max() < 0.03


def test_text_is_continued_as_text() -> None:
    model = reader()
    text = model.generate("the cat", 4, temperature=0, stop_at_eos=False)
    tokens = greedy_by_hand(model, model.to_tokens("the cat"), 4)
    assert text == model.tokenizer.decode(tokens[0].tolist(), skip_special_tokens=True)
    assert text.startswith("the cat")
    assert model.generate("the cat", 0) == "the cat"


def test_generation_ends_where_every_sequence_has_ended() -> None:
    # The likeliest token after "mat" is the end; after anything else it is "mat".
    model = reader()

    def scripted(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, len(WORDS), dtype=torch.float64)
        logits[..., WORDS.index("mat")] = 1.0
        logits[tokens == WORDS.index("mat")] += 5 * torch.eye(len(WORDS))[1]
        return logits

    model.forward = scripted  # type: ignore[method-assign]
    prompt = torch.tensor([[0, 3], [0, 7]])
    out = model.generate(prompt, 6, temperature=0)
    # The first ends a step later; the second is filled up with the end token till then.
    assert out.tolist() == [[0, 3, 7, 1], [0, 7, 1, 1]]
    longer = model.generate(prompt, 6, temperature=0, stop_at_eos=False)
    assert longer.shape == (2, 8)
    assert longer[1].tolist() == [0, 7, 1, 7, 1, 7, 1, 7]


def test_modes_are_restored_even_after_an_error() -> None:
    model, prompt = reader(dropout=0.5), zoo.tokens(2, 3, d_vocab=len(WORDS))
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    dropped_out = model.generate(prompt, 5, temperature=0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(dropped_out, model.generate(prompt, 5, temperature=0))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.generate(torch.full((1, 2), 99), 5)
    assert [module.training for module in model.modules()] == modes


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "negative length": ({"max_new_tokens": -1}, "max_new_tokens is -1, but must be at least 0"),
    "negative temperature": ({"temperature": -0.5}, "temperature is -0.5, but must be at least 0"),
    "no temperature": ({"temperature": float("nan")}, "temperature is nan"),
    "no tokens": ({"top_k": 0}, "top_k is 0, but must be at least 1"),
    "no mass": ({"top_p": 0.0}, r"top_p is 0.0, but must be in \(0, 1\]"),
    "too much mass": ({"top_p": 1.5}, "top_p is 1.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_options_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options, message = REFUSED[name]
    model = sampler()
    monkeypatch.setattr(model, "forward", lambda tokens: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        model.generate(zoo.tokens(), **options)


def test_a_prompt_without_its_batch_dimension_is_refused(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"tokens\[None\]"):
        sampler().generate(torch.tensor([1, 2, 3]))


def test_tokens_that_cannot_be_read_are_refused(unchecked: None) -> None:
    model = sampler()
    for tokens, message in (
        (torch.full((1, 3), D_VOCAB), f"token {D_VOCAB} is outside the vocabulary of {D_VOCAB}"),
        (torch.full((1, 3), -1), "token -1 is outside the vocabulary"),
        (torch.zeros(3, dtype=torch.long), r"of shape \(3,\), but must be whole numbers"),
        (torch.zeros(1, 3), "torch.float32 .* must be whole numbers"),
        (torch.zeros(1, 3, dtype=torch.bool), "torch.bool .* must be whole numbers"),
        (zoo.tokens(1, N_CTX + 1), rf"shape \(1, {N_CTX + 1}\).* 1 to n_ctx={N_CTX} tokens"),
        (torch.zeros(1, 0, dtype=torch.long), "at least one sequence of 1 to"),
        (torch.zeros(0, 3, dtype=torch.long), "at least one sequence of 1 to"),
    ):
        with pytest.raises(ValueError, match=message):
            model(tokens)
    with pytest.raises(ValueError, match=r"a loss needs a next token, .* has 1 token; give 2"):
        model(torch.zeros(1, 1, dtype=torch.long), "loss")
    with pytest.raises(
        ValueError, match="return_type is 'logit'; choose one of logits, loss, both"
    ):
        model(zoo.tokens(), "logit")
    for layer in (-1, 2):
        with pytest.raises(ValueError, match=f"stop_at_layer is {layer}, .* give 0 to 1"):
            model(zoo.tokens(), stop_at_layer=layer)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_tokens_may_be_small_numbers(unchecked: None, dtype: torch.dtype) -> None:
    model = sampler()
    logits, loss = model(zoo.tokens().to(dtype), "both")
    assert_close(logits, model(zoo.tokens()), rtol=0, atol=0)
    assert_close(loss, model(zoo.tokens(), "loss"), rtol=0, atol=0)
