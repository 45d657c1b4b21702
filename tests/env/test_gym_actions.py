"""Actions and masks of another shape or type are refused, by every front, before anything moves."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict

import tasks  # registers the ids
from penspin_style.env.env import Env
from penspin_style.sim.sim import Fault
from tasks.panda_lift_cube import TASK, Config

ID = tasks.gymnasium_id("panda_lift_cube")
NUM, NACTION = 3, 4
CONFIG = {"randomize": False}


@pytest.fixture(scope="module")
def single():
    env = gymnasium.make(ID, disable_env_checker=True, config=CONFIG)
    env.reset(seed=0)
    return env


@pytest.fixture(scope="module")
def several():
    envs = gymnasium.make_vec(ID, num_envs=NUM, config=CONFIG)
    envs.reset(seed=0)
    return envs


@pytest.fixture(scope="module")
def env():
    return Env(TASK(Config(**CONFIG)), NUM)


WRONG = [
    (np.full(3, 0.5, np.float32), "(3,) float32"),
    (np.full(7, 0.5, np.float32), "(7,) float32"),
    (np.full(9, 0.5), "(9,) float64"),
    (np.full((1, 4), 0.5), "(1, 4) float64"),
    (np.float32(0.5), "() float32"),
    (np.ones(4, dtype=bool), "(4,) bool"),
    (np.ones(4, dtype=complex), "(4,) complex128"),
    (np.array(["1"] * 4), "(4,) <U1"),
    (None, "() object"),
]


@pytest.mark.parametrize(("action", "got"), WRONG, ids=[got for _, got in WRONG])
def test_an_action_that_is_not_four_numbers_moves_nothing(single, action, got):
    state = single.unwrapped._front.env.sim.get_state()
    wanted = f"the action must be (4,) real numbers, got {got}"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        single.step(action)
    assert torch.equal(single.unwrapped._front.env.sim.get_state(), state)


@pytest.mark.parametrize("shape", [(3, 7), (3, 9), (3, 3), (4,), (4, 3), (2, 4), (1, 4), (3, 4, 1)])
def test_actions_of_another_shape_are_refused_by_a_vector_environment(several, shape):
    wanted = f"the action must be (3, 4) real numbers, got {shape} float32"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        several.step(np.zeros(shape, np.float32))


def test_an_action_that_is_not_finite_is_refused_with_its_place(single, several):
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=re.escape(f"finite, got {value} at [2]")):
            single.step(np.array([0, 0, value, 0], np.float32))
        actions = np.zeros((NUM, NACTION))
        actions[1, 3] = value
        with pytest.raises(ValueError, match=re.escape(f"finite, got {value} at [1, 3]")):
            several.step(actions)


def test_lists_whole_numbers_and_doubles_act_as_the_same_floats_do(single):
    def after(action):
        single.reset(seed=4)
        return single.step(action)[0]

    wanted = after(np.array([1, 0, -1, 1], np.float32))
    assert np.array_equal(after([1, 0, -1, 1]), wanted)
    assert np.array_equal(after(np.array([1, 0, -1, 1])), wanted)
    assert np.array_equal(after(np.array([1e300, 0, -1e300, 1])), wanted)  # no float32: clipped


@pytest.mark.parametrize(
    ("action", "got"),
    [
        (torch.zeros(NUM, 7), r"\(3, 7\) float32"),
        (torch.zeros(NUM, 9), r"\(3, 9\) float32"),
        (torch.zeros(NUM), r"\(3,\) float32"),
        (torch.zeros(NUM, NACTION, 1), r"\(3, 4, 1\) float32"),
        (torch.zeros(NUM, NACTION, dtype=torch.float64), r"\(3, 4\) float64"),
        (torch.zeros(NUM, NACTION, dtype=torch.long), r"\(3, 4\) int64"),
    ],
    ids=str,
)
def test_env_refuses_actions_of_another_shape_or_type(env, action, got):
    before = env.sim.get_state()
    for step in (env.step, env.step_and_maybe_reset):
        with pytest.raises(ValueError, match=rf"the action must be \(3, 4\) float32, got {got}"):
            step(env.current().set("action", action))
    with pytest.raises(ValueError, match="the action must be"):
        env.step(TensorDict({"action": action}, [NUM]))
    assert torch.equal(env.sim.get_state(), before)


def test_env_counts_an_action_that_is_not_finite_and_ends_that_episode_alone(env):
    action = torch.zeros(NUM, NACTION)
    action[1, 2] = float("inf")
    after = env.step(env.current().set("action", action))["next"]
    assert after["fault"].view(-1).tolist() == [False, True, False]
    assert after["truncated"].view(-1).tolist() == [False, True, False]
    (record,) = env.take_faults()
    assert (record.env_id, record.code) == (1, Fault.ACTION)


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.ones(1, dtype=torch.bool), r"\(1,\) bool"),
        (torch.ones(NUM, 1, dtype=torch.bool), r"\(3, 1\) bool"),
        (torch.tensor([0, 1]), r"\(2,\) int64"),
        (torch.tensor([0, 1, 2]), r"\(3,\) int64"),
    ],
    ids=str,
)
def test_a_mask_is_neither_stretched_nor_taken_for_ids(env, mask, got):
    sim = env.sim
    before = sim.get_state()
    for call in (sim.reset, sim.forward, sim.set_const, lambda m: sim.set_state(before + 1, m)):
        with pytest.raises(ValueError, match=rf"a mask must be \(3,\) bool, got {got}"):
            call(mask)
    assert torch.equal(sim.get_state(), before)


def test_positions_to_start_from_are_not_stretched_over_the_environments(env):
    everywhere = torch.ones(NUM, dtype=torch.bool)
    nq = env.sim.data.qpos.shape[1]
    for shape in ((1, nq), (NUM, 1), (nq,), (NUM, nq + 1)):
        with pytest.raises(ValueError, match=re.escape(f"must be (3, {nq}), got {shape}")):
            env.task.place(env.sim, everywhere, torch.zeros(shape, dtype=torch.float64))


def test_a_mask_of_resets_may_be_a_list(several):
    several.reset(options={"reset_mask": [True, False, True]})
    with pytest.raises(ValueError, match=r"must be \(3,\) bool, got \(3,\) int64"):
        several.reset(options={"reset_mask": [1, 0, 1]})
