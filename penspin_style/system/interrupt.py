"""What SIGINT, SIGTERM and SIGHUP do to a command: the one place that handles them.

SIGINT is Ctrl-C; SIGTERM comes from schedulers, `kill` and a shutdown; SIGHUP from a terminal that
is gone, as when an ssh connection is lost. All three mean the same:

- the first asks. A loop that looks at `Stop.number` ends by itself and saves (`asking`); anything
  else is left by `Interrupted`, so that what must be left safe is (`raising`), at points of its
  own choice where that matters (`holding`);
- a second SIGINT or SIGTERM ends the process at once, within `grace` seconds not yet;
- SIGHUP is never the second: a lost terminal sends it several times, from the kernel, the shell and
  the session's end. Under nohup, which ignores it, it stays ignored.

A terminal or pipe that is gone is replaced by nothing, since writing to it would raise.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal has asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Stop:
    """The handler of all three signals; it prints a text at the first."""

    def __init__(self, text: str = "", grace: float = 0.0) -> None:
        self.text, self.grace = text, grace
        self.number = 0
        """The first signal that came, 0 for none."""
        self._pressed: float | None = None  # when the first SIGINT or SIGTERM came

    def is_set(self) -> bool:
        """Return whether a signal has come."""
        return self.number != 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        silence_lost()
        if number != signal.SIGHUP:
            now = time.monotonic()
            if self._pressed is not None and now - self._pressed >= self.grace:
                os._exit(128 + number)
            self._pressed = now if self._pressed is None else self._pressed
        if not self.number:
            self.number = number
            self._first()

    def _first(self) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"signal {int(self.number)}: {self.text}\n".encode())


class _Raise(Stop):
    held = 0  # blocks of `holding` that we are in
    pending = False

    def _first(self) -> None:
        self.pending = True
        if not self.held:
            self.check()

    def check(self) -> None:
        """Raise what was held back."""
        if self.pending:
            self.pending = False
            raise Interrupted(self.number)


@contextlib.contextmanager
def asking(text: str, grace: float = 0.0) -> Iterator[Stop]:
    """Let the first signal print a text and set `Stop.number`, nothing more, while in the block.

    grace: seconds after the first in which another does not end the process.
    """
    with _installed(Stop(text, grace)) as stop:
        yield stop


@contextlib.contextmanager
def raising(grace: float = 0.0) -> Iterator[None]:
    """Let the first signal raise `Interrupted` in the main thread while in the block.

    grace: seconds after the first in which another does not end the process, for what must be left
        safe. Where the block is within another such block, that is all it changes.
    """
    outer = signal.getsignal(signal.SIGTERM)
    if not isinstance(outer, _Raise):
        with _installed(_Raise(grace=grace)):
            yield
        return
    before, outer.grace = outer.grace, max(outer.grace, grace)
    try:
        yield
    finally:
        outer.grace = before


@contextlib.contextmanager
def holding() -> Iterator[Callable[[], None]]:
    """Let a signal of `raising` raise only where the block calls what it is given, or at its end.

    For code that shares locks with threads: an exception between two instructions may leave a
    `threading.Condition` locked for good, and a watchdog with it.
    """
    stop = signal.getsignal(signal.SIGTERM)
    if not isinstance(stop, _Raise) or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    stop.held += 1
    try:
        yield stop.check
    finally:
        stop.held -= 1
        if not stop.held:
            stop.check()


@contextlib.contextmanager
def _installed(stop: Stop) -> Iterator[Stop]:
    if threading.current_thread() is not threading.main_thread():  # no signal arrives there
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in handled()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handled() -> list[signal.Signals]:
    """Return the signals to handle: all three, but SIGHUP where nohup has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if number != signal.SIGHUP or not ignored]


def silence_lost() -> bool:
    """Replace standard output and error by nothing where what they led to is gone.

    Return whether one was.
    """
    lost = False
    for fd in (1, 2):
        poll = select.poll()
        poll.register(fd, 0)  # errors and hang-ups are reported unasked
        if poll.poll(0):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, fd)
            os.close(null)
            lost = True
    return lost


_exit_code: int | None = None


def leave_soon(code: int) -> None:
    """Let the process end without taking modules and engines down, which takes seconds.

    What others have registered with `atexit` still runs.
    """
    global _exit_code
    _exit_code = code


@atexit.register  # at import, so that it runs after what others register later
def _leave() -> None:
    if _exit_code is not None:
        flush()
        os._exit(_exit_code)


def flush() -> None:
    """Write out what is buffered; where that is impossible, forget it, or the exit would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            silence_lost()
