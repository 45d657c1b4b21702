"""How long a checkpoint of a full replay buffer stops a training, and what it takes.

    python tests/soak/measure_checkpoint.py [--samples 1000000] [KEY=VALUE ...]

The buffer of `algo=sac` (or as overridden) is filled with transitions that the task really makes,
over and over. Then a checkpoint is written into an empty folder, another one after each of
`--rounds` iterations, whose replay files hold what has changed, and one without the buffer
(`algo.save_replay=false`); the last is read again and compared. `stall_s` is the wall time of
`Checkpoints.save`, which a training waits for; `cpu_s` its process CPU time. Exit code 1 if one
takes longer than `--limit` seconds, or what is read is not what was written.
"""

import argparse
import json
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from penspin_style.algo.algorithm import rollout  # noqa: E402
from penspin_style.algo.registry import find_algorithm, make_algorithm  # noqa: E402
from penspin_style.bench.alternate import make_env  # noqa: E402
from penspin_style.train.checkpoint import Checkpoints  # noqa: E402
from penspin_style.train.load_policy import compose_training  # noqa: E402
from penspin_style.train.run import interface  # noqa: E402


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what a call returns, and its wall and process CPU time in s."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    spent = {"stall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return value, {name: round(seconds, 3) for name, seconds in spent.items()}


def bytes_in(folder: pathlib.Path) -> int:
    """Return the size of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def peak() -> int:
    """Return the most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def measure(overrides: Sequence[str], *, samples: int, rounds: int) -> dict[str, Any]:
    """Fill a buffer of `samples` transitions, write and read checkpoints; return the figures."""
    own = ["algo=sac", f"algo.replay_capacity={samples}", "algo.warmup=0"]
    cfg, task = compose_training([*own, *overrides])[:2]
    settings = find_algorithm(cfg.algo.name).env_settings(cfg.algo, training=True)
    assert settings is not None
    env = make_env(cfg, task, **settings)
    algo: Any = make_algorithm(cfg, interface(env), device=torch.device("cpu"), seed=cfg.seed)
    batch, root = rollout(env, algo, env.current(), None)
    before = peak()
    while algo.replay.count < samples:
        algo.process(batch)
    ring = algo.replay.ring
    assert ring is not None
    found: dict[str, Any] = {
        "samples": len(algo.replay),
        "buffer_mb": round(ring.bytes() / 1e6, 1),
        "peak_mb": {"before": before, "filled": peak()},
    }

    def state() -> dict[str, Any]:
        return {"algo": algo.state_dict(), "env": env.state_dict()}

    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder)
        checkpoints = Checkpoints(run / "checkpoints")
        _, found["first"] = timed(lambda: checkpoints.save(0, state(), None))
        found["files_mb"] = round(bytes_in(run) / 1e6, 1)
        later = []
        for i in range(1, rounds + 1):
            batch, root = rollout(env, algo, root, batch)
            algo.process(batch)
            later.append(timed(lambda i=i: checkpoints.save(i, state(), None))[1])
        found["later"] = {k: statistics.median(row[k] for row in later) for k in later[0]}
        (_, read, _), found["read"] = timed(Checkpoints(run / "checkpoints").newest)
        same = read["algo"]["replay"].content == algo.replay.content
        found["same"] = all(bool(x.all()) for x in same.values(True, True))
        del read, same
        found["peak_mb"]["saved"] = peak()
        algo.cfg.save_replay = False
        _, found["without"] = timed(lambda: checkpoints.save(rounds + 1, state(), None))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=5.0, help="seconds that one may take")
    args = parser.parse_intermixed_args(argv)
    found = measure(args.overrides, samples=args.samples, rounds=args.rounds)
    print(json.dumps(found, indent=1))
    longest = max(found[name]["stall_s"] for name in ("first", "later", "without"))
    return int(longest > args.limit or not found["same"])


if __name__ == "__main__":
    sys.exit(main())
