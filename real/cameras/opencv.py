"""Any camera that OpenCV opens: USB by its index, a network stream by its URL.

`cv2` is imported by `open`, not before. pip install 'penspin_style[cameras]'
"""

import importlib
import time
from typing import Any

import numpy as np

from real.cameras.camera import CameraError, Frame


class OpenCV:
    """A camera; see `real.cameras.camera.Camera`.

    device: index or URL. size: (width, height) asked of it. rate: frames/s asked of it; None for
    what it gives by itself.
    """

    vertical_view = None

    def __init__(
        self,
        device: int | str,
        *,
        size: tuple[int, int] | None = None,
        rate: float | None = None,
    ) -> None:
        self.device, self.size, self.rate = device, size, rate
        self._capture: Any = None

    def open(self) -> None:
        """Open the device; buffers of the driver are kept to one frame.

        Raises:
            CameraError: there is none, or OpenCV is not installed.
        """
        try:
            cv2 = importlib.import_module("cv2")
        except ImportError as error:
            raise CameraError(
                f"kind opencv needs OpenCV ({error}): pip install 'penspin_style[cameras]'"
            ) from error
        self._capture = cv2.VideoCapture(self.device)
        if not self._capture.isOpened():
            raise CameraError(
                f"OpenCV opens no camera {self.device!r}: see /dev/video*, and who else uses it"
            )
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if self.size is not None:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, self.size[0])
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self.size[1])
        if self.rate is not None:
            self._capture.set(cv2.CAP_PROP_FPS, self.rate)

    def read(self) -> Frame:
        """Return the next frame.

        Raises:
            CameraError: none comes, or it has another size than was asked for.
        """
        is_there = self._capture.grab()
        stamp = time.monotonic()
        bgr = self._capture.retrieve()[1] if is_there else None
        if bgr is None:
            raise CameraError(f"OpenCV gets no more frames of {self.device!r}")
        if self.size is not None and bgr.shape[1::-1] != self.size:
            raise CameraError(
                f"asked for {self.size[0]} x {self.size[1]}, it gives {bgr.shape[1]} x "
                f"{bgr.shape[0]}: set size to that, or to another one that it has"
            )
        return Frame(np.ascontiguousarray(bgr[..., ::-1]), stamp)

    def close(self) -> None:
        """Let go of the device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None
