#!/usr/bin/env python3
r"""Measure our Panda tasks beside Gymnasium and Stable-Baselines3, mjlab, and MuJoCo Playground.

    python -m venv sb3 && sb3/bin/pip install stable-baselines3 gymnasium mujoco
    python -m venv mjlab && mjlab/bin/pip install mjlab==1.6.0
    python -m venv playground && playground/bin/pip install playground==0.2.0
    python scripts/bench_peers.py --sb3 sb3/bin/python --mjlab mjlab/bin/python \
        --playground playground/bin/python

Any one of the three will do. Ours and theirs take turns; figures are medians over rounds, with the
smallest and largest, per second and per second of processor time (Linux); ratios are of the same
round. `env` is random actions alone.

`--sb3`: both simulate `panda_lift_cube`'s MJCF on all cores: theirs one environment in each
process, ours all in one (`peer_lift_cube.py` says what is the same). `train`: PPO, collecting and
learning, with our batch, minibatches, epochs and layers.

`--mjlab`, `--playground`: their nearest task on the CPU, beside ours with as many environments:
mjlab's lift-cube (Warp) and `panda_lift_cube`, whose control steps differ; Playground's
PandaPickCube (JAX) and `panda_pick_cube`, which is the same task. `start_s_and_cpu_s` is
from the start of the process to the end of the first step: with an empty cache of Warp's kernels,
then again. `predicted` is how long it would take them to collect as many samples as their published
configuration trains for: a prediction, and learning would come on top.

With `--minutes 12` ours learns `panda_lift_cube` alone, and then Stable-Baselines3 if it is there,
from the start, until 90 % of 100 episodes end with the cube lifted, or for so long. Only learning
counts, no evaluation. Ours learns and is judged there, as theirs is, from random starts but with
the model's own masses, friction and damping. Theirs is given those of our settings that
`shared_settings` names; the others are Stable-Baselines3's defaults.
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
from typing import Any, NamedTuple

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
from penspin_style.system.arguments import Parser, above_zero, natural, positive
from penspin_style.train.compose import compose_train
from penspin_style.train.environment import interface
from penspin_style.train.evaluate import acting, evaluate
from penspin_style.train.folder import versions

HERE = pathlib.Path(__file__).parent
ROBOT = HERE.parent / "tasks" / "robots" / "panda" / "panda.xml"


class Kind(NamedTuple):
    """What is known of a peer."""

    script: str
    packages: tuple[str, ...]
    """What `pip install` has to bring; `NAME==VERSION` where one version is meant."""
    task: str
    """The task of ours that it is measured beside."""
    more: tuple[str, ...] = ()
    """The script's further arguments."""


PEERS = {
    "sb3": Kind(
        "peer_lift_cube.py", ("stable-baselines3", "gymnasium", "mujoco"), "panda_lift_cube"
    ),
    "mjlab": Kind("peer_mjlab.py", ("mjlab==1.6.0",), "panda_lift_cube"),
    "playground": Kind(
        "peer_playground.py", ("playground==0.2.0",), "panda_pick_cube", (str(ROBOT),)
    ),
}
OURS = "peer_ours.py"
TICK = 1.0 / os.sysconf("SC_CLK_TCK")  # s, of what processor time is counted in
MISSING = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try: version(name.partition("==")[0])
    except PackageNotFoundError: print(name)
"""


def check(name: str, python: str) -> None:
    """Check that a peer's Python has its packages.

    Raises:
        ValueError: it lacks some, or is none.
    """
    line = [python, "-c", MISSING, *PEERS[name].packages]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"--{name} {python}: this is no Python that runs: {error}") from None
    if missing := done.stdout.split():
        pip = f"{python} -m pip install {' '.join(PEERS[name].packages)}"
        raise ValueError(f"--{name} {python}: it has no {', '.join(missing)}; {pip}")


def learner(cfg: TrainConfig, task: Any) -> dict[str, Callable[[], float]]:
    """Return the measurements of our PPO: an iteration, and its success."""
    env = make_env(cfg, task)
    algo = make_algorithm(cfg, interface(env), device=torch.device("cpu"), seed=cfg.seed)
    root: list[TensorDict] = [env.current()]
    buffer: list[TensorDict | None] = [None]

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

    return {"train": train, "success": success}


class Peer:
    """Another programme, which answers words.

    line: its Python, its script, what follows. environ: added to the environment's variables.
    """

    def __init__(self, line: Sequence[str], environ: dict[str, str] | None = None) -> None:
        self.script = pathlib.Path(line[1]).name
        began = time.perf_counter()
        self.process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **(environ or {})},
        )
        self.versions: dict[str, str] = self._read()
        self.start_s = round(time.perf_counter() - began, 1)
        self.start_cpu_s = round(cpu_seconds(self.process.pid), 1)

    def measure(self, kind: str) -> Any:
        """Return its answer: for `env` and `train` samples per second."""
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
            raise SystemExit(f"{self.script} has ended with code {self.process.wait()}")
        return json.loads(line)


def lift_peer(
    python: str, model: pathlib.Path, cfg: TrainConfig, count: int, more: Sequence[str] = ()
) -> Peer:
    """Return Gymnasium and Stable-Baselines3, started on a model with `count` processes."""
    algo = cfg.algo
    line = [python, str(HERE / PEERS["sb3"].script), str(model), f"--num-envs={count}"]
    line += ["--steps=100", f"--batch={cfg.num_envs * algo.horizon}"]
    line += [f"--minibatches={algo.num_minibatches}", f"--epochs={algo.epochs}"]
    return Peer([*line, "--hidden", *map(str, algo.hidden), *more])


def our_peer(
    task: str, overrides: Sequence[str], num_envs: int, seconds: float, environ: dict[str, str]
) -> Peer:
    """Return one of our tasks, started in a process of its own."""
    flags = [f"--num-envs={num_envs}", f"--seconds={seconds}", f"task={task}"]
    return Peer([sys.executable, str(HERE / OURS), *flags, *overrides], environ)


Measured = tuple[Callable[[], float], int]
"""What returns samples per second, and the process that works for it."""


def compare(kind: str, mine: Measured, peer: Measured, rounds: int) -> dict[str, Any]:
    """Return samples per second, by the clock and of processor time, and how many times theirs.

    Returns: names that begin with `kind` -> smallest, median, largest.
    """

    def rates(measured: Measured) -> tuple[float, float]:
        measure, pid = measured
        before, began = cpu_seconds(pid), time.perf_counter()
        rate = measure()
        used, spent = cpu_seconds(pid) - before, time.perf_counter() - began
        return rate, rate * spent / max(used, TICK)

    turns = [(rates(mine), rates(peer)) for _ in range(rounds + 1)][1:]  # the first warms up
    out: dict[str, Any] = {}
    for i, unit in enumerate(("per_s", "per_cpu_s")):
        ours, theirs = [turn[0][i] for turn in turns], [turn[1][i] for turn in turns]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        for name, values in (("ours", ours), ("peer", theirs), ("ratio", ratios)):
            spread = (min(values), statistics.median(values), max(values))
            out[f"{kind}_{name}_{unit}"] = [float(f"{value:.4g}") for value in spread]
    return out


def compare_lift(
    args: argparse.Namespace, cfg: TrainConfig, task: type[Task[Any]], model: pathlib.Path
) -> dict[str, Any]:
    """Return the rates of ours and of Gymnasium and Stable-Baselines3."""
    mine = our_peer("panda_lift_cube", args.overrides, cfg.num_envs, args.seconds, {})
    peer = lift_peer(args.sb3, model, cfg, args.peer_envs)
    pairs = {
        "env": (partial(mine.measure, "env"), mine.process.pid),
        "train": (learner(cfg, task)["train"], os.getpid()),
    }
    out: dict[str, Any] = {"num_envs": cfg.num_envs, "peer_envs": args.peer_envs}
    for kind, ours in pairs.items():
        theirs = (partial(peer.measure, kind), peer.process.pid)
        out |= compare(kind, ours, theirs, args.rounds)
    mine.close()
    peer.close()
    return {**out, "versions": peer.versions}


def compare_simulation(
    name: str, args: argparse.Namespace, environ: dict[str, str]
) -> dict[str, Any]:
    """Return how fast a peer's own task starts and steps beside ours, and what it would take."""
    known = PEERS[name]
    line = [getattr(args, name), str(HERE / known.script), f"--num-envs={args.envs}"]
    line += [f"--seconds={args.seconds}", *known.more]
    starts: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    pair: dict[str, Peer] = {}
    for _ in range(2):
        for one in pair.values():
            one.close()
        pair["ours"] = our_peer(known.task, args.overrides, args.envs, args.seconds, environ)
        pair["peer"] = Peer(line, environ)
        for who, one in pair.items():
            starts[who].append((one.start_s, one.start_cpu_s))
    ours, theirs = ((partial(one.measure, "env"), one.process.pid) for one in pair.values())
    out: dict[str, Any] = {
        "num_envs": args.envs,
        "our_task": known.task,
        "start_s_and_cpu_s": starts,
    }
    out["substeps"] = {who: one.measure("substeps") for who, one in pair.items()}
    out |= compare("env", ours, theirs, args.rounds)
    published = pair["peer"].measure("published")
    for one in pair.values():
        one.close()
    text = (
        "predicted, not measured: to collect so many samples at the median rate, without learning"
    )
    hours = {
        name: round(published["samples"] / out[f"env_peer_{unit}"][1] / 3600.0, 1)
        for name, unit in (("hours", "per_s"), ("cpu_hours", "per_cpu_s"))
    }
    predicted = {"what": text, **hours, **published}
    return {**out, "predicted": predicted, "versions": pair["peer"].versions}


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its living descendants have used (Linux)."""
    used, pids = 0, [pid]
    for one in pids:  # grows as it goes
        folder = pathlib.Path("/proc", str(one))
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])  # utime and stime of `man proc_pid_stat`
        for children in folder.glob("task/*/children"):
            pids += map(int, children.read_text().split())
    return used * TICK


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


def learn_lift(
    args: argparse.Namespace, cfg: TrainConfig, task: type[Task[Any]], model: pathlib.Path
) -> dict[str, Any]:
    """Return how long ours learns until it succeeds, then how long Stable-Baselines3 if asked."""
    mine = learner(cfg, unvaried(task))
    out = {"learn_ours": learn(mine["train"], mine["success"], minutes=args.minutes)}
    if not args.sb3:
        return out
    settings = shared_settings(cfg)
    more = ["--settings", json.dumps(settings), "--normalize"]
    peer = lift_peer(args.sb3, model, cfg, args.peer_envs, more)
    figures = learn(
        partial(peer.measure, "train"),
        partial(peer.measure, "success"),
        minutes=args.minutes,
        cpu=partial(cpu_seconds, peer.process.pid),
    )
    peer.close()
    out["learn_peer"] = {**figures, "settings": {**settings, "normalize_observations": True}}
    return out


def arguments() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="bench_peers.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    for name, known in PEERS.items():
        text = f"that of an environment with {' '.join(known.packages)}"
        add(f"--{name}", metavar="PYTHON", help=text)
    text = "of mjlab, Playground and ours beside them, default 64"
    add("--envs", type=positive, default=64, metavar="N", help=text)
    text = "of Gymnasium's, default 8"
    add("--peer-envs", type=positive, default=8, metavar="PROCESSES", help=text)
    text = "to step for in a measurement, default 5; the peer of --sb3 does 100 steps"
    add("--seconds", type=above_zero(3600.0), default=5.0, help=text)
    add("--rounds", type=natural, default=5, help="of the rates, default 5; 0: none")
    add("--minutes", type=above_zero(1e4), help="to learn for, default: no learning")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="of our tasks, as num_envs=512")
    return parser


def main() -> None:
    """Print the figures as JSON."""
    parser = arguments()
    args = parser.parse_intermixed_args()
    asked = {name: python for name in PEERS if (python := getattr(args, name))}
    try:
        if not asked:
            flags = ", ".join(f"--{name} PYTHON" for name in PEERS)
            raise ValueError(f"give one or more of {flags}")
        for name, python in asked.items():
            check(name, python)
            compose_train([f"task={PEERS[name].task}", *args.overrides])
        cfg, task, _ = compose_train(["task=panda_lift_cube", *args.overrides])
    except ValueError as error:
        parser.error(str(error))
    out: dict[str, Any] = {"load_average": os.getloadavg(), "ours": versions()}
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "lift_cube.xml"
        model.write_text(task(cfg.task).spec().to_xml())
        for name in asked if args.rounds else ():
            if name == "sb3":
                out[name] = compare_lift(args, cfg, task, model)
            else:
                kernels = {"WARP_CACHE_PATH": str(pathlib.Path(folder) / name)}
                out[name] = compare_simulation(name, args, kernels)
        if args.minutes:
            out |= learn_lift(args, cfg, task, model)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
