"""Compare MuJoCo Warp with MuJoCo C on the pen task: how grasps that are held drift apart.

python scripts/compare_engines.py [--envs 500] [--steps 100] [--scale 0.28] [--seed 0] [--device D]

Both engines start from the same states, models and targets that do not move, and get the same noise
and the same pushes in every physics step. Contact is chaotic: two runs of MuJoCo C whose joints
differ by a microradian drift apart too, and are printed beside the engines. What must agree is
how far the drift has come, and how many pens have dropped. Exit code 1 if the intervals of the
drops do not overlap, 2 for invalid arguments.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style import rotation  # noqa: E402
from penspin_style.env.env import Env  # noqa: E402
from penspin_style.sim.sim import Sim, make_sim  # noqa: E402
from penspin_style.system.interval import wilson  # noqa: E402
from penspin_style.train.environment import resolve_device  # noqa: E402
from tasks.pen.spin import PenSpin  # noqa: E402

NUDGE = 1e-6  # rad
SHARES = (0.5, 0.9, 0.99)


@dataclass
class Comparison:
    """One simulation beside the exact one."""

    pen: Tensor
    """(steps, n) m between the pens' middles; NaN once a pen has dropped here or there."""
    joints: Tensor
    """(steps, n) rad, the largest difference of a joint; NaN as above."""
    terminated: Tensor
    """(n,) bool, whether the pen has dropped here."""
    terminated_exact: Tensor
    """(n,) bool, whether it has there."""
    faults: int
    """Environments with a fault while the pen was held."""


class World:
    """A simulation of the task's model that is driven from outside."""

    def __init__(self, env: Env, engine: str, device: torch.device, nudge: float = 0.0) -> None:
        """Copy the environment's models and state; nudge: standard deviation on the joints, rad."""
        self.task = env.task
        names = tuple(dir(env.sim.params))
        n = env.num_envs
        self.sim: Sim = make_sim(env.model, n, device, engine=engine, per_env=names)
        for name in names:
            self.sim.params[name].copy_(env.sim.params[name])
        self.sim.set_const()
        self.sim.set_state(env.sim.get_state().to(self.sim.get_state()))
        noise = torch.randn(n, 16, generator=torch.Generator().manual_seed(0))
        self.sim.data.qpos[:, :16] += (nudge * noise).to(self.sim.data.qpos)
        self.sim.forward()
        self.terminated = torch.zeros(n, dtype=torch.bool)
        self.faulty = torch.zeros(n, dtype=torch.bool)
        self.half = env.sim.params.geom_size[:, self.task.geom, 1].double()

    def step(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Advance a control step; return the pen's middle (n, 3) m and the joints (n, 16) rad."""
        count = len(inputs["ctrl"])
        self.sim.step(count, {name: v.to(self.sim.device) for name, v in inputs.items()})
        qpos, at, cfg = self.sim.data.qpos.double().cpu(), self.task.at, self.task.cfg
        middle, quat = qpos[:, at : at + 3], qpos[:, at + 3 : at + 7]
        rise = self.half * rotation.to_matrix(quat)[:, 2, 2].abs()
        height = middle[:, 2]
        self.terminated |= height < cfg.lowest
        self.terminated |= (height - rise < cfg.lowest_end) | (height + rise > cfg.highest_end)
        # a task would have reset a dropped pen before it is pressed into the palm
        self.faulty |= (self.sim.faults.cpu() != 0) & ~self.terminated
        return middle, qpos[:, :16]


def compare(
    envs: int, steps: int, others: Sequence[tuple[str, torch.device, float]], **settings: Any
) -> list[Comparison]:
    """Run MuJoCo C and the others (engine, device, nudge) through the same steps."""
    seed = settings.pop("seed", 0)
    env = Env(PenSpin(PenSpin.Config(**settings)), envs, seed=seed)
    exact = World(env, "mujoco", torch.device("cpu"))
    worlds = [World(env, *other) for other in others]
    n, still = env.n_substeps, torch.zeros(env.action_spec.shape)
    pens, joints = ([[] for _ in worlds] for _ in range(2))
    for _ in track(range(steps), "control steps", console=Console(stderr=True), transient=True):
        env.task.apply_action(env.sim, still)
        inputs = env.task.substeps(env.sim, n, env.rng)
        middle, angles = exact.step(inputs)
        for i, world in enumerate(worlds):
            its_middle, its_angles = world.step(inputs)
            over = exact.terminated | world.terminated
            apart = (its_middle - middle).norm(dim=1), (its_angles - angles).abs().amax(dim=1)
            for rows, values in zip((pens[i], joints[i]), apart, strict=True):
                rows.append(torch.where(over, torch.nan, values))
    return [
        Comparison(
            torch.stack(pens[i]),
            torch.stack(joints[i]),
            world.terminated,
            exact.terminated,
            int(world.faulty.sum()),
        )
        for i, world in enumerate(worlds)
    ]


def quantiles(values: Tensor) -> list[float]:
    """Return the values that the shares `SHARES` of what is no NaN in (n,) stay below."""
    return torch.nanquantile(values, torch.tensor(SHARES, dtype=values.dtype)).tolist()


def table(names: Sequence[str], found: Sequence[Comparison]) -> str:
    """Return the figures as text."""
    shares = "".join(f"{100 * share:>9.0f} %" for share in SHARES)
    lines = [f"{'against MuJoCo C':<32}{'step':>6}{shares}"]
    for name, one in zip(names, found, strict=True):
        marks = [i for i in (1, 10, 100, 400) if i <= len(one.pen)]
        for what, values, unit in (("pen, mm", one.pen, 1e3), ("joints, mrad", one.joints, 1e3)):
            for i in marks:
                row = "".join(f"{unit * q:>11.2g}" for q in quantiles(values[i - 1]))
                lines.append(f"{f'{name}: {what}':<32}{i:>6}{row}")
    n = len(found[0].terminated)
    dropped = [
        ("mujoco", found[0].terminated_exact),
        *zip(names, (f.terminated for f in found), strict=True),
    ]
    for name, terminated in dropped:
        count = int(terminated.sum())
        low, high = wilson(count / n, n)
        share = f"{100 * count / n:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}"
        lines.append(f"dropped, {name:<22} {count} of {n}: {share}")
    for name, one in zip(names, found, strict=True):
        both = int((one.terminated & one.terminated_exact).sum())
        lines.append(f"in both, {name:<22} {both}; faulty environments {one.faults}")
    return "\n".join(lines)


def agree(one: Comparison) -> bool:
    """Return whether the intervals of the dropped overlap and nothing was faulty."""
    n = len(one.terminated)
    (a, b), (c, d) = (
        wilson(float(terminated.sum()) / n, n)
        for terminated in (one.terminated, one.terminated_exact)
    )
    return a <= d and c <= b and not one.faults


def main(argv: list[str]) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/compare_engines.py")
    parser.add_argument("--envs", type=int, default=500, help="grasps to hold")
    parser.add_argument("--steps", type=int, default=100, help="control steps of 0.05 s")
    parser.add_argument("--scale", type=float, default=0.28, help="of the pens: 0.28 or 0.29")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of Warp: cpu or cuda:N")
    options = parser.parse_args(argv)
    try:
        if min(options.envs, options.steps) < 1:
            raise ValueError(
                f"--envs and --steps must be at least 1, got {options.envs} and {options.steps}"
            )
        others = [
            ("warp", resolve_device(options.device), 0.0),
            ("mujoco", torch.device("cpu"), NUDGE),
        ]
        settings = {"scales": [options.scale], "seed": options.seed}
        found = compare(options.envs, options.steps, others, **settings)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table([f"warp on {options.device}", f"mujoco, {NUDGE:g} rad off"], found))
    return 0 if all(agree(one) for one in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
