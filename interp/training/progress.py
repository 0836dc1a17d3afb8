"""What a run shows while it trains, and the file that its numbers go to as they come."""

import csv
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from interp.training.directory import write_whole

METRICS = "metrics.csv"
COLUMNS = ("step", "tokens", "metric", "value")
SECONDS_BETWEEN_LINES = 30.0

_SHOWN = {"loss": "loss", "best_induction": "induction"}
_OF_THE_CALL = (
    "epoch",
    "total_flos",
    "train_",
    "eval_runtime",
    "eval_samples_",
    "eval_steps_",
    "eval_model_",
)


class MetricsFile(TrainerCallback):
    """Every number that is logged, in `metrics.csv`, a line for each as soon as it is known.

    A line is written by one call to the system, so that a reader finds whole lines, whenever the
    run is killed. What a resumed run will measure anew is taken out first.
    """

    def __init__(self, directory: Path, tokens_per_step: int):
        self.path, self.tokens_per_step = directory / METRICS, tokens_per_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what was measured up to the checkpoint."""
        if state.is_world_process_zero:
            kept = [row for row in self._rows() if int(row[0]) <= state.global_step]
            lines = [",".join(row) for row in (COLUMNS, *kept)]
            write_whole(self.path, "\n".join(lines) + "\n")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log with every checkpoint: a mean of losses cannot go on from one that was cut off."""
        control.should_log = control.should_log or control.should_save

    def _rows(self) -> list[list[str]]:
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.reader(file) if len(row) == len(COLUMNS)][1:]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append them, but for those that describe the call and not the model."""
        if not state.is_world_process_zero:
            return
        step, tokens = state.global_step, state.global_step * self.tokens_per_step
        lines = [
            f"{step},{tokens},{name},{value!r}\n"
            for name, value in (logs or {}).items()
            if not name.startswith(_OF_THE_CALL)
        ]
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write("".join(lines))


class ProgressBar(TrainerCallback):
    """One bar: tokens, tokens per second, time left, loss, the best induction score.

    In a notebook it is a widget. Where nobody watches, in a log file, it is a plain line now and
    then.
    """

    def __init__(self, name: str, tokens_per_step: int):
        self.name, self.tokens_per_step = name, tokens_per_step
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where the run begins or goes on."""
        self.bar = tqdm(
            desc=self.name,
            total=state.max_steps * self.tokens_per_step,
            initial=state.global_step * self.tokens_per_step,
            unit=" tokens",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not (state.is_world_process_zero and is_watched()),
        )
        self.plain = state.is_world_process_zero and not is_watched()
        self.began = self.last_line = time.monotonic()
        self.first_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move on by one batch."""
        self.bar.update(self.tokens_per_step)
        if self.plain and time.monotonic() > self.last_line + SECONDS_BETWEEN_LINES:
            self._line(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest loss and induction score."""
        numbers = logs or {}
        for name in _SHOWN.keys() & numbers.keys():
            self.shown[_SHOWN[name]] = f"{numbers[name]:.3f}"
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the last state of the bar, or say it in a line."""
        self.bar.close()
        if self.plain:
            self._line(state)

    def _line(self, state: TrainerState) -> None:
        self.last_line = time.monotonic()
        steps, elapsed = state.global_step - self.first_step, self.last_line - self.began
        left = elapsed / max(steps, 1) * (state.max_steps - state.global_step)
        parts = [
            f"{self.name}: step {state.global_step:,} of {state.max_steps:,}",
            f"{steps * self.tokens_per_step / max(elapsed, 1e-9):,.0f} tokens/s",
            f"{tqdm.format_interval(left)} left",
            *(f"{name} {value}" for name, value in self.shown.items()),
        ]
        say(", ".join(parts))


def say(text: str) -> None:
    """A line for whoever watches, or reads the log: not part of what a program prints."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def is_watched() -> bool:
    """Whether a bar that is drawn anew again and again makes sense: a terminal or a notebook."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
