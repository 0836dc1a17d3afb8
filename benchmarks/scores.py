"""What do head scores cost? Against TransformerLens with only its patterns cached, same weights.

    python benchmarks/scores.py

TransformerLens is called in both ways: with all sequences in one `run_with_cache`, as one would
write it, and with one sequence at a time, which keeps its patterns in the caches. Targets against
the first: 3.5 times as fast at T = 513, 10 times at T = 2,049. On one core of an AMD EPYC we
measured 4.0 and 7.5 with a vocabulary of 5,000, so the second is missed there, and 16 and 13 with
GPT-2's, whose unembedding TransformerLens computes and scores do not need. What is left of our time
at T = 2,049 is matrix products and the attention kernel. Head scores at T = 16,385 have to take
less than 1 GB beyond the model; we measured 283 MB.
"""

import subprocess
import sys
from pathlib import Path

import torch
from rivals.native import native_twin
from rivals.timing import in_turns, ratio, seconds, show
from torch import Tensor

from interp.analysis import head_scores, repeated_tokens
from interp.models import HookedAttnAttn

VOCABULARIES = (5_000, 50_257)
"""Small, and GPT-2's: the larger it is, the more it saves that scores need no unembedding."""

SETTINGS = ((50, 40), (256, 16), (1024, 4))
"""n and the number of sequences."""


def main() -> None:
    torch.set_num_threads(1)  # a core is a core, on every machine
    for d_vocab in VOCABULARIES:
        compare(d_vocab)
    probe = Path(__file__).parent / "rivals" / "memory.py"
    subprocess.run([sys.executable, str(probe)], check=True)


@torch.no_grad()
def compare(d_vocab: int) -> None:
    """Time both on one model, and show the table."""
    model = HookedAttnAttn(
        d_vocab=d_vocab, d_model=512, n_heads=8, n_ctx=2049, unembed_bias=False
    ).eval()
    native = native_twin(model)
    rows = []
    for n, n_sequences in SETTINGS:
        tokens = repeated_tokens(n, d_vocab=d_vocab, bos=0, n_sequences=n_sequences).tokens

        def ours(n: int = n, n_sequences: int = n_sequences) -> Tensor:
            return torch.tensor(head_scores(model, n=n, n_sequences=n_sequences).values)

        def theirs(at_once: int, tokens: Tensor = tokens, n: int = n) -> Tensor:
            return torch.cat([scores(native, some, n) for some in tokens.split(at_once)]).mean(0)

        torch.testing.assert_close(theirs(1).double(), ours(), rtol=0, atol=1e-6)
        times = in_turns(
            {
                "interp": ours,
                "all": lambda theirs=theirs, n_sequences=n_sequences: theirs(n_sequences),
                "single": lambda theirs=theirs: theirs(1),
            },
            rounds=3,
        )
        faster = [f"{ratio(times, name, 'interp'):.1f}" for name in ("all", "single")]
        rows.append([f"{2 * n + 1:,}", str(n_sequences), seconds(times, "interp"), *faster])
    columns = ["T", "sequences", "interp", "faster than one batch", "than one at a time"]
    title = f"Four head scores, attn-attn, width 512, 8 heads, vocabulary {d_vocab:,}"
    show(title, columns, rows)


def scores(native: object, tokens: Tensor, n: int) -> Tensor:
    """The four scores of every head, `[batch score head]`, from cached patterns."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    _, cache = native.run_with_cache(tokens, names_filter=names, return_type=None)  # type: ignore[attr-defined]
    layers = []
    for name in names:
        pattern = cache[name]
        stripes = [
            pattern.diagonal(1 - n, -2, -1)[..., 2:].mean(-1),
            pattern.diagonal(-1, -2, -1).mean(-1),
            pattern.diagonal(-n, -2, -1)[..., 1:].mean(-1),
            pattern[:, :, 1:, 0].mean(-1),
        ]
        layers.append(torch.stack(stripes, dim=1))
    return torch.cat(layers, dim=-1)


if __name__ == "__main__":
    main()
