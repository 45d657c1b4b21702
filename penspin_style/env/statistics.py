"""What a task reports besides success: figures of single steps, their sums, what the sums mean.

`Task.step_metrics` gives numbers of one step, the environment sums them over an episode,
`Task.episode_metrics` says what the sums of a finished episode mean. Nothing is computed for a task
without metrics.
"""

from collections.abc import Iterable
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
        *("success", "success_once", "num_trajectories", "fault"),  # env/... of a training
    )
)
"""Names that evaluations and training logs use themselves."""


class TaskMetrics:
    """The sums of the running episodes, and what they mean once these have ended."""

    def __init__(self, task: Task[Any], sim: Sim) -> None:
        """Ask the task once for the names.

        Raises:
            ValueError: a name is taken, a value has another shape or type, `Task.score` or
                `Task.kind_names` is invalid.
        """
        n = sim.num_envs
        zero = torch.zeros(n, device=sim.device)
        self.task = task
        self.sums = {name: zero.clone() for name in task.step_metrics(sim)}
        metrics = task.episode_metrics(self.sums, zero + 1.0, zero.bool())
        who = type(task).__name__
        for name, value in metrics.items():
            if name in RESERVED or "/" in name:
                raise ValueError(
                    f"{who}.episode_metrics names {name!r}, which is taken; choose another than "
                    f"{', '.join(sorted(RESERVED))}, without a slash"
                )
            if value.shape != (n,) or not (value.dtype == torch.bool or value.is_floating_point()):
                raise ValueError(
                    f"{who}.episode_metrics must give {name!r} as ({n},) of bool or float, got "
                    f"{tuple(value.shape)} of {value.dtype}"
                )
        if task.score not in (*SCORES, *metrics):
            raise ValueError(
                f"{who}.score is {task.score!r}; there are {', '.join((*SCORES, *metrics))}"
            )
        kinds = set(task.kind_names)
        if kinds & {"", *metrics} or len(kinds) < len(task.kind_names):
            raise ValueError(f"{who}.kind_names must be different, got {task.kind_names}")
        self.names = tuple(metrics)

    def add(self, sim: Sim, fault: Tensor) -> dict[str, Tensor]:
        """Add the numbers of the last step; return them, (num_envs,) each, 0 where it is faulty."""
        if not self.names:
            return {}
        step = {
            name: torch.where(fault, 0.0, value.float())
            for name, value in self.task.step_metrics(sim).items()
        }
        for name, value in step.items():
            self.sums[name].add_(value)
        return step

    def episode_metrics(self, steps: Tensor, terminated: Tensor) -> list[Tensor]:
        """Return what the sums mean, in the order of `names`, for episodes that end now."""
        if not self.names:
            return []
        metrics = self.task.episode_metrics(self.sums, steps, terminated)
        return [metrics[name].float() for name in self.names]

    def clear(self, mask: Tensor) -> None:
        """Begin new episodes where the mask says."""
        for value in self.sums.values():
            value.masked_fill_(mask, 0.0)


class EpisodeStatistics:
    """Sums of the running episodes, and the means over those that have ended."""

    BUFFERS = ("counted", "succeeded", "episode")
    """Its tensors beside the sums of `TaskMetrics`, for a bit-exact continuation."""

    def __init__(self, task: Task[Any], sim: Sim, terms: Iterable[str]) -> None:
        """Allocate.

        terms: names of the reward terms.
        """
        n, device = sim.num_envs, sim.device
        self.task_metrics = TaskMetrics(task, sim)
        self.columns = ("return", "episode_len", *(f"reward/{name}" for name in terms))
        self.means = (*self.columns, *self.task_metrics.names, "success_once", "success_at_end")
        self.counted = torch.zeros(n, dtype=torch.bool, device=device)
        """Whether the running episode enters the means."""
        self.succeeded = torch.zeros(n, dtype=torch.bool, device=device)
        self.episode = torch.zeros(len(self.columns), n, device=device)
        self.finished = torch.zeros(len(self.means) + 1, device=device, dtype=torch.float64)
        self._one = torch.ones(n, device=device)

    def add(self, reward: Tensor, weighted: dict[str, Tensor], success: Tensor) -> None:
        """Add a step: the reward (num_envs,), its weighted terms, and whether it is a success."""
        self.succeeded.logical_or_(success)
        self.episode.add_(torch.stack((reward, self._one, *weighted.values())))

    def end(self, ended: Tensor, terminated: Tensor, success: Tensor) -> None:
        """Take the episodes that end now into the means.

        ended, terminated, success: (num_envs,) bool; the last two of the episode's last step.
        """
        length = self.episode[self.columns.index("episode_len")]
        metrics = self.task_metrics.episode_metrics(length, terminated)
        others = torch.stack((*metrics, self.succeeded.float(), success.float(), self._one))
        columns = torch.cat((self.episode, others))
        self.finished.add_(torch.where(ended, columns, 0.0).sum(dim=1, dtype=torch.float64))

    def clear(self, mask: Tensor, *, counts: bool) -> None:
        """Begin new episodes where the mask says; counts: whether they enter the means."""
        keep = ~mask
        if counts:
            self.counted.logical_or_(mask)
        else:
            self.counted.logical_and_(keep)
        self.episode.mul_(keep)
        self.succeeded.logical_and_(keep)
        self.task_metrics.clear(mask)

    def take(self) -> dict[str, float]:
        """Return the means over the episodes that ended since the last call, and clear them.

        Keys: see `Env.metrics`. Means are absent when no episode ended. One host sync.
        """
        *sums, count = self.finished.tolist()
        self.finished.zero_()
        out: dict[str, float] = {"env/num_trajectories": count}
        if count:
            for name, total in zip(self.means, sums, strict=True):
                out[name if name.startswith("reward/") else f"env/{name}"] = total / count
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor, flat."""
        return {
            **{name: getattr(self, name).clone() for name in (*self.BUFFERS, "finished")},
            **{f"measure/{k}": v.clone() for k, v in self.task_metrics.sums.items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        for name in self.BUFFERS:
            getattr(self, name).copy_(state[name])
        self.finished.zero_()
        if state["finished"].shape == self.finished.shape:  # an older checkpoint's is empty
            self.finished.copy_(state["finished"])
        for name, value in self.task_metrics.sums.items():
            value.copy_(state[f"measure/{name}"])
