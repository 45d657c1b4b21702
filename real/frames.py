"""What the other side of a websocket sends, counted by frames before anything is made of it.

Only the headers are read here (RFC 6455, section 5.2). So a packet of thousands of tiny frames is
cut short before the websocket library parses it, and a message is known from its first byte on.
"""

from collections import deque

_MAX_OPENING = 16 * 2**10
"""Bytes of the HTTP request or answer that opens a connection."""
_FRAGMENTS = 64
"""Of a message; one more for each KiB of it."""
_AHEAD = 64
"""Messages that nobody has taken yet."""
_CONTROLS, _CONTROLS_PER_SECOND = 64, 10.0
"""Pings, pongs and closes: how many at once, and for ever."""
_WELCOME = b"HTTP/1.1 101"
_END = b"\r\n\r\n"
_CONTROL, _FINAL = 0x08, 0x80
_LENGTHS = {126: 2, 127: 8}


class FrameCount:
    """One connection's bytes, from its HTTP request, or the answer to that, on.

    since: when what is not whole yet began (s, the caller's clock); None between messages.
    held: bytes of messages, whole or not, that were not `taken`.
    fault: why no more bytes are let through; empty while they are.
    over: whether a frame is too large. Its header is let through, as the library refuses it by
        that, and nothing after it.
    """

    def __init__(self, max_frame: int) -> None:
        self.since: float | None = None
        self.held = 0
        self.fault = ""
        self._max_frame = max_frame
        self._opening, self._first, self._tail = 0, b"", b""
        self._head = bytearray()
        self._left = 0  # bytes of the payload that are still to come
        self.over = self._open = False
        self._fragments = self._size = 0
        self._ahead: deque[int] = deque()
        self._controls, self._controls_at = 0.0, 0.0
        self._take = self._take_opening

    def feed(self, data: bytes, now: float) -> int:
        """Count bytes that have arrived; return how many of them may be let through."""
        at = 0
        while at < len(data) and not (self.fault or self.over):
            at = self._take(data, at, now)
        return at

    def taken(self) -> None:
        """Forget the oldest whole message: it is answered."""
        if self._ahead:
            self.held -= self._ahead.popleft()

    # Each reads from `at` on and returns how far it came.

    def _take_opening(self, data: bytes, at: int, now: float) -> int:
        seen = self._tail + data
        self._first = (self._first + data)[: len(_WELCOME)]
        found = seen.find(_END)
        if found >= 0:
            refused = self._first.startswith(b"HTTP") and self._first != _WELCOME
            self._take = self._take_all if refused else self._take_header
            return found + len(_END) - len(self._tail)
        self._opening += len(data)
        self._tail = seen[1 - len(_END) :]
        if self._opening > _MAX_OPENING:
            self.fault = f"the opening handshake has more than {_MAX_OPENING} bytes"
        return len(data)

    def _take_all(self, data: bytes, at: int, now: float) -> int:
        return len(data)

    def _take_header(self, data: bytes, at: int, now: float) -> int:
        if self.since is None:
            self.since = now
        while at < len(data) and len(self._head) < self._header_size():
            step = self._header_size() - len(self._head)
            self._head += data[at : at + step]
            at = min(at + step, len(data))
        if len(self._head) < self._header_size():
            return at
        width = _LENGTHS.get(self._head[1] & 0x7F, 0)
        size = int.from_bytes(self._head[2 : 2 + width], "big") if width else self._head[1] & 0x7F
        if size > self._max_frame:
            self.over = True
            return at
        self._left, self._take = size, self._take_payload
        if not self._head[0] & _CONTROL:
            self._size += size
        return self._take_payload(data, at, now)

    def _take_payload(self, data: bytes, at: int, now: float) -> int:
        step = min(self._left, len(data) - at)
        self._left -= step
        if not self._head[0] & _CONTROL:
            self.held += step
        if self._left == 0:
            self._frame_ends(now)
        return at + step

    def _header_size(self) -> int:
        if len(self._head) < 2:
            return 2
        mask = 4 if self._head[1] & 0x80 else 0
        return 2 + _LENGTHS.get(self._head[1] & 0x7F, 0) + mask

    def _frame_ends(self, now: float) -> None:
        first = self._head[0]
        self._head.clear()
        self._take = self._take_header
        if first & _CONTROL:
            self._control(now)
        else:
            self._fragment(last=bool(first & _FINAL))
        if not self._open:
            self.since = None

    def _control(self, now: float) -> None:
        gone = (now - self._controls_at) * _CONTROLS_PER_SECOND
        self._controls, self._controls_at = max(self._controls - gone, 0.0) + 1.0, now
        if self._controls > _CONTROLS:
            self.fault = f"more than {_CONTROLS} pings or pongs at once"

    def _fragment(self, *, last: bool) -> None:
        self._fragments += 1
        self._open = not last
        if self._fragments > _FRAGMENTS + self._size // 1024:
            self.fault = f"a message has more than {_FRAGMENTS} fragments, and one for each KiB"
        if last:
            self._ahead.append(self._size)
            self._fragments = self._size = 0
            if len(self._ahead) > _AHEAD:
                self.fault = f"more than {_AHEAD} messages that nobody has taken yet"
