"""How much memory do head scores of a long context take beyond the model? Linux only.

A process of its own, because the most that a process ever held never goes down again.
"""

from pathlib import Path

from interp.analysis import head_scores
from interp.models import HookedAttnAttn

N = 8_192


def megabytes(field: str) -> float:
    """VmRSS is what the process holds now, VmHWM the most that it ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def main() -> None:
    model = HookedAttnAttn(d_vocab=10_000, d_model=512, n_heads=8, n_ctx=2 * N + 1)
    before = megabytes("VmRSS")
    head_scores(model, n=N, n_sequences=1)
    more = megabytes("VmHWM") - before
    print(f"T = {2 * N + 1:,}: head scores took {more:,.0f} MB beyond the model")


if __name__ == "__main__":
    main()
