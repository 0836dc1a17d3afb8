"""What does a forward pass cost that nobody listens to? Against plain PyTorch, same weights.

    python benchmarks/forward.py

Target: at least 0.95 of plain PyTorch's speed. TransformerLens's native model stands beside it.
"""

import torch
from rivals.native import native_twin
from rivals.plain import Plain
from rivals.timing import in_turns, ratio, seconds, show

from interp.models import HookedAttnAttn

SHAPES = ((8, 512), (1, 512), (16, 128), (2, 2048))


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)  # a core is a core, on every machine
    model = HookedAttnAttn(
        d_vocab=5_000, d_model=512, n_heads=8, n_ctx=2048, unembed_bias=False
    ).eval()
    plain, native = Plain(model), native_twin(model)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for batch, length in SHAPES:
        tokens = torch.randint(5_000, (batch, length), generator=generator)
        for rival in (plain, native):
            torch.testing.assert_close(rival(tokens), model(tokens), rtol=0, atol=1e-4)
        times = in_turns(
            {
                "interp": lambda tokens=tokens: model(tokens),
                "plain": lambda tokens=tokens: plain(tokens),
                "TransformerLens": lambda tokens=tokens: native(tokens),
            },
            rounds=9,
        )
        speeds = [f"{ratio(times, 'plain', name):.2f}" for name in ("interp", "TransformerLens")]
        rows.append([f"{batch} x {length}", seconds(times, "plain"), *speeds])
    columns = ["tokens", "plain PyTorch", "interp's speed", "TransformerLens's speed"]
    show("Forward pass, attn-attn, width 512, 8 heads, vocabulary 5,000", columns, rows)


if __name__ == "__main__":
    main()
