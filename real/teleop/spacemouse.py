"""A 3Dconnexion SpaceMouse through hidapi: its cap, pushed and turned, moves six channels.

Reports begin with a number. 1 is the translation, x, y, z, and 2 the rotation about them, 16 bits
each, low byte first; newer models say all six in report 1. 3 is the buttons, one bit each. The
cap's x is to the right, y towards the hand, z down, and each goes up to about 350.
"""

import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from real.robot import RequestError, RobotError
from real.teleop.device import Axes, Key, Reading

AXES = (
    *("push forward", "push left", "lift"),
    *("tilt right", "tilt forward", "twist left"),
)
"""The axes of a frame with x forward, y left and z up, and the turns about them."""
DEVICES = {
    0x256F: frozenset(range(0x10000)),
    0x046D: frozenset((*range(0xC603, 0xC607), *range(0xC621, 0xC62C))),
}
"""Vendor -> products: all of 3Dconnexion's; of Logitech's, who had sold them before, those."""
_LEFT, _RIGHT = 1, 2
KEYS = {_LEFT: Key.SUCCESS, _RIGHT: Key.FAILURE, _LEFT | _RIGHT: Key.DISCARD}
"""Buttons that were held together, as bits -> what they mean once they are let go."""
_FULL = 350.0
_DEAD = 0.08
"""Share of an axis' way that is nothing."""
_CAP = (1, 8)
"""Usage page and usage of the interface that the cap speaks on, where a system says it."""
_ORDER = [1, 0, 2, 4, 3, 5]
"""Of x, y, z and the turns about them in the frame of `AXES`, where each has the other sign."""


class SpaceMouse:
    """The first one of this computer. What it says is taken in by a thread, as it comes."""

    by_hand = True

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.legend = axes.legend([f"[{name}]" for name in AXES])
        self.legend += "\nleft button success, right button failure, both discard; Ctrl-C quits"
        self.legend += ", a third button next line" if len(axes.groups) > 1 else ""
        self._device: Any = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._cap = np.zeros(6)
        self._down = self._held = 0  # buttons now, and since the first of them went down
        self._key: Key | None = None
        self._failed = ""

    def open(self) -> None:
        """Find and open it."""
        try:
            import hid  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise RequestError(
                f"--device spacemouse needs hidapi ({error}): pip install 'penspin_style[teleop]'"
            ) from error
        found = [d for d in hid.enumerate() if d["product_id"] in DEVICES.get(d["vendor_id"], ())]
        if not found:
            raise RobotError("--device spacemouse: no SpaceMouse is connected; lsusb lists devices")
        best = max(found, key=lambda d: (d.get("usage_page"), d.get("usage")) == _CAP)
        device = hid.device()
        try:
            device.open_path(best["path"])
        except OSError as error:
            raise RobotError(
                f"--device spacemouse: {best['product_string']} cannot be opened ({error}): let "
                "users read it by a rule of udev (docs/howto/demonstrations.md), and end spacenavd"
            ) from error
        self._device, self._failed = device, ""
        self._over.clear()
        self._thread = threading.Thread(target=self._listen, name="spacemouse", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Forget the buttons of the last episode, also one that is still held."""
        with self._lock:
            self._key, self._held = None, 0

    def read(self, last: np.ndarray) -> Reading:
        """Return how the cap is held.

        Raises:
            RobotError: it is gone.
        """
        with self._lock:
            cap, key, failed = self._cap.copy(), self._key, self._failed
        if failed:
            raise RobotError(f"the SpaceMouse is gone: {failed}")
        share = -cap[_ORDER] / _FULL
        live = np.sign(share) * np.maximum(0.0, np.abs(share) - _DEAD) / (1.0 - _DEAD)
        return Reading(self.axes.action(np.clip(live, -1.0, 1.0), last), key)

    def close(self) -> None:
        """Close it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None
        if self._device is not None:
            self._device.close()
            self._device = None

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                report = self._device.read(64, 50)
            except (OSError, ValueError) as error:  # it was pulled out
                with self._lock:
                    self._failed, self._cap = str(error), np.zeros(6)
                return
            if report:
                with self._lock:
                    self._take(report)

    def _take(self, report: Sequence[int]) -> None:
        """Take in a report; one that is too short says nothing."""
        number, data = report[0], bytes(report[1:])
        if number == 1 and len(data) >= 12:
            self._cap[:] = struct.unpack_from("<6h", data)
        elif number in (1, 2) and len(data) >= 6:
            first = 3 * (number - 1)
            self._cap[first : first + 3] = struct.unpack_from("<3h", data)
        elif number == 3 and data:
            self._press(int.from_bytes(data[:4], "little"))

    def _press(self, down: int) -> None:
        pressed = down & ~self._down
        self._down = down
        self._held |= pressed
        if pressed & ~(_LEFT | _RIGHT):
            self.axes.next_group()
        elif not down:
            self._key = KEYS.get(self._held, self._key)
        if not down:
            self._held = 0
