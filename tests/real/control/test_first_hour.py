"""The page of a robot's first hour: its commands are understood, those of ROS 2 run."""

import pathlib
import re
import shlex

import numpy as np
import pytest

from penspin_style.__main__ import main
from real.control import wiggle
from real.drivers.named_function import named_sensors
from real.drivers.ros2_config import read_robot
from tests.support.rosbridge_double import Bridge, Controller

PAGE = (pathlib.Path(__file__).parents[3] / "docs" / "howto" / "first_hour.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
LINES = [
    line.partition("#")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.startswith("penspin")
]
ROS2 = [line for line in LINES if "ros2:" in line]


@pytest.mark.parametrize("line", dict.fromkeys(LINES))
def test_a_command_of_the_page_is_understood(line, monkeypatch):
    said = []
    monkeypatch.setattr("real.control.check.run", lambda args: said.append(args) or 0)
    monkeypatch.setattr("real.control.session.rollout", lambda args: said.append(args) or 0)
    assert main(shlex.split(line)[1:]) == 0 and said


def test_the_function_of_the_page_gives_a_sensor(monkeypatch, tmp_path):
    (text,) = [text for language, text in BLOCKS if language == "python"]
    tracker = "class open_my_tracker:\n    newest = staticmethod(lambda: [[0, 0, 0], [1, 2, 3]])\n"
    (tmp_path / "trackers_of_the_page.py").write_text(tracker + text)
    monkeypatch.syspath_prepend(tmp_path)
    (sensor,) = named_sensors(["trackers_of_the_page:pen"])
    assert sensor.read().shape == sensor.feature.shape == (2, 3)


@pytest.mark.slow
@pytest.mark.clock
def test_the_commands_for_ros_2_run_with_the_file_of_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("real.control.check.READ", 0.1)
    monkeypatch.setattr(wiggle, "_RISE", 0.04)
    monkeypatch.setattr(wiggle, "_REST", 0.12)
    (text,) = [text for language, text in BLOCKS if language == "yaml"]
    path = tmp_path / "arm.yaml"
    path.write_text(text)
    arm, gripper = read_robot(path).groups.values()
    controllers = [
        Controller(g.state, g.command, g.type, [j.ros for j in g.joints], home)
        for g, home in ((arm, [j.start for j in arm.joints]), (gripper, [0.01]))
    ]
    with Bridge(*controllers) as bridge:
        path.write_text(text.replace("9090", str(bridge.port)).replace("stale: 0.1", "stale: 0.4"))
        assert len(ROS2) == 4
        for line in ROS2:
            before = len(bridge.said)
            assert main(shlex.split(line)[1:]) == 0
            is_sent = "--wiggle" in line and "--dry-run" not in line
            assert (len(bridge.said) > before) is is_sent
    out = capsys.readouterr().out
    assert out.count("follows") == 1 + 8
    np.testing.assert_allclose(controllers[1].joints.joints(), [0.01], atol=1e-3)
