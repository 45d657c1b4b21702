"""`penspin demos`: record a task's scripted expert."""

import argparse
import pathlib
import sys
import time
from typing import Any

from penspin_style.algo.search.demos import demonstrate
from penspin_style.algo.search.folder import TrajectoryFolder, check_same
from penspin_style.cli.search import print_summary, summary, write_held
from penspin_style.config import TrainConfig
from penspin_style.data.trajectory import read_trajectory
from penspin_style.env.task import Expert, Task, task_name
from penspin_style.env.world import World
from penspin_style.system import interrupt
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import UsageError, differences
from penspin_style.train.compose_search import compose_demos
from penspin_style.train.run import EXIT_INTERRUPTED, EXIT_OK

_STOPPING = "saving; the same command goes on. A second signal ends at once"
_EVERY = 10.0  # seconds between two lines of progress
_WORLDS = 64  # in which states of a bank are held


def run(args: argparse.Namespace) -> int:
    """Record as many trajectories as are missing; print a summary of all."""
    cfg, kind, resolved = compose_demos(args.task, args.overrides)
    name = task_name(kind)
    out = pathlib.Path(args.out or f"outputs/demos/{name}")
    if args.bank and pathlib.Path(args.bank).exists():
        raise UsageError(f"--bank {args.bank}: exists already; name a new folder")
    check_same(out, resolved, differences, "demonstrations")
    world = _world(cfg, kind, 1)
    expert = world.task.expert(world.sim)
    if expert is None:
        raise UsageError(f"{name} has no scripted expert (Task.expert); penspin search needs none")
    folder = TrajectoryFolder(out, resolved, "records")
    progress = _Progress(name, args.count)
    try:
        with interrupt.asking(_STOPPING) as stop:
            for index in folder.missing(args.count):
                if stop.is_set():
                    return EXIT_INTERRUPTED
                progress.recorded(_record(folder, world, expert, seed=cfg.seed, index=index))
        cards = list(folder.cards(args.count))
        if args.bank:
            _write_bank(folder, _world(cfg, kind, _WORLDS), cards, pathlib.Path(args.bank))
    finally:
        folder.close()
    if args.json:
        print_json({"folder": str(out), **summary(cards, kind.score)})
    else:
        print_summary(cards, kind.score)
        print(f"{len(cards)} trajectories in {out}")
    return EXIT_OK


def _world(cfg: TrainConfig, kind: type[Task[Any]], num_envs: int) -> World:
    sim = cfg.sim
    return World(kind(cfg.task), num_envs, seed=cfg.seed, engine=sim.engine, nthread=sim.nthread)


def _record(
    folder: TrajectoryFolder,
    world: World,
    expert: Expert,
    *,
    seed: int,
    index: int,
) -> dict[str, Any]:
    """Record one trajectory, write it; return its card."""
    began = time.process_time()
    steps = world.cfg.episode_length
    trajectory = demonstrate(world, expert, seed=seed + index, steps=steps)
    spent = time.process_time() - began
    folder.write(trajectory, world.task, index=index, seed=seed, method="expert", cpu_seconds=spent)
    return trajectory.card


def _write_bank(
    folder: TrajectoryFolder, world: World, cards: list[dict[str, Any]], bank: pathlib.Path
) -> None:
    """Keep states along the trajectories that end in success."""
    won = [card["index"] for card in cards if _is_success(card)]
    if not won:
        raise UsageError(f"--bank {bank}: none of {len(cards)} trajectories succeeded")
    found = [read_trajectory(folder.path(index)) for index in won]
    origin = f"{len(won)} successful ones of {len(cards)} trajectories of penspin demos"
    write_held(world, found, bank, origin=origin)


def _is_success(card: dict[str, Any]) -> bool:
    return bool(card["score"]["success_at_end"]) and not card["terminated"]


class _Progress:
    """Lines on stderr, now and then: how many are recorded, and how they went."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count
        self.won = self.done = 0
        self.said = time.monotonic()

    def recorded(self, card: dict[str, Any]) -> None:
        """Take note of a trajectory."""
        self.done += 1
        self.won += _is_success(card)
        if time.monotonic() - self.said >= _EVERY:
            self.said = time.monotonic()
            at = f"{self.name} {card['index'] + 1}/{self.count}"
            print(f"{at}: {self.won} of {self.done} succeeded", file=sys.stderr, flush=True)
