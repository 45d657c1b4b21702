"""The script that picks, and the states that it gives to training."""

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from tasks.aloha.pick import Config, Pick
from tasks.aloha.pick_expert import GO_ON

SHUT, OPEN = -1.0, 1.0


def made(n, steps=160, seed=5, **config):
    env = Env(Pick(Config(level=2, episode_length=steps + 1, **config)), n, seed=seed, nthread=1)
    return env, env.task.expert(env.sim)


def go(env, expert, steps):
    for _ in range(steps):
        action = expert.act()
        assert action.shape == (env.num_envs, 7) and action.abs().max() <= 1.0
        env.step(env.current().set("action", action))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_script_picks_nearly_all_bars_in_an_episode_on_both_arms(side):
    env, expert = made(24, side=side)
    go(env, expert, 160)
    errors = env.task.one.errors(env.task.goal(env.sim))
    assert env.task.success(env.sim).sum() >= 22
    assert errors.target.norm(dim=1).median() < 0.005  # it ends where it should, not at the limit


@pytest.mark.parametrize(("half", "mass"), [(0.01, 0.044), (0.022, 0.134)], ids=["peg", "socket"])
def test_the_script_picks_what_is_as_wide_and_heavy_as_peg_and_socket(half, mass):
    env, expert = made(16, half_width=[half, half], mass=[mass, mass])
    go(env, expert, 160)
    assert env.task.success(env.sim).sum() >= 14


def test_what_it_does_follows_from_the_state_alone():
    env, expert = made(8)
    go(env, expert, 75)
    fresh = env.task.expert(env.sim)
    assert expert.memory == {} and expert.picking[0].grasp()[0].any()
    assert torch.equal(fresh.act(), expert.act()) and torch.equal(fresh.act(), fresh.act())
    mask, rng = torch.ones(8, dtype=torch.bool), torch.Generator()
    before = expert.act()
    expert.restart(mask, rng)
    assert torch.equal(expert.act(), before)


def test_a_bar_that_is_lost_is_picked_again_with_open_fingers():
    env, expert = made(8, 300)
    go(env, expert, 120)
    held, _ = expert.picking[0].grasp()
    assert held.sum() >= 7
    qpos = env.sim.data.qpos
    qpos[:, 8:15] = torch.tensor([-0.12, 0.0, 0.02, 1.0, 0.0, 0.0, 0.0])
    env.sim.data.qvel.zero_()
    env.sim.forward()
    assert not expert.picking[0].grasp()[0].any() and (expert.act()[:, 6] == OPEN).all()
    go(env, expert, 160)
    assert env.task.success(env.sim).sum() >= 6


def put_hands_at_the_grip(env):
    """Move each bar to where the fingertips are; return the fingers' places and commands."""
    task, data = env.task, env.sim.data
    at, arm = task.one.qpos, task.arm
    data.qpos[:, at : at + 3] += arm.tips(env.sim) - data.site_xpos[:, task.one.grip]
    return data.qpos[:, arm.qpos][:, 6:], data.ctrl[:, arm.ctrl][:, 6]


@pytest.mark.parametrize(
    ("fingers", "command", "gripper"),
    [
        (0.037, 0.037, SHUT),  # open, and there
        (0.028, 0.002, SHUT),  # on its way to close
        (0.002, 0.002, OPEN),  # closed on nothing
        (0.026, 0.037, OPEN),  # on its way to open
    ],
)
def test_a_hand_at_the_bar_goes_on_as_its_command_says(fingers, command, gripper):
    env, expert = made(2, half_width=[0.01, 0.01])
    places, commands = put_hands_at_the_grip(env)
    places.fill_(fingers)
    commands.fill_(command)
    env.sim.forward()
    held, _ = expert.picking[0].grasp()
    assert not held.any() and (expert.act()[:, 6] == gripper).all()
    at = env.task.one.qpos
    env.sim.data.qpos[:, at] += 2.0 * GO_ON  # away from the bar every hand opens
    env.sim.forward()
    assert (expert.act()[:, 6] == OPEN).all()


def test_beside_the_bar_the_hand_keeps_above_it():
    env, expert = made(2)
    go(env, expert, 40)
    task, data, at = env.task, env.sim.data, env.task.one.qpos
    lifts = []
    for beside in (0.0, 0.02):
        put_hands_at_the_grip(env)
        data.qpos[:, at + 1] += beside
        data.qpos[:, at + 2] -= 0.02  # it is still 2 cm to go down
        env.sim.forward()
        settle(expert)
        lifts.append(expert.picking[0]._approach()[0][:, 2].clone())
        assert task.arm.position(env.sim).shape == (2, 3)
    assert (lifts[0] < 0.0).all() and (lifts[1] > 0.02).all()


def settle(expert):
    expert.picking[0].settle()
    expert.ghost.forward()


def swing(env, expert, shift, turn, **limits):
    wide = {"low": torch.full((2, 6), -9.0), "high": torch.full((2, 6), 9.0)}
    settle(expert)
    rows = [torch.tensor(x).expand(2, 3) for x in (shift, turn)]
    return expert.picking[0].reach.swing(*rows, speed=0.02, **{**wide, **limits})


def test_the_hand_moves_on_while_the_wrist_turns_as_fast_as_it_can():
    env, expert = made(2)
    up, pitch = (0.0, 0.0, 0.01), (0.0, 0.6, 0.0)
    change = swing(env, expert, up, pitch)
    slowly = expert.picking[0].reach.move(*(torch.tensor([x, x]) for x in (up, pitch)), speed=0.02)
    torch.testing.assert_close(change[:, 4], torch.full((2,), 0.02))
    assert (slowly.abs().amax(dim=1) == slowly[:, 4].abs()).all()  # it holds the others back
    env.sim.data.ctrl[:, :6] += change
    before = expert.picking[0].arm.position(expert.ghost)[:, 2].clone()
    settle(expert)
    assert (
        expert.picking[0].arm.position(expert.ghost)[:, 2] - before > 0.0015
    ).all()  # 30 times as far as slowly


def test_a_joint_at_its_limit_rests_and_the_others_make_up_for_it():
    env, expert = made(2)
    down = (0.0, 0.0, -0.004)
    free = swing(env, expert, down, (0.0, 0.0, 0.0))
    assert (free[:, 2].abs() > 1e-3).all() or (free[:, 1].abs() > 1e-3).all()
    low, high = torch.full((2, 6), -9.0), torch.full((2, 6), 9.0)
    low[:, 1] = high[:, 1] = 0.0  # the shoulder
    change = swing(env, expert, down, (0.0, 0.0, 0.0), low=low, high=high)
    assert (change[:, 1] == 0.0).all()
    without = free.clone()
    without[:, 1] = 0.0
    before, left = expert.picking[0].arm.position(expert.ghost).clone(), []
    home = env.sim.data.ctrl.clone()
    for step in (change, without):
        env.sim.data.ctrl.copy_(home)
        env.sim.data.ctrl[:, :6] += step
        settle(expert)
        moved = expert.picking[0].arm.position(expert.ghost) - before
        left.append((moved - torch.tensor(down)).norm(dim=1))
    assert (left[0] < 0.95 * left[1]).all()


@pytest.mark.parametrize("name", ["aloha_pick", "aloha_handover"])
def test_the_tasks_of_aloha_offer_an_expert(name):
    kind = load_task(name)
    env = Env(kind(kind.Config()), 2, seed=0)
    expert = env.task.expert(env.sim)
    expert.restart(torch.ones(2, dtype=torch.bool), torch.Generator())
    assert expert.act().shape == (2, len(env.task.actions))


def test_episodes_can_begin_in_the_states_that_come_with_the_task():
    env = Env(Pick(Config(level=0)), 64, seed=0)
    bank = env.task.start_bank(torch.device("cpu"))
    assert bank.shape[1] == env.task.start_state(env.sim).shape[1] and len(bank) > 1000
    rng = torch.Generator().manual_seed(0)
    rows = bank[torch.randint(len(bank), (64,), generator=rng)].double()
    env.task.set_start_state(env.sim, torch.ones(64, dtype=torch.bool), rows, rng)
    env.sim.forward()
    up = env.task.one.place()[:, 2] > 0.1
    assert up.sum() > 10
    for _ in range(20):
        env.step(env.current().set("action", torch.zeros(64, 7)))
    # bars of another width than the demonstration's stay in the hand all the same
    assert (env.task.one.place()[up, 2] > 0.08).float().mean() > 0.9
