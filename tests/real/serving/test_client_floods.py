"""No server, whatever it sends or does not read, holds a client longer than its timeout."""

import contextlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from websockets.utils import accept_key

from real.serving.client import PolicyClient, PolicyError, Timeout, Unreachable
from real.serving.protocol import hello
from real.serving.wire import pack
from tests.support.policy_client import ACCEPTED, behaving, frame_of, silent
from tests.support.serving import Echo, asking

pytestmark = pytest.mark.clock


def test_a_server_that_does_not_read_cannot_hold_a_call():
    image = {"image": np.zeros((2000, 1000, 3), np.uint8)}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = f"ws://127.0.0.1:{listening.getsockname()[1]}"
        held = []

        def accept():
            taken, _ = listening.accept()
            held.append(taken)
            request = taken.recv(4096).decode()
            key = request.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
            taken.sendall(ACCEPTED % accept_key(key).encode() + frame_of(pack(hello(Echo()))))

        thread = threading.Thread(target=accept)
        thread.start()
        client = PolicyClient(url, connect_timeout=2.0)
        thread.join()
        began = time.monotonic()
        with pytest.raises(Timeout):
            client.infer(image, timeout=0.3)
        assert time.monotonic() - began < 2.0
        assert not client.connected  # half a message went out: nothing can follow it
        client.close()
        held[0].close()


def forever(data, after=b"", pause=0.0, ask=True):
    """Send the same bytes until the client is gone, from its first request on, or once it is in."""

    def behave(sock):
        if ask:
            sock.recv(65536)
        else:
            time.sleep(0.1)
        sock.sendall(after)
        reading = threading.Thread(target=swallow, args=(sock,))
        reading.start()
        try:
            while True:
                sock.sendall(data)
                if pause:
                    time.sleep(pause)
        finally:
            reading.join()

    return behave


def swallow(sock):
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


PING, REPLY = frame_of(b"", 0x89), frame_of(pack({"actions": np.float32([[0.5, 0.5]])}))
FLOODS = {
    "pings": forever(frame_of(b"x" * 100, 0x89) * 5000, ask=False),
    "pings after the request": forever(PING * 200_000),
    "slow pings": forever(PING, pause=0.005),
    "replies": forever(REPLY * 5000, ask=False),
    "empty messages": forever(frame_of(b"") * 200_000),
    "fragments": forever(frame_of(b"x", 0x00) * 100_000, after=frame_of(b"x", 0x02)),
    "a byte at a time": forever(b"x", after=b"\x82\x7f" + (2**22).to_bytes(8, "big"), pause=0.02),
    "one endless message": forever(bytes(4096), after=b"\x82\x7f" + (2**23).to_bytes(8, "big")),
    "a frame too large": forever(bytes(4096), after=b"\x82\x7f" + (2**40).to_bytes(8, "big")),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_no_flood_of_a_server_holds_a_call_or_the_client_longer_than_its_timeout(flood):
    with behaving(flood) as url:
        client = PolicyClient(url, timeout=0.2, connect_timeout=2.0)
        for _ in range(4):
            began = time.monotonic()
            with pytest.raises((Timeout, Unreachable, PolicyError)):
                client.infer(asking())
            assert time.monotonic() - began < 0.5
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 3.0


FLOODING = """
import socket, sys, time
from websockets.utils import accept_key

accepted, data = map(bytes.fromhex, sys.stdin.read().split())
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    while True:
        taken, _ = listening.accept()
        try:
            key = taken.recv(4096).decode().split("Sec-WebSocket-Key: ")[1].split("\\r\\n")[0]
            taken.sendall(accepted.replace(b"%s", accept_key(key).encode()))
            time.sleep(0.1)
            while True:
                taken.sendall(data * 1000)
        except OSError:
            taken.close()
"""


@pytest.mark.parametrize("data", [REPLY, frame_of(b"", 0x8A)], ids=["replies", "pongs"])
def test_a_server_that_sends_faster_than_the_client_reads_holds_no_call(data):
    """The server is a process of its own, as in this one it would wait for the client's thread."""
    process = subprocess.Popen(
        [sys.executable, "-c", FLOODING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        welcome = ACCEPTED + frame_of(pack(hello(Echo())))
        process.stdin.write(f"{welcome.hex()} {data.hex()}")
        process.stdin.close()
        url = f"ws://127.0.0.1:{process.stdout.readline().strip()}"
        client = PolicyClient(url, timeout=0.2, wait=5.0)
        for pause in (0.11, 0.0, 0.11, 0.2):
            time.sleep(pause)
            began = time.monotonic()
            with pytest.raises((Timeout, Unreachable, PolicyError)):
                client.infer(asking())
            assert time.monotonic() - began < 0.5
        client.close()
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize("greeting", [b"", b"\x16\x03\x03\x40\x00"])
def test_an_encrypted_handshake_that_does_not_end_is_given_up_in_time(greeting):
    with silent(greeting) as url:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="in time"):
            PolicyClient(url.replace("ws:", "wss:"), connect_timeout=0.4)
        assert 0.4 <= time.monotonic() - began < 1.0


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    slow = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: slow.wait(10) and [])
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"host is not known \(no answer within 0.2 s"):
        PolicyClient("ws://robot.example", connect_timeout=0.2)
    assert time.monotonic() - began < 1.0
    slow.set()


@pytest.mark.parametrize(("wait", "most"), [(0.0, 0.4), (0.7, 0.7)])
def test_connecting_ends_with_the_longer_of_wait_and_connect_timeout(wait, most, monkeypatch):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda *args, **options: time.sleep(0.3) or look_up(*args, **options)
    )
    with silent() as url:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            PolicyClient(url, connect_timeout=0.4, wait=wait)
        assert time.monotonic() - began < most + 0.2
