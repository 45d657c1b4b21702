"""Folders that a converter writes: whole under their name, or not there."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from penspin_style import storage


@contextlib.contextmanager
def stage_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a hidden folder to fill; it becomes `target` when the block ends without an error.

    Everything in it is flushed to disk before that. After an error, nothing is left. What killed
    writers of the same target left is removed; that of living ones is locked and stays.

    Raises:
        FileExistsError: target is there already; nothing is written over.
        OSError: disk full, read only, ...
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists already; remove it or choose another name")
    storage.make_folder(target.parent)
    _remove_dead(target)
    stage = target.parent / f"{_prefix(target)}{uuid.uuid4().hex}"
    stage.mkdir()
    lock = _lock(stage)
    try:
        content = stage / target.name
        content.mkdir()
        yield content
        _flush(content)
        storage.rename(content, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(lock)


def _prefix(target: pathlib.Path) -> str:
    return f"{storage.STAGE}{target.name}-"


def _lock(stage: pathlib.Path) -> int:
    """Lock a folder as long as this process lives or the descriptor returned is open."""
    fd = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _remove_dead(target: pathlib.Path) -> None:
    for stage in target.parent.iterdir():
        if stage.name.startswith(_prefix(target)) and not stage.is_symlink():
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                lock = _lock(stage)
                shutil.rmtree(stage, ignore_errors=True)
                os.close(lock)


def _flush(folder: pathlib.Path) -> None:
    for inner in folder.iterdir():
        if inner.is_dir():
            _flush(inner)
        else:
            with inner.open("rb") as file:
                os.fsync(file.fileno())
    storage.flush_folder(folder)
