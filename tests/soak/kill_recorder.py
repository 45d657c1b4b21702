"""Kill the recorder N times at random moments: is what it acknowledged there, and all of it whole?

    python tests/soak/kill_recorder.py [N] [--folder FOLDER] [--seed SEED]

A child records episodes of random length, with two cameras, one after the other, and writes a line
when `finish` has returned. SIGKILL ends it within six tenths of a second, every other time
from the first line on. Then every line must have its file, with the values that were recorded, and
every file that a reader would accept must be whole. Exit code 0 if so, 3 if not.
"""

import argparse
import json
import os
import pathlib
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from penspin_style.data.check import verify
from penspin_style.data.episodes.atomic_file import stages
from penspin_style.data.episodes.episode import Channel, Episode, Header, Recorder, episodes

LONGEST = 40  # rows
KILL_AFTER = (0.002, 0.6)  # s
_CAMERA = (64, 64, 3)


def header() -> Header:
    """Return a kind of episode: sixteen joints, two cameras."""
    numbers = (("action", "float32"), ("target", "float64"), ("sent", "float64"))
    cameras = (Channel(f"observation/{side}_rgb", _CAMERA, "uint8") for side in ("left", "right"))
    commands = (Channel(name, (16,), dtype) for name, dtype in numbers)
    return Header("killed", "sim", "none", 0.02, (*cameras, *commands))


def columns(number: int) -> dict[str, np.ndarray]:
    """Return what episode `number` holds."""
    rng = np.random.default_rng(number)
    steps = int(rng.integers(1, LONGEST))
    found = {"time": 0.02 * np.arange(steps)}
    for channel in header().channels:
        shape = (steps, *channel.shape)
        image = channel.dtype == "uint8"
        drawn = rng.integers(0, 256, shape) if image else rng.uniform(-1.0, 1.0, shape)
        found[channel.name] = drawn.astype(channel.dtype)
    return found


def record(folder: pathlib.Path, first: int, said: int) -> None:
    """Record without end; write `number file` to the descriptor for every episode that is safe."""
    recorder = Recorder(folder, header())
    for number in range(first, sys.maxsize):
        drawn = columns(number)
        for t in range(len(drawn["time"])):
            recorder.append({name: values[t] for name, values in drawn.items()}, wait=True)
        path = recorder.finish(None, {"number": number})
        os.write(said, f"{number} {path.name}\n".encode())


def kill_one(
    folder: pathlib.Path, first: int, delay: float, *, later: bool
) -> list[tuple[int, str]]:
    """Let a child record, kill it, return what it had acknowledged.

    later: whether the delay begins with the first acknowledgement, not with the child.
    """
    listen, said = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(listen)
            record(folder, first, said)
        finally:
            os._exit(1)  # reached by a fault alone: no line, and the parent sees the status
    os.close(said)
    if later:
        select.select([listen], [], [], 60.0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    with open(listen) as lines:
        acknowledged = [line.split() for line in lines if line.endswith("\n")]
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the recorder ended by itself: see what it said above")
    return [(int(number), name) for number, name in acknowledged]


def is_whole(path: pathlib.Path) -> bool:
    """Return whether a file holds what its number says."""
    try:
        episode = Episode.open(path)
        drawn = columns(episode.header.facts["number"])
        return all(np.array_equal(episode[name], values) for name, values in drawn.items())
    except (ValueError, KeyError):
        return False


def run(kills: int, folder: pathlib.Path, seed: int) -> dict[str, Any]:
    """Kill recorders; return the counts."""
    rng, count = random.Random(seed), Counter[str]()
    acknowledged: dict[str, int] = {}
    seen: set[pathlib.Path] = set()
    first = 0
    for k in range(kills):
        lines = kill_one(folder, first, rng.uniform(*KILL_AFTER), later=k % 2 == 1)
        acknowledged |= {name: number for number, name in lines}
        count["acknowledged"] += len(lines)
        count["lost"] += sum(not (folder / name).exists() for _, name in lines)
        for path in set(episodes(folder)) - seen:
            seen.add(path)
            count["half accepted"] += not is_whole(path)
            count["whole, not acknowledged"] += path.name not in acknowledged
        count["cut off"] += len(stages(folder)) > 0
        first += LONGEST * 100
        if (k + 1) % 50 == 0:
            print(f"{k + 1} kills: {dict(count)}", file=sys.stderr)
    Recorder(folder, header())
    count["hidden files left"] = len(stages(folder))
    count["refused by verify"] = sum(v.fault is not None for v in verify(episodes(folder)))
    count["lost"] += sum(not (folder / name).exists() for name in acknowledged)
    return {"kills": kills, "seed": seed, **count}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", nargs="?", type=int, default=300)
    parser.add_argument("--folder", help="keep the episodes here; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.kills < 1:
        parser.error(f"N must be at least 1, is {args.kills}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.folder or temporary)
        counts = run(args.kills, folder, args.seed)
    print(json.dumps(counts))
    bad = counts["lost"] + counts["half accepted"] + counts["refused by verify"]
    return 3 if bad or counts["hidden files left"] or not counts["acknowledged"] else 0


if __name__ == "__main__":
    sys.exit(main())
