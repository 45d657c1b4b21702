"""One walk for everything that simulates a task: the environment and the robots' twins compose it.

    world.begin(action)      randomisation, the controller, what changes within the control step
    world.advance()          physics, at once or in parts
    world.finish(action)     reward terms, termination, success
    world.restart(mask)      new episodes
    world.snapshot()         what each world is in, to be restored into any others of the task
    world.share(size)        groups of worlds that begin alike

A `World` draws from one generator in one order: an environment and a twin of the same seed repeat
each other bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from penspin_style.env.cameras import Images
from penspin_style.env.checks import check_joint_ranges, count_substeps
from penspin_style.env.contract import check_flags, check_kind, check_memory
from penspin_style.env.task import Task
from penspin_style.render.renderer import check_renderer
from penspin_style.sim.perturb import Perturbation, Perturber
from penspin_style.sim.randomize import Randomizer, per_env_fields


class StepResult(NamedTuple):
    """What a control step has led to; (num_envs,) each."""

    reward: dict[str, Tensor]
    """The task's terms, without their weights."""
    terminated: Tensor
    success: Tensor


class World:
    """`num_envs` simulations of one task, with its randomisation and cameras."""

    def __init__(
        self,
        task: Task[Any],
        num_envs: int,
        device: str | torch.device = "cpu",
        *,
        seed: int = 0,
        engine: str = "auto",
        nthread: int = 0,
        nconmax: int | None = None,
        njmax: int | None = None,
        renderer: str = "auto",
        perturb: Sequence[Perturbation] = (),
    ) -> None:
        """Build the simulation and draw what differs between its worlds. Nothing is reset yet.

        renderer: what draws images; see `make_renderer`.
        perturb: changes of the model on top of the randomisation.

        Raises:
            ValueError: the control step is no multiple of the timestep; a joint cannot go where an
                action may send it; a row of the randomisation or a perturbation names what the
                model does not have.
        """
        self.task, self.cfg = task, task.cfg
        self.rng = torch.Generator(device=torch.device(device)).manual_seed(seed)
        if self.cfg.views():
            check_renderer(renderer, engine, torch.device(device))
        self.model = task.compile()
        actions = task.actions
        check_kind(task, "actions", actions, tuple)
        check_joint_ranges(self.model, actions, task.joints)
        self.n_substeps = count_substeps(self.cfg.control_dt, self.model)
        rows = task.randomize() if self.cfg.randomize else []
        self.varied = task.varied if self.cfg.randomize else ()
        fields = (*per_env_fields((*rows, *perturb)), *self.varied, *task.reset_fields)
        self.sim = task.make_sim(
            self.model,
            num_envs,
            torch.device(device),
            per_env=tuple(dict.fromkeys(fields)),
            engine=engine,
            nthread=nthread,
            nconmax=nconmax,
            njmax=njmax,
        )
        task.start(self.sim)
        check_memory(task, num_envs)
        self.cameras = Images(self.sim, self.cfg, renderer)
        self.randomizer = Randomizer(
            *(self.sim, rows, self.cfg.control_dt),
            Perturber(self.sim, perturb),
            rewritten=task.reset_fields,
        )
        self.control_steps = 0  # since the seed; rows of the kind `interval` count from there
        self.substep = 0  # within the control step
        self._inputs: dict[str, Tensor] = {}
        self._vary()

    def seed(self, seed: int) -> None:
        """Make everything from the next restart on depend on the seed alone."""
        self.rng.manual_seed(seed)
        self.control_steps = 0
        self._vary()

    def begin(self, action: Tensor) -> None:
        """Begin a control step with an action (num_envs, naction) in [-1, 1]."""
        self.randomizer.interval(self.control_steps, self.rng)
        self.task.apply_action(self.sim, action)
        self._inputs = self.task.substeps(self.sim, self.n_substeps, self.rng)
        self.control_steps += 1
        self.substep = 0

    def advance(self, count: int | None = None, mask: Tensor | None = None) -> None:
        """Let physics steps pass: so many, or all that are left of the control step.

        mask: the worlds that are still wanted, (num_envs,); see `Sim.step`.
        """
        count = self.n_substeps - self.substep if count is None else count
        part = slice(self.substep, self.substep + count)
        self.sim.step(count, {name: values[part] for name, values in self._inputs.items()}, mask)
        self.substep += count

    def finish(self, action: Tensor) -> StepResult:
        """Return what the control step that began with this action has led to."""
        reward = self.task.reward(self.sim, action)
        terminated, success = self.task.terminated(self.sim), self.task.success(self.sim)
        check_flags(self.task, "terminated", terminated, self.sim.num_envs)
        check_flags(self.task, "success", success, self.sim.num_envs)
        return StepResult(reward, terminated, success)

    def restart(
        self,
        mask: Tensor,
        *,
        drawn: Callable[[], None] | None = None,
        placed: Callable[[], None] | None = None,
    ) -> None:
        """Begin new episodes where the mask (num_envs,) says; other worlds are not touched.

        drawn: called when the task has drawn its initial state, to change what it drew.
        placed: called when the randomisation has changed that, to have the last word.
        """
        write = partial(self.task.reset_model, self.sim) if self.task.reset_fields else None
        self.randomizer.reset_model(mask, self.rng, write)
        self.sim.reset(mask)
        self.task.reset(self.sim, mask, self.rng)
        if drawn is not None:
            drawn()
        self.randomizer.reset_state(mask, self.rng)
        if placed is not None:
            placed()
        self.sim.forward(mask)

    def observe(self, *, images: bool = True) -> dict[str, Tensor]:
        """Return the task's observation terms, with those of the cameras if wanted."""
        terms = self.task.observe(self.sim)
        return {**terms, **self.cameras.render()} if images else terms

    # State.

    def snapshot(self) -> dict[str, Tensor]:
        """Return what each world is in, between two control steps, (num_envs, ...) each.

        `sim`: mjSTATE_INTEGRATION; `memory/NAME`: what the task remembers; `params/NAME`: the
        parameters of its model.
        """
        return {
            "sim": self.sim.get_state(),
            **{f"params/{k}": self.sim.params[k].clone() for k in dir(self.sim.params)},
            **{f"memory/{k}": v.clone() for k, v in self.task.memory.items()},
        }

    def restore(self, snapshot: Mapping[str, Tensor], rows: Tensor | None = None) -> None:
        """Put every world into what one was in when the snapshot was taken, bit for bit.

        rows: (num_envs,) long, the row for each world, of a snapshot of any number of worlds of
            this task; None for each its own.
        """

        def row(name: str) -> Tensor:
            return snapshot[name] if rows is None else snapshot[name][rows]

        params = {name: row(f"params/{name}") for name in dir(self.sim.params)}
        now = self.sim.params
        if any(not torch.equal(v.to(now[name].dtype), now[name]) for name, v in params.items()):
            for name, value in params.items():
                self.sim.params[name].copy_(value)
            if self.varied:
                self.sim.set_const()
            else:
                self.randomizer.restore_constants()
        self.sim.set_state(row("sim"))
        self.sim.faults.zero_()
        for name, value in self.task.memory.items():
            value.copy_(row(f"memory/{name}"))

    def share(self, size: int) -> None:
        """Put each group of `size` consecutive worlds into what its first one is in, bit for bit.

        Raises:
            ValueError: `size` does not divide the number of worlds.
        """
        n = self.sim.num_envs
        if size < 1 or n % size:
            raise ValueError(f"groups of {size} do not divide {n} worlds")
        first = torch.arange(n, device=self.sim.device) // size * size
        faults = self.sim.faults[first]
        self.restore(self.snapshot(), first)
        self.sim.faults.copy_(faults)

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor that a bit-exact continuation needs, flat."""
        rng = self.rng.get_state()
        return {**self.snapshot(), "rng": rng, "total_steps": torch.tensor(self.control_steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue exactly where `state_dict` was taken, between two control steps."""
        self.restore(state)
        self.rng.set_state(state["rng"])
        self.control_steps = int(state["total_steps"])

    def _vary(self) -> None:
        """Draw what differs between the worlds: the table's startup rows, then the task's own."""
        self.randomizer.startup(self.rng)
        if self.varied:
            self.task.vary(self.sim, self.rng)
            self.sim.set_const()
