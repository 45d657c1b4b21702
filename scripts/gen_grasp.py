"""Make a cache of grasps; see scripts/gen_grasp.sh."""

import argparse
import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from penspin_style import storage
from penspin_style.cli.report import check_plotting
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.system import interrupt
from penspin_style.train.compose import UsageError, compose_train
from penspin_style.train.environment import resolve_device
from tasks.pen import grasps
from tasks.pen.grasp import Collected, PenGrasp, collect, held

CHECKS = 3
"""Replays, each with another pen's mass, that a grasp must survive."""
HOPELESS = 2000
"""Grasps of which at least one must survive its replays, or the search ends."""
REPLAYED = 5000
"""Grasps that are replayed once more for the card's `held_again`."""


def main(argv: list[str]) -> int:
    """Collect, check and store; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/gen_grasp.sh")
    parser.add_argument("gpu", help="a number, or cpu")
    parser.add_argument("scale", type=float, help="of the pen; 0.28 is 22.4 mm across")
    parser.add_argument("--count", type=int, default=50_000, help="grasps to collect")
    parser.add_argument("--out", default="outputs/grasps", help="folder of the caches")
    options, overrides = parser.parse_known_args(argv)
    try:
        with interrupt.raising():
            return run(options, overrides)
    except (UsageError, ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):
            print("stopped; nothing was stored", file=sys.stderr)
        return 128 + getattr(error, "number", 2)


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Do what the options say."""
    if options.count < 1:
        raise ValueError(f"--count must be at least 1, got {options.count}")
    device = "cpu" if options.gpu == "cpu" else f"cuda:{options.gpu}"
    own = ["task=pen_grasp", f"task.scales=[{options.scale}]", f"device={device}"]
    cfg, _, _ = compose_train([*own, "num_envs=4096", *overrides])
    check_plotting()
    resolve_device(cfg.device)
    target = pathlib.Path(options.out) / grasps.folder_name(options.scale)
    if target.exists():
        raise FileExistsError(f"{target} exists already: move it away, or name another --out")
    storage.make_folder(target.parent)  # what cannot be written is known before an hour has passed
    torch.set_num_threads(1)  # a second one would spin on the cores that physics needs
    began = time.perf_counter()
    env, task = make_env(cfg)
    rng = torch.Generator().manual_seed(cfg.seed)
    rows = torch.empty(0, grasps.SIZE)
    found = Collected()
    with progress_bar(options.count) as advance:
        while len(rows) < options.count:
            new = collect(env, task, max(1, cfg.num_envs // 2), found)
            for _ in range(CHECKS):
                new = new[held(env, task, new, rng)]
            rows = torch.cat((rows, new))
            advance(len(rows))
            if not len(rows) and found.kept >= HOPELESS:
                raise ValueError(f"none of {found.kept} grasps that held the pen did so again")
    seconds = time.perf_counter() - began
    survived, rows = len(rows), rows[: options.count]
    fresh = rows[torch.randperm(len(rows), generator=rng)[:REPLAYED]]
    again = held(env, task, fresh, rng).float().mean().item()
    facts: dict[str, object] = {
        "scale": options.scale,
        "grasps": len(rows),
        "accepted": survived / found.tried,
        "accepted_per_second": survived / seconds,
        "held_again": again,
        "held_again_of": len(fresh),
    }
    card = facts | describe(found, cfg)
    grasps.save(rows, target, card)
    plot(found, target.with_name(f"{target.name}.png"))
    print(json.dumps(card, indent=1))
    print(f"cache  {target}\nplot   {target}.png")
    return 0


def make_env(cfg: TrainConfig) -> tuple[Env, PenGrasp]:
    """Return the environments of the search, and their task."""
    task, sim = PenGrasp(cfg.task), cfg.sim
    env = Env(
        task,
        cfg.num_envs,
        cfg.device,
        seed=cfg.seed,
        engine=sim.engine,
        nthread=sim.nthread,
        nconmax=sim.nconmax,
        njmax=sim.njmax,
    )
    return env, task


@contextlib.contextmanager
def progress_bar(count: int) -> Iterator[Callable[[int], None]]:
    """Yield what shows how many grasps there are."""
    columns = (TextColumn("grasps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("grasps", total=count)
        yield lambda n: progress.update(bar, completed=min(n, count))


def describe(found: Collected, cfg: TrainConfig) -> dict[str, object]:
    """Return what the card says of the search."""
    task = cfg.task
    return {
        "columns": "16 joints (rad: index, middle, ring, thumb), pen x y z (m), quaternion w x y z",
        "band": task.band,
        "jitter": task.jitter,
        "seed": cfg.seed,
        "tried": found.tried,
        "held_once": found.kept / found.tried,
        "began": dict(found.began),
        "broken_rules": dict(found.dropped),
        "checks": CHECKS,
    }


def plot(found: Collected, file: pathlib.Path) -> None:
    """Draw what was kept, by where it began, and which rules the rest broke."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    names = list(grasps.CANONICAL_NAMES)
    left.barh(names, [100 * found.began[n] / found.kept for n in names], color="tab:green")
    left.set(xlabel="% of the kept", title=f"{found.kept} kept of {found.tried}")
    reasons = sorted(found.dropped, key=lambda name: found.dropped[name])
    lost = max(1, found.tried - found.kept)
    right.barh(reasons, [100 * found.dropped[r] / lost for r in reasons], color="tab:red")
    right.set(xlabel="% of the dropped (several rules may break at once)", title="why not")
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
