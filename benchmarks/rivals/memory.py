"""How much memory do head scores of a long context take beyond the model? Linux only.

A process of its own, because the most that a process ever held never goes down again.
"""

import resource
from pathlib import Path

from interp.analysis import head_scores
from interp.models import HookedAttnAttn

N = 8_192


def held() -> float:
    """MB that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def most() -> float:
    """MB that the process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    model = HookedAttnAttn(d_vocab=10_000, d_model=512, n_heads=8, n_ctx=2 * N + 1)
    before = held()
    head_scores(model, n=N, n_sequences=1)
    print(f"T = {2 * N + 1:,}: head scores took {most() - before:,.0f} MB beyond the model")


if __name__ == "__main__":
    main()
