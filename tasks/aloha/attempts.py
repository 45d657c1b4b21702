"""Failed attempts of an episode: an object that falls back, a peg that leaves the socket.

An episode that succeeds after one has tried again, as MuJoCo Playground's students do now and then.
"""

import torch
from torch import Tensor

UP, DOWN = 0.10, 0.07  # m, heights of an object's centre: in the hand, and down again
NEAR, AWAY = 0.055, 0.09  # m, from the peg's tip to the socket's middle, 48 mm behind its mouth


class Attempts:
    """Counts them in each environment, from what is said of it once a step.

    memory: per-environment state for the task's own.
    """

    def __init__(self, num_envs: int, num_objects: int, device: torch.device) -> None:
        self.memory = {
            "attempts/picked": torch.zeros(num_envs, num_objects, dtype=torch.bool, device=device),
            "attempts/near": torch.zeros(num_envs, dtype=torch.bool, device=device),
            "attempts/failed": torch.zeros(num_envs, device=device),
        }

    @property
    def failed(self) -> Tensor:
        """How many have failed, (num_envs,)."""
        return self.memory["attempts/failed"]

    def clear(self, mask: Tensor) -> None:
        """Begin anew where the mask says."""
        for value in self.memory.values():
            value.masked_fill_(mask.view(-1, *[1] * (value.ndim - 1)), 0)

    def note(self, height: Tensor, tip: Tensor) -> None:
        """Take in a step: heights (num_envs, num_objects) m, the tip's distance (num_envs,) m."""
        picked, near = self.memory["attempts/picked"], self.memory["attempts/near"]
        fell = picked & (height < DOWN)
        left = near & (tip > AWAY)
        self.failed.add_(fell.sum(dim=1) + left.float())
        picked.copy_((picked | (height > UP)) & ~fell)
        near.copy_((near | (tip < NEAR)) & ~left)
