"""Images as an H.264 MP4 file, and back. Image k is shown from k/rate.

A camera's recording has no B-frames, and every second image is a key frame: any image is at most
one decode away from a place to seek to, and the order of decoding is that of time.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from penspin_style import storage

CODEC = "h264"
# 18 is where H.264 begins to look like its source; zerolatency hands over every packet at once,
# so the size of the file is known after every episode
RECORDING = {"crf": "18", "g": "2", "bf": "0", "preset": "medium", "tune": "zerolatency"}


def pixel_format(height: int, width: int) -> str:
    """Return how colours are stored: halved, which every player knows, if both sides are even."""
    return "yuv444p" if height % 2 or width % 2 else "yuv420p"


class VideoWriter:
    """Write images (height, width, 3) uint8 one after the other.

    rate: images per second.
    options: x264's; for what is only watched, larger gaps between key frames make smaller files.
    """

    def __init__(
        self,
        path: pathlib.Path,
        height: int,
        width: int,
        rate: Fraction,
        *,
        options: Mapping[str, str] = RECORDING,
    ) -> None:
        import av

        self.frames, self.size = 0, 0
        self._rate = rate
        self._file: Any = av.open(str(path), "w", options={"movflags": "faststart"})
        self._stream = self._file.add_stream("libx264", rate=rate, options=dict(options))
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = pixel_format(height, width)
        self._stream.codec_context.time_base = 1 / rate
        self._stream.codec_context.thread_count = 1

    def add(self, images: np.ndarray | Sequence[np.ndarray], *, cut: bool = False) -> None:
        """Append (n, height, width, 3) uint8; cut: the first becomes a key frame."""
        import av
        from av.video.frame import PictureType

        for k, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.frames, 1 / self._rate
            if cut and k == 0:
                frame.pict_type = PictureType.I
            self._mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Write what is pending and the index; the file is whole afterwards."""
        with self._file:
            self._mux(self._stream.encode(None))

    def drop(self) -> None:
        """Let go of a file that is not wanted any more, in whatever state; also after `close`."""
        with contextlib.suppress(OSError):  # of the disk that is why it is not wanted
            self._file.close()

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self.size += packet.size
            self._file.mux(packet)


class VideoError(ValueError):
    """A file is not the video that it should be."""


def read_video(
    path: pathlib.Path, shape: tuple[int, int, int], first: int, count: int, rate: Fraction
) -> np.ndarray:
    """Return images first, ..., first + count - 1 of a video, (count, *shape) uint8.

    shape: (height, width, 3) that the video must have.

    Raises:
        VideoError: not a video, of another size, or without an image at one of these times.
    """
    from av.video.reformatter import VideoReformatter

    images = np.empty((count, *shape), np.uint8)
    converter = VideoReformatter()  # one for all images: to set it up takes longer than to use it
    with _opened(path) as file:
        if not file.streams.video:
            raise VideoError(f"{path} has no video stream")
        stream = file.streams.video[0]
        if (stream.height, stream.width, 3) != shape:
            raise VideoError(
                f"{path} is {stream.width} x {stream.height} pixels, not {shape[1]} x {shape[0]}"
            )
        stream.codec_context.thread_count = 1
        start = Fraction(first) / rate
        file.seek(max(0, round(start / stream.time_base) - 1), stream=stream)
        k = 0
        for frame in file.decode(stream):
            if k == count:
                break
            if frame.pts is None or (frame.height, frame.width) != shape[:2]:
                raise VideoError(f"{path} has an image without a time, or of another size")
            away = frame.pts * stream.time_base - (start + k / rate)
            if away < -0.5 / rate:
                continue  # before what is asked for: from the key frame that was sought
            if away > 0.1 / rate:
                break
            images[k] = converter.reformat(frame, format="rgb24").to_ndarray()
            k += 1
    if k < count:
        raise VideoError(f"{path} has no image at {float(start + k / rate):.4f} s")
    return images


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    import av

    try:
        # a file and not its name, and as MP4: FFmpeg would take it for a playlist if it looks like
        # one, and open what that names
        with storage.open_file(path) as raw, av.open(raw, format="mp4") as file:
            yield file
    except (av.FFmpegError, EOFError, OSError) as error:
        raise VideoError(f"{path} is not a readable video ({error})") from error
