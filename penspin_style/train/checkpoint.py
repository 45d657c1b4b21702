"""Checkpoints: nested state as safetensors + JSON, never pickle; verified, rotating, atomic."""

import contextlib
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from penspin_style import __version__, storage
from penspin_style.data.replay import Replay
from penspin_style.system.tensors import check_finite, read_tensors
from penspin_style.train.faults import FaultyRunError
from penspin_style.train.replay_files import ReplayFiles

MAX_FAILED = 3
"""Saves that may fail in a row."""
_TENSORS = "state.safetensors"
_VALUES = "state.json"
_LEARNED = "algo/"


class NoCheckpointError(ValueError):
    """There is no checkpoint that can be trusted."""


class Checkpoints:
    """The checkpoints of one run: `<folder>/<iteration>/`, the last few and the best."""

    def __init__(self, folder: pathlib.Path, keep_last: int = 3) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self._replays = ReplayFiles(folder.parent / "replay")
        self._failed = 0  # saves in a row

    def keep(
        self,
        iteration: int,
        state: dict[str, Any],
        score: float | None,
        say: Callable[[str], None],
        *,
        again: bool = False,
    ) -> bool:
        """Save, or say why not; return whether it is there.

        Raises:
            FaultyRunError: too many failed in a row, or the weights are not worth keeping.
        """
        try:
            self.save(iteration, state, score, again=again)
        except ValueError as error:
            raise FaultyRunError(
                f"{error} after iteration {iteration}; resume=true continues from the "
                "checkpoint before"
            ) from error
        except OSError as error:
            self._failed += 1
            say(f"warning: checkpoint not saved ({error}); earlier ones are untouched")
            if self._failed >= MAX_FAILED:
                raise FaultyRunError(
                    f"{MAX_FAILED} checkpoints in a row failed: {error}"
                ) from error
            return False
        self._failed = 0
        return True

    def save(
        self, iteration: int, state: dict[str, Any], score: float | None, *, again: bool = False
    ) -> pathlib.Path:
        """Write state under its iteration; then drop what is neither recent nor best.

        score: what `Task.score` names, of exactly these weights, larger is better; None if not
            evaluated.
        again: whether to write it in the place of a whole one of the same iteration.

        Raises:
            ValueError: a weight is not finite; such a state is not worth keeping.
            TypeError: the state holds something else than tensors and plain values.
            OSError: nothing was published.
        """
        tensors: dict[str, Tensor] = {}
        values = self._flatten(state, "", tensors)
        for name, tensor in tensors.items():
            if name.startswith(_LEARNED) and not torch.isfinite(tensor.double()).all():
                raise ValueError(f"{name} is not finite")
        target = self.folder / f"{iteration:08d}"
        if target.exists() and not again:
            try:
                self.load(target)
                return target  # a resumed run passes its own checkpoint again: the same content
            except storage.DamagedError:
                storage.remove(target)
        facts = {"iteration": iteration, "score": score, "version": __version__}
        fresh = self.folder / f"{storage.STAGE}{target.name}" if target.exists() else target
        with storage.publish(fresh, facts) as stage:
            (stage / _TENSORS).write_bytes(save_tensors(tensors))
            (stage / _VALUES).write_text(json.dumps(values))
        if fresh != target:
            storage.replace(fresh, target)
        self._rotate()
        return target

    def load(self, folder: pathlib.Path) -> dict[str, Any]:
        """Return the state of one checkpoint, verified.

        Raises:
            storage.DamagedError: names the damaged file.
        """
        manifest, contents = storage.read_verified(folder, limit=storage.MAX_FILE)
        if manifest["iteration"] != int(folder.name):
            raise storage.DamagedError(
                f"{folder / storage.MANIFEST} is of iteration {manifest['iteration']}"
            )
        tensors = read_tensors(contents[_TENSORS], folder / _TENSORS)
        check_finite(
            {k: v for k, v in tensors.items() if k.startswith(_LEARNED)}, folder / _TENSORS
        )
        try:
            return self._unflatten(json.loads(contents[_VALUES]), tensors)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise storage.DamagedError(
                f"{folder / _VALUES} is not a checkpoint's: {error!r}"
            ) from error

    def newest(self) -> tuple[pathlib.Path, dict[str, Any], list[str]]:
        """Return (folder, state, messages about newer ones that are damaged and were passed over).

        Raises:
            NoCheckpointError: none is there, or none is whole.
        """
        messages: list[str] = []
        for folder in reversed(self.published()):
            try:
                return folder, self.load(folder), messages
            except storage.DamagedError as error:
                messages.append(f"checkpoint {folder.name} is damaged and passed over: {error}")
        reason = "; ".join(messages) or "the folder holds none"
        raise NoCheckpointError(f"no usable checkpoint in {self.folder}: {reason}")

    def best(self) -> pathlib.Path | None:
        """Return the published checkpoint with the highest score; the newest if none has one."""
        scored = [(s, f) for f in self.published() if (s := self._score(f)) is not None]
        if scored:
            return max(scored)[1]
        folders = self.published()
        return folders[-1] if folders else None

    def published(self) -> list[pathlib.Path]:
        """Return the checkpoint folders, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(f for f in self.folder.iterdir() if re.fullmatch(r"\d{8}", f.name))

    def _score(self, folder: pathlib.Path) -> float | None:
        try:
            return storage.read_manifest(folder)["score"]
        except storage.DamagedError:
            return None  # a damaged one has no claim to be the best

    def _rotate(self) -> None:
        storage.remove_stages(self.folder)
        folders = self.published()
        keep = {*folders[-self.keep_last :], self.best()}
        for folder in folders:
            if folder not in keep:
                with contextlib.suppress(OSError):  # one too many does no harm; next time again
                    storage.remove(folder)
        self._replays.prune([_values(folder) for folder in self.published()])

    def _flatten(self, value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
        """Return value with every tensor replaced by a reference, and the tensors collected."""
        if isinstance(value, Tensor):
            if path in tensors:
                raise TypeError(f"two keys of a checkpoint are spelled {path}")
            tensors[path] = value.detach().cpu().contiguous().clone()
            return {"tensor": path}
        if isinstance(value, Replay):
            return {"replay": self._replays.write(value)}
        if isinstance(value, dict):
            if odd := [k for k in value if not isinstance(k, str | int)]:
                raise TypeError(f"a checkpoint's keys are words and numbers; {path} has {odd[0]!r}")
            # pairs keep keys that are not strings, such as an optimiser's parameter numbers
            pairs = value.items()
            return {
                "dict": [
                    [k, self._flatten(v, f"{path}/{k}".lstrip("/"), tensors)] for k, v in pairs
                ]
            }
        if isinstance(value, list | tuple):
            return {"list": [self._flatten(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(
            f"a checkpoint holds tensors and plain values; {path} is {type(value).__name__}"
        )

    def _unflatten(self, value: Any, tensors: dict[str, Tensor]) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "replay":
            return self._replays.read(content)
        if kind == "list":
            return [self._unflatten(v, tensors) for v in content]
        return {k: self._unflatten(v, tensors) for k, v in content}


def _values(folder: pathlib.Path) -> Any:
    """Return a checkpoint's plain values, None if they are unreadable."""
    try:
        return json.loads((folder / _VALUES).read_text())
    except (OSError, ValueError):
        return None
