"""Values that a policy needs and the robot does not measure itself: a camera's, a tracker's.

A driver takes any number of them and hands them on under their names, beside its own. Each is read
in a thread of its own, so that one that hangs delays neither the robot nor the others: its last
value is used while it is young enough (`External.max_age`), and after that observing the robot is
an error that names it.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from penspin_style.features import Feature
from real.robot import RobotError

_WAIT = 0.02
"""Seconds that an observation waits for a newer value while the last is young enough."""
_FIRST = 5.0
"""Seconds that a sensor has to give its first value."""


@dataclass(frozen=True)
class External:
    """One value from beside the robot."""

    feature: Feature
    """Name, shape, unit and type, as in the policy's card; without history."""
    read: Callable[[], np.ndarray]
    """Returns the newest value. Called once per observation, always from the same thread, which is
    not the one that observes."""
    max_age: float = 0.2
    """Seconds after which a value is too old to be used, and that it may take to give a new one."""


def named(own: Iterable[Feature], sensors: Iterable[External]) -> dict[str, Feature]:
    """Return the features of a robot and of its sensors by name.

    Raises:
        RobotError: two have one name.
    """
    found: dict[str, Feature] = {}
    for feature in (*own, *(sensor.feature for sensor in sensors)):
        if feature.name in found:
            raise RobotError(f"two sources of the feature {feature.name!r}; take one away")
        found[feature.name] = feature
    return found


class Readers:
    """The sensors of a connected robot, each with its thread."""

    def __init__(self, sensors: Iterable[External]) -> None:
        """Describe them; `start` begins to read."""
        self.sensors = tuple(sensors)
        self._readers: tuple[_Reader, ...] = ()

    def start(self) -> None:
        """Begin, and wait for a first value of each.

        Raises:
            RobotError: none comes, or it is not what was said.
        """
        self.close()
        self._readers = tuple(_Reader(sensor) for sensor in self.sensors)
        try:
            self._values(_FIRST)
        except RobotError:
            self.close()
            raise

    def read(self) -> dict[str, np.ndarray]:
        """Return the newest values by name, as copies.

        A moment is waited for values that are newer than the last, and where that is too old, as
        after a pause, up to `max_age`.

        Raises:
            RobotError: a value is too old, of another shape than was said, or not finite; or its
                sensor failed.
        """
        return self._values(_WAIT)

    def close(self) -> None:
        """End the threads; one that hangs is left behind, and ends when it comes back."""
        for reader in self._readers:
            reader.close()
        self._readers = ()

    def _values(self, wait: float) -> dict[str, np.ndarray]:
        until = time.monotonic() + wait
        for reader in self._readers:
            reader.ask()
        return {r.sensor.feature.name: r.answer(until) for r in self._readers}


class _Reader:
    """A thread that reads one sensor whenever it is asked."""

    def __init__(self, sensor: External) -> None:
        self.sensor = sensor
        self._changed = threading.Condition()
        self._is_asked = self._is_over = False
        self._asked_at = 0.0
        self._value: np.ndarray | None = None
        self._came = time.monotonic()
        self._error: Exception | None = None
        name = f"sensor-{sensor.feature.name}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def ask(self) -> None:
        """Have the sensor read, unless that is under way."""
        with self._changed:
            if not self._is_asked:
                self._is_asked, self._asked_at = True, time.monotonic()
            self._changed.notify_all()

    def answer(self, until: float) -> np.ndarray:
        """Return its newest value, waiting until a time, s, monotonic; see `Readers.read`."""
        name, limit = self.sensor.feature.name, self.sensor.max_age
        with self._changed:
            self._wait(until)
            if self._value is not None and time.monotonic() - self._came > limit:
                self._wait(self._asked_at + limit)
            error, value, age = self._error, self._value, time.monotonic() - self._came
        if isinstance(error, RobotError):
            raise error
        if error is not None:
            raise RobotError(f"sensor {name!r} failed: {error!r}") from error
        if value is None:
            raise RobotError(f"sensor {name!r} has given nothing for {age:.2f} s")
        if age > limit:
            raise RobotError(
                f"sensor {name!r} hangs: its last value is {age:.2f} s old, the limit is {limit:g} "
                "s (External.max_age)"
            )
        return value.copy()

    def _wait(self, until: float) -> None:
        left = max(0.0, until - time.monotonic())
        self._changed.wait_for(lambda: not self._is_asked, left)

    def close(self) -> None:
        """End the thread as soon as it comes back."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_asked or self._is_over)
                if self._is_over:
                    return
            error = value = None
            try:
                value = _checked(self.sensor)
            except Exception as failure:  # of a stranger's program; goes to who observes
                error = failure
            with self._changed:
                self._error = error
                if value is not None:
                    self._value, self._came = value, time.monotonic()
                self._is_asked = False
                self._changed.notify_all()


def _checked(sensor: External) -> np.ndarray:
    """Read a sensor; return its value as a copy.

    Raises:
        RobotError: another shape than was said, or not finite.
    """
    feature = sensor.feature
    value = np.array(sensor.read(), feature.dtype)
    if value.shape != feature.shape:
        raise RobotError(
            f"sensor {feature.name!r} must give {feature.shape}, it gave {value.shape}"
        )
    if not np.isfinite(value).all():
        raise RobotError(f"sensor {feature.name!r} gave a number that is not finite")
    return value
