"""The published PandaPickCubeCartesian, recomputed in NumPy from MuJoCo's own structures."""

import json
import math
import pathlib

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task

STATE, VISION = "panda_pick_cube_cartesian", "panda_pick_cube_cartesian_vision"
TABLE = json.loads(
    (pathlib.Path(__file__).parents[1] / "robots" / "panda_reference.json").read_text()
)
KEYS = {k["name"]: k for k in TABLE["scenes"]["single_cube_camera"]["keyframes"]}
BEGIN = next(
    k["sites"]["gripper"]["pos"]
    for k in TABLE["reference"]["single_cube_camera"]
    if k["keyframe"] == "low_home"
)
PLANE = BEGIN[0] - 0.03
WEIGHTS = {"gripper_box": 4.0, "box_target": 8.0, "no_floor_collision": 0.25}
WEIGHTS |= {"no_box_collision": 0.05, "lifted": 0.5, "success": 2.0}


def make(num_envs, name=STATE, seed=1, **config):
    kind = load_task(name)
    return Env(kind(kind.Config(**config)), num_envs, seed=seed)


def worlds(env):
    """MuJoCo's own view of every environment."""
    for row in env.sim.get_state().numpy():
        data = mujoco.MjData(env.model)
        mujoco.mj_setState(env.model, data, row, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(env.model, data)
        yield data


def step(env, action):
    return env.step(env.current().set("action", action))["next"]


def touches(data, *pairs):
    found = {frozenset(pair.tolist()) for pair in data.contact.geom}
    return any(frozenset(data.model.geom(name).id for name in pair) in found for pair in pairs)


def published_observation(data, no_solution, last):
    gripper, box, target = data.site("gripper"), data.body("box"), data.body("target")
    return np.concatenate(
        (
            *(data.qpos, data.qvel, gripper.xpos, gripper.xmat[3:], box.xmat[3:]),
            *(box.xpos - gripper.xpos, target.xpos - box.xpos),
            *(target.xmat[:6] - box.xmat[:6], data.ctrl - data.qpos[:8]),
            *([no_solution], last),
        )
    )


def published_sum(data, reached, change, *, height_only=False):
    """The total that the running maximum is of; and whether the box has been reached."""
    gripper, box, target = data.site("gripper"), data.body("box"), data.body("target")
    off = target.xpos - box.xpos
    near = np.linalg.norm(box.xpos - gripper.xpos)
    reached = reached or near < 0.012
    turn = np.linalg.norm(target.xmat[:6] - box.xmat[:6])
    hand = [(name, "floor") for name in ("left_finger_pad", "right_finger_pad", "hand_capsule")]
    terms = {
        "gripper_box": 1 - np.tanh(5 * near),
        "box_target": (1 - np.tanh(5 * (0.9 * np.linalg.norm(off) + 0.1 * turn))) * reached,
        "no_floor_collision": float(not touches(data, *hand)),
        "no_box_collision": float(not touches(data, ("hand_capsule", "box"))),
        "lifted": float(box.xpos[2] > 0.05),
        "success": float((abs(off[2]) if height_only else np.linalg.norm(off)) < 0.05),
    }
    total = sum(WEIGHTS[name] * value for name, value in terms.items())
    return total - (0.0 if height_only else 0.0005 * change), reached


def pick(env, noise=0.1):
    """Yield (action, transition) while the script, disturbed, does the task."""
    expert = env.task.expert(env.sim)
    rng = torch.Generator().manual_seed(0)
    while True:
        action = expert.act()
        action = action + noise * torch.randn(action.shape, generator=rng)
        action = action.clamp(-1.0, 1.0)
        yield action, step(env, action)


# What is observed, and drawn.


def test_the_70_numbers_are_the_66_of_the_joint_task_then_no_solution_then_the_action():
    (group,) = make(1).inputs
    (joints,) = make(1, "panda_pick_cube").inputs
    assert group.features[:-2] == joints.features
    assert [(f.name, f.size) for f in group.features[-2:]] == [
        ("no_solution", 1),
        ("last_action", 3),
    ]
    assert group.size == 70


def test_the_observation_equals_an_independent_computation():
    env = make(3)
    *_, (_, (action, after)) = zip(range(25), pick(env), strict=False)
    rows = zip(worlds(env), action.numpy(), strict=True)
    expected = np.stack([published_observation(data, 0.0, last) for data, last in rows])
    np.testing.assert_allclose(after["teacher"], expected, atol=2e-5)
    first = make(3)
    expected = np.stack([published_observation(data, 0.0, [0] * 3) for data in worlds(first)])
    np.testing.assert_allclose(first.current()["teacher"], expected, atol=2e-6)


@pytest.mark.parametrize("name", [STATE, VISION])
def test_episodes_begin_at_low_home_with_the_box_on_a_line_and_one_target(name):
    env = make(1000, name, observation={"teacher": load_task(name).Config().observation["teacher"]})
    qpos = env.sim.data.qpos
    np.testing.assert_allclose(qpos[:, :9], np.tile(KEYS["low_home"]["qpos"][:9], (1000, 1)))
    np.testing.assert_allclose(env.sim.data.ctrl, np.tile(KEYS["low_home"]["ctrl"], (1000, 1)))
    np.testing.assert_allclose(qpos[:, 9], PLANE, atol=1e-6)
    np.testing.assert_allclose(qpos[:, 11], 0.03, atol=1e-8)
    y = qpos[:, 10] / 0.05
    assert y.abs().max() < 1 + 1e-6 and y.abs().max() > 0.99
    assert y.mean().abs() < 4 / math.sqrt(3 * 1000)
    assert y.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.03)
    target = env.sim.data.mocap_pos[:, 0]
    np.testing.assert_allclose(target, np.tile([PLANE, 0.0, 0.2], (1000, 1)), atol=1e-6)
    wide = make(200, box_init_range=0.1).sim.data.qpos[:, 10].abs().max()
    assert 0.095 < wide <= 0.1 + 1e-6


def test_a_training_may_begin_with_the_box_in_the_hand():
    env = make(2)
    (row,) = env.task.start_bank(torch.device("cpu"))
    key = KEYS["picked"]
    np.testing.assert_allclose(row[:16], key["qpos"], atol=1e-7)
    np.testing.assert_allclose(row[31:], key["ctrl"], atol=1e-7)
    mask = torch.tensor([True, False])
    env.task.set_start_state(env.sim, mask, row.expand(2, -1), env.rng)
    env.sim.forward()
    tip = env.task.memory["tip"]
    np.testing.assert_allclose(tip[0], env.sim.data.site_xpos[0, env.task.tcp], atol=1e-5)
    np.testing.assert_allclose(tip[1], BEGIN, atol=1e-6)
    for _ in range(10):
        step(env, torch.tensor([[0.0, 0.0, -1.0]]).expand(2, 3))
    assert env.sim.data.xpos[0, env.task.box, 2] > 0.05  # not dropped


# What actions do.


def test_the_tool_follows_its_target_and_neither_turns_nor_leaves_its_plane():
    env = make(1)
    turn = env.sim.data.site_xmat[0, env.task.tcp].clone()
    action = torch.tensor([[1.0, 0.5, 0.0]])
    for _ in range(12):
        step(env, action)
    tip = env.task.memory["tip"][0]
    np.testing.assert_allclose(tip, np.add(BEGIN, [0.0, 0.06, 0.03]), atol=1e-5)
    (data,) = worlds(env)
    data.qpos[:7] = data.ctrl[:7]  # where the joints' targets bring it
    mujoco.mj_kinematics(env.model, data)
    np.testing.assert_allclose(data.site("gripper").xpos, tip, atol=1e-5)
    np.testing.assert_allclose(data.site("gripper").xmat.reshape(3, 3), turn, atol=1e-5)
    assert data.ctrl[6] == pytest.approx(0.78501, abs=1e-6)


def test_the_target_stays_in_its_box_and_the_gripper_in_its_range():
    env = make(1)
    side, up = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    begin = BEGIN[1]
    for action, y, z, jaw in (
        (side, 0.32, BEGIN[2], 0.04),
        (-side, -0.32, BEGIN[2], 0.0),
        (up, begin, 0.5, 0.04),
        (-up, begin, 0.02, 0.0),
    ):
        if z != BEGIN[2]:
            env.task.memory["tip"][:] = torch.tensor(BEGIN)
        for _ in range(140):
            env.task.apply_action(env.sim, action)
        tip = env.task.memory["tip"][0]
        np.testing.assert_allclose(tip, [BEGIN[0], y, z], atol=1e-6)
        assert env.sim.data.ctrl[0, 7].item() == pytest.approx(jaw, abs=1e-7)
        assert env.task.memory["no_solution"].item() == 0.0
    env.task.apply_action(env.sim, torch.tensor([[0.0, 0.0, 1.0]]))
    assert env.sim.data.ctrl[0, 7].item() == pytest.approx(0.02, abs=1e-7)


def test_a_target_out_of_reach_is_not_taken_and_is_observed_and_costs():
    env = make(1)
    env.task.memory["tip"][:] = torch.tensor([1.2, 0.0, 0.3])
    before = env.sim.data.ctrl.clone()
    after = step(env, torch.tensor([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(env.task.memory["tip"][0], [1.2, 0.0, 0.3])
    np.testing.assert_allclose(env.sim.data.ctrl[0, :7], before[0, :7], atol=1e-6)
    assert after["teacher"][0, 66] == 1.0
    terms = env.task.potential(env.sim, torch.zeros(1, 3))
    assert terms["no_solution"].item() == 1.0
    assert env.cfg.potential["no_solution"] == -0.01


# What is paid.


@pytest.mark.parametrize("name", [STATE, VISION])
def test_the_reward_is_what_the_published_sum_gains_above_its_best(name):
    teacher = {"teacher": load_task(name).Config().observation["teacher"]}
    env = make(3, name, observation=teacher)
    best, reached, last = np.zeros(3), [False] * 3, np.zeros((3, 3))
    ended = np.zeros(3, dtype=bool)
    for k, (action, after) in enumerate(pick(env)):
        change = np.linalg.norm(action.numpy() - last, axis=1)
        last = action.numpy()
        for i, data in enumerate(worlds(env)):
            total, reached[i] = published_sum(
                data, reached[i], change[i], height_only=name == VISION
            )
            expected = 0.0 if k == 0 else max(total - best[i], 0.0)
            best[i] = max(best[i], total)
            if not ended[i]:
                assert after["reward"][i].item() == pytest.approx(expected, abs=2e-4), (k, i)
        ended |= after["terminated"][:, 0].numpy()
        if ended.all():
            break
    assert all(reached) and (best > 10.0).all()
    assert (env.task.progress(env.sim) > 5.0).all()
    env._restart(torch.ones(3, dtype=torch.bool))
    assert not env.task.progress(env.sim).any()


@pytest.mark.parametrize(
    ("name", "off", "expected"),
    [
        (STATE, (0.0, 0.04, 0.025), True),
        (STATE, (0.0, 0.04, 0.035), False),
        (VISION, (0.0, 0.2, 0.045), True),
        (VISION, (0.0, 0.0, -0.055), False),
    ],
)
def test_success_is_5_cm_from_the_target_or_from_its_height_and_ends_the_episode(
    name, off, expected
):
    env = make(1, name, observation={"teacher": load_task(name).Config().observation["teacher"]})
    place = torch.tensor([PLANE, 0.0, 0.2], dtype=torch.float64)
    env.sim.data.qpos[:, 9:12] = place + torch.tensor(off, dtype=torch.float64)
    env.sim.forward()
    assert env.task.success(env.sim).tolist() == [expected]
    assert env.task.terminated(env.sim).tolist() == [expected]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"potential": {"lifted": 1.0}}, "task.potential must weigh gripper_box, box_target"),
        ({"box_init_range": 0.4}, r"task.box_init_range must be in \[0, 0.3\] m, got 0.4"),
    ],
)
def test_invalid_values_are_refused_by_name(config, said):
    with pytest.raises(ValueError, match=said):
        load_task(STATE).Config(**config)


# The script.


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_script_brings_the_box_home_also_when_it_is_disturbed(noise):
    env = make(64, seed=5)
    won = torch.zeros(64, dtype=torch.bool)
    for _, (_, after) in zip(range(70), pick(env, noise), strict=False):
        won |= after["success"][:, 0]
    assert won.float().mean() >= 0.95
    expert = env.task.expert(env.sim)
    assert torch.equal(expert.act(), env.task.expert(env.sim).act()) and expert.memory == {}


def test_the_script_closes_at_the_box_alone():
    env = make(2)
    expert = env.task.expert(env.sim)
    tool = env.sim.data.site_xpos[:, env.task.tcp].double()
    env.sim.data.qpos[:, 9:12] = tool + torch.tensor([[0.0] * 3, [0.0, 0.03, 0.0]])
    env.sim.forward()
    action = expert.act()
    assert action[:, 2].tolist() == [-1.0, 1.0]
    assert action[1, 0] == 1.0  # to the box's side
    assert action[0, :2].abs().max() < 0.02  # it waits until they press on it
    env.sim.data.qpos[0, 7:9] = 0.02
    assert expert.act()[0].tolist() == pytest.approx([0.0256, 0.8769, -1.0], abs=1e-3)


# What the camera sees.


def test_the_student_has_one_image_and_the_ghost_is_not_in_it():
    env = make(2, VISION)
    student = [i for i in env.inputs if i.name != "teacher"]
    assert [(i.name, i.features[0].shape) for i in student] == [("front_rgb", (64, 64, 3))]
    model = env.model
    assert not any(model.geom(i).name == "target" for i in range(model.ngeom))
    row = TABLE["scene_vision"]["cameras"][0]
    camera = model.camera("front")
    np.testing.assert_allclose(camera.pos, row["pos"])
    np.testing.assert_allclose(camera.quat, row["quat"], atol=1e-6)
    assert camera.fovy[0] == row["fovy_deg"]
    assert not load_task(VISION).Config().potential["action_rate"]


def test_the_camera_sees_the_box_wherever_an_episode_may_begin():
    env = make(32, VISION, box_init_range=0.1)
    for _ in range(2):
        env.reset()
        image = env.current()["front_rgb"].int()
        red = (image[..., 0] > 2 * image[..., 1] + 10) & (image[..., 0] > 2 * image[..., 2] + 10)
        assert red.flatten(1).sum(dim=1).min() >= 10
