"""Robots that are moved by hand: what is held becomes targets, keys end and label episodes."""

import json
import sys
import types

import numpy as np
import pytest

from penspin_style.__main__ import main
from penspin_style.data.episodes.episode import Episode, Recorder, episodes
from penspin_style.deploy.actions import Decoder
from penspin_style.features import ActionChannel
from real.control.loop import Loop, header
from real.control.safety import SafeRobot
from real.control.session import watched
from real.control.success import SUCCESS, Label, SuccessCheck
from real.robot import RobotError
from real.teleop.device import Axes, DeviceSource, Key, Reading
from real.teleop.gamepad import Gamepad
from real.teleop.keyboard import Keyboard
from real.twin.page import TwinPage
from tests.support.cart import CHANNELS, DT, Carts

SIX = tuple(ActionChannel(f"c{i}", "m", 0.1, -1.0, 1.0, "delta") for i in range(7))


class Script:
    """A device that says what it is told, a reading in each control step."""

    legend, by_hand = "", False

    def __init__(self, *readings):
        self.readings, self.begun = readings, 0

    def begin(self):
        self.begun += 1
        self.left = list(self.readings)

    def read(self, last):
        return self.left.pop(0) if self.left else Reading(np.zeros(2))


def demonstrate(device, folder, steps=5):
    safe = SafeRobot(Carts())
    source = DeviceSource(device, Decoder(CHANNELS))
    check = SuccessCheck(SUCCESS, said=lambda: source.label)
    head = header(safe, task="carts", source="twin", name="carts")
    loop = Loop(safe, source, check, recorder=Recorder(folder, head), realtime=False)
    return loop.run(steps)


def test_what_is_held_goes_through_the_limits_into_the_episode(tmp_path):
    readings = [Reading(np.array([1.0, -1.0])), Reading(np.array([5.0, 0.0]))]  # 5 is clipped
    outcome = demonstrate(Script(*readings), tmp_path, 3)
    episode = Episode.open(outcome.path)
    assert np.allclose(episode["sent"], [(0.1, -0.1), (0.2, -0.1), (0.2, -0.1)], atol=1e-6)
    assert np.array_equal(episode["action"], np.array([(1, -1), (1, 0), (0, 0)], np.float32))
    assert outcome.success is False and "judged" not in episode.header.facts


@pytest.mark.parametrize(
    ("key", "success"), [(Key.SUCCESS, True), (Key.FAILURE, False), (Key.DISCARD, None)]
)
def test_a_key_ends_the_episode_and_says_what_it_was(tmp_path, key, success):
    device = Script(Reading(np.ones(2)), Reading(np.ones(2), key), Reading(np.ones(2)))
    outcome = demonstrate(device, tmp_path)
    assert outcome.steps == 2 and outcome.success is success and device.begun == 1
    if success is None:
        assert outcome.path is None and not episodes(tmp_path)
    else:
        episode = Episode.open(outcome.path)
        assert episode.success is success and episode.header.facts["judged"] == "by hand"


def test_a_key_goes_before_the_rule_and_before_the_question():
    check = SuccessCheck(SUCCESS, by_hand=True, said=lambda: Label.FAILURE)
    assert check({"success": 1.0}, "") is Label.FAILURE


def test_an_axis_moves_delta_channels_while_held_and_absolute_ones_through_their_range():
    channels = (CHANNELS[0], ActionChannel("lid", "rad", 1.0, 0.0, 2.0, "absolute"))
    axes = Axes(Decoder(channels), 0.05, 6, 0.5)
    action = axes.action(np.array([1.0, 1.0, 0, 0, 0, 0]), np.array([0.2, 1.5]))
    # the lid stands at 0.5 of [-1, 1]; half speed crosses the 2 of that range in 4 s
    assert np.allclose(action, [0.5, 0.5 + 0.5 * 0.05])
    still = axes.action(np.zeros(6), np.array([0.2, 1.5]))
    assert np.allclose(Decoder(channels).decode(still, np.array([0.2, 1.5])), [0.2, 1.5])


def test_more_channels_than_axes_are_held_group_by_group():
    axes = Axes(Decoder(SIX), DT, 6, 1.0)
    held, last = np.array([1.0, 0, 0, 0, 0, 0]), np.zeros(7)
    assert axes.action(held, last).tolist() == [1, 0, 0, 0, 0, 0, 0]
    axes.next_group()
    assert axes.action(held, last).tolist() == [0, 0, 0, 0, 0, 0, 1]
    axes.next_group()
    assert axes.action(held, last)[0] == 1
    assert axes.legend(["w/s", "a/d"]) == "w/s c0, a/d c1\nw/s c6"


@pytest.fixture
def keyboard(monkeypatch):
    """A keyboard, and what presses and releases its keys."""
    made = []

    class Listener:
        def __init__(self, on_press, on_release):
            self.press, self.release, self.running = on_press, on_release, False
            made.append(self)

        def start(self):
            self.running = True

        def stop(self):
            self.running = False

    double = types.SimpleNamespace(keyboard=types.SimpleNamespace(Listener=Listener))
    monkeypatch.setitem(sys.modules, "pynput", double)
    device = Keyboard(Axes(Decoder(SIX), DT, 6, 0.5))
    device.open()
    return device, made[0]


def key(name):
    return types.SimpleNamespace(**({"char": name} if len(name) == 1 else {"name": name}))


def test_keys_move_their_channels_while_they_are_held(keyboard):
    device, keys = keyboard
    last = np.zeros(7)
    for name in "wDr":  # capital: with shift
        keys.press(key(name))
    assert device.read(last).action.tolist() == [0.5, -0.5, 0.5, 0, 0, 0, 0]
    keys.press(key("s"))
    keys.release(key("r"))
    assert device.read(last).action.tolist() == [0, -0.5, 0, 0, 0, 0, 0]
    device.close()
    assert not keys.running


def test_a_held_tab_is_one_and_what_ended_an_episode_does_not_end_the_next(keyboard):
    device, keys = keyboard
    for name in ("tab", "tab", "w", "enter"):
        keys.press(key(name))
    reading = device.read(np.zeros(7))
    assert reading.action[6] == 0.5 and reading.key is Key.SUCCESS
    device.begin()
    assert device.read(np.zeros(7)).key is None
    assert "enter success" in device.legend and "tab next line" in device.legend


class Pad:
    """A gamepad at rest."""

    def __init__(self):
        self.axes, self.buttons, self.hat = [0, 0, -1, 0, 0, -1], set(), (0, 0)

    def init(self):
        pass

    get_numaxes = staticmethod(lambda: 6)
    get_numhats = staticmethod(lambda: 1)

    def get_axis(self, i):
        return self.axes[i]

    def get_button(self, i):
        return i in self.buttons

    def get_hat(self, i):
        return self.hat


def gamepad(monkeypatch, count=1):
    pad = Pad()
    joystick = types.SimpleNamespace(get_count=lambda: count, Joystick=lambda i: pad)
    nothing = types.SimpleNamespace(pump=lambda: None)
    double = types.SimpleNamespace(
        init=lambda: None, quit=lambda: None, joystick=joystick, event=nothing
    )
    monkeypatch.setitem(sys.modules, "pygame", double)
    device = Gamepad(Axes(Decoder(SIX), DT, 6, 1.0))
    device.open()
    return device, pad


def test_sticks_and_triggers_move_six_channels(monkeypatch):
    device, pad = gamepad(monkeypatch)
    device.begin()
    assert device.read(np.zeros(7)).action.tolist() == [0] * 7
    pad.axes, pad.hat = [0.1, -1, -1, 0, 0.56, 1], (1, 0)
    action = device.read(np.zeros(7)).action
    assert np.allclose(action, [1, 0, -0.5, 1, 0, 1, 0])  # 0.1 is in the dead zone; 0.56 is half
    pad.buttons = {5, 1}
    reading = device.read(np.zeros(7))
    assert reading.key is Key.FAILURE and reading.action[6] == 1  # the next group


def test_a_button_held_since_the_last_episode_ends_nothing(monkeypatch):
    device, pad = gamepad(monkeypatch)
    pad.buttons = {0}
    device.begin()
    assert device.read(np.zeros(7)).key is None
    pad.buttons = set()
    device.read(np.zeros(7))
    pad.buttons = {0}
    assert device.read(np.zeros(7)).key is Key.SUCCESS
    device.close()


def test_a_computer_without_gamepad_says_so(monkeypatch):
    with pytest.raises(RobotError, match="no gamepad is connected"):
        gamepad(monkeypatch, count=0)


TWIN = """
task: panda_lift_cube
features: [tcp_pos, gripper, box_pos]
measured: [{feature: tcp_pos}, {feature: gripper, scale: 25.0}]
"""


@pytest.fixture
def twin(tmp_path):
    (tmp_path / "lift.yaml").write_text(TWIN)
    return str(tmp_path / "lift.yaml")


def test_the_expert_demonstrates_on_a_twin_with_an_instruction(twin, tmp_path, capsys):
    own = ["--device", "scripted", "--episodes", "2", "--successes", "--json"]
    own += ["--instruction", "Lift the cube.", "--out", str(tmp_path / "out")]
    assert main(["teleop", twin, *own]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["successes"] == told["episodes"] == 2 and told["device"] == "scripted"
    found = [Episode.open(path) for path in episodes(tmp_path / "out")]
    assert [e.header.facts["instruction"] for e in found] == ["Lift the cube."] * 2
    assert [e.header.facts["seed"] for e in found] == [0, 1]
    first = [e["observation/box_pos"][0] for e in found]
    assert not np.allclose(*first) and all(
        e["observation/box_pos"][:, 2].max() > 0.2 for e in found
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "scripted", "--realtime"], "--realtime: the scripted device takes turns"),
        (["--device", "keyboard", "--fast"], "--fast: a twin that is moved by keyboard runs in"),
        (["--device", "scripted", "--speed", "2"], "--speed: '2' is not"),
        (["--device", "joystick"], "invalid choice: 'joystick'"),
        ([], "--device"),
    ],
)
def test_what_is_invalid_is_said_in_one_line(twin, capsys, words, said):
    try:
        code = main(["teleop", twin, *words])
    except SystemExit as left:
        code = left.code
    assert code == 2 and said in capsys.readouterr().err


def test_a_twin_is_shown_on_a_page_while_it_is_driven(twin, tmp_path, capsys, monkeypatch):
    pytest.importorskip("viser")
    shown, show = [], TwinPage.show

    def noting(page, seen, target):
        show(page, seen, target)
        shown.append(page._bodies._meshes[-1][1].batched_positions.copy())

    monkeypatch.setattr(TwinPage, "show", noting)
    own = ["--device", "scripted", "--view", "--port", "8785", "--seconds", "0.3"]
    assert main(["teleop", twin, *own]) == 0
    assert "lift on http://127.0.0.1:87" in capsys.readouterr().err
    assert len(shown) == 6 and not np.allclose(shown[0], shown[-1])


def test_a_real_robot_is_not_shown(capsys):
    opened = types.SimpleNamespace(source="real", name="allegro")
    with pytest.raises(ValueError, match="--view shows twins; allegro is a real robot"):
        watched(None, opened, types.SimpleNamespace(view=True), None)


def test_what_has_no_expert_is_said(capsys):
    assert main(["teleop", "pen", "--device", "scripted"]) == 2
    assert "pen_spin_student has no scripted expert" in capsys.readouterr().err
