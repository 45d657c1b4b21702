"""RealSense cameras: colour, and depth in metres aligned to its pixels.

`pyrealsense2` is imported by `open`, not before. pip install 'penspin_style[realsense]'
"""

import importlib
import math
import time
from typing import Any

import numpy as np

from real.cameras.camera import CameraError, Frame

_PATIENCE = 1000  # ms that the next frames may take


class RealSense:
    """A camera; see `real.cameras.camera.Camera`.

    serial: which one; empty for the only one. size: (width, height) of colour and depth. depth:
    whether it is wanted: aligning it costs time.
    """

    def __init__(
        self,
        serial: str = "",
        *,
        size: tuple[int, int] = (640, 480),
        rate: float = 30,
        depth: bool = True,
    ) -> None:
        self.serial, self.size, self.rate, self.depth = serial, size, round(rate), depth
        self.vertical_view: float | None = None
        self._pipeline: Any = None
        self._align: Any = None
        self._scale = 0.0  # m for a step of depth

    def open(self) -> None:
        """Start the streams, and read the lens and the scale of depth.

        Raises:
            CameraError: there is no such camera, or pyrealsense2 is not installed.
        """
        try:
            rs = importlib.import_module("pyrealsense2")
        except ImportError as error:
            raise CameraError(
                f"kind realsense needs pyrealsense2 ({error}): pip install "
                "'penspin_style[realsense]'"
            ) from error
        config, pipeline = rs.config(), rs.pipeline()
        if self.serial:
            config.enable_device(self.serial)
        config.enable_stream(rs.stream.color, *self.size, rs.format.rgb8, self.rate)
        if self.depth:
            config.enable_stream(rs.stream.depth, *self.size, rs.format.z16, self.rate)
            self._align = rs.align(rs.stream.color)
        try:
            profile = pipeline.start(config)
            self._pipeline = pipeline
            lens = profile.get_stream(rs.stream.color).as_video_stream_profile().get_intrinsics()
            if self.depth:
                self._scale = profile.get_device().first_depth_sensor().get_depth_scale()
        except RuntimeError as error:
            which = self.serial or "(any)"
            raise CameraError(
                f"no RealSense {which} with {self.size[0]} x {self.size[1]} at {self.rate} "
                f"frames/s: {error}"
            ) from error
        self.vertical_view = math.degrees(2 * math.atan(lens.height / (2 * lens.fy)))

    def read(self) -> Frame:
        """Return the next frame.

        Raises:
            CameraError: none comes.
        """
        try:
            frames = self._pipeline.wait_for_frames(_PATIENCE)
            stamp = time.monotonic()
            frames = self._align.process(frames) if self.depth else frames
        except RuntimeError as error:
            raise CameraError(f"the RealSense gives no more frames: {error}") from error
        color, depth = frames.get_color_frame(), frames.get_depth_frame() if self.depth else None
        if not color or (self.depth and not depth):
            raise CameraError("the RealSense gave frames without colour, or without depth")
        # copies: the device fills this memory again
        rgb = np.array(np.asanyarray(color.get_data()), np.uint8)
        if depth is None:
            return Frame(rgb, stamp)
        metres = np.asanyarray(depth.get_data()).astype(np.float32) * np.float32(self._scale)
        return Frame(rgb, stamp, metres)

    def close(self) -> None:
        """Stop the streams."""
        if self._pipeline is not None:
            self._pipeline.stop()
            self._pipeline = None
