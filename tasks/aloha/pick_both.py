"""Pick a bar with each arm of ALOHA at once: `aloha_pick` twice, learned by one policy.

The comparison of the report on MuJoCo Playground's pull request 76 (appendix A1): 106 numbers, 14
actions and every reward term of both arms, against one arm's policy deployed on both, which
`task.pick_policy` lets act here. Observation, reward, noise and initial draws of each arm are those
of `aloha_pick`, their names after `left_` or `right_`.

**Success**: both bars are at their targets, as near as the level of each asks for.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.task import Expert, ObsTerm, Task
from penspin_style.features import ActionChannel, Joint
from penspin_style.sim.sim import Sim
from tasks.aloha import one_arm, pick
from tasks.aloha.picker import Picker
from tasks.robots.aloha import description
from tasks.robots.aloha import model as aloha

UNITS = {
    f"{side}_{name}": unit for side in description.SIDES for name, unit in one_arm.UNITS.items()
}
_PAIRS = 4  # start states that each state of an arm is in, with another one of the other arm
_OWN = ("reward", "observation", "side")


@dataclass
class Config(pick.Config):
    """Numbers of the task; those of `aloha_pick` are for each arm."""

    reward: dict[str, float] = field(
        default_factory=lambda: {
            f"{side}_{name}": weight
            for side in description.SIDES
            for name, weight in pick.Config().reward.items()
        }
    )
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            group: {name: ObsTerm() for name in UNITS} for group in ("teacher", "critic")
        }
    )
    pick_policy: str = ""
    """A policy of `aloha_pick` that moves each arm, and from which nothing is learned; empty: the
    learner acts."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        super().__post_init__()
        if self.side != "left":
            raise ValueError(f"task.side: this task is of both arms, got {self.side!r}")

    def of(self, side: str) -> pick.Config:
        """Return the numbers of one arm's task."""
        names = [f.name for f in dataclasses.fields(pick.Config) if f.name not in _OWN]
        return pick.Config(**{name: getattr(self, name) for name in names}, side=side)


class PickBoth(Task[Config]):
    """See the module's docstring."""

    Config = Config
    units: ClassVar[dict[str, str]] = UNITS
    score: ClassVar[str] = "success_at_end"
    varied: ClassVar[tuple[str, ...]] = pick.Pick.varied
    policies: ClassVar[tuple[str, ...]] = ("pick_policy",)

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.arms = [
            pick.Pick(cfg.of(side), bar=f"{side}_box", target=f"{side}_target")
            for side in description.SIDES
        ]

    def spec(self) -> mujoco.MjSpec:
        """Return the table with both arms, and bar, ghost and sensors of each."""
        spec = aloha.scene(description.SIDES)
        for arm in self.arms:
            arm.furnish(spec)
        return spec

    @property
    def actions(self) -> tuple[ActionChannel, ...]:
        """Return the changes of the fourteen position targets."""
        return description.actions(scale=self.cfg.action_scale)

    @property
    def joints(self) -> tuple[Joint, ...]:
        """Return both arms' joints and grippers."""
        return aloha.joints(self.spec().compile(), description.ARM_HOME * len(self.arms))

    def start(self, sim: Sim) -> None:
        """Look up ids; allocate what lives longer than a step."""
        cfg = self.cfg
        for arm in self.arms:
            arm.start(sim)
        self.picker = None
        if cfg.pick_policy:
            late = cfg.latency.get("teacher")
            self.picker = Picker(
                sim,
                "task.pick_policy",
                cfg.pick_policy,
                odds=late.weights if late else [1.0],
                scale=cfg.action_scale,
                control_dt=cfg.control_dt,
            )
        self.memory = {
            **self._joined(lambda arm: arm.memory),
            **(self.picker.memory if self.picker else {}),
        }

    def _joined(self, ask: Callable[[pick.Pick], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what both arms answer, each name after `left_` or `right_`."""
        return {
            f"{arm.cfg.side}_{name}": value for arm in self.arms for name, value in ask(arm).items()
        }

    def vary(self, sim: Sim, rng: torch.Generator) -> None:
        """Draw width and mass of both bars."""
        for arm in self.arms:
            arm.vary(sim, rng)

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Draw each arm's start as `aloha_pick` does."""
        for arm in self.arms:
            arm.reset(sim, mask, rng)

    def learner_acts(self, sim: Sim) -> Tensor | None:
        """Return nowhere where a policy of one arm moves both."""
        if self.picker is None:
            return None
        return torch.zeros(sim.num_envs, dtype=torch.bool, device=sim.device)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Move each arm's targets by its seven numbers, as late as its own draw says."""
        if self.picker:
            first = self.arms[0].memory["steps"] == 0
            action = self.picker.act([arm.observe(sim) for arm in self.arms], first)
        for arm, part in zip(self.arms, action.chunk(len(self.arms), dim=1), strict=True):
            arm.apply_action(sim, part)

    def substeps(self, sim: Sim, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw the noise of the coming observation and the latency of the next action."""
        for arm in self.arms:
            arm.substeps(sim, n, rng)
        if self.picker:
            self.picker.draw(rng)
        return {}

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the terms of `UNITS`, each arm's in its base's frame."""
        return self._joined(lambda arm: arm.observe(sim))

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return both arms' terms."""
        return self._joined(lambda arm: arm.reward(sim, action))

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether either bar has crossed the middle or left the world."""
        return self._both(lambda arm: arm.terminated(sim)).any(dim=0)

    def success(self, sim: Sim) -> Tensor:
        """Return whether both bars are at their targets."""
        return self._both(lambda arm: arm.success(sim)).all(dim=0)

    def _both(self, ask: Callable[[pick.Pick], Tensor]) -> Tensor:
        return torch.stack([ask(arm) for arm in self.arms])

    def progress(self, sim: Sim) -> Tensor:
        """Return what both potentials have gained since the episode's first step."""
        return self._both(lambda arm: arm.progress(sim)).sum(dim=0)

    def start_state(self, sim: Sim) -> Tensor:
        """Return both arms' rows, one after the other, (num_envs, 80)."""
        return torch.cat([arm.start_state(sim) for arm in self.arms], dim=1)

    def set_start_state(self, sim: Sim, mask: Tensor, rows: Tensor, rng: torch.Generator) -> None:
        """Start from such rows."""
        for arm, own in zip(self.arms, rows.chunk(len(self.arms), dim=1), strict=True):
            arm.set_start_state(sim, mask, own, rng)

    def start_bank(self, device: torch.device) -> Tensor:
        """Return states along scripted picks, those of both arms paired at random, (n, 80)."""
        left, right = (arm.start_bank(device) for arm in self.arms)
        rng = torch.Generator().manual_seed(0)
        order = [torch.randperm(len(right), generator=rng).to(device) for _ in range(_PAIRS)]
        return torch.cat([torch.cat((left, right[rows]), dim=1) for rows in order])

    def expert(self, sim: Sim) -> Expert:
        """Return the script of `pick_expert.py` for both arms."""
        from tasks.aloha.pick_expert import PickExpert

        return PickExpert(self.arms, sim)

    def step_metrics(self, sim: Sim) -> dict[str, Tensor]:
        """Return what `aloha_pick` does of each arm, and which of them succeeds."""
        metrics = self._joined(lambda arm: arm.step_metrics(sim))
        return metrics | self._joined(lambda arm: {"success": arm.success(sim).float()})

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return the shares of episodes in which each arm grasped, lifted, and succeeded."""
        names = [f"{arm.cfg.side}_{name}" for arm in self.arms for name in _REACHED]
        return {f"ever_{name}": sums[name] > 0 for name in names}


_REACHED = ("grasped", "lifted", "success")

NAME = "aloha_pick_both"
TASK = PickBoth
