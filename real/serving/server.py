"""A policy behind a websocket, for any client that speaks OpenPI's protocol.

    hello     server -> client   map: the policy's card and what follows from it, see `hello`
    request   client -> server   map: the card's inputs, or features, by name
    reply     server -> client   map: `actions` (horizon, naction) float32 in [-1, 1],
                                 `server_timing` {infer_ms, from the second reply prev_total_ms}
    error     server -> client   text: JSON {error, id, message}; then the connection closes, 1011

Messages are those of `real.serving.wire`, one binary frame each. Actions are the policy's own,
without units: the card in the hello says what a robot makes of them. A new connection is a new
episode, and so is a request with `__reset__`: true. A request's `__seq__` comes back in its reply.

Clients are strangers. A key is asked for where others than this computer can connect, whatever one
of them sends ends at worst its own connection, and what it can make the server keep is bounded.
"""

import asyncio
import contextlib
import functools
import hmac
import ipaddress
import json
import logging
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from penspin_style.deploy.bundle import ObservationError
from penspin_style.deploy.policy import Policy
from real.serving import wire
from real.serving.connection import Connection, Connections, LateError, ServerLimits
from real.serving.protocol import Episode, Worker, expected_of, hello
from real.serving.turns import Turns

__all__ = ["PORT", "PolicyServer", "ServeError", "ServerLimits", "is_loopback"]

PORT = 8000
HEALTH = "/healthz"
_LOG = logging.getLogger(__name__)
# what a client must not make us write about it: one line each at most, and not for ever
_LINES_A_SECOND = 20
_MAX_MESSAGE = 500
_BACKLOG = 32
"""Connections that are taken at once."""


class ServeError(ValueError):
    """The server cannot do what is asked of it; the message says why and what helps."""


class PolicyServer:
    """Serve one policy until told to stop.

    `run` serves in this thread; as a context manager the server runs in a thread of its own:

        with PolicyServer(Bundle.load(path), port=0) as server:
            client = PolicyClient(server.url)
    """

    def __init__(
        self,
        policy: Policy,
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        insecure: bool = False,
        limits: ServerLimits | None = None,
    ) -> None:
        """Check what can be checked before anyone connects.

        policy: one that remembers has a `fork`; every other one is shared by all clients.
        port: 0 for a free one, which `url` then tells.
        insecure: serve other computers without a key.

        Raises:
            ServeError: a key is missing, or one that anybody could guess.
        """
        self.policy, self.host, self.port, self.tls = policy, host, port, tls
        self.limits = limits or ServerLimits()
        self._expected = expected_of(policy)
        self._max_frame = self.limits.max_frame or self._expected.max_frame
        self._key = None if api_key is None else _checked_key(api_key)
        if self._key is None and not insecure and not is_loopback(host):
            raise ServeError(
                f"host {host!r} lets other computers in: give a key (--api-key-file FILE), "
                "or say --insecure to serve anyone who connects"
            )
        self._hello = wire.pack(hello(policy))
        self._worker = Worker()
        self._turns = Turns(self.limits.max_turns)
        self._log = _Throttle()
        self._busy: set[ServerConnection] = set()
        self._draining = False
        self._stop: Callable[[], object] = lambda: None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where clients connect; with port 0 known once the server listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ws' if self.tls is None else 'wss'}://{host}:{self.port}"

    async def serve(self, listening: Callable[[], object] = lambda: None) -> None:
        """Serve until `stop`, then let running requests finish.

        listening: called when clients can connect.

        Raises:
            ServeError: the address cannot be had.
        """
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(told.set)
        try:
            server = await self._listen()
        except OSError as error:
            raise ServeError(
                f"cannot listen on {self.url}: {error.strerror or error}; choose another "
                "--port, or 0 for a free one"
            ) from error
        self.port = next(iter(server.sockets)).getsockname()[1]
        self._worker.start()
        try:
            listening()
            await told.wait()
        finally:
            await self._drain(server)
            self._worker.stop()

    def stop(self) -> None:
        """Tell the server to stop; may be called from any thread and from a signal handler."""
        with contextlib.suppress(RuntimeError):  # it has stopped already
            self._stop()

    def __enter__(self) -> "PolicyServer":
        ready = threading.Event()
        failed: list[Exception] = []

        def run() -> None:
            try:
                asyncio.run(self.serve(ready.set))
            except Exception as error:  # belongs to the thread that waits here
                failed.append(error)
            ready.set()

        self._thread = threading.Thread(target=run, name="policy-server", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            raise failed[0]
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()

    async def _listen(self) -> Server:
        limits = self.limits
        # what goes wrong while a stranger connects is no event in the log of a robot
        quiet = logging.getLogger(f"{__name__}.websockets")
        quiet.setLevel(logging.CRITICAL)
        return await serve(
            self._converse,
            self.host,
            self.port,
            ssl=self.tls,
            # browsers name the page that connects; no page of another site may use a local server
            origins=[None],
            compression=None,
            process_request=self._admit,
            server_header=None,
            open_timeout=limits.open,
            ping_interval=limits.ping,
            ping_timeout=limits.ping,
            close_timeout=limits.close,
            max_size=self._max_frame,
            max_queue=1,
            logger=quiet,
            create_connection=Connections(limits, self._max_frame).kind(),
            backlog=_BACKLOG,
        )

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a health check, ask for the key; None lets the client in."""
        if request.path == HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._key is not None:
            said = request.headers.get_all("Authorization")
            given = said[0].encode("utf-8", "surrogateescape") if len(said) == 1 else b""
            if not hmac.compare_digest(given, b"Api-Key " + self._key):
                self._log.say(f"{_who(connection)}: refused, no key or a wrong one")
                response = connection.respond(
                    HTTPStatus.UNAUTHORIZED, "This server asks for an API key.\n"
                )
                response.headers["WWW-Authenticate"] = "Api-Key"
                return response
        if len(connection.server.connections) >= self.limits.max_connections:
            self._log.say(f"{_who(connection)}: refused, all connections are taken")
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, "All connections of this server are taken.\n"
            )
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        """Serve one client for as long as it behaves."""
        assert isinstance(connection, Connection)
        episode = Episode(self.policy, self._expected)
        try:
            await self._send(connection, self._hello)
            while not self._draining:
                frame = await connection.message()
                self._busy.add(connection)
                began = time.perf_counter()
                with connection.answering():
                    async with self._turns.of(connection.share):
                        reply = await self._worker.run(functools.partial(episode.answer, frame))
                    await self._send(connection, reply)
                episode.total = time.perf_counter() - began
                self._busy.discard(connection)
            await connection.hang_up(CloseCode.GOING_AWAY, "the server stops")
        except ConnectionClosed:
            if connection.cut:
                self._log.say(f"{_who(connection)}: cut off, {connection.cut}")
        except LateError as error:
            await connection.hang_up(CloseCode.GOING_AWAY, str(error))
        except Exception as error:
            await self._refuse(connection, error)
        finally:
            self._busy.discard(connection)

    async def _send(self, connection: ServerConnection, message: bytes | str) -> None:
        try:
            async with asyncio.timeout(self.limits.send):
                await connection.send(message)
        except TimeoutError:
            self._log.say(f"{_who(connection)}: does not read its replies, dropped")
            connection.transport.abort()  # what waits for its next request will hear of it

    async def _refuse(self, connection: Connection, error: Exception) -> None:
        """Tell the client that its request failed, and the log why."""
        number = secrets.token_hex(4)
        code, message = "policy", "the policy could not answer; the server's log says why"
        if isinstance(error, (wire.WireError, ObservationError)):
            code = "message" if isinstance(error, wire.WireError) else "observation"
            message = str(error)[:_MAX_MESSAGE]
        self._log.say(
            f"{_who(connection)}: error {number}, {code}: {str(error)[:_MAX_MESSAGE]!r}",
            error if code == "policy" else None,
        )
        # the client may be gone
        with contextlib.suppress(ConnectionClosed):
            text = json.dumps({"error": code, "id": number, "message": message})
            await self._send(connection, text)
            await connection.hang_up(CloseCode.INTERNAL_ERROR, f"{code} {number}")

    async def _drain(self, server: Server) -> None:
        """Take no more clients, let running requests finish, then close all connections."""
        self._draining = True
        server.close(close_connections=False)
        idle = [
            asyncio.ensure_future(c.close(CloseCode.GOING_AWAY, "the server stops"))
            for c in server.connections - self._busy
        ]
        try:
            async with asyncio.timeout(self.limits.drain):
                await server.wait_closed()
        except TimeoutError:
            _LOG.warning("%d clients had to be cut off", len(server.handlers))
            for connection in list(server.handlers):
                connection.transport.abort()
        finally:
            for task in idle:
                task.cancel()


class _Throttle:
    """Log so many lines a second and count the rest."""

    def __init__(self) -> None:
        self._second, self._lines, self._dropped = 0, 0, 0

    def say(self, line: str, error: Exception | None = None) -> None:
        now = int(time.monotonic())
        if now != self._second:
            if self._dropped:
                _LOG.warning("%d more such lines", self._dropped)
            self._second, self._lines, self._dropped = now, 0, 0
        self._lines += 1
        if self._lines > _LINES_A_SECOND:
            self._dropped += 1
        else:
            _LOG.warning("%s", line, exc_info=error)


def is_loopback(host: str) -> bool:
    """Return whether only this computer can connect to a host's address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked_key(key: str) -> bytes:
    if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
        raise ServeError(
            "an API key has at least 16 printable ASCII characters and no space; make one with "
            "`openssl rand -hex 16`"
        )
    return key.encode()


def _who(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client that has left"
