"""A character-level GPT, small enough to train here: it learns, and it writes."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from interp.models import HookedGPT

TEXT = "the cat sat on the mat. the dog sat on the log. the cat saw the dog, and the dog saw it. "
CHARACTERS = sorted(set(TEXT))
N_CTX = 32


def batches(n: int, seed: int) -> Iterator[Tensor]:
    stream = torch.tensor([CHARACTERS.index(character) for character in TEXT * 4])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        starts = torch.randint(len(stream) - N_CTX, (16,), generator=generator)
        yield stream[starts[:, None] + torch.arange(N_CTX)]


@pytest.fixture(scope="module", params=["pre", "post"])
def trained(request: pytest.FixtureRequest) -> HookedGPT:
    model = HookedGPT(
        d_vocab=len(CHARACTERS),
        d_model=64,
        n_layers=4,
        n_heads=4,
        n_ctx=N_CTX,
        dropout=0.1,
        norm_place=request.param,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    with torch.random.fork_rng():  # dropout draws from the global state
        torch.manual_seed(0)
        for tokens in batches(60, seed=1):
            optimizer.zero_grad()
            model(tokens, return_type="loss").backward()
            optimizer.step()
    return model.eval()


def test_it_is_the_model_that_was_asked_for(trained: HookedGPT) -> None:
    assert trained.cfg.d_mlp == 256
    assert trained.attention_layers == (0, 1, 2, 3)
    assert trained.W_Q.shape == (4, 4, 64, 16)
    assert trained.W_pos.shape == (N_CTX, 64)


def test_it_learns(trained: HookedGPT) -> None:
    loss = torch.stack([trained(tokens, "loss") for tokens in batches(4, seed=2)]).mean()
    untrained = HookedGPT.from_config(trained.config).eval()
    first = torch.stack([untrained(tokens, "loss") for tokens in batches(4, seed=2)]).mean()
    assert first > math.log(len(CHARACTERS)) - 0.3
    assert loss < 0.4 * math.log(len(CHARACTERS))


def test_it_writes(trained: HookedGPT) -> None:
    prompt = torch.tensor([[CHARACTERS.index(character) for character in "the cat s"]])
    out = trained.generate(prompt, 60, temperature=0)
    assert out.shape == (1, 69)
    text = "".join(CHARACTERS[token] for token in out[0].tolist())
    assert text.startswith("the cat s")
    words = text[9:].replace(".", " ").replace(",", " ").split()[1:-1]
    known = set(TEXT.replace(".", " ").replace(",", " ").split())
    assert sum(word in known for word in words) > 0.7 * len(words)


def test_what_it_computes_can_be_heard(trained: HookedGPT) -> None:
    tokens = next(batches(1, seed=3))
    logits, cache = trained.run_with_cache(tokens)
    assert cache["pattern", 3].shape == (16, 4, N_CTX, N_CTX)
    assert_close(cache["pattern", 3].sum(-1), torch.ones(16, 4, N_CTX))
    assert_close(logits, trained(tokens), rtol=0, atol=1e-4)
