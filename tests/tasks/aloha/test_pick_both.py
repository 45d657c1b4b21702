"""`aloha_pick_both` against `aloha_pick` on each side."""

import pytest
import torch

from penspin_style.env.env import Env
from tasks.aloha import pick
from tasks.aloha.one_arm import ActionLatency, Noise
from tasks.aloha.pick_both import Config, PickBoth
from tasks.robots.aloha.description import SIDES

QUIET = {"noise": Noise(scale=0.0), "action_latency": ActionLatency([1.0], [1.0]), "latency": {}}


def make(num_envs=4, **config):
    return Env(PickBoth(Config(**QUIET | config)), num_envs, seed=3, nthread=1)


def alone(side, like):
    """Return `aloha_pick` on one side, in the states of that arm of `like`, bars of its width."""
    env = Env(pick.Pick(pick.Config(**QUIET, side=side)), like.sim.num_envs, seed=8, nthread=1)
    env.reset()
    arm = like.task.arms[SIDES.index(side)]
    for name in ("geom_size", "body_mass", "body_inertia"):
        here, there = (
            (env.task.geom, arm.geom) if "geom" in name else (env.task.one.body, arm.one.body)
        )
        getattr(env.sim.params, name)[:, here] = getattr(like.sim.params, name)[:, there]
    everywhere = torch.ones(env.sim.num_envs, dtype=torch.bool)
    rows = arm.start_state(like.sim)
    rng = torch.Generator().manual_seed(0)
    env.task.set_start_state(env.sim, everywhere, rows, rng)
    env.sim.data.mocap_pos[:, env.task.target] = rows[:, -4:-1].float()
    env.sim.forward()
    return env


def test_each_arm_observes_and_is_paid_as_it_is_alone():
    env = make()
    td = env.reset()
    rng = torch.Generator().manual_seed(1)
    for _ in range(4):
        td["action"] = 2.0 * torch.rand(4, 14, generator=rng) - 1.0
        td = env.step(td)["next"]
    env.sim.forward()
    both, paid = env.task.observe(env.sim), env.task.reward(env.sim, torch.zeros(4, 14))
    for side in SIDES:
        one = alone(side, env)
        for name, value in one.task.observe(one.sim).items():
            torch.testing.assert_close(both[f"{side}_{name}"], value, atol=2e-5, rtol=0)
        for name, value in one.task.reward(one.sim, torch.zeros(4, 7)).items():
            if name != "progress":  # it pays for what has gone before
                torch.testing.assert_close(paid[f"{side}_{name}"], value, atol=2e-5, rtol=2e-4)
    assert len(paid) == 14 and env.inputs[0].size == 106


def test_the_right_arms_start_states_are_the_left_ones_turned_round():
    env = make(num_envs=256, randomize=False)
    env.reset()
    left, right = env.task.arms
    rows = left.start_bank(torch.device("cpu"))[:256]
    turned = right.start_bank(torch.device("cpu"))[:256]
    mask = torch.ones(256, dtype=torch.bool)
    env.task.set_start_state(
        env.sim, mask, torch.cat((rows, turned), dim=1), torch.Generator().manual_seed(0)
    )
    env.sim.forward()
    grips = [arm.one.errors(arm.goal(env.sim)).grip for arm in (left, right)]
    torch.testing.assert_close(grips[0], grips[1], atol=1e-4, rtol=0)
    mats = [arm.one.errors(arm.goal(env.sim)).mat for arm in (left, right)]
    torch.testing.assert_close(mats[0], mats[1], atol=1e-4, rtol=0)
    near = (grips[1].norm(dim=1) < 0.03).float().mean()
    assert near > 0.5  # in most of them a hand is at its bar


def test_the_script_brings_both_bars_to_their_targets():
    env = make(num_envs=8, level=2, episode_length=400)
    td = env.reset()
    script = env.task.expert(env.sim)
    with torch.no_grad():
        for _ in range(170):
            td["action"] = script.act()
            td = env.step(td)["next"]
    assert env.task.success(env.sim).sum() >= 6
    metrics = env.task.step_metrics(env.sim)
    assert torch.equal(
        env.task.success(env.sim), (metrics["left_success"] * metrics["right_success"]).bool()
    )


def test_a_policy_of_one_arm_moves_both_and_nothing_is_learned_from_it():
    env = make(num_envs=8, level=2, pick_policy="pretrained:aloha_pick")
    td = env.reset()
    with torch.no_grad():
        for _ in range(150):
            assert not env.task.learner_acts(env.sim).any()
            td["action"] = torch.ones(8, 14)  # no notice is taken of it
            td = env.step(td)["next"]
    lifted = [env.task.step_metrics(env.sim)[f"{side}_lifted"].sum() for side in SIDES]
    assert min(lifted) >= 6


def test_a_side_is_refused():
    with pytest.raises(ValueError, match=r"task\.side: this task is of both arms, got 'right'"):
        Config(side="right")
