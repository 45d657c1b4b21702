"""Folders that are either complete or absent.

A writer fills a hidden stage folder, every file and folder is flushed to disk, a manifest with the
SHA-256 of each file goes in last, and one rename publishes it. A reader verifies the manifest
before it believes a byte. A kill or a power cut at any moment leaves at most a stage folder, which
no reader looks at and the next writer removes.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

MANIFEST = "manifest.json"
STAGE = ".stage-"
"""How names begin of what is not published."""
_OWN_SUM = "manifest_sha256"


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
        os.rename(stage, target)
        try:
            flush_folder(target.parent)
        except OSError:
            os.rename(target, stage)  # it might not outlive a power cut: not published
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def make_folder(folder: pathlib.Path) -> None:
    """Make a folder and its parents so that they outlive a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Return the facts of a published folder and, under `sha256`, the checksums of its files.

    Raises:
        DamagedError: the manifest is missing or altered.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text()
        manifest = json.loads(text)
        manifest.pop(_OWN_SUM)
        manifest["sha256"] = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is missing or unreadable ({error})") from error
    if text != _render(manifest):
        raise DamagedError(f"{path} does not match its checksum")
    return manifest


def verify(folder: pathlib.Path) -> dict[str, Any]:
    """Return the manifest of a published folder after checking every file against it.

    Raises:
        DamagedError: names the file that is missing, extra or altered.
    """
    manifest = read_manifest(folder)
    sums = manifest["sha256"]
    present = {f.name for f in folder.iterdir()} - {MANIFEST}
    for name in sorted(set(sums) | present):
        if name not in sums:
            raise DamagedError(f"{folder / name} is not in the manifest")
        if name not in present:
            raise DamagedError(f"{folder / name} is missing")
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise DamagedError(f"{folder / name} is unreadable ({error})") from error
        if found != sums[name]:
            raise DamagedError(f"{folder / name} does not match its checksum")
    return manifest


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
