"""A video file in the place of a camera, at its own pace: for tests and dry runs."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

from real.cameras.camera import CameraError, Frame


class VideoFile:
    """A camera; see `real.cameras.camera.Camera`.

    rate: frames/s; None for the file's own. loop: begin again at the end.
    """

    vertical_view = None

    def __init__(
        self, path: str | pathlib.Path, *, rate: float | None = None, loop: bool = True
    ) -> None:
        self.path, self.rate, self.loop = pathlib.Path(path), rate, loop
        self._file: Any = None
        self._frames: Iterator[Any] = iter(())
        self._period = 0.0
        self._next = 0.0

    def open(self) -> None:
        """Open the file.

        Raises:
            CameraError: it is no video.
        """
        import av

        try:
            self._file = av.open(str(self.path))
        except (OSError, av.FFmpegError) as error:
            raise CameraError(f"{self.path} is not a video: {error}") from error
        if not self._file.streams.video:
            raise CameraError(f"{self.path} has no video stream")
        stream = self._file.streams.video[0]
        stream.codec_context.thread_count = 1
        rate = self.rate or stream.average_rate
        if not rate:
            raise CameraError(f"{self.path} does not say its rate: give one (rate)")
        self._period = float(1 / rate)
        self._next = time.monotonic()
        self._begin()

    def read(self) -> Frame:
        """Return the next frame when its time has come.

        Raises:
            CameraError: the file has ended, or is damaged.
        """
        found = self._decoded()
        if found is None and self.loop:
            self._begin()
            found = self._decoded()
        if found is None:
            raise CameraError(f"{self.path} has ended")
        rgb = found.to_ndarray(format="rgb24")
        time.sleep(max(0.0, self._next - time.monotonic()))
        stamp = time.monotonic()
        self._next = max(self._next, stamp - self._period) + self._period
        return Frame(rgb, stamp)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._file.seek(0)
        self._frames = self._file.decode(video=0)

    def _decoded(self) -> Any:
        import av

        try:
            return next(self._frames, None)
        except av.FFmpegError as error:
            raise CameraError(f"{self.path} is damaged: {error}") from error
