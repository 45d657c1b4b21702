"""What reward terms are made of: shapes, tensor -> tensor with values in [0, 1], and records."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim


def near(distance: Tensor, scale: float) -> Tensor:
    """Return 1 - tanh(scale * distance): 1 at zero distance, falling smoothly. scale in 1/m."""
    return 1.0 - torch.tanh(scale * distance)


def progress(value: Tensor, start: float, goal: float) -> Tensor:
    """Return how far value has come from start (0) to goal (1), clipped."""
    return ((value - start) / (goal - start)).clamp(0.0, 1.0)


def tolerance(
    x: Tensor, low: float, high: float, margin: float, value_at_margin: float = 0.1
) -> Tensor:
    """Return 1 inside [low, high], falling like a gaussian to value_at_margin at `margin`."""
    outside = torch.clamp(torch.maximum(low - x, x - high), min=0.0)
    if margin == 0.0:
        return (outside == 0.0).to(x.dtype)
    rate = math.sqrt(-2.0 * math.log(value_at_margin))
    return torch.exp(-0.5 * (outside / margin * rate) ** 2)


class RunningMax:
    """A reward for beating the episode's record of a weighted sum of terms, as for progress.

        def start(self, sim):
            self.record = RunningMax(self.memory, "record", {"reach": 1.0, "lift": 3.0}, sim)

        def reset(self, sim, mask, rng):
            self.record.clear(mask)

        def reward(self, sim, action):
            return {"progress": self.record.gain({"reach": ..., "lift": ...})}

    What a policy has reached once is not paid again, so that it gains nothing by going back and
    forth. The first step of an episode sets the record and pays nothing: a start nearer to the goal
    is no merit. The record lies in the task's memory: checkpoints and snapshots hold it.
    """

    def __init__(
        self,
        memory: dict[str, Tensor],
        name: str,
        weights: Mapping[str, float],
        sim: Sim,
    ) -> None:
        """Allocate; memory: the task's. name: of the record in it.

        Raises:
            ValueError: the memory has something of this name, or there are no weights.
        """
        if name in memory or not weights:
            raise ValueError(
                f"RunningMax needs weights and a name of its own, got {dict(weights)} and {name!r} "
                f"beside {sorted(memory)}"
            )
        self.memory, self.name, self.weights = memory, name, dict(weights)
        # below every sum: no record yet
        memory[name] = torch.full((sim.num_envs,), -torch.inf, device=sim.device)

    def clear(self, mask: Tensor) -> None:
        """Forget the records of the masked environments, which begin anew."""
        self.memory[self.name].masked_fill_(mask, -torch.inf)

    def gain(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return how much the sum of terms (num_envs,) exceeds its record, >= 0; move the record.

        Once per step. A sum that is NaN sets no record, and is what is returned.

        Raises:
            ValueError: other terms than there are weights for.
        """
        return self.gain_of(self.weigh(terms))

    def weigh(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of terms, (num_envs,), for `gain_of`.

        Raises:
            ValueError: other terms than there are weights for.
        """
        if terms.keys() != self.weights.keys():
            raise ValueError(
                f"RunningMax weighs {sorted(self.weights)}, it is given {sorted(terms)}"
            )
        values = [weight * terms[name].float() for name, weight in self.weights.items()]
        return torch.stack(values).sum(dim=0)

    def gain_of(self, total: Tensor) -> Tensor:
        """Return what `gain` does, of the sum itself."""
        record = self.memory[self.name]
        gain = torch.where(record == -torch.inf, 0.0 * total, (total - record).clamp(min=0.0))
        record.copy_(torch.fmax(record, total))
        return gain
