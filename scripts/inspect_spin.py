"""Tell finger gaiting from jiggling: how a policy turns the pen, over fixed-seed episodes.

python scripts/inspect_spin.py RUN|POLICY [KEY=VALUE ...] [--episodes N] [--seed S] [--json]

What is followed is the pen's axis about +z, as `turns` do. `efficiency` is the turn that remains
over all turning back and forth: 1 for pure rotation, near 0 for jiggling; from one control step to
the next, and from one physics step to the next, where it sees vibration too. A gaiting finger
leaves the pen and returns: it `lifts` where it is 2 mm away after less than half a millimetre.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style.env.env import Env  # noqa: E402
from penspin_style.sim.sim import Sim  # noqa: E402
from penspin_style.train.evaluate import Act, evaluate  # noqa: E402
from penspin_style.train.load_policy import open_policy  # noqa: E402
from tasks.pen import shapes  # noqa: E402
from tasks.pen.grasp import GAP, TIP_RADIUS  # noqa: E402
from tasks.pen.spin import PenTask  # noqa: E402

CLEAR = 0.002  # m
FAST = 5.0  # Hz
FINGERS = ("index", "middle", "ring", "thumb")


class Watch:
    """Stands in for a simulation; steps it a physics step at a time, which changes no state."""

    def __init__(self, sim: Sim, task: PenTask[Any]) -> None:
        self.sim, self.task = sim, task
        self.turned: list[Tensor] = []  # (num_envs, substeps) turns, of each control step
        self.gap: list[Tensor] = []  # (num_envs, 4) m, between fingertips and pen
        self.qpos: list[Tensor] = []  # (num_envs, 16) rad

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sim, name)

    def step(self, nstep: int, inputs: Mapping[str, Tensor], mask: Tensor | None = None) -> None:
        """Step as told; note what the pen and the fingers do."""
        task, turned = self.task, []
        for i in range(nstep):
            before = task.pen_mat[:, :, 2].clone()
            self.sim.step(1, {name: values[i : i + 1] for name, values in inputs.items()}, mask)
            turned.append(shapes.turns(before, task.pen_mat[:, :, 2]))
        tips, axis = task.tips[:, task.tip_ids], task.pen_mat[:, :, 2]
        distance = shapes.distance(tips, task.pen, axis, task.size(self.sim))
        self.turned.append(torch.stack(turned, dim=1).cpu())
        self.gap.append((distance - TIP_RADIUS).cpu())
        self.qpos.append(task.qpos.float().cpu())


def inspect(env: Env, act: Act, seed: int) -> dict[str, Any]:
    """Return the figures of an episode in each environment; they were built with this seed."""
    task = env.task
    if not isinstance(task, PenTask):
        raise ValueError(f"{type(task).__name__} has no pen to spin")
    watch = Watch(env.sim, task)
    env.world.sim = cast(Sim, watch)
    result = evaluate(env, act, seed=seed)
    steps, dt = result.record.steps.long().tolist(), task.cfg.control_dt
    turned, gap, qpos = (
        [values[:n, i] for i, n in enumerate(steps)]
        for values in map(torch.stack, (watch.turned, watch.gap, watch.qpos))
    )
    return {
        "episodes": env.num_envs,
        "seconds": dt * sum(steps) / len(steps),
        "turns": result.record.values["turns"].mean().item(),
        **rotation(turned, dt),
        "fingers": fingers(gap, qpos, dt),
    }


def rotation(episodes: list[Tensor], dt: float) -> dict[str, float]:
    """Return how the pen turned, from the turns (steps, substeps) of each episode.

    `rate`, `absolute_rate`: mean angular velocity of control steps and of its magnitude, rad/s;
    `fast_power`: share of the velocity's power above 5 Hz; `spell`: longest time without a step
    back, s, mean over episodes, and `longest_spell` of them all.
    """
    slow, quick = ([e.double().sum(dim=1) for e in episodes], [e.flatten() for e in episodes])
    net, way = (sum(f(x).item() for x in slow) for f in (torch.sum, _way))
    fast = power = 0.0
    for x in quick:
        spectrum = torch.fft.fft(x.double()).abs().square() / len(x)
        frequency = torch.fft.fftfreq(len(x), d=dt / episodes[0].shape[1])
        fast += spectrum[frequency.abs() > FAST].sum().item()
        power += spectrum.sum().item()
    seconds, spells = dt * sum(map(len, slow)), [dt * _longest(x > 0) for x in slow]
    return {
        "rate": 2.0 * math.pi * net / seconds,
        "absolute_rate": 2.0 * math.pi * way / seconds,
        "efficiency": net / max(way, 1e-12),
        "efficiency_physics": net / max(sum(_way(x).item() for x in quick), 1e-12),
        "fast_power": fast / max(power, 1e-12),
        "spell": sum(spells) / len(spells),
        "longest_spell": max(spells),
    }


def fingers(gaps: list[Tensor], qpos: list[Tensor], dt: float) -> dict[str, dict[str, float]]:
    """Return each finger's share of time in touch, lifts per second and joint range, rad.

    gaps: (steps, 4) m of each episode; qpos: (steps, 16). The range is that of an episode, mean
    over the finger's joints.
    """
    touch, lifts, span = (torch.zeros(4) for _ in range(3))
    for gap, angles in zip(gaps, qpos, strict=True):
        held = gap[0] < GAP
        for now in gap:
            lifts += held & (now > CLEAR)
            held = (held & (now <= CLEAR)) | (now < GAP)
        touch += (gap < GAP).sum(dim=0)
        span += (angles.amax(dim=0) - angles.amin(dim=0)).view(4, 4).mean(dim=1) / len(qpos)
    steps = sum(map(len, gaps))
    rows = torch.stack((touch / steps, lifts / (steps * dt), span), dim=1).tolist()
    keys = ("touch", "lifts", "joint_range")
    return {f: dict(zip(keys, row, strict=True)) for f, row in zip(FINGERS, rows, strict=True)}


def _way(x: Tensor) -> Tensor:
    return x.double().abs().sum()


def _longest(good: Tensor) -> int:
    ends = torch.cat((torch.tensor([-1]), (~good).nonzero().flatten(), torch.tensor([len(good)])))
    return int(ends.diff().max()) - 1


def show(r: dict[str, Any]) -> None:
    """Print the figures for people."""
    print(
        f"{r['episodes']} episodes of {r['seconds']:.1f} s, {r['turns']:.2f} turns each\n"
        f"rate         {r['rate']:+.3f} rad/s, {r['absolute_rate']:.3f} in magnitude\n"
        f"efficiency   {r['efficiency']:.1%}, {r['efficiency_physics']:.1%} at the physics rate\n"
        f"above {FAST:g} Hz   {r['fast_power']:.1%} of the power\n"
        f"spell        {r['spell']:.2f} s without a step back, at most {r['longest_spell']:.2f} s\n"
        "finger       in touch  lifts/s  joint range"
    )
    for name, f in r["fingers"].items():
        print(f"{name:11}  {f['touch']:8.1%}  {f['lifts']:7.2f}  {f['joint_range']:7.2f} rad")


def main(argv: list[str]) -> int:
    """Load, run, report; return the exit code."""
    parser = argparse.ArgumentParser(description="Tell finger gaiting from jiggling.")
    parser.add_argument("policy", type=pathlib.Path, help="a run, a policy folder or an ONNX file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=2_000_003)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.parse_intermixed_args(argv)
    torch.set_num_threads(1)  # a second one would spin on the cores that physics needs
    try:
        source = open_policy(options.policy, options.overrides)
        report = inspect(source.env(options.episodes, options.seed), source.act, options.seed)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(report)) if options.json else show(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
