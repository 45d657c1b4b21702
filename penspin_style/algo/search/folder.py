"""The trajectories of one folder: searched one after the other, each kept as soon as it is found.

<folder>/
    config.yaml        what the trajectories have in common: task, search and seed
    000.safetensors    a finished trajectory, see data/trajectory.py
    000.partial        the checkpoint of one that is under way
"""

import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from penspin_style import storage
from penspin_style.algo.search.config import SearchConfig
from penspin_style.algo.search.plans import PlanWorld
from penspin_style.algo.search.trajectory import Search
from penspin_style.config import SimConfig
from penspin_style.data.trajectory import Trajectory, read_card, write_trajectory
from penspin_style.env.task import Task, task_name
from penspin_style.env.world import World

CONFIG = "config.yaml"
_MAX_CONFIG = 2**20  # bytes


class TrajectoryFolder:
    """A folder of trajectories, claimed until `close`."""

    def __init__(self, folder: pathlib.Path, resolved: str, doing: str = "searches") -> None:
        """Claim the folder.

        resolved: the text of `config.yaml`; doing: what another process does that has claimed it.

        Raises:
            ValueError: the folder cannot be written, or is in use.
        """
        self.folder, self.resolved = folder, resolved
        try:
            claimed = storage.lock(folder)
        except OSError as error:
            raise ValueError(f"--out {folder}: cannot write there ({error})") from error
        if claimed is None:
            raise ValueError(f"another process {doing} in {folder}; give --out")
        self._lock = claimed
        storage.remove_stages(folder)
        config = folder / CONFIG
        if not config.exists():
            storage.write_file(config, resolved.encode())

    def close(self) -> None:
        """Give the folder free."""
        self._lock.close()

    def path(self, index: int) -> pathlib.Path:
        """Return where a finished trajectory is."""
        return self.folder / f"{index:03d}.safetensors"

    def missing(self, count: int) -> list[int]:
        """Return which of the first trajectories are not finished."""
        return [i for i in range(count) if not self.path(i).exists()]

    def cards(self, count: int) -> Iterator[dict[str, Any]]:
        """Yield the cards of the finished ones among the first trajectories.

        Raises:
            DamagedError: names the file.
        """
        for i in range(count):
            if self.path(i).exists():
                yield read_card(self.path(i))

    def write(
        self,
        trajectory: Trajectory,
        task: Task[Any],
        *,
        index: int,
        seed: int,
        method: str,
        cpu_seconds: float,
        retries: int = 0,
    ) -> None:
        """Say on a trajectory's card where it comes from, and write it."""
        trajectory.card |= {
            "task": task_name(type(task)),
            "index": index,
            "seed": seed,
            "method": method,
            "control_dt": task.cfg.control_dt,
            "cpu_seconds": round(cpu_seconds, 1),
            "retries": retries,
            "config": self.resolved,
        }
        write_trajectory(self.path(index), trajectory)


class SearchFolder:
    """The searches of one folder."""

    def __init__(
        self,
        folder: pathlib.Path,
        task: Task[Any],
        search: SearchConfig,
        sim: SimConfig,
        *,
        seed: int,
        resolved: str,
    ) -> None:
        """Build the worlds; claim the folder.

        resolved: the text of `config.yaml`.

        Raises:
            ValueError: the folder cannot be written, is in use, or holds something else; a weight
                is of a term that the task does not have.
        """
        self.task, self.search, self.seed = task, search, seed
        settings = {"seed": seed, "engine": sim.engine, "nthread": sim.nthread}
        self.worlds = PlanWorld(World(task, search.num_envs, **settings), search)
        self.single = World(type(task)(task.cfg), 1, **settings)
        seconds = search.seconds
        steps = task.cfg.episode_length if seconds is None else seconds / task.cfg.control_dt
        self.steps = max(1, round(steps))
        self.files = TrajectoryFolder(folder, resolved)

    def find(
        self,
        index: int,
        on_advance: Callable[[Search], None],
        is_stopped: Callable[[], bool],
    ) -> Trajectory | None:
        """Search for a trajectory, or go on doing so; write it and return it.

        None if it was stopped; the next call goes on where this one was.

        Raises:
            DamagedError: the checkpoint is.
            ReplayError: the trajectory does not replay bit for bit; nothing is written.
        """
        partial = self.files.folder / f"{index:03d}.partial"
        began = time.process_time()
        search = Search.begin(self.worlds, self.seed, index, self.steps)
        if partial.exists():
            search.load(partial)
        search.cpu_seconds += time.process_time() - began
        advances = 0
        while not search.is_finished:
            search.advance()
            on_advance(search)
            advances += 1
            if is_stopped():
                search.save(partial)
                return None
            if advances % self.search.checkpoint_every == 0:
                search.save(partial)
        trajectory = search.replayed(self.single)
        self.files.write(
            trajectory,
            self.task,
            index=index,
            seed=self.seed,
            method=self.search.method,
            cpu_seconds=search.cpu_seconds,
            retries=search.retries,
        )
        partial.unlink(missing_ok=True)
        return trajectory


def check_same(
    folder: pathlib.Path,
    resolved: str,
    differences: Callable[..., Any],
    what: str = "a search",
) -> None:
    """Refuse to go on with another configuration than the folder's own.

    differences: from two configurations to key -> (value in the first, in the second).

    Raises:
        ValueError: names what differs.
    """
    config = folder / CONFIG
    if not config.exists():
        return
    try:
        saved = storage.read_file(config, _MAX_CONFIG).decode()
        changed = differences(saved, resolved)
    except (OSError, ValueError) as error:
        raise ValueError(f"{config} is unreadable ({error}); give another --out") from error
    if changed:
        key, (before, now) = next(iter(changed.items()))
        raise ValueError(
            f"{folder} holds {what} with {key}={before}, not {now}: give that or another --out"
        )
