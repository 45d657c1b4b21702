"""Drive the twin of ALOHA's arms by a served policy with the genuine openpi-client, at 20 Hz.

    python tests/soak/measure_aloha.py [--policy FILE] [--twin aloha_insertion] [--episodes 60]

`penspin serve --adapter aloha` runs in a process of its own. The loop here is that of OpenPI's
ALOHA example: `state`, images of 480 x 640 that its own `image_tools` pads to 224 x 224, a
`prompt`; beside them depth in m, where the policy reads it. An episode is a connection.

First all episodes, in step, as fast as they are answered: the twin's time passes with its commands,
so an answer that is late costs no success. The same episodes are repeated in this process, without
server, adapter and client. Then `--timed` episodes of a single twin at `--rate`: `step_ms` is from
the observation at hand to the targets at hand, `client_ms` of it what the client waited,
`policy_ms` of that the policy's own time. `late` are control steps that took longer than 1 / rate,
the twin's physics and cameras included. Exit code 1 if the 99th percentile of `step_ms` is above
`--limit`, or the shares of successes have no common value in their 95 % intervals.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from penspin_style.deploy.bundle import Bundle  # noqa: E402
from penspin_style.deploy.history import Observer  # noqa: E402
from penspin_style.deploy.policy import Policy, next_action  # noqa: E402
from penspin_style.system.interval import wilson  # noqa: E402
from real.robot import Observation  # noqa: E402
from real.serving.aloha import CAMERAS, LARGEST  # noqa: E402
from real.twin.batch_twin import BatchTwin  # noqa: E402
from real.twin.config import load_twin  # noqa: E402
from tasks.robots.aloha.description import denormalize, normalize  # noqa: E402
from tests.soak.fuzz_server import quantiles, server  # noqa: E402
from tests.soak.load_server import NotThereError, openpi  # noqa: E402

POLICY = ROOT / "outputs/pretrained/aloha_peg_insertion_student/policy.onnx"


class Client(Protocol):
    """What this needs of openpi-client's `WebsocketClientPolicy`, and our own client has."""

    def infer(self, observation: dict[str, Any]) -> Mapping[str, Any]:
        """Return the reply to an observation."""
        ...


class Times(NamedTuple):
    """What control steps took, ms."""

    step: list[float]
    client: list[float]
    policy: list[float]
    period: list[float]


def stock(seen: Observation, i: int, pad: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Return what the example asks of what the i-th twin measures."""
    values, measured, images = seen.values, seen.measured[i], {}
    for camera, theirs in CAMERAS.items():
        if f"{camera}_rgb" in values:
            image = pad(as_camera(values[f"{camera}_rgb"][i]))
            images[theirs] = np.ascontiguousarray(np.moveaxis(image, -1, 0))
        if f"{camera}_depth" in values:
            images[f"{theirs}_depth"] = values[f"{camera}_depth"][i]
    return {"state": normalize(measured), "images": images, "prompt": "put the peg in the socket"}


def as_camera(image: np.ndarray) -> np.ndarray:
    """Return an image (size, size, 3) as the middle of what a camera of 480 x 640 sees."""
    by = LARGEST[0] // len(image)
    large = image.repeat(by, axis=0).repeat(by, axis=1)
    aside = (LARGEST[1] - large.shape[1]) // 2
    return np.pad(large, ((0, 0), (aside, aside), (0, 0)), mode="edge")


def drive(
    twin: BatchTwin,
    seed: int,
    clients: Sequence[Client],
    pad: Callable[[np.ndarray], np.ndarray],
    rate: float = 0.0,
) -> Times:
    """Run an episode of each twin by its client's targets.

    rate: Hz, not faster than that; 0 for as fast as they are answered.
    """
    twin.seed(seed)
    twin.reset()
    times = Times([], [], [], [])
    due = time.perf_counter()
    while not twin.done.all():
        began = time.perf_counter()
        seen, target = twin.observe(), twin.target.copy()
        for i in np.flatnonzero(~twin.done):
            at_hand = time.perf_counter()
            asked = stock(seen, int(i), pad)
            sent = time.perf_counter()
            reply = clients[int(i)].infer(asked)
            times.client.append(1e3 * (time.perf_counter() - sent))
            target[i] = denormalize(reply["actions"][0])
            times.step.append(1e3 * (time.perf_counter() - at_hand))
            times.policy.append(reply["server_timing"]["infer_ms"])
        twin.command(target)
        times.period.append(1e3 * (time.perf_counter() - began))
        if rate:
            due += 1.0 / rate
            time.sleep(max(due - time.perf_counter(), 0.0))
    return times


def run_here(twin: BatchTwin, seed: int, policy: Policy) -> None:
    """Run an episode of each twin by the policy itself."""
    twin.seed(seed)
    twin.reset()
    policy.reset()
    observer = Observer(policy.card, twin.num)
    while not twin.done.all():
        action = next_action(policy, observer(twin.observe().values))
        twin.command(twin.decoder.decode(action, twin.target))


def successes(
    twin: BatchTwin,
    policy: Policy,
    clients: Sequence[Client],
    pad: Callable[[np.ndarray], np.ndarray],
    seed: int,
) -> dict[str, Any]:
    """Return the shares of an episode of each twin, by the clients and by the policy itself."""
    drive(twin, seed, clients, pad)
    served = twin.measures()["success"]
    run_here(twin, seed, policy)
    here = twin.measures()["success"]
    shares: dict[str, Any] = {"episodes": twin.num, "differ": int((served != here).sum())}
    for name, won in (("served", served), ("in_process", here)):
        interval = np.round(wilson(won.mean(), twin.num), 4).tolist()
        shares[name] = {"success": round(float(won.mean()), 4), "interval": interval}
    return shares


def latency(
    twin: BatchTwin,
    connect: Callable[[], Client],
    pad: Callable[[np.ndarray], np.ndarray],
    *,
    episodes: int,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """Return what the control steps of so many episodes of one twin took."""
    runs = [drive(twin, seed + i, [connect()], pad, rate) for i in range(episodes)]
    times = Times(*([ms for part in parts for ms in part] for parts in zip(*runs, strict=True)))
    return {
        "steps": len(times.period),
        **{f"{name}_ms": quantiles(values) for name, values in times._asdict().items()},
        "late": sum(period > 1e3 / rate for period in times.period),
    }


def main() -> int:
    """Run it; see the module's docstring for the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", type=pathlib.Path, default=POLICY)
    parser.add_argument("--twin", default="aloha_insertion")
    parser.add_argument("--episodes", type=int, default=60, help="at most 64, as clients")
    parser.add_argument("--timed", type=int, default=5, help="episodes at --rate")
    parser.add_argument("--seed", type=int, default=2_000_003)
    parser.add_argument("--rate", type=float, default=20.0, help="Hz")
    parser.add_argument("--limit", type=float, default=25.0, help="ms, of step_ms")
    args = parser.parse_args()
    said: dict[str, Any] = {"policy": str(args.policy), "load_average": os.getloadavg()}
    config, bundle = load_twin(args.twin), Bundle.load(args.policy)
    try:
        with openpi() as folder, server(args.policy, "--adapter", "aloha") as (_, url):
            sys.path.insert(0, folder or sys.path[0])
            from openpi_client import image_tools  # type: ignore
            from openpi_client.websocket_client_policy import WebsocketClientPolicy  # type: ignore

            def connect() -> Client:
                return WebsocketClientPolicy(url)

            def pad(image: np.ndarray) -> np.ndarray:
                return image_tools.resize_with_pad(image, 224, 224)

            timed = {"episodes": args.timed, "rate": args.rate, "seed": args.seed}
            said["timed"] = latency(BatchTwin(config), connect, pad, **timed)
            clients = [connect() for _ in range(args.episodes)]
            twins = BatchTwin(config, args.episodes)
            said |= successes(twins, bundle, clients, pad, args.seed)
    except NotThereError as error:
        print(f"measure_aloha: {error}", file=sys.stderr)
        return 2
    print(json.dumps(said, indent=1))
    (low, high), (least, most) = (said[k]["interval"] for k in ("served", "in_process"))
    return int(said["timed"]["step_ms"]["p99"] > args.limit or low > most or least > high)


if __name__ == "__main__":
    sys.exit(main())
