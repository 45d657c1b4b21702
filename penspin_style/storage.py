"""Folders that are either complete or absent.

A writer fills a hidden stage folder, every file and folder is flushed to disk, a manifest with the
SHA-256 of each file goes in last, and one rename publishes it. A reader verifies the manifest
before it believes a byte. A kill or a power cut at any moment leaves at most a stage folder, which
no reader looks at and the next writer removes.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from typing import IO, Any

MANIFEST = "manifest.json"
MAX_FILE = 2**36
"""Bytes that a file of a published folder may have; more, as a sparse file has, is not read."""
MAX_WEIGHTS = 2**31
"""Bytes that a file of a network may have, to be read at all."""
LOCK = ".lock"
"""The file in a folder that is locked while a process has it."""
STAGE = ".stage-"
"""How names begin of what is not published."""
_MAX_MANIFEST = 2**24  # bytes
_MAX_DEPTH = 64  # of JSON
_PIECE = 2**24  # bytes that are read at a time
_OWN_SUM = "manifest_sha256"


class NotAFileError(OSError):
    """A path leads to a pipe, a device, a folder: to no regular file."""


class DamagedError(ValueError):
    """A published folder does not match its manifest."""


@contextlib.contextmanager
def publish(target: pathlib.Path, facts: dict[str, Any]) -> Iterator[pathlib.Path]:
    """Yield a stage folder to fill; publish it as `target` when the block ends without an error.

    facts: JSON values that go into the manifest beside the checksums.

    Raises:
        FileExistsError: target is there already; a published folder is never written over.
        OSError: disk full, read only, ...; nothing is published, nothing published is touched.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    make_folder(target.parent)
    stage = target.parent / f"{STAGE}{uuid.uuid4().hex}"
    stage.mkdir()
    try:
        yield stage
        sums = {f.name: _flush_and_hash(f) for f in sorted(stage.iterdir())}
        manifest = stage / MANIFEST
        manifest.write_text(_render({**facts, "sha256": sums}))
        _flush_and_hash(manifest)
        flush_folder(stage)
        rename(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def rename(stage: pathlib.Path, target: pathlib.Path) -> None:
    """Give a file or folder its name so that it outlives a power cut, or not at all."""
    os.rename(stage, target)
    try:
        flush_folder(target.parent)
    except OSError:
        os.rename(target, stage)
        raise


def make_folder(folder: pathlib.Path) -> None:
    """Make a folder and its parents so that they outlive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def lock(folder: pathlib.Path) -> IO[str] | None:
    """Make a folder and claim it; return the file whose closing gives it free, None if it is taken.

    Raises:
        OSError: it cannot be made.
    """
    make_folder(folder)
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def open_file(path: pathlib.Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading; never wait for another process.

    A pipe would block until somebody writes to it, and a device may have no end.

    Raises:
        OSError: it is missing, unreadable, or no regular file (`NotAFileError`).
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotAFileError(f"{path} is not a regular file")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_file(path: pathlib.Path, limit: int) -> bytes:
    """Return what a regular file of at most `limit` bytes holds.

    Raises:
        OSError: as `open_file`; or the file is larger.
    """
    content = bytearray()
    with open_file(path) as file:
        # the size first: a sparse file would fill the memory before its end is seen
        size = os.fstat(file.fileno()).st_size
        while max(size, len(content)) <= limit:
            if not (part := file.read(_PIECE)):
                return bytes(content)
            content += part
    raise OSError(f"{path} is larger than {limit} bytes")


def parse_json(text: str | bytes) -> Any:
    """Return the one value that every reader of JSON agrees on.

    Raises:
        ValueError: not JSON, a key is there twice, NaN or an infinity, or nested too deeply.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError as error:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep") from error
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    return value


def _inside(value: Any) -> Iterable[Any]:
    """Return what a list or an object holds; nothing for a number or a text."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it holds the key {name!r} twice")
        found[name] = value
    return found


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"it holds {number:.40}, which is no finite number")
    return value


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Return the facts of a published folder and, under `sha256`, the checksums of its files.

    Raises:
        DamagedError: the manifest is missing or altered.
    """
    path = folder / MANIFEST
    try:
        text = read_file(path, _MAX_MANIFEST).decode()
        manifest = json.loads(text)
        manifest.pop(_OWN_SUM)
        manifest["sha256"] = dict(manifest["sha256"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is missing or unreadable ({error})") from error
    if text != _render(manifest):
        raise DamagedError(f"{path} does not match its checksum")
    return manifest


def verify(folder: pathlib.Path, *, limit: int = MAX_FILE) -> dict[str, Any]:
    """Return the manifest of a published folder after checking every file against it.

    limit: bytes that a file may have.

    Raises:
        DamagedError: names the file that is missing, extra, altered, too large or no file.
    """
    manifest = read_manifest(folder)
    for path, expected in _listed(folder, manifest):
        with _readable(path), open_file(path) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise DamagedError(f"{path} is larger than {limit} bytes")
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise DamagedError(f"{path} does not match its checksum")
    return manifest


def read_verified(folder: pathlib.Path, *, limit: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the manifest of a published folder and, by name, the very bytes that were checked.

    limit: bytes that a file may have.

    Raises:
        DamagedError: as `verify`.
    """
    manifest = read_manifest(folder)
    contents = {}
    for path, expected in _listed(folder, manifest):
        with _readable(path):
            contents[path.name] = read_file(path, limit)
        if hashlib.sha256(contents[path.name]).hexdigest() != expected:
            raise DamagedError(f"{path} does not match its checksum")
    return manifest, contents


def _listed(folder: pathlib.Path, manifest: dict[str, Any]) -> Iterator[tuple[pathlib.Path, str]]:
    """Yield the folder's files with the checksums that they should have."""
    sums = manifest["sha256"]
    present = {f.name for f in folder.iterdir()} - {MANIFEST}
    for name in sorted(set(sums) | present):
        if name not in sums:
            raise DamagedError(f"{folder / name} is not in the manifest")
        if name not in present:
            raise DamagedError(f"{folder / name} is missing")
        yield folder / name, sums[name]


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DamagedError(f"{path} is unreadable ({error})") from error


def remove(folder: pathlib.Path) -> None:
    """Unpublish a folder with one rename, then delete it."""
    hidden = folder.parent / f"{STAGE}{uuid.uuid4().hex}"
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def replace(fresh: pathlib.Path, target: pathlib.Path) -> None:
    """Put a published folder in the place of another one, if there is one, which is deleted."""
    hidden = target.parent / f"{STAGE}{uuid.uuid4().hex}"
    try:
        if target.exists():
            os.rename(target, hidden)
        os.rename(fresh, target)
        flush_folder(target.parent)
    except OSError:
        if hidden.exists() and not target.exists():
            os.rename(hidden, target)
        raise
    shutil.rmtree(hidden, ignore_errors=True)


def remove_stages(parent: pathlib.Path) -> None:
    """Delete what killed writers left behind."""
    if parent.is_dir():
        for stage in parent.glob(f"{STAGE}*"):
            if stage.is_dir():
                shutil.rmtree(stage, ignore_errors=True)
            else:  # of write_file
                stage.unlink(missing_ok=True)


def write_file(path: pathlib.Path, content: bytes) -> None:
    """Write one file so that a reader finds the old content or the new, never a part."""
    stage = path.with_name(f"{STAGE}{path.name}-{uuid.uuid4().hex}")
    try:
        stage.write_bytes(content)
        _flush_and_hash(stage)
        os.replace(stage, path)
        flush_folder(path.parent)
    finally:
        stage.unlink(missing_ok=True)


def _render(manifest: dict[str, Any]) -> str:
    """Return the one text that a manifest can have; it carries its own checksum."""
    body = json.dumps(manifest, sort_keys=True)
    own = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**manifest, _OWN_SUM: own}, indent=1, sort_keys=True)


def _flush_and_hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(path: pathlib.Path) -> None:
    """Make the names in a folder outlive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
