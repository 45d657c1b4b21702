"""A SpaceMouse: real reports, byte for byte, become actions; a stand-in for hidapi gives them."""

import queue
import sys
import time
import types

import numpy as np
import pytest

from penspin_style.deploy.actions import Decoder
from penspin_style.features import ActionChannel
from real.robot import RobotError
from real.teleop.device import Axes, Key
from real.teleop.spacemouse import SpaceMouse

SEVEN = tuple(ActionChannel(f"c{i}", "m", 0.1, -1.0, 1.0, "delta") for i in range(7))
COMPACT = {"vendor_id": 0x256F, "product_id": 0xC635, "product_string": "SpaceMouse Compact"}
PUSHED = [1, 0x5E, 0x01, 0xA2, 0xFE, 0x00, 0x00]
"""x 350, to the right; y -350, forward."""
TURNED = [2, 0x00, 0x00, 0x51, 0xFF, 0x5E, 0x01]
"""About y -175, half to the right; about z 350, to the right."""
ALL = [1, 0, 0, 0, 0, 0xA2, 0xFE, 0xA2, 0xFE, 0, 0, 0, 0]
"""A newer model: z -350, up; about x -350, forward."""


class Hid:
    """A device whose reports are put into a queue; None pulls it out."""

    def __init__(self, monkeypatch, *devices):
        self.reports, self.path, self.closed = queue.Queue(), None, False
        module = types.SimpleNamespace(enumerate=lambda: list(devices), device=lambda: self)
        monkeypatch.setitem(sys.modules, "hid", module)

    def open_path(self, path):
        if path == b"locked":
            raise OSError("open failed")
        self.path = path

    def read(self, most, timeout):
        try:
            report = self.reports.get(timeout=timeout / 1000)
        except queue.Empty:
            return []
        if report is None:
            raise OSError("read error")
        return report

    def close(self):
        self.closed = True


@pytest.fixture
def mouse(monkeypatch):
    mice = []

    def make(*devices):
        keyboard = {"vendor_id": 0x046D, "product_id": 0xC31C, "path": b"keyboard"}
        hid = Hid(monkeypatch, keyboard, *devices)
        mice.append(SpaceMouse(Axes(Decoder(SEVEN), 0.05, 6, 1.0)))
        mice[-1].open()
        return mice[-1], hid

    yield make
    for made in mice:
        made.close()


def tell(hid, device, *reports):
    """Let the device say this, and wait until it has been taken in."""
    for report in reports:
        hid.reports.put(report)
    until = time.monotonic() + 2.0
    while not hid.reports.empty():
        assert time.monotonic() < until
        time.sleep(0.001)
    time.sleep(0.005)
    return device.read(np.zeros(7))


def test_the_cap_moves_six_channels_in_a_frame_with_x_forward_and_z_up(mouse):
    device, hid = mouse({**COMPACT, "path": b"a"})
    assert tell(hid, device).action.tolist() == [0] * 7
    half = (0.5 - 0.08) / 0.92  # less the dead zone
    action = tell(hid, device, PUSHED, TURNED).action
    np.testing.assert_allclose(action, [1, -1, 0, half, 0, -1, 0])
    np.testing.assert_allclose(tell(hid, device, ALL).action, [0, 0, 1, 0, 1, 0, 0])
    near = [1, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert tell(hid, device, near).action.tolist() == [0] * 7
    assert tell(hid, device, PUSHED, [1, 0, 0]).action[0] == 1  # too short to say anything


def test_the_interface_of_the_cap_is_opened_and_closed(mouse):
    wrong = {**COMPACT, "path": b"b", "usage_page": 1, "usage": 6}
    device, hid = mouse(wrong, {**COMPACT, "path": b"a", "usage_page": 1, "usage": 8})
    assert hid.path == b"a"
    device.close()
    device.close()
    assert hid.closed
    old = {"vendor_id": 0x046D, "product_id": 0xC626, "product_string": "SpaceNavigator"}
    assert mouse({**old, "path": b"c"})[1].path == b"c"


@pytest.mark.parametrize(
    ("buttons", "key"),
    [([1, 0], Key.SUCCESS), ([2, 0], Key.FAILURE), ([1, 3, 2, 0], Key.DISCARD), ([1], None)],
)
def test_buttons_end_an_episode_when_they_are_let_go(mouse, buttons, key):
    device, hid = mouse({**COMPACT, "path": b"a"})
    device.begin()
    assert tell(hid, device, *([3, bits, 0] for bits in buttons)).key is key


def test_a_button_held_since_the_last_episode_ends_nothing(mouse):
    device, hid = mouse({**COMPACT, "path": b"a"})
    tell(hid, device, [3, 1, 0])
    device.begin()
    assert tell(hid, device, [3, 0, 0]).key is None
    assert tell(hid, device, [3, 1, 0], [3, 0, 0]).key is Key.SUCCESS


def test_a_third_button_holds_the_next_channels(mouse):
    device, hid = mouse({**COMPACT, "path": b"a"})
    assert "a third button next line" in device.legend
    reading = tell(hid, device, PUSHED, [3, 4, 0], [3, 0, 0])
    assert reading.action.tolist() == [0, 0, 0, 0, 0, 0, 1] and reading.key is None


def test_a_spacemouse_that_is_pulled_out_ends_the_session(mouse):
    device, hid = mouse({**COMPACT, "path": b"a"})
    with pytest.raises(RobotError, match="the SpaceMouse is gone: read error"):
        tell(hid, device, PUSHED, None)


def test_a_computer_without_a_spacemouse_says_so(mouse, monkeypatch):
    with pytest.raises(RobotError, match="no SpaceMouse is connected"):
        mouse()
    with pytest.raises(RobotError, match=r"Compact cannot be opened \(open failed\).*rule of udev"):
        mouse({**COMPACT, "path": b"locked"})
    monkeypatch.setitem(sys.modules, "hid", None)
    with pytest.raises(RobotError, match=r"needs hidapi .*penspin_style\[teleop\]"):
        SpaceMouse(Axes(Decoder(SEVEN), 0.05, 6, 1.0)).open()
