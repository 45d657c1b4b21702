"""HDF5 files that are not there until they are whole: hidden, locked while their writer lives.

Beside `storage`, whose `write_file` has all of its content at once and needs no lock: a recorder
writes for minutes, here and there in its file, and others clean up in the same folder meanwhile.
"""

import contextlib
import fcntl
import io
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

from penspin_style import storage


class Stage(io.RawIOBase):
    """A hidden file that HDF5 writes through, locked while its writer lives.

    HDF5 does not survive a file that it cannot close (h5py #914). So it never learns of a fault:
    the first is kept in `error`, and what it writes from then on goes nowhere.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__()
        self.folder = folder
        self.error: OSError | None = None
        self.path, self._fd = _open_locked(folder)
        self._at = self._size = 0

    def check(self) -> None:
        """Raise the first fault."""
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        """Return True: HDF5 reads back what it wrote."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move; return the place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer, beyond the end with zeros."""
        view = memoryview(buffer).cast("B")
        data = b""
        if self.error is None:
            try:
                data = os.pread(self._fd, len(view), self._at)
            except OSError as error:
                self.error = error
        view[:] = data.ljust(len(view), b"\0")
        self._at += len(view)
        return len(view)

    def write(self, data: Any, /) -> int:
        """Write all of the data, or nowhere after a fault."""
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += os.pwrite(self._fd, view[done:], self._at + done)
            except OSError as error:
                self.error = error
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or lengthen the file."""
        size = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                self.error = error
        self._size = size
        return size

    def publish(self, target: pathlib.Path) -> None:
        """Give the file its name for good; what HDF5 holds of it must be closed.

        Raises:
            FileExistsError: the name is taken; nothing is written over.
            OSError: the disk failed; there is no file of this name.
        """
        self.check()
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists already")
        os.fsync(self._fd)
        storage.rename(self.path, target)

    def drop(self) -> None:
        """Remove the hidden file, if it is still that, and let go of the lock."""
        with contextlib.suppress(OSError):  # the next recorder removes it
            self.path.unlink(missing_ok=True)
        os.close(self._fd)


@contextlib.contextmanager
def stage_file(folder: pathlib.Path) -> Iterator[Stage]:
    """Yield a hidden file of the folder; remove it after the block unless it was published."""
    stage = Stage(folder)
    try:
        yield stage
    finally:
        stage.drop()


def _open_locked(folder: pathlib.Path) -> tuple[pathlib.Path, int]:
    while True:
        path = folder / f"{storage.STAGE}{uuid.uuid4().hex}.h5"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(BlockingIOError):  # a sweeper holds it, and will remove it
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return path, fd
        os.close(fd)


def stages(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the hidden files of recorders, dead or alive."""
    return sorted(pathlib.Path(folder).glob(f"{storage.STAGE}*.h5"))


def remove_stages(folder: pathlib.Path) -> list[pathlib.Path]:
    """Remove what killed recorders left; return it. Those of living ones are locked and stay."""
    removed = []
    for path in stages(folder):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _lock(path):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def is_alive(path: pathlib.Path) -> bool:
    """Return whether a hidden file still has a writer."""
    try:
        with _lock(path):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)
