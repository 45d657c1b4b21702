"""One websocket connection of a client, on which nothing lasts longer than its deadline.

The protocol is that of the `websockets` package, without its threads: bytes go out and come in only
inside the calls below, each of which has a deadline (s, monotonic).
"""

import contextlib
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, InvalidURI
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from real.serving.frames import FrameCount

MAX_MESSAGE = 8 * 2**20
_CHUNK = 2**16
_GLANCE = 0.01
"""s to look whether something has arrived."""


class ClosedError(Exception):
    """The connection is closed or broken; says by what.

    code: of the server's closing handshake; None without one.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class Status(Exception):  # noqa: N818
    """The server answers the handshake with an HTTP status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"HTTP status {code}: {text}" if text else f"HTTP status {code}")
        self.code = code


@dataclass(frozen=True)
class Address:
    """Where a server is, and what it wants to hear."""

    url: str
    uri: WebSocketURI
    resolved: tuple
    """What `socket.getaddrinfo` says; asked once, as nothing can stop it."""
    api_key: str | None
    tls: ssl.SSLContext | None

    @classmethod
    def parse(
        cls, url: str, api_key: str | None, tls: ssl.SSLContext | None, timeout: float
    ) -> "Address":
        """Read a url and look its host up.

        timeout: s for the look-up.

        Raises:
            ValueError: no ws:// or wss:// url, or a key that no header can hold.
            OSError: the host is not known, or not in time.
        """
        try:
            uri = parse_uri(url)
        except (InvalidURI, ValueError) as error:  # ValueError: of the port
            raise ValueError(
                f"{url!r} is not the url of a policy server, ws://HOST:PORT, port 1 to 65535"
            ) from error
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("an API key has only printable ASCII characters")
        if tls is not None and not uri.secure:
            raise ValueError(f"{url!r} is not encrypted, `tls` needs a wss:// url")
        if uri.secure and tls is None:
            tls = ssl.create_default_context()
        found = _look_up(uri.host, uri.port, timeout)
        # IPv4 first: servers listen there unless told otherwise
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        return cls(url, uri, tuple(found), api_key, tls)


class WebSocket:
    """An open connection.

    opened: whether the handshake is done and the connection not given up.
    in_step: whether what was sent so far are whole messages.
    """

    def __init__(self, address: Address, deadline: float) -> None:
        """Connect.

        Raises:
            Status: the server answers with an HTTP status instead.
            TimeoutError, ClosedError, OSError: it does not answer, or not as a websocket.
        """
        self.opened, self.in_step = False, True
        self._messages: list[bytes | str] = []
        self._parts: list[bytes] = []
        self._text = False
        self._protocol = ClientProtocol(address.uri, max_size=MAX_MESSAGE)
        self._frames = FrameCount(MAX_MESSAGE)
        self._socket = _connect(address, deadline)
        try:
            request = self._protocol.connect()
            if address.api_key is not None:
                request.headers["Authorization"] = f"Api-Key {address.api_key}"
            self._protocol.send_request(request)
            self._flush(deadline)
            while self._protocol.state is State.CONNECTING:
                self._fill(deadline)
                self._check_handshake()
            self.opened = True
        except BaseException:
            self.abort()
            raise

    def send(self, data: bytes, deadline: float) -> None:
        """Send one binary message.

        Raises:
            TimeoutError: not all of it went out; the connection is of no use any more.
            ClosedError: there is no connection.
        """
        self._check_open()
        self._protocol.send_binary(data)
        self._flush(deadline)

    def receive(self, deadline: float) -> bytes | str:
        """Return the next message; bytes if it is binary.

        Raises:
            TimeoutError: none came.
            ClosedError: none will come.
        """
        while not self._messages:
            self._check_open()
            self._fill(deadline)
        self._frames.taken()
        return self._messages.pop(0)

    def waiting(self, deadline: float) -> bool:
        """Return whether a message is there already; read no longer than needed to know.

        Raises:
            TimeoutError: what arrives has no end.
            ClosedError: no message, and no connection.
        """
        while not self._messages and self._protocol.state is State.OPEN and self._readable():
            self._fill(deadline)
        if not self._messages:
            self._check_open()
        return bool(self._messages)

    def poll(self) -> None:
        """Take in a little of what has arrived, without waiting, and answer pings.

        Raises:
            ClosedError: there is no connection any more.
        """
        with contextlib.suppress(TimeoutError):
            self.waiting(time.monotonic() + _GLANCE)
        if not self.in_step:
            raise ClosedError("the server does not read")

    def close(self) -> None:
        """Say goodbye, without waiting for an answer."""
        with contextlib.suppress(Exception):
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush(time.monotonic() + 0.1)
        self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self.opened = False
        self._socket.close()

    def _readable(self) -> bool:
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def _fill(self, deadline: float) -> None:
        """Wait for bytes and take them in."""
        self._socket.settimeout(_left(deadline))
        try:
            data = self._socket.recv(_CHUNK)
        except TimeoutError:
            raise
        except OSError as error:
            self._protocol.receive_eof()
            raise ClosedError(str(error)) from error
        if data:
            # of thousands of frames in a packet only so many are parsed and answered
            fine = self._frames.feed(data, time.monotonic())
            self._protocol.receive_data(data[:fine])
        else:
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._take(event)
        if self._frames.fault:
            raise ClosedError(f"the server floods this client: {self._frames.fault}")
        self._flush(deadline)

    def _check_open(self) -> None:
        if self._protocol.state is not State.OPEN:
            received = self._protocol.close_rcvd
            raise ClosedError(self._reason(), None if received is None else int(received.code))

    def _take(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
        self._parts.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._parts)
            self._parts = []
            self._messages.append(whole.decode("utf-8", "replace") if self._text else whole)

    def _flush(self, deadline: float) -> None:
        """Send what the protocol has to say."""
        for data in self._protocol.data_to_send():
            if not data:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
                continue
            view = memoryview(data)
            self.in_step = False
            try:
                while view:
                    self._socket.settimeout(_left(deadline))
                    view = view[self._socket.send(view) :]
            except TimeoutError:
                raise
            except OSError as error:
                raise ClosedError(str(error)) from error
            self.in_step = True

    def _check_handshake(self) -> None:
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            body = bytes(error.response.body or b"").decode("utf-8", "replace").strip()
            raise Status(error.response.status_code, body[:200])
        if error is not None:
            raise ClosedError(f"no websocket answers: {error}")

    def _reason(self) -> str:
        received = self._protocol.close_rcvd
        if received is not None:
            return f"the server hung up with {received.code} {received.reason}".rstrip()
        sent = self._protocol.close_sent
        return f"{sent.reason or sent.code}" if sent is not None else "the server is gone"


def _look_up(host: str, port: int, timeout: float) -> list[tuple]:
    """Return what `socket.getaddrinfo` says, if it does so in time."""
    said: list[list[tuple] | Exception] = []

    def ask() -> None:
        try:
            said.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError, OverflowError) as error:  # a name or port that is none
            said.append(error)

    thread = threading.Thread(target=ask, name="look-up", daemon=True)
    thread.start()
    thread.join(timeout)
    if not said:
        raise TimeoutError(f"no answer within {timeout:g} s")
    if isinstance(said[0], Exception):
        raise said[0]
    return said[0]


def _connect(address: Address, deadline: float) -> socket.socket:
    error: OSError = TimeoutError()
    for family, kind, protocol, _, where in address.resolved:
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(_left(deadline))
            made.connect(where)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls is None:
                return made
            made.settimeout(_left(deadline))
            return address.tls.wrap_socket(made, server_hostname=address.uri.host)
        except OSError as caught:
            made.close()
            error = caught
    raise error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
