"""The replay buffers of a run's checkpoints, as files of blocks that checkpoints share.

<run>/replay/
    00003-180224.safetensors    block 3 as it was after 180,224 samples

A file is written once. A checkpoint lists those that make up its buffer, with their checksums;
`prune` removes what no checkpoint lists any more.
"""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from penspin_style import storage
from penspin_style.data.replay import Replay
from penspin_style.system.tensors import read_tensors


class ReplayFiles:
    """The folder of one run."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._sums: dict[str, str] = {}  # of the files that this process has written or read

    def write(self, replay: Replay) -> dict[str, Any]:
        """Write the blocks that have changed; return, as JSON values, what all of them are.

        Raises:
            OSError: a file cannot be written.
        """
        names = [f"{k:05d}-{v}.safetensors" for k, v in sorted(replay.versions().items())]
        for block, name in enumerate(names):
            if name not in self._sums:  # one of this name may be there, of a run gone another way
                storage.make_folder(self.folder)
                data = save_tensors(replay.block(block))
                storage.write_file(self.folder / name, data)
                self._sums[name] = hashlib.sha256(data).hexdigest()
        blocks = [[name, self._sums[name]] for name in names]
        return {"capacity": replay.capacity, "count": replay.count, "blocks": blocks}

    def read(self, listed: dict[str, Any]) -> Replay:
        """Return the buffer that `write` has described.

        Raises:
            storage.DamagedError: names the file that is missing or not what it was.
        """
        if not listed["blocks"]:
            return Replay(listed["capacity"])
        try:
            return Replay.from_blocks(listed["capacity"], listed["count"], self._blocks(listed))
        except storage.DamagedError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise storage.DamagedError(f"{self.folder} does not fit: {error}") from error

    def _blocks(self, listed: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
        for name, expected in listed["blocks"]:
            path = self.folder / name
            try:
                data = storage.read_file(path, storage.MAX_FILE)
            except OSError as error:
                raise storage.DamagedError(f"{path} is unreadable ({error})") from error
            if hashlib.sha256(data).hexdigest() != expected:
                raise storage.DamagedError(f"{path} does not match its checksum")
            self._sums[name] = expected
            yield read_tensors(data, path)

    def prune(self, values: list[Any]) -> None:
        """Remove the files that none of some checkpoints' values lists."""
        if not self.folder.is_dir():
            return
        kept = {name for value in values for name in _names(value)}
        for file in self.folder.glob("*.safetensors"):
            if file.name not in kept:
                with contextlib.suppress(OSError):  # one too many does no harm
                    file.unlink()
                self._sums.pop(file.name, None)


def _names(value: Any) -> Iterator[str]:
    """Yield the files that a checkpoint's values list."""
    if isinstance(value, dict):
        if "replay" in value:
            yield from (name for name, _ in value["replay"]["blocks"])
        for content in value.values():
            yield from _names(content)
    elif isinstance(value, list):
        for content in value:
            yield from _names(content)
