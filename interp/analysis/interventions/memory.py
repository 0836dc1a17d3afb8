"""How many sequences one forward pass takes: as many as memory holds, and no more than helps."""

from pathlib import Path

import torch

from interp.views import View

SHARE = 0.3
"""How much of the free memory a pass may take: others need some too, and the estimate is rough."""

TOKENS_ON_CPU = 8_192
"""More at once is no faster on a CPU: it only leaves the caches."""

UNKNOWN = 2**30
"""What is taken to be free where the system does not say: 1 GiB."""


def rows_that_fit(
    viewed: View, n_pos: int, *, with_patterns: bool = False, with_logits: bool = False
) -> int:
    """How many sequences of a length fit into the memory that is free now; at least one.

    Args:
        viewed: the model.
        n_pos: the length.
        with_patterns: whether attention patterns are spelled out.
        with_logits: whether all logits are there at once.
    """
    weight = next(viewed.model.parameters())
    # A few copies of the stream, of what a layer makes of it, and of what is put in its place.
    floats = n_pos * 24 * viewed.model.cfg.d_model
    if with_patterns:
        floats += 4 * max(viewed.heads.values(), default=0) * n_pos**2
    if with_logits:
        floats += 3 * n_pos * viewed.d_vocab
    fitting = int(SHARE * free_memory(weight.device) // (floats * weight.element_size()))
    if weight.device.type == "cpu":
        fitting = min(fitting, TOKENS_ON_CPU // n_pos)
    return max(1, fitting)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        facts = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return UNKNOWN
    available = [int(fact.split()[1]) for fact in facts if fact.startswith("MemAvailable")]
    return available[0] * 1024 if available else UNKNOWN
