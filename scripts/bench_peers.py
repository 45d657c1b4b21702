#!/usr/bin/env python3
"""Measure `panda_lift_cube` beside Gymnasium's AsyncVectorEnv and Stable-Baselines3, in turns.

    python -m venv peers && peers/bin/pip install stable-baselines3 gymnasium mujoco
    python scripts/bench_peers.py peers/bin/python

Both simulate the same MJCF on all cores: theirs one environment in each process, ours all in one
(`peer_lift_cube.py` says what is the same). `env`: random actions alone. `train`: PPO, collecting
and learning, with our batch, minibatches, epochs and layers. Medians over rounds, with the smallest
and largest; ratios are of the same round.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import torch
from tensordict import TensorDict

from penspin_style.algo.algorithm import rollout, torch_threads
from penspin_style.algo.registry import make_algorithm
from penspin_style.bench.alternate import make_env
from penspin_style.config import TrainConfig
from penspin_style.train.compose import compose_train
from penspin_style.train.environment import interface
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

    return {"env": step, "train": train}


class Peer:
    """The other programme, in its own Python."""

    def __init__(self, python: str, model: pathlib.Path, cfg: TrainConfig, count: int) -> None:
        algo = cfg.algo
        line = [python, str(PEER), str(model), f"--num-envs={count}", "--steps=100"]
        line += [f"--batch={cfg.num_envs * algo.horizon}", f"--minibatches={algo.num_minibatches}"]
        line += [f"--epochs={algo.epochs}", "--hidden", *map(str, algo.hidden)]
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


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="that of the environment with stable-baselines3")
    parser.add_argument("--peer-envs", type=int, default=8, help="processes of the peer, default 8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="as num_envs=512")
    args = parser.parse_intermixed_args()
    cfg, task, _ = compose_train(["task=panda_lift_cube", *args.overrides])
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "lift_cube.xml"
        model.write_text(task(cfg.task).spec().to_xml())
        peer = Peer(args.python, model, cfg, args.peer_envs)
        about = {"peer": peer.versions, "ours": versions()}
        figures = compare(ours(cfg, task, steps=50), peer, args.rounds)
        peer.close()
    print(json.dumps({"num_envs": cfg.num_envs, **figures, "versions": about}, indent=1))


if __name__ == "__main__":
    main()
