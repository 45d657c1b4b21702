"""The script that hands the box over, in any state that it is asked in."""

import pytest
import torch

from penspin_style.env.env import Env
from tasks.aloha.handover import HandOver

LEFT, RIGHT = 6, 13  # the grippers' actions
FINGERS = slice(6, 8), slice(14, 16)  # of qpos


def make(n, seed=5, **config):
    """Return an environment, and its expert."""
    env = Env(HandOver(HandOver.Config(**config)), n, seed=seed)
    expert = env.task.expert(env.sim)
    expert.restart(torch.ones(n, dtype=torch.bool), env.rng)
    return env, expert


def run(env, expert, steps, noise=0.0):
    """Let the expert act; return where the box was at its target at some step, (n,)."""
    rng = torch.Generator().manual_seed(0)
    won = torch.zeros(env.num_envs, dtype=torch.bool)
    for _ in range(steps):
        action = expert.act()
        assert action.shape == (env.num_envs, 14) and action.abs().max() <= 1.0
        action = action + noise * torch.randn(action.shape, generator=rng)
        step, _ = env.step_and_maybe_reset(env.current().set("action", action.clamp(-1.0, 1.0)))
        won |= step["next", "success"][:, 0]
    return won


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_script_hands_over_within_the_time_limit_also_when_it_is_disturbed(noise):
    env, expert = make(24)
    assert run(env, expert, env.cfg.episode_length, noise).all()


def test_what_the_script_does_follows_from_what_is_observed():
    env, expert = make(6)
    run(env, expert, 90)
    held = expert.act()
    assert torch.equal(expert.act(), held) and expert.memory == {}
    late = env.task.expert(env.sim)
    late.restart(torch.zeros(6, dtype=torch.bool), env.rng)
    assert torch.equal(late.act(), held)
    env.sim.data.ctrl[:] = 0.01  # commands are no part of the observation
    env.sim.forward()
    assert torch.equal(expert.act(), held)


def test_hands_close_at_the_box_and_open_where_they_have_closed_on_nothing():
    env, expert = make(4)
    sim, task = env.sim, env.task
    at_box = task.left.position(sim) - torch.tensor([0.0, 0.0, 0.02])
    sim.data.qpos[:, 16:19] = at_box  # its top is where the left hand is
    sim.data.qpos[2:, 16] += 0.1
    sim.data.qpos[:, FINGERS[0]] = torch.tensor([0.037, 0.0237, 0.037, 0.015])[:, None].double()
    sim.forward()
    assert expert.act()[:, LEFT].tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert (expert.act()[:, RIGHT] == 1.0).all()  # far away


def test_the_left_hand_lets_go_once_the_right_one_has_the_box_and_fetches_one_that_is_lost():
    env, expert = make(1)
    steps = 0
    while not expert.look()[1].holds.all():
        assert not expert.act()[0, LEFT] > 0.0 or not env.task.left.touches().any()
        run(env, expert, 1)
        steps += 1
        assert steps < 180
    assert env.task.left.touches().all()
    assert expert.act()[0, LEFT] == 1.0 and expert.act()[0, RIGHT] == -1.0
    run(env, expert, 15)
    assert env.task.right.grasps(env.sim, 0.5).all() and not env.task.left.touches().any()
    # the box is on the left half of the table again
    env.sim.data.qpos[:, 16:23] = torch.tensor([-0.16, 0.0, 0.03, 1.0, 0.0, 0.0, 0.0]).double()
    env.sim.forward()
    assert (expert.act()[0, [LEFT, RIGHT]] == 1.0).all()
    far = expert.look()[0].far.clone()
    run(env, expert, 40)
    assert (expert.look()[0].far < far - 0.1).all()
