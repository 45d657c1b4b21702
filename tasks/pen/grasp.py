"""Find grasps for `pen_spin`: hands near the six published grasps, of which those that hold count.

An episode begins at one of the six, every joint moved by up to 0.05 rad, and lasts 1.6 s in which
no target moves and gravity settles what it can. It ends when the pen is not held: fewer than two
fingertips touch it, or it or one of its ends leaves its band of heights. `collect` keeps the states
in which episodes end well; `scripts/gen_grasp.sh` calls it.

**Success**: the pen has been held for 1.6 s.

Upstream measured the ends of a prototype, 0.76 times the scale from end to end; here they are those
of the pen. Touching is a gap below half a millimetre: both engines know distances without asking
for contacts.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from penspin_style.env.env import Env
from penspin_style.env.task import ObsTerm
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim
from tasks.pen import grasps
from tasks.pen.spin import PenConfig, PenTask

TIP_RADIUS = 0.012  # m
GAP = 5e-4  # m
HOLD = 1.6  # s
REASONS = ("fewer than two fingertips", "centre too low", "end too low", "end too high")
_BANDS = {"low": (0.60, 0.63), "high": (0.62, 0.65)}


@dataclass
class Config(PenConfig):
    """Numbers of the search; what disturbs a spin is switched off."""

    control_dt: float = 0.04
    episode_length: int = 40
    reward: dict[str, float] = field(default_factory=lambda: {"held": 1.0})
    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {name: ObsTerm() for name in ("proprio", "pen_pos", "pen_quat")}
        }
    )
    joint_noise: list[float] = field(default_factory=lambda: [0.0, 0.0])
    action_noise: list[float] = field(default_factory=lambda: [0.0, 0.0])
    push_probability: float = 0.0
    scales: list[float] = field(default_factory=lambda: [0.28])
    scale_jitter: float = 0.0
    jitter: float = 0.05
    """Half width of the noise on the published joints, rad."""
    band: str = "low"
    """Heights between which both ends stay: low (0.60 to 0.63 m) or high (0.62 to 0.65 m)."""
    lowest: float = 0.60

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.band not in _BANDS:
            raise ValueError(f"task.band must be one of {sorted(_BANDS)}, got {self.band!r}")
        if len(self.scales) != 1:
            raise ValueError(f"task.scales must be one scale, got {self.scales}")


class PenGrasp(PenTask[Config]):
    """See the module's docstring."""

    Config = Config
    score: ClassVar[str] = "success_rate"
    varied: ClassVar[tuple[str, ...]] = ("geom_size", "geom_pos", "body_inertia")

    def randomize(self) -> list[Randomize]:
        """Vary the pen's mass alone."""
        return [Randomize("body_mass", "pen", 0.010, 0.020, when="startup")]

    def load_grasps(self, device: torch.device) -> Tensor:
        """Return the six published grasps, (1, 6, 23)."""
        return grasps.canonical()[None].to(device)

    def start(self, sim: Sim) -> None:
        """Remember which grasp each episode began with, and how many steps ago."""
        super().start(sim)
        zero = torch.zeros(sim.num_envs, dtype=torch.long, device=sim.device)
        self.memory |= {"canonical": zero.clone(), "age": zero.clone()}

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Start from a published grasp with its joints moved."""
        n, device = sim.num_envs, sim.device
        which = torch.randint(self.grasps.shape[1], (n,), generator=rng, device=device)
        noise = 2.0 * torch.rand(n, 16, generator=rng, device=device) - 1.0
        row = self.grasps[0, which].clone()
        row[:, :16] += self.cfg.jitter * noise
        self.place(sim, mask, row)
        self.memory["canonical"].copy_(torch.where(mask, which, self.memory["canonical"]))
        self.memory["age"].masked_fill_(mask, 0)

    def apply_action(self, sim: Sim, action: Tensor) -> None:
        """Count the steps; move the targets as any pen task does."""
        super().apply_action(sim, action)
        self.memory["age"].add_(1)

    def reward(self, sim: Sim, action: Tensor) -> dict[str, Tensor]:
        """Return 1 while the pen is held."""
        return {"held": (~self.broken(sim).any(dim=1)).float()}

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether the pen is not held; in the first step it may still fall into place."""
        return self.broken(sim).any(dim=1)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the pen has been held for long enough."""
        long_enough = self.memory["age"] >= round(HOLD / self.cfg.control_dt)
        return long_enough & ~self.broken(sim).any(dim=1)

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return which episodes held the pen to their end."""
        return {"held": ~terminated & (steps >= self.cfg.episode_length)}

    def broken(self, sim: Sim) -> Tensor:
        """Return which rule of `REASONS` each environment breaks, (num_envs, 4) bool."""
        heights = self.ends(sim)[:, :, 2]
        low, high = _BANDS[self.cfg.band]
        loose = (self.touching(sim).sum(dim=1) < 2) & (self.memory["age"] > 1)
        rules = (
            loose,
            self.pen[:, 2] < self.cfg.lowest,
            heights.amin(dim=1) < low,
            heights.amax(dim=1) > high,
        )
        return torch.stack(rules, dim=1)

    def touching(self, sim: Sim) -> Tensor:
        """Return which fingertips touch the side of the pen, (num_envs, 4) bool."""
        size = self.size(sim)
        away = self.tips[:, self.tip_ids] - self.pen[:, None]
        axis = self.pen_mat[:, :, 2]
        along = (away * axis[:, None]).sum(dim=2)
        across = (away - along[..., None] * axis[:, None]).norm(dim=2)
        near = across - size[:, :1] - TIP_RADIUS < GAP
        return near & (along.abs() < size[:, 1:2])

    def state(self, sim: Sim) -> Tensor:
        """Return the grasps that the environments are in, (num_envs, 23)."""
        pen = sim.data.qpos[:, self.at : self.at + 7]
        return torch.cat((self.qpos, pen), dim=1).float()


NAME = "pen_grasp"
TASK = PenGrasp


@dataclass
class Collected:
    """What a search has seen."""

    tried: int = 0
    kept: int = 0
    began: Counter[str] = field(default_factory=Counter)
    """Published grasp -> how many of the kept began there."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rule -> how many episodes broke it; an episode may break several at once."""


@torch.no_grad()
def collect(env: Env, task: PenGrasp, count: int, found: Collected) -> Tensor:
    """Run episodes until at least `count` have held the pen; return their last states, (n, 23).

    found: is added to.

    Raises:
        ValueError: none of 100,000 episodes held the pen.
    """
    kept: list[Tensor] = []
    still = torch.zeros(env.num_envs, len(task.actions), device=env.device)
    goal = found.kept + count
    env.reset()
    while found.kept < goal:
        after = env.step(env.current().set("action", still))["next"]
        ended = after["done"].view(-1)
        good = (after["truncated"] & ~after["terminated"] & ~after["fault"]).view(-1)
        kept.append(task.state(env.sim)[good].cpu())
        broken = task.broken(env.sim)[ended & ~good].sum(dim=0).tolist()
        for reason, number in zip(REASONS, broken, strict=True):
            found.dropped[reason] += number
        for which in task.memory["canonical"][good].tolist():
            found.began[grasps.CANONICAL_NAMES[which]] += 1
        found.tried += int(ended.sum())
        found.kept += int(good.sum())
        env.reset(after.empty().set("_reset", ended[:, None]))
        if not found.kept and found.tried >= 100_000:
            raise ValueError(f"none of {found.tried} grasps held the pen: {dict(found.dropped)}")
    return torch.cat(kept)


@torch.no_grad()
def held(env: Env, task: PenGrasp, rows: Tensor, rng: torch.Generator) -> Tensor:
    """Return which grasps (n, 23) hold a pen of random mass for an episode from rest, (n,) bool.

    Targets are the grasps' own joints, as in training: what settled under load must bear it.
    """
    num, device = env.num_envs, env.device
    order = torch.randperm(len(rows), generator=rng)
    out = torch.zeros(len(rows), dtype=torch.bool)
    still = torch.zeros(num, len(task.actions), device=device)
    for ids in order.split(num):
        row = rows[ids].to(device)
        row = torch.cat((row, row[:1].expand(num - len(ids), -1)))
        env.reset()
        task.place(env.sim, torch.ones(num, dtype=torch.bool, device=device), row)
        env.sim.forward()
        alive = torch.ones(num, dtype=torch.bool, device=device)
        for _ in range(task.cfg.episode_length):
            after = env.step(env.current().set("action", still))["next"]
            alive &= ~(after["terminated"] | after["fault"]).view(-1)
        out[ids] = alive[: len(ids)].cpu()
    return out
