"""Send SIGHUP, SIGTERM and SIGINT to trainings and roll-outs; measure how long each takes to end.

    python tests/soak/measure_signals.py POLICY.onnx [--count 20] [--only rollout]

A training must exit with 4 and its newest checkpoint be the iteration that it names. A roll-out, on
a twin in real time, must leave the robot stopped. Signals come at random moments. Prints one table.
"""

import argparse
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from penspin_style.system import interrupt
from penspin_style.train.checkpoint import Checkpoints

ROLLOUT = """
import sys
from penspin_style.__main__ import main
from real.twin.robot import SimRobot
stop = SimRobot.stop
def said(self, *args):
    print("stopped", file=sys.stderr, flush=True)
    return stop(self, *args)
SimRobot.stop = said
print("ready", file=sys.stderr, flush=True)
sys.exit(main(sys.argv[1:]))
"""


def main() -> int:
    """Measure; return 0 if all was saved and stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("policy", help="an .onnx file of the twin `panda`")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("training", "rollout"), help="default: both")
    args = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the children would ignore it, too
    draw, fails = random.Random(args.seed), 0
    print(
        "| what | signal | number | saved or stopped | median | most |\n| - | - | - | - | - | - |"
    )
    with tempfile.TemporaryDirectory() as folder:
        for what in (training, rollout):
            if args.only not in (None, what.__name__):
                continue
            for number in interrupt.SIGNALS:
                found = [what(pathlib.Path(folder), number, args, draw) for _ in range(args.count)]
                good = sum(ok for ok, _ in found)
                fails += args.count - good
                took = [seconds for _, seconds in found]
                print(
                    f"| {what.__name__} | {number.name} | {args.count} | {good} | "
                    f"{statistics.median(took):.2f} s | {max(took):.2f} s |",
                    flush=True,
                )
    return int(fails > 0)


def training(
    folder: pathlib.Path, number: signal.Signals, args: argparse.Namespace, draw: random.Random
) -> tuple[bool, float]:
    """Return whether it has saved, and the seconds from the signal to the end."""
    checkpoints = Checkpoints(folder / "panda_lift_cube" / "run" / "checkpoints")
    before = len(checkpoints.published()) and int(checkpoints.published()[-1].name)
    argv = [
        "task=panda_lift_cube",
        "name=run",
        "num_envs=64",
        "total_samples=1000000000",
        f"out={folder}",
    ]
    argv += ["eval_every=5", "checkpoint_every=1", "video=false", "learn_threads=1"]
    argv += ["resume=true"] if before else []
    child = start(["-m", "penspin_style", "train", *argv])
    while int((checkpoints.published() or [pathlib.Path("0")])[-1].name) <= before:
        time.sleep(0.01)
        if child.poll() is not None:
            raise RuntimeError(child.communicate()[1])
    seconds, err = end(child, number, draw)
    said = re.search(rf"signal {int(number)}: saved iteration (\d+)", err)
    newest = int(checkpoints.newest()[0].name)
    return child.returncode == 4 and said is not None and int(said[1]) == newest, seconds


def rollout(
    folder: pathlib.Path, number: signal.Signals, args: argparse.Namespace, draw: random.Random
) -> tuple[bool, float]:
    """Return whether the robot was stopped, and the seconds from the signal to the end."""
    argv = ["rollout", "--robot", "panda", "--policy", args.policy, "--realtime"]
    child = start(["-c", ROLLOUT, *argv, "--episodes", "1000"])
    assert child.stdout is not None
    if not child.stdout.readline():  # else the first episode is over
        raise RuntimeError(child.communicate()[1])
    seconds, err = end(child, number, draw)
    return child.returncode == 128 + number and "stopped" in err, seconds


def start(argv: list[str]) -> "subprocess.Popen[str]":
    """Start python with these arguments."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *argv], stdout=pipe, stderr=pipe, text=True, env=env)


def end(
    child: "subprocess.Popen[str]", number: signal.Signals, draw: random.Random
) -> tuple[float, str]:
    """Send the signal after a while; return the seconds to the end, and standard error."""
    time.sleep(draw.uniform(0.1, 1.5))
    began = time.monotonic()
    child.send_signal(number)
    err = child.communicate(timeout=120)[1]
    return time.monotonic() - began, err


if __name__ == "__main__":
    sys.exit(main())
