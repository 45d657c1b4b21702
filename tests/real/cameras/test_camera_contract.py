"""Cameras of every kind, and the thread that keeps the newest frame of one."""

import math
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from penspin_style.data.formats.video import VideoWriter
from real.cameras import camera as contract
from real.cameras.camera import CameraError, Frame, Newest
from real.cameras.opencv import OpenCV
from real.cameras.realsense import RealSense
from real.cameras.video_file import VideoFile
from tests.support.cameras import Rs, Still, cv2_double

pytestmark = pytest.mark.clock


@pytest.fixture
def still():
    found = Still()
    yield found
    found.go_on.set()


@pytest.fixture
def newest(still):
    found = Newest(still, "front", max_age=0.3)
    yield found
    still.go_on.set()
    found.close()


# The thread.


def test_the_newest_frame_is_read_and_a_newer_one_is_waited_for(newest):
    newest.open()
    newest.open()  # no error, and no second time
    time.sleep(0.05)
    begin = time.monotonic()
    first = newest.read()
    assert begin - first.stamp < 0.3
    later = [newest.read(first.stamp)]
    later.append(newest.read(later[0].stamp))
    levels = [int(frame.rgb[0, 0, 0]) for frame in (first, *later)]
    assert levels[0] < levels[1] < levels[2] and newest.camera.opened == 1


def test_a_camera_that_hangs_is_an_error_within_the_age_of_a_frame_and_may_come_back(newest, still):
    newest.open()
    still.go_on.clear()
    time.sleep(0.35)
    begin = time.monotonic()
    with pytest.raises(CameraError, match=r"'front' hangs: .* the limit is 0\.3 s \(max_age\)"):
        newest.read()
    assert time.monotonic() - begin < 1.0
    still.go_on.set()
    assert newest.read().stamp > begin


def test_a_camera_that_fails_says_why_and_is_closed(newest, still):
    newest.open()
    still.fault = OSError("unplugged")
    with pytest.raises(CameraError, match="'front': unplugged"):
        for _ in range(100):
            newest.read(time.monotonic())
    assert still.closed == 1
    still.fault = None
    newest.open()
    assert newest.read().rgb.shape == (24, 32, 3) and still.opened == 2


def test_a_closed_camera_gives_no_frame_and_one_that_never_gives_any_is_not_opened(
    newest, still, monkeypatch
):
    newest.open()
    newest.close()
    with pytest.raises(CameraError, match="'front' is not open"):
        newest.read()
    still.go_on.clear()
    monkeypatch.setattr(contract, "FIRST", 0.05)
    monkeypatch.setattr(contract, "_LEAVING", 0.05)
    with pytest.raises(CameraError, match=r"has given no frame for 0\.\d\d s"):
        newest.open()
    with pytest.raises(CameraError, match="still hangs in an earlier call"):
        newest.open()


@pytest.mark.parametrize(
    ("rgb", "depth", "message"),
    [
        (np.zeros((4, 4), np.uint8), None, r"\(height, width, 3\) uint8, it is \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), None, "of float32"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4), np.float32), r"depth must be \(4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), np.full((4, 4), np.nan, np.float32), "not finite"),
    ],
)
def test_a_frame_that_breaks_the_contract_is_refused(newest, still, rgb, depth, message):
    still.read = lambda: Frame(rgb, time.monotonic(), depth)
    with pytest.raises(CameraError, match=message):
        newest.open()


# OpenCV.


def test_opencv_gives_red_first_and_keeps_one_frame_in_its_buffer(monkeypatch):
    bgr = np.zeros((6, 8, 3), np.uint8)
    bgr[..., 0], bgr[..., 2] = 10, 200
    cv2 = cv2_double([bgr, bgr])
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    camera = OpenCV(3, size=(8, 6), rate=30)
    camera.open()
    frame = camera.read()
    assert frame.rgb[2, 3].tolist() == [200, 0, 10] and frame.rgb.flags.c_contiguous
    (capture,) = cv2.made
    assert capture.device == 3 and capture.set_to == {
        "BUFFERSIZE": 1,
        "FRAME_WIDTH": 8,
        "FRAME_HEIGHT": 6,
        "FPS": 30,
    }
    camera.read()
    with pytest.raises(CameraError, match="no more frames of 3"):
        camera.read()
    camera.close()
    assert capture.released


def test_opencv_without_a_camera_a_size_or_the_package_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", cv2_double([], opens=False))
    with pytest.raises(CameraError, match="opens no camera 'rtsp://nobody'"):
        OpenCV("rtsp://nobody").open()
    monkeypatch.setitem(sys.modules, "cv2", cv2_double([np.zeros((6, 8, 3), np.uint8)]))
    camera = OpenCV(0, size=(640, 480))
    camera.open()
    with pytest.raises(CameraError, match="asked for 640 x 480, it gives 8 x 6"):
        camera.read()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(CameraError, match=r"pip install 'penspin_style\[cameras\]'"):
        OpenCV(0).open()


# RealSense.


def test_a_realsense_gives_aligned_metres_and_its_view(monkeypatch):
    rgb = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    steps = np.full((6, 8), 1500, np.uint16)
    steps[0, 0] = 0  # nothing came back
    rs = Rs(rgb, steps, fy=3.0, scale=0.0005)
    monkeypatch.setitem(sys.modules, "pyrealsense2", rs)
    camera = RealSense("77", size=(8, 6), rate=15)
    camera.open()
    assert rs.asked == ["77", ("color", 8, 6, "rgb8", 15), ("depth", 8, 6, "z16", 15)]
    assert rs.aligned_to == "color"
    assert camera.vertical_view == pytest.approx(math.degrees(2 * math.atan(1.0)))
    frame = camera.read()
    rgb_before = rgb.copy()
    rgb[:] = 0  # the device's memory
    np.testing.assert_array_equal(frame.rgb, rgb_before)
    assert frame.depth.dtype == np.float32 and frame.depth[0, 0] == 0.0
    assert frame.depth[1, 1] == pytest.approx(0.75)
    with pytest.raises(CameraError, match="no more frames: Frame didn't arrive within 1000"):
        camera.read()
    camera.close()
    assert rs.stopped == 1


def test_a_realsense_without_depth_asks_for_none_and_an_unknown_one_is_named(monkeypatch):
    rs = Rs(np.zeros((6, 8, 3), np.uint8), None)
    monkeypatch.setitem(sys.modules, "pyrealsense2", rs)
    camera = RealSense(size=(8, 6), depth=False)
    camera.open()
    assert rs.asked == [("color", 8, 6, "rgb8", 30)] and camera.read().depth is None
    monkeypatch.setitem(sys.modules, "pyrealsense2", Rs(np.zeros((6, 8, 3), np.uint8), None))
    with pytest.raises(CameraError, match=r"no RealSense 13 with 640 x 480 at 30 .*No device"):
        RealSense("13").open()
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(CameraError, match=r"pip install 'penspin_style\[realsense\]'"):
        RealSense().open()


# A file.


def test_a_video_file_is_played_at_its_pace_again_and_again(tmp_path):
    path = tmp_path / "three.mp4"
    writer = VideoWriter(path, 32, 48, Fraction(50))
    writer.add([np.full((32, 48, 3), level, np.uint8) for level in (20, 120, 220)])
    writer.close()
    camera = VideoFile(path)
    begin = time.monotonic()
    camera.open()
    frames = [camera.read() for _ in range(5)]
    camera.close()
    levels = [float(frame.rgb.mean()) for frame in frames]
    np.testing.assert_allclose(levels, [20, 120, 220, 20, 120], atol=4)
    assert frames[0].rgb.shape == (32, 48, 3)
    assert frames[-1].stamp - begin >= 4 * 0.02
    once = VideoFile(path, rate=1000, loop=False)
    once.open()
    with pytest.raises(CameraError, match=r"three\.mp4 has ended"):
        for _ in range(4):
            once.read()
    once.close()


def test_a_file_that_is_no_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("text.mp4", "absent.mp4"):
        with pytest.raises(CameraError, match=f"{name} is not a video"):
            VideoFile(tmp_path / name).open()
