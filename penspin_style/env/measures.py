"""What a task reports besides success: figures of single steps, their sums, what the sums mean.

`Task.measure` gives numbers of one step, the environment sums them over an episode, `Task.judge`
says what the sums of a finished episode mean. Nothing is computed for a task that judges nothing.
"""

from typing import Any

import torch
from torch import Tensor

from penspin_style.env.task import Task
from penspin_style.sim.sim import Sim

SCORES = ("success_rate", "success_at_end", "return")
"""What `Task.score` may name besides the task's own figures."""
RESERVED = frozenset(
    (
        *(*SCORES, "interval", "episode_len", "first_success", "reward", "episodes", "seed"),
        *("faults", "measures", "policy", "task"),  # of an evaluation
        *("success_once", "num_trajectories", "fault"),  # env/... of a training
    )
)
"""Names that evaluations and training logs use themselves."""


class Tally:
    """The sums of the running episodes, and what they mean once these have ended."""

    def __init__(self, task: Task[Any], sim: Sim) -> None:
        """Ask the task once for the names.

        Raises:
            ValueError: a name is taken, a value has another shape or type, `Task.score` or
                `Task.kind_names` cannot be meant.
        """
        n = sim.num_envs
        zero = torch.zeros(n, device=sim.device)
        self.task = task
        self.sums = {name: zero.clone() for name in task.measure(sim)}
        judged = task.judge(self.sums, zero + 1.0, zero.bool())
        who = type(task).__name__
        for name, value in judged.items():
            if name in RESERVED or "/" in name:
                raise ValueError(
                    f"{who}.judge names {name!r}, which is taken; choose another than "
                    f"{', '.join(sorted(RESERVED))}, without a slash"
                )
            if value.shape != (n,) or not (value.dtype == torch.bool or value.is_floating_point()):
                raise ValueError(
                    f"{who}.judge must give {name!r} as ({n},) of bool or float, got "
                    f"{tuple(value.shape)} of {value.dtype}"
                )
        if task.score not in (*SCORES, *judged):
            raise ValueError(
                f"{who}.score is {task.score!r}; there are {', '.join((*SCORES, *judged))}"
            )
        if set(task.kind_names) & {"", *judged} or len(set(task.kind_names)) < len(task.kind_names):
            raise ValueError(f"{who}.kind_names must be different words, got {task.kind_names}")
        self.names = tuple(judged)

    def add(self, sim: Sim, fault: Tensor) -> dict[str, Tensor]:
        """Add the numbers of the last step; return them, (num_envs,) each, 0 where it is faulty."""
        if not self.names:
            return {}
        step = {
            name: torch.where(fault, 0.0, value.float())
            for name, value in self.task.measure(sim).items()
        }
        for name, value in step.items():
            self.sums[name].add_(value)
        return step

    def judge(self, steps: Tensor, fell: Tensor) -> list[Tensor]:
        """Return what the sums mean, in the order of `names`, for episodes that end now."""
        if not self.names:
            return []
        judged = self.task.judge(self.sums, steps, fell)
        return [judged[name].float() for name in self.names]

    def clear(self, mask: Tensor) -> None:
        """Begin new episodes where the mask says."""
        for value in self.sums.values():
            value.masked_fill_(mask, 0.0)
