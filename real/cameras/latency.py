"""How long light takes to become a frame: switch something, and see when the frames change.

The delay is from the command to the arrival of the first frame that shows it: the way to the lamp
or screen, exposure, read-out and transfer. It cannot be told more finely than the frames come.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from real.cameras.camera import CameraError, Frame

SETTLE = 0.5
"""Seconds after a switch until the frames are taken to be steady, at first."""
_LEVELS = 8
"""Frames that each level is the mean of."""
_CLEAR = 8.0
"""Least difference of the levels, of 255."""
_GOLDEN = 0.618034


@dataclass(frozen=True)
class Latency:
    """What was measured."""

    delays: tuple[float, ...]
    """s, one for each switch."""
    period: float
    """s between two frames, the median: what a delay is known to."""

    @property
    def median(self) -> float:
        """Return the median delay, s."""
        return float(np.median(self.delays))

    @property
    def worst(self) -> float:
        """Return the longest delay, s."""
        return max(self.delays)


def measure_latency(
    read: Callable[[float], Frame],
    switch: Callable[[bool], object],
    *,
    blinks: int = 10,
    patience: float = 2.0,
    settle: float = SETTLE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Latency:
    """Return the delays of so many switches on and as many off.

    read: from a stamp to the next frame that is newer, as `Newest.read`.
    switch: makes a light in the frame bright (True) or dark, at once.
    patience: seconds after which a switch counts as not seen. settle: seconds until the frames
        show a switch for certain, longer than any delay. clock, sleep: of the stamps.

    Raises:
        CameraError: the light cannot be told from the rest, or a switch was not seen.
    """
    stamps: list[float] = []

    def next_frame() -> np.ndarray:
        frame = read(stamps[-1] if stamps else float("-inf"))
        stamps.append(frame.stamp)
        return frame.rgb.mean(axis=2, dtype=np.float32)

    def level(is_on: bool) -> np.ndarray:
        switch(is_on)
        sleep(settle)
        next_frame()
        return np.mean([next_frame() for _ in range(_LEVELS)], axis=0)

    bright, dark = level(True), level(False)
    change = bright - dark
    if change.max() < _CLEAR:
        raise CameraError(
            f"the light changes no pixel by {_CLEAR:g} of 255: point the camera at it, darken the "
            "room, and turn off automatic exposure"
        )
    lit = change > change.max() / 2
    middle = float(bright[lit].mean() + dark[lit].mean()) / 2
    delays = []
    for k in range(2 * blinks):
        # at another phase of the frames each time
        sleep((k * _GOLDEN % 1.0) * float(np.median(np.diff(stamps))))
        is_on = k % 2 == 0
        sent = clock()
        switch(is_on)
        while bool(next_frame()[lit].mean() > middle) != is_on or stamps[-1] <= sent:
            if stamps[-1] > sent + patience:
                raise CameraError(f"a switch was not seen within {patience:g} s")
        delays.append(stamps[-1] - sent)
    return Latency(tuple(delays), float(np.median(np.diff(stamps))))


def screen(stream: TextIO) -> Callable[[bool], None]:
    """Return a switch that makes a terminal white or black; its own delay is measured, too."""

    def switch(is_on: bool) -> None:
        stream.write(f"\x1b[48;5;{231 if is_on else 16}m\x1b[2J\x1b[H")
        stream.flush()

    return switch


def restore(stream: TextIO) -> None:
    """Give a terminal its own colours again."""
    stream.write("\x1b[0m\x1b[2J\x1b[H")
    stream.flush()
