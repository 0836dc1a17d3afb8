"""A run's directory: what has its name is whole, and one run at a time writes there."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from interp.training import directory as module
from interp.training.directory import (
    alone_in,
    check_space,
    check_writable,
    drop_old_checkpoints,
    last_checkpoint,
    publish,
    sweep,
    unfinished,
    write_whole,
)


def checkpoint(run: Path, step: int) -> Path:
    path = run / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(str(step))
    return path


def test_the_last_checkpoint_is_the_one_with_the_most_steps(tmp_path: Path):
    assert last_checkpoint(tmp_path) is None
    for step in (200, 1000, 90):
        checkpoint(tmp_path, step)
    unfinished(checkpoint(tmp_path, 3000)).mkdir()
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-3000")
    (tmp_path / "checkpoints" / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-1000"


def test_old_checkpoints_go_by_their_steps_whatever_the_clock_says(tmp_path: Path):
    for step in (30, 10, 20):
        os.utime(checkpoint(tmp_path, step), (0, 1000 - step))  # the newest looks the oldest
    drop_old_checkpoints(tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"checkpoint-20", "checkpoint-30"}


def test_a_checkpoint_whose_removal_is_cut_short_has_lost_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for step in (10, 20, 30):
        checkpoint(tmp_path, step)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    drop_old_checkpoints(tmp_path)
    assert not (tmp_path / "checkpoints" / "checkpoint-10").exists()
    monkeypatch.undo()
    sweep(tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_published_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    final = tmp_path / "model"
    (unfinished(final) / "deep").mkdir(parents=True)
    (unfinished(final) / "deep" / "weights").write_text("1")
    synced: list[bool] = []
    monkeypatch.setattr(module, "_to_disk", lambda path: synced.append(final.exists()))
    publish(final)
    # The file, its two directories, and then the directory in which the name stands.
    assert synced == [False, False, False, True]
    assert (final / "deep" / "weights").read_text() == "1"


def test_a_text_file_is_the_old_one_until_it_is_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "recipe.toml"
    write_whole(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_sweeping_leaves_what_is_whole(tmp_path: Path):
    kept = checkpoint(tmp_path, 10)
    for name in (".unfinished-checkpoint-20", ".doomed-checkpoint-5"):
        (tmp_path / "checkpoints" / name / "half").mkdir(parents=True)
    (tmp_path / "data" / ".packing-abc").mkdir(parents=True)
    (tmp_path / ".unfinished-recipe.toml").write_text("na")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.name[0] == "."] == []
    assert kept.is_dir()


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"file.run cannot be written to \(Not a directory"):
        check_writable(tmp_path / "file" / "run")


def test_too_little_space_is_refused_with_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 350_000_000))
    check_space(tmp_path, 100_000_000, 50_000_000)
    with pytest.raises(OSError, match=r"350 MB of free.*needs 351 MB for 3 checkpoints of 100 MB"):
        check_space(tmp_path, 100_000_000, 51_000_000)
    checkpoint(tmp_path, 10)  # is one of the three
    check_space(tmp_path, 100_000_000, 150_000_000)


HOLD = """
import sys, time
from pathlib import Path
from interp.training.directory import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_is_gone_however_it_went(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        refusal = pytest.raises(FileExistsError, match="another process is training in")
        with refusal, alone_in(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with alone_in(tmp_path):
        pass
