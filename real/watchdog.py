"""A thread that keeps a robot safe when no fresh action comes: it holds it, then stops it.

The thread itself only keeps the time. Each call of the robot is made in a thread of its own, so
that one that hangs delays none that follows.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from typing import Protocol, runtime_checkable

from real.robot import Robot, RobotError

_LOG = logging.getLogger(__name__)
_RETRY = (0.1, 1.0)
"""Seconds from a stop that failed to the next: at first, twice as many each time, and at most."""
_SLOW, _HANGS = 0.3, 1.0
"""Seconds after which one that has not returned is sent again, and is said to hang: a robot may
take as long to brake."""
_HANGING = 4
"""Stops that may hang at one time; while so many do, no further one is begun."""
_SETTLE = 1.0
"""Seconds that `close` gives a stop to return."""


@runtime_checkable
class _Explains(Protocol):
    """A robot that is told why it is stopped, as `SafeRobot`."""

    reason: str

    @property
    def stopping(self) -> bool: ...

    def stop(self, reason: str) -> None: ...


class Watchdog:
    """Holds a robot for which no fresh action comes, and stops it in the end.

    It sleeps until the first `feed`, and after `rest`. A stop is sent again until it is confirmed;
    what fails is logged, noted in `events`, and raised by the next `feed` or `close`. Times are of
    `time.monotonic`.
    """

    def __init__(self, robot: Robot, *, hold: float = 0.1, stop: float = 0.5) -> None:
        """Prepare; `with` it, or `start` and `close` it.

        hold, stop: s after the last fresh action by which the robot holds, or is stopped. The
            thread acts a fifth of `hold` sooner, so that it does not come late on a busy computer.
        """
        if not 0 < hold < stop:
            raise ValueError(f"hold must be positive and below stop, got {hold} and {stop}")
        self.robot, self.early = robot, 0.2 * hold
        if robot.control_dt > hold - self.early + 1e-9:
            raise ValueError(
                f"hold, {hold} s, must be clearly longer than a control step, {robot.control_dt} s"
            )
        self.hold_after, self.stop_after = hold, stop
        self.events: list[tuple[float, str]] = []
        """(seconds, what) in order: `hold` or `stop` when the robot has confirmed it; `hold
        failed`, `stop failed`, and `stop hangs` for one that does not return."""
        self._explains: _Explains | None = robot if isinstance(robot, _Explains) else None
        self._fed: float | None = None
        self._held = self._stopping = self._stopped = self._closed = False
        self._since = self._again = 0.0  # when the robot was to stop, and when to say so again
        self._pause = _RETRY[0]
        self._alarm = 0  # which stop that is; a call of an earlier one says nothing of this one
        self._under_way: Counter[str] = Counter()  # calls that have not returned
        self._error: Exception | None = None
        self._reporter: threading.Thread | None = None
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def feed(self) -> None:
        """Say that a fresh action has just been sent. It does not take back a stop under way.

        Raises:
            RobotError: the thread does not run; or the robot could not be held, or not be stopped
                at the first try. Whether it is stopped now, the message says.
        """
        with self._wake:
            self._raise()
            if not self._thread.is_alive():
                raise RobotError("the watchdog does not run: start() it before the first action")
            self._fed = time.monotonic()
            if not self._stopping:
                self._held = self._stopped = False
            self._wake.notify_all()

    def rest(self) -> None:
        """Expect no action until the next `feed`. A robot that may still move is stopped first."""
        with self._wake:
            self._fed = None
            if self._explains is not None and self._explains.stopping:
                self._begin_stop()
            self._wake.notify_all()

    def close(self) -> None:
        """End the thread. The robot is left as it is.

        Raises:
            RobotError: as `feed`.
        """
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join()
        with self._wake:
            self._wake.wait_for(lambda: not self._under_way["stop"], _SETTLE)
            self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is None and self._closed and self._stopping:
            error = TimeoutError("the stop has not returned")
        if error is not None:
            now = "; it MAY STILL MOVE, use its emergency stop" if self._stopping else ""
            raise RobotError(f"the watchdog could not make the robot safe: {error}{now}") from error

    # In the thread.

    def _run(self) -> None:
        while True:
            try:
                with self._wake:
                    if not self._closed:
                        self._wake.wait(self._patience())
                    if self._closed:
                        return
                    act = self._due()
                if act is not None:
                    self._begin(act)
            except Exception as error:  # of our own, and perhaps again: the robot is stopped here
                self._fail("watchdog", error)
                if not self._stopped and self._under_way["stop"] < _HANGING:
                    self._begin("stop")
                time.sleep(_RETRY[1] if self._stopped else _RETRY[0])

    def _patience(self) -> float | None:
        """Return for how long there is nothing to do, s; None for ever."""
        now = time.monotonic()
        if self._stopping:
            return max(0.0, self._again - now)
        if self._fed is None or self._stopped:
            return None
        late = now - self._fed
        if not self._held:
            return max(0.0, self.hold_after - self.early - late)
        # a robot that holds may still have to brake, step by step
        return max(0.0, min(self.stop_after - self.early - late, self.robot.control_dt))

    def _due(self) -> str | None:
        now = time.monotonic()
        if self._stopping:
            return self._next_stop(now)
        if self._fed is None or self._stopped:
            return None
        late = now - self._fed
        if late >= self.stop_after - self.early:
            self._begin_stop()
            return self._next_stop(now)
        if late >= self.hold_after - self.early:
            first, self._held = not self._held, True
            if not first and self._under_way["hold"] + self._under_way["brake"]:
                return None
            return "hold" if first else "brake"
        return None

    def _begin_stop(self) -> None:
        if not self._stopping:
            self._stopping, self._alarm = True, self._alarm + 1
            self._since = self._again = time.monotonic()
            self._pause = _RETRY[0]

    def _next_stop(self, now: float) -> str | None:
        """Return whether to stop now: at first, and whenever a try was not confirmed in time."""
        if now < self._again:
            return None
        hanging = self._under_way["stop"]
        self._again = now + (_SLOW if hanging < _HANGING else _RETRY[1])
        if hanging and now - self._since >= _HANGS:
            error = TimeoutError(f"{hanging} stops have not returned for {now - self._since:.1f} s")
            self._note_failure("stop hangs", error)
        return "stop" if hanging < _HANGING else None

    def _begin(self, what: str) -> None:
        with self._wake:
            self._under_way[what] += 1
            alarm = self._alarm
        name = f"watchdog-{what}"
        thread = threading.Thread(target=self._act, args=(what, alarm), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # this computer has no more threads to give
            self._act(what, alarm)

    # In a thread for each call of the robot.

    def _act(self, what: str, alarm: int) -> None:
        try:
            self._stop() if what == "stop" else self.robot.hold()
        except Exception as error:
            self._fail(what, error)
        else:
            self._succeed(what, alarm)
        with self._wake:
            self._under_way[what] -= 1
            self._wake.notify_all()

    def _stop(self) -> None:
        if self._explains is not None:
            self._explains.stop(f"no fresh action for {self.stop_after:g} s")
        else:
            self.robot.stop()

    def _succeed(self, what: str, alarm: int) -> None:
        with self._wake:
            if what == "stop":
                if not self._stopping or alarm != self._alarm:
                    return
                self._stopping, self._stopped = False, True
            if what != "brake":
                self.events.append((time.monotonic(), what))

    def _fail(self, what: str, error: Exception) -> None:
        """Note that the robot is not safe, and go on to stop it."""
        with self._wake:
            self._note_failure(f"{what} failed", error)
            if what == "stop":
                self._again = time.monotonic() + self._pause
                self._pause = min(2.0 * self._pause, _RETRY[1])
            elif not self._stopped:
                self._begin_stop()
            self._wake.notify_all()

    def _note_failure(self, what: str, error: Exception) -> None:
        self.events.append((time.monotonic(), what))
        self._error = error
        if self._reporter is not None and self._reporter.is_alive():
            return
        # in a thread too: a terminal may be held, and a log's disk may hang
        said = ("watchdog: %s: %s", what, error)
        self._reporter = threading.Thread(
            target=_LOG.critical, args=said, name="watchdog-log", daemon=True
        )
        with contextlib.suppress(RuntimeError):  # no thread to be had; it is raised all the same
            self._reporter.start()
