"""What a teacher may be told and paid for beside the published: invariance, postures, sides."""

import math

import numpy as np
import pytest
import torch

from penspin_style import rotation
from penspin_style.env.task import ObsTerm
from tasks.pen import gait, grasps
from tests.support.pen_world import QUIET, make, step

INVARIANT = {"observes": "invariant", "randomize": False, **QUIET}


def quaternion(yaw, roll=0.0, *, swapped=False):
    """A pen along the direction `yaw`, rolled about its own axis, perhaps turned end for end."""
    lie = rotation.from_axis_angle(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([math.pi / 2]))
    turn = rotation.from_axis_angle(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([yaw]))
    own = rotation.from_axis_angle(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([roll]))
    flip = rotation.from_axis_angle(
        torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([math.pi if swapped else 0.0])
    )
    q = rotation.multiply(rotation.multiply(turn, lie), rotation.multiply(flip, own))
    return q[0]


def test_an_observation_is_the_same_for_a_rolled_pen_and_one_with_swapped_ends():
    env = make("pen_spin", 3, **INVARIANT)
    at, dof = env.task.at, env.task.dof
    env.sim.data.qpos[:] = env.sim.data.qpos[:1].clone()
    env.task.memory["target"][:] = env.task.memory["target"][:1].clone()
    quats = (quaternion(0.7), quaternion(0.7, 1.9), quaternion(0.7, -0.4, swapped=True))
    env.sim.data.qpos[:, at + 3 : at + 7] = torch.stack(quats).double()
    # the same motion of the world: MuJoCo's free joints keep angular velocity in their own frame
    world = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64)
    own = rotation.rotate(rotation.conjugate(torch.stack(quats).double()), world.expand(3, 3))
    env.sim.data.qvel[:, dof + 3 : dof + 6] = own
    env.sim.data.qvel[:, dof : dof + 3] = torch.tensor([0.01, 0.02, -0.03], dtype=torch.float64)
    env.sim.forward()
    seen = env.task.observe(env.sim)
    flat = torch.cat([seen[name].reshape(3, -1) for name in env.cfg.observation["teacher"]], dim=1)
    assert flat.shape == (3, 99)
    torch.testing.assert_close(flat[0], flat[1], atol=2e-5, rtol=0.0)
    torch.testing.assert_close(flat[0], flat[2], atol=2e-5, rtol=0.0)
    torch.testing.assert_close(seen["pen_rate"][0], world.float(), atol=1e-5, rtol=0.0)


def test_its_terms_are_there_for_any_observation_that_lists_them():
    env = make("pen_spin", 2, observation={"teacher": {"tip_gap": ObsTerm(), "proprio": ObsTerm()}})
    assert env.current()["teacher"].shape == (2, 4 + 32)


def test_the_line_of_a_pen_does_not_tell_its_ends_apart_but_its_direction():
    axis = torch.tensor([[0.6, 0.8, 0.0], [-0.6, -0.8, 0.0], [0.8, 0.6, 0.0]])
    features = gait.line_features(axis)
    assert torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])
    torch.testing.assert_close(features[0], torch.tensor([-0.28, 0.96, 0.0, 0.0, 0.0]))


def test_the_natural_grasp_is_the_published_one_at_each_eighth_of_a_turn():
    published = grasps.canonical()[:, :16]
    angles = torch.tensor([0.0, 45.0, 90.0, 135.0, 179.999]) * math.pi / 180
    axes = torch.stack((angles.cos(), angles.sin(), torch.zeros(5)), dim=1)
    found = gait.natural_joints(gait.angle(axes))
    torch.testing.assert_close(found, published[[0, 2, 3, 4, 0]], atol=1e-3, rtol=0.0)
    between = gait.natural_joints(torch.tensor([math.pi / 8]))
    torch.testing.assert_close(between[0], (published[0] + published[2]) / 2, atol=1e-3, rtol=0.0)
    # swapping the ends changes nothing
    torch.testing.assert_close(gait.natural_joints(gait.angle(-axes[1:4])), found[1:4])


def test_a_posture_costs_nothing_where_it_is_natural_and_the_pen_in_its_place():
    axis = torch.tensor([[0.0, 1.0, 0.0]]).repeat(4, 1)
    qpos = gait.natural_joints(gait.angle(axis))
    centre = torch.tensor(gait.MIDDLE).repeat(4, 1)
    qpos[1, 0] += 0.5  # 0.3 (0.3 0.25 + 0.04)
    centre[2, 2] += 0.02  # 0.3 0.6 4
    centre[3, 0] += 0.03  # 0.3 0.3 4
    cost = gait.posture_cost(qpos, centre, axis)
    torch.testing.assert_close(cost, torch.tensor([0.0, 0.0345, 0.72, 0.36]), atol=1e-5, rtol=0.0)


def test_the_sides_are_those_of_the_published_grasps():
    """At 0 degrees index and middle stand on the one side of the pen, the thumb on the other."""
    env = make("pen_spin", 1, **INVARIANT)
    row = grasps.canonical()[:1]
    env.task.place(env.sim, torch.ones(1, dtype=torch.bool), row)
    env.sim.forward()
    tips, axis = env.task.tips[:, env.task.tip_ids], env.task.pen_mat[:, :, 2]
    assert gait.side_error(tips, env.task.pen, axis).item() < 0.35
    mirrored = tips.clone()
    mirrored[:, :, 1] = 2 * env.task.pen[:, 1:2] - tips[:, :, 1]
    assert gait.side_error(mirrored, env.task.pen, axis).item() > 0.8
    torch.testing.assert_close(
        gait.side_error(tips, env.task.pen, -axis), gait.side_error(tips, env.task.pen, axis)
    )


def test_the_terms_of_shaping_are_computed_only_where_they_count():
    env = make("pen_spin", 2, **QUIET)
    assert not any(env.task.reward(env.sim, torch.zeros(2, 16))[k].any() for k in ("drop", "sides"))
    weights = {**env.cfg.reward, "posture": 0.8, "sides": 0.4, "drop": -12.0}
    env = make("pen_spin", 2, reward=weights, **QUIET)
    terms = env.task.reward(env.sim, torch.zeros(2, 16))
    assert (terms["posture"] > 0.3).all() and (terms["sides"] > 0.5).all()
    assert not terms["drop"].any()
    env.sim.data.qpos[0, env.task.at + 2] = 0.5
    env.sim.forward()
    assert env.task.reward(env.sim, torch.zeros(2, 16))["drop"].tolist() == [1.0, 0.0]


def test_paid_and_free_rates_are_those_of_the_configuration():
    env = make("pen_spin", 3, paid_rate=1.0, free_rate=1.5, **QUIET)
    spin = torch.tensor([0.7, 1.2, 2.0])
    env.task._angvel = lambda: torch.stack((spin * 0, spin * 0, spin), dim=1)
    terms = env.task.reward(env.sim, torch.zeros(3, 16))
    torch.testing.assert_close(terms["rotate"], torch.tensor([0.7, 1.0, 1.0]))
    torch.testing.assert_close(terms["over_speed"], torch.tensor([0.0, 0.0, 0.5]))


# Difficulty and cheap physics.


def test_difficulty_narrows_everything_that_is_drawn_around_the_nominal_pen():
    full, half, none = (make("pen_spin", 200, difficulty=d) for d in (1.0, 0.5, 0.0))
    radius = [env.task.size(env.sim)[:, 0] for env in (full, half, none)]
    assert radius[2].unique().numel() == 1 and radius[2][0] == pytest.approx(0.285 * 0.04)
    assert radius[1].std() == pytest.approx(radius[0].std().item() / 2, rel=0.1)
    friction = [env.sim.params.geom_friction[:, env.task.geom, 0] for env in (full, half, none)]
    assert friction[0].min() < 0.4 and friction[0].max() > 2.8
    assert friction[1].min() >= 0.65 and friction[1].max() <= 2.0
    assert (friction[2] == 1.0).all()
    mass = none.sim.params.body_mass[:, none.task.body]
    assert torch.allclose(mass, torch.full_like(mass, 0.015))
    after = step(none)
    assert not none.task.memory["joint_offset"].any() and not none.task.memory["joint_noise"].any()
    assert not none.task.memory["push"].any() and after["fault"].sum() == 0


def test_the_published_world_is_drawn_with_the_published_numbers():
    rows = {row.field: (row.low, row.high) for row in make("pen_spin", 1).task.randomize()}
    assert rows["geom_friction"] == (0.3, 3.0) and rows["body_mass"] == (0.010, 0.020)
    assert rows["actuator_biasprm"] == (-0.11, -0.09)


def test_cheap_physics_holds_the_grasps_that_the_published_holds():
    """A share of the cached grasps is held over 2 s in both, and by nearly the same pens."""
    held = {}
    for physics in ("published", "fast"):
        env = make("pen_spin", 64, seed=3, physics=physics, observes="invariant", **QUIET)
        alive = torch.ones(64, dtype=torch.bool)
        for _ in range(40):
            alive &= ~step(env)["terminated"][:, 0]
        held[physics] = alive
    assert held["published"].float().mean() > 0.8
    assert (held["published"] == held["fast"]).float().mean() >= 0.9


def test_cheap_physics_keeps_a_pens_size_and_has_no_touch_sensors():
    full, fast = (
        make("pen_spin", 8, seed=2, physics=p, observes="invariant") for p in ("published", "fast")
    )
    torch.testing.assert_close(full.task.size(full.sim)[:, :2], fast.task.size(fast.sim)[:, :2])
    assert fast.model.nsensor == 0 and fast.model.opt.timestep == 0.01
    with pytest.raises(ValueError, match="physics=fast has no touch sensors: observe no `tactile`"):
        make("pen_spin", 1, physics="fast")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("physics", "quick", "task.physics must be published or fast, got 'quick'"),
        ("observes", "all", "task.observes must be published or invariant, got 'all'"),
        ("difficulty", 1.5, r"task.difficulty must be in \[0, 1\], got 1.5"),
    ],
)
def test_unknown_choices_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        make("pen_spin", 1, **{key: value})


# Where episodes begin.


def test_balanced_grasps_lie_at_all_angles_alike():
    env = make("pen_spin", 3000, balanced=True, **INVARIANT)
    yaw = gait.angle(env.task.pen_mat[:, :, 2]) * 180 / math.pi
    counts = np.histogram(yaw.numpy(), np.arange(0, 181, 15))[0]
    used = counts[counts > 0]
    assert len(used) >= 6 and used.min() > 0.6 * used.max()
    plain = make("pen_spin", 3000, **INVARIANT)
    yaw = gait.angle(plain.task.pen_mat[:, :, 2]) * 180 / math.pi
    counts = np.histogram(yaw.numpy(), np.arange(0, 181, 15))[0]
    assert counts[counts > 0].min() < 0.3 * counts.max()


def test_an_episode_from_a_start_has_its_joints_pen_velocities_and_targets():
    env = make("pen_spin", 2, **INVARIANT)
    rows = env.task.start_state(env.sim).clone()
    rows[:, 23:45] = 0.01 * torch.arange(22.0)
    rows[:, 45:] += 0.02
    mask = torch.tensor([False, True])
    before = env.task.start_state(env.sim).clone()
    env.task.set_start_state(env.sim, mask, rows, env.rng)
    after = env.task.start_state(env.sim)
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], rows[1])
    assert env.sim.data.ctrl[1].float().tolist() == pytest.approx(rows[1, 45:].tolist())
    assert env.task.progress(env.sim).abs().max() < 1e-6


def test_the_shipped_bank_holds_pens_that_stay_up():
    states = gait.bank()
    assert states.shape[1] == 61 and len(states) > 500
    env = make("pen_spin", len(states), physics="fast", difficulty=0.0, observes="invariant")
    env.task.set_start_state(env.sim, torch.ones(len(states), dtype=torch.bool), states, env.rng)
    env.sim.forward()
    alive = torch.ones(len(states), dtype=torch.bool)
    for _ in range(20):
        alive &= ~step(env)["terminated"][:, 0]
    assert alive.float().mean() > 0.75
