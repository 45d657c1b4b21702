"""The delay of a camera, measured by a lamp; `penspin camera` and `rollout --cameras`."""

import dataclasses
import json
import sys
import threading
import types
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from penspin_style import __main__ as cli
from penspin_style.data.formats.video import VideoWriter
from penspin_style.deploy.bundle import Bundle
from real.cameras.camera import CameraError
from real.cameras.latency import measure_latency, screen
from real.drivers import open_driver
from tests.support import franky_fake
from tests.support.cameras import RGB, Late, card

pytestmark = pytest.mark.clock

# The delay.


@pytest.mark.parametrize("frames", [0, 1, 3.5])
def test_a_known_delay_is_measured_to_within_a_frame(frames):
    late = Late(1 / 30, frames)
    found = measure_latency(
        late.read, late.switch, blinks=8, clock=lambda: late.now, sleep=late.sleep
    )
    assert len(found.delays) == 16 and found.period == pytest.approx(1 / 30)
    known = frames / 30
    assert all(known - 1e-9 <= delay <= known + 1 / 30 + 1e-9 for delay in found.delays)
    assert known < found.median < known + 1 / 30
    assert np.ptp(found.delays) > 0.3 / 30  # at many phases of the frames


def test_a_light_that_changes_nothing_is_said():
    late = Late(1 / 30, 1, lamp=2.0)
    with pytest.raises(CameraError, match="changes no pixel by 8 of 255"):
        measure_latency(late.read, late.switch, clock=lambda: late.now, sleep=late.sleep)


def test_a_switch_that_is_not_seen_is_said():
    late = Late(1 / 30, 1)

    def once(on):
        if len(late.events) < 3:
            late.switch(on)

    with pytest.raises(CameraError, match="not seen within 2 s"):
        measure_latency(late.read, once, clock=lambda: late.now, sleep=late.sleep)


def test_a_terminal_is_made_white_and_black():
    told = []
    switch = screen(types.SimpleNamespace(write=told.append, flush=lambda: None))
    switch(True)
    switch(False)
    assert told == ["\x1b[48;5;231m\x1b[2J\x1b[H", "\x1b[48;5;16m\x1b[2J\x1b[H"]


# The verbs.


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A YAML of one camera, a video of a frame that is red on its left half."""
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:, :32, 0] = 200
    writer = VideoWriter(tmp_path / "red.mp4", 32, 64, Fraction(100))
    writer.add([frame] * 4)
    writer.close()
    path = tmp_path / "cameras.yaml"
    path.write_text(f"front: {{kind: file, device: {tmp_path}/red.mp4, center: [0.25, 0.5]}}\n")
    bundle = types.SimpleNamespace(card=card(RGB))
    monkeypatch.setattr(Bundle, "load", lambda path: bundle)
    return path


def call(capsys, *argv):
    code = cli.main([str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_check_shows_what_the_policy_sees_beside_the_frame(file, tmp_path, capsys):
    argv = ("camera", "check", file, "--policy", "p.onnx", "--seconds", "0.3")
    code, out, err = call(capsys, *argv, "--json", "--out", tmp_path / "seen.png")
    found = json.loads(out)["cameras"]["front"]
    assert code == 0 and "front: the policy was trained with 40 degrees" in err
    crop = {"top": 0, "left": 0, "rows": 32, "columns": 32, "size": [8, 8]}
    assert found["size"] == [64, 32] and found["images"] == {"front_rgb": crop}
    assert 10 < found["rate"] < 150 and 0 <= found["age_median"] <= found["age_worst"] < 0.2
    with Image.open(tmp_path / "seen.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (32, 64 + 8 + 32, 3)
    assert pixels[0, 10].tolist() == [255, 0, 0]  # the crop's edge
    assert abs(pixels[16, 88].astype(int) - [200, 0, 0]).max() < 25  # red alone is seen
    assert pixels[16, 50].max() < 25
    code, out, _ = call(capsys, *argv)
    assert code == 0 and "front_rgb: 32 x 32 pixels from 0, 0 on, as 8 x 8" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("camera check {file}.no --policy p.onnx", "is not readable"),
        ("camera check {file} --policy p.onnx --out seen.txt", "must end in .png"),
        ("camera latency {file} frnt", "has no camera 'frnt'; did you mean 'front'"),
        ("camera latency {file} front", "the terminal as a light needs a terminal"),
        ("camera latency {file} front --light lamp", "--light must be module:function"),
        ("camera latency {file} front --light lamps_of_nobody:on", "--light lamps_of_nobody:on: "),
        ("rollout --robot pen --policy p.onnx --cameras {file}", "a twin renders its own images"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(file, capsys, argv, message):
    try:
        code, _, err = call(capsys, *argv.format(file=file).split())
    except SystemExit as ended:
        code, err = ended.code, capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_camera_that_cannot_be_opened_ends_the_verb_with_one_line(file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    file.write_text("front: {kind: opencv}\n")
    code, _, err = call(capsys, "camera", "check", file, "--policy", "p.onnx")
    assert code == 3 and err.startswith("penspin: camera 'front': kind opencv needs OpenCV")
    assert err.count("\n") == 1


def test_a_light_that_the_frames_do_not_show_ends_the_measurement(file, capsys, monkeypatch):
    lamp = types.ModuleType("lamp")
    lamp.switch = lambda on: None
    monkeypatch.setitem(sys.modules, "lamp", lamp)
    code, _, err = call(capsys, "camera", "latency", file, "front", "--light", "lamp:switch")
    assert code == 3 and "camera 'front': the light changes no pixel" in err


class Looking:
    """A policy of the arm that does nothing, and notes what it sees."""

    sha256 = "of a double"

    def __init__(self, channels, control_dt):
        plain = card(RGB)
        self.card = dataclasses.replace(plain, actions=channels, control_dt=control_dt)
        self.seen = []

    def reset(self):
        self.seen.append(None)

    def act(self, observation):
        self.seen.append(observation["front_rgb"])
        return np.zeros(len(self.card.actions), np.float32)


def test_a_rollout_on_a_robot_sees_through_its_cameras(file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "franky", franky_fake)
    arm = open_driver("franka", "arm")
    policy = Looking(arm.channels, arm.control_dt)
    monkeypatch.setattr(Bundle, "load", lambda path: policy)
    argv = ("rollout", "--robot", "franka:arm", "--policy", "p.onnx", "--seconds", "0.3")
    code, _, err = call(capsys, *argv)
    assert code == 2 and "front_rgb: not offered" in err
    code, out, err = call(capsys, *argv, "--cameras", file, "--json")
    assert code == 0, err
    assert json.loads(out)["episodes"] == 1 and "trained with 40 degrees" in err
    images = [image for image in policy.seen if image is not None]
    assert len(images) >= 3 and images[-1].shape == (2, 8, 8, 3)  # with its history
    assert abs(images[-1][-1, 4, 4].astype(int) - [200, 0, 0]).max() < 25
    assert not [t for t in threading.enumerate() if t.name.startswith("camera-")]
