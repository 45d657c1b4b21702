"""A device that nobody holds: the scripted expert of a twin's task moves the twin."""

from typing import Any

import numpy as np
import torch

from real.robot import RequestError
from real.teleop.device import Reading


class Scripted:
    """What the task's expert would do in the twin's world."""

    legend = ""
    by_hand = False

    def __init__(self, robot: Any, seed: int) -> None:
        """Take the expert.

        robot: a `SimRobot` in fast time.

        Raises:
            RequestError: it is no twin, or its task has no expert.
        """
        batch = getattr(robot, "batch", None)
        expert = None if batch is None else batch.task.expert(batch.sim)
        if batch is None or expert is None:
            whose = "a real robot" if batch is None else batch.config.task
            raise RequestError(
                f"--device scripted: {whose} has no scripted expert (Task.expert); use keyboard, "
                "gamepad or spacemouse"
            )
        self.expert, self._count = expert, batch.num
        self._rng = torch.Generator(batch.sim.device).manual_seed(seed)
        self._fresh = True

    def open(self) -> None:
        """Do nothing: there is nothing to listen to."""

    def begin(self) -> None:
        """Let the expert begin anew, once the robot stands at its start."""
        self._fresh = True

    @torch.inference_mode()
    def read(self, last: np.ndarray) -> Reading:
        """Return the expert's action."""
        if self._fresh:
            self.expert.restart(torch.ones(self._count, dtype=torch.bool), self._rng)
            self._fresh = False
        return Reading(self.expert.act()[0].cpu().numpy())

    def close(self) -> None:
        """Do nothing."""
