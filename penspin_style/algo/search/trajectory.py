"""One search: from a start to a trajectory that replays bit for bit, resumable on the way."""

import json
import pathlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from penspin_style import storage
from penspin_style.algo.search.beam import Beams, BeamSearch
from penspin_style.algo.search.plans import PlanWorld, Snapshot, weighted
from penspin_style.algo.search.receding_horizon import MPPI, PredictiveSampling
from penspin_style.data.trajectory import Trajectory
from penspin_style.env.world import World
from penspin_style.system.tensors import read_tensors

PLANNERS = {"beam": BeamSearch, "predictive_sampling": PredictiveSampling, "mppi": MPPI}
_MAX_CHECKPOINT = 2**31  # bytes


class ReplayError(RuntimeError):
    """The actions that were found do not lead where the search saw them lead."""


@dataclass
class Progress:
    """How far a search is."""

    steps: int
    """Control steps of the best beam so far."""
    total: int
    survival: float
    """Share of the last plans that survived."""
    gain: float
    """Of the best beam."""
    cpu_seconds: float


@dataclass
class Search:
    """A search under way: beams, and what going on exactly needs.

    history: beams before each of the last advances, oldest first; the last one is the present.
    """

    planner: BeamSearch
    start: Snapshot
    rng: torch.Generator
    total: int
    history: list[Beams] = field(default_factory=list)
    retries: int = 0
    cpu_seconds: float = 0.0
    died: bool = False

    @classmethod
    def begin(cls, worlds: PlanWorld, seed: int, index: int, total: int) -> "Search":
        """Draw a start: the world that seed and index choose."""
        n = worlds.sim.num_envs
        worlds.world.seed(seed + index)
        worlds.world.restart(torch.ones(n, dtype=torch.bool))
        start = worlds.alike(index % n)
        planner = PLANNERS[worlds.cfg.method](worlds)
        rng = torch.Generator().manual_seed(seed + index)
        return cls(planner, start, rng, total, [planner.begin(start)])

    @property
    def beams(self) -> Beams:
        """Return the present beams, best first."""
        return self.history[-1]

    @property
    def best(self) -> int:
        """Return the beam that has gained most."""
        return int(self.beams.gain.argmax())

    @property
    def is_finished(self) -> bool:
        """Whether the trajectory is long enough, a success that ends it, or at a dead end."""
        cfg = self.planner.cfg
        succeeded = cfg.stop_at_success and bool(self.beams.success[self.best])
        return self.died or succeeded or self.beams.steps >= self.total

    def advance(self) -> None:
        """Go on by `search.keep` control steps; where no plan survives, back by some."""
        cfg = self.planner.cfg
        began = time.process_time()
        new = self.planner.advance(self.beams, self.rng)
        if new is not None:
            self.history = [*self.history[-cfg.patience :], new]
        elif self.retries < cfg.retries and len(self.history) > 1:
            self.retries += 1
            self.history = self.history[:1]
        else:
            self.died = True
        self.cpu_seconds += time.process_time() - began

    def progress(self) -> Progress:
        """Return how far it is."""
        gain = float(self.beams.gain[self.best])
        survival = self.planner.survival
        return Progress(self.beams.steps, self.total, survival, gain, self.cpu_seconds)

    # State.

    def save(self, path: pathlib.Path) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors: dict[str, Tensor] = {"rng": self.rng.get_state()}
        tensors["world_rng"] = self.planner.worlds.world.rng.get_state()
        for i, beams in enumerate(self.history):
            tensors |= {f"{i}/{name}": v.contiguous() for name, v in beams.state_dict().items()}
        facts = {"retries": self.retries, "cpu": self.cpu_seconds, "beams": len(self.history)}
        tensors["facts"] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
        storage.write_file(path, save_tensors(tensors))

    def load(self, path: pathlib.Path) -> None:
        """Go on where a checkpoint was written; the start is drawn already.

        Raises:
            DamagedError: the file is.
        """
        try:
            tensors = read_tensors(storage.read_file(path, _MAX_CHECKPOINT), path)
            facts = storage.parse_json(bytes(tensors["facts"].tolist()))
            parts: list[dict[str, Tensor]] = [{} for _ in range(facts["beams"])]
            for name, value in tensors.items():
                if "/" in name:
                    first, _, rest = name.partition("/")
                    parts[int(first)][rest] = value
            self.history = [Beams.from_state(part) for part in parts]
            self.retries, self.cpu_seconds = int(facts["retries"]), float(facts["cpu"])
            self.rng.set_state(tensors["rng"])
            self.planner.worlds.world.rng.set_state(tensors["world_rng"])
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise storage.DamagedError(
                f"{path} is no checkpoint of this search ({error!r}); delete it to begin again"
            ) from error

    # The end.

    def replayed(self, world: World) -> Trajectory:
        """Return the trajectory as one world of the task goes through it, with its score.

        world: one world, made as the search's were.

        Raises:
            ReplayError: it does not end in the very state that the search saw.
        """
        actions = self.beams.actions[self.best]
        trajectory = replay(world, self.start, actions, is_lost=self.died)
        away = (trajectory.state[-1] - self.beams.state["sim"][self.best]).abs().max()
        if away != 0:
            raise ReplayError(
                f"a replay ends {away:.3g} from the state that the search saw: the physics of a "
                "world depends on more than its state"
            )
        if self.beams.steps <= self.total:
            return trajectory
        return replay(world, self.start, actions[: self.total])  # the last advance went beyond


def replay(
    world: World, start: Snapshot, actions: Iterable[Tensor], *, is_lost: bool = False
) -> Trajectory:
    """Carry out actions in one world; return the trajectory with its score.

    actions: (steps, naction), or what gives each of them when the world has come to its step.
    is_lost: whether it ends because nothing could be found any more; counts as terminated.
    """
    world.restore(start)
    world.rng.manual_seed(0)  # what a task remembers of noise must not depend on earlier replays
    task, sim = world.task, world.sim
    snapshots = [world.snapshot()]
    sums: dict[str, Tensor] = {}
    success = ended = torch.zeros(1, dtype=torch.bool)
    once, total = success, torch.zeros(1)
    done: list[Tensor] = []
    for action in actions:
        done.append(action.clone())
        world.begin(action[None])
        world.advance()
        result = world.finish(action[None])
        for name, value in task.step_metrics(sim).items():
            sums[name] = sums.get(name, 0.0) + value
        total = total + weighted(world.cfg.reward, result.reward, 1)
        success = result.success
        once = once | success
        ended = ended | result.terminated | (sim.faults != 0)
        snapshots.append(world.snapshot())
    steps = torch.tensor([float(len(done))])
    figures = task.episode_metrics(sums, steps, ended | is_lost) if done else {}
    score = {name: float(value) for name, value in figures.items()}
    score |= {"success_once": float(once), "success_at_end": float(success)}
    score |= {"success_rate": float(once), "return": float(total)}
    memory = {
        name: torch.cat([s[name] for s in snapshots])
        for name in start
        if name.startswith("memory/")
    }
    params = {name: value[0] for name, value in start.items() if name.startswith("params/")}
    facts = {"score": score, "terminated": bool(ended), "lost": is_lost}
    state = torch.cat([s["sim"] for s in snapshots])
    taken = torch.stack(done) if done else torch.zeros(0, len(task.actions))
    return Trajectory(taken, state, {**memory, **params}, facts)
