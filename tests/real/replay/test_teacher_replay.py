"""PenSpin's command line: one trajectory, replayed open loop."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from penspin_style.data.episodes.episode import Episode, Header, commands, episodes, write_episode
from penspin_style.features import PolicyCard
from real.robot_controller import teacher_replay
from tests.support.cart import CHANNELS
from tests.support.replays import trajectory

SCRIPT = pathlib.Path(teacher_replay.__file__)


@pytest.fixture(scope="module")
def grasps(tmp_path_factory):
    """Two trajectories for the pen's twin, 6 and 9 steps of holding a grasp."""
    from real.twin.robot import SimRobot

    folder = tmp_path_factory.mktemp("grasps")
    twin = SimRobot("pen")
    card = PolicyCard("pen_spin", (), twin.channels, (), twin.control_dt)
    twin.connect()
    twin.reset()
    model, qpos = twin.batch.sim.model, twin.batch.sim.data.qpos[0].tolist()
    start = {c.name: [qpos[model.jnt_qposadr[model.joint(c.name).id]]] for c in twin.channels}
    start["pen"] = qpos[model.jnt_qposadr[model.joint("pen").id] :][:7]
    for steps in (6, 9):
        target = np.repeat(twin.target[None], steps, axis=0)
        columns = {"time": twin.control_dt * np.arange(steps), "target": target, "sent": target}
        columns["action"] = np.zeros((steps, 16), np.float32)
        facts = {"start": start}
        head = Header("pen_spin", "sim", "pen", twin.control_dt, commands(card), None, facts)
        write_episode(folder, head, columns, True)
    return folder


def run(line, cwd=None):
    argv = line.split()
    if cwd is None:
        return teacher_replay.main(argv)
    return subprocess.run(
        [sys.executable, SCRIPT, *argv], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_penspins_arguments_record_a_trajectory_from_any_folder(grasps, tmp_path):
    line = f"--data-collect --exp=1 --replay_data_dir={grasps} --robot pen --json"
    done = run(line, tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = episodes(tmp_path / "real_data_collection")
    assert json.loads(done.stdout)["files"] == [str(path)]
    episode = Episode.open(path)
    assert episode.header.facts["exp"] == 1 and episode.header.source == "twin"
    source = Episode.open(episodes(grasps)[1])
    assert np.array_equal(episode["target"], source["target"][: episode.steps])
    joints = episode["observation/proprio"][0, :16]  # measured with a noise of about 0.02 rad
    assert np.allclose(joints, source["target"][0], atol=0.12)


def test_without_data_collect_it_only_replays(grasps, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(f"--exp 0 --replay-data-dir {grasps} --robot pen") == 0
    out = capsys.readouterr().out
    assert "6 steps" in out and "nothing was recorded" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "code", "complaint"),
    [
        ("--exp=2 --replay_data_dir={grasps}", 2, "holds trajectories 0 to 1"),
        ("--replay_data_dir={grasps} --out x", 2, "nothing is recorded without --data-collect"),
        ("--replay_data_dir={tmp}/none", 2, "none does not exist; make trajectories with"),
        ("--replay_data_dir={tmp}", 2, "holds no trajectories; make trajectories with"),
        ("--replay_data_dir={tmp}/old.pkl", 2, "a pickle, which would run code of its author"),
        ("--replay_data_dir={tmp}/old", 2, "a pickle, which would run code of its author"),
        ("--replay_data_dir={carts} --robot pen", 2, "targets of ['left', 'right'], the robot"),
        ("--replay_data_dir={grasps} --robot pan", 2, "there is no robot 'pan'"),
        ("--replay_data_dir={grasps} --robot pen --ask", 2, "--ask needs a terminal"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_one_line(
    grasps, tmp_path, capsys, argv, code, complaint
):
    (tmp_path / "old.pkl").write_bytes(b"")
    (tmp_path / "old").write_bytes(b"\x80\x04K\x00.")
    trajectory(tmp_path / "carts", channels=CHANNELS)
    argv = argv.format(grasps=grasps, tmp=tmp_path, carts=tmp_path / "carts")
    assert run(argv) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("teacher_replay.py: ") and complaint in said.err


def test_without_ros_the_hand_is_refused_with_what_helps(grasps, monkeypatch, capsys):
    monkeypatch.setenv("ROS_MASTER_URI", "http://127.0.0.1:9")  # nobody
    assert run(f"--exp=0 --replay_data_dir={grasps}") == 3
    said = capsys.readouterr().err
    assert "ROS" in said and "; without a hand, --robot pen replays on its twin" in said


def test_a_hands_computer_needs_no_torch():
    code = (
        "import sys, real.replay.replay, real.control.session\n"
        "import real.robot_controller.teacher_replay\n"
        "print(sorted({'torch', 'mujoco', 'warp'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parents[2], capture_output=True, text=True
    )
    assert said.stdout.strip() == "[]", said.stderr
