"""What the teacher's task rewards, what ends an episode, and what counts as a turn.

Worked out in numpy from the state of the simulation and PenSpin's formulas; the task's docstring
says where it deviates.
"""

import math

import numpy as np
import pytest
import torch

from tasks.robots.allegro import model as allegro
from tests.support.pen_world import (
    EAST,
    ENDLESS,
    QUIET,
    about,
    make,
    matrix,
    multiply,
    pen_pose,
    pen_sizes,
    put_pens,
    rotation_vector,
    step,
    still,
)

DT = 0.05  # s


@pytest.fixture(scope="module")
def many():
    """256 environments."""
    return make(num_envs=256, **ENDLESS)


# Ends and terminations.


def lying(env, sine, turn=0.3):
    """Quaternions of pens whose axis rises by the sine (n,), turned about +z."""
    up = about([0, 1, 0], -np.arcsin(np.broadcast_to(sine, (env.num_envs,))))
    return multiply(about([0, 0, 1], np.full(env.num_envs, turn)), multiply(up, EAST))


def test_ends_are_those_of_each_environments_own_pen(many):
    rng = np.random.default_rng(1)
    quat = rng.normal(size=(256, 4))
    quat /= np.linalg.norm(quat, axis=1, keepdims=True)
    pos = rng.uniform(0.4, 0.9, (256, 3))
    put_pens(many, pos, quat)
    half = pen_sizes(many)[1]
    axis = matrix(quat)[:, :, 2]
    expected = np.stack([pos - half[:, None] * axis, pos + half[:, None] * axis], axis=1)
    np.testing.assert_allclose(many.task.ends(many.sim), expected, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("rise", "height", "rule"),
    [
        (0.0, 0.605, "centre too low"),
        # ends 48.5 mm above and below the centre: the shortest pen can, no other rule is broken
        (0.0485, 0.56 + 0.0485, "lower end too low"),
        (0.0485, 0.71 - 0.0485, "upper end too high"),
    ],
)
def test_an_episode_ends_just_outside_of_each_height_and_not_just_inside(rise, height, rule, sign):
    env = make(num_envs=16)
    out = 1e-5 if rule == "upper end too high" else -1e-5
    quat = lying(env, sign * rise / pen_sizes(env)[1])
    for offset, expected in ((-out, False), (out, True)):
        put_pens(env, [[0.01, -0.02, height + offset]] * 16, quat)
        assert env.task.terminated(env.sim).tolist() == [expected] * 16, rule


def test_a_long_pen_ends_where_a_short_one_goes_on():
    """The release measured every pen by the last asset of the last environment."""
    env = make(num_envs=64)
    half = pen_sizes(env)[1]
    put_pens(env, [[0.0, 0.0, 0.64]] * 64, lying(env, 1.0))
    assert env.task.terminated(env.sim).tolist() == (half > 0.07).tolist()
    assert 5 < (half > 0.07).sum() < 59


# Turns and success.


def turned(env, axis, angle, count, start=EAST):
    """Turn the pens about an axis by angles (n,) rad in count control steps; sum the turns."""
    n = env.num_envs
    sums, successes = np.zeros(n), []
    env.reset()
    put_pens(env, quat=np.tile(start, (n, 1)))
    env.task.memory["last_quat"].copy_(env.task.pen_quat)
    for i in range(1, count + 1):
        env.task.apply_action(env.sim, still(env))
        put_pens(env, quat=multiply(about(axis, np.asarray(angle) * i / count), start))
        sums += env.task.step_metrics(env.sim)["turns"].double().numpy()
        successes.append(env.task.success(env.sim))
    return sums, torch.stack(successes)


def test_turns_about_the_vertical_are_counted_with_their_sign():
    env = make(num_envs=5)
    angle = 2 * math.pi * np.array([0.25, -0.25, 1.0, -3.0, 3.0])
    sums, _ = turned(env, [0, 0, 1], angle, 40)
    np.testing.assert_allclose(sums, [0.25, -0.25, 1.0, -3.0, 3.0], atol=1e-5)


def test_rolling_and_tumbling_count_nothing():
    env = make(num_envs=3)
    angle = 2 * math.pi * np.array([0.3, -1.0, 4.0])
    for axis in ([1, 0, 0], [0, 1, 0]):  # the pen's own; a horizontal one across it
        sums, successes = turned(env, axis, angle, 50)
        np.testing.assert_allclose(sums, 0.0, atol=1e-5)
        assert not successes.any()


def test_a_pen_that_rises_by_an_angle_counts_the_square_of_its_cosine():
    """The turn of its axis is cos b per radian, and about the vertical again cos b of that."""
    env = make(num_envs=3)
    rise = 0.3
    start = multiply(about([0, 1, 0], -rise), EAST)
    sums, _ = turned(env, [0, 0, 1], 2 * math.pi * np.array([1.0, -1.0, 0.5]), 200, start)
    np.testing.assert_allclose(sums, math.cos(rise) ** 2 * np.array([1, -1, 0.5]), atol=1e-3)


def test_success_is_half_a_turn_to_the_left_since_the_episode_began():
    env = make(num_envs=4)
    angle = 2 * math.pi * np.array([0.499, 0.501, -0.7, 1.0])
    _, successes = turned(env, [0, 0, 1], angle, 40)
    assert successes[-1].tolist() == [False, True, False, True]
    assert successes[:, 3].tolist() == [False] * 19 + [True] * 21
    env.reset()
    assert not env.task.success(env.sim).any()


def test_a_turn_is_measured_once_however_often_it_is_asked_for():
    env = make(num_envs=2)
    turned(env, [0, 0, 1], [0.2, 0.2], 1)
    first = env.task.step_metrics(env.sim)["turns"].clone()
    assert torch.equal(env.task.step_metrics(env.sim)["turns"], first)
    assert torch.equal(env.task.memory["turned"], torch.zeros(2))


def test_the_metrics_of_episodes():
    env = make(num_envs=1)
    steps = torch.tensor([400.0, 400.0, 399.0, 100.0, 57.0])
    terminated = torch.tensor([False, True, False, True, False])  # the last one met a fault
    turns = torch.tensor([1.0, 0.5, 0.499, -2.0, 3.0])
    sums = {"turns": turns, "reach": 0.02 * steps}
    metrics = env.task.episode_metrics(sums, steps, terminated)
    assert metrics["turns"].tolist() == turns.tolist()
    assert metrics["survival"].tolist() == [True, False, False, False, False]
    assert metrics["time_to_fall"].tolist() == pytest.approx([20.0, 20.0, 19.95, 5.0, 2.85])
    assert metrics["share_180"].tolist() == [True, True, False, False, True]
    assert metrics["share_360"].tolist() == [True, False, False, False, True]
    assert metrics["finger_distance"].tolist() == pytest.approx([0.02] * 5)


def test_reach_is_the_distance_of_the_nearest_fingertip_from_the_pens_middle():
    env = make(num_envs=4)
    tips = allegro.fingertips(env.sim.data.qpos[:, :16]).numpy()
    put_pens(env, tips[np.arange(4), np.arange(4)] + [0.003, -0.004, 0.0])
    reach = env.task.step_metrics(env.sim)["reach"]
    np.testing.assert_allclose(reach, 0.005, atol=1e-6)


# Rewards, in numpy from the state.


def heights_of_a_rim(radius, half, turn):
    """Lowest and highest point of cylinders, from 20,000 points of both rims."""
    angle = np.linspace(0, 2 * np.pi, 10_000)
    circle = np.stack((np.cos(angle), np.sin(angle)))
    low, high = [], []
    for r, h, row in zip(radius, half, turn[:, 2], strict=True):
        z = np.concatenate([r * row[:2] @ circle + side * h * row[2] for side in (-1, 1)])
        low.append(z.min()), high.append(z.max())
    return np.array(low), np.array(high)


def expected_terms(env, before, after):
    """The published formulas; before, after: pen's position and matrix around a control step."""
    (old_pos, old_turn), (pos, turn) = before, after
    spin = rotation_vector(turn @ old_turn.transpose(0, 2, 1))[:, 2] / DT
    q = env.sim.data.qpos[:, :16].numpy()
    qd = env.sim.data.qvel[:, :16].numpy()
    kp = env.sim.params.actuator_gainprm[..., 0].numpy()
    kd = -env.sim.params.actuator_biasprm[..., 2].numpy()
    torque = np.clip(kp * (env.sim.data.ctrl.numpy() - q) - kd * qd, -0.7, 0.7)
    low, high = heights_of_a_rim(*pen_sizes(env), turn)
    spread = high - low
    return {
        "rotate": np.clip(spin, -0.5, 0.5),
        "over_speed": np.maximum(spin - 1.0, 0.0),
        "linvel": np.abs((pos - old_pos) / 0.05).sum(axis=1),
        "pose_diff": ((q - env.task.memory["grasp"].numpy()) ** 2).sum(axis=1),
        "torque": (torque**2).sum(axis=1),
        "work": (np.abs(torque) * np.abs(qd)).sum(axis=1) ** 2,
        "z_spread": np.where(spread > 0.03, spread, 0.0),
        "position": pos[:, 0] ** 2 + pos[:, 1] ** 2 + (pos[:, 2] - 0.615) ** 2,
        "alive": np.ones(len(pos)),
    }


def test_every_reward_term_equals_its_formula_on_random_states(many):
    """The pen is moved in the air within a step; joints, speeds and servos are anything."""
    rng, n = np.random.default_rng(2), 256
    many.reset()
    pos = rng.uniform([-0.1, -0.1, 0.8], [0.1, 0.1, 0.9], (n, 3))
    quat = multiply(about(rng.normal(size=(n, 3)), rng.normal(0, 0.2, n)), lying(many, 0.0))
    put_pens(many, pos, quat)
    many.task.apply_action(many.sim, still(many))
    before = pen_pose(many)
    turn = about(rng.normal(size=(n, 3)), rng.normal(0, 0.1, n))
    put_pens(many, pos + rng.normal(0, 0.01, (n, 3)), multiply(turn, quat))
    grasp = many.task.memory["grasp"]
    joints = grasp + 0.2 * torch.from_numpy(rng.normal(size=(n, 16))).float()
    many.sim.data.qpos[:, :16] = joints
    many.sim.data.qvel[:, :16] = torch.from_numpy(rng.normal(0, 2.0, (n, 16)))
    many.sim.data.ctrl[:] = joints + torch.from_numpy(rng.normal(0, 0.15, (n, 16)))
    many.sim.forward()
    terms = many.task.reward(many.sim, still(many))
    expected = expected_terms(many, before, pen_pose(many))
    shaping = {"drop", "posture", "sides"}  # not published: see test_gait.py
    assert terms.keys() == expected.keys() | shaping
    assert not any(terms.pop(name).any() for name in shaping)
    for name, value in terms.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=2e-5, err_msg=name)
        assert (expected[name] != 0).mean() > 0.02
    assert (terms["rotate"].abs() < 0.5).any() and (terms["z_spread"] == 0).any()


def test_rewards_of_a_played_step_are_weighed_as_published():
    env = make(num_envs=64, **QUIET, **ENDLESS)
    rng = torch.Generator().manual_seed(3)
    for _ in range(4):
        before = pen_pose(env)
        seen = step(env, 2 * torch.rand(64, 16, generator=rng) - 1)
        after = pen_pose(env)
    weights = {"rotate": 1.0, "over_speed": -0.3, "linvel": -0.3, "pose_diff": -0.1}
    weights |= {"torque": -0.1, "work": -1.0, "z_spread": -1.0, "position": -0.1, "alive": 0.0}
    weights |= {"drop": 0.0, "posture": 0.0, "sides": 0.0}
    assert env.cfg.reward == weights
    total = sum(
        weights[name] * value.double() for name, value in env.task.reward(env.sim, 0).items()
    )
    np.testing.assert_allclose(seen["reward"][:, 0], total, rtol=1e-5, atol=1e-5)
    expected = expected_terms(env, before, after)
    for name in ("rotate", "over_speed", "linvel", "pose_diff", "z_spread", "position"):
        measured = env.reward_terms[name] / weights[name]
        np.testing.assert_allclose(measured, expected[name], rtol=1e-4, atol=5e-5, err_msg=name)


def test_a_flat_pen_costs_nothing_and_a_tilted_one_its_height():
    env = make(num_envs=8)
    radius, half = pen_sizes(env)
    for sine, free in ((0.0, True), (1.0, False)):
        put_pens(env, [[0, 0, 0.9]] * 8, lying(env, sine))
        spread = env.task.reward(env.sim, still(env))["z_spread"].numpy()
        np.testing.assert_allclose(spread, np.zeros(8) if free else 2 * half, atol=1e-6)
    assert (2 * radius < 0.03).all()
