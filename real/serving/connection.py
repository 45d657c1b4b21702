"""One client's connection: what it may take of the server, and for how long.

The websocket itself is the `websockets` package's. Here every wait gets an end that no byte of the
client's can move, and what a client sends is counted before it is parsed.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from real.serving import wire
from real.serving.frames import FrameCount
from real.serving.turns import Share

_MIB = 2**20


class LateError(Exception):
    """A request did not begin, or end, in time; the text says which."""


@dataclass(frozen=True)
class ServerLimits:
    """What clients may take. Times in s, sizes in bytes."""

    max_frame: int | None = None
    """Of a request; None for what the policy's observation can need, see `protocol`."""
    max_connections: int = 64
    max_unread: int = 2**20
    """Bytes that wait for a client that does not read."""
    max_held: int = 64 * _MIB
    """Bytes of all requests that have arrived in part, or wait for their answer."""
    max_turns: int = 4
    """Requests that are worked on at a time."""
    apart: float = 0.005
    """Between two opening handshakes."""
    open: float = 5.0
    """For the opening handshake."""
    message: float = 10.0
    """For a message, from its first byte on."""
    send: float = 5.0
    """For a client to take a reply."""
    idle: float = 600.0
    """Between two requests."""
    ping: float = 20.0
    """Between two pings, and for the answer to one."""
    close: float = 1.0
    """For the closing handshake."""
    drain: float = 5.0
    """For all clients together, once the server is told to stop."""


class Connections:
    """What the connections of one server share."""

    def __init__(self, limits: ServerLimits, max_frame: int) -> None:
        self.limits, self.max_frame = limits, max_frame
        self._held: dict[Connection, int] = {}
        self._total = 0
        self._next = 0.0

    def join(self, connection: "Connection", now: float) -> float:
        """Take a new connection; return how long, s, it must wait for its handshake."""
        self._held[connection] = 0
        at = max(now, self._next)
        self._next = at + self.limits.apart
        return at - now

    def hold(self, connection: "Connection", size: int) -> None:
        """Note how many bytes a connection holds; if all hold too many, cut off the worst."""
        if connection not in self._held:
            return
        self._total += size - self._held[connection]
        self._held[connection] = size
        if self._total > max(self.limits.max_held, 2 * self.max_frame):
            worst = max(self._held, key=self._held.__getitem__)
            worst.cut_off(f"holds the most, {self._held[worst]} bytes, where all hold too much")
            self.forget(worst)

    def forget(self, connection: "Connection") -> None:
        """Forget a connection that is gone, or will be."""
        self._total -= self._held.pop(connection, 0)

    def kind(self) -> type[ServerConnection]:
        """Return the class of connections that belong here, as `websockets` wants one."""
        everyone = self

        class Here(Connection):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, everyone=everyone, **options)

        return Here


class Connection(ServerConnection):
    """A connection that is held to its server's limits.

    share: what its client has had of the server.
    cut: why the server ended it without an answer; empty if it did not.
    """

    def __init__(self, *args: Any, everyone: Connections, **options: Any) -> None:
        super().__init__(*args, **options)
        self.share, self.cut = Share(), ""
        self._everyone, self._limits = everyone, everyone.limits
        self._frames = FrameCount(everyone.max_frame)
        self._timeout: asyncio.Timeout | None = None
        self._idle_until = float("inf")
        self._ending: asyncio.Task[None] | None = None

    async def message(self) -> bytes:
        """Return the next request.

        Raises:
            LateError: it did not begin, or end, in time.
            WireError: it is text.
            ConnectionClosed: there will be none.
        """
        parts: list[bytes] = []
        self._idle_until = self.loop.time() + self._limits.idle
        try:
            async with asyncio.timeout_at(self._idle_until) as self._timeout:
                self._set_timeout()
                async for part in self.recv_streaming():
                    if isinstance(part, str):
                        raise wire.WireError("a request is a binary frame of msgpack, not text")
                    parts.append(part)
        except TimeoutError:
            begun = parts or self._frames.since is not None
            what = "the message did not end" if begun else "no request"
            raise LateError(f"{what} in time") from None
        finally:
            self._timeout = None
        return b"".join(parts)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Hold the oldest request until it is answered."""
        try:
            yield
        finally:
            self._frames.taken()
            self._everyone.hold(self, self._frames.held)

    async def hang_up(self, code: CloseCode, reason: str) -> None:
        """Close the connection, at once if the client does not take its part in it."""
        try:
            # the handshake has a limit of its own, unless what was sent before is not read
            async with asyncio.timeout(self._limits.close + 0.5):
                await self.close(code, reason)
        except (TimeoutError, ConnectionClosed):
            self.transport.abort()

    def cut_off(self, why: str) -> None:
        """End the connection at once."""
        self.cut = why
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give it its place in the row of those who want to connect."""
        super().connection_made(transport)
        # those that never finish their handshake count as well
        if len(self.server.handlers) > 2 * self._limits.max_connections + 16:
            self.transport.abort()
            return
        delay = self._everyone.join(self, self.loop.time())
        if delay > 0:
            # soon, not now: asyncio of Python 3.11.2 begins to read after this call all the same
            self.loop.call_soon(self.transport.pause_reading)
            self.loop.call_later(delay, self._begin)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what it held."""
        self._everyone.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Let through what may be parsed."""
        if self._ending is not None:
            self.transport.pause_reading()
            return
        fine = self._frames.feed(data, self.loop.time())
        if fine > 0:
            super().data_received(data if fine == len(data) else data[:fine])
        if self._frames.fault:
            self.cut = self._frames.fault
            self.transport.pause_reading()
            self._ending = self.loop.create_task(self.hang_up(CloseCode.POLICY_VIOLATION, self.cut))
        # pongs are answered without waiting for the client to read them
        elif self.transport.get_write_buffer_size() > self._limits.max_unread:
            self.cut_off("does not read what it is sent")
        else:
            self._set_timeout()
            self._everyone.hold(self, self._frames.held)

    def _begin(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _set_timeout(self) -> None:
        """Let a message end in time from its first byte on, whatever comes after."""
        if self._timeout is None or self._timeout.expired():
            return
        since = self._frames.since
        until = self._idle_until
        if since is not None:
            until = min(until, since + self._limits.message)
        if until != self._timeout.when():
            self._timeout.reschedule(until)
