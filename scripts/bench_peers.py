#!/usr/bin/env python3
"""Measure `panda_lift_cube` beside Gymnasium's AsyncVectorEnv and Stable-Baselines3, in turns.

    python -m venv peers && peers/bin/pip install stable-baselines3 gymnasium mujoco
    python scripts/bench_peers.py peers/bin/python

Both simulate the same MJCF on all cores: theirs one environment in each process, ours all in one
(`peer_lift_cube.py` says what is the same). `env`: random actions alone. `train`: PPO, collecting
and learning, with our batch, minibatches, epochs and layers. Medians over rounds, with the smallest
and largest; ratios are of the same round.

With `--minutes 12` each then learns alone, in turn and from the start, until 90 % of 100 episodes
end with the cube lifted, or for so long. Only learning counts, no evaluation. Ours learns and is
judged there, as theirs is, from random starts but with the model's own masses, friction and
damping. Theirs is given those of our settings that `learn_peer` states; the others are
Stable-Baselines3's defaults.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import rollout, torch_threads
from penspin_style.algo.registry import make_algorithm
from penspin_style.bench.alternate import make_env
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from penspin_style.sim.randomize import Randomize
from penspin_style.train.compose import compose_train
from penspin_style.train.environment import interface
from penspin_style.train.evaluate import acting, evaluate
from penspin_style.train.folder import versions

PEER = pathlib.Path(__file__).with_name("peer_lift_cube.py")
KINDS = ("env", "train")


def ours(cfg: TrainConfig, task: Any, steps: int) -> dict[str, Callable[[], float]]:
    """Return the measurements of our environment and of our PPO."""
    env = make_env(cfg, task)
    algo = make_algorithm(cfg, interface(env), device=torch.device("cpu"), seed=cfg.seed)
    shape = (steps, cfg.num_envs, len(env.task.actions))
    root: list[TensorDict] = [env.current()]
    buffer: list[TensorDict | None] = [None]

    def step() -> float:
        actions = 2.0 * torch.rand(shape, generator=env.rng) - 1.0
        began = time.perf_counter()
        for action in actions:
            root[0] = env.step_and_maybe_reset(root[0].set("action", action))[1]
        return cfg.num_envs * steps / (time.perf_counter() - began)

    def train() -> float:
        began = time.perf_counter()
        buffer[0], root[0] = rollout(env, algo, root[0], buffer[0])
        with torch_threads(cfg.learn_threads):
            algo.process(buffer[0])
            algo.update()
        return cfg.num_envs * algo.horizon / (time.perf_counter() - began)

    def success() -> float:
        trial = Env(
            task(cfg.task), 100, torch.device("cpu"), seed=cfg.eval_seed, nthread=cfg.sim.nthread
        )
        with torch.random.fork_rng():
            return evaluate(trial, acting(algo.policy), seed=cfg.eval_seed).success_at_end

    return {"env": step, "train": train, "success": success}


class Peer:
    """The other programme, in its own Python."""

    def __init__(
        self,
        python: str,
        model: pathlib.Path,
        cfg: TrainConfig,
        count: int,
        more: Sequence[str] = (),
    ) -> None:
        algo = cfg.algo
        line = [python, str(PEER), str(model), f"--num-envs={count}", "--steps=100"]
        line += [f"--batch={cfg.num_envs * algo.horizon}", f"--minibatches={algo.num_minibatches}"]
        line += [f"--epochs={algo.epochs}", "--hidden", *map(str, algo.hidden), *more]
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.versions: dict[str, str] = self._read()

    def measure(self, kind: str) -> float:
        """Return its samples per second."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind}\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it, and its processes."""
        self.process.communicate()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{PEER.name} has ended with code {self.process.wait()}")
        return json.loads(line)


def compare(mine: dict[str, Callable[[], float]], peer: Peer, rounds: int) -> dict[str, Any]:
    """Return samples per second of both, and how many times theirs ours are."""
    out: dict[str, Any] = {}
    for kind in KINDS:
        pairs = [(mine[kind](), peer.measure(kind)) for _ in range(rounds + 1)][1:]
        for name, values in zip(("ours", "peer"), zip(*pairs, strict=True), strict=True):
            spread = (min(values), statistics.median(values), max(values))
            out[f"{kind}_{name}_per_s"] = [round(value) for value in spread]
        out[f"{kind}_ratio"] = round(statistics.median(a / b for a, b in pairs), 2)
    return out


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its living descendants have used (Linux)."""
    used, pids = 0, [pid]
    for one in pids:  # grows as it goes
        folder = pathlib.Path("/proc", str(one))
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])  # utime and stime of `man proc_pid_stat`
        for children in folder.glob("task/*/children"):
            pids += map(int, children.read_text().split())
    return used / os.sysconf("SC_CLK_TCK")


def shared_settings(cfg: TrainConfig) -> dict[str, float]:
    """Return the settings of our PPO that Stable-Baselines3 also has, by its names."""
    algo = cfg.algo
    return {
        "gamma": algo.gamma,
        "gae_lambda": algo.gae_lambda,
        "clip_range": algo.clip_coef,
        "ent_coef": algo.entropy_coef,
        "vf_coef": algo.value_coef,
        "max_grad_norm": algo.max_grad_norm,
        "learning_rate": algo.learning_rate,
    }


def learn(
    train: Callable[[], object],
    success: Callable[[], float],
    *,
    minutes: float,
    every: int = 5,
    goal: float = 0.9,
    clock: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Train until the goal or the time; evaluate after `every` iterations.

    cpu: the processor time used so far, s.

    Returns: `reached`, `success` as last evaluated and the largest; `minutes`, `cpu_s` and
        `iterations` of training alone, without evaluation.
    """
    spent, used, iterations, rates = 0.0, 0.0, 0, [0.0]
    while rates[-1] < goal and spent < 60.0 * minutes:
        began, before = clock(), cpu()
        for _ in range(every):
            train()
        spent, used = spent + clock() - began, used + cpu() - before
        iterations += every
        rates.append(success())
        print(
            f"{iterations} iterations, {spent / 60.0:.2f} min, {used:.0f} CPU s: {rates[-1]:.0%}",
            file=sys.stderr,
            flush=True,
        )
    return {
        "reached": rates[-1] >= goal,
        "success": rates[-1],
        "best": max(rates),
        "minutes": round(spent / 60.0, 2),
        "cpu_s": round(used),
        "iterations": iterations,
    }


def unvaried(task: type[Task[Any]]) -> type[Task[Any]]:
    """Return the task with its randomised starts, but always the same masses, friction, damping."""

    class Unvaried(task):
        def randomize(self) -> list[Randomize]:
            return [row for row in super().randomize() if row.field == "qpos"]

    return Unvaried


def learn_both(
    args: argparse.Namespace, cfg: TrainConfig, task: type[Task[Any]], model: pathlib.Path
) -> dict[str, Any]:
    """Return how long ours and theirs learn until they succeed, one after the other."""
    mine = ours(cfg, unvaried(task), steps=50)
    out = {"learn_ours": learn(mine["train"], mine["success"], minutes=args.minutes)}
    settings = shared_settings(cfg)
    more = ["--settings", json.dumps(settings), "--normalize"]
    peer = Peer(args.python, model, cfg, args.peer_envs, more)
    figures = learn(
        partial(peer.measure, "train"),
        partial(peer.measure, "success"),
        minutes=args.minutes,
        cpu=partial(cpu_seconds, peer.process.pid),
    )
    peer.close()
    out["learn_peer"] = {**figures, "settings": {**settings, "normalize_observations": True}}
    return out


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="that of the environment with stable-baselines3")
    parser.add_argument("--peer-envs", type=int, default=8, help="processes of the peer, default 8")
    parser.add_argument("--rounds", type=int, default=5, help="of the rates, default 5; 0: none")
    parser.add_argument("--minutes", type=float, default=0.0, help="to learn for, default 0")
    parser.add_argument("overrides", nargs="*", help="as num_envs=512")
    args = parser.parse_intermixed_args()
    cfg, task, _ = compose_train(["task=panda_lift_cube", *args.overrides])
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "lift_cube.xml"
        model.write_text(task(cfg.task).spec().to_xml())
        peer = Peer(args.python, model, cfg, args.peer_envs)
        about = {"peer": peer.versions, "ours": versions()}
        figures = compare(ours(cfg, task, steps=50), peer, args.rounds) if args.rounds else {}
        peer.close()
        if args.minutes:
            figures |= learn_both(args, cfg, task, model)
    print(json.dumps({"num_envs": cfg.num_envs, **figures, "versions": about}, indent=1))


if __name__ == "__main__":
    main()
