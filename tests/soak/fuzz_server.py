"""Send mutated frames to a live policy server while it serves somebody else.

    python tests/soak/fuzz_server.py COUNT [--policy FILE.onnx] [--seed 0]

Every frame must end in a reply, an error with its close, or a closed connection. Exit code 1 if the
server dies or one frame gets no end within 10 s, if the other client loses a request or gets
another answer than before, or if the server's memory grows by 20 MB or more.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import random
import select
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from typing import TextIO

import msgpack
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from penspin_style.deploy.bundle import Bundle  # noqa: E402
from real.serving.client import ClientError, PolicyClient  # noqa: E402
from real.serving.wire import pack  # noqa: E402

POLICY = ROOT / "outputs/pretrained/panda_lift_cube/policy.onnx"
PATIENCE = 10.0  # s
Span = tuple[float, float]  # s, monotonic
MAX_GROWTH = 20.0  # MB
RATE = 50.0  # Hz of the other client
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LAYOUTS = ["|O", "<c8", "<c16", "|V8", "<U4", "|S4", "<M8[s]", "<f2", ">f4", ">i8", "<u8", "f4,f4"]
LAYOUTS += ["", "object", "<f4" * 50, "|b1", "|u1", "<i4", "<f8"]
SHAPES = [[], [0], [-1], [2**31], [2**63], [2**32, 2**32], [1] * 40, [1.5], [True], ["1"], None, 7]
SHAPES += [[0, 2**40], [22, 1], [1, 22], [11, 2], [[22]], {"a": 1}]
CLAIMS = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
CLAIMS += [b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xdc\xff\xff", b"\xc1"]


# Frames.


def observation(rng: random.Random, bundle: Bundle) -> dict:
    """Return something that the policy reads: whole inputs, or their features."""
    values = np.random.default_rng(rng.randrange(2**32))
    if rng.random() < 0.5:
        return {
            i.name: values.normal(size=i.tensor[1]).astype(i.tensor[0]) for i in bundle.card.inputs
        }
    return {
        f.name: np.asarray(values.normal(size=f.shape), f.dtype)
        for i in bundle.card.inputs
        for f in i.features
    }


def array(value: np.ndarray, **change: object) -> dict:
    """Return an array as the wire says it, with parts changed."""
    said = {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str}
    said |= {"shape": list(value.shape), **change}
    return {key.encode(): v for key, v in said.items()}


def bent(rng: random.Random, said: dict) -> bytes:
    """Return a message of good msgpack that means something else than it should."""
    name = rng.choice(list(said))
    value = np.asarray(said[name])
    kind = rng.randrange(12)
    if kind == 0:
        said[name] = array(value, dtype=rng.choice(LAYOUTS))
    elif kind == 1:
        said[name] = array(value, shape=rng.choice(SHAPES))
    elif kind == 2:
        size = rng.choice([0, 1, 3, value.nbytes - 1, value.nbytes + 1, 10 * value.nbytes])
        said[name] = array(value, data=rng.randbytes(max(size, 0)))
    elif kind == 3:
        said[name] = array(value, data=rng.randbytes(value.nbytes))  # NaN among them
    elif kind == 4:
        said[rng.choice(["", "x" * 5000, "é" * 300, "__reset__", "__seq__"])] = rng.choice(
            [True, False, -1, 2**64 - 1, None, "1", 1.5, [1], {}]
        )
    elif kind == 5:
        deep: object = 1
        for _ in range(rng.choice([3, 7, 8, 9, 200])):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        said[name] = deep
    elif kind == 6:
        said[name] = rng.choice([None, True, "text", b"raw", [], {}, value.ravel().tolist(), 1e300])
    elif kind == 7:
        said |= {f"k{i}": i for i in range(rng.choice([1, 60, 64, 70, 5000]))}
    elif kind == 8:
        del said[name]
    elif kind == 9:
        said[name] = np.stack([value] * rng.choice([1, 2, 100]))
    elif kind == 10:
        scalar = {b"__npgeneric__": True, b"data": rng.choice([1, -1, 2**63, 1.5, b"x", None])}
        said[name] = {**scalar, b"dtype": rng.choice([*LAYOUTS, "<f4"])}
    else:
        said[rng.randrange(256)] = 1
    return msgpack.packb(said, default=lambda v: array(np.asarray(v)))


def mutated(rng: random.Random, frame: bytes) -> bytes:
    """Return a frame with some of its bytes changed, moved, repeated or cut."""
    data = bytearray(frame)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.choice([1, 2, 8, 64])]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
        elif kind == 4:
            data[at:at] = rng.choice(CLAIMS)
        else:
            begin = rng.randrange(len(frame))
            data[at:at] = frame[begin : begin + rng.randrange(1, 80)]
    return bytes(data)


def payload(rng: random.Random, bundle: Bundle) -> bytes:
    """Return the payload of one binary frame."""
    said = observation(rng, bundle)
    draw = rng.random()
    if draw < 0.02:
        return rng.randbytes(rng.choice([0, 1, 16, 300]))
    if draw < 0.03:  # a bomb: values by the million in a small frame
        return b"\x81\xa1a" + rng.choice([b"\x91", b"\x81\xa1a", b"\xdc\xff\xff"]) * 20_000
    if draw < 0.5:
        return bent(rng, said)
    return mutated(rng, pack(said))


def framed(data: bytes, head: int = 0x82) -> bytes:
    """Return a websocket frame as a client sends it; the mask is zeros."""
    size = len(data)
    if size < 126:
        return bytes([head, 0x80 | size, 0, 0, 0, 0]) + data
    if size < 2**16:
        return bytes([head, 0xFE]) + size.to_bytes(2, "big") + bytes(4) + data
    return bytes([head, 0xFF]) + size.to_bytes(8, "big") + bytes(4) + data


def stream(rng: random.Random, bundle: Bundle) -> tuple[str, bytes, bytes]:
    """Return a kind, the bytes of a handshake, and those that follow once it is answered."""
    frame = payload(rng, bundle)
    draw = rng.random()
    if draw < 0.03:
        return "http", mutated(rng, UPGRADE), b""
    if draw < 0.10:
        return "websocket", UPGRADE, mutated(rng, framed(frame))
    if draw < 0.12:
        head = rng.choice([0x81, 0x80, 0x83, 0x88, 0x8B, 0xC2, 0x02, 0x09])
        return "opcode", UPGRADE, framed(frame[:120], head)
    if draw < 0.1205:
        return "oversize", UPGRADE, framed(bytes(8 * 2**20 + 1))
    return "message", UPGRADE, framed(frame)


# The server's answers.


def outcome(where: tuple[str, int], kind: str, handshake: bytes, data: bytes) -> str:
    """Return how the server ended one stream of bytes."""
    with socket.create_connection(where, timeout=PATIENCE) as sock:
        got = b""
        sent = said_all = False
        try:
            sock.sendall(handshake)
            while True:
                kinds = [opcode for opcode, _ in frames_of(got)]
                if kinds.count(2) >= 2:
                    return "answered"  # hello and reply; the connection is ours to close
                if 2 in kinds and not sent:
                    _send(sock, data)
                    sent = True
                # half a frame waits for its rest, which does not come; after a close of the
                # server it waits for ours
                quiet = kind != "message" and not _readable(sock, 0.05)
                if (quiet or 8 in kinds) and not said_all:
                    _send(sock, framed(b"\x03\xe8", 0x88) if 8 in kinds else b"")
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_WR)
                    said_all = True
                part = sock.recv(2**16)
                if not part:
                    break
                got += part
        except ConnectionResetError:
            return "reset"
        except TimeoutError:
            return "HANG"
    if not got.startswith(b"HTTP/1.1 101"):
        return got[:12].decode("ascii", "replace") or "closed"
    frames = list(frames_of(got))
    errors = [json.loads(body)["error"] for opcode, body in frames if opcode == 1]
    codes = [int.from_bytes(body[:2], "big") for opcode, body in frames if opcode == 8]
    return f"refused: {errors[0]}, close {codes}" if errors else f"close {codes}"


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


def _readable(file: socket.socket | TextIO, seconds: float) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(1e3 * seconds))


def frames_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and payload of the frames after the handshake, as far as they are whole."""
    head, _, data = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        return
    at = 0
    while at + 2 <= len(data):
        kind, size = data[at] & 15, data[at + 1]
        at += 2
        width = {126: 2, 127: 8}.get(size, 0)
        if width:
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        if at + size > len(data):
            return
        yield kind, data[at : at + size]
        at += size


def ask_steadily(url: str, policy: pathlib.Path, key: str | None = None) -> None:
    """Be the client that is served meanwhile, until the input ends; then report on the output.

    A process of its own: what it waits for is the server, not the fuzzer.
    """
    bundle = Bundle.load(policy)
    question = {i.name: np.ones(i.tensor[1], i.tensor[0]) for i in bundle.card.inputs}
    answer = bundle(question).tobytes()
    took: list[tuple[float, float]] = []  # when, s, and how long, ms
    lost = wrong = 0
    with PolicyClient(url, key, timeout=PATIENCE, wait=10.0) as client:
        client.infer(question)
        print("served", flush=True)
        due = time.monotonic()
        while not _readable(sys.stdin, max(due - time.monotonic(), 0.0)):
            due += 1.0 / RATE
            began = time.monotonic()
            try:
                reply = client.infer(question)
            except ClientError:
                lost += 1
                continue
            took.append((began, 1e3 * (time.monotonic() - began)))
            wrong += reply["actions"].tobytes() != answer
        said = {"took": took, "lost": lost, "wrong": wrong, "connections": client.connections}
    json.dump(said, sys.stdout)


def others_figures(said: dict, quiet: list[Span], during: list[Span]) -> dict:
    """Return what the other client saw while nobody else was there, and while somebody was."""
    calm, harried = (
        quantiles([ms for at, ms in said["took"] if any(a <= at < b for a, b in spans)])
        for spans in (quiet, during)
    )
    return {
        "requests": len(said["took"]) + said["lost"],
        **{key: said[key] for key in ("lost", "wrong", "connections")},
        "quiet": calm,
        "during": harried,
        "above_ms": round(harried["p99"] - calm["p99"], 3),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return p50, p99, p99.9 and the largest."""
    found = np.percentile(values or [float("nan")], (50, 99, 99.9, 100))
    return dict(zip(("p50", "p99", "p99.9", "max"), np.round(found, 3).tolist(), strict=True))


def resident(pid: int) -> float:
    """Return a process's resident memory, MB."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1000.0


@contextlib.contextmanager
def server(policy: pathlib.Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run `penspin serve` on a free port; yield its process and its url."""
    command = [sys.executable, "-m", "penspin_style", "serve", str(policy), *options]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{policy} is not served; try penspin serve {policy}")
        yield process, json.loads(line)["url"]
        process.terminate()
        process.wait(10)
    finally:
        process.kill()
        process.communicate()


def fuzz(count: int, policy: pathlib.Path, seed: int) -> dict:
    """Return the figures of one run."""
    rng, bundle = random.Random(seed), Bundle.load(policy)
    outcomes: collections.Counter[str] = collections.Counter()
    with server(policy) as (process, url):
        where = urllib.parse.urlparse(url)
        address = (str(where.hostname), int(where.port or 0))
        other = subprocess.Popen(
            [sys.executable, __file__, "0", "--policy", str(policy), "--as-other", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout is not None
        other.stdout.readline()  # it is served
        for _ in range(min(count // 10, 500)):  # what a server allocates once
            outcome(address, *stream(rng, bundle))
        warm = time.monotonic()
        time.sleep(min(5.0, count / 100))
        before, begin = resident(process.pid), time.monotonic()
        for i in range(count):
            one = stream(rng, bundle)
            outcomes[f"{one[0]}: {outcome(address, *one)}"] += 1
            if i % 1000 == 999:
                print(f"{i + 1} frames, {resident(process.pid) - before:+.1f} MB", file=sys.stderr)
            if process.poll() is not None:
                break
        end = time.monotonic()
        alive = process.poll() is None
        after = resident(process.pid) if alive else float("nan")
        said = json.loads(other.communicate("stop\n")[0])
    return {
        "frames": sum(outcomes.values()),
        "seconds": round(end - begin, 1),
        "crashes": int(not alive),
        "hangs": sum(n for text, n in outcomes.items() if "HANG" in text),
        "other_client_ms": others_figures(said, [(warm, begin)], [(begin, end)]),
        "rss_mb": [round(before, 1), round(after, 1)],
        "rss_growth_mb": round(after - before, 1),
        "outcomes": dict(outcomes.most_common()),
        "exit_code_of_the_server": process.returncode,
    }


def main() -> int:
    """Run it; 0 if nothing happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--policy", type=pathlib.Path, default=POLICY)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-other", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--key", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_other:
        ask_steadily(args.as_other, args.policy, args.key)
        return 0
    figures = fuzz(args.count, args.policy, args.seed)
    print(json.dumps(figures, indent=1))
    other = figures["other_client_ms"]
    faults = figures["crashes"] + figures["hangs"] + other["lost"] + other["wrong"]
    grown = not figures["rss_growth_mb"] < MAX_GROWTH
    return int(bool(faults) or grown or figures["exit_code_of_the_server"] != 0)


if __name__ == "__main__":
    sys.exit(main())
