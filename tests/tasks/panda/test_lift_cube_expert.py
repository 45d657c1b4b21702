"""The script that lifts the cube: in any state, without memory."""

import torch

from penspin_style.env.env import Env
from tasks.panda.lift_cube import Config, PandaLiftCube


def made(n, seed=3, **config):
    env = Env(PandaLiftCube(Config(**config)), n, seed=seed, nthread=1)
    return env, env.task.expert(env.sim)


def test_the_script_lifts_nearly_every_cube():
    env, expert = made(48)
    won = torch.zeros(48, dtype=torch.bool)
    for _ in range(79):
        action = expert.act()
        assert action.shape == (48, 4) and action.abs().max() <= 1.0
        env.step(env.current().set("action", action))
        won |= env.task.success(env.sim)
    assert won.sum() >= 45


def test_what_it_does_follows_from_the_state_alone():
    env, expert = made(4)
    for _ in range(20):
        env.step(env.current().set("action", expert.act()))
    action = expert.act()
    expert.restart(torch.ones(4, dtype=torch.bool), torch.Generator())
    assert expert.memory == {} and torch.equal(expert.act(), action)
    assert torch.equal(env.task.expert(env.sim).act(), action)


def test_a_cube_that_fell_is_taken_again_with_an_open_hand():
    env, expert = made(4, episode_length=200)
    for _ in range(45):
        env.step(env.current().set("action", expert.act()))
    at = env.task.box_qpos
    env.sim.data.qpos[:, at : at + 3] = torch.tensor([0.4, 0.1, 0.02], dtype=torch.float64)
    env.sim.data.qvel.zero_()
    env.sim.forward()
    assert (expert.act()[:, 3] == 1.0).all()
    for _ in range(70):
        env.step(env.current().set("action", expert.act()))
    assert env.task.success(env.sim).all()
