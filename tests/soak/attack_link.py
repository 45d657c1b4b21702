"""Kill, freeze, delay and cut off a policy server while it controls a twin; see what the twin does.

python tests/soak/attack_link.py [--count 50] [--attacks kill freeze delay drop] [--json]

A server in a process of its own controls a Panda's twin in real time. Again and again it is killed
and started anew, stopped by SIGSTOP for a while, delayed by 200 ms, or its connection is cut. For
each attack it is measured, at the twin:

hold        from the last fresh command to the hold                        at most 100 ms
stop        from the last fresh command to the stop                        at most 500 ms
jump        largest change of a target, in units of what one tick may do   at most 1
stale       commands that are not the policy's answer to the newest observation, by a second copy
            of the policy beside the loop                                  0
reconnect   from the server's return to the first fresh command            at most 2 s

Timing needs a core that is free when a tick comes; the load is printed. Exit code 1 if a limit was
exceeded.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from penspin_style.deploy.bundle import Bundle  # noqa: E402
from real.control.loop import Loop, PolicySource, watch  # noqa: E402
from real.control.safety import SafeRobot  # noqa: E402
from real.control.success import SuccessCheck  # noqa: E402
from real.serving.client import PolicyClient  # noqa: E402
from real.serving.remote_policy import RemotePolicy  # noqa: E402
from real.twin.robot import SimRobot, load_twin  # noqa: E402

POLICY = ROOT / "outputs" / "pretrained" / "panda_lift_cube" / "policy.onnx"
ATTACKS = ("kill", "freeze", "delay", "drop")
LIMITS = {"hold": 0.1, "stop": 0.5, "jump": 1.0, "stale": 0, "reconnect": 2.0}
DELAY = 0.2
OUTAGE = (0.15, 1.2)  # s, drawn for each attack
CALM = (0.3, 0.8)  # s of undisturbed control before each
PATIENCE = 60.0


# The server, and what stands between it and the robot.


class Server:
    """`penspin serve` as a process on one port."""

    def __init__(self, policy: pathlib.Path) -> None:
        self.policy, self.port = policy, 0
        self.start()

    def start(self) -> None:
        """Start it; return when it can be connected to."""
        argv = ["serve", str(self.policy), "--port", str(self.port), "--json"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penspin_style", *argv],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with exit code {self.process.wait()}")
        self.port = int(json.loads(line)["url"].rpartition(":")[2])

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Wire:
    """A relay in front of the server, in a thread of its own, that can be slow or cut."""

    def __init__(self, port: int) -> None:
        self.behind, self.delay = port, 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    def cut(self) -> None:
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._relay, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        self._abort()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, here = await asyncio.open_connection("127.0.0.1", self.behind)
        except OSError:  # no server
            writer.transport.abort()
            return
        ends = {writer, here}
        self._writers |= ends
        with contextlib.suppress(asyncio.CancelledError):  # at the end; not a fault
            await asyncio.gather(self._pump(reader, here, late=False), self._pump(there, writer))
        self._writers -= ends

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, late: bool = True
    ) -> None:
        """Pass bytes on, each `delay` after it came."""
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await source.read(2**16):
                if late and self.delay:
                    await asyncio.sleep(self.delay)
                sink.write(data)
                await sink.drain()
        sink.transport.abort()


# What is seen from beside.


class Witness:
    """Notes what the loop and the watchdog do to a robot, and whether each command is fresh."""

    def __init__(self, safe: SafeRobot, bundle: Bundle) -> None:
        # (begun, done), s, monotonic
        self.fresh: list[tuple[float, float]] = []  # commands of the loop
        self.held: list[tuple[float, float]] = []
        self.stopped: list[tuple[float, float]] = []
        self.resets: list[tuple[float, float]] = []
        self.ended: list[float] = []  # episodes
        self.jumps: list[float] = []
        self.stale = 0
        self._safe, self._bundle = safe, bundle
        self._step = safe.limits.velocity * safe.control_dt
        self._last: np.ndarray | None = None
        inner = safe.robot
        self._wrap(safe, "command", self.fresh)
        self._wrap(safe, "hold", self.held)
        self._wrap(safe, "stop", self.stopped)
        self._wrap(safe, "reset", self.resets)
        send = inner.command
        setattr(inner, "command", lambda target: self._sent(send(target)))  # noqa: B010

    def watch(self, policy: RemotePolicy) -> None:
        """Compare what comes from a server with what the policy says of the same inputs."""
        act = policy.act

        def acted(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            action = act(inputs)
            self.stale += not np.allclose(action, self._bundle(inputs), rtol=0.0, atol=1e-5)
            return action

        setattr(policy, "act", acted)  # noqa: B010

    def _wrap(self, owner: object, name: str, times: list[tuple[float, float]]) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def noted(*args: Any) -> Any:
            if name == "reset":
                self._last = None
            began = time.monotonic()
            result = call(*args)
            times.append((began, time.monotonic()))
            return result

        setattr(owner, name, noted)

    def _sent(self, target: np.ndarray) -> np.ndarray:
        if self._last is not None:
            self.jumps.append(float((np.abs(target - self._last) / self._step).max()))
        self._last = target
        return target


def reactions(seen: Witness) -> tuple[list[float], list[float], int]:
    """Return the times to hold and to stop after every last fresh command, and those missed.

    A reaction belongs to the silence in which it began. Missed are silences beyond a limit in which
    the twin was never held, or never stopped.
    """
    holds, stops, missed = [], [], 0
    for i, (_, t) in enumerate(seen.fresh):
        ends = [seen.fresh[i + 1][0]] if i + 1 < len(seen.fresh) else []
        ends += [e for e in (*seen.ended, *(r for r, _ in seen.resets)) if e > t]
        until = min(ends, default=t)
        held, stopped = (
            [done - t for began, done in times if t <= began <= until]
            for times in (seen.held, seen.stopped)
        )
        holds += held[:1]
        stops += stopped[:1]
        silence = until - t
        missed += (not held and silence > LIMITS["hold"]) or (
            not stopped and silence > LIMITS["stop"]
        )
    return holds, stops, missed


class Attacker(threading.Thread):
    """Strikes again and again while the loop runs."""

    def __init__(
        self,
        server: Server,
        wire: Wire,
        seen: Witness,
        attacks: list[str],
        rng: random.Random,
    ) -> None:
        super().__init__(name="attacker", daemon=True)
        self.server, self.wire, self.seen, self.attacks, self.rng = server, wire, seen, attacks, rng
        self.reconnects: dict[str, list[float]] = {name: [] for name in set(attacks)}
        self.error: Exception | None = None

    def run(self) -> None:
        """Carry out every attack, each after a time of calm."""
        try:
            for name in self.attacks:
                self._await_control()
                time.sleep(self.rng.uniform(*CALM))
                back = getattr(self, f"_{name}")(self.rng.uniform(*OUTAGE))
                self.reconnects[name].append(self._await_control(back) - back)
        except Exception as error:
            self.error = error

    def _kill(self, seconds: float) -> float:
        self.server.kill()
        time.sleep(seconds)
        self.server.start()
        return time.monotonic()

    def _freeze(self, seconds: float) -> float:
        self.server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.server.process.send_signal(signal.SIGCONT)
        return time.monotonic()

    def _delay(self, seconds: float) -> float:
        self.wire.delay = DELAY
        time.sleep(seconds)
        self.wire.delay = 0.0
        return time.monotonic()

    def _drop(self, seconds: float) -> float:
        self.wire.cut()
        return time.monotonic()

    def _await_control(self, since: float | None = None) -> float:
        """Return when the next fresh command was sent."""
        since = time.monotonic() if since is None else since
        until = since + PATIENCE
        while time.monotonic() < until:
            if self.seen.fresh and self.seen.fresh[-1][1] > since:
                return next(t for _, t in self.seen.fresh if t > since)
            time.sleep(0.005)
        raise RuntimeError(f"the twin was not under control for {PATIENCE:g} s")


@contextlib.contextmanager
def under_attack(
    policy: pathlib.Path, robot: str, attacks: list[str], seed: int
) -> Iterator[tuple[Witness, Attacker, Loop]]:
    """Yield what runs: the witness, the attacker, not yet started, and the loop."""
    bundle = Bundle.load(policy)
    task = bundle.card.task
    features = tuple(dict.fromkeys(f.name for i in bundle.card.inputs for f in i.features))
    # noise tells every observation from every other one
    noise = {name: 1e-3 for name in features if not name.endswith(("rgb", "depth"))}
    longer = ("task.episode_length=1000000",)
    twin = load_twin(
        robot, task=task, overrides=longer, features=features, noise=noise, realtime=True
    )
    with contextlib.ExitStack() as stack:
        server = Server(policy)
        stack.callback(server.kill)
        wire = Wire(server.port)
        stack.callback(wire.close)
        client = PolicyClient(f"ws://127.0.0.1:{wire.port}", wait=PATIENCE)
        remote = RemotePolicy(client, patience=PATIENCE)
        stack.callback(remote.close)
        safe = SafeRobot(SimRobot(twin))
        seen = Witness(safe, bundle)
        seen.watch(remote)
        safe.connect()
        stack.callback(safe.disconnect)
        watchdog = stack.enter_context(watch(safe))
        loop = Loop(safe, PolicySource(remote), SuccessCheck(), watchdog=watchdog)
        yield seen, Attacker(server, wire, seen, attacks, random.Random(seed)), loop


def measure(
    policy: pathlib.Path, robot: str, kinds: list[str], count: int, seed: int = 0
) -> dict[str, Any]:
    """Attack a twin so many times in each way; return the figures."""
    attacks = [kind for kind in kinds for _ in range(count)]
    random.Random(seed).shuffle(attacks)
    with under_attack(policy, robot, attacks, seed) as (seen, attacker, loop):
        attacker.start()
        while attacker.is_alive():
            loop.run(200)
            seen.ended.append(time.monotonic())
        if attacker.error is not None:
            raise attacker.error
    holds, stops, missed = reactions(seen)
    figures: dict[str, Any] = {"commands": len(seen.fresh), "stale": seen.stale, "missed": missed}
    figures |= {"hold": spread(holds), "stop": spread(stops), "jump": spread(seen.jumps)}
    figures["reconnect"] = {kind: spread(times) for kind, times in attacker.reconnects.items()}
    figures["attacks"] = {kind: attacks.count(kind) for kind in kinds}
    figures["load"] = os.getloadavg()[0]
    return figures | {"within": within(figures)}


def spread(values: list[float]) -> dict[str, float]:
    """Return count, median, p99 and maximum."""
    if not values:
        return {"count": 0}
    p50, p99 = (float(q) for q in np.percentile(values, (50, 99)))
    return {"count": len(values), "p50": p50, "p99": p99, "max": max(values)}


def within(figures: Mapping[str, Any]) -> bool:
    """Return whether every limit was kept."""
    worst = {name: figures[name].get("max", 0.0) for name in ("hold", "stop", "jump")}
    worst["reconnect"] = max(r.get("max", 0.0) for r in figures["reconnect"].values())
    kept = all(worst[name] <= LIMITS[name] * (1 + 1e-9) for name in worst)
    return kept and not figures["stale"] and not figures["missed"]


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures for people."""
    attacks = ", ".join(f"{n} x {kind}" for kind, n in figures["attacks"].items())
    print(f"{attacks}; {figures['commands']} fresh commands; load {figures['load']:.1f}")
    rows = {name: figures[name] for name in ("hold", "stop", "jump")}
    rows |= {f"reconnect after {kind}": r for kind, r in figures["reconnect"].items()}
    for name, row in rows.items():
        unit, scale = ("", 1.0) if name == "jump" else (" ms", 1e3)
        limit = scale * LIMITS[name.split()[0]]
        text = "never"
        if row["count"]:
            p50, p99, top = (scale * row[k] for k in ("p50", "p99", "max"))
            text = f"{row['count']:6d} times, median {p50:.4g}, p99 {p99:.4g}, max {top:.4g}{unit}"
        print(f"{name:23} {text} (limit {limit:g})")
    print(
        f"stale actions           {figures['stale']}; silences without a hold {figures['missed']}"
    )


def main(argv: list[str]) -> int:
    """Attack and report; return the exit code."""
    parser = argparse.ArgumentParser(description="Attack the server of a controlled twin.")
    parser.add_argument("--count", type=int, default=50, help="of each attack")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--policy", type=pathlib.Path, default=POLICY)
    parser.add_argument("--robot", default="panda", help="the twin whose joints are controlled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    try:
        figures = measure(
            options.policy, options.robot, options.attacks, options.count, options.seed
        )
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    print(json.dumps(figures)) if options.json else show(figures)
    return 0 if figures["within"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
