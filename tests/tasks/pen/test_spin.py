"""The world of the teacher's task: what is drawn for it, how it is controlled and disturbed.

Numbers are those of PenSpin's release; the table in the task's docstring says what is mapped.
"""

import math

import numpy as np
import pytest
import torch

from penspin_style.env.task import load_task
from tasks.robots.allegro import description
from tests.support.pen_world import ENDLESS, QUIET, make, pen_pose, pen_sizes, put_pens, step

RATIOS = (5.0, 5.5, 6.0, 6.5)
DT = 0.05  # s


@pytest.fixture(scope="module")
def many():
    """256 environments; tests of the world leave it as it is."""
    return make(num_envs=256, **ENDLESS)


def column(env, field, name):
    """A model field of one body or geom in every environment."""
    kind = getattr(env.model, field.split("_")[0])
    return env.sim.params[field][:, kind(name).id].double().numpy().copy()


def assert_uniform(values, low, high):
    """Within the range, and mean and spread as of a uniform distribution (five sigma)."""
    values = np.asarray(values).ravel()
    assert low <= values.min() and values.max() <= high
    width, n = high - low, len(values)
    assert abs(values.mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * n)
    assert abs(values.std() / (width / math.sqrt(12)) - 1) < 5 * math.sqrt(0.2 / n)


def assert_normal(values, std):
    values = np.asarray(values).ravel()
    n = len(values)
    assert abs(values.mean()) < 5 * std / math.sqrt(n)
    assert abs(values.std() / std - 1) < 5 / math.sqrt(2 * n)
    # 0.2699 % beyond three standard deviations
    far = (np.abs(values) > 3 * std).mean()
    assert abs(far - 0.0027) < 5 * math.sqrt(0.0027 / n)


# The world.


def test_the_policy_acts_at_20_hz_for_20_s_on_physics_of_200_hz():
    env = make(num_envs=1)
    assert env.cfg.control_dt == DT
    assert env.n_substeps == 10
    assert env.model.opt.timestep == 0.005
    assert env.cfg.episode_length * DT == 20.0


def test_mass_middle_friction_and_restitution_are_drawn_from_the_published_ranges(many):
    assert_uniform(column(many, "body_mass", "pen"), 0.010, 0.020)
    nominal = many.model.body("pen").ipos
    assert_uniform(column(many, "body_ipos", "pen") - nominal, -0.001, 0.001)
    friction = column(many, "geom_friction", "pen")[:, 0]
    assert_uniform(friction, 0.3, 3.0)
    ratio = column(many, "geom_solref", "pen")[:, 1]
    assert_uniform(2.0 - 2.0 * ratio, 0.0, 1.0)  # a restitution of 1 is half of critical damping
    for geom in range(many.model.ngeom):
        name = many.model.geom(geom).name
        if name.startswith("hand_"):
            assert np.array_equal(column(many, "geom_friction", name)[:, 0], friction)
            assert np.array_equal(column(many, "geom_solref", name)[:, 1], ratio)
    for other in ("geom_friction", "geom_solref"):  # the other columns are the model's
        kept = column(many, other, "pen")
        kept[:, 0 if other == "geom_friction" else 1] = 0
        assert (kept == kept[0]).all()
    independent = (column(many, "body_mass", "pen"), friction, ratio)
    assert np.abs(np.corrcoef(independent) - np.eye(3)).max() < 5 / 16


def test_pens_have_four_shapes_and_sizes_around_two_scales_by_turns(many):
    radius, half = pen_sizes(many)
    scale = radius / 0.04
    assert_uniform(scale[0::2], 0.28 - 0.025, 0.28 + 0.025)
    assert_uniform(scale[1::2], 0.29 - 0.025, 0.29 + 0.025)
    kinds = many.task.kinds(many.sim).numpy()
    np.testing.assert_allclose(half / radius, np.array(RATIOS)[kinds], rtol=1e-6)
    # 64 of 256 each, five sigma of a binomial
    assert np.abs(np.bincount(kinds, minlength=4) - 64).max() < 5 * math.sqrt(256 * 3 / 16)
    assert many.task.kind_names == ("L/D 5", "L/D 5.5", "L/D 6", "L/D 6.5")
    band = column(many, "geom_size", "pen_band")
    widths = band[:, :2] / np.stack((radius, half), 1)
    np.testing.assert_allclose(widths, [[1.02, 0.12]] * 256, rtol=1e-6)


def test_a_pen_has_the_inertia_of_a_solid_cylinder_of_its_mass_and_size(many):
    radius, half = pen_sizes(many)
    mass = column(many, "body_mass", "pen")
    across = mass * (3 * radius**2 + (2 * half) ** 2) / 12
    expected = np.stack((across, across, mass * radius**2 / 2), axis=1)
    np.testing.assert_allclose(column(many, "body_inertia", "pen"), expected, rtol=1e-5)


def test_bounds_of_contacts_follow_each_pens_size(many):
    radius, half = pen_sizes(many)
    pen = many.model.geom("pen").id
    for i in range(0, 256, 50):
        bound = many.sim.batch.get_model(i).geom_rbound[pen]
        assert bound == pytest.approx(math.hypot(radius[i], half[i]), rel=1e-6)


def test_gains_differ_between_joints_and_are_drawn_again_at_a_reset_for_whom_it_concerns():
    env = make(num_envs=64)
    kp, kd = env.sim.params.actuator_gainprm[..., 0], env.sim.params.actuator_biasprm
    assert_uniform(kp, 2.5, 3.5)
    assert_uniform(-kd[..., 2], 0.09, 0.11)
    np.testing.assert_allclose(kd[..., 1], -kp, rtol=1e-12)  # pulls back to the target
    before, damping = kp.clone(), kd.clone()
    mask = torch.arange(64) % 2 == 0
    env.reset(env.current().set("_reset", mask[:, None]))
    assert torch.equal(kp[~mask], before[~mask]) and torch.equal(kd[~mask], damping[~mask])
    assert (kp[mask] != before[mask]).all() and (kd[mask][..., 2] != damping[mask][..., 2]).all()
    assert_uniform(kp, 2.5, 3.5)


def test_episodes_begin_with_grasps_of_each_scales_own_cache(many):
    caches = [
        {tuple(row.tolist()) for row in load_task("pen_spin")(many.cfg).load_grasps("cpu")[slot]}
        for slot in (0, 1)
    ]
    fresh = make(num_envs=16)
    state = fresh.sim.data.qpos
    rows = torch.cat((state[:, :16], state[:, fresh.task.at :]), 1).float()
    for i, row in enumerate(rows):
        assert tuple(row.tolist()) in caches[i % 2]
        assert tuple(row.tolist()) not in caches[1 - i % 2]
    assert not fresh.sim.data.qvel.any()
    assert torch.equal(fresh.sim.data.ctrl.float(), rows[:, :16])
    assert len({tuple(row.tolist()) for row in rows}) > 12  # and drawn among them


def test_a_pen_in_the_air_falls_and_a_hand_at_rest_needs_no_torque():
    env = make(num_envs=4, **QUIET, **ENDLESS)
    put_pens(env, pos=[[0.0, 0.0, 5.0]] * 4)
    joints = env.sim.data.qpos[:, :16].clone()
    for _ in range(2):
        step(env)
    assert torch.equal(env.sim.data.qpos[:, :16], joints)
    assert not env.sim.data.actuator_force.any()
    fall = env.sim.data.qvel[:, env.task.dof : env.task.dof + 6]
    expected = torch.tensor([[0, 0, -9.81 * 0.1, 0, 0, 0]] * 4, dtype=torch.float64)
    torch.testing.assert_close(fall, expected, atol=1e-6, rtol=0.0)


# Control.


def test_torques_are_those_of_a_pd_controller_clipped_to_the_hands_limit():
    """One physics step a control step, so that the state before it is known."""
    env = make(num_envs=32, control_dt=0.005, **QUIET, **ENDLESS)
    put_pens(env, pos=[[0.0, 0.0, 5.0]] * 32)
    rng = np.random.default_rng(0)
    clipped = 0
    for _ in range(10):
        goal = env.sim.data.qpos[:, :16].numpy() + rng.uniform(-0.4, 0.4, (32, 16))
        env.task.memory["target"].copy_(torch.from_numpy(goal))
        env.task.memory["target"].clamp_(env.task.low, env.task.high)
        target = env.task.memory["target"].double().numpy()
        q, qd = env.sim.data.qpos[:, :16].numpy().copy(), env.sim.data.qvel[:, :16].numpy().copy()
        kp = env.sim.params.actuator_gainprm[..., 0].numpy()
        kd = -env.sim.params.actuator_biasprm[..., 2].numpy()
        step(env)
        torque = np.clip(kp * (target - q) - kd * qd, -0.7, 0.7)
        np.testing.assert_allclose(env.sim.data.actuator_force, torque, atol=1e-6)
        clipped += (np.abs(torque) == 0.7).sum()
    assert clipped > 100
    assert np.abs(qd).max() > 1.0


def test_an_action_moves_the_targets_from_where_they_were_and_not_from_where_the_joints_are():
    env = make(num_envs=8, **ENDLESS)
    rng = torch.Generator().manual_seed(0)
    target = env.sim.data.qpos[:, :16].float()
    low, high = torch.tensor(description.LOWER), torch.tensor(description.UPPER)
    at_limit = 0
    for i in range(40):
        drift = 1.0 if i < 20 else -1.0  # to both ends of the ranges
        action = drift + 0.8 * torch.randn(8, 16, generator=rng)
        step(env, action)
        target = (target + 0.04167 * action.clamp(-1, 1)).clamp(low, high)
        torch.testing.assert_close(env.task.memory["target"], target, atol=1e-4, rtol=0.0)
        at_limit += int(((target == low) | (target == high)).sum())
    assert at_limit > 100
    assert env.cfg.action_scale == pytest.approx(0.04167, abs=5e-6)


def test_targets_are_disturbed_once_an_episode_and_again_in_every_physics_step():
    env = make(num_envs=64, action_noise=[0.01, 0.005], **ENDLESS)
    offsets, steps = [], []
    for _ in range(5):
        ctrl = env.task.substeps(env.sim, 10, env.rng)["ctrl"]
        assert ctrl.shape == (10, 64, 16)
        noise = (ctrl - env.task.memory["target"]).double().numpy()
        offsets.append(noise.mean(axis=0))
        steps.append(noise)
    steps = np.concatenate(steps)  # (50, 64, 16)
    offset = steps.mean(axis=0)
    assert_normal(offset, math.hypot(0.01, 0.005 / math.sqrt(50)))
    assert_normal((steps - offset) * math.sqrt(50 / 49), 0.005)
    lagged = (steps[1:] - offset) * (steps[:-1] - offset)  # white: -1 / 50 from the mean
    assert abs(lagged.mean() / 0.005**2 + 1 / 50) < 0.02
    env.reset()
    again = env.task.substeps(env.sim, 10, env.rng)["ctrl"] - env.task.memory["target"]
    correlation = np.corrcoef(again.mean(dim=0).numpy().ravel(), offset.ravel())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(64 * 16)


def test_noise_reaches_the_servos_and_not_the_targets():
    env = make(num_envs=4, **ENDLESS)
    target = env.task.memory["target"].clone()
    step(env)
    assert torch.equal(env.task.memory["target"], target)
    assert (env.sim.data.ctrl.float() != target).all()


# Pushes.


def draw_pushes(env, calls):
    """The forces of many control steps, (calls, 10, n, nv), as the task hands them over."""
    forces = [env.task.substeps(env.sim, 10, env.rng)["qfrc_applied"] for _ in range(calls)]
    return torch.stack(forces).double().numpy()


def test_pushes_act_on_the_pens_middle_in_at_most_two_physics_steps(many):
    many.reset()
    forces = draw_pushes(many, 20)
    dof = many.task.dof
    assert forces.shape == (20, 10, 256, many.model.nv)
    elsewhere = np.delete(forces, range(dof, dof + 3), axis=3)
    assert not elsewhere.any()
    acting = forces[..., dof : dof + 3].any(axis=3)  # (20, 10, n)
    count = acting.sum(axis=1)[10:]  # after ten steps most have been pushed
    assert set(np.unique(count)) <= {0, 1, 2}
    once = (count == 1).sum() / (count > 0).sum()  # both draws name the same physics step
    assert abs(once - 0.1) < 5 * math.sqrt(0.09 / (count > 0).sum())
    when = acting[10:].sum(axis=(0, 2))
    assert abs(when / when.sum() - 0.1).max() < 5 * math.sqrt(0.09 / when.sum())
    assert len({tuple(a) for a in acting[-1].T}) > 20  # each environment has its own times


def test_a_quarter_of_pushes_are_new_and_the_rest_are_what_is_left_of_the_last(many):
    many.reset()
    dof, mass = many.task.dof, column(many, "body_mass", "pen")
    forces = draw_pushes(many, 40)[..., dof : dof + 3].reshape(400, 256, 3)
    decay, new, left = 0.9 ** (0.005 / 0.08), [], 0
    for env in range(64):
        acting = forces[forces[:, env].any(axis=1), env]
        is_left = np.isclose(acting[1:], decay * acting[:-1], rtol=1e-5).all(axis=1)
        left += is_left.sum()
        new.append(acting[1:][~is_left] / mass[env])
    new = np.concatenate(new)
    count = left + len(new)
    assert abs(len(new) / count - 0.25) < 5 * math.sqrt(0.25 * 0.75 / count)
    assert_normal(new, 2.0)  # m/s^2


def test_a_reset_forgets_the_push():
    env = make(num_envs=64, push_probability=1.0, **ENDLESS)
    assert draw_pushes(env, 1).any()
    env.cfg.push_probability = 1e-9
    assert draw_pushes(env, 1).any()
    env.reset()
    assert not draw_pushes(env, 3).any()


def test_a_push_changes_the_pens_velocity_by_its_impulse():
    env = make(num_envs=16, **{**QUIET, "push_probability": 0.5}, **ENDLESS)
    put_pens(env, pos=[[0.0, 0.0, 5.0]] * 16)
    dof = env.task.dof
    state = env.rng.get_state()
    force = env.task.substeps(env.sim, 10, env.rng)["qfrc_applied"][..., dof : dof + 3]
    env.task.memory["push"].zero_()
    env.rng.set_state(state)
    step(env)
    mass = column(env, "body_mass", "pen")
    kick = force.double().sum(dim=0).numpy() * 0.005 / mass[:, None]
    kick[:, 2] -= 9.81 * DT
    # the push acts on the body's origin and turns the pen a little about its centre of mass
    linear, angular = env.sim.data.qvel[:, dof : dof + 6].numpy().reshape(16, 2, 3).swapaxes(0, 1)
    arm = np.cross(angular, column(env, "body_ipos", "pen"))
    centre = linear + np.einsum("nij,nj->ni", pen_pose(env)[1], arm)
    np.testing.assert_allclose(centre, kick, atol=2e-6)
    assert np.abs(kick[:, :2]).max() > 0.01
