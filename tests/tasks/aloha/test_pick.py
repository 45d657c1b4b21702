"""`aloha_pick` against its published description, computed apart with MuJoCo and numpy."""

import math

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import Latency
from tasks.aloha.one_arm import ActionLatency, Noise
from tasks.aloha.pick import Config, Pick

HOME = np.array([0, -0.4, 1.5, 0, -0.73, 0, 0.037, 0.037])
AT_ONCE = ActionLatency([1.0], [1.0])
BASE = {"left": np.array([-0.469, -0.019, 0.02]), "right": np.array([0.469, -0.019, 0.02])}
TURN = {"left": np.eye(3), "right": np.diag([-1.0, -1.0, 1.0])}


def make(num_envs=1, seed=3, **config):
    config = {"noise": Noise(scale=0.0), "action_latency": AT_ONCE, "latency": {}} | config
    return Env(Pick(Config(**config)), num_envs, seed=seed, nthread=1)


def mujoco_data(env, row=0):
    """Return MuJoCo's own data in the state of one environment, with nominal size and mass."""
    model = Pick(env.cfg).spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = env.sim.data.qpos[row].numpy(), env.sim.data.qvel[row].numpy()
    data.ctrl[:], data.mocap_pos[0] = env.sim.data.ctrl[row], env.sim.data.mocap_pos[row, 0]
    mujoco.mj_forward(model, data)
    return model, data


def errors(model, data, side="left"):
    """Return gripping error, target error and difference of rotation rows, in the base's frame."""
    turn = TURN[side]
    tips = [data.site(f"{side}_{f}_fingertip").xpos for f in ("left", "right")]
    box, mat = data.body("box").xpos, data.body("box").xmat.reshape(3, 3)
    grip = (tips[0] + tips[1]) / 2 - (box + mat @ [-0.02, 0, 0])
    return turn.T @ grip, turn.T @ (data.mocap_pos[0] - box), np.eye(3)[:2] - (turn.T @ mat)[:2]


def shaken(**config):
    """Return environments in which everything moves, at random places, upside down too."""
    env = make(6, randomize=False, **config)
    rng = torch.Generator().manual_seed(0)
    data = env.sim.data
    data.qvel.copy_(torch.randn(data.qvel.shape, generator=rng))
    quat = torch.randn(6, 4, generator=rng)
    data.qpos[:, 11:15] = quat / quat.norm(dim=1, keepdim=True)
    data.qpos[:, 8:11] += 0.2 * torch.rand(6, 3, generator=rng)
    data.qpos[:, :6] += 0.3 * torch.randn(6, 6, generator=rng)
    data.ctrl.add_(0.1 * torch.randn(6, 7, generator=rng))
    env.sim.forward()
    return env


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_observation_is_the_published_53_numbers_in_the_arms_own_frame(side):
    env = shaken(side=side)
    terms = env.task.observe(env.sim)
    seen = torch.cat([terms[name].flatten(1) for name in env.cfg.observation["teacher"]], dim=1)
    assert seen.shape == (6, 53)
    turn = TURN[side]
    for row in range(6):
        model, data = mujoco_data(env, row)
        grip, aim, mat_error = errors(model, data, side)
        box = data.body("box").xmat.reshape(3, 3)
        gripper = data.site(f"{side}_gripper").xmat.reshape(3, 3)
        spin = np.zeros(6)
        mujoco.mj_objectVelocity(
            model, data, mujoco.mjtObj.mjOBJ_BODY, data.body("box").id, spin, 0
        )
        expected = [
            *(data.qpos[:8], data.qvel[:8], turn.T @ data.qvel[8:11], turn.T @ spin[:3]),
            *((turn.T @ gripper)[1:].ravel(), (turn.T @ box)[1:].ravel(), grip, aim),
            *(mat_error.ravel(), data.ctrl - data.qpos[:7]),
        ]
        np.testing.assert_allclose(seen[row], np.concatenate(expected), atol=2e-6)


def test_both_arms_observe_the_same_where_the_world_is_turned():
    """Not `target_error`: the published targets are mirrored, the bases stand 19 mm aside."""
    left, right = (make(16, side=side) for side in ("left", "right"))
    for env in (left, right):
        for _ in range(5):
            env.step(env.current().set("action", torch.full((16, 7), 0.3)))
    a, b = (env.task.observe(env.sim) for env in (left, right))
    for name in a:
        if name != "target_error":
            torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=0)


WIDTHS = {  # of the additive noise; of triangular noise the sum of both
    **{"qpos": 0.1, "qvel": 0.1, "object_linvel": 0.015, "object_angvel": 0.2},
    **{"grip_error": 0.03, "target_error": 0.015},
}


def noisy(n=4000):
    env = make(n, noise=Noise(), randomize=False)
    state = env.sim.get_state()[:1].expand(n, -1)
    env.sim.set_state(state)
    memory = env.task.memory
    terms = env.task.observe(env.sim)
    shifts, turns = memory["shifts"].clone(), memory["turns"].clone()
    memory["shifts"].zero_()
    memory["turns"].copy_(torch.eye(3).expand_as(turns))
    clean = env.task.observe(env.sim)
    memory["shifts"].copy_(shifts)
    return env, terms, clean, turns


def test_the_noise_has_the_published_widths_and_shapes():
    _, terms, clean, _ = noisy()
    for name, width in WIDTHS.items():
        off = terms[name] - clean[name]
        off = off[:, :6] if name in ("qpos", "qvel") else off
        assert 0.93 * width < off.abs().max() <= width * (1 + 1e-4)
        assert abs(float(off.mean())) < 0.03 * width
        variance = width**2 / (6 if name == "grip_error" else 3)
        assert float(off.var()) == pytest.approx(variance, rel=0.05)
    for name in ("qpos", "qvel"):  # none on the fingers
        assert torch.equal(terms[name][:, 6:], clean[name][:, 6:])
    # the command's error inherits the noise of the joints, the target's that of the object
    off = terms["command_error"] - clean["command_error"]
    torch.testing.assert_close(off, -(terms["qpos"] - clean["qpos"])[:, :7])
    rows = torch.eye(3)[:2] - terms["target_mat"]
    torch.testing.assert_close(rows[:, 1], terms["object_mat"][:, 0])


def test_rotations_are_turned_about_all_axes_by_up_to_five_degrees():
    env, terms, clean, turns = noisy()
    for i, name in enumerate(("gripper_mat", "object_mat")):
        cosine = (turns[:, i].diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2
        angle = torch.rad2deg(cosine.clamp(-1, 1).acos())
        assert angle.max() < 5.01
        assert float(angle.mean()) == pytest.approx(2.5, abs=0.1)
        skew = turns[:, i] - turns[:, i].transpose(1, 2)
        axis = torch.stack((skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]), dim=1)
        axis = axis[angle > 0.5] / axis[angle > 0.5].norm(dim=1, keepdim=True)
        assert axis.mean(dim=0).abs().max() < 0.05  # no axis is preferred
        full = torch.cross(clean[name][:, 0], clean[name][:, 1], dim=1)
        mat = torch.cat((full[:, None], clean[name]), dim=1)
        torch.testing.assert_close((turns[:, i] @ mat)[:, 1:], terms[name], atol=2e-6, rtol=0)
    assert env.task.memory["shifts"].shape == (4000, 27)


def test_teacher_and_critic_see_the_same_noise_the_teacher_late():
    env = make(64, noise=Noise(), latency={"teacher": Latency()})
    seen = [env.current()]
    for _ in range(12):
        action = 2 * torch.rand(64, 7) - 1
        seen.append(env.step_and_maybe_reset(seen[-1].set("action", action))[0]["next"].clone())
    late = torch.zeros(64, dtype=torch.bool)
    for t in range(4, 13):
        ages = torch.stack([(seen[t]["teacher"] == seen[t - k]["critic"]).all(1) for k in range(4)])
        assert ages.any(dim=0).all()
        late |= ~ages[0]
    assert late.float().mean() > 0.5  # 14 % a step


def test_actions_take_effect_late_with_the_published_odds():
    env = make(4000, action_latency=ActionLatency())
    given, taken = [], []
    for t in range(8):
        action = torch.full((4000, 7), 0.02 * (t + 1))
        given.append(action)
        before = env.sim.data.ctrl.float().clone()
        before[:, 6] = 0.02  # far from its limits
        env.sim.data.ctrl[:, 6] = 0.02
        env.step(env.current().set("action", action))
        taken.append((env.sim.data.ctrl.float() - before) / 0.02)
    assert torch.all(taken[0][:, 6].abs() < 0.0201)  # the past of a new episode is zero
    late = torch.stack([7 - (taken[7][:, i] / 0.02).round() + 1 for i in range(7)], dim=1)
    assert torch.equal(late[:, :6], late[:, :1].expand(-1, 6))  # one draw for the joints
    share = torch.stack([(late == k).float().mean(dim=0) for k in range(4)])
    torch.testing.assert_close(
        share[:, 0], torch.tensor([0.8577, 0.1071, 0.0207, 0.0145]), atol=0.02, rtol=0
    )
    torch.testing.assert_close(share[:, 6], torch.full((4,), 0.25), atol=0.025, rtol=0)


def test_episodes_begin_in_the_published_fan():
    env = make(4000)
    data = env.sim.data
    box = data.qpos[:, 8:11].numpy() - BASE["left"]
    radius, bearing = np.hypot(box[:, 0], box[:, 1]), np.arctan2(box[:, 1], box[:, 0])
    yaw = 2 * np.arctan2(data.qpos[:, 14].numpy(), data.qpos[:, 11].numpy())
    for value, low, high in (
        (radius, 0.2, 0.45),
        (np.degrees(bearing), -22.5, 22.5),
        (np.degrees(yaw - bearing), -5.0, 5.0),
        (data.qpos[:, 0].numpy(), -0.2, 0.2),
        *(
            (data.mocap_pos[:, 0, i].numpy(), mid - 0.1, mid + 0.1)
            for i, mid in enumerate((-0.1, 0.0, 0.25))
        ),
    ):
        width = high - low
        assert low - 1e-6 <= value.min() < low + 0.01 * width
        assert high - 0.01 * width < value.max() <= high + 1e-6
        assert value.std() == pytest.approx(width / math.sqrt(12), rel=0.05)
    np.testing.assert_array_equal(data.ctrl[:, 0], data.qpos[:, 0])  # the waist's command follows
    np.testing.assert_allclose(data.qpos[:, 1:8], np.tile(HOME[1:], (4000, 1)), atol=1e-6)
    assert not data.qvel.any()
    # tall bars lie on the table, not in it
    half = env.sim.params.geom_size[:, env.task.geom, 2]
    torch.testing.assert_close(data.qpos[:, 10], 0.0008 + half.double(), atol=1e-6, rtol=0)


def test_size_mass_and_inertia_belong_together():
    env = make(2000)
    size = env.sim.params.geom_size[:, env.task.geom].numpy()
    mass = env.sim.params.body_mass[:, env.task.one.body].numpy()
    inertia = env.sim.params.body_inertia[:, env.task.one.body].numpy()
    np.testing.assert_array_equal(size[:, 1], size[:, 2])
    np.testing.assert_allclose(size[:, 0], 0.048)
    for value, low, high in ((size[:, 1], 0.01, 0.025), (mass, 0.03, 0.15)):
        assert low <= value.min() < low * 1.05
        assert high * 0.98 < value.max() <= high
    x, y, z = (2 * size).T  # edges
    expected = mass / 12 * np.array([y * y + z * z, x * x + z * z, x * x + y * y])
    np.testing.assert_allclose(inertia, expected.T, rtol=1e-5)


def held_state(env):
    """Put a bar between the left arm's fingers, which press on it, the target near by."""
    model, data = mujoco_data(env)
    data.qpos[:8] = HOME
    mujoco.mj_forward(model, data)
    tips = [data.site(f"left_{f}_fingertip").xpos for f in ("left", "right")]
    bar = torch.tensor((tips[0] + tips[1]) / 2 + [0.02, 0, 0])
    live = env.sim.data
    live.qpos[0] = torch.tensor([*HOME[:6], *[0.0125 + 0.0037] * 2, *bar, 1, 0, 0, 0])
    live.qvel.zero_()
    live.ctrl[0] = torch.tensor([*HOME[:6], 0.002])
    live.mocap_pos[0, 0] = bar + torch.tensor([0.01, 0.0, 0.02])
    env.sim.forward()


def contact_force(model, data, body):
    """Sum the forces of a body's contacts with the bar, on the bar, in the world."""
    total = np.zeros(3)
    for i in range(data.ncon):
        contact, wrench = data.contact[i], np.zeros(6)
        bodies = [int(model.geom_bodyid[g]) for g in contact.geom]
        pair = {data.body("box").id, data.body(body).id}
        if set(bodies) == pair and contact.dist < 0:
            mujoco.mj_contactForce(model, data, i, wrench)
            force = contact.frame.reshape(3, 3).T @ wrench[:3]
            total += force if bodies[1] == data.body("box").id else -force
    return total


def published_terms(model, data, memory, step, limits):
    """Return the reward's parts by the published formulas; memory: reached, best, first success."""
    grip, aim, mat = (np.linalg.norm(x) for x in errors(model, data))
    memory["reached"] |= grip < 0.015
    forces = [contact_force(model, data, f"left_{f}_finger_link") for f in ("left", "right")]
    places = [data.site(f"left_{f}_finger").xpos for f in ("left", "right")]
    held = True
    for force, to, back in zip(forces, places[::-1], places, strict=True):
        size = np.linalg.norm(force)
        towards = (to - back) / np.linalg.norm(to - back)
        angle = np.degrees(np.arccos(np.clip(force @ towards / max(size, 1e-9), -1, 1)))
        held &= size > 2.5 and angle < 75
    success = aim < limits[0] and mat < math.radians(limits[1])
    if success and memory["since"] is None:
        memory["since"] = step
    potential = (
        4 * (1 - math.tanh(5 * grip))
        + 16 * (1 - math.tanh(5 * (0.77 * aim + 0.23 * mat))) * memory["reached"]
        + 0.5 * (held and grip < 0.015)
        + 0.5 * (data.body("box").xpos[2] > 0.17)
        + 0.5 * success
        + (0.1 * (step - memory["since"]) if success else 0.0)
    )
    gain = max(potential - memory["best"], 0.0) if step > 1 else 0.0
    memory["best"] = max(potential, memory["best"]) if step > 1 else potential
    low = {"left_left_finger_bottom", "left_right_finger_bottom", "left_palm"}
    pairs = [{model.geom(g).name for g in data.contact[i].geom} for i in range(data.ncon)]
    speed = np.linalg.norm(data.qvel[:8])
    far = max(speed - 0.5, 0.0) / 2.0
    return {
        "progress": gain,
        "potential": 0.0,
        "finger_force": 0.007 * min(sum(map(np.linalg.norm, forces)), 7) / 7 * held,
        "no_floor_collision": 0.005 * (not any("table" in p and p & low for p in pairs)),
        "joint_vel": 0.005 / (1 + far * 9),
        "robot_target_qpos": 0.001 * (1 - math.tanh(np.linalg.norm(data.qpos[:8] - HOME))),
        "crossed": -1.0 * (data.site("box_end").xpos[0] > 0.073),
    }


def test_every_reward_term_is_the_published_formula_along_a_grasp_and_a_drop():
    env = make(randomize=False, level=0)
    held_state(env)
    model, data = mujoco_data(env)
    memory = {"reached": False, "best": 0.0, "since": None}
    moved = torch.Generator().manual_seed(0)
    seen = {name: set() for name in env.cfg.reward}
    grasped = []
    for step in range(1, 81):
        action = torch.zeros(1, 7)
        action[0, 6] = -1.0 if step < 40 else 1.0
        if step >= 6:  # up and forward, then anywhere, then down into the table
            action[0, 1] = 0.3 if step < 15 else -0.2 if step < 30 else 1.0
            action[0, :6] += 0.2 * (torch.rand(6, generator=moved) - 0.5)
        action.clamp_(-1.0, 1.0)
        before = env.sim.get_state()[0].double().numpy()
        command = env.sim.data.ctrl[0].numpy() + 0.02 * action[0].numpy()
        transition = env.step_and_maybe_reset(env.current().set("action", action))[0]
        assert not transition["next", "done"].any()
        mujoco.mj_setState(model, data, before, mujoco.mjtState.mjSTATE_INTEGRATION)
        np.testing.assert_allclose(
            env.sim.data.ctrl[0], np.clip(command, *model.actuator_ctrlrange.T), atol=1e-6
        )
        data.ctrl[:] = env.sim.data.ctrl[0]
        for _ in range(10):
            mujoco.mj_step(model, data)
        # as sensors do: forces of the last substep, everything else of the present
        mujoco.mj_kinematics(model, data)
        expected = published_terms(model, data, memory, step, (0.04, 15.0))
        for name, value in expected.items():
            got = float(env.reward_terms[name][0])
            assert got == pytest.approx(value, abs=2e-4 if name == "progress" else 3e-5), (
                f"{name} at step {step}"
            )
            seen[name].add(round(got, 4) != 0)
        grasped.append(expected["finger_force"] > 0)
    assert any(grasped)
    assert not grasped[-1]
    assert memory["reached"]
    assert memory["since"] is not None
    for name in ("progress", "finger_force", "no_floor_collision"):
        assert seen[name] == {True, False}, name


def test_a_bar_that_crosses_the_middle_ends_the_episode_on_both_sides():
    for side, sign in (("left", 1.0), ("right", -1.0)):
        env = make(2, side=side, randomize=False)
        turned = side == "right"
        for row, x in enumerate((0.02, 0.03)):  # the far end at 0.068 and 0.078
            env.sim.data.qpos[row, 8:15] = torch.tensor(
                [sign * x, 0.1, 0.0133, float(not turned), 0.0, 0.0, float(turned)]
            )
        env.sim.forward()
        td = env.step(env.current().set("action", torch.zeros(2, 7)))["next"]
        assert td["terminated"][:, 0].tolist() == [False, True]
        assert env.reward_terms["crossed"].tolist() == [0.0, -1.0]


def test_the_level_rises_with_success_at_the_last_step_and_survives_resets():
    env = make(3, episode_length=4, randomize=False, seed=5)

    def episode(at_target):
        for step in range(4):
            data = env.sim.data
            data.qpos[:, 11:15] = torch.tensor([1.0, 0, 0, 0])
            data.qpos[:, 10] = 0.0133
            data.mocap_pos[:, 0] = data.qpos[:, 8:11]
            for row, when in enumerate(at_target):
                if not (when == "always" or (when == "before the end" and step < 3)):
                    data.mocap_pos[row, 0, 2] += 0.3
            env.step_and_maybe_reset(env.current().set("action", torch.zeros(3, 7)))
        return env.task.memory["level"].tolist()

    schedule = ("always", "before the end", "never")
    assert episode(schedule) == [1, 0, 0]
    assert episode(schedule) == [2, 0, 0]
    saved = env.state_dict()
    assert episode(("never",) * 3) == [2, 0, 0]  # it never falls
    for expected in (3, 4, 4):
        assert episode(schedule)[0] == expected
    env.load_state_dict(saved)
    assert env.task.memory["level"].tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("level", "distance", "angle"),
    [(0, 0.04, 15), (1, 0.03125, 11.875), (2, 0.0225, 8.75), (3, 0.01375, 5.625), (4, 0.005, 2.5)],
)
def test_success_is_that_of_the_level(level, distance, angle):
    env = make(4, level=level, randomize=False)
    data = env.sim.data
    data.qpos[:, 8:11] = torch.tensor([-0.1, 0.0, 0.2])
    data.qpos[:, 11:15] = torch.tensor([1.0, 0, 0, 0])
    data.mocap_pos[:, 0] = torch.tensor([-0.1, 0.0, 0.2], dtype=torch.float64)
    data.mocap_pos[0, 0, 1] += 0.97 * distance
    data.mocap_pos[1, 0, 1] += 1.03 * distance
    # rows 0 and 1 of a turn about z by a differ by 2 sqrt(1 - cos a)
    for row, share in ((2, 0.97), (3, 1.03)):
        a = math.acos(1 - (share * math.radians(angle) / 2) ** 2)
        data.qpos[row, 11], data.qpos[row, 14] = math.cos(a / 2), math.sin(a / 2)
    env.sim.forward()
    assert env.task.success(env.sim).tolist() == [True, False, True, False]
    assert env.task.memory["level"].tolist() == [level] * 4


def test_a_start_state_of_a_thin_bar_fits_a_thick_one():
    env = make(40, half_width=[0.0125, 0.0125])
    for _ in range(3):
        env.step(env.current().set("action", torch.zeros(40, 7)))
    rows = env.task.start_state(env.sim).clone()
    rows[:, 6:8] = 0.0125 + 0.0037  # fingers at the bar
    rows[:, 15 + 14 + 6] = 0.002  # closed, by command
    thick = make(40, seed=8, half_width=[0.022, 0.022])
    before = thick.sim.data.mocap_pos[:, 0].clone()
    mask = torch.arange(40) % 2 == 0
    thick.task.set_start_state(thick.sim, mask, rows, thick.rng)
    thick.sim.forward()
    qpos = thick.sim.data.qpos
    torch.testing.assert_close(
        qpos[0, 10], torch.tensor(0.0228, dtype=torch.float64), atol=1e-4, rtol=0
    )
    assert qpos[:2, 6].tolist() == pytest.approx([0.022 + 0.0037, 0.037])  # the mask's row alone
    assert qpos[:2, 7].tolist() == pytest.approx([0.022 + 0.0037, 0.037])
    now, given = thick.sim.data.mocap_pos[:, 0], env.sim.data.mocap_pos[:, 0]
    kept = (now == given).all(dim=1)
    assert 4 < int(kept[mask].sum()) < 16  # half of the 20 get another target
    assert (now[mask] - torch.tensor([-0.1, 0.0, 0.25])).abs().max() <= 0.1
    assert torch.equal(now[~mask], before[~mask])
    assert thick.sim.data.ctrl[:2, 6].tolist() == pytest.approx([0.002, 0.037])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"level": 5}, "task.level must be 0 to 4, or null, got 5"),
        ({"side": "middle"}, "task.side must be left or right, got 'middle'"),
        ({"half_width": [0.03, 0.01]}, "task.half_width must be [least, largest]"),
        ({"mass": [0.0, 0.1]}, "task.mass must be [least, largest]"),
        ({"potential": {"lift": 1.0}}, "task.potential must weigh gripper_box, box_target"),
    ],
)
def test_invalid_numbers_are_refused(change, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")):
        Config(**change)


def test_invalid_noise_and_latency_are_refused():
    with pytest.raises(ValueError, match=r"task\.noise\.place must be finite and >= 0, got -1"):
        Noise(place=-1)
    with pytest.raises(ValueError, match=r"task\.action_latency\.gripper must be odds >= 0"):
        ActionLatency(gripper=[0.0])
