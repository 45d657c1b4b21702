"""`penspin search`: find trajectories of a task by sampling plans, without a policy."""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from penspin_style.algo.search.bank import held_states
from penspin_style.algo.search.folder import SearchFolder, check_same
from penspin_style.algo.search.trajectory import ReplayError, Search
from penspin_style.data.trajectory import Trajectory, read_trajectory
from penspin_style.env.start_bank import write_bank
from penspin_style.env.task import task_name
from penspin_style.env.world import World
from penspin_style.render.gl_renderer import NoOpenGLError
from penspin_style.system import interrupt
from penspin_style.system.terminal import one_line, print_json
from penspin_style.train.compose import UsageError, differences
from penspin_style.train.compose_search import compose_search
from penspin_style.train.run import EXIT_DATA, EXIT_INTERRUPTED, EXIT_OK
from penspin_style.viewer.trajectory import write_trajectory_strip

_STOPPING = "saving; the same command goes on. A second signal ends at once"
_EVERY = 10.0  # seconds between two lines of progress
_HOLD = 1.6  # seconds for which a state of a bank must hold


def run(args: argparse.Namespace) -> int:
    """Search for as many trajectories as are missing; print a summary of all."""
    cfg, search, kind, resolved = compose_search(args.overrides, args.method)
    name = task_name(kind)
    out = pathlib.Path(args.out or f"outputs/search/{name}")
    if args.bank and pathlib.Path(args.bank).exists():
        raise UsageError(f"--bank {args.bank}: exists already; name a new folder")
    check_same(out, resolved, differences)
    task = kind(cfg.task)
    folder = SearchFolder(out, task, search, cfg.sim, seed=cfg.seed, resolved=resolved)
    try:
        with interrupt.asking(_STOPPING) as stop:
            code = _find_missing(folder, args.count, name, stop)
        cards = list(folder.files.cards(args.count))
        if args.bank and code == EXIT_OK:
            _write_bank(folder, args.count, pathlib.Path(args.bank))
    except ReplayError as error:
        print(f"penspin: {one_line(error)}", file=sys.stderr)
        return EXIT_DATA
    finally:
        folder.files.close()
    if args.json:
        print_json({"folder": str(out), **summary(cards, kind.score)})
    elif cards:
        print_summary(cards, kind.score)
        print(f"{len(cards)} trajectories in {out}")
    return code


def _find_missing(folder: SearchFolder, count: int, name: str, stop: interrupt.Stop) -> int:
    missing = folder.files.missing(count)
    progress = _Progress(name, count, len(missing), folder)
    draws = True
    for index in range(count):
        if index in missing:
            progress.begin(index)
            trajectory = folder.find(index, progress.advanced, stop.is_set)
            if trajectory is None:
                return EXIT_INTERRUPTED
            progress.finished(trajectory.card)
        draws = draws and _draw(folder, index)
        if stop.is_set():
            return EXIT_INTERRUPTED
    return EXIT_OK


def _write_bank(folder: SearchFolder, count: int, bank: pathlib.Path) -> None:
    found = [read_trajectory(folder.files.path(index)) for index in range(count)]
    write_held(folder.worlds.world, found, bank, origin=f"{count} trajectories of penspin search")


def write_held(
    world: World, trajectories: Sequence[Trajectory], bank: pathlib.Path, *, origin: str
) -> None:
    """Keep the states along trajectories in which doing nothing is safe, as a new folder.

    world: of their task, any number; origin: for the card.

    Raises:
        UsageError: there is no such state.
    """
    states, tried = held_states(world, trajectories, seconds=_HOLD)
    if not len(states):
        raise UsageError(f"--bank {bank}: none of {tried} states holds for {_HOLD:g} s")
    card = {
        "task": task_name(type(world.task)),
        "origin": origin,
        "held_seconds": _HOLD,
        "tried": tried,
    }
    write_bank(bank, states.float(), card)
    print(f"{len(states)} of {tried} states hold: {bank}", file=sys.stderr)


def _draw(folder: SearchFolder, index: int) -> bool:
    """Write a trajectory's strip if it has none; return whether this machine can."""
    strip = folder.files.path(index).with_suffix(".png")
    try:
        if not strip.exists():
            write_trajectory_strip(strip, folder.single, read_trajectory(folder.files.path(index)))
    except NoOpenGLError as error:
        print(f"penspin: no strips: {one_line(error)}", file=sys.stderr)
        return False
    return True


class _Progress:
    """Lines on stderr: how far a trajectory is, and when all will be done."""

    def __init__(self, name: str, count: int, missing: int, folder: SearchFolder) -> None:
        self.name, self.count, self.missing, self.folder = name, count, missing, folder
        self.done = 0  # trajectories, by this process
        self.began = self.said = time.monotonic()

    def begin(self, index: int) -> None:
        """Take note of the trajectory that is searched for now."""
        self.index = index
        self.before: int | None = None  # its control steps when this process took it up

    def advanced(self, search: Search) -> None:
        """Say how far a search is, now and then."""
        now = time.monotonic()
        if self.before is None:
            self.before = search.beams.steps
        if now - self.said < _EVERY:
            return
        self.said = now
        p = search.progress()
        dt = self.folder.task.cfg.control_dt
        fresh = self.done * self.folder.steps + max(1, p.steps - self.before)
        left = (self.missing - self.done) * self.folder.steps - p.steps
        eta = _duration((now - self.began) * left / fresh)
        print(
            f"{self.name} {self.index + 1}/{self.count}: {p.steps * dt:.1f} of "
            f"{p.total * dt:.1f} s, gain {p.gain:.3g}, {p.survival:.0%} survive, "
            f"{p.cpu_seconds:.0f} CPU s, ETA {eta}",
            file=sys.stderr,
            flush=True,
        )

    def finished(self, card: dict[str, Any]) -> None:
        """Say what a trajectory has come to."""
        self.done += 1
        score = self.folder.task.score
        end = " (no plan survived)" if card["lost"] else ""
        print(
            f"{self.name} {self.index + 1}/{self.count}: {score} {card['score'][score]:.3g}{end}, "
            f"{card['cpu_seconds']:.0f} CPU s",
            file=sys.stderr,
            flush=True,
        )


def summary(cards: list[dict[str, Any]], score: str) -> dict[str, Any]:
    """Return what trajectories amount to; `score` is the task's name of its figure."""
    rows = [
        {
            "index": card["index"],
            "score": card["score"][score],
            "success": bool(card["score"]["success_at_end"]),
            "whole": not (card["lost"] or card["terminated"]),
            "cpu_seconds": card["cpu_seconds"],
        }
        for card in cards
    ]
    total = {"trajectories": rows, "score": score}
    if rows:
        total["median"] = statistics.median(row["score"] for row in rows)
        for share in ("success", "whole"):
            total[share] = sum(row[share] for row in rows) / len(rows)
        total["median_cpu_seconds"] = statistics.median(row["cpu_seconds"] for row in rows)
    return total


def print_summary(cards: list[dict[str, Any]], score: str) -> None:
    """Print a line for each trajectory, and one for all."""
    total = summary(cards, score)
    print(f"{'':>5} {score:>12} {'success':>8} {'to the end':>11} {'CPU s':>7}")
    for row in total["trajectories"]:
        said = ["yes" if row[key] else "no" for key in ("success", "whole")]
        figure = f"{row['score']:.3f}"
        line = f"{row['index']:5d} {figure:>12} {said[0]:>8} {said[1]:>11}"
        print(f"{line} {row['cpu_seconds']:7.1f}")
    print(
        f"median {score} {total['median']:.3f}, success {total['success']:.0%}, to the end "
        f"{total['whole']:.0%}, median {total['median_cpu_seconds']:.1f} CPU s each"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
