"""What the tests of serving share: a policy that tells what it was asked, and bare sockets."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
from websockets.sync.client import connect

from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard
from real.serving.wire import HELLO, pack, unpack

ROOT = pathlib.Path(__file__).parents[2]
ONNX = ROOT / "outputs/pretrained/panda_lift_cube/policy.onnx"
CARD = PolicyCard(
    task="toy",
    inputs=(Input("robot", (Feature("joint_pos", (2,), "rad"), Feature("delay", (), "s"))),),
    actions=(
        ActionChannel("finger", "rad", 0.04, -0.5, 1.5, "delta"),
        ActionChannel("thumb", "rad", 0.08, -0.25, 1.25, "absolute"),
    ),
    joints=(Joint("j0", "rad", -0.5, 1.5, 3.0, 0.1, 0.25), Joint("j1", "rad", 0, 1, 3.0, 0.1, 0.5)),
    control_dt=0.05,
    score={"success": 0.97, "episodes": 500},
)
KEY = "0123456789abcdef-key"


class Echo:
    """A policy whose action is what it saw, after the delay that it was asked for.

    Each episode counts its steps: `steps` holds one list an episode.
    """

    card = CARD
    sha256 = "of the toy"

    def __init__(self):
        self.steps = []

    def reset(self):
        pass

    def act(self, observation):
        raise AssertionError("a client's own policy is asked")

    def fork(self):
        return OwnEcho(self.steps)


class OwnEcho(Echo):
    """That of one client."""

    def __init__(self, steps):
        self.steps = steps

    def reset(self):
        self.seen = []
        self.steps.append(self.seen)

    def act(self, observation):
        time.sleep(float(observation["delay"]))
        self.seen.append(len(self.seen))
        return np.asarray(observation["joint_pos"], np.float32)


def asking(value=0.5, delay=0.0, **more):
    joint_pos = np.array([value, -value], np.float32)
    return {"joint_pos": joint_pos, "delay": np.float32(delay), **more}


@contextlib.contextmanager
def client(url, *, read_hello=True, **options):
    """A plain websocket of the `websockets` package, as OpenPI's client makes it."""
    with connect(url, compression=None, max_size=None, proxy=None, **options) as ws:
        if read_hello:
            ws.hello = unpack(ws.recv(timeout=5), HELLO)
        yield ws


def ask(ws, observation, timeout=5):
    ws.send(pack(observation))
    answer = ws.recv(timeout=timeout)
    return json.loads(answer) if isinstance(answer, str) else unpack(answer)


def bare(url):
    """A TCP connection to the server of a url."""
    host, port = url.split("//")[1].split(":")
    return socket.create_connection((host, int(port)), timeout=5)


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked(payload, opcode=2, fin=True):
    """One frame as a client sends it; the mask is zeros."""
    size = len(payload)
    head = bytes([opcode | (0x80 if fin else 0)])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 2**16:
        head += bytes([0xFE]) + size.to_bytes(2, "big")
    else:
        head += bytes([0xFF]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def hung_up(sock, timeout):
    """Seconds until the other side closes; raises if it does not."""
    began = time.monotonic()
    sock.settimeout(timeout)
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(65536):
            sock.settimeout(max(timeout - (time.monotonic() - began), 0.001))
    return time.monotonic() - began


@contextlib.contextmanager
def serving(*argv, policy=ONNX):
    """`penspin serve` as a process of its own; yields it with its `url`."""
    command = [sys.executable, "-m", "penspin_style", "serve", str(policy), "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, *map(str, argv)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        process.url = json.loads(line)["url"]
        yield process
    finally:
        process.kill()
        process.communicate()
