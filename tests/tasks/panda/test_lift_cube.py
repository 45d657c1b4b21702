"""Lifting a cube, checked against MuJoCo's own structures and what SERL's version got wrong.

The traps are those of `PandaPickCube-v0` in rail-berkeley/serl: success undefined, the time limit
flagged as termination, the gripper's command observed as its position, cameras taken by number,
a seed that is ignored, noslip iterations, and a target that runs at 5 m/s.
"""

import math

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from tasks.panda.lift_cube import HALF, HOME, WORKSPACE
from tasks.robots.panda import model as panda

LOW, HIGH = np.array(WORKSPACE).T
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
STROKE = 0.04  # m, one finger's
ELBOW = 0.29  # m before the base: nearer, with the hand pointing down, the elbow's range ends


def make(num_envs=8, *, seed=1, randomize=False, **config):
    kind = load_task("panda_lift_cube")
    return Env(kind(kind.Config(randomize=randomize, **config)), num_envs, seed=seed)


def step(env, action):
    action = torch.as_tensor(action, dtype=torch.float32).expand(env.num_envs, 4)
    return env.step_and_maybe_reset(env.current().set("action", action.clone()))[0]


def worlds(env):
    """MuJoCo's own view of every environment."""
    for row in env.sim.get_state().numpy():
        data = mujoco.MjData(env.model)
        mujoco.mj_setState(env.model, data, row, STATE)
        mujoco.mj_forward(env.model, data)
        yield data


def tool(env):
    return np.stack([data.site("gripper").xpos for data in worlds(env)])


def cube(env):
    return np.stack([data.body("box").xpos for data in worlds(env)])


def place_cube(env, positions):
    at = env.model.joint("box").qposadr[0]
    env.sim.data.qpos[:, at : at + 3] = torch.as_tensor(np.asarray(positions))
    env.sim.forward()


def term(env, td, name):
    """One named term of the teacher's observation."""
    start = 0
    for feature in env.inputs[0].features:
        if feature.name == name:
            return td["teacher"][:, start : start + feature.size]
        start += feature.size
    raise KeyError(name)


def wander(env, steps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        seen = step(env, 2 * torch.rand(env.num_envs, 4, generator=rng) - 1)
    return seen


# Reward, success, termination.


def test_rewards_are_the_formulas_of_the_task():
    env = make(6)
    wander(env, 7)
    rng = np.random.default_rng(0)
    place_cube(env, tool(env) + rng.uniform(-0.1, 0.1, (6, 3)) * np.array([1, 1, 0]))
    opening = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    env.task.memory["opening"].copy_(opening)
    got = env.task.reward(env.sim, torch.zeros(6, 4))
    distance = np.linalg.norm(cube(env) - tool(env), axis=1)
    rise = cube(env)[:, 2] - 0.02
    expected = {
        "reach": np.exp(-5.0 * distance),
        "grasp": np.exp(-20.0 * distance),
        "close": np.exp(-20.0 * distance) * (1.0 - opening.numpy()),
        "lift": np.clip(rise / 0.22, 0.0, 1.0),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].numpy(), value, atol=1e-5, err_msg=name)
        assert np.ptp(value) > 0.01
    weights = {"reach": 0.1, "grasp": 0.3, "close": 0.3, "lift": 2.0}
    assert env.cfg.reward == weights


def test_the_reward_of_a_step_is_the_weighted_sum():
    env = make(3)
    seen = wander(env, 3)["next"]
    distance = np.linalg.norm(cube(env) - tool(env), axis=1)
    near, opening = np.exp(-20.0 * distance), env.task.memory["opening"].numpy()
    total = 0.1 * np.exp(-5 * distance) + 0.3 * near + 0.3 * near * (1 - opening)
    total += 2.0 * np.clip((cube(env)[:, 2] - 0.02) / 0.22, 0, 1)
    np.testing.assert_allclose(seen["reward"][:, 0].numpy(), total, atol=1e-5)


def test_success_is_a_cube_that_is_high_and_held():
    env = make(6)
    # lift the tool above the line first, so that a cube can be high and near it
    for _ in range(20):
        step(env, [0.0, 0.0, 1.0, 0.0])
    hand = tool(env)
    assert (hand[:, 2] > 0.35).all()
    side, down = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])
    positions = np.stack(
        (
            hand[0],  # in the hand
            hand[1] + 0.049 * side,  # just within reach
            hand[2] + 0.051 * side,  # just thrown
            hand[3] + 0.3 * side,  # far
            np.array([*hand[4, :2], 0.2199]),  # too low, and far below the hand
            hand[5] + 0.02 * down,
        )
    )
    place_cube(env, positions)
    assert env.task.success(env.sim).tolist() == [True, True, False, False, False, True]


def test_success_needs_the_whole_lift():
    env = make(4)
    hand = tool(env)
    assert (np.abs(hand[:, 2] - 0.28) < 0.01).all()
    # 4 cm and more below the hand but within its 5 cm: only the height decides
    env.cfg.lift_height = 0.22
    rise = np.array([0.219, 0.221, 0.25, 0.2])
    place_cube(env, [[*h[:2], 0.02 + r] for h, r in zip(hand, rise, strict=True)])
    near = np.linalg.norm(cube(env) - hand, axis=1) < 0.05
    assert near.tolist() == [True, True, True, False]
    assert env.task.success(env.sim).tolist() == [False, True, True, False]


def test_the_episode_terminates_where_the_cube_is_15_cm_outside_the_workspace():
    env = make(10)
    middle, eps = np.array([0.4, 0.0, 0.02]), 1e-3
    positions = np.tile(middle, (10, 1))
    positions[1, 0], positions[2, 0] = LOW[0] - 0.15 - eps, LOW[0] - 0.15 + eps
    positions[3, 0], positions[4, 0] = HIGH[0] + 0.15 + eps, HIGH[0] + 0.15 - eps
    positions[5, 1], positions[6, 1] = LOW[1] - 0.15 - eps, LOW[1] - 0.15 + eps
    positions[7, 1], positions[8, 1] = HIGH[1] + 0.15 + eps, HIGH[1] + 0.15 - eps
    positions[9, 2] = -0.15 - eps  # fell through
    place_cube(env, positions)
    ended = [False, True, False, True, False, True, False, True, False, True]
    assert env.task.terminated(env.sim).tolist() == ended


# SERL's traps.


def scripted(env, td):
    """Go over the cube, go down, close, lift; from observations alone."""
    tcp, box, grip = (term(env, td, name) for name in ("tcp_pos", "box_pos", "gripper_target"))
    offset = term(env, td, "box_to_tcp")
    aligned = offset[:, :2].norm(dim=1) < 0.01
    there = aligned & (offset[:, 2] < 0.012)
    holding = (grip[:, 0] < 0.3) & (offset.norm(dim=1) < 0.03)
    goal = box.clone()
    goal[:, 2] = torch.where(holding, 0.4, torch.where(aligned, box[:, 2], 0.12))
    action = torch.zeros(env.num_envs, 4)
    # from the target, not from the tool: the tool is still on its way
    action[:, :3] = ((goal - tcp - term(env, td, "target_error")) / 0.025).clamp(-1, 1)
    action[:, 3] = torch.where(there | holding, -1.0, 1.0)
    return action


def test_success_is_defined_and_within_reach():
    env = make(24, randomize=True, seed=5)
    far_enough = cube(env)[:, 0] > ELBOW + 0.015
    succeeded = torch.zeros(24, dtype=torch.bool)
    for _ in range(env.cfg.episode_length):
        succeeded |= step(env, scripted(env, env.current()))["next", "success"][:, 0]
    assert far_enough.sum() >= 16
    assert succeeded[torch.from_numpy(far_enough)].all()
    metrics = env.metrics()
    assert metrics["env/num_trajectories"] == 24.0
    assert metrics["env/success_once"] == pytest.approx(succeeded.float().mean().item())
    assert metrics["reward/lift"] > 10.0


def test_doing_nothing_is_no_success():
    env = make(4)
    for _ in range(env.cfg.episode_length):
        step(env, [0.0] * 4)
    assert env.metrics()["env/success_once"] == 0.0


def test_the_time_limit_truncates_and_never_terminates():
    env = make(2, episode_length=3)
    flags = [step(env, [0.0] * 4)["next"] for _ in range(3)]
    assert [f["truncated"].all().item() for f in flags] == [False, False, True]
    assert not flags[1]["truncated"].any()
    assert not any(f["terminated"].any() for f in flags)


def test_the_gripper_term_is_the_measured_joint_and_not_the_command():
    env = make(2)
    seen = step(env, [0.0, 0.0, 0.0, -1.0])["next"]
    measured = [data.joint("finger_joint1").qpos[0] for data in worlds(env)]
    commanded = env.sim.data.ctrl[:, 7] / STROKE
    np.testing.assert_allclose(term(env, seen, "gripper")[:, 0].numpy(), measured, atol=1e-6)
    np.testing.assert_allclose(term(env, seen, "gripper_target")[:, 0].numpy(), commanded)
    assert (np.abs(np.array(measured) - commanded.numpy() * STROKE) > 1e-3).all()
    env.task.finger[:] = 0.013
    env.sim.forward()
    assert env.task.observe(env.sim)["gripper"].tolist() == pytest.approx([0.013] * 2)


def test_cameras_have_names_and_the_video_uses_one_of_them():
    model = make(1).model
    names = [model.camera(i).name for i in range(model.ncam)]
    assert all(names) and len(set(names)) == len(names)
    assert load_task("panda_lift_cube").camera in names


def test_every_draw_comes_from_the_one_seeded_generator():
    def start(seed):
        np.random.seed(seed + 100)  # what SERL draws from
        torch.manual_seed(seed + 100)
        env = make(16, seed=3, randomize=True)
        first = env.sim.data.qpos.clone()
        env.reset()
        return first, env.sim.data.qpos.clone(), env.sim.params.body_mass.clone()

    one, two = start(0), start(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], one[1])
    assert len({tuple(row.tolist()) for row in one[0]}) == 16
    assert not torch.equal(one[0], make(16, seed=4, randomize=True).sim.data.qpos)


def test_there_are_no_noslip_iterations():
    assert make(1).model.opt.noslip_iterations == 0


def test_a_full_action_moves_the_target_by_a_fortieth_of_a_metre():
    env = make(4)
    before = env.task.memory["target"].clone()
    moves = torch.tensor([[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 1.0, 0], [0.5, 0.5, -0.5, 0]])
    step(env, moves)
    moved = env.task.memory["target"] - before
    torch.testing.assert_close(moved, 0.025 * moves[:, :3], atol=1e-6, rtol=0.0)
    speed = 0.025 / env.cfg.control_dt
    assert speed == pytest.approx(0.5)  # m/s; SERL's ran at 5


# Actions.


def test_the_target_stays_in_the_workspace_and_the_opening_within_its_stroke():
    env = make(8, episode_length=200)
    corners = torch.tensor(list(np.ndindex(2, 2, 2)), dtype=torch.float32) * 2 - 1
    for _ in range(40):
        step(env, torch.cat((corners, corners[:, :1]), dim=1))
    expected = np.where(corners.numpy() > 0, HIGH, LOW)
    np.testing.assert_allclose(env.task.memory["target"].numpy(), expected, atol=1e-6)
    opening = (corners[:, 0] > 0).float()
    assert torch.equal(env.task.memory["opening"], opening)
    np.testing.assert_allclose(env.sim.data.ctrl[:, 7].numpy(), STROKE * opening, atol=1e-8)


def test_the_opening_moves_by_a_quarter_of_the_stroke():
    env = make(1)
    seen = []
    for action in (-1.0, -1.0, 0.5, -1.0, -1.0, -1.0, 1.0):
        step(env, [0.0, 0.0, 0.0, action])
        seen.append(env.task.memory["opening"].item())
    assert seen == pytest.approx([0.75, 0.5, 0.625, 0.375, 0.125, 0.0, 0.25])


def test_what_the_card_says_of_the_action_is_what_the_action_does():
    env = make(1)
    channels = env.task.actions
    assert [c.name for c in channels] == ["tcp_x", "tcp_y", "tcp_z", "gripper_opening"]
    assert [(c.low, c.high) for c in channels] == [*WORKSPACE, (0.0, 1.0)]
    assert [c.scale for c in channels] == [0.025, 0.025, 0.025, 0.25]
    assert {c.mode for c in channels} == {"delta"}


def test_servo_targets_stay_within_the_joints_ranges():
    env = make(8, episode_length=500)
    low, high = torch.from_numpy(env.model.actuator_ctrlrange).T
    rng = torch.Generator().manual_seed(0)
    for _ in range(40):
        step(env, torch.randn(8, 4, generator=rng).sign())
        assert (env.sim.data.ctrl >= low - 1e-6).all() and (env.sim.data.ctrl <= high + 1e-6).all()


# Controller.


def angle_from_down(data):
    """Angle between the tool and the orientation that it keeps, degrees."""
    turn = data.site("gripper").xmat.reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    return math.degrees(math.acos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))


def test_the_arm_reaches_any_target_that_its_elbow_allows_within_a_second():
    env = make(32, seed=3)
    near = np.maximum(LOW, [ELBOW, -np.inf, -np.inf])
    target = np.random.default_rng(1).uniform(near, HIGH, (32, 3))
    place_cube(env, np.tile([2.0, 2.0, HALF], (32, 1)))  # out of the way
    for _ in range(round(1.0 / env.cfg.control_dt)):
        env.task.arm.command(torch.from_numpy(target).float())
        env.sim.step(env.n_substeps)
    assert np.linalg.norm(tool(env) - target, axis=1).max() < 0.005
    assert max(angle_from_down(data) for data in worlds(env)) < 2.0


def test_the_arm_stays_where_it_is_told():
    env = make(4)
    for _ in range(10):
        step(env, [0.3, 0.2, 0.1, 0.0])
    for _ in range(20):
        step(env, [0.0] * 4)
    before = tool(env)
    for _ in range(20):
        step(env, [0.0] * 4)
    assert np.abs(tool(env) - before).max() < 1e-3


def test_the_arm_does_not_droop_under_its_own_weight():
    env = make(1)
    before = tool(env)
    env.sim.data.ctrl[:, :7] = env.sim.data.qpos[:, :7]
    env.sim.step(round(1.0 / env.sim.timestep))
    assert np.abs(tool(env) - before).max() < 1e-3
    spec = panda.scene(gravcomp=False)  # the same servos without compensation sink
    model = spec.compile()
    data = mujoco.MjData(model)
    data.qpos[:7] = HOME[:7]
    data.ctrl[:8] = HOME
    mujoco.mj_forward(model, data)
    height = data.site("gripper").xpos[2]
    mujoco.mj_step(model, data, nstep=round(1.0 / model.opt.timestep))
    assert height - data.site("gripper").xpos[2] > 0.005


# Starts.


def corners(data):
    half = HALF * (np.array(list(np.ndindex(2, 2, 2))) * 2 - 1)
    return data.body("box").xpos + half @ data.body("box").xmat.reshape(3, 3).T


def test_the_cube_starts_on_the_floor_within_the_workspace():
    env = make(64, randomize=True)
    for data in worlds(env):
        spots = corners(data)
        assert spots[:, 2].min() >= -1e-9
        assert spots[:, 2].min() < 1e-6
        assert (data.body("box").xpos[:2] >= LOW[:2]).all()
        assert (data.body("box").xpos[:2] <= HIGH[:2]).all()
        turn = data.body("box").xmat.reshape(3, 3)
        assert abs(math.atan2(turn[1, 0], turn[0, 0])) <= env.cfg.box_yaw + 1e-9
    spread = np.ptp(cube(env)[:, :2], axis=0)
    assert (spread > 0.85 * (HIGH - LOW)[:2]).all()


def test_the_cube_lies_still_until_it_is_touched():
    env = make(8, randomize=True)
    before = cube(env)
    for _ in range(10):
        step(env, [0.0, 0.0, 1.0, 1.0])
    assert np.abs(cube(env) - before).max() < 1e-3


def test_the_hand_starts_open_above_the_cube_pointing_down():
    env = make(32, randomize=True)
    noise = env.sim.data.qpos[:, :7] - HOME[:7].double()
    assert noise.abs().max() <= env.cfg.joint_noise + 1e-6
    assert noise.abs().max() > 0.9 * env.cfg.joint_noise
    assert env.task.finger == pytest.approx(STROKE)
    assert (tool(env)[:, 2] > 4 * HALF).all()
    assert max(angle_from_down(data) for data in worlds(env)) < 20.0


def test_the_target_starts_at_the_tool():
    env = make(8, randomize=True)
    expected = np.clip(tool(env), LOW, HIGH)
    np.testing.assert_allclose(env.task.memory["target"].numpy(), expected, atol=1e-5)
    wander(env, 5)
    env.reset()
    np.testing.assert_allclose(
        env.task.memory["target"].numpy(), np.clip(tool(env), LOW, HIGH), atol=1e-5
    )


# Observation.


def test_observations_are_what_mujoco_measures():
    env = make(4)
    seen = wander(env, 6, seed=2)["next"]
    assert not seen["done"].any()
    for i, data in enumerate(worlds(env)):
        hand, box = data.site("gripper").xpos, data.body("box").xpos
        velocity = np.empty(6)
        mujoco.mj_objectVelocity(
            *(env.model, data, mujoco.mjtObj.mjOBJ_SITE, env.model.site("gripper").id, velocity, 0)
        )
        expected = {
            "tcp_pos": hand,
            "tcp_vel": velocity[3:],
            "target_error": env.task.memory["target"][i].numpy() - hand,
            "gripper": data.joint("finger_joint1").qpos,
            "gripper_target": [env.task.memory["opening"][i].item()],
            "box_pos": box,
            "box_to_tcp": hand - box,
            "box_vel": data.joint("box").qvel[:3],
            "box_yaw": data.body("box").xmat.reshape(3, 3)[:2, 0],
        }
        assert [f.name for f in env.inputs[0].features] == list(expected)
        for name, value in expected.items():
            got = term(env, seen, name)[i].numpy()
            np.testing.assert_allclose(got, value, atol=1e-5, err_msg=name)
