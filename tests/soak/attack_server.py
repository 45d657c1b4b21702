"""Attack a policy server with one hostile client after the other; tell what a good one notices.

    python tests/soak/attack_server.py [--seconds 60] [--attacks batch pings ...] [--json]

For each kind of attack a fresh server is asked by a good client, at 50 Hz, in a process of its own.
Half of the time nobody else is there, half of the time the attack runs, in turns of `--turn`
seconds: a computer that is busy with other work is so in both. `above_ms` is the good client's p99
under attack minus its p99 without. Exit code 1 if it is above `--allowed` for one kind, if a
request of the good client has no answer or a wrong one, if it had to connect again, or if the
server ended or grew by more than 100 MB.

Attackers run with a low priority: their computing is not the server's fault.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from penspin_style.deploy.bundle import Bundle  # noqa: E402
from real.serving.protocol import Expected  # noqa: E402
from real.serving.wire import pack  # noqa: E402
from tests.soak.fuzz_server import (  # noqa: E402
    POLICY,
    UPGRADE,
    framed,
    frames_of,
    others_figures,
    resident,
    server,
)

MIB = 2**20
ALLOWED = 10.0  # ms
MAX_GROWTH = 100.0  # MB
KEY = "0123456789abcdef-of-the-good-one"
HEADER = b"\x82\xff%s" + bytes(4)


class Attacker:
    """What the kinds of attack are made of: sockets to one server until a given time."""

    def __init__(self, url: str, bundle: Bundle, until: float, max_frame: int) -> None:
        where = urllib.parse.urlparse(url)
        self.address = (str(where.hostname), int(where.port or 0))
        self.inputs = [(i.name, i.tensor) for i in bundle.card.inputs]
        self.until = until
        self.done: collections.Counter[str] = collections.Counter()
        # the largest frame that the server reads
        self.largest = max_frame * MIB or Expected(bundle.card).max_frame
        self.rng = random.Random(0)

    @property
    def running(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.until

    def observation(self, batch: tuple[int, ...] = ()) -> bytes:
        """Return a request of zeros."""
        return pack({name: np.zeros((*batch, *s), d) for name, (d, s) in self.inputs})

    def connect(self, key: str | None = None) -> socket.socket:
        """Return a connection that has had its hello."""
        sock = self.plain()
        said = f"Authorization: Api-Key {key or KEY}\r\n\r\n".encode()
        sock.sendall(UPGRADE[:-2] + said)
        got = b""
        while not any(op == 2 for op, _ in frames_of(got)):
            part = sock.recv(2**16)
            got += part
            if not part or (b"\r\n\r\n" in got and b" 101 " not in got[:20]):
                raise ConnectionError(got[:40])
        return sock

    def plain(self) -> socket.socket:
        """Return a bare TCP connection."""
        sock = socket.create_connection(self.address, timeout=5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def again(self, turn: Callable[[], None]) -> None:
        """Do something until the time is up, counting turns and how they end."""
        while self.running:
            try:
                turn()
                self.done["turns"] += 1
            except OSError as error:
                self.done[type(error).__name__] += 1

    def each(self, count: int, work: Callable[[], None]) -> None:
        """Do something in that many threads."""
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(self.until - time.monotonic(), 0.0) + 10.0)

    def swallow(self, sock: socket.socket, data: bytes) -> None:
        """Send something and read until the server has said something, or hung up."""
        with sock:
            sender = threading.Thread(target=self._send, args=(sock, data), daemon=True)
            sender.start()
            sock.recv(2**16)
        sender.join(5)

    def converse(self, data: bytes) -> None:
        """Send something and read whatever comes until the server hangs up."""
        with self.connect() as sock:
            sender = threading.Thread(target=self._send, args=(sock, data), daemon=True)
            sender.start()
            while self.running and sock.recv(2**16):
                pass
        sender.join(5)

    def flood(self, data: bytes, connect: Callable[[], socket.socket] | None = None) -> None:
        """Send the same bytes for ever, over a new connection where the last one was cut."""

        def turn() -> None:
            with (connect or self.connect)() as sock:
                sock.settimeout(1.0)
                while self.running:
                    sock.sendall(data)
                    self.done["bytes"] += len(data)

        self.again(turn)

    def _send(self, sock: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            self.done["bytes"] += len(data)


# The kinds. Each returns when the time is up.


def batch(a: Attacker) -> None:
    """The largest batch that fits into a frame."""
    one = len(a.observation((2,))) - len(a.observation((1,)))
    many = framed(a.observation(((a.largest - 2000) // one,)))
    a.again(lambda: a.swallow(a.connect(), many))


def junk(a: Attacker) -> None:
    """The largest frame, of random bytes; and a larger one."""
    noise = a.rng.randbytes(a.largest)
    a.again(lambda: a.swallow(a.connect(), framed(noise)))


def oversize(a: Attacker) -> None:
    """A frame of 8 MiB and one byte."""
    data = framed(bytes(8 * MIB + 1))
    a.again(lambda: a.swallow(a.connect(), data))


def trickle(a: Attacker) -> None:
    """40 frames that never end, a byte each every 50 ms."""

    def one() -> None:
        def turn() -> None:
            with a.connect() as sock:
                sock.sendall(HEADER % struct.pack(">Q", a.largest))
                while a.running:
                    sock.sendall(b"x")
                    time.sleep(0.05)

        a.again(turn)

    a.each(40, one)


def fragments(a: Attacker) -> None:
    """Messages of fragments of one byte, without end."""
    a.flood(framed(b"x", 0x02) + framed(b"x", 0x00) * 9000)


def legal_fragments(a: Attacker) -> None:
    """A request in as many fragments as are legal, again and again."""
    frame = a.observation()
    cut = max(-(-len(frame) // 60), 1)
    parts = [frame[i : i + cut] for i in range(0, len(frame), cut)]
    heads = [0x02, *[0x00] * (len(parts) - 2), 0x80]
    data = b"".join(map(framed, parts, heads))

    def turn() -> None:
        with a.connect() as sock:
            while a.running:
                sock.sendall(data)
                sock.recv(2**16)

    a.again(turn)


def pings(a: Attacker) -> None:
    """Empty pings, whose answers are read."""
    a.again(lambda: a.converse(framed(b"", 0x89) * 400_000))


def empty(a: Attacker) -> None:
    """Empty messages, many in each packet."""
    a.flood(framed(b"") * 10_000)


def pipeline(a: Attacker) -> None:
    """Good requests by the thousand without waiting for an answer, which are read."""
    data = framed(a.observation())
    a.again(lambda: a.converse(data * (MIB // len(data) + 2)))


def deaf(a: Attacker) -> None:
    """Good requests and pings of a client that never reads."""
    data = (framed(a.observation()) + framed(bytes(125), 0x89)) * 20
    a.flood(data)


def vanish(a: Attacker) -> None:
    """Clients that ask and are gone."""

    def turn() -> None:
        sock = a.connect()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(framed(a.observation()))
        sock.close()

    a.again(turn)


def crowd(a: Attacker) -> None:
    """60 clients, each with the largest frame, which all end at the same time."""
    data = framed(bytes(a.largest))

    def turn() -> None:
        socks = []
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                socks.append(stack.enter_context(a.connect()))
                socks[-1].sendall(data[:-1])
            for sock in socks:
                sock.sendall(data[-1:])
            for sock in socks:
                while sock.recv(2**16):
                    pass

    a.again(turn)


def greedy(a: Attacker) -> None:
    """8 clients with good requests, as fast as they are answered."""
    data = framed(a.observation())

    def one() -> None:
        def turn() -> None:
            with a.connect() as sock:
                while a.running:
                    sock.sendall(data)
                    sock.recv(2**16)
                    a.done["requests"] += 1

        a.again(turn)

    a.each(8, one)


def connects(a: Attacker) -> None:
    """Connections that are opened and closed, from 16 threads."""
    a.each(16, lambda: a.again(lambda: a.connect().close()))


def half_open(a: Attacker) -> None:
    """Connections without a handshake, as many as there is room for."""

    def turn() -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(500):
                if a.running:
                    stack.enter_context(a.plain())

    a.again(turn)


def keys(a: Attacker) -> None:
    """Wrong keys, from 16 threads."""

    def turn() -> None:
        with contextlib.suppress(ConnectionError):
            a.connect("not the key of this server").close()

    a.each(16, lambda: a.again(turn))


def nesting(a: Attacker) -> None:
    """Lists in lists in lists, and maps."""
    deep = [b"\x81\xa1a" + b"\x91" * 20_000, b"\x81\xa1a" * 20_000, b"\x81\xa1a\xdc\x0f\xf0" * 3]
    frames = [framed(part[: a.largest]) for part in deep]
    a.again(lambda: a.swallow(a.connect(), a.rng.choice(frames)))


def values(a: Attacker) -> None:
    """As many values as a message may hold."""
    data = framed(pack({"a": [0] * 4000}))
    a.again(lambda: a.swallow(a.connect(), data))


def names(a: Attacker) -> None:
    """63 names that no policy reads: as long as the frame allows, or much like one that it does."""
    real = a.inputs[0][0]
    size = min(4000, (a.largest - 2000) // 64)
    unlike = {("n" * size)[: size - len(str(i))] + str(i): 1 for i in range(63)}
    like = {"".join(a.rng.sample(real, len(real))) + str(i): 1 for i in range(63)}
    frames = [framed(pack(unlike)), framed(pack(like))]
    a.again(lambda: a.swallow(a.connect(), a.rng.choice(frames)))


ATTACKS = {
    f.__name__: f
    for f in (
        *(batch, junk, oversize, trickle, fragments, legal_fragments, pings, empty, pipeline),
        *(deaf, vanish, crowd, greedy, connects, half_open, keys, nesting, values, names),
    )
}


# Measuring.


@contextlib.contextmanager
def good_client(url: str, policy: pathlib.Path) -> Iterator[Callable[[], dict]]:
    """Run the client that is served; yield the function that ends it and returns its report."""
    command = [
        sys.executable,
        str(ROOT / "tests/soak/fuzz_server.py"),
        "0",
        "--policy",
        str(policy),
    ]
    process = subprocess.Popen(
        [*command, "--as-other", url, "--key", KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the good client is not served")
        yield lambda: json.loads(process.communicate("stop\n")[0])
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Plan:
    """How each kind is measured: `seconds` of each, quiet and under attack, in turns."""

    policy: pathlib.Path = POLICY
    seconds: float = 60.0
    turn: float = 5.0
    nice: int = 10
    """Of the attacker."""
    max_frame: int = 0
    """MiB, of the server; 0 for its default."""


def hostile(kind: str, url: str, plan: Plan) -> dict:
    """Be hostile for one turn; this process's own work."""
    os.nice(plan.nice)
    bundle = Bundle.load(plan.policy)
    begin = time.monotonic()
    attacker = Attacker(url, bundle, begin + plan.turn, plan.max_frame)
    ATTACKS[kind](attacker)
    end = min(time.monotonic(), attacker.until)
    return {"begin": begin, "end": end, "did": dict(attacker.done)}


def attacked(kind: str, url: str, plan: Plan) -> dict:
    """Run one turn of an attack in a process of its own; return its report."""
    command = [sys.executable, __file__, "--as-hostile", kind, "--url", url]
    for name, value in asdict(plan).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=plan.turn + 120.0, check=True
    )
    return json.loads(done.stdout)


def attack(kind: str, plan: Plan) -> dict:
    """Return the figures of one kind."""
    quiet, during, did = [], [], collections.Counter()
    options = ["--api-key", KEY]
    options += ["--max-frame", str(plan.max_frame)] if plan.max_frame else []
    with (
        server(plan.policy, *options) as (process, url),
        good_client(url, plan.policy) as report,
    ):
        time.sleep(0.5)
        before = resident(process.pid)
        for _ in range(max(round(plan.seconds / plan.turn), 1)):
            begin = time.monotonic()
            time.sleep(plan.turn)
            quiet.append((begin, time.monotonic()))
            done = attacked(kind, url, plan)
            during.append((done["begin"], done["end"]))
            did.update(done["did"])
            time.sleep(0.3)
        grown = resident(process.pid) - before if process.poll() is None else float("nan")
        said = report()
    return {
        "attack": kind,
        **others_figures(said, quiet, during),
        "rss_growth_mb": round(grown, 1),
        "did": dict(did),
        "exit_code_of_the_server": process.returncode,
    }


def failed(figures: dict, allowed: float) -> bool:
    """Return whether the good client noticed too much, or the server suffered."""
    faults = figures["lost"] + figures["wrong"] + (figures["connections"] - 1)
    faults += figures["exit_code_of_the_server"] != 0
    return bool(faults) or not (
        figures["above_ms"] <= allowed and figures["rss_growth_mb"] < MAX_GROWTH
    )


def main() -> int:
    """Run it; 0 if the good client did not notice more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", type=pathlib.Path, default=Plan.policy)
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of each; default 60")
    parser.add_argument("--turn", type=float, default=Plan.turn, help="s; default 5")
    parser.add_argument("--allowed", type=float, default=ALLOWED, help="ms; default 10")
    parser.add_argument("--nice", type=int, default=Plan.nice, help="of attackers; default 10")
    parser.add_argument("--max-frame", type=int, default=0, metavar="MIB", help="of the server")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--as-hostile", choices=list(ATTACKS), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    turn = min(args.turn, args.seconds)
    plan = Plan(args.policy, args.seconds, turn, args.nice, args.max_frame)
    if args.as_hostile:
        json.dump(hostile(args.as_hostile, args.url, plan), sys.stdout)
        return 0
    bad = 0
    for kind in args.attacks:
        found = attack(kind, plan)
        found["failed"] = failed(found, args.allowed)
        bad += found["failed"]
        print(json.dumps(found) if args.json else _line(found), flush=True)
    print(f"load average {os.getloadavg()}", file=sys.stderr)
    return int(bad > 0)


def _line(found: dict) -> str:
    quiet, during = found["quiet"], found["during"]
    return (
        f"{found['attack']:16s} p99 {quiet['p99']:6.1f} -> {during['p99']:6.1f} ms "
        f"({found['above_ms']:+.1f}), max {quiet['max']:.0f} -> {during['max']:.0f} ms, "
        f"lost {found['lost']}, wrong {found['wrong']} of {found['requests']}, "
        f"rss {found['rss_growth_mb']:+.1f} MB, did {found['did']}"
        f"{'  FAILED' if found['failed'] else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
