"""The script that picks the box, in any state that it is asked in."""

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.rotation import from_axis_angle, to_matrix

FINGERS, BOX = slice(7, 9), slice(9, 16)  # of qpos


def make(n, name="panda_pick_cube", seed=5):
    """Return an environment, and its expert."""
    kind = load_task(name)
    env = Env(kind(kind.Config()), n, seed=seed)
    expert = env.task.expert(env.sim)
    expert.restart(torch.ones(n, dtype=torch.bool), env.rng)
    return env, expert


def run(env, expert, steps, noise=0.0):
    """Let the expert act; return where success was reached at some step, (n,)."""
    rng = torch.Generator().manual_seed(0)
    won = torch.zeros(env.num_envs, dtype=torch.bool)
    for _ in range(steps):
        action = expert.act()
        assert action.shape == (env.num_envs, 8) and action.abs().max() <= 1.0
        action = action + noise * torch.randn(action.shape, generator=rng)
        won |= env.step(env.current().set("action", action.clamp(-1.0, 1.0)))["next", "success"][
            :, 0
        ]
    return won


@pytest.mark.parametrize("name", ["panda_pick_cube", "panda_pick_cube_orientation"])
def test_the_script_brings_the_box_to_its_target_within_the_time_limit(name):
    env, expert = make(64, name)
    assert run(env, expert, env.cfg.episode_length).float().mean() >= 0.95


def test_the_script_brings_the_box_there_also_when_it_is_disturbed():
    env, expert = make(64)
    assert run(env, expert, env.cfg.episode_length, noise=0.2).float().mean() >= 0.85


def test_what_the_script_does_follows_from_the_present_state_alone():
    env, expert = make(6)
    run(env, expert, 70)
    held = expert.act()
    assert torch.equal(expert.act(), held) and expert.memory == {}
    late = env.task.expert(env.sim)
    late.restart(torch.zeros(6, dtype=torch.bool), env.rng)
    assert torch.equal(late.act(), held)


def test_a_hand_at_the_box_closes_and_one_that_has_closed_on_nothing_opens():
    env, expert = make(3)
    sim = env.sim
    sim.data.qpos[:, BOX.start : BOX.start + 3] = expert.arm.position.double()
    sim.data.qpos[1, BOX.start] += 0.1  # out of reach of its fingers
    sim.data.qpos[2, FINGERS] = 0.0
    sim.data.ctrl[2, 7] = 0.0
    sim.forward()
    assert expert.act()[:, 7].tolist() == [-1.0, 1.0, 1.0]


def test_a_hand_leans_outwards_at_a_far_box_and_points_down_at_a_near_one():
    _, expert = make(2)
    box = torch.tensor([[0.55, 0.0, 0.03], [0.88, 0.0, 0.03]])
    upright, out = torch.eye(3).expand(2, 3, 3), torch.tensor([[1.0, 0.0, 0.0]]).expand(2, 3)
    lean = expert._lean_at_box(box, box, upright, out)
    assert lean[0].abs() < 0.1 and 0.6 < lean[1] < 1.0


def test_a_hand_leans_at_the_box_as_the_far_target_will_ask_for_once_it_is_turned():
    _, expert = make(2)
    box, target = torch.tensor([[0.7, 0.0, 0.03]] * 2), torch.tensor([[0.85, 0.0, 0.4]] * 2)
    out = torch.tensor([[1.0, 0.0, 0.0]]).expand(2, 3)
    back = from_axis_angle(torch.tensor([[0.0, 1.0, 0.0]] * 2), torch.tensor([0.0, -0.5]))
    lean = expert._lean_at_box(box, target, to_matrix(back), out)
    # the target leans the box, and the hand with it, outwards by half a radian
    assert lean[0] - lean[1] > 0.3
