"""The peer that the benchmark compares with does our task."""

import importlib.util
import pathlib

import numpy as np
import pytest

from penspin_style.env.env import Env
from penspin_style.env.task import load_task

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "peer_lift_cube.py"


def test_the_peer_observes_and_pays_what_our_task_does(tmp_path):
    found = importlib.util.spec_from_file_location("peer_lift_cube", SCRIPT)
    peer = importlib.util.module_from_spec(found)
    found.loader.exec_module(peer)
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
