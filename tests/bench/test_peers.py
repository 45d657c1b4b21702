"""The peer that the benchmark compares with does our task."""

import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from penspin_style.env.env import Env
from penspin_style.env.task import load_task

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "peer_lift_cube.py"


def load(path):
    found = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_peer_observes_and_pays_what_our_task_does(tmp_path):
    peer = load(SCRIPT)
    kind = load_task("panda_lift_cube")
    env = Env(kind(kind.Config(randomize=False)), 1, seed=3)
    (tmp_path / "lift.xml").write_text(env.task.spec().to_xml())
    theirs = peer.LiftCube(str(tmp_path / "lift.xml"))
    theirs.reset(seed=0)
    theirs.data.qpos[:] = env.sim.data.qpos[0]
    first = theirs.begin()
    np.testing.assert_allclose(first, env.current()["teacher"][0], atol=1e-5)
    expert = env.task.expert(env.sim)
    won = False
    for k in range(60):
        action = expert.act()
        after = env.step(env.current().set("action", action))["next"]
        seen, reward, ended, _, info = theirs.step(action[0].numpy())
        np.testing.assert_allclose(seen, after["teacher"][0], atol=5e-3, err_msg=str(k))
        assert reward == pytest.approx(after["reward"].item(), abs=2e-3), k
        assert ended == after["terminated"].item() and info["is_success"] == after["success"].item()
        won |= info["is_success"]
    assert won and theirs.observation_space.contains(seen)
    for ours, his in ((env.task.low, peer.LOW), (env.task.high, peer.HIGH)):
        np.testing.assert_allclose(ours, his)


def test_learning_ends_at_the_goal_or_at_the_time_and_counts_no_evaluation():
    bench = load(SCRIPT.with_name("bench_peers.py"))
    now, learned = [0.0], [0.0]  # s

    def train():
        now[0] += 10.0
        learned[0] += 10.0

    def success():
        now[0] += 1000.0
        return min(learned[0] / 100.0, 1.0)

    def learn(minutes):
        now[0] = learned[0] = 0.0
        return bench.learn(
            train,
            success,
            minutes=minutes,
            every=3,
            clock=lambda: now[0],
            cpu=lambda: 2.0 * now[0],
        )

    # 30 s before each evaluation: 0.3, 0.6, 0.9
    done = {"reached": True, "success": 0.9, "best": 0.9, "minutes": 1.5}
    assert learn(15.0) == {**done, "cpu_s": 180, "iterations": 9}
    done = {"reached": False, "success": 0.6, "best": 0.6, "minutes": 1.0}
    assert learn(0.75) == {**done, "cpu_s": 120, "iterations": 6}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processor_time_is_that_of_a_process_and_of_its_children():
    bench = load(SCRIPT.with_name("bench_peers.py"))
    # one that works 0.3 s and waits, in a child of a shell that does nothing
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True); input()"
    line = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, code]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout.readline() == "done\n"
        assert 0.25 <= bench.cpu_seconds(shell.pid) < 1.0
        shell.communicate("\n")


def test_the_peer_counts_episodes_that_end_in_success(tmp_path):
    peer = load(SCRIPT)
    kind = load_task("panda_lift_cube")
    (tmp_path / "lift.xml").write_text(kind(kind.Config(randomize=False)).spec().to_xml())
    path = str(tmp_path / "lift.xml")
    counts = []

    def act(seen):
        """Close above the cube and lift, by what is observed, but only in the first episode."""
        counts.append(len(seen))
        out = np.zeros((len(seen), 4), np.float32)
        held = seen[0, 9] < 0.03
        out[0, :3] = (0.0, 0.0, 1.0) if held else np.clip(seen[0, 14:17] * -40.0, -1.0, 1.0)
        out[0, 3] = -1.0 if np.linalg.norm(seen[0, 14:17]) < 0.015 or held else 1.0
        return out

    assert peer.succeeded(path, act, episodes=2) == 0.5
    assert counts == [2] * 80


def test_both_learn_from_the_same_starts():
    bench, peer = load(SCRIPT.with_name("bench_peers.py")), load(SCRIPT)
    kind = load_task("panda_lift_cube")
    env = Env(bench.unvaried(kind)(kind.Config()), 64, seed=3)
    joints = env.sim.data.qpos[:, :7].numpy() - peer.HOME
    assert np.abs(joints).max() <= peer.JOINT_NOISE + 1e-6
    assert joints.std(axis=0).min() > 0.4 * peer.JOINT_NOISE  # 0.58 of a uniform one's half width
    assert {"qpos"} == {row.field for row in env.task.randomize()}
    assert {"qpos", "body_mass"} < {row.field for row in kind(kind.Config()).randomize()}
