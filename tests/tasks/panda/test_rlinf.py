"""RLinf's two ids: layout, reward, horizons and chunks, by hand and against our own environment."""

import gymnasium
import numpy as np
import pytest
import torch

import tasks
from tasks.panda.rlinf import DESCRIPTION, RLinfVectorEnv

STATE, VISION = (f"tasks:penspin_style/PandaPickCube{v}-v0" for v in ("", "Vision"))


def vector(num_envs=2, *, vision=False, **settings):
    vec = RLinfVectorEnv(num_envs, vision=vision, **settings)
    vec.action_space.seed(0)
    return vec


def test_the_ids_are_those_of_the_lifting_tasks_and_playgrounds_task_has_another():
    assert gymnasium.spec(STATE.removeprefix("tasks:")).kwargs == {"vision": False}
    assert gymnasium.spec(VISION.removeprefix("tasks:")).kwargs == {"vision": True}
    assert tasks.gymnasium_id("panda_pick_cube") == "penspin_style/PlaygroundPandaPickCube-v0"
    assert type(gymnasium.make(STATE).unwrapped._lift.env.task).__name__ == "PandaLiftCube"
    ids = [tasks.gymnasium_id(name) for name in tasks.task_names()]
    assert len(set(ids) | {i.removeprefix("tasks:") for i in (STATE, VISION)}) == len(ids) + 2


def test_the_state_is_ten_numbers_by_sorted_key():
    env = gymnasium.make(STATE)
    seen, _ = env.reset(seed=3)
    assert set(seen) == {"states"} and seen["states"].shape == (10,)
    assert env.action_space.shape == (4,)
    task = env.unwrapped._lift.env.task
    expected = (task.box[0], task.finger[:1], task.arm.position[0], task.tcp_linvel[0])
    np.testing.assert_allclose(seen["states"], torch.cat(expected), atol=1e-6)
    seen, *_ = env.step(np.array([0.0, 0.0, 0.0, -1.0], dtype=np.float32))
    # the measured joint, which has not yet reached what is commanded
    assert 0.04 * 0.75 < seen["states"][3] <= 0.04
    assert env.observation_space.contains(seen)


def test_from_images_there_are_two_of_them_and_what_the_robot_knows_of_itself():
    vec = vector(vision=True, pixels=16)
    seen, _ = vec.reset(seed=1)
    assert seen["main_images"].shape == seen["wrist_images"].shape == (2, 16, 16, 3)
    assert seen["main_images"].dtype == np.uint8 and seen["main_images"].std() > 1.0
    assert (seen["main_images"] != seen["wrist_images"]).any()
    assert seen["states"].shape == (2, 7)
    assert seen["task_descriptions"] == (DESCRIPTION,) * 2
    task = vec.torch_env.task
    np.testing.assert_allclose(seen["states"][:, 0], task.finger, atol=1e-6)
    assert vec.single_observation_space["main_images"].shape == (16, 16, 3)
    first, _ = gymnasium.make(VISION, pixels=16).reset(seed=1)
    assert first["task_descriptions"] == "pick up the cube"


def test_the_reward_is_the_published_one_of_reach_and_lift():
    vec = vector(3)
    vec.reset(seed=5)
    _, reward, *_ = vec.step(vec.action_space.sample())
    task = vec.torch_env.task
    distance = (task.box - task.arm.position).norm(dim=1).numpy()
    height = task.box[:, 2].numpy() - 0.02
    published = 0.3 * np.exp(-20.0 * distance) + 0.7 * np.clip(height / 0.22, 0.0, 1.0)
    np.testing.assert_allclose(reward, published, atol=1e-6)


def test_relative_rewards_add_up_to_the_last_dense_one():
    dense, relative = vector(horizon=6), vector(horizon=6, use_rel_reward=True)
    for vec in (dense, relative):
        vec.reset(seed=2)
    actions = [dense.action_space.sample() for _ in range(7)]
    paid = [relative.step(a)[1] for a in actions]
    known = [dense.step(a)[1] for a in actions]
    np.testing.assert_allclose(np.sum(paid[:6], axis=0), known[5], atol=1e-9)
    np.testing.assert_allclose(paid[6], known[6], atol=1e-9)  # a new episode begins at 0


@pytest.mark.parametrize(("settings", "steps"), [({}, 200), ({"horizon": 3}, 3)])
def test_the_time_limit_truncates_at_the_horizon(settings, steps):
    vec = vector(1, **settings)
    vec.reset(seed=0)
    still = np.zeros((1, 4), dtype=np.float32)
    ends = [vec.step(still)[2:4] for _ in range(steps)]
    assert [bool(truncated[0]) for _, truncated in ends] == [False] * (steps - 1) + [True]
    assert not any(terminated[0] for terminated, _ in ends)
    assert vector(1, vision=True, pixels=8).torch_env.cfg.episode_length == 100


def test_success_once_stays_for_the_episode_and_goes_with_it():
    vec = vector(2, horizon=4)
    vec.reset(seed=0)
    task, still = vec.torch_env.task, np.zeros((2, 4), dtype=np.float32)
    given = iter([[True, False], [False, False], [False, True], [False, False], [False, False]])
    task.success = lambda sim: torch.tensor(next(given))
    once = [vec.step(still)[4]["success_once"].tolist() for _ in range(5)]
    assert once == [[True, False], [True, False], [True, True], [True, True], [False, False]]


def test_a_chunk_pays_step_by_step_and_nothing_after_the_end():
    steps, chunked = vector(horizon=3), vector(horizon=3)
    for vec in (steps, chunked):
        vec.reset(seed=4)
    chunk = np.stack([steps.action_space.sample() for _ in range(5)], axis=1)
    seen, rewards, terminated, truncated, infos = chunked.chunk_step(chunk)
    assert rewards.shape == terminated.shape == truncated.shape == (2, 5)
    paid = [steps.step(chunk[:, k]) for k in range(3)]
    np.testing.assert_array_equal(rewards[:, :3], np.stack([p[1] for p in paid], axis=1))
    assert (rewards[:, 3:] == 0.0).all()
    assert truncated.tolist() == [[False, False, True, False, False]] * 2 and not terminated.any()
    assert infos["episode_len"].tolist() == [3, 3]
    last = paid[2][4]["final_obs"]["states"]
    np.testing.assert_array_equal(infos["final_obs"]["states"], last)
    assert (np.abs(seen["states"] - last).max(axis=1) > 1e-3).all()  # of the new episode
    assert chunked.step(chunk[:, 0])[4]["episode_len"].tolist() == [1, 1]


def test_a_seed_determines_everything():
    first, second = gymnasium.make(STATE), gymnasium.make(STATE)
    second.reset(seed=1)
    second.step(second.action_space.sample())
    a, b = first.reset(seed=9)[0], second.reset(seed=9)[0]
    np.testing.assert_array_equal(a["states"], b["states"])
    assert not np.array_equal(first.reset()[0]["states"], a["states"])


def test_what_is_invalid_is_refused():
    vec = vector()
    vec.reset(seed=0)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        vector(horizon=0)
    with pytest.raises(ValueError, match=r"chunks must be \(num_envs, steps, 4\), got \(2, 4\)"):
        vec.chunk_step(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"the action must be \(2, 4\) real numbers"):
        vec.step(np.zeros((2, 8)))  # RLinf's eight, of which it takes four
