"""The robot's side of a served policy: answers in time, or an exception in time.

    with PolicyClient("ws://127.0.0.1:8000", timeout=0.04) as client:
        reply = client.infer({"joint_pos": ...})       # reply["actions"] (horizon, naction)

Every call ends by its deadline, whatever the server and the network do. An answer is returned only
for the request it belongs to: what arrives after its deadline is read and thrown away, never taken
for the answer to a later request. A lost connection is opened again by a thread of its own, so a
control loop with a deadline of milliseconds never waits for a handshake.

Needs numpy, msgpack and websockets. Any server that speaks OpenPI's protocol will do; one of ours
also proves by a number in its reply which request it answers.
"""

import contextlib
import json
import random
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from websockets.frames import CloseCode

from penspin_style.features import PolicyCard
from real import wire
from real.websocket import Address, ClosedError, Status, WebSocket

BACKOFF = (0.05, 0.5)
"""Seconds between attempts to connect: the first pause, and the longest."""
PATIENCE = 1.0
"""Seconds after which an unanswered request gives up the connection, not only itself."""
_POLL = 0.2
_HELD = 1.0
_TOLERANCE = 1.0 + 1e-6


class ClientError(Exception):
    """A request has no answer; the subclass says whose fault that is."""


class Unreachable(ClientError):  # noqa: N818
    """There is no connection, or it broke before the answer came."""


class Refused(ClientError):  # noqa: N818
    """The server does not let this client in, or serves another policy than when it began."""


class Timeout(ClientError):  # noqa: N818
    """No answer by the deadline."""


class PolicyError(ClientError):
    """The server answered with an error, or with something that is no action.

    code: `observation` or `message`, the request's fault; `policy`, the server's; `reply`, the
        server's answer makes no sense.
    number: under which the server's log has the details; empty if it gave none.
    """

    def __init__(self, code: str, number: str, message: str) -> None:
        super().__init__(f"{message} ({code}{' ' + number if number else ''})")
        self.code, self.number = code, number


class PolicyClient:
    """A connection to a policy server that is kept open; one request at a time.

    metadata: the server's hello. card: the policy's card, None if the server gave none.
    connections: how many were opened so far; a policy that remembers began anew with each.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 1.0,
        connect_timeout: float = 1.0,
        wait: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Connect and read the hello.

        url: `ws://host:port` or `wss://host:port`.
        timeout: s that a request may take, if it does not say.
        connect_timeout: s that one attempt to connect may take: name look-up, TLS and hello.
        wait: s to go on trying while nobody answers, if that is longer.
        tls: whom to trust with `wss`, if not the authorities that this computer knows.

        Raises:
            ValueError: the url is none.
            Unreachable, Refused: there is no server, or not for us.
        """
        began = time.monotonic()
        self.timeout, self.connect_timeout = _seconds(timeout), _seconds(connect_timeout)
        try:
            self._address = Address.parse(url, api_key, tls, self.connect_timeout)
        except OSError as error:
            raise Unreachable(f"{url}: the host is not known ({error})") from error
        self.card: PolicyCard | None = None
        self.metadata: dict[str, Any] = {}
        self.connections = 0
        self._socket: WebSocket | None = None
        self._late_since: float | None = None  # when the request went out that is still unanswered
        self._sha256: Any = None
        self._sequence = 0
        self._reset = False
        self._why: ClientError = Unreachable(f"not connected to {url}")
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._first(began, wait)
        self._keeper = threading.Thread(target=self._keep, name="policy-client", daemon=True)
        self._keeper.start()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now, as far as is known."""
        return self._socket is not None

    def infer(
        self, observation: Mapping[str, Any], *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Return the server's reply: `actions` (horizon, naction) float32, `server_timing`.

        observation: inputs or features of the card by name, numpy arrays of the types that
            `real.wire` sends.
        timeout: s, until the answer or an exception is there.

        Raises:
            WireError: the observation cannot be sent.
            Timeout: no answer in time; the connection stays, for a while.
            Unreachable: no connection in time, or it broke.
            Refused: the server does not let us in, or has another policy now.
            PolicyError: the server refused the observation, or its policy failed.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else _seconds(timeout))
        if not self._changed.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise Timeout("another request is still running")
        try:
            socket = self._connected(deadline)
            try:
                self._discard_late(socket, deadline)
                return self._ask(socket, observation, deadline)
            except TimeoutError:
                self._after_timeout()
                raise Timeout("no answer in time") from None
            except ClosedError as error:
                self._drop(Unreachable(f"the connection broke: {error}"))
                if error.code == CloseCode.MESSAGE_TOO_BIG:  # again would end like that again
                    raise PolicyError("message", "", f"the request is refused: {error}") from error
                raise self._why from error
        finally:
            self._changed.release()

    def reset(self) -> None:
        """Begin a new episode with the next request."""
        self._reset = True

    def close(self) -> None:
        """Hang up; again is no error."""
        with self._changed:
            self._closing.set()
            socket, self._socket = self._socket, None
            self._why = Unreachable("this client is closed")
            self._changed.notify_all()
        self._wake.set()
        if socket is not None:
            socket.close()
        self._keeper.join(timeout=self.connect_timeout + 1.0)

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # One request; the lock is held.

    def _ask(
        self, socket: WebSocket, observation: Mapping[str, Any], deadline: float
    ) -> dict[str, Any]:
        self._sequence += 1
        extra: dict[str, Any] = {wire.SEQUENCE: self._sequence, wire.RESET: self._reset}
        extra = {key: value for key, value in extra.items() if key in self._understood}
        frame = wire.pack({**observation, **extra})
        if time.monotonic() > deadline:
            raise TimeoutError
        if socket.waiting(deadline):
            # it would be taken for the answer to the next request, and every later one for another
            self._drop(Unreachable("the server answered more often than it was asked"))
            raise self._why
        self._late_since = time.monotonic()
        socket.send(frame, deadline)
        message = socket.receive(deadline)
        self._late_since = None
        if time.monotonic() > deadline:
            raise TimeoutError
        self._reset = False
        reply = self._reply(message, extra.get(wire.SEQUENCE))
        if time.monotonic() > deadline:  # it took long to read
            raise TimeoutError
        return reply

    def _discard_late(self, socket: WebSocket, deadline: float) -> None:
        """Read the answer to a request that was given up; what it says is too old."""
        if self._late_since is None:
            return
        message = socket.receive(deadline)
        self._late_since = None
        if isinstance(message, str):  # an error; the server closes the connection after it
            raise ClosedError("the server refused an earlier request")

    def _after_timeout(self) -> None:
        socket = self._socket
        if socket is None:
            return
        since = self._late_since
        silent = since is not None and time.monotonic() - since > PATIENCE
        if silent or not socket.in_step:
            self._drop(Unreachable("the server does not answer"))

    def _reply(self, message: bytes | str, sequence: int | None) -> dict[str, Any]:
        """Return what a message says, if it answers the request with this number."""
        try:
            if isinstance(message, str):
                raise _error(message)
            try:
                reply = wire.unpack(message)
            except wire.WireError as error:
                raise PolicyError("reply", "", f"the reply is not one: {error}") from error
            if sequence is not None and reply.pop(wire.SEQUENCE, None) != sequence:
                raise PolicyError("reply", "", "the reply belongs to another request")
            self._check(reply.get("actions"))
        except PolicyError:
            self._drop(Unreachable("the connection was given up after an error"))
            raise
        return reply

    def _check(self, actions: Any) -> None:
        """Refuse what no policy with this card says."""
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
            raise PolicyError("reply", "", "the reply has no actions (horizon, naction)")
        if self.card is None:
            fine = np.isfinite(actions)
        else:
            wanted = (self.metadata.get("horizon", 1), len(self.card.actions))
            if actions.shape != wanted:
                raise PolicyError("reply", "", f"actions are {actions.shape}, not {wanted}")
            fine = np.abs(actions) <= _TOLERANCE
        if not fine.all():
            raise PolicyError("reply", "", f"an action is {actions[~fine].flat[0]:g}")

    # The connection.

    def _connected(self, deadline: float) -> WebSocket:
        """Return the open connection, waiting for it if need be; the lock is held."""
        while self._socket is None:
            left = deadline - time.monotonic()
            if self._closing.is_set() or isinstance(self._why, Refused) or left <= 0:
                raise self._why
            self._changed.wait(left)
        return self._socket

    def _drop(self, why: ClientError) -> None:
        """Give up the connection; the keeper opens another."""
        socket, self._socket = self._socket, None
        self._late_since = None
        self._why = why
        if socket is not None:
            socket.abort()
        self._wake.set()

    def _first(self, began: float, wait: float) -> None:
        until = began + max(wait, self.connect_timeout)
        pause = BACKOFF[0]
        while True:
            deadline = min(until, time.monotonic() + self.connect_timeout)
            try:
                self._install(self._open(deadline))
                return
            except Unreachable:
                if time.monotonic() + pause > began + wait:
                    raise
            time.sleep(pause)
            pause = min(2.0 * pause, BACKOFF[1])

    def _open(self, deadline: float) -> tuple[WebSocket, dict[str, Any]]:
        """Return a new connection and its hello, by the deadline.

        Raises:
            Unreachable, Refused: see the class.
        """
        where = self._address.url
        socket = None
        try:
            socket = WebSocket(self._address, deadline)
            said = socket.receive(deadline)
            if isinstance(said, str):
                raise Refused(f"{where} says no: {said[:500]}")
            return socket, wire.unpack(said, wire.HELLO)
        except Status as error:
            if error.code in (401, 403):
                raise Refused(f"{where} does not let us in ({error}); check the API key") from error
            raise Unreachable(f"{where} is no policy server, or has no room: {error}") from error
        except wire.WireError as error:
            raise Refused(f"{where} does not speak our protocol: {error}") from error
        except TimeoutError as error:
            raise Unreachable(f"{where} does not answer in time") from error
        except (ClosedError, OSError) as error:
            raise Unreachable(f"{where}: {error}") from error
        finally:
            if socket is not None and not socket.opened:
                socket.abort()

    def _install(self, opened: tuple[WebSocket, dict[str, Any]]) -> None:
        """Take a new connection into use, if it leads to the same policy."""
        socket, said = opened
        try:
            card = _card(said)
            if self.connections and (card != self.card or said.get("sha256") != self._sha256):
                raise Refused("the server has another policy now; open a new client for it")
        except Refused:
            socket.abort()
            raise
        with self._changed:
            if self._closing.is_set():
                socket.abort()
                return
            self.metadata, self.card, self._sha256 = said, card, said.get("sha256")
            protocol = said.get("protocol")
            named = protocol.values() if isinstance(protocol, dict) else ()
            self._understood = {key for key in (wire.RESET, wire.SEQUENCE) if key in named}
            self._socket = socket
            self.connections += 1
            self._changed.notify_all()

    def _keep(self) -> None:
        """Open the connection again whenever it is lost; the thread's work."""
        pause, opened = 0.0, time.monotonic()
        while not self._closing.is_set():
            if self._socket is not None:
                self._wake.wait(_POLL)
                self._wake.clear()
                self._poll()
                continue
            # at once after a connection that held, slower and slower after those that do not;
            # robots that lost one server must not come back all at once
            pause = 0.0 if time.monotonic() - opened > _HELD else pause
            self._closing.wait(pause * random.uniform(0.8, 1.0))
            pause = min(2.0 * pause, BACKOFF[1]) or BACKOFF[0]
            try:
                self._install(self._open(time.monotonic() + self.connect_timeout))
                opened = time.monotonic()
            except ClientError as error:
                opened = float("inf")
                with self._changed:
                    if not self._closing.is_set():
                        self._why = error
                        self._changed.notify_all()

    def _poll(self) -> None:
        """Answer pings, and notice a server that has hung up, while nobody asks."""
        if not self._changed.acquire(blocking=False):
            return  # a request is running, which does both
        try:
            if self._socket is not None:
                self._socket.poll()
        except ClosedError as error:
            self._drop(Unreachable(f"the connection broke: {error}"))
        finally:
            self._changed.release()


def _seconds(value: float) -> float:
    if not 0.0 < value <= 3600.0:
        raise ValueError(f"a timeout is above 0 and at most 3600 s, got {value}")
    return value


def _card(said: Mapping[str, Any]) -> PolicyCard | None:
    if "card" not in said:
        return None
    try:
        return PolicyCard.from_json(json.dumps(said["card"]))
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(f"the server's policy card is not usable: {error}") from error


def _error(text: str) -> PolicyError:
    """Return the error that a text frame tells; OpenPI's own servers send a traceback."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        said = json.loads(text)
        return PolicyError(str(said["error"]), str(said["id"]), str(said["message"])[:500])
    return PolicyError("policy", "", text.strip()[-500:] or "the server gave no reason")
