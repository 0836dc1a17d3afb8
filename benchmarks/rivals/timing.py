"""Times taken in turns, so that whatever else the machine does disturbs everybody alike."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def in_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of processor time of each, A B A B ..., after a warm-up of one round.

    Processor time, all threads added up: on a machine that does other things too, the clock on the
    wall measures those as well.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            if turn:
                times[name].append(time.process_time() - start)
    return times


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float:
    """The median over the rounds of one contestant's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))


def seconds(times: Mapping[str, list[float]], name: str) -> str:
    """The median, as text."""
    return f"{statistics.median(times[name]):.3f} s"


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A small table, and what it was measured on."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    threads = torch.get_num_threads()
    print(
        f"CPU {_processor()}, {threads} thread{'s' * (threads > 1)}, PyTorch {torch.__version__}, "
        "processor time, medians of rounds taken in turns\n"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
