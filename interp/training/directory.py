"""A run's directory: written whole or not at all, by one run at a time, never beyond its disk.

A run can be killed at any moment. So everything is written under a name that nobody reads, brought
to the disk, and renamed: what has its final name is whole. Leftovers are swept at the next start.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKPOINTS, DATA = "checkpoints", "data"
CHECKPOINT = "checkpoint-"
KEPT = 2
"""Checkpoints that are kept: one more than a run needs, should the last one turn out useless."""

_UNFINISHED, _DOOMED = ".unfinished-", ".doomed-"
_LEFTOVERS = (f"{_UNFINISHED}*", f"{_DOOMED}*", ".packing-*", ".preparing-*")


def last_checkpoint(directory: Path) -> Path | None:
    """The checkpoint with the most steps. All are whole: only then do they get their names."""
    found = _checkpoints(directory)
    return found[-1] if found else None


def steps_of(checkpoint: Path) -> int:
    """How many steps a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def _checkpoints(directory: Path) -> list[Path]:
    """From the oldest to the newest."""
    found = (directory / CHECKPOINTS).glob(f"{CHECKPOINT}*")
    return sorted((p for p in found if p.name[len(CHECKPOINT) :].isdecimal()), key=steps_of)


def drop_old_checkpoints(directory: Path) -> None:
    """Keep the newest ones, counted by their steps: clocks and copies can set times wrong."""
    for path in _checkpoints(directory)[:-KEPT]:
        _remove(path)


def _remove(directory: Path) -> None:
    """Under another name first: killed half-way, it must not look like a whole one."""
    doomed = directory.with_name(f"{_DOOMED}{directory.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    directory.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def unfinished(final: Path) -> Path:
    """The name of a file or directory while it is written, on the same disk."""
    return final.with_name(f"{_UNFINISHED}{final.name}")


def publish(final: Path) -> None:
    """Give `unfinished(final)` its name, once all of it is on the disk."""
    aside = unfinished(final)
    for path in [*aside.rglob("*"), aside]:
        _to_disk(path)
    if final.exists():  # of a run that was resumed from an earlier step
        _remove(final)
    aside.rename(final)
    _to_disk(final.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old one or the new one."""
    aside = unfinished(path)
    aside.write_bytes(content if isinstance(content, bytes) else content.encode())
    _to_disk(aside)
    aside.replace(path)
    _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, would survive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(directory: Path) -> None:
    """Remove what killed runs left half-written or half-removed."""
    for place in (directory, directory / CHECKPOINTS, directory / DATA):
        for path in [path for pattern in _LEFTOVERS for path in place.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def check_writable(directory: Path) -> None:
    """Make the directory and write to it: permissions alone do not tell, least of all root's.

    Raises:
        PermissionError: nothing can be written there; the message says why.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory, prefix=_UNFINISHED) as file:
            file.write(b"\0")
    except OSError as error:
        raise PermissionError(
            f"{directory} cannot be written to ({error.strerror}); choose another directory"
        ) from error


def check_space(directory: Path, checkpoint_bytes: int, other_bytes: int) -> None:
    """Refuse a run that its disk cannot hold.

    Args:
        directory: the run's; the checkpoints that it holds already are not counted again.
        checkpoint_bytes: of one checkpoint. One more is written before the oldest one goes.
        other_bytes: what is written beside the checkpoints.

    Raises:
        OSError: too little free space; the message says how much there is, and is needed.
    """
    there = min(len(_checkpoints(directory)), KEPT)
    needed = (KEPT + 1 - there) * checkpoint_bytes + other_bytes
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(
            f"{directory} has {free / 1e6:,.0f} MB of free disk space, but the run needs "
            f"{needed / 1e6:,.0f} MB for {KEPT + 1} checkpoints of {checkpoint_bytes / 1e6:,.0f} "
            "MB and the models it keeps; free some, or choose another directory"
        )


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """One run at a time: a second one would sweep away what the first is writing.

    The lock goes with the process, however that ends. Where there are no such locks (Windows, some
    network disks) nobody is refused.

    Raises:
        FileExistsError: another process is training there now.
    """
    (directory / CHECKPOINTS).mkdir(exist_ok=True)
    with (directory / CHECKPOINTS / ".lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(
                f"another process is training in {directory}; wait for it, or choose another one"
            ) from error
        except (ImportError, OSError):
            pass
        yield
