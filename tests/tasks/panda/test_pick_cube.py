"""The published PandaPickCube, recomputed in NumPy from MuJoCo's own structures."""

import json
import pathlib

import mujoco
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.rotation import from_axis_angle, multiply
from tasks.panda.pick_cube import PickConfig

TASKS = ("panda_pick_cube", "panda_pick_cube_orientation")
TABLE = json.loads(
    (pathlib.Path(__file__).parents[1] / "robots" / "panda_reference.json").read_text()
)
HOME = next(k for k in TABLE["scenes"]["single_cube"]["keyframes"] if k["name"] == "home")
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
SIZES = {
    "qpos": 16,
    "qvel": 15,
    "gripper_pos": 3,
    "gripper_mat": 6,
    "box_mat": 6,
    "gripper_to_box": 3,
    "box_to_target": 3,
    "box_to_target_mat": 6,
    "ctrl_error": 8,
}
BOX = slice(9, 12)  # of qpos
NO_ACTION = torch.zeros(1, 8)


def make(num_envs, name="panda_pick_cube", **config):
    kind = load_task(name)
    return Env(kind(kind.Config(**config)), num_envs, seed=1)


def worlds(env):
    """MuJoCo's own view of every environment."""
    for row in env.sim.get_state().numpy():
        data = mujoco.MjData(env.model)
        mujoco.mj_setState(env.model, data, row, STATE)
        mujoco.mj_forward(env.model, data)
        yield data


def published_observation(data):
    gripper, box = data.site("gripper"), data.body("box")
    target = data.mocap_pos[0]
    target_mat = np.empty(9)
    mujoco.mju_quat2Mat(target_mat, data.mocap_quat[0])
    return np.concatenate(
        (
            data.qpos,
            data.qvel,
            gripper.xpos,
            gripper.xmat[3:],
            box.xmat[3:],
            box.xpos - gripper.xpos,
            target - box.xpos,
            target_mat[:6] - box.xmat[:6],
            data.ctrl - data.qpos[:8],
        )
    )


def rewards(env):
    return env.task.reward(env.sim, NO_ACTION.expand(env.num_envs, 8))


def move_box(env, position):
    env.sim.data.qpos[:, BOX] = torch.as_tensor(position, dtype=torch.float64)
    env.sim.forward()


def gripper(env):
    return env.sim.data.site_xpos[:, env.model.site("gripper").id].double().clone()


def test_the_66_numbers_have_the_published_order_and_sizes():
    (group,) = make(1).inputs
    assert {feature.name: feature.size for feature in group.features} == SIZES
    assert [feature.name for feature in group.features] == list(SIZES)
    assert group.size == 66


@pytest.mark.parametrize("name", TASKS)
def test_the_observation_equals_an_independent_computation(name):
    env = make(3, name)
    before = env.current()["teacher"]
    expected = np.stack([published_observation(data) for data in worlds(env)])
    np.testing.assert_allclose(before, expected, atol=2e-6)
    after = env.rollout(20)[:, -1]["next", "teacher"]
    expected = np.stack([published_observation(data) for data in worlds(env)])
    np.testing.assert_allclose(after, expected, atol=2e-5)
    assert (after - before).abs().max() > 0.1


def test_gripper_box_is_one_at_the_box_and_falls_as_published():
    env = make(1)
    move_box(env, gripper(env))
    assert rewards(env)["gripper_box"].item() == pytest.approx(1.0, abs=1e-5)
    move_box(env, gripper(env) + torch.tensor([0.0, 0.06, 0.08]))
    assert rewards(env)["gripper_box"].item() == pytest.approx(1 - np.tanh(0.5), abs=1e-5)


def test_box_target_pays_only_once_the_box_has_been_reached_and_from_then_on():
    env = make(1)
    here = gripper(env)
    env.sim.data.mocap_pos[:, 0] = here + torch.tensor([0.1, 0.0, 0.0])
    move_box(env, here + torch.tensor([0.0, 0.0, 0.013]))
    assert rewards(env)["box_target"].item() == 0.0
    move_box(env, here + torch.tensor([0.0, 0.0, 0.011]))
    distance = np.hypot(0.1, 0.011)
    expected = 1 - np.tanh(5 * 0.9 * distance)
    assert rewards(env)["box_target"].item() == pytest.approx(expected, abs=1e-5)
    move_box(env, here + torch.tensor([0.0, 0.3, 0.0]))
    expected = 1 - np.tanh(5 * 0.9 * np.hypot(0.1, 0.3))
    assert rewards(env)["box_target"].item() == pytest.approx(expected, abs=1e-5)


def test_a_search_shuns_a_gripper_that_is_shut_on_the_way_and_open_at_the_box():
    env = make(1)
    here = gripper(env)

    def cost(box, opening):
        env.sim.data.qpos[:, 7] = opening
        move_box(env, here + torch.tensor(box))
        found = env.task.search_cost(env.sim, still=False)
        return {name: value.item() for name, value in found.items()}

    away = 1 - np.tanh(0.2 / 0.02)
    found = cost([0.0, 0.2, 0.0], 0.03)
    assert found["closed"] == pytest.approx(0.25 * (1 - away), abs=1e-5)
    assert found["loose"] == pytest.approx(0.25 * away, abs=1e-5)
    found = cost([0.0, 0.0, 0.0], 0.03)
    assert (found["closed"], found["loose"]) == pytest.approx((0.0, 0.25), abs=1e-3)
    assert cost([0.0, 0.0, 0.0], 0.02)["loose"] == pytest.approx(0.0, abs=1e-5)
    down = 1.0 + env.sim.data.site_xmat[0, env.model.site("gripper").id, 2, 2].item()
    assert found["oblique"] == pytest.approx(down, abs=1e-6) and down < 0.2
    assert found["lost"] == 0.0
    rewards(env)  # the box has been reached
    assert cost([0.0, 0.2, 0.0], 0.02)["lost"] == pytest.approx(0.2, abs=1e-5)


def test_the_latch_opens_at_the_reset_of_its_own_environment_only():
    env = make(3)
    env.task.memory["reached"].fill_(True)
    env._restart(torch.tensor([False, True, False]))
    assert env.task.memory["reached"].tolist() == [True, False, True]


def test_rotation_counts_as_the_frobenius_norm_of_two_matrix_rows():
    env = make(1)
    here = gripper(env)
    env.sim.data.mocap_pos[:, 0] = here
    # a quarter turn about x: the second row (0, 1, 0) becomes (0, 0, -1), the first one stays
    env.sim.data.qpos[:, 12:16] = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).sqrt()
    move_box(env, here)
    expected = 1 - np.tanh(5 * 0.1 * np.sqrt(2))
    assert rewards(env)["box_target"].item() == pytest.approx(expected, abs=1e-5)


def test_robot_target_qpos_counts_the_arm_and_not_the_fingers():
    env = make(1)
    assert rewards(env)["robot_target_qpos"].item() == pytest.approx(1.0, abs=1e-6)
    env.sim.data.qpos[:, 7:9] = 0.0
    assert rewards(env)["robot_target_qpos"].item() == pytest.approx(1.0, abs=1e-6)
    env.sim.data.qpos[:, 0] += 0.3
    env.sim.data.qpos[:, 6] -= 0.4
    expected = 1 - np.tanh(0.5)
    assert rewards(env)["robot_target_qpos"].item() == pytest.approx(expected, abs=1e-6)


def on_floor(data, names):
    pairs = {frozenset(pair.tolist()) for pair in data.contact.geom}
    floor = data.model.geom("floor").id
    return [frozenset((floor, data.model.geom(name).id)) in pairs for name in names]


def test_no_floor_collision_agrees_with_the_contact_list_for_every_part_of_the_hand():
    env = make(256)
    rng = torch.Generator().manual_seed(0)
    lean = torch.tensor([0.0, 1.0, 0.0, -1.5, 0.0, 2.0, 0.0], dtype=torch.float64)
    width = torch.tensor([0.5, 0.76, 1.0, 0.6, 2.5, 1.7, 2.5], dtype=torch.float64)
    draw = torch.rand(256, 7, generator=rng, dtype=torch.float64)
    env.sim.data.qpos[:, :7] = lean + width * (2 * draw - 1)
    env.sim.forward()
    names = ("left_finger_pad", "right_finger_pad", "hand_capsule")
    touches = np.array([on_floor(data, names) for data in worlds(env)])
    for i in range(3):
        alone = touches[:, i] & (touches.sum(axis=1) == 1)
        assert alone.any(), f"no state in which only {names[i]} touches"
    assert not touches.any(axis=1).all()
    expected = 1.0 - touches.any(axis=1)
    np.testing.assert_array_equal(rewards(env)["no_floor_collision"], expected)


def test_pushing_the_hand_down_costs_the_floor_reward():
    env = make(1)
    down = torch.zeros(1, 8)
    down[0, 1], down[0, 3] = 1.0, 0.5
    first = env.step(env.current().set("action", torch.zeros(1, 8)))
    assert first["next", "reward"].item() > 0.25 + 0.29
    for _ in range(40):
        env.step(env.current().set("action", down))
    assert env.reward_terms["no_floor_collision"].item() == 0.0
    (data,) = worlds(env)
    assert any(on_floor(data, ("left_finger_pad", "right_finger_pad", "hand_capsule")))


def test_the_reward_is_the_sum_of_the_terms_with_the_published_weights():
    env = make(1)
    reward = env.step(env.current().set("action", NO_ACTION))["next", "reward"].item()
    terms = rewards(env)
    weights = {
        "gripper_box": 4.0,
        "box_target": 8.0,
        "no_floor_collision": 0.25,
        "robot_target_qpos": 0.3,
    }
    assert terms.keys() == weights.keys()
    assert reward == pytest.approx(sum(weights[k] * terms[k].item() for k in weights), rel=1e-5)


def test_close_is_paid_if_it_has_a_weight_for_fingers_shut_at_the_box_alone():
    assert "close" not in rewards(make(1))
    weights = {**PickConfig().reward, "close": 1.0}
    env = make(3, reward=weights)
    near = gripper(env) + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    env.sim.data.qpos[:, 7:9] = torch.tensor([[0.0, 0.0], [0.04, 0.04], [0.0, 0.0]])
    move_box(env, near)
    assert rewards(env)["close"].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-3)


def test_with_running_max_what_pays_is_what_the_published_sum_gains_above_its_best():
    plain, record = make(4), make(4, running_max=True)
    rng = torch.Generator().manual_seed(5)
    best, paid = torch.full((4,), -torch.inf), torch.zeros(4)
    for _ in range(12):
        action = torch.rand(4, 8, generator=rng) * 2 - 1
        total = plain.step(TensorDict({"action": action}, [4]))["next", "reward"][:, 0]
        step = record.step(TensorDict({"action": action}, [4]))["next", "reward"][:, 0]
        gain = torch.where(best.isinf(), torch.zeros(4), (total - best).clamp(min=0.0))
        torch.testing.assert_close(step, gain, atol=1e-4, rtol=0.0)
        best, paid = torch.maximum(best, total), paid + step
    assert paid.max() > 0.0 and (best - total).max() > 0.0
    record.reset()
    assert record.task.memory["record"].isinf().all()  # a new episode


@pytest.mark.parametrize(
    ("box", "ends"),
    [
        ((0.99, -0.99, 0.99), False),
        ((1.01, 0.0, 0.5), True),
        ((0.5, -1.01, 0.5), True),
        ((0.5, 0.0, 1.01), True),
        ((0.5, 0.0, 0.001), False),
        ((0.5, 0.0, -0.001), True),
    ],
)
def test_the_episode_ends_where_the_box_leaves_the_world(box, ends):
    env = make(1)
    move_box(env, box)
    assert env.task.terminated(env.sim).tolist() == [ends]


def test_actions_add_to_the_last_command_and_stop_at_the_control_range():
    env = make(1)
    action = torch.tensor([[1.0, -1.0, 0.5, 0.0, 1.0, 1.0, -0.25, -0.5]])
    expected = np.array(HOME["ctrl"])
    for _ in range(60):
        env.task.apply_action(env.sim, action)
        env.sim.step(4)  # so that the measured joints, which must not matter, are elsewhere
        expected = np.clip(
            expected + 0.04 * action[0].numpy(),
            env.model.actuator_ctrlrange[:, 0],
            env.model.actuator_ctrlrange[:, 1],
        )
        np.testing.assert_allclose(env.sim.data.ctrl[0], expected, atol=1e-5)
    np.testing.assert_allclose(expected[[1, 5, 7]], [-1.7628, 3.7525, 0.0])
    assert expected[0] == pytest.approx(2.4)


def test_a_control_step_is_20_ms_and_an_episode_3_s():
    env = make(1)
    assert env.n_substeps == 4
    env.step(env.current().set("action", NO_ACTION))
    assert env.sim.data.time.item() == pytest.approx(0.02)
    assert env.cfg.episode_length * env.cfg.control_dt == pytest.approx(3.0)


def test_the_card_gets_the_control_range_of_every_channel():
    env = make(1)
    channels = env.task.actions
    assert [c.name for c in channels] == [f"joint{i}" for i in range(1, 8)] + ["finger_joint1"]
    assert [c.unit for c in channels] == ["rad"] * 7 + ["m"]
    limits = np.array([(c.low, c.high) for c in channels])
    np.testing.assert_array_equal(limits, env.model.actuator_ctrlrange)
    assert {(c.scale, c.mode) for c in channels} == {(0.04, "delta")}


def test_box_and_options_equal_the_published_scene():
    model = make(1).model
    (body,) = TABLE["objects"]["box"]["bodies"]
    (geom,) = TABLE["objects"]["box"]["collision_geoms"]
    np.testing.assert_allclose(model.body("box").inertia, body["diaginertia"], rtol=1e-12)
    np.testing.assert_allclose(model.body("box").iquat, body["iquat"])
    assert model.body("box").mass[0] == body["mass"]
    for name in ("size", "friction", "solref", "solimp", "contype", "conaffinity", "condim"):
        np.testing.assert_array_equal(getattr(model.geom("box"), name), geom[name], err_msg=name)
    option = TABLE["scenes"]["single_cube"]["option"]
    for name in ("timestep", "iterations", "ls_iterations", "impratio", "disableflags"):
        assert getattr(model.opt, name) == option[name], name
    assert not model.body_gravcomp.any()
    sizes = TABLE["scenes"]["single_cube"]["sizes"]
    assert (model.nq, model.nv, model.nu, model.nmocap) == (16, 15, 8, 1)
    assert [sizes[name] for name in ("nq", "nv", "nu", "nmocap")] == [16, 15, 8, 1]


def test_the_target_is_a_ghost():
    env = make(1)
    assert env.model.body("target").mass[0] == 0.0
    env.sim.data.mocap_pos[:, 0] = env.sim.data.xpos[:, env.model.body("box").id].double()
    for data in worlds(env):
        touching = set(data.contact.geom.flatten().tolist())
        assert env.model.geom("target").id not in touching
        assert env.model.geom("box").id in touching  # the floor


@pytest.mark.parametrize("name", TASKS)
def test_episodes_begin_at_home_with_box_and_target_drawn_as_published(name):
    env = make(1000, name)
    qpos, target = env.sim.data.qpos, env.sim.data.mocap_pos[:, 0]
    np.testing.assert_allclose(qpos[:, :9], np.tile(HOME["qpos"][:9], (1000, 1)), atol=1e-7)
    np.testing.assert_allclose(env.sim.data.ctrl, np.tile(HOME["ctrl"], (1000, 1)), atol=1e-7)
    np.testing.assert_allclose(qpos[:, 11], 0.03, atol=1e-8)
    np.testing.assert_array_equal(qpos[:, 12:], np.tile([1.0, 0.0, 0.0, 0.0], (1000, 1)))
    drawn = torch.cat((qpos[:, 9:11], target), dim=1)
    low = torch.tensor([0.5, -0.2, 0.5, -0.2, 0.23], dtype=torch.float64)
    high = torch.tensor([0.9, 0.2, 0.9, 0.2, 0.43], dtype=torch.float64)
    share = (drawn - low) / (high - low)
    assert share.min() > -1e-6
    assert share.max() < 1 + 1e-6
    # uniform: mean 1/2, standard deviation 1/sqrt(12); four standard errors of 1000 draws
    assert (share.mean(dim=0) - 0.5).abs().max() < 4 * np.sqrt(1 / 12 / 1000)
    assert (share.std(dim=0) - np.sqrt(1 / 12)).abs().max() < 0.02
    correlation = np.corrcoef(share.T.numpy()) - np.eye(5)
    assert np.abs(correlation).max() < 4 / np.sqrt(1000)


def test_the_target_stands_upright_or_is_turned_by_up_to_45_degrees():
    upright = make(64).sim.data.mocap_quat[:, 0]
    np.testing.assert_array_equal(upright, np.tile([1.0, 0.0, 0.0, 0.0], (64, 1)))
    turned = make(1000, "panda_pick_cube_orientation").sim.data.mocap_quat[:, 0]
    np.testing.assert_allclose(turned.norm(dim=1), 1.0, atol=1e-6)
    angle = 2 * turned[:, 1:].norm(dim=1).asin()
    assert angle.max() < np.pi / 4 + 1e-6
    assert angle.max() > 0.98 * np.pi / 4
    assert angle.mean() == pytest.approx(np.pi / 8, abs=4 * np.pi / 4 / np.sqrt(12 * 1000))
    axis = turned[:, 1:] / turned[:, 1:].norm(dim=1, keepdim=True)
    assert axis.mean(dim=0).abs().max() < 4 / np.sqrt(3 * 1000)


@pytest.mark.parametrize("name", TASKS)
def test_success_asks_for_the_box_within_5_cm_of_the_target(name):
    env = make(2, name)
    target, quat = env.sim.data.mocap_pos[:, 0].clone(), env.sim.data.mocap_quat[:, 0]
    env.sim.data.qpos[:, 12:16] = quat
    direction = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    move_box(env, target + torch.tensor([[0.049], [0.051]]) * direction)
    assert env.task.success(env.sim).tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("panda_pick_cube", [True] * 3), ("panda_pick_cube_orientation", [True, False, False])],
)
def test_the_orientation_task_asks_for_less_than_a_fifth_of_a_radian(name, expected):
    env = make(3, name)
    axis = torch.tensor([[1.0, 2.0, -2.0]], dtype=torch.float64) / 3
    turn = from_axis_angle(axis, torch.tensor([0.19, 0.21, np.pi / 2], dtype=torch.float64))
    env.sim.data.qpos[:, 12:16] = multiply(env.sim.data.mocap_quat[:, 0], turn)
    move_box(env, env.sim.data.mocap_pos[:, 0])
    assert env.task.success(env.sim).tolist() == expected


def test_dynamics_are_the_published_ones_unless_noise_is_asked_for():
    assert dir(make(1).sim.params) == []
    env = make(64, dynamics_noise=True)
    mass = env.sim.params.body_mass[:, env.model.body("box").id]
    assert 0.048 <= mass.min() < 0.06
    assert 0.17 < mass.max() <= 0.192
    damping = env.sim.params.dof_damping[:, :7] / 40.0
    assert (damping[:, :4] - 1).abs().max() <= 0.1 + 1e-6


def test_a_training_may_begin_at_the_published_keyframes():
    """Closed and raised, the hand has the box in all three; home's box stays where it is."""
    env = make(4)
    bank = env.task.start_bank(torch.device("cpu"))
    scenes = TABLE["scenes"]
    keys = {k["name"]: k for name in scenes for k in scenes[name].get("keyframes", ())}
    for row, name in zip(bank, ("pickup", "pickup1", "picked"), strict=True):
        np.testing.assert_allclose(row[:16], keys[name]["qpos"], atol=1e-7)
        assert not row[16:31].any()
        np.testing.assert_allclose(row[31:], keys[name]["ctrl"], atol=1e-7)
    mask = torch.tensor([True, True, True, False])
    env.task.set_start_state(env.sim, mask, bank[[0, 1, 2, 0]], env.rng)
    env.sim.forward()
    assert env.task.progress(env.sim)[[0, 1, 3]].abs().max() < 1e-3
    close, rise = torch.zeros(4, 8), torch.zeros(4, 8)
    close[:3, 7] = -1.0
    rise[:3, 1] = -0.25  # the shoulder, by 0.01 rad a step
    rise[:3, 7] = -1.0
    for action in (*[close] * 10, *[rise] * 20):
        env.world.begin(action)
        env.world.advance()
    height = env.task.progress(env.sim)
    assert height[:3].min() > 0.03 and height[3] < 1e-3
