"""A full or read-only disk is a clear error, before the run or at the write; nothing is lost."""

import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from interp.training import Recipe, train
from interp.training.directory import last_checkpoint

Mount = Callable[[str], Path]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a disk in memory, where the test may."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a small disk, and not everywhere")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_read_only_disk_is_refused_before_any_work(recipe: Recipe, mounted: Mount):
    place = mounted("ro,size=1m")
    with pytest.raises(PermissionError, match=r"run cannot be written to \(Read-only file system"):
        train(recipe, place / "run")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_read_only_directory_is_refused_before_any_work(recipe: Recipe, tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"run cannot be written to \(Permission denied"):
        train(recipe, tmp_path / "run")


def test_a_disk_too_small_for_the_run_is_refused_before_any_work(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 200_000))
    # 19,828 weights of 4 bytes; three checkpoints of three times that, and the model itself.
    weights = sum(p.numel() * 4 for p in recipe.build(recipe.vocab_size).parameters())
    assert 10 * weights > 200_000
    with pytest.raises(OSError, match=r"run has 0 MB of free disk space, but the run needs"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_snapshots_need_space_too(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = sum(p.numel() * 4 for p in recipe.build(recipe.vocab_size).parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 12 * weights))
    with pytest.raises(OSError, match="free disk space"):
        train(recipe.replace(snapshots=4), tmp_path / "run")
    train(recipe.replace(steps=1), tmp_path / "run")


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    recipe: Recipe, run: Path, mounted: Mount, monkeypatch: pytest.MonkeyPatch
):
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "checkpoint-20").iterdir())
    place, data = mounted(f"size={int(1.7 * size)}"), run / "data"
    with monkeypatch.context() as patched:  # as if others had filled it since the run began
        patched.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 10**9))
        with pytest.raises(
            OSError, match=r"checkpoint-40 could not be written.*from checkpoint-20, which is whole"
        ):
            train(recipe, place / "run", data=data)
    assert last_checkpoint(place / "run") == place / "run" / "checkpoints" / "checkpoint-20"
    assert not list((place / "run" / "checkpoints").glob(".[ud]*"))
    subprocess.run(["mount", "-o", f"remount,size={10 * size}", str(place)], check=True)
    train(recipe, place / "run", resume=True, data=data)
    assert same_weights(place / "run", run)


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")],
    ids=["the system's", "PyTorch's"],
)
def test_a_write_that_fails_half_way(
    recipe: Recipe, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    real, fail_at = torch.save, str(tmp_path / "run/checkpoints")

    def save(state: object, path: str, **options: object) -> None:
        if "checkpoint-40" in str(path) and str(path).endswith("scheduler.pt"):
            Path(path).write_text("half")
            raise error
        real(state, path, **options)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match=r"checkpoint-40 could not be written.*checkpoint-20"):
        train(recipe, tmp_path / "run", data=run / "data")
    assert {path.name for path in Path(fail_at).iterdir()} == {".lock", "checkpoint-20"}
    monkeypatch.undo()
    train(recipe, tmp_path / "run", resume=True, data=run / "data")
    assert same_weights(tmp_path / "run", run)
