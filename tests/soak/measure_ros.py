"""Measure the Allegro hand's driver over a real ROS graph: rate, losses, order of joints, delays.

    python tests/soak/measure_ros.py --seconds 60

Starts a ROS master on loopback and a hand node in a process of its own (joints that follow, or with
`--twin` the simulated hand), drives it at the control rate, and counts on both sides. Exit code 1
if the rate is off by 1 % or more, a message is lost, or a joint is not the one that was meant.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from real.drivers import ros  # noqa: E402
from real.drivers.allegro_ros import AllegroConfig, AllegroRos  # noqa: E402
from real.drivers.allegro_topics import TOPICS, Topics  # noqa: E402
from real.drivers.hand_node import PAUSE  # noqa: E402
from real.rate import Rate  # noqa: E402
from real.robot import RobotError  # noqa: E402
from tasks.robots.allegro.description import JOINTS  # noqa: E402

MOVE = 0.15  # rad


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Measure the hand's driver over ROS on loopback.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=20.0, help="targets per second")
    parser.add_argument("--state-rate", type=float, default=100.0, help="states per second")
    parser.add_argument("--stale", type=float, default=10.0, help="periods a state may be old")
    parser.add_argument("--topics", choices=sorted(TOPICS), default="penspin")
    parser.add_argument("--twin", metavar="NAME", help="the simulated hand, instead of followers")
    args = parser.parse_args()
    if args.seconds <= 0 or not 1 <= args.rate <= 500 or not 1 <= args.state_rate <= 1000:
        parser.error("--seconds must be positive, rates at least 1 and at most 500 and 1000")
    try:
        with ros.Master() as master:
            os.environ.update(master.env)
            facts = measure(args)
            ros.load().signal_shutdown("measured")
    except RobotError as error:
        print(f"measure_ros: {error}", file=sys.stderr)
        return 2
    print(json.dumps(facts, indent=1))
    print("as asked" if facts["passed"] else "NOT as asked")
    return 0 if facts["passed"] else 1


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Return what was measured, `passed` among it."""
    argv = ["--topics", args.topics, "--rate", str(args.state_rate)]
    argv += ["--twin", args.twin] if args.twin else []
    command = [sys.executable, "-m", "real.drivers.hand_node", *argv]
    node = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert node.stdout is not None
        if node.stdout.readline() != "ready\n":
            raise RobotError("the hand node did not start")
        topics = TOPICS[args.topics]
        driver = AllegroRos(
            AllegroConfig(topics=topics, control_dt=1.0 / args.rate, stale=args.stale)
        )
        driver.connect()
        driver.reset()
        moved = None if args.twin else order_of_joints(driver, topics)
        time.sleep(1.2 * PAUSE)
        late, heard = drive(driver, args.seconds)
        driver.disconnect()
    finally:
        node.send_signal(signal.SIGTERM)
        said = node.communicate(timeout=20)[0]
    there = json.loads(said)
    took, driven = there["targets"], there["since_last_pause"]
    error = abs(driven["rate_hz"] / args.rate - 1.0)
    lost = took["lost"] + heard["lost"] + driver.sent - took["count"]
    return {
        "seconds": args.seconds,
        "target_rate_hz": driven["rate_hz"],
        "rate_error_percent": 100.0 * error,
        "late_ticks": late,
        "targets_sent": driver.sent,
        "targets_received": took["count"],
        "targets_lost": took["lost"],
        "states_received": heard["count"],
        "states_lost": heard["lost"],
        "state_rate_hz": heard["rate_hz"],
        "target_delay_ms": {k: driven[f"{k}_ms"] for k in ("p50", "p99", "max")},
        "state_delay_ms": {k: heard[f"{k}_ms"] for k in ("p50", "p99", "max")},
        "order_of_joints": moved,
        "measures": there.get("measures"),
        "passed": bool(error < 0.01 and lost == 0 and moved in (None, "proven: 16 of 16")),
    }


def drive(driver: AllegroRos, seconds: float) -> tuple[int, dict[str, float]]:
    """Send targets at the control rate; return late ticks and what is known of the states."""
    start, count = driver.target, max(2, round(seconds / driver.control_dt))
    driver.received = ros.Tally()
    rate = Rate(driver.control_dt)
    for i in range(count):
        driver.command(start + 0.03 * np.sin(2.0 * np.pi * 0.5 * i * driver.control_dt))
        driver.observe()
        rate.wait()
    return rate.late, driver.received.facts()


def order_of_joints(driver: AllegroRos, topics: Topics) -> str:
    """Move one joint after the other; return whether the hand says that it was the one meant.

    The hand is heard without the driver, by the names in its states: a driver that is wrong in both
    directions would see nothing.
    """
    heard: dict[str, float] = {}
    rospy, msgs = ros.start_node("penspin"), ros.messages("sensor_msgs")
    ear = rospy.Subscriber(
        topics.state,
        msgs.JointState,
        lambda m: heard.update(zip(m.name, m.position, strict=True)),
    )
    driver.reset({"qpos": np.full(len(JOINTS), 0.35)})
    right, wrong = 0, []
    for i, name in enumerate(topics.names):
        time.sleep(0.1)  # the joint before may still be on its way
        before, seen, target = dict(heard), joints(driver), driver.target
        target[i] += MOVE
        driver.command(target)
        until, moved, sees = time.monotonic() + 2.0, [], seen
        while time.monotonic() < until and (not moved or np.abs(sees - seen).max() < 0.5 * MOVE):
            time.sleep(0.05)
            after, sees = dict(heard), joints(driver)
            moved = [n for n in after if abs(after[n] - before[n]) > 0.5 * MOVE]
        if moved == [name] and int(np.argmax(np.abs(sees - seen))) == i:
            right += 1
        else:
            wrong.append(f"{JOINTS[i]} moved {moved}")
    ear.unregister()
    return f"proven: {right} of {len(JOINTS)}" if not wrong else f"wrong: {'; '.join(wrong)}"


def joints(driver: AllegroRos) -> np.ndarray:
    """Return the joints as the driver measures them, (16,) rad."""
    return driver.observe().values["proprio"][:16]


if __name__ == "__main__":
    sys.exit(main())
