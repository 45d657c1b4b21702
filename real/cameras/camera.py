"""The contract of a camera, and the thread that keeps its newest frame.

A camera is a class that opens, reads the next frame and closes, all from one thread; it may block
for as long as its device does. `Newest` gives it that thread, so that who reads never waits longer
than `max_age`, and never gets a frame that is older.
"""

import threading
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from real.robot import RobotError

MAX_AGE = 0.2
"""Seconds after which a frame is too old to be used, unless told otherwise."""
FIRST = 5.0
"""Seconds that a camera has to give its first frame."""
_LEAVING = 1.0
"""Seconds that closing waits for a device; one that hangs is left behind."""


class CameraError(RobotError):
    """A camera cannot do what is asked; the message says which, why and what helps."""


@dataclass(frozen=True)
class Frame:
    """What a camera saw at one time."""

    rgb: np.ndarray
    """(height, width, 3) uint8, top row first."""
    stamp: float
    """When this computer received it, s, `time.monotonic()`."""
    depth: np.ndarray | None = None
    """(height, width) float32, m along the optical axis, of the same pixels as `rgb`; 0 where
    nothing came back."""


class Camera(Protocol):
    """A device. One file in `real/cameras/` each; used from one thread."""

    @property
    def vertical_view(self) -> float | None:
        """Degrees between the frame's top and bottom edge; None if the device does not tell."""
        ...

    def open(self) -> None:
        """Begin to receive frames.

        Raises:
            CameraError: there is no such camera, or its package is not installed.
        """
        ...

    def read(self) -> Frame:
        """Return the next frame, waiting for it.

        Raises:
            CameraError: none comes any more.
        """
        ...

    def close(self) -> None:
        """Let go of the device; also of one that was never opened."""
        ...


class Newest:
    """The newest frame of a camera, which a thread of its own reads.

    name: of the camera in messages. max_age: seconds that a read may wait, and that a frame may be
    old.
    """

    def __init__(self, camera: Camera, name: str, *, max_age: float = MAX_AGE) -> None:
        self.camera, self.name, self.max_age = camera, name, max_age
        self.frames = 0
        """Received since it was opened."""
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    @property
    def vertical_view(self) -> float | None:
        """See `Camera.vertical_view`."""
        return self.camera.vertical_view

    def open(self) -> None:
        """Open the camera and wait for its first frame; again is no error.

        Raises:
            CameraError: it cannot be opened, or no frame comes within `FIRST` s.
        """
        if self._thread is not None and self._thread.is_alive():
            if not self._over.is_set():
                return
            raise CameraError(f"camera {self.name!r} still hangs in an earlier call: reconnect it")
        self._frame, self._error, self.frames = None, None, 0
        self._over = threading.Event()
        name = f"camera-{self.name}"
        self._thread = threading.Thread(target=self._run, args=(self._over,), name=name)
        self._thread.daemon = True
        self._thread.start()
        try:
            self._wait(float("-inf"), FIRST)
        except CameraError:
            self.close()
            raise

    def read(self, after: float = float("-inf")) -> Frame:
        """Return the newest frame; with `after`, wait for one with a later stamp.

        Raises:
            CameraError: none came within `max_age` that is younger than that; or the camera failed.
        """
        return self._wait(after, self.max_age)

    def close(self) -> None:
        """Let go of the camera; again is no error."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_LEAVING)

    def _wait(self, after: float, patience: float) -> Frame:
        def is_there() -> bool:
            frame = self._frame
            if frame is None or self._error is not None:
                return self._error is not None
            return frame.stamp > after and time.monotonic() - frame.stamp <= self.max_age

        asked = time.monotonic()
        with self._changed:
            is_new = self._changed.wait_for(is_there, patience)
            frame, error = self._frame, self._error
        if error is not None:
            raise CameraError(f"camera {self.name!r}: {error}") from error
        if self._thread is None or self._over.is_set():
            raise CameraError(f"camera {self.name!r} is not open")
        if frame is None:
            waited = time.monotonic() - asked
            raise CameraError(f"camera {self.name!r} has given no frame for {waited:.2f} s")
        if not is_new:
            raise CameraError(
                f"camera {self.name!r} hangs: its newest frame is "
                f"{time.monotonic() - frame.stamp:.2f} s old, the limit is {self.max_age:g} s "
                "(max_age)"
            )
        return frame

    def _run(self, over: threading.Event) -> None:
        error: Exception | None = None
        try:
            self.camera.open()
            while not over.is_set():
                frame = _checked(self.camera.read())
                with self._changed:
                    self._frame, self.frames = frame, self.frames + 1
                    self._changed.notify_all()
        except Exception as failure:  # of a stranger's device; goes to who reads
            error = failure
        try:
            self.camera.close()
        except Exception as failure:
            error = error or failure
        with self._changed:
            self._error = error
            self._changed.notify_all()


def _checked(frame: Frame) -> Frame:
    """Return a frame that is what the contract says.

    Raises:
        CameraError: it is not.
    """
    rgb, depth = frame.rgb, frame.depth
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise CameraError(
            f"a frame must be (height, width, 3) uint8, it is {rgb.shape} of {rgb.dtype}"
        )
    if depth is not None and (depth.dtype != np.float32 or depth.shape != rgb.shape[:2]):
        raise CameraError(
            f"depth must be {rgb.shape[:2]} float32, it is {depth.shape} of {depth.dtype}"
        )
    if depth is not None and not (np.isfinite(depth) & (depth >= 0.0)).all():
        raise CameraError("depth below 0 m, or not finite: 0 is where nothing came back")
    return frame
