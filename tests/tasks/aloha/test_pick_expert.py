"""The script that picks, and the states that it gives to training."""

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from tasks.aloha.pick import Config, Pick
from tasks.aloha.pick_expert import STAGES


def picks(n, steps, seed=5, **config):
    """Return the environment and its expert after so many steps, and the stages on the way."""
    env = Env(Pick(Config(level=2, episode_length=steps + 1, **config)), n, seed=seed)
    expert = env.task.expert(env.sim)
    expert.restart(torch.ones(n, dtype=torch.bool), torch.Generator())
    stages = []
    for _ in range(steps):
        stages.append(expert.stage.clone())
        action = expert.act()
        assert action.shape == (n, 7) and action.abs().max() <= 1.0
        env.step(env.current().set("action", action))
    return env, expert, torch.stack(stages)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_script_picks_most_bars_through_every_stage_on_both_arms(side):
    env, _, stages = picks(16, 220, side=side)
    won = env.task.success(env.sim)
    assert won.sum() >= 12
    assert set(stages[:, won].unique().tolist()) == set(range(len(STAGES)))


def test_a_bar_that_is_lost_is_picked_again():
    env, expert, _ = picks(8, 130)
    lifted = env.task.one.place()[:, 2] > 0.1
    carrying = (expert.stage == STAGES.index("carry")) & lifted
    assert carrying.sum() >= 4
    qpos = env.sim.data.qpos
    qpos[:, 8:15] = torch.tensor([-0.12, 0.0, 0.02, 1.0, 0.0, 0.0, 0.0])
    env.sim.data.qvel.zero_()
    env.sim.forward()
    expert.act()
    assert (expert.stage[carrying] == 0).all()
    grip = torch.tensor([-0.14, 0.0, 0.02])
    torch.testing.assert_close(expert.grasp[carrying], grip.expand(int(carrying.sum()), 3))


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
