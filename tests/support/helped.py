"""The rail with a frozen policy that acts in a part of it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from penspin_style.env.frozen_policy import FrozenPolicy
from penspin_style.features import Feature
from tests.support.rail import Config as RailConfig
from tests.support.rail import Rail

PLACE, SPEED = Feature("place", (1,), "m"), Feature("speed", (1,), "m/s")


@dataclass
class Config(RailConfig):
    helper: str = ""


class Helped(Rail):
    """A frozen policy pulls the cart while it is left of the middle."""

    Config = Config
    cfg: Config
    policies: ClassVar[tuple[str, ...]] = ("helper",)

    def start(self, sim):
        super().start(sim)
        self.frozen = FrozenPolicy(
            "task.helper", self.cfg.helper, (PLACE, SPEED), self.actions,
            control_dt=self.cfg.control_dt, device=sim.device,
        )  # fmt: skip

    def learner_acts(self, sim):
        return sim.data.qpos[:, 0] > 0.0

    def apply_action(self, sim, action):
        terms = {"place": sim.data.qpos, "speed": sim.data.qvel}
        own = self.learner_acts(sim)[:, None]
        super().apply_action(sim, torch.where(own, action, self.frozen.act(terms)))


TASK = Helped
