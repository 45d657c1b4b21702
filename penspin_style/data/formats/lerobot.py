"""Episodes as a LeRobotDataset v3.0, and back, without LeRobot.

<folder>/
    meta/info.json, stats.json, tasks.parquet, episodes/chunk-000/file-000.parquet
    meta/penspin.json                                   what only `restore` needs
    data/chunk-000/file-000.parquet                     numbers, many episodes a file
    videos/observation.images.<camera>/chunk-000/file-000.mp4

    observation.state       float32, every observation of up to one axis, joined; its names tell
                            them apart: what LeRobot's policies take for the robot's state
    observation.images.<x>  video of observation/<x>, uint8 (height, width, 3)
    observation.<x>         any other observation, as depth and point clouds, in its own type: a
                            video would spoil it
    action, target, sent    as in the episode; target and sent are float64
    exact.<x>               observation/<x> once more where float32 cannot hold it
    measure.<x>, time       as in the episode; `timestamp` is frame_index / fps, as LeRobot demands
    next.done               true in the last frame of an episode
    next.success            true there if it was a success; left out if that is not known of all

Names outside `observation` and `action` are no inputs of LeRobot's policies. The statistics are of
all frames, while LeRobot samples images and averages the episodes' quantiles.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from penspin_style.data.episodes.episode import Episode
from penspin_style.data.formats import parquet, provenance
from penspin_style.data.formats.lerobot_layout import (
    DATA,
    EPISODES,
    INDICES,
    INFO,
    OWN,
    OWN_PREFIX,
    STATS,
    TASKS,
    VERSION,
    VIDEO,
    Layout,
    number,
)
from penspin_style.data.formats.lerobot_read import LeRobotError, read, restore
from penspin_style.data.formats.publish import stage_folder
from penspin_style.data.formats.statistics import ImageSummary, NumberSummary, Stats
from penspin_style.data.formats.video import VideoWriter

__all__ = ["LeRobotError", "Limits", "read", "restore", "write"]

_MB = 2**20
_BATCH = 100  # episodes


@dataclass(frozen=True)
class Limits:
    """When a file is full, and a folder of files. The defaults are LeRobot's."""

    files_per_chunk: int = 1000
    data_mb: float = 100
    video_mb: float = 200


def write(
    episodes: Sequence[Episode],
    out: pathlib.Path,
    *,
    fps: float | None = None,
    robot_type: str | None = None,
    task: str | None = None,
    valid: float = 0.0,
    limits: Limits | None = None,
) -> None:
    """Write episodes of one kind as a new dataset folder: whole, or not at all.

    fps: by default that of control_dt, which it must fit within 1 %.
    robot_type: by default the episodes' robot.
    task: what the robot was told, in a sentence; by default each episode's `instruction`, else the
        name of its task.
    valid: share of the episodes, the last ones, that become the split `valid`.

    Raises:
        ValueError: no episodes, not of one kind, no pyarrow.
        EpisodeError: an episode is damaged.
        FileExistsError: out is there already.
        OSError: disk full, read only, ...
    """
    parquet.need_pyarrow()
    header = provenance.common_header(episodes)
    rate = _rate(header.control_dt, fps)
    splits = _splits(len(episodes), valid)
    known = all(episode.success is not None for episode in episodes)
    layout = Layout(header.channels)
    image_names = {channel.name for channel in layout.cameras.values()}
    with stage_folder(pathlib.Path(out)) as root, contextlib.ExitStack() as stack:
        dataset = _Dataset(root, layout, rate, limits or Limits(), stack)
        for episode in episodes:
            columns = {k: episode[k] for k in episode.keys() if k not in image_names}  # noqa: SIM118
            features = layout.numbers(columns)
            if known:
                features["next.success"] = _last(episode.steps, bool(episode.success))
            images = {
                key: (block for _, block in episode.blocks(c.name))
                for key, c in layout.cameras.items()
            }
            told = task or str(episode.header.facts.get("instruction") or episode.header.task)
            dataset.add(features, images, told, provenance.of_one(episode))
        info = {
            "codebase_version": VERSION,
            "robot_type": robot_type or header.robot,
            "total_episodes": len(episodes),
            "splits": splits,
            "features": layout.features(rate, success=known),
        }
        dataset.finish(info)
        _write_json(root / OWN, provenance.of_all(header, episodes))


def _rate(control_dt: float, fps: float | None) -> Fraction:
    wanted = 1 / control_dt if fps is None else fps
    if not abs(wanted * control_dt - 1) <= 0.01:
        raise ValueError(
            f"fps={fps} does not fit the episodes' control_dt of {control_dt} s, "
            f"{1 / control_dt:.6g} Hz: frames are not resampled"
        )
    return Fraction(wanted).limit_denominator(1001)


def _splits(count: int, valid: float) -> dict[str, str]:
    train = count - provenance.held_back(count, valid)
    splits = {"train": f"0:{train}"}
    return splits if train == count else splits | {"valid": f"{train}:{count}"}


def _last(steps: int, value: bool) -> np.ndarray:
    column = np.zeros((steps, 1), bool)
    column[-1] = value
    return column


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=4, allow_nan=False))


class _Shards:
    """Files of one kind, numbered within chunks; the next one begins when one is full."""

    def __init__(
        self,
        root: pathlib.Path,
        template: str,
        make: Callable[[pathlib.Path], Any],
        limit_mb: float,
        per_chunk: int,
    ) -> None:
        self._root, self._template, self._make = root, template, make
        self._limit, self._per_chunk = limit_mb * _MB, per_chunk
        self._writer: Any = None
        self._number, self._rows = -1, 0

    def room_for(self, rows: int) -> tuple[Any, dict[str, int], int]:
        """Return the writer for as many rows, the numbers of its file, and the rows in there."""
        if self._writer is not None and self._rows:
            size = self._writer.size
            if size + size / self._rows * rows >= self._limit:
                self.close()
        if self._writer is None:
            self._number, self._rows = self._number + 1, 0
            path = self._root / self._template.format(**self._place())
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._make(path)
        first, self._rows = self._rows, self._rows + rows
        return self._writer, self._place(), first

    def _place(self) -> dict[str, int]:
        chunk, file = divmod(self._number, self._per_chunk)
        return {"chunk_index": chunk, "file_index": file}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def drop(self) -> None:
        if self._writer is not None:
            self._writer.drop()


class _Dataset:
    """The folder of a dataset while it is filled, one episode after the other."""

    def __init__(
        self,
        root: pathlib.Path,
        layout: Layout,
        rate: Fraction,
        limits: Limits,
        stack: contextlib.ExitStack,
    ) -> None:
        self.root, self.rate, self.limits = root, rate, limits
        self.tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._schema: Any = None
        self._count = self._frames = 0
        self._numbers: dict[str, NumberSummary] = {}
        self._images = {key: ImageSummary() for key in layout.cameras}

        def shards(template: str, limit: float, make: Callable[[pathlib.Path], Any]) -> _Shards:
            made = _Shards(root, template, make, limit, limits.files_per_chunk)
            stack.callback(made.drop)
            return made

        self._data = shards(DATA, limits.data_mb, parquet.TableWriter)
        self._episodes = shards(EPISODES, limits.data_mb, parquet.TableWriter)
        self._videos = {
            key: shards(
                VIDEO.replace("{video_key}", key),
                limits.video_mb,
                lambda path, c=c: VideoWriter(path, c.shape[0], c.shape[1], rate),
            )
            for key, c in layout.cameras.items()
        }

    def add(
        self,
        features: Mapping[str, np.ndarray],
        images: Mapping[str, Iterable[np.ndarray]],
        task: str,
        own: Mapping[str, Any],
    ) -> None:
        """Write one episode: features (T, *shape), and images of cameras (n, height, width, 3).

        own: further columns of its row in the table of episodes, under `penspin/`.
        """
        steps = len(features["time"])
        task_index = self.tasks.setdefault(task, len(self.tasks))
        features = dict(features) | self._indices(steps, task_index)
        row = {
            "episode_index": self._count,
            "tasks": [task],
            "length": steps,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + steps,
            **{f"{OWN_PREFIX}{name}": value for name, value in own.items()},
        }
        writer, place, _ = self._data.room_for(steps)
        writer.add(parquet.to_table(features))
        row |= {f"data/{name}": value for name, value in place.items()}
        stats = {
            key: self._numbers.setdefault(key, NumberSummary()).add(values)
            for key, values in features.items()
            if "image" not in key  # LeRobot would take it for a camera's
        }
        for key, blocks in images.items():
            row |= self._video(key, blocks, steps)
            stats[key] = self._images[key].end()
        for key, of_key in stats.items():
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in of_key.items()}
        self._rows.append(row)
        self._count, self._frames = self._count + 1, self._frames + steps
        if len(self._rows) == _BATCH:
            self._flush()

    def _video(self, key: str, blocks: Iterable[np.ndarray], steps: int) -> dict[str, Any]:
        writer, place, first = self._videos[key].room_for(steps)
        for k, block in enumerate(blocks):
            writer.add(block, cut=k == 0)
            self._images[key].add(block)
        times = {"from_timestamp": first, "to_timestamp": first + steps}
        found = place | {name: float(frame / self.rate) for name, frame in times.items()}
        return {f"videos/{key}/{name}": value for name, value in found.items()}

    def _indices(self, steps: int, task: int) -> dict[str, np.ndarray]:
        frame = np.arange(steps)
        columns = {
            "next.done": frame == steps - 1,
            "timestamp": frame / float(self.rate),
            "frame_index": frame,
            "episode_index": np.full(steps, self._count),
            "index": self._frames + frame,
            "task_index": np.full(steps, task),
        }
        dtypes = {"next.done": "bool", **INDICES}
        return {key: c.astype(dtypes[key]).reshape(steps, 1) for key, c in columns.items()}

    def _flush(self) -> None:
        """Write the rows that describe the episodes so far."""
        import pyarrow as pa

        if self._rows:
            writer, place, _ = self._episodes.room_for(len(self._rows))
            where = {f"meta/episodes/{name}": value for name, value in place.items()}
            table = pa.Table.from_pylist([row | where for row in self._rows], schema=self._schema)
            self._schema = table.schema
            writer.add(table)
            self._rows.clear()

    def finish(self, info: Mapping[str, Any]) -> None:
        """Complete the folder; info: what only the caller knows of info.json."""
        import pandas as pd

        self._flush()
        for shards in (self._data, self._episodes, *self._videos.values()):
            shards.close()
        index = pd.Index(list(self.tasks), name="task", dtype=object)
        frame = pd.DataFrame({"task_index": list(self.tasks.values())}, index=index)
        frame.to_parquet(self.root / TASKS)
        stats: dict[str, Stats] = {k: s.total() for k, s in (self._numbers | self._images).items()}
        _write_json(
            self.root / STATS,
            {key: {n: v.tolist() for n, v in of_key.items()} for key, of_key in stats.items()},
        )
        own = {
            "total_frames": self._frames,
            "total_tasks": len(self.tasks),
            "chunks_size": self.limits.files_per_chunk,
            "data_files_size_in_mb": self.limits.data_mb,
            "video_files_size_in_mb": self.limits.video_mb,
            "fps": number(self.rate),
            "data_path": DATA,
            "video_path": VIDEO if self._videos else None,
        }
        _write_json(self.root / INFO, {**info, **own})
