"""One bar for who watches, plain lines for a log, and every number in a file as it comes."""

import io
import json
import re
from contextlib import redirect_stderr
from pathlib import Path

import pandas as pd
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from interp.training import Recipe, progress, train
from interp.training.progress import MetricsFile, ProgressBar

NOTHING = TrainingArguments(use_cpu=True)


class Terminal(io.StringIO):
    """Looks like one."""

    def isatty(self) -> bool:
        return True


def at(step: int, main: bool = True) -> TrainerState:
    return TrainerState(global_step=step, max_steps=40, is_world_process_zero=main)


def show(bar: ProgressBar, *, first: int = 0, main: bool = True) -> None:
    """A run of forty steps, from the first on."""
    control = TrainerControl()
    bar.on_train_begin(NOTHING, at(first, main), control)
    for step in range(first + 1, 41):
        bar.on_step_end(NOTHING, at(step, main), control)
        if step % 10 == 0:
            bar.on_log(NOTHING, at(step, main), control, {"loss": 100 / step, "grad_norm": 0.1})
        if step % 20 == 0:
            bar.on_log(NOTHING, at(step, main), control, {"best_induction": step / 100})
    bar.on_train_end(NOTHING, at(40, main), control)


def drawn(bar: ProgressBar, *, first: int = 0, main: bool = True) -> str:
    """What a terminal is sent."""
    with redirect_stderr(Terminal()) as terminal:
        show(bar, first=first, main=main)
    return terminal.getvalue()


def test_a_terminal_shows_one_bar_with_all_that_one_wants_to_know():
    found = drawn(ProgressBar("tiny", tokens_per_step=256))
    assert found.count("\n") == 1  # drawn over itself, and left in the end
    last = found.rstrip().split("\r")[-1]
    assert last.startswith("tiny: 100%")
    assert "10.2k/10.2k" in last
    assert re.search(r"\d\d:\d\d<00:00, .*tokens/s", last)
    assert "loss=2.500" in last
    assert "induction=0.400" in last


def test_a_resumed_bar_begins_where_the_run_does():
    states = drawn(ProgressBar("tiny", tokens_per_step=256), first=20).strip().split("\r")
    assert "50%" in states[0]
    assert "100%" in states[-1]


def test_a_log_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    times = iter(float(second) for second in range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    show(ProgressBar("tiny", tokens_per_step=256))
    lines = capsys.readouterr().err.splitlines()
    # 40 steps of 4 s are 160 s, with a line every 30 s and one in the end.
    assert 5 <= len(lines) <= 7
    assert lines[-1].startswith("tiny: step 40 of 40, ")
    assert lines[-1].endswith(", 00:00 left, loss 2.500, induction 0.400")
    steps, rate, left = re.match(
        r"tiny: step (\d+) of 40, (\d+) tokens/s, 0(\d:\d\d) left", lines[0]
    ).groups()
    assert 0 < int(rate) < 256 / 4
    minutes, seconds = left.split(":")
    expected = (40 - int(steps)) * 256 / int(rate)
    assert int(minutes) * 60 + int(seconds) == pytest.approx(expected, rel=0.1)


def test_other_processes_are_silent(capsys: pytest.CaptureFixture[str]):
    bar = ProgressBar("tiny", tokens_per_step=256)
    assert drawn(bar, main=False) == ""
    show(bar, main=False)
    assert capsys.readouterr().err == ""


def test_the_trainer_s_own_lines_are_not_shown(
    recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    train(recipe.replace(steps=2, probe_steps=1), tmp_path / "run")
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("tiny: step 2 of 2, ")


def numbers(run: Path) -> dict[tuple[int, str], float]:
    table = pd.read_csv(run / "metrics.csv")
    assert list(table.columns) == ["step", "tokens", "metric", "value"]
    assert (table["tokens"] == table["step"] * 8 * 32).all()
    assert not table.duplicated(["step", "metric"]).any()
    return {(row.step, row.metric): row.value for row in table.itertuples()}


def test_the_file_holds_what_the_history_holds(run: Path):
    found = numbers(run)
    rows = json.loads((run / "history.json").read_text())
    expected = {(row["step"], name): row[name] for row in rows for name in row}
    assert found.items() <= expected.items()
    for name in ("loss", "learning_rate", "eval_loss", "eval_accuracy", "best_induction", "drop"):
        assert (40, name) in found
    assert not any("runtime" in name or "second" in name.split("_")[-1] for _, name in found)


def test_going_on_takes_back_what_will_be_measured_again(tmp_path: Path):
    file, control = MetricsFile(tmp_path, tokens_per_step=256), TrainerControl()
    file.on_train_begin(NOTHING, at(0), control)
    for step in (10, 20, 30):
        file.on_log(NOTHING, at(step), control, {"loss": 1 / step})
    with file.path.open("a") as half:
        half.write("40,10240,lo")  # killed while it was written, by another library than ours
    again = MetricsFile(tmp_path, tokens_per_step=256)
    again.on_train_begin(NOTHING, at(20), control)
    again.on_log(NOTHING, at(30), control, {"loss": 0.5})
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,tokens,metric,value\n10,2560,loss,0.1\n20,5120,loss,0.05\n30,7680,loss,0.5\n"
    )


def test_one_process_writes_the_file(tmp_path: Path):
    file = MetricsFile(tmp_path, tokens_per_step=256)
    file.on_train_begin(NOTHING, at(0, main=False), TrainerControl())
    file.on_log(NOTHING, at(1, main=False), TrainerControl(), {"loss": 1.0})
    assert not list(tmp_path.iterdir())
