"""The contract of a task: everything that a paper's "environment" paragraph says, in one file.

A task file defines a `Config` dataclass and a final `Task` subclass, and binds the subclass to
`TASK`:

    @dataclass
    class Config(TaskConfig):
        control_dt: float = 0.05
        reward: dict[str, float] = field(default_factory=lambda: {"reach": 1.0, "lift": 5.0})

    class LiftCube(Task[Config]):
        ...

    TASK = LiftCube

A task holds its config and the ids of the objects that it reads; tensors that must survive a step
live in `self.memory`, which the environment saves and restores. The simulation answers questions
about the world, the task says what it wishes: it never steps.
"""

import importlib
import sys
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.contract import check_class, check_kind
from penspin_style.env.sensing import Camera, Latency, ObsTerm
from penspin_style.features import ActionChannel, Joint
from penspin_style.render.renderer import View
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim, check_rows, make_sim
from penspin_style.system.plugins import entry_points

ENTRY_POINTS = "penspin_style.tasks"
"""Group of the entry points by which other packages register tasks."""
_OURS = "tasks"  # found by name: the library imports no task


@dataclass
class TaskConfig:
    """What every task has. Subclasses add their own numbers."""

    control_dt: float = 0.05
    """Seconds between two actions; a multiple of the model's timestep."""
    episode_length: int = 100
    """Control steps after which an episode is truncated."""
    reward: dict[str, float] = field(default_factory=dict)
    """Weight of each reward term; the keys equal those of `Task.reward`."""
    observation: dict[str, dict[str, ObsTerm]] = field(default_factory=dict)
    """Group (`teacher`, `critic`, `student`, ...) -> term -> how it enters."""
    latency: dict[str, Latency] = field(default_factory=dict)
    """Group -> how late it is; absent for none."""
    cameras: dict[str, Camera] = field(default_factory=dict)
    """Camera of the model -> the size of its images."""
    randomize: bool = True
    """Whether the randomisation table is applied."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        if self.control_dt <= 0:
            raise ValueError(f"task.control_dt must be positive, got {self.control_dt}")
        if self.episode_length < 1:
            raise ValueError(f"task.episode_length must be at least 1, got {self.episode_length}")
        for group, terms in self.observation.items():
            for name, term in terms.items():
                where = f"task.observation.{group}.{name}"
                if len(term.delay) != 2:
                    raise ValueError(f"{where}.delay must be [fewest, most], got {term.delay}")
                low, high = term.delay
                if term.noise < 0:
                    raise ValueError(f"{where}.noise must be >= 0, got {term.noise}")
                if not 0 <= low <= high:
                    raise ValueError(f"{where}.delay must be 0 <= fewest <= most, got {term.delay}")
                if term.history < 1:
                    raise ValueError(f"{where}.history must be at least 1, got {term.history}")
                if term.noise and name in self.images:
                    raise ValueError(f"{where}.noise: images get theirs from algo.augment")
        for group, latency in self.latency.items():
            if group not in self.observation:
                raise ValueError(
                    f"task.latency.{group}: there is no such group in task.observation, there are "
                    f"{sorted(self.observation)}"
                )
            if not latency.weights or min(latency.weights) < 0 or sum(latency.weights) <= 0:
                raise ValueError(
                    f"task.latency.{group}.weights must be odds >= 0 of 0, 1, ... steps, got "
                    f"{latency.weights}"
                )
        for name, camera in self.cameras.items():
            if camera.height < 1 or camera.width < 1:
                raise ValueError(
                    f"task.cameras.{name} must have at least one pixel, got {camera.height} x "
                    f"{camera.width}"
                )

    @property
    def images(self) -> dict[str, tuple[str, str]]:
        """Return the terms that cameras deliver: name -> (camera, `rgb` or `depth`)."""
        return {
            f"{name}_{kind}": (name, kind) for name in self.cameras for kind in ("rgb", "depth")
        }

    def sensed(self) -> tuple[dict[str, dict[str, ObsTerm]], dict[str, Latency]]:
        """Return how terms enter the groups, and how late: `observation` and `latency`.

        A task whose noise follows from keys of its own says otherwise; groups and terms stay.
        """
        return self.observation, self.latency

    def views(self) -> tuple[View, ...]:
        """Return what must be rendered: each camera of which some group lists an image."""
        listed = {term for members in self.observation.values() for term in members}
        views = []
        for name, camera in self.cameras.items():
            rgb, depth = (f"{name}_{kind}" in listed for kind in ("rgb", "depth"))
            if rgb or depth:
                views.append(View(name, camera.height, camera.width, rgb=rgb, depth=depth))
        return tuple(views)


class Expert(Protocol):
    """A script that does the task in every environment of a simulation; see `Task.expert`."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """What it remembers from step to step, live tensors (num_envs, ...), for checkpoints.

        Empty for one whose actions follow from the simulation alone: it can teach in any state that
        a student gets into.
        """
        ...

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Begin anew where the mask (num_envs,) says, in the states that are there now.

        rng: of whatever it draws.
        """
        ...

    def act(self) -> Tensor:
        """Return the actions of this control step, (num_envs, naction) in [-1, 1]."""
        ...


C = TypeVar("C", bound=TaskConfig)


class Task(ABC, Generic[C]):
    """One task. Subclasses are final.

    Units of the observation terms are in `units`; names, scales and limits of the action in
    `actions`. Both end up in the policy card.

    An environment is built in this order, before any reset:

    1. `spec`, which is compiled; `actions` and `joints`, whose limits its joints must hold;
       `randomize`;
    2. `start`, once the simulation exists, at the model's defaults and with current derived fields;
    3. `vary`, after the table's startup rows (this and `randomize` only if `cfg.randomize`);
    4. for names, shapes and types alone, with an action of zero: `observe`, `reward`,
       `learner_acts`, `step_metrics`, `episode_metrics`; `progress`, `start_bank` and `start_state`
       where `algo.starts` or `algo.stall` ask for them.

    So `start` must leave `memory` whole, and `reset` clear whatever `observe` and `reward` write
    there. Then come `reset_model`, `reset`, `observe` and `learner_acts` for every environment, and
    in each step `apply_action`, `substeps`, physics, `reward`, `terminated`, `success`, `observe`,
    `step_metrics`, `learner_acts`.
    """

    Config: ClassVar[type[TaskConfig]]
    units: ClassVar[dict[str, str]]
    """Observation term -> SI unit (`1` for pure numbers and mixtures)."""
    camera: ClassVar[str] = "view"
    """Camera of an episode's video."""
    varied: ClassVar[tuple[str, ...]] = ()
    """Model fields that `vary` writes for each environment."""
    reset_fields: ClassVar[tuple[str, ...]] = ()
    """Model fields that `reset_model` writes, randomised or not."""
    score: ClassVar[str] = "success_rate"
    """The evaluation's figure that tells the best policy of a run, larger is better:
    `success_rate`, `success_at_end`, `return` or a name of `episode_metrics`."""
    largest: ClassVar[float] = 1e6
    """Absolute value beyond which an observation or a reward is a fault, as if it were infinite: a
    single 1e38 would leave running means and variances useless for good."""
    policies: ClassVar[tuple[str, ...]] = ()
    """Keys of the config that name policies which act in the task, see `FrozenPolicy`."""
    functions: ClassVar[tuple[str, ...]] = ()
    """Keys of the config that name functions of the user's own, see `load_function`."""
    limbs: ClassVar[tuple[tuple[int, ...], ...]] = ()
    """Groups of the action's indices that a search moves apart, as fingers; empty for none."""
    kind_names: ClassVar[tuple[str, ...]] = ()
    """What `kinds` counts, as the pen shapes; empty for episodes that are all alike."""
    found_as: ClassVar[str] = ""
    """What finds it that lies in no module of its own, as `playground:NAME`."""

    def __init__(self, cfg: C) -> None:
        self.cfg = cfg
        self.memory: dict[str, Tensor] = {}

    @abstractmethod
    def spec(self) -> mujoco.MjSpec:
        """Return the world."""

    @property
    @abstractmethod
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the meaning of each number of the action."""

    @abstractmethod
    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Write the initial state of the masked environments; draws come from rng alone.

        mask: (num_envs,) bool. The simulation has just been set to the model's defaults there.
        """

    @abstractmethod
    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Turn an action (num_envs, naction) in [-1, 1] into `sim.data.ctrl`, in place."""

    @abstractmethod
    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the named observation terms, each (num_envs, ...), fresh tensors or views."""

    @abstractmethod
    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return the named reward terms, (num_envs,) each, without their weights."""

    @abstractmethod
    def terminated(self, sim: Sim) -> Tensor:
        """Return which environments ended by themselves, (num_envs,) bool; not the time limit."""

    @abstractmethod
    def success(self, sim: Sim) -> Tensor:
        """Return which environments are in the state that the task asks for, (num_envs,) bool."""

    # Optional: a task defines those that it needs.

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return the actuated joints in the policy's order."""
        return ()

    def compile(self) -> mujoco.MjModel:
        """Return the model: that of `spec`."""
        spec = self.spec()
        check_kind(self, "spec", spec, mujoco.MjSpec)
        return spec.compile()

    def make_sim(
        self, model: mujoco.MjModel, num_envs: int, device: torch.device, **settings: Any
    ) -> Sim:
        """Return what steps the model: an engine of ours; see `sim.make_sim` for the settings.

        A task that another program steps overrides it, as those of MuJoCo Playground do.
        """
        return make_sim(model, num_envs, device, **settings)

    def randomize(self) -> list[Randomize]:
        """Return the randomisation table."""
        return []

    def vary(self, sim: Sim, rng: torch.Generator) -> None:
        """Write the model fields `varied`, once, after the table's startup rows.

        For what independent draws cannot say: sizes that go together, an inertia that follows from
        them. Not called where nothing is randomised.
        """

    def reset_model(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Write the model fields `reset_fields` of the masked environments, before all else.

        For what an episode is about, as the object that an environment gets (`sim.variants`). The
        table's rows start from what is written here. Called at each reset if there are such fields.
        """

    def start(self, sim: Sim) -> None:
        """Look up ids and allocate `memory`, once, when the simulation exists."""

    def place(self, sim: Sim, mask: Tensor, row: Tensor) -> None:
        """Start the masked environments from given positions, (num_envs, nq), after `reset`.

        Whatever the task derived from the positions that it drew must follow these instead.

        Raises:
            ValueError: positions of another shape.
        """
        check_rows(row, sim.data.qpos)
        sim.data.qpos.copy_(torch.where(mask[:, None], row, sim.data.qpos))

    def followed(self, sim: Sim) -> Tensor | None:
        """Return what the channels follow after a reset, (num_envs, naction) in their units.

        None: where they are. A twin's first `delta` actions start from there.
        """
        return None

    def progress(self, sim: Sim) -> Tensor | None:
        """Return how far each episode has got, (num_envs,) from 0 where it began; None: unknown.

        Stalls and the farthest starts of a training (`algo.stall`, `algo.starts`) go by it.
        """
        return None

    def learner_acts(self, sim: Sim) -> Tensor | None:
        """Return where the coming step is the learner's own, (num_envs,) bool; None: everywhere.

        In the other environments the task itself acts, as by a `FrozenPolicy`: `apply_action` takes
        no notice of the action there, and nothing is learned from such steps. It follows from the
        simulation and `memory` alone.
        """
        return None

    def label(self, sim: Sim) -> Tensor | None:
        """Return what a student is to do in its teacher's place, (num_envs, naction) in [-1, 1].

        NaN where the teacher's own action is right; None: everywhere. For a skill of several
        stages, each with a policy of its own (`FrozenPolicy`), and for an arm whose object is out
        of sight. Asked in distillation alone.
        """
        return None

    def start_state(self, sim: Sim) -> Tensor:
        """Return the present states as rows from which an episode can begin, (num_envs, k)."""
        return torch.cat((sim.data.qpos, sim.data.qvel, sim.data.ctrl), dim=1)

    def set_start_state(self, sim: Sim, mask: Tensor, rows: Tensor, rng: torch.Generator) -> None:
        """Start the masked environments from such rows (num_envs, k), after `reset`.

        rng: for what may vary about them.
        """
        nq, nv = sim.model.nq, sim.model.nv
        parts = rows.split((nq, nv, rows.shape[1] - nq - nv), dim=1)
        for live, part in zip((sim.data.qpos, sim.data.qvel, sim.data.ctrl), parts, strict=True):
            live.copy_(torch.where(mask[:, None], part, live))

    def start_bank(self, device: torch.device) -> Tensor | None:
        """Return states worth beginning in, rows (n, k) of `start_state`; None: there are none."""
        return None

    def expert(self, sim: Sim) -> Expert | None:
        """Return a script that does the task in this simulation; None: there is none.

        `penspin demos` records it, and students learn from it (`algo.teacher=expert`). It may look
        up anything, and simulate; `act` is called once a control step, before `apply_action`.
        """
        return None

    def remove_object(self, sim: Sim, mask: Tensor) -> None:
        """Put the object out of sight in the masked environments, which have just been reset.

        There, doing nothing is right: a student learns not to grasp at the air.
        """
        raise ValueError(f"{type(self).__name__} has no object to remove: set algo.absent_object=0")

    def substeps(self, sim: Sim, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Return what changes within the coming control step: noise, pushes. Draws from rng alone.

        Called after `apply_action`: field -> its values before each of the n physics steps,
        (n, num_envs, ...); see `Sim.step`.
        """
        return {}

    def step_metrics(self, sim: Sim) -> dict[str, Tensor]:
        """Return numbers of the last step that are worth a sum over the episode, (num_envs,) each.

        Called once per step after `reward`, and once when the environment is built, for the names.
        """
        return {}

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return what finished episodes amount to, (n,) each: bool is a share, float a mean.

        Elementwise, and without asking a GPU: in training it sees the unfinished episodes too, and
        what it says of them is dropped. Faulty episodes enter no figure. A time to the fall is
        censored by the time limit: give the episode's duration where nothing fell, and the mean is
        that of the time until the fall or the limit, whichever is first.

        sums: what `step_metrics` gave, summed over the episode; (n,) each.
        steps: (n,) float, length of the episode in control steps.
        terminated: (n,) bool, whether the task ended it, and neither the time limit nor a fault.
        """
        return {}

    def search_cost(self, sim: Sim, *, still: bool) -> dict[str, Tensor]:
        """Return what a search shuns beside low rewards, (num_envs,) >= 0 each, as rates.

        Their weights are `search.cost`, 1 where it does not name them. Called after `reward`.

        still: whether this is the last stretch of a plan, in which the action is zero.
        """
        return {}

    def propose(self, sim: Sim, steps: Tensor, rng: torch.Generator) -> Tensor | None:
        """Return actions that a search may try from here, (num_envs, naction); None for none.

        steps: (num_envs,) control steps for which each action will be held.
        """
        return None

    def kinds(self, sim: Sim) -> Tensor:
        """Return what each episode is about, (num_envs,) long into `kind_names`.

        Constant from one reset to the next; evaluations break their figures down by it.
        """
        return torch.zeros(sim.num_envs, dtype=torch.long, device=sim.device)


def installed_tasks() -> dict[str, EntryPoint]:
    """Return the tasks that installed packages register as entry points, by name.

    One is `reach = my_package.reach`: a module that binds `TASK`. None of them is imported.
    """
    return {entry.name: entry for entry in entry_points(ENTRY_POINTS)}


def load_task(name: str, *, is_module: bool = False) -> type[Task[Any]]:
    """Return the task class of a task of ours, of an entry point, or of a dotted module.

    The module is imported, so that it runs: a name that comes from a file must have been compared
    with the registered ones before; `find_task.find_task` does.

    is_module: whether a name without a dot is a module, too.

    Raises:
        ValueError: no such module, one that cannot be imported (names file and line), or one that
            binds no Task to `TASK`, or one that is not whole.
    """
    path = name
    if "." not in name and not is_module:
        ours = importlib.import_module(_OURS).task_modules()
        installed = {key: entry.module for key, entry in installed_tasks().items()}
        path = {**installed, **ours}.get(name, "")
        if not path:
            raise ValueError(f"there is no task {name!r}")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and f"{path}.".startswith(f"{error.name}."):
            raise ValueError(f"there is no task {name!r} (no module {path})") from error
        raise ValueError(f"task {name!r} cannot be imported: {_where(error)}") from error
    except Exception as error:
        if path.startswith(f"{_OURS}."):
            raise  # a mistake of ours
        raise ValueError(f"task {name!r} cannot be imported: {_where(error)}") from error
    found = getattr(module, "TASK", None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        file = getattr(module, "__file__", None) or path
        raise ValueError(
            f"{path} binds no Task subclass to TASK: end {file} with TASK = YourTask, got {found!r}"
        )
    check_class(found, Task, TaskConfig)
    return found


def task_name(task: type[Task[Any]]) -> str:
    """Return what configurations and cards call a task: it is found again by that."""
    module = task.__module__
    if task.found_as:
        return task.found_as
    if module.startswith(f"{_OURS}."):
        return sys.modules[module].NAME
    return module


def _where(error: Exception) -> str:
    """Return what went wrong in somebody's module, with file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    file, line = frames[-1].filename, frames[-1].lineno
    if isinstance(error, SyntaxError):
        file, line = error.filename or file, error.lineno
    return f"{type(error).__name__}: {error.args[0] if error.args else ''} ({file}:{line})"
