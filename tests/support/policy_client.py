"""A server that is scripted, for clients that must survive it."""

import contextlib
import socket
import threading
import time

from websockets.utils import accept_key

from real.serving.client import Timeout, Unreachable
from real.serving.protocol import hello
from real.serving.wire import pack
from tests.support.serving import Echo, asking

ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %s\r\n\r\n"
)


def value(reply):
    return float(reply["actions"][0, 0])


def again(client, seconds, observation=None, **options):
    """Ask until there is an answer; return it, and the seconds that this took."""
    began = time.monotonic()
    while True:
        try:
            said = client.infer(observation or asking(0.25), **options)
            return said, time.monotonic() - began
        except (Timeout, Unreachable):
            if time.monotonic() - began > seconds:
                raise


@contextlib.contextmanager
def silent(greeting=b"", backlog=16):
    """A socket that takes connections, and says so much."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listening:
        held = []

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = listening.accept()
                    taken.sendall(greeting)
                    held.append(taken)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for taken in held:
            taken.close()


def frame_of(payload, head=0x82):
    """One frame as a server sends it, binary unless told otherwise."""
    if len(payload) < 126:
        return bytes([head, len(payload)]) + payload
    return bytes([head, 0x7E]) + len(payload).to_bytes(2, "big") + payload


@contextlib.contextmanager
def behaving(behave):
    """A server that does what `behave(sock)` does with every connection, after the hello."""

    def converse(taken):
        with contextlib.suppress(OSError), taken:
            key = taken.recv(4096).decode().split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
            taken.sendall(ACCEPTED % accept_key(key).encode() + frame_of(pack(hello(Echo()))))
            behave(taken)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = []

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    thread = threading.Thread(target=converse, args=(listening.accept()[0],))
                    thread.start()
                    threads.append(thread)

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()
