"""ROS 2 topics over rosbridge's websocket protocol, version 2: no ROS is needed on this computer.

On the robot's side: `ros2 launch rosbridge_server rosbridge_websocket_launch.xml`.

The protocol's JSON is spoken here, on the `websockets` package that the policy server uses as well,
rather than through roslibpy: that one runs in Twisted's reactor, of which a process can start one,
once, and it keeps what it could not send to send it later, which is wrong for a robot's targets.

One thread does all reading and writing. A target waits for nobody: it goes out at once, or the
link counts as lost. A lost link is cut, so that nothing that waits in it arrives later, and opened
again, with its topics, for as long as it takes. What was published is confirmed by a ping: its
answer says that the server has read all that came before it.
"""

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from real.drivers.ros2_link import Message
from real.robot import RobotError

START = "start it with ros2 launch rosbridge_server rosbridge_websocket_launch.xml"
_CONNECT = 2.0
"""Seconds that a connection may take to open,"""
_AGAIN = 0.2
"""and after which it is tried again."""
_SEND = 0.1
"""Seconds that a message may take to leave,"""
_CONFIRM = 0.25
"""and to be confirmed."""
_PING = 1.0
"""Seconds between two signs of life, and for the answer."""
_ASK = 1.0
"""Seconds between two questions for who listens, and for an answer."""
_MAX_MESSAGE = 2**20
_CUT = struct.pack("ii", 1, 0)
"""Of SO_LINGER: what waits is thrown away."""
_T = TypeVar("_T")


class Rosbridge:
    """A connection to a rosbridge server; see `real.drivers.ros2_link.Transport`."""

    def __init__(self, host: str, port: int) -> None:
        self.url = f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"
        self.lost = f"{self.url} is not open"
        self.complaint = ""
        """What the server last complained of; empty for nothing."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: ClientConnection | None = None
        self._main: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._opened = threading.Event()
        self._heard: dict[str, tuple[str, list[Callable[[Message], object]]]] = {}
        self._said: dict[str, str] = {}
        self._listeners: dict[str, int | None] = {}
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()

    def open(self, patience: float, on_lost: Callable[[], object]) -> None:
        """Connect, and stay connected.

        Raises:
            RobotError: no server answers within so many seconds.
        """
        self._on_lost = on_lost
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="rosbridge", daemon=True
        )
        self._thread.start()
        started.wait()
        if not self._opened.wait(patience):
            why = self.lost
            self.close()
            raise RobotError(f"no rosbridge server answers within {patience:g} s: {why}; {START}")

    def subscribe(self, topic: str, kind: str, heard: Callable[[Message], object]) -> None:
        """Have a function called with each message of a topic."""
        is_new = topic not in self._heard
        self._heard.setdefault(topic, (kind, []))[1].append(heard)
        if is_new:
            self._do(self._send({"op": "subscribe", "topic": topic, "type": kind}), _SEND)

    def advertise(self, topic: str, kind: str) -> None:
        """Say that messages of a type will be published."""
        self._said[topic] = kind
        self._listeners[topic] = 0  # until the first answer
        self._do(self._send({"op": "advertise", "topic": topic, "type": kind}), _SEND)

    def publish(self, topic: str, message: Message) -> None:
        """Send a message now.

        Raises:
            RobotError: there is no connection, or the server takes nothing.
        """
        self._do(self._send({"op": "publish", "topic": topic, "msg": message}), _SEND)

    def listeners(self, topic: str) -> int | None:
        """Return how many listened when rosapi was last asked, each second; None without rosapi."""
        return self._listeners.get(topic)

    def confirm(self) -> None:
        """Wait until the server has read all that was sent.

        Raises:
            RobotError: it does not say so in time.
        """
        self._do(self._ping(), _CONFIRM)

    def get_published_topics(self) -> list[tuple[str, str]]:
        """Return what rosapi says; nothing without it."""
        with contextlib.suppress(RobotError):
            found = self._do(self._call("/rosapi/topics", {}), 2.0 * _ASK) or {}
            return [(str(name), "") for name in found.get("topics", ())]
        return []

    def close(self) -> None:
        """Hang up and end the thread; again is no error."""
        loop, main, thread = self._loop, self._main, self._thread
        if loop is None or main is None or thread is None:
            return
        with contextlib.suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(main.cancel)
        thread.join(2.0)
        self._loop = None
        self.lost = f"{self.url} is not open"

    # For the other threads.

    def _do(self, what: Coroutine[Any, Any, _T], limit: float) -> _T:
        """Have the thread do something within so many seconds; cut the link if it does not."""
        loop = self._loop
        if loop is None or self.lost:
            what.close()
            raise RobotError(self.lost or f"{self.url} is not open")
        future = asyncio.run_coroutine_threadsafe(what, loop)
        try:
            return future.result(limit)
        except TimeoutError:
            future.cancel()
            loop.call_soon_threadsafe(self._cut, f"it took nothing for {limit:g} s")
            raise RobotError(f"{self.url} takes nothing within {limit:g} s") from None
        except (OSError, WebSocketException) as error:
            raise RobotError(f"the connection to {self.url} is lost: {error}") from error

    # In the thread.

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await self._stay_connected()

        asyncio.run(main())

    async def _stay_connected(self) -> None:
        while True:
            try:
                opened = await connect(
                    self.url,
                    open_timeout=_CONNECT,
                    close_timeout=0.1,
                    ping_interval=_PING,
                    ping_timeout=_PING,
                    max_size=_MAX_MESSAGE,
                    compression=None,
                    proxy=None,
                )
            except (OSError, TimeoutError, WebSocketException) as error:
                self.lost = f"{self.url}: {error or type(error).__name__}"
                await asyncio.sleep(_AGAIN)
                continue
            try:
                await self._serve(opened)
                why = "the server hung up"
            except (OSError, WebSocketException) as error:
                why = str(error)
            finally:
                self._socket = None
                _abort(opened)
            self._note_loss(why)
            await asyncio.sleep(_AGAIN)

    async def _serve(self, opened: ClientConnection) -> None:
        """Take in what comes until the connection ends."""
        self._socket = opened
        for topic, kind in self._said.items():
            await self._send({"op": "advertise", "topic": topic, "type": kind})
        for topic, (kind, _) in self._heard.items():
            await self._send({"op": "subscribe", "topic": topic, "type": kind})
        self.lost = ""
        self._opened.set()
        asking = asyncio.ensure_future(self._ask_on())
        try:
            async for text in opened:
                self._take(text)
        finally:
            asking.cancel()

    async def _ask_on(self) -> None:
        """Ask who listens, again and again."""
        while True:
            for topic in [*self._said]:
                found = await self._call("/rosapi/subscribers", {"topic": topic})
                there = None if found is None else found.get("subscribers")
                self._listeners[topic] = len(there) if isinstance(there, list) else None
            await asyncio.sleep(_ASK if self._said and 0 not in self._listeners.values() else 0.05)

    async def _call(self, service: str, args: dict[str, str]) -> dict[str, Any] | None:
        """Return what a service answers; None where it does not."""
        number = f"call:{next(self._numbers)}"
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send({"op": "call_service", "id": number, "service": service, "args": args})
            return await asyncio.wait_for(answer, _ASK)
        except TimeoutError:
            return None
        finally:
            del self._answers[number]

    async def _send(self, message: dict[str, Any]) -> None:
        if self._socket is None:
            raise OSError("it is not open")
        await self._socket.send(json.dumps(message, allow_nan=False))

    async def _ping(self) -> None:
        if self._socket is None:
            raise OSError("it is not open")
        await (await self._socket.ping())

    def _take(self, text: str | bytes) -> None:
        try:
            message = json.loads(text)
        except ValueError:
            return
        if not isinstance(message, dict):
            return
        values = message.get("msg")
        match message.get("op"):
            case "publish" if isinstance(values, dict):
                for heard in self._heard.get(str(message.get("topic")), ("", []))[1]:
                    heard(values)
            case "service_response":
                answer = self._answers.get(str(message.get("id")))
                found = message.get("values")
                if answer is not None and not answer.done():
                    is_good = message.get("result") is not False and isinstance(found, dict)
                    answer.set_result(found if is_good else None)
            case "status" if message.get("level") == "error":
                self.complaint = " ".join(str(values).split())[:300]

    def _cut(self, why: str) -> None:
        """Throw away the connection and what waits in it."""
        if self._socket is not None:
            _abort(self._socket)
        self._note_loss(why)

    def _note_loss(self, why: str) -> None:
        if not self.lost:
            self.lost = f"the connection to {self.url} is lost: {why}"
            self._on_lost()


def _abort(opened: ClientConnection) -> None:
    transport = opened.transport
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CUT)
    transport.abort()
