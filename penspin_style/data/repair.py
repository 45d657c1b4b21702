"""Rescue what is whole of a damaged folder or file into a new folder; the source stays as it is.

Whole is what `check` finds no fault in. Nothing is patched: a trajectory with one bad row is lost.
A file that was cut off is read through a copy lengthened to what it was; what lay beyond the cut
is lost.
"""

import pathlib
import shutil
from collections.abc import Callable, Iterator

import h5py
import h5py.h5d
import h5py.h5g
import numpy as np

from penspin_style import storage
from penspin_style.data import check
from penspin_style.data.episodes import atomic_file, untrusted_hdf5
from penspin_style.data.episodes.episode import episodes
from penspin_style.data.episodes.layout import EpisodeError
from penspin_style.data.formats import penspin

_END = {0: 40, 1: 44, 2: 28, 3: 28}
"""Version of an HDF5 superblock -> where it says how long the file is, with 8 bytes an offset."""
_LONGEST = 2**42  # bytes, of a file that can have been cut


def repair(
    source: pathlib.Path, folder: pathlib.Path, hand: Callable[[], penspin.Hand]
) -> tuple[dict[str, str], dict[str, str]]:
    """Copy whole episodes, or write whole trajectories of PenSpin's file as episodes.

    hand: called for PenSpin's files alone.

    Returns:
        what was kept, name in the source -> file in the folder; what was lost -> why.

    Raises:
        OSError, RecorderError: the disk failed.
    """
    source = pathlib.Path(source)
    if source.is_dir():
        kept, lost = _copy_whole(episodes(source), folder)
        for path in atomic_file.stages(source):
            alive = atomic_file.is_alive(path)
            lost[path.name] = "is being recorded" if alive else "was cut off before it was whole"
        return kept, lost
    with atomic_file.stage_file(folder.parent) as copy:
        try:
            path, size = _lengthened(source, copy.path)
            kind = check.kind_of(path)
            pack = penspin.read(path, gaps=True) if kind != "episode" else None
        except EpisodeError as error:
            return {}, {source.name: error.what}
        except storage.NotAFileError:
            return {}, {source.name: "is not a file"}
        if pack is None:
            return _copy_whole([source], folder)
        return _rescue(pack, size, folder, hand())


def _copy_whole(
    paths: list[pathlib.Path], folder: pathlib.Path
) -> tuple[dict[str, str], dict[str, str]]:
    kept, lost = {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    for result in check.verify(paths):
        if result.fault is not None:
            lost[result.file.name] = result.fault.args[0].removeprefix(f"{result.file}: ")
            continue
        with atomic_file.stage_file(folder) as copy, storage.open_file(result.file) as whole:
            shutil.copyfileobj(whole, copy)
            copy.publish(folder / result.file.name)
        kept[result.file.name] = str(folder / result.file.name)
    return kept, lost


def _rescue(
    pack: penspin.Pack, size: int, folder: pathlib.Path, hand: penspin.Hand
) -> tuple[dict[str, str], dict[str, str]]:
    lost = check.damaged(pack)
    with untrusted_hdf5.opened(pack.path) as file:
        for key in pack.keys:
            if key not in lost and _end(file, key) > size:
                lost[key] = f"lay beyond byte {size}, where the file was cut off"
    whole = tuple(key for key in pack.keys if key not in lost)
    if not whole:
        return {}, lost
    rest = penspin.Pack(pack.path, pack.kind, whole, pack.control_dt)
    sources: list[str] = []

    def noted() -> Iterator[penspin.Demo]:
        for demo in rest.demos():
            sources.append(demo.key)
            yield demo

    files = penspin.unpack(noted(), folder, hand, control_dt=pack.control_dt)
    written = list(files)
    return dict(zip(sources, map(str, written), strict=True)), lost


def _lengthened(source: pathlib.Path, copy: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Return a path under which HDF5 opens the file, and how many bytes are really there."""
    with storage.open_file(source) as raw:
        size, head = source.stat().st_size, raw.read(64)
    at = _END.get(head[8]) if len(head) == 64 else None
    if at is None:
        return source, size
    claimed = int(np.frombuffer(head, "<u8", 1, at)[0])
    if not size < claimed <= _LONGEST:
        return source, size
    shutil.copyfile(source, copy)
    with copy.open("r+b") as raw:
        raw.truncate(claimed)  # a hole, which takes no space
    return copy, size


def _end(file: h5py.File, key: str) -> int:
    """Return where in the file the last value of a trajectory ends."""
    ends = [0]
    group = h5py.Group(h5py.h5g.open(file.id, key.encode()))
    for name in sorted(group):
        data = h5py.h5d.open(group.id, name.encode())
        if data.get_create_plist().get_layout() == h5py.h5d.CHUNKED:
            data.chunk_iter(lambda chunk: ends.append(chunk.byte_offset + chunk.size))
        elif (offset := data.get_offset()) is not None:
            ends.append(offset + data.get_storage_size())
    return max(ends)
