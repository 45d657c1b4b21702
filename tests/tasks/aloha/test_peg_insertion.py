"""`aloha_peg_insertion` against its published description, computed apart with MuJoCo and numpy."""

import dataclasses
import math

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.start_bank import write_bank
from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import save_policy
from penspin_style.train import compose
from tasks.aloha import one_arm
from tasks.aloha.one_arm import ActionLatency, Noise
from tasks.aloha.peg_insertion import Config, PegInsertion
from tasks.robots.aloha import description
from tasks.robots.aloha.keyframes import KEYFRAMES

PREINSERT = KEYFRAMES["insertion"]["preinsert"]
HOME = np.array([0.25, -0.4, 1.5, 0, -0.73, 0, 0.037, 0.037])
UP = (tuple(-0.6 if i in (1, 9) else x for i, x in enumerate(PREINSERT[0])), PREINSERT[1])
"""The published state, in which the hands are at 15 cm, with both raised."""
AT_ONCE = ActionLatency([1.0], [1.0])
SIDES = (("left", "socket", np.eye(3)), ("right", "peg", np.diag([-1.0, -1.0, 1.0])))
AIM = {"left": np.array([-0.1, 0, 0.25]), "right": np.array([0.1, 0, 0.25])}
PUBLISHED = {
    "peg_insertion": 8, "socket_rot": 0.5, "peg_rot": 0.5, "success": 0, "drop": -10,
    "final_grasp": 10, "robot_target_qpos": 1, "left_joint_vel": 0.5, "right_joint_vel": 0.5,
    "left_grip_pos": 0.25, "right_grip_pos": 0.25, "align": 0, "angle": 0, "approach": 0,
}  # fmt: skip


def make(num_envs=1, seed=3, **config):
    config = {"noise": Noise(scale=0.0), "action_latency": AT_ONCE, "latency": {}} | config
    return Env(PegInsertion(Config(**config)), num_envs, seed=seed, nthread=1)


def step(env, action=None):
    action = torch.zeros(env.num_envs, 14) if action is None else action
    return env.step_and_maybe_reset(env.current().set("action", action))[0]["next"]


def shaken(num_envs=8, **config):
    """Environments after the switch, in which everything is a little out of place, and moves."""
    env = make(num_envs, ring_starts=1.0, **config)
    rng = torch.Generator().manual_seed(0)
    data = env.sim.data

    def noise(*shape):
        return torch.randn(num_envs, *shape, generator=rng, dtype=torch.float64)

    data.qvel.copy_(0.3 * noise(28))
    data.qpos[:, [*range(6), *range(8, 14)]] += 0.02 * noise(12)
    for at in (16, 23):
        data.qpos[:, at : at + 3] += 0.02 * noise(3)
        quat = data.qpos[:, at + 3 : at + 7] + 0.1 * noise(4)
        data.qpos[:, at + 3 : at + 7] = quat / quat.norm(dim=1, keepdim=True)
    # the first half is nearly put together
    half = num_envs // 2
    socket = data.qpos[:half, 16:19]
    data.qpos[:half, 19:23] = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    depth = torch.linspace(0.0, 0.1, half, dtype=torch.float64)
    data.qpos[:half, 23:26] = socket + torch.stack((depth, 0.004 + 0 * depth, 0 * depth), dim=1)
    data.qpos[:half, 26:30] = torch.tensor([0, 0, 0, 1.0], dtype=torch.float64)
    data.ctrl.add_(0.05 * noise(14))
    env.sim.forward()
    return env


def mujoco_data(env, row=0):
    """MuJoCo's own data in the state of one environment."""
    model = env.model
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = env.sim.data.qpos[row].numpy(), env.sim.data.qvel[row].numpy()
    data.ctrl[:] = env.sim.data.ctrl[row].numpy()
    mujoco.mj_forward(model, data)
    return model, data


def tips(data, side):
    return sum(data.site(f"{side}_{f}_fingertip").xpos for f in ("left", "right")) / 2


def on(data, body, x):
    """A point x m along the axis of an object."""
    return data.body(body).xpos + data.body(body).xmat.reshape(3, 3) @ [x, 0, 0]


def arm_errors(data, side, body, turn):
    """Gripping error, target error, and difference of two rotation rows, in the base's frame."""
    mat = data.body(body).xmat.reshape(3, 3)
    grip = tips(data, side) - on(data, body, -0.02)
    aim = AIM[side] - data.body(body).xpos
    return turn.T @ grip, turn.T @ aim, np.eye(3)[:2] - (turn.T @ mat)[:2]


def expected_rewards(data, last=False):
    """The published terms after the switch, and the three of ours."""
    out = {}
    tip, end, rear = on(data, "peg", 0.048), on(data, "socket", -0.048), data.body("socket").xpos
    axis = data.body("socket").xmat.reshape(3, 3)[:, 0]
    beside = np.linalg.norm((tip - rear) - axis * ((tip - rear) @ axis))
    far = max(np.linalg.norm(tip - end) - 0.001, 0) / 0.2
    linear = 1 - 0.9 * far if abs(0.9 * far) < 1 else 0.0
    out["peg_insertion"] = linear * (beside < 0.01)
    grips, away = [], []
    for side, body, turn in SIDES:
        grip, _, mat = arm_errors(data, side, body, turn)
        grips.append(np.linalg.norm(grip))
        out[f"{body}_rot"] = 1 - math.tanh(5 * math.sqrt((mat**2).sum()))
        at = slice(0, 8) if side == "left" else slice(8, 16)
        away.append(1 - math.tanh(np.linalg.norm(data.qpos[at] - HOME)))
        over = max(np.linalg.norm(data.qvel[at]) - 0.5, 0) / 2
        out[f"{side}_joint_vel"] = 1 / (over * (1 / 0.1 - 1) + 1)
        out[f"{side}_grip_pos"] = 1 - math.tanh(5 * grips[-1])
    low = min(data.body("socket").xpos[2], data.body("peg").xpos[2])
    rot = [data.body(b).xmat.reshape(3, 3) for b in ("socket", "peg")]
    opposite, roll = rot[0][:, 0] @ rot[1][:, 0], rot[0][:, 2] @ rot[1][:, 2]
    return out | {
        "success": float(np.linalg.norm(tip - end) < 0.01),
        "drop": float(low < 0.07),
        "final_grasp": float(last and max(grips) < 0.03),
        "robot_target_qpos": sum(away) / 2,
        "align": 1 - math.tanh(20 * beside),
        "angle": math.exp(-10 * ((1 + opposite) + (1 - roll))),
        "approach": max(1 - np.linalg.norm(tip - end) / 0.25, 0) * math.exp(-2500 * beside**2),
    }


# Reward.


def test_every_reward_term_is_that_of_the_description_after_the_switch():
    env = shaken(24)
    # rows: nearly together, apart; one that fell
    env.sim.data.qpos[20, 25] = 0.05
    env.sim.forward()
    env.task.memory["switched"].fill_(True)
    terms = env.task.reward(env.sim, torch.zeros(24, 14))
    assert set(terms) == set(PUBLISHED)
    seen = {name: set() for name in terms}
    for row in range(24):
        _, data = mujoco_data(env, row)
        for name, value in expected_rewards(data).items():
            assert float(terms[name][row]) == pytest.approx(value, abs=2e-5), (name, row)
            seen[name].add(round(value, 2))
    for name in ("peg_insertion", "drop", "success", "align", "angle", "peg_rot", "left_joint_vel"):
        assert len(seen[name]) > 1, name


def test_nothing_is_paid_before_the_switch():
    env = shaken(4)
    env.task.memory["switched"].fill_(False)
    terms = env.task.reward(env.sim, torch.zeros(4, 14))
    assert all(not value.any() for value in terms.values())
    assert not env.task.dropped(env.sim).any()


def test_a_grasp_is_paid_at_the_last_step_alone():
    env = shaken(2)
    env.sim.data.qpos.copy_(torch.tensor(PREINSERT[0], dtype=torch.float64))
    env.sim.forward()
    env.task.memory["switched"].fill_(True)
    paid = []
    for steps in (158, 159, 160):
        env.task.memory["steps"].fill_(steps)
        paid.append(float(env.task.reward(env.sim, torch.zeros(2, 14))["final_grasp"][0]))
    assert paid == [0.0, 0.0, 1.0]
    _, data = mujoco_data(env)
    assert expected_rewards(data, last=True)["final_grasp"] == 1.0


def test_the_published_weights_and_scales_are_an_ablation():
    cfg = compose.compose_train(["task=aloha_peg_insertion", "ablation=published_scale"])[0].task
    assert Config().reward == PUBLISHED
    assert (cfg.action_scale, cfg.gripper_scale) == (0.02, 0.02)
    assert (Config().action_scale, Config().gripper_scale) == (0.02, 0.001)
    assert (Config().window, cfg.window) == (60, 60)


# Observation.


def test_the_observation_is_the_published_109_numbers():
    env = shaken(6)
    env.task.memory["steps"].fill_(40)
    terms = env.task.observe(env.sim)
    group = env.cfg.observation
    seen = torch.cat([terms[n].flatten(1).float() for n in group["critic"]], dim=1)
    assert seen.shape == (6, 110 + 15) and list(group["critic"])[:21] == list(group["teacher"])
    for row in range(6):
        model, data = mujoco_data(env, row)
        expected = []
        for i, (side, body, turn) in enumerate(SIDES):
            grip, aim, mat_error = arm_errors(data, side, body, turn)
            box = data.body(body).xmat.reshape(3, 3)
            gripper = data.site(f"{side}_gripper").xmat.reshape(3, 3)
            spin = np.zeros(6)
            mujoco.mj_objectVelocity(
                model, data, mujoco.mjtObj.mjOBJ_BODY, data.body(body).id, spin, 0
            )
            arm, at = slice(8 * i, 8 * i + 8), 16 + 6 * i
            expected += [
                *(data.qpos[arm], data.qvel[arm], turn.T @ data.qvel[at : at + 3]),
                *(turn.T @ spin[:3], (turn.T @ gripper)[1:].ravel(), (turn.T @ box)[1:].ravel()),
                *(grip, aim, mat_error.ravel()),
                data.ctrl[7 * i : 7 * i + 7] - data.qpos[arm][:7],
            ]
        tip = data.body("socket").xpos - on(data, "peg", 0.048)
        expected += [tip, [40 / 160]]
        # what the critic is told beyond the published: the truth
        socket, peg = (data.body(b).xmat.reshape(3, 3) for b in ("socket", "peg"))
        expected += [socket.T @ (on(data, "peg", 0.048) - on(data, "socket", -0.048))]
        expected += [socket.T @ peg[:, 0], socket.T @ peg[:, 2]]
        expected += [arm_errors(data, *side)[0] for side in SIDES]
        np.testing.assert_allclose(seen[row], np.concatenate(expected), atol=3e-6)


def test_the_tips_noise_is_the_difference_of_two_uniform_draws():
    env = make(1500, noise=Noise(object_angle=7.5), ring_starts=1.0)
    env.sim.set_state(env.sim.get_state()[:1].expand(1500, -1))
    off = env.task.observe(env.sim)["tip_error"]
    off = off - off.double().mean(dim=0).float()
    assert 0.028 < off.abs().max() < 0.031
    assert off.std(dim=0).numpy() == pytest.approx([0.03 / math.sqrt(6)] * 3, rel=0.06)


def test_teacher_and_critic_see_the_same_noise_and_the_teacher_sees_it_late():
    env = make(64, noise=Noise(), latency=Config().latency, ring_starts=1.0)
    same, now, before = [], [], []
    for _ in range(8):
        nxt = step(env)
        now.append(nxt["critic"][:, :109])
        same.append(nxt["teacher"])
        late = [torch.isclose(same[-1], x).all(dim=1) for x in reversed(now[-4:])]
        before.append(torch.stack(late))
    late = torch.stack(before[4:]).float()  # (4, lag, n)
    assert late.sum(dim=1).eq(1).all()
    assert late.mean(dim=(0, 2)).tolist() == pytest.approx([0.857, 0.107, 0.021, 0.015], abs=0.06)


def test_rotations_are_turned_as_far_as_published():
    assert Config().noise.object_angle == 7.5 and Config().noise.gripper_angle == 5.0
    env = make(800, noise=Config().noise, ring_starts=1.0)
    turns = env.task.hands[1].memory["turns"]
    angle = torch.rad2deg(torch.arccos((turns.diagonal(dim1=2, dim2=3).sum(-1) - 1) / 2))
    assert angle.amax(dim=0).tolist() == pytest.approx([5.0, 7.5], rel=0.02)


# Starts, the switch, the ring.


def test_objects_lie_in_fans_before_their_arms():
    env = make(500, ring_starts=0.0)
    qpos = env.sim.data.qpos.numpy()
    for i, (side, _, turn) in enumerate(SIDES):
        base = np.array(description.BASES[side][0])
        at = 16 + 7 * i
        x, y, z = ((qpos[:, at : at + 3] - base) @ turn).T
        radius, bearing = np.hypot(x, y), np.arctan2(y, x)
        for values, low, high in (
            (radius, 0.27, 0.42),
            (bearing, 0.25 - math.radians(14.5), 0.25 + math.radians(14.5)),
        ):
            assert low <= values.min() < low + 0.03 * (high - low)
            assert high - 0.03 * (high - low) < values.max() <= high
        np.testing.assert_allclose(z + 0.02, [0.022, 0.0125][i], atol=1e-6)
        yaw = 2 * np.arctan2(qpos[:, at + 6], qpos[:, at + 3]) - (np.pi if i else 0)
        off = (yaw - bearing + np.pi) % (2 * np.pi) - np.pi
        assert 4.8 < np.degrees(np.abs(off).max()) <= 5.0
        waist = qpos[:, 8 * i]
        assert 0.15 <= waist.min() < 0.155 and 0.345 < waist.max() <= 0.35
        np.testing.assert_allclose(env.sim.data.ctrl[:, 7 * i], waist, atol=1e-6)


def test_a_share_of_the_episodes_begins_in_the_ring():
    env = make(1000)
    switched = env.task.memory["switched"]
    assert float(switched.float().mean()) == pytest.approx(0.8, abs=0.04)
    rows = env.sim.data.qpos[switched]
    torch.testing.assert_close(rows, torch.tensor(PREINSERT[0]).double().expand_as(rows))
    assert not make(50, ring_starts=0.0).task.memory["switched"].any()


def lifted(env, mask):
    """Put the masked environments where both hands are up."""
    for name, row in zip(("qpos", "ctrl"), UP, strict=True):
        field = env.sim.data[name]
        field[mask] = torch.tensor(row, dtype=torch.float64)
    env.sim.forward()


def test_the_learner_takes_over_when_both_hands_are_up_and_keeps_it():
    env = make(4, ring_starts=0.0)
    task, memory = env.task, env.task.memory
    assert not task.is_up(env.sim).any()
    lifted(env, torch.tensor([True, True, False, True]))
    # the third has one hand up
    env.sim.data.qpos[2, :8] = torch.tensor(UP[0][:8], dtype=torch.float64)
    env.sim.forward()
    _, data = mujoco_data(env, 2)
    assert tips(data, "left")[2] > 0.17 > tips(data, "right")[2]
    assert task.is_up(env.sim).tolist() == [True, True, False, True]
    step(env)
    assert memory["switched"].tolist() == [True, True, False, True]
    env.sim.data.qpos[:, 0:16] = env.task.home[:16].double()
    env.sim.forward()
    assert task.is_up(env.sim).tolist() == [True, True, False, True]


def test_the_state_at_the_switch_goes_into_the_ring_once_and_survives_resets():
    env = make(2, ring_starts=0.0)
    ring, head = env.task.memory["ring"], env.task.memory["ring_head"]
    before = ring.clone()
    lifted(env, torch.tensor([False, True]))
    env.sim.data.qpos[1, 20] += 0.125
    env.sim.data.ctrl[1, 3] += 0.25
    now = torch.cat((env.sim.data.qpos, env.sim.data.ctrl), dim=1)[1].clone()
    for _ in range(3):
        step(env)
    assert head.tolist() == [0, 1]
    assert torch.equal(ring[1, 0], now)
    assert torch.equal(ring[0], before[0]) and torch.equal(ring[1, 1:], before[1, 1:])
    env.reset()
    assert torch.equal(ring[1, 0], now)
    for _ in range(11):  # the oldest of ten goes
        lifted(env, torch.tensor([False, True]))
        step(env)
        env.reset()
    assert head.tolist() == [0, 2] and not torch.equal(ring[1, 0], now)


def test_a_start_from_the_ring_is_one_of_its_own_ten():
    env = make(300, ring_starts=1.0)
    ring = env.task.memory["ring"]
    ring[:, :, 3] = torch.arange(3000.0).view(300, 10).double() / 1e4
    env.reset()
    drawn = (env.sim.data.qpos[:, 3] * 1e4).round().long()
    assert torch.equal(drawn // 10, torch.arange(300))
    assert torch.bincount(drawn % 10, minlength=10).min() > 10


def test_a_bank_fills_the_rings(tmp_path):
    env = make(1, ring_starts=1.0)
    row = env.task.start_state(env.sim)
    assert row.shape == (1, 30 + 28 + 14 + 1) and row[0, -1] == 1.0
    rows = row.repeat(7, 1)
    rows[:, 3] = torch.arange(7).double()
    write_bank(tmp_path / "bank", rows.float(), {})
    again = make(2, ring_starts=1.0, preinsertion=str(tmp_path / "bank"))
    assert again.task.memory["ring"][:, :, 3].flatten().tolist() == [i % 7 for i in range(20)]
    scripted = make(20, ring_starts=1.0, preinsertion="scripted")
    assert scripted.task.is_up(scripted.sim).all()
    assert len(scripted.task.memory["ring"].flatten(0, 1).unique(dim=0)) >= 100
    write_bank(tmp_path / "other", rows[:, :-1].float(), {})
    with pytest.raises(ValueError, match=r"task.preinsertion=.*72 numbers, not the 73"):
        make(1, preinsertion=str(tmp_path / "other"))


def test_training_begins_in_the_ring_and_evaluation_at_the_table():
    cfg = compose.compose_train(["task=aloha_peg_insertion"])[0]
    assert cfg.task.ring_starts == 0.8 and cfg.eval.task == {"ring_starts": 0.0}


# Ends.


def test_the_learner_has_the_windows_steps():
    env = make(2, ring_starts=1.0, window=60)
    ends = [bool(step(env)["terminated"][0]) for _ in range(60)]
    assert ends == [False] * 59 + [True]


def test_an_episode_ends_when_something_falls_tilts_or_is_lost():
    env = make(6, ring_starts=1.0)
    qpos, memory = env.sim.data.qpos, env.task.memory
    qpos[1, 18] = 0.069  # the socket is down
    qpos[2, 25] = 0.069  # the peg
    half = math.radians(81.0) / 2
    qpos[3, 26:30] = torch.tensor([math.cos(half), math.sin(half), 0.0, 0.0])
    qpos[4, 17] = 1.01
    qpos[5, 18] = 0.069
    memory["switched"][5] = False
    env.sim.forward()
    # both hands of the last one are up, but it has not switched: nothing has been dropped
    assert env.task.terminated(env.sim).tolist() == [False, True, True, True, True, False]
    assert env.task.dropped(env.sim).tolist() == [False, True, True, False, False, False]


def test_success_is_less_than_ten_millimetres():
    env = make(3, ring_starts=1.0)
    qpos = env.sim.data.qpos
    for row, gap in enumerate((0.0079, 0.0099, 0.0101)):
        qpos[row, 16:23] = torch.tensor([0, 0, 0.2, 1.0, 0, 0, 0])
        qpos[row, 23:30] = torch.tensor([gap, 0, 0.2, 0, 0, 0, 1.0])
    env.sim.forward()
    assert env.task.success(env.sim).tolist() == [True, True, False]
    assert env.task.distance(env.sim).tolist() == pytest.approx([0.0079, 0.0099, 0.0101], abs=1e-6)


# Action.


def test_targets_move_by_the_scale_of_joints_and_grippers_within_their_limits():
    env = make(2, ring_starts=1.0)
    before = env.sim.data.ctrl.clone()
    action = torch.linspace(-1, 1, 14).repeat(2, 1)
    step(env, action)
    scale = torch.tensor(([0.02] * 6 + [0.001]) * 2)
    low, high = torch.tensor(description.LOWER), torch.tensor(description.UPPER)
    wanted = (before + scale * action).clamp(low, high)
    torch.testing.assert_close(env.sim.data.ctrl, wanted, atol=1e-7, rtol=0)
    assert wanted[0, 6] > 0.002 or wanted[0, 6] == low[6]


def test_an_action_that_is_late_moves_as_when_it_was_taken():
    late = ActionLatency([0.0, 1.0], [0.0, 1.0])
    env = make(1, ring_starts=0.0, action_latency=late, action_scale=0.01)
    before = env.sim.data.ctrl.clone()
    moved = []
    for value, switched in ((0.5, False), (-1.0, True), (0.0, True)):
        env.task.memory["switched"].fill_(switched)
        env.task.apply_action(env.sim, torch.full((1, 14), value))
        moved.append(float(env.sim.data.ctrl[0, 1] - before[0, 1]))
    # at first nothing has been commanded before
    assert moved == pytest.approx([0.0, 0.5 * 0.02, 0.5 * 0.02 - 0.01], abs=1e-6)


# The frozen policy.


def pick_policy(folder, **changes):
    """A small policy of `aloha_pick`, and its card."""
    rng = torch.Generator().manual_seed(0)
    policy = GaussianPolicy("teacher", 53, 7, hidden=[8], activation="elu", init_std=0.5, rng=rng)
    for parameter in policy.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=rng)
    shapes = ((8,), (8,), (3,), (3,), (2, 3), (2, 3), (3,), (3,), (2, 3), (7,))
    features = tuple(
        Feature(name, shape, unit)
        for (name, unit), shape in zip(one_arm.UNITS.items(), shapes, strict=True)
    )
    card = PolicyCard(
        task="aloha_pick", inputs=(Input("teacher", features),),
        actions=description.actions(("left",)), joints=(), control_dt=0.05,
        network=policy.describe(),
    )  # fmt: skip
    save_policy(policy, dataclasses.replace(card, **changes), folder)
    return policy.eval()


def test_a_frozen_policy_moves_each_arm_by_its_own_half_until_the_switch(tmp_path):
    policy = pick_policy(tmp_path / "pick")
    env = make(6, ring_starts=0.5, pick_policy=str(tmp_path / "pick"))
    switched = env.task.memory["switched"].clone()
    assert 0 < switched.sum() < 6
    root = env.current()
    assert torch.equal(root["learner_acts"][:, 0], switched)
    half = root["critic"][:, :106].view(6, 2, 53)
    with torch.no_grad():
        picked = policy.act(half).flatten(1)
    before = env.sim.data.ctrl.clone()
    action = torch.full((6, 14), 0.3)
    step(env, action)
    own = torch.tensor(([0.02] * 6 + [0.001]) * 2) * action
    change = torch.where(switched[:, None], own, 0.02 * picked)
    low, high = torch.tensor(description.LOWER), torch.tensor(description.UPPER)
    wanted = (before + change).clamp(low, high)
    torch.testing.assert_close(env.sim.data.ctrl, wanted, atol=1e-6, rtol=0)


def test_the_frozen_policy_sees_late_what_the_learner_sees_late(tmp_path):
    policy = pick_policy(tmp_path / "pick")
    late = dataclasses.replace(Config().latency["teacher"], weights=[0.0, 0.0, 1.0])
    env = make(1, ring_starts=0.0, pick_policy=str(tmp_path / "pick"), latency={"teacher": late})
    seen, ctrl = [], [env.sim.data.ctrl.clone()]
    for _ in range(5):
        seen.append(env.current()["critic"][:, :106].view(2, 53))
        step(env)
        ctrl.append(env.sim.data.ctrl.clone())
    low, high = torch.tensor(description.LOWER), torch.tensor(description.UPPER)
    for i in range(1, 5):  # the first observation is that of a start: nothing is late
        with torch.no_grad():
            picked = policy.act(seen[max(i - 2, 0)]).flatten()
        wanted = (ctrl[i][0] + 0.02 * picked).clamp(low, high)
        torch.testing.assert_close(ctrl[i + 1][0], wanted, atol=1e-6, rtol=0)


def test_a_policy_of_another_scale_is_refused(tmp_path):
    pick_policy(tmp_path / "pick", actions=description.actions(("left",), scale=0.01))
    with pytest.raises(ValueError, match=r"^task.pick_policy=.*scale 0.01, the task 0.02"):
        make(1, pick_policy=str(tmp_path / "pick"))


# What goes on.


def test_it_goes_on_exactly_where_it_was_saved(tmp_path):
    pick_policy(tmp_path / "pick")
    config = {"pick_policy": str(tmp_path / "pick"), "ring_starts": 0.5, "window": 5}
    config |= {"noise": Noise(), "action_latency": ActionLatency(), "latency": Config().latency}
    env, other = make(8, **config), make(8, seed=9, **config)
    rng = torch.Generator().manual_seed(1)
    actions = 2.0 * torch.rand(20, 8, 14, generator=rng) - 1.0
    for action in actions[:8]:
        step(env, action)
    lifted(env, torch.arange(8) == 3)
    step(env, actions[8])
    saved = {k: v.clone() if hasattr(v, "clone") else v for k, v in env.state_dict().items()}
    assert saved["memory/ring_head"].tolist()[3] >= 1
    after = [step(env, action) for action in actions[9:]]
    other.load_state_dict(saved)
    again = [step(other, action) for action in actions[9:]]
    for a, b in zip(after, again, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a.keys())  # noqa: SIM118
    assert torch.equal(env.task.memory["ring"], other.task.memory["ring"])


def test_a_start_from_a_bank_is_after_the_switch_if_the_state_was():
    env = make(3, ring_starts=0.0)
    lifted(env, torch.tensor([True, False, False]))
    rows = env.task.start_state(env.sim)
    assert rows[:, -1].tolist() == [1.0, 0.0, 0.0]
    env.task.memory["steps"].fill_(7)
    rows = rows[[0, 0, 1]]
    env.task.set_start_state(env.sim, torch.tensor([True, False, True]), rows, env.rng)
    assert env.task.memory["switched"].tolist() == [True, False, False]
    assert env.task.memory["steps"].tolist() == [0, 7, 0]
    assert torch.equal(env.sim.data.qpos[0], rows[0, :30])


def test_progress_is_how_much_nearer_the_tip_has_come():
    env = make(1, ring_starts=1.0)
    places = []
    for x in (0.02, 0.0, -0.03, 0.01):
        env.sim.data.qpos[0, 23] = PREINSERT[0][23] + x
        env.sim.forward()
        env.task.memory["steps"].add_(1)
        env.task.reward(env.sim, torch.zeros(1, 14))
        places.append((float(env.task.distance(env.sim)), float(env.task.progress(env.sim))))
    first = places[0][0]
    nearest = np.minimum.accumulate([place for place, _ in places])
    assert [p for _, p in places] == pytest.approx((first - nearest).tolist(), abs=1e-6)


def test_a_success_counts_as_retried_only_after_a_failed_attempt():
    env = make(2, ring_starts=1.0)
    task = env.task
    step(env)
    task.attempts.failed[1] = 1.0
    task.success = lambda sim: torch.ones(2, dtype=torch.bool)
    sums = task.step_metrics(env.sim)
    assert sums["home_again"].tolist() == [0.0, 1.0]
    measures = task.episode_metrics(sums, torch.ones(2), torch.zeros(2, dtype=torch.bool))
    assert measures["retried"].tolist() == [False, True]
