"""What moves a robot by hand: the contract of devices, and targets from one for the control loop.

A device answers in every control step with an action in [-1, 1] and the key that was pressed since
the last. Its targets take the way of a policy's: the same decoder, limits, watchdog and recorder.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from penspin_style.deploy.actions import Decoder
from real.control.loop import Command
from real.control.safety import SafeRobot
from real.control.success import Label
from real.robot import Observation


class Key(Enum):
    """A key that ends an episode."""

    SUCCESS = "success"
    FAILURE = "failure"
    DISCARD = "discard"
    QUIT = "quit"
    """Discard, and record no more."""


_LABELS = {Key.SUCCESS: Label.SUCCESS, Key.FAILURE: Label.FAILURE}


@dataclass(frozen=True)
class Reading:
    """What a device says in a control step."""

    action: np.ndarray
    """(naction,) in [-1, 1]."""
    key: Key | None = None


class Device(Protocol):
    """One file in this folder each."""

    legend: str
    """For people, what moves what; empty for what nobody holds."""
    by_hand: bool
    """Whether somebody holds it: time must then pass by itself."""

    def open(self) -> None:
        """Begin to listen.

        Raises:
            RobotError: there is no such device here, or a package is missing.
        """
        ...

    def begin(self) -> None:
        """Forget what was pressed before the episode."""
        ...

    def read(self, last: np.ndarray) -> Reading:
        """Return what is held now. last: (naction,) the target that the robot follows."""
        ...

    def close(self) -> None:
        """Listen no more; again is no error."""
        ...


class DeviceSource:
    """Targets of a device, see `real.control.loop.TargetSource`."""

    def __init__(self, device: Device, decoder: Decoder) -> None:
        self.device, self.decoder = device, decoder
        self.key: Key | None = None

    @property
    def ended(self) -> bool:
        """Whether a key has ended the episode."""
        return self.key is not None

    @property
    def label(self) -> Label | None:
        """What the key says of the episode; None without one."""
        return None if self.key is None else _LABELS.get(self.key, Label.DISCARD)

    def check(self, robot: SafeRobot) -> None:
        """Do nothing: a device is made for its robot."""

    def begin(self) -> None:
        """Begin an episode."""
        self.key = None
        self.device.begin()

    def next(self, observation: Observation, last: np.ndarray, deadline: float) -> Command:
        """Return what is asked for now."""
        reading = self.device.read(last)
        self.key = reading.key
        action = np.clip(reading.action, -1.0, 1.0).astype(np.float32)
        return Command(self.decoder.decode(action, last), action)

    def counts(self) -> dict[str, int]:
        """Return nothing: a device always answers."""
        return {}


class Axes:
    """From what is held, a speed in [-1, 1] for each of a few channels, to actions.

    `delta` channels move while an axis is held, and so do `absolute` ones: at full speed through
    their whole range in 2 s. There may be more channels than axes: one group is held at a time.
    """

    def __init__(self, decoder: Decoder, control_dt: float, count: int, speed: float) -> None:
        """Take the channels in groups of `count`.

        speed: share of a full action that a held axis asks for.
        """
        self.decoder, self.count = decoder, count
        self.names = [c.name for c in decoder.channels]
        absolute = np.array([c.mode == "absolute" for c in decoder.channels])
        self._gain = speed * np.where(absolute, control_dt, 1.0)
        self.group = 0

    @property
    def groups(self) -> list[list[str]]:
        """Return the names of the channels of each group."""
        return [self.names[i : i + self.count] for i in range(0, len(self.names), self.count)]

    def next_group(self) -> None:
        """Hold the next channels."""
        self.group = (self.group + 1) % len(self.groups)

    def action(self, held: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return (naction,) in [-1, 1]. held: (count,) in [-1, 1]."""
        speeds = np.zeros(len(self.names))
        first = self.group * self.count
        there = speeds[first : first + self.count]
        there[:] = held[: len(there)]
        return np.clip(self.decoder.encode(last, last) + self._gain * speeds, -1.0, 1.0)

    def legend(self, axes: list[str]) -> str:
        """Return which axis moves which channel, a line for each group."""
        lines = []
        for names in self.groups:
            pairs = zip(axes, names, strict=False)
            lines.append(", ".join(f"{axis} {name}" for axis, name in pairs))
        return "\n".join(lines)
