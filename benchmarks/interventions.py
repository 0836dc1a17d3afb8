"""What does it cost to ablate every head? Against one TransformerLens forward per head.

    python benchmarks/interventions.py

attn-attn, width 512, 8 heads in each of two layers, vocabulary 5,000, 8 x 513 tokens, on one core.

Three metrics. The loss needs all logits: besides the unembedding of every unit and the layer above
the eight lower heads, nothing can be left out, and `unavoidable` does just that, on the same
tensors; the target is at most 1.3 times its time, and half of TransformerLens's. The
in-context-learning score needs the logits of two positions, the induction score of the upper heads
none: the target is at least 8 times TransformerLens's speed. TransformerLens is called as its
tutorials do, one `run_with_hooks` per head. All three give equal effects (1e-5).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rivals.native import native_twin
from rivals.timing import in_turns, ratio, seconds, show
from torch import Tensor

from interp.analysis import ablate, repeated_tokens
from interp.analysis.interventions.metrics import InContextLearning, InductionScore, Metric
from interp.models import HookedAttnAttn

D_VOCAB, N, N_SEQUENCES = 5_000, 256, 8
UPPER_HEADS = tuple(f"L1H{head}" for head in range(8))
EARLY, LATE = 50, 500
ROUNDS = 5
ROWS = 512
"""How many rows of logits a core makes fastest."""

Hook = tuple[str, Callable[..., Tensor | None]]


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)  # a core is a core, on every machine
    model = HookedAttnAttn(
        d_vocab=D_VOCAB, d_model=512, n_heads=8, n_ctx=2 * N + 1, unembed_bias=False
    ).eval()
    native = native_twin(model)
    tokens = repeated_tokens(N, d_vocab=D_VOCAB, bos=0, n_sequences=N_SEQUENCES).tokens
    rows = []
    for name, metric, theirs in (
        ("loss", "loss", mean_loss),
        ("in-context-learning score", InContextLearning(EARLY, LATE), late_minus_early),
        ("induction score", InductionScore(UPPER_HEADS), induction),
    ):
        rows.append(compare(name, model, native, tokens, metric, theirs))
    columns = [
        "metric",
        "interp",
        "over unavoidable",
        "faster than TransformerLens",
        "its plain forwards",
    ]
    show("Zero-ablation of 16 heads in two layers, 8 x 513 tokens", columns, rows)


def compare(
    name: str,
    model: HookedAttnAttn,
    native: Any,
    tokens: Tensor,
    metric: str | Metric,
    theirs: Callable[[Any, Tensor, list[Hook]], Tensor],
) -> list[str]:
    """One metric's row of the table."""

    def ours() -> Tensor:
        result = ablate(model, tokens, "heads", "zero", metric)
        return torch.tensor(result.sel(measure="effect").values)

    def one_forward_per_head() -> Tensor:
        clean = theirs(native, tokens, [])
        hooked = [theirs(native, tokens, [ablating(i, h)]) for i in range(2) for h in range(8)]
        return torch.stack(hooked).double().mean(1) - clean.double().mean()

    torch.testing.assert_close(ours(), one_forward_per_head(), rtol=0, atol=1e-5)
    contestants = {
        "interp": ours,
        "TransformerLens": one_forward_per_head,
        "plain": lambda: native(tokens, return_type="logits"),
    }
    if metric == "loss":
        contestants["unavoidable"] = lambda: unavoidable(model, tokens)
    times = in_turns(contestants, rounds=ROUNDS)
    over = f"{ratio(times, 'interp', 'unavoidable'):.2f}" if "unavoidable" in times else ""
    return [
        name,
        seconds(times, "interp"),
        over,
        f"{ratio(times, 'TransformerLens', 'interp'):.1f}",
        f"{ratio(times, 'TransformerLens', 'plain'):.1f}",
    ]


def ablating(layer: int, head: int) -> Hook:
    """A hook that puts zero in place of what one head attended to."""

    def zero(z: Tensor, hook: Any) -> Tensor:
        z[:, :, head] = 0
        return z

    return f"blocks.{layer}.attn.hook_z", zero


def losses(native: Any, tokens: Tensor, hooks: list[Hook]) -> Tensor:
    """Each token's loss, `[batch pos]`."""
    logits = native.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def mean_loss(native: Any, tokens: Tensor, hooks: list[Hook]) -> Tensor:
    return losses(native, tokens, hooks).mean(1)


def late_minus_early(native: Any, tokens: Tensor, hooks: list[Hook]) -> Tensor:
    loss = losses(native, tokens, hooks)
    return loss[:, LATE - 1] - loss[:, EARLY - 1]


def induction(native: Any, tokens: Tensor, hooks: list[Hook]) -> Tensor:
    """The upper heads' mean induction score; nothing above their patterns is asked for."""
    scores = []

    def read(pattern: Tensor, hook: Any) -> None:
        scores.append(pattern.diagonal(1 - N, -2, -1)[..., 2:].mean((1, 2)))

    reading = ("blocks.1.attn.hook_pattern", read)
    native.run_with_hooks(tokens, fwd_hooks=[*hooks, reading], return_type=None)
    return scores[0]


def unavoidable(model: HookedAttnAttn, tokens: Tensor) -> None:
    """The upper layer for each lower head, and for every head the end, in the fastest way."""
    stream = model(tokens, stop_at_layer=1)
    for head in range(16):
        above = model.blocks[1](stream) if head < 8 else stream
        for rows in model.ln_final(above).flatten(0, 1).split(ROWS):
            model.unembed(rows)


if __name__ == "__main__":
    main()
