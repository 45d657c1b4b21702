"""The page on which a policy is watched: what its controls do, what it shows."""

import sys
import types

import numpy as np
import pytest
import torch

from penspin_style.__main__ import main
from penspin_style.cli import arguments, demo
from penspin_style.cli.play import AGENTS
from penspin_style.viewer.browser import BrowserViewer, as_image
from tests.support.page import Page
from tests.support.toy_env import make


def double():
    return types.SimpleNamespace(ViserServer=Page)


def zero(root):
    return torch.zeros(*root.batch_size, 1)


@pytest.fixture
def viewer(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", double())
    env = make(num_envs=3, episode_length=50)
    env.sim.data.qvel[:] = 0.2
    return BrowserViewer(env, zero, port=8080)


def press(viewer, label):
    viewer.server.handles[label].press()


def test_the_bodies_follow_the_simulation_side_by_side(viewer):
    (mesh,) = viewer.server.meshes.values()
    before = mesh.batched_positions.copy()
    viewer.step()
    viewer.draw()
    assert mesh.batched_positions.shape == (3, 3)
    expected = viewer.env.sim.data.xpos[:, 1].numpy() + viewer._offsets
    assert np.allclose(mesh.batched_positions, expected)
    assert (mesh.batched_positions[:, 0] > before[:, 0]).all()
    assert len({tuple(place) for place in viewer._offsets}) == 3


def test_a_paused_page_stands_still_until_it_is_told_to_step(viewer):
    viewer._paused.value = True
    viewer.run(0.05)
    assert viewer.steps == 0
    press(viewer, "step")
    viewer.run(0.05)
    assert viewer.steps == 1 and int(viewer.env.step_count[0]) == 1


def test_a_reset_begins_new_episodes(viewer):
    viewer._paused.value = True
    for _ in range(4):
        viewer.step()
    assert int(viewer.env.step_count[0]) == 4
    press(viewer, "reset")
    viewer.run(0.05)
    assert viewer.env.step_count.tolist() == [0, 0, 0]
    assert viewer._root is not None and viewer.steps == 4


def test_a_chosen_environment_is_shown_alone_with_its_own_reward(viewer):
    assert viewer.server.handles["environment"].options == ["all", "0", "1", "2"]
    assert viewer.shown == [0, 1, 2]
    viewer._which.value = "2"
    viewer.step()
    viewer._told = 0.0
    viewer.draw()
    (mesh,) = viewer.server.meshes.values()
    assert viewer.shown == [2] and mesh.batched_positions.shape == (1, 3)
    text = viewer.server.handles["figures"].content
    near = float(viewer.env.reward_terms["near"][2])
    assert "environment 2, 0.05 s" in text and f"| near | {near:.3f} |" in text
    assert viewer.server.handles["plot"].data[1][-1] == pytest.approx(near)


def test_the_speed_is_that_of_the_page(viewer, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda s: clock.__setitem__(0, clock[0] + 0.005))
    viewer._speed.value = 2.0
    viewer.run(1.0)
    assert viewer.steps == pytest.approx(2.0 / viewer.env.cfg.control_dt, abs=2)


def test_images_are_shown_as_a_policy_sees_them():
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    assert (as_image(rgb) == rgb[1]).all() and (as_image(rgb[0]) == rgb[0]).all()
    depth = np.array([[0.0, 0.5], [1.0, 2.0]], np.float32)
    assert as_image(depth)[..., 0].tolist() == [[0, 64], [128, 255]]
    assert as_image(np.zeros((2, 2), np.float32)).max() == 0


def test_agents_need_no_policy():
    root = types.SimpleNamespace(batch_size=(3,), device="cpu")
    assert AGENTS["zero"](2, 0)(root).tolist() == [[0.0, 0.0]] * 3
    act = AGENTS["random"](2, 5)
    first = act(root)
    assert first.shape == (3, 2) and first.abs().max() <= 1 and not torch.equal(first, act(root))
    assert torch.equal(first, AGENTS["random"](2, 5)(root))


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["play"], "say which policy, or --agent zero|random with task=NAME"),
        (["play", "x", "--agent", "y"], "--agent y: the policy is x already"),
        (["play", "--agent", "nowhere"], "nowhere does not exist"),
        (["play", "--agent", "zero", "task=tests.support.toy", "--viewer", "window"], "no display"),
        (
            ["play", "--agent", "zero", "task=tests.support.toy"],
            "pip install 'penspin_style[viewer]",
        ),
    ],
)
def test_what_cannot_be_watched_is_one_line(argv, text, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "viser", None)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


def test_without_a_display_an_agent_is_watched_on_a_page(monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "viser", double())
    monkeypatch.setattr(BrowserViewer, "run", lambda self: self.step())
    argv = ["play", "--agent", "random", "task=tests.support.toy", "--num-envs", "2", "--json"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("{") and '"address": "http://127.0.0.1:8080/"' in out


def test_demo_shows_what_is_shipped_and_changes_to_what_is_chosen(monkeypatch, capsys):
    names, shown = [*demo.shipped()], []
    assert {"panda_lift_cube", "pen_spin/teacher", "aloha_handover"} <= set(names)
    assert main(["demo", "--list"]) == 0
    assert capsys.readouterr().out.split() == names
    env = make(num_envs=1, episode_length=50)
    source = types.SimpleNamespace(env=lambda n, seed: env, act=zero)
    monkeypatch.setattr(demo, "open_policy", lambda folder, _: shown.append(folder) or source)
    monkeypatch.setitem(sys.modules, "viser", double())

    def run(viewer, until):
        assert not until()
        if len(shown) == 2:
            raise KeyboardInterrupt
        viewer.server.handles["policy"].value = "aloha_pick"
        assert until()

    monkeypatch.setattr(BrowserViewer, "run", run)
    with pytest.raises(KeyboardInterrupt):
        demo.run(arguments.parse(["demo", "panda_lift_cube"]))
    assert shown == [demo.shipped()[name] for name in ("panda_lift_cube", "aloha_pick")]
    assert main(["demo", "panda_lift_cub"]) == 2
    assert "did you mean panda_lift_cube?" in capsys.readouterr().err


def test_the_genuine_viser_takes_what_a_viewer_gives_it():
    pytest.importorskip("viser")
    viewer = BrowserViewer(make(num_envs=2), zero, port=8765)
    try:
        for which in ("all", "1"):
            viewer._which.value = which
            viewer.step()
            viewer._told = 0.0
            viewer.draw()
        assert viewer.address.startswith("http://127.0.0.1:87")
    finally:
        viewer.close()
