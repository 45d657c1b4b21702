"""What a task's scripted expert would do in the states that an environment gets into."""

from typing import Any

import torch
from torch import Tensor

from penspin_style.env.checks import check_action
from penspin_style.env.task import Task
from penspin_style.sim.sim import Sim


class ExpertActions:
    """The expert beside an environment: restarted where episodes begin, asked once a step."""

    def __init__(self, task: Task[Any], sim: Sim) -> None:
        """Make the task's expert.

        Raises:
            ValueError: the task has none.
        """
        expert = task.expert(sim)
        if expert is None:
            raise ValueError(
                f"algo.teacher=expert: {type(task).__name__} has no scripted expert (Task.expert); "
                "name the folder of a trained teacher instead"
            )
        self.expert = expert
        self.action = torch.zeros(sim.num_envs, len(task.actions), device=sim.device)
        """What it would do in the coming step, (num_envs, naction) in [-1, 1]."""

    def restart(self, mask: Tensor, rng: torch.Generator) -> None:
        """Begin anew where episodes begin, mask (num_envs,) bool."""
        self.expert.restart(mask, rng)

    def ask(self, mask: Tensor | None = None) -> None:
        """Note what it would do now, where the mask says; elsewhere it has been asked already."""
        before = {k: v.clone() for k, v in self.expert.memory.items()} if mask is not None else {}
        action = self.expert.act().float()
        check_action(action, len(self.action), self.action.shape[1])
        if mask is not None:
            action = torch.where(mask[:, None], action, self.action)
            for name, value in self.expert.memory.items():
                rows = mask.view(-1, *(1 for _ in value.shape[1:]))
                value.copy_(torch.where(rows, value, before[name]))
        self.action = action

    def state_dict(self) -> dict[str, Tensor]:
        """Return what it remembers, and what it said last."""
        memory = {f"memory/{k}": v.clone() for k, v in self.expert.memory.items()}
        return {"action": self.action.clone(), **memory}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.action = state["action"].clone()
        for name, value in self.expert.memory.items():
            value.copy_(state[f"memory/{name}"])
