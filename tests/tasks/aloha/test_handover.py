"""The published AlohaHandOver, recomputed in NumPy from MuJoCo's own structures."""

import json
import pathlib

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from tasks.aloha.handover import TASK, HandOver

TABLE = json.loads(
    (pathlib.Path(__file__).parents[1] / "robots" / "aloha_reference.json").read_text()
)
HOME, PICKED, TRANSFERRED = TABLE["scenes"]["handover"]["keyframes"]
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
BOX = slice(16, 19)  # of qpos
SIZES = {
    "qpos": 23,
    "qvel": 22,
    "finger_gap": 4,
    "box_top": 3,
    "box_bottom": 3,
    "left_gripper_pos": 3,
    "left_gripper_mat": 6,
    "right_gripper_pos": 3,
    "right_gripper_mat": 6,
    "box_mat": 6,
    "target_to_box": 3,
    "episode_time": 1,
}
FINGERS = [
    f"{side}_{finger}_finger_{edge}"
    for side in ("left", "right")
    for finger in ("left", "right")
    for edge in ("top", "bottom")
]


def make(num_envs, **config):
    return Env(HandOver(HandOver.Config(**config)), num_envs, seed=1)


def worlds(env):
    """MuJoCo's own view of every environment."""
    for row in env.sim.get_state().numpy():
        data = mujoco.MjData(env.model)
        mujoco.mj_setState(env.model, data, row, STATE)
        mujoco.mj_forward(env.model, data)
        yield data


def published_observation(data, step):
    left, right, box = data.site("left_gripper"), data.site("right_gripper"), data.body("box")
    return np.concatenate(
        (
            data.qpos,
            data.qvel,
            data.qpos[[6, 7, 14, 15]] - 0.015,
            data.site("box_top").xpos,
            data.site("box_bottom").xpos,
            left.xpos,
            left.xmat[3:],
            right.xpos,
            right.xmat[3:],
            box.xmat[3:],
            box.xpos - data.mocap_pos[0],
            [step / 250],
        )
    )


def near(a, b):
    return np.exp(-10 * np.linalg.norm(np.asarray(a) - np.asarray(b)))


def logistic(x, at, direction):
    return 1 / (1 + np.exp(-100 * direction * (x - at)))


def published_terms(data):
    """The four terms of the potential."""
    box, target = data.body("box").xpos, data.mocap_pos[0]
    left, right = data.site("left_gripper").xpos, data.site("right_gripper").xpos
    before, past = box[0] < -0.1, box[0] >= 0
    between = not before and not past
    meeting = (0, 0, 0.24)
    left_term = near(data.site("box_top").xpos, left) * (before or between)
    right_term = near(data.site("box_bottom").xpos, right) * (between or past)
    bias = near(data.site("box_bottom").xpos, right) * past
    geoms = {data.model.geom(name).id for name in FINGERS}
    table = data.model.geom("table").id
    hit = any(table in pair and geoms & set(pair.tolist()) for pair in data.contact.geom)
    return {
        "gripper_box": left_term + right_term + bias,
        "box_handover": max(near(box, meeting), near(left, meeting) * past),
        "handover_target": near(target, box) * (right_term + bias) * logistic(left[0], 0, -1),
        "no_table_collision": 1.0 - hit,
    }


def published_potential(data):
    terms = published_terms(data)
    weights = {"gripper_box": 1, "box_handover": 4, "handover_target": 8}
    total = sum(weights[name] * terms[name] for name in weights)
    return (total + 0.3 * terms["no_table_collision"]) / 13.3


def set_state(env, keyframe, box=None):
    env.sim.data.qpos[:] = torch.tensor(keyframe["qpos"], dtype=torch.float64)
    env.sim.data.qvel[:] = 0.0
    if box is not None:
        env.sim.data.qpos[:, BOX] = torch.as_tensor(box, dtype=torch.float64)
    env.sim.forward()


def scattered(num_envs=64):
    """States all over: arms and boxes anywhere, in each of the three regions."""
    env = make(num_envs)
    rng = np.random.default_rng(0)
    qpos = np.tile(TRANSFERRED["qpos"], (num_envs, 1))
    for arm in (0, 8):
        qpos[:, arm : arm + 6] += rng.uniform(-0.4, 0.4, (num_envs, 6))
    qpos[:, BOX] = rng.uniform((-0.3, -0.1, 0.03), (0.3, 0.1, 0.4), (num_envs, 3))
    qpos[:, 19:] = rng.normal(size=(num_envs, 4))
    qpos[:, 19:] /= np.linalg.norm(qpos[:, 19:], axis=1, keepdims=True)
    env.sim.data.qpos.copy_(torch.as_tensor(qpos))
    env.sim.forward()
    return env


def step(env, action=None):
    action = torch.zeros(env.num_envs, 14) if action is None else action
    return env.step(env.current().set("action", action))["next"]


def test_the_83_numbers_have_the_published_order_and_sizes():
    (group,) = make(1).inputs
    assert {feature.name: feature.size for feature in group.features} == SIZES
    assert [feature.name for feature in group.features] == list(SIZES)
    assert group.size == 83


def test_the_observation_equals_an_independent_computation():
    env = make(3)
    expected = np.stack([published_observation(data, 0) for data in worlds(env)])
    np.testing.assert_allclose(env.current()["teacher"], expected, atol=2e-6)
    after = env.rollout(20)[:, -1]["next", "teacher"]
    expected = np.stack([published_observation(data, 20) for data in worlds(env)])
    np.testing.assert_allclose(after, expected, atol=2e-5)


def test_the_observation_equals_it_wherever_box_and_arms_are():
    env = scattered(16)
    seen = env.task.observe(env.sim)
    seen = torch.cat([seen[name].float().flatten(1) for name in SIZES], dim=1)
    expected = np.stack([published_observation(data, 0) for data in worlds(env)])
    np.testing.assert_allclose(seen, expected, atol=2e-6)


def test_the_clock_in_the_observation_does_not_depend_on_the_time_limit():
    short = make(1, episode_length=40)
    assert step(short)["teacher"][0, -1].item() == pytest.approx(1 / 250)
    with pytest.raises(ValueError, match=r"task\.clock must be at least 1, got 0"):
        HandOver.Config(clock=0)


def test_every_term_of_the_potential_equals_an_independent_computation():
    env = scattered(256)
    found = env.task.potential(env.sim)
    expected = [published_terms(data) for data in worlds(env)]
    for name, values in found.items():
        rows = [row[name] for row in expected]
        np.testing.assert_allclose(values, rows, atol=2e-5, err_msg=name)
        assert np.ptp(rows) > 0.1, name
    x = env.sim.data.qpos[:, 16]
    regions = (x < -0.1, (x >= -0.1) & (x < 0), x >= 0)
    assert all(region.sum() > 20 for region in regions)
    hits = [row["no_table_collision"] for row in expected]
    assert 5 < hits.count(0.0) < 251


def test_a_keyframe_of_the_hand_over_is_worth_more_the_further_it_is():
    env = make(1)
    worth = []
    for keyframe in (HOME, PICKED, TRANSFERRED):
        set_state(env, keyframe)
        (data,) = worlds(env)
        terms = env.task.potential(env.sim)
        total = sum(env.task.cfg.potential[name] * terms[name].item() for name in terms) / 13.3
        assert total == pytest.approx(published_potential(data), abs=1e-5)
        worth.append(total)
    assert worth[0] < worth[1] < worth[2]


def test_the_reward_pays_gains_over_the_best_and_nothing_in_the_first_step():
    env = make(4)
    rng = torch.Generator().manual_seed(3)
    best = None
    paid = 0
    for i in range(60):
        reward = step(env, 2 * torch.rand(4, 14, generator=rng) - 1)["reward"][:, 0]
        data = list(worlds(env))
        potential = np.array([published_potential(one) for one in data])
        hold = np.array(
            [
                logistic(one.site("left_gripper").xpos[0], 0, -1)
                * logistic(one.body("box").xpos[0], 0.1, 1)
                for one in data
            ]
        )
        if i == 0:
            np.testing.assert_array_equal(reward, 0.0)
            best = potential
        gain = np.maximum(potential - best, 0)
        if i:
            np.testing.assert_allclose(reward, gain + 0.02 * potential * hold, atol=3e-6)
        best = np.maximum(best, potential)
        paid += (gain > 0).sum()
    assert 20 < paid < 4 * 59
    np.testing.assert_allclose(env.task.memory["best"], best, atol=1e-5)
    assert (env.task.progress(env.sim) > 0).all()


def test_holding_on_the_right_pays_two_hundredths_of_the_potential():
    env = make(2)
    step(env), step(env)
    set_state(env, TRANSFERRED, box=[[0.15, 0.0, 0.3], [0.05, 0.0, 0.3]])
    env.sim.data.qpos[:, 0] = 1.0  # the left arm goes aside
    env.sim.forward()
    hold = env.task.reward(env.sim, torch.zeros(2, 14))["hold"]
    for one, value in zip(worlds(env), hold.tolist(), strict=True):
        away = logistic(one.site("left_gripper").xpos[0], 0, -1)
        past = logistic(one.body("box").xpos[0], 0.1, 1)
        assert value == pytest.approx(published_potential(one) * away * past, abs=1e-5)
    assert hold[0] > 10 * hold[1] > 0
    assert env.task.cfg.reward == {"progress": 1.0, "hold": 0.02, "dropped": -0.1}


def test_a_box_that_falls_after_it_was_lifted_costs_a_tenth_and_ends_the_episode():
    env = make(3)
    step(env)
    # lifted; lifted not quite; never
    set_state(env, HOME, box=[[-0.16, 0, 0.151], [-0.16, 0, 0.149], [-0.16, 0, 0.0308]])
    env.task.reward(env.sim, torch.zeros(3, 14))
    assert not env.task.terminated(env.sim).any()
    set_state(env, HOME, box=[[-0.16, 0, 0.049]] * 3)
    dropped = env.task.reward(env.sim, torch.zeros(3, 14))["dropped"]
    assert dropped.tolist() == [1.0, 0.0, 0.0]
    assert env.task.terminated(env.sim).tolist() == [True, False, False]
    set_state(env, HOME, box=[[-0.16, 0, 0.051]] * 3)
    assert not env.task.terminated(env.sim).any()


def test_a_box_out_of_the_world_ends_the_episode():
    env = make(4)
    set_state(env, HOME, box=[[-1.01, 0, 0.2], [0, 1.01, 0.2], [0, 0, -0.01], [0.9, -0.9, 0.9]])
    assert env.task.terminated(env.sim).tolist() == [True, True, True, False]


def test_memories_of_an_episode_are_cleared_where_it_begins_anew():
    env = make(3)
    for _ in range(3):
        step(env)
    env.task.memory["lifted"].fill_(True)
    env._restart(torch.tensor([False, True, False]))
    assert env.task.memory["lifted"].tolist() == [True, False, True]
    assert env.task.memory["steps"].tolist() == [3.0, 0.0, 3.0]
    assert env.task.memory["best"][1] == -np.inf and env.task.memory["best"][0] > 0.0


def test_actions_add_to_commands_within_the_limits_and_the_left_gripper_stays_ajar():
    env = make(1)
    ctrl = env.sim.data.ctrl
    np.testing.assert_allclose(ctrl[0], HOME["ctrl"], atol=1e-7)
    action = torch.zeros(1, 14)
    action[0, [1, 6, 13]] = torch.tensor([0.5, -1.0, -1.0])
    before = ctrl.clone()
    env.task.apply_action(env.sim, action)
    moved = (ctrl - before)[0]
    assert moved[1].item() == pytest.approx(0.0075)
    assert moved[[6, 13]].tolist() == pytest.approx([-0.015, -0.015])
    for _ in range(5):
        env.task.apply_action(env.sim, action)
    assert ctrl[0, [6, 13]].tolist() == pytest.approx([0.01, 0.002])
    channels = env.task.actions
    assert [c.low for c in channels if c.unit == "m"] == [0.01, 0.002]
    assert {c.scale for c in channels} == {0.015} and env.task.cfg.control_dt == 0.02


def test_an_episode_starts_at_home_with_box_and_target_drawn_as_published():
    env = make(2000)
    qpos, target = env.sim.data.qpos, env.sim.data.mocap_pos[:, 0]
    np.testing.assert_allclose(qpos[:, :16], np.tile(HOME["qpos"][:16], (2000, 1)), atol=1e-7)
    np.testing.assert_allclose(qpos[:, 18], 0.0307918, atol=1e-8)
    share = (qpos[:, 16:18].numpy() - [-0.21, -0.1]) / [0.1, 0.2]
    assert share.min() > -1e-5 and share.max() < 1 + 1e-5
    np.testing.assert_allclose(share.mean(axis=0), 0.5, atol=4 / np.sqrt(12 * 2000))
    x, y, z = target.T
    assert (x >= 0.15 - 1e-7).all() and x.max() < 0.35 + 1e-6
    # x of U(.05, .35), cut at .15: a third lies on the limit
    assert (x < 0.15 + 1e-6).double().mean() == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 2000))
    for axis, low, high in ((y, -0.15, 0.15), (z, 0.1, 0.4)):
        assert axis.min() > low - 1e-6 and axis.max() < high + 1e-6
        assert axis.mean() == pytest.approx((low + high) / 2, abs=4 * 0.3 / np.sqrt(12 * 2000))


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match=r"task\.potential must weigh gripper_box, box_handover"):
        HandOver.Config(potential={"gripper_box": 1.0})
    with pytest.raises(ValueError, match=r"left_gripper_low must be in \[0\.002, 0\.037\), got 1"):
        HandOver.Config(left_gripper_low=1.0)


def test_success_asks_for_the_box_near_the_target_in_the_right_hand_alone():
    env = make(3)
    set_state(env, TRANSFERRED)
    env.sim.data.ctrl[:] = torch.tensor(TRANSFERRED["ctrl"], dtype=torch.float64).clamp(0.002)
    # the second box is too far from its target; from the third, the right hand is opened
    env.sim.step(5)
    box = env.sim.data.xpos[:, env.task.box].clone()
    off = torch.tensor([[0.03, 0.0, 0.03], [0.04, 0.0, 0.04], [0.0, 0.0, 0.0]])
    env.sim.data.mocap_pos[:, 0] = box + off
    env.sim.data.qpos[2, 14:16] = 0.037
    env.sim.forward()
    assert env.task.right.grasps(env.sim, 0.5).tolist() == [True, True, False]
    assert env.task.success(env.sim).tolist() == [True, False, False]


def test_a_box_that_the_left_hand_still_touches_is_not_handed_over():
    env = make(1)
    set_state(env, PICKED)
    env.sim.data.ctrl[:] = torch.tensor(PICKED["ctrl"], dtype=torch.float64).clamp(0.01, None)
    env.sim.step(5)
    env.sim.data.mocap_pos[:, 0] = env.sim.data.xpos[:, env.task.box]
    assert env.task.left.touches().all() and not env.task.success(env.sim).any()


def test_the_task_is_bound():
    assert TASK is HandOver and set(HandOver.units) == set(SIZES)
