"""Doubles of cameras, and of the two packages that open real ones; a card that sees them."""

import dataclasses
import itertools
import threading
import time
import types

import numpy as np

from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from real.cameras.camera import Frame

VIEW = "RGB, top row first; crop to 8:8 and 40 degrees of vertical view; average down to 8 x 8"
RGB = Feature("front_rgb", (8, 8, 3), "1", "uint8", history=2, delay=1)
DEPTH = Feature("front_depth", (8, 8), "m")
TCP = Feature("tcp_pos", (3,), "m")


def card(*images, task="look", view=VIEW):
    """The card of a policy that sees these images, and where the tool is."""
    return PolicyCard(
        task=task,
        inputs=(Input("student", (TCP,)), *(Input(f.name, (f,)) for f in images)),
        actions=(ActionChannel("finger", "rad", 0.04, -0.5, 1.5, "delta"),),
        joints=(),
        control_dt=0.05,
        preprocessing={f.name: view for f in images},
    )


class Still:
    """A camera whose frame k is of brightness k, at 200 frames/s; can hang, fail and be lit."""

    def __init__(self, size=(24, 32), *, depth=False, view=None):
        self.size, self.depth, self.vertical_view = size, depth, view
        self.go_on, self.fault = threading.Event(), None
        self.go_on.set()
        self.count = itertools.count()
        self.opened = self.closed = 0

    def open(self):
        self.opened += 1

    def read(self):
        self.go_on.wait(10.0)
        time.sleep(0.005)
        if self.fault is not None:
            raise self.fault
        k = next(self.count)
        depth = np.full(self.size, 0.5, np.float32) if self.depth else None
        return Frame(np.full((*self.size, 3), k % 256, np.uint8), time.monotonic(), depth)

    def close(self):
        self.closed += 1


@dataclasses.dataclass
class Late:
    """A camera and a lamp on a clock of their own: frames show the lamp as it was frames ago."""

    period: float
    frames: float
    lamp: float = 200.0
    now: float = 100.0
    events: list = dataclasses.field(default_factory=lambda: [(0.0, False)])

    def sleep(self, seconds):
        self.now += seconds

    def switch(self, on):
        self.events.append((self.now, on))

    def read(self, after):
        """Wait for the next frame of the clock; the lamp is a quarter of it."""
        k = max(np.floor(after / self.period), np.floor(self.now / self.period)) + 1
        self.now = stamp = k * self.period
        then = stamp - self.frames * self.period
        is_on = [on for at, on in self.events if at <= then][-1]
        rgb = np.full((8, 8, 3), 30 + 3 * int(k % 2), np.uint8)
        rgb[:4, :4] += np.uint8(self.lamp * is_on)
        return Frame(rgb, stamp)


def cv2_double(frames, *, opens=True):
    """A module with the names of OpenCV that are used; frames: BGR, the last for ever."""
    made = []

    class VideoCapture:
        def __init__(self, device):
            self.device, self.set_to, self.left, self.released = device, {}, list(frames), False
            made.append(self)

        def isOpened(self):  # noqa: N802
            return opens

        def set(self, key, value):
            self.set_to[key] = value
            return True

        def grab(self):
            return bool(self.left)

        def retrieve(self):
            return True, self.left.pop(0)

        def release(self):
            self.released = True

    names = ("BUFFERSIZE", "FRAME_WIDTH", "FRAME_HEIGHT", "FPS")
    return types.SimpleNamespace(
        VideoCapture=VideoCapture, made=made, **{f"CAP_PROP_{name}": name for name in names}
    )


class Rs:
    """A module with the names of pyrealsense2 that are used: one frame, then a time-out."""

    stream = types.SimpleNamespace(color="color", depth="depth")
    format = types.SimpleNamespace(rgb8="rgb8", z16="z16")

    def __init__(self, rgb, steps, *, fy=24.0, scale=0.001, serial="77"):
        self.rgb, self.steps, self.fy, self.scale, self.serial = rgb, steps, fy, scale, serial
        self.asked, self.aligned_to, self.stopped = [], None, 0

    def config(self):
        return types.SimpleNamespace(
            enable_stream=lambda *what: self.asked.append(what),
            enable_device=lambda serial: self.asked.append(serial),
        )

    def align(self, stream):
        self.aligned_to = stream
        return types.SimpleNamespace(process=lambda frames: frames)

    def pipeline(self):
        return types.SimpleNamespace(start=self._start, wait_for_frames=self._wait, stop=self._stop)

    def _stop(self):
        self.stopped += 1

    def _start(self, config):
        if self.asked and isinstance(self.asked[0], str) and self.asked[0] != self.serial:
            raise RuntimeError("No device connected")
        lens = types.SimpleNamespace(height=self.rgb.shape[0], fy=self.fy)
        profile = types.SimpleNamespace(get_intrinsics=lambda: lens)
        stream = types.SimpleNamespace(as_video_stream_profile=lambda: profile)
        sensor = types.SimpleNamespace(get_depth_scale=lambda: self.scale)
        device = types.SimpleNamespace(first_depth_sensor=lambda: sensor)
        return types.SimpleNamespace(get_stream=lambda _: stream, get_device=lambda: device)

    def _wait(self, patience):
        if self.rgb is None:
            raise RuntimeError(f"Frame didn't arrive within {patience}")
        color, depth = (
            types.SimpleNamespace(get_data=lambda a=a: a) for a in (self.rgb, self.steps)
        )
        self.rgb = None
        return types.SimpleNamespace(get_color_frame=lambda: color, get_depth_frame=lambda: depth)
