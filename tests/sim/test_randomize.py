"""What physics makes of each field of the randomisation table, on the CPU engine.

Where the motion of one substep can be derived by hand it is; everything else is compared with a
plain MuJoCo model that was given the same numbers.
"""

import copy

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.sim.randomize import Randomize, per_env_fields
from tests.support import scenes
from tests.support.randomized import (
    BALL,
    CART,
    CRATE,
    MANY,
    MODEL,
    PUCK,
    H,
    everyone,
    make,
    ready,
    same,
    seeded,
    unlike,
    velocity,
)

# What physics makes of each field.


def test_mass_scales_weight_and_inertia_together():
    sim, _ = ready(Randomize("body_mass", "crate", 0.5, 2.0, "scale"))
    mass, inertia = sim.params.body_mass[:, CRATE], sim.params.body_inertia[:, CRATE]
    assert unlike(mass) and mass.min() >= 1.5 and mass.max() <= 6.0
    # a cuboid of half sizes a, b, c: m / 3 (b^2 + c^2), ... MuJoCo lists the largest first
    squares = [0.2**2 + 0.3**2, 0.1**2 + 0.3**2, 0.1**2 + 0.2**2]
    same(inertia, mass[:, None] / 3.0 * torch.tensor(squares, dtype=torch.float64))
    sim.data.xfrc_applied[:, CRATE, 0] = 12.0  # N
    sim.data.xfrc_applied[:, CRATE, 5] = 0.6  # N m about z
    sim.step()
    same(velocity(sim, "crate", 0), H * 12.0 / mass)
    same(velocity(sim, "crate", 5), H * 0.6 / (mass * (0.1**2 + 0.2**2) / 3.0))
    falling = torch.full((5,), -10 * H, dtype=torch.float64)  # all alike
    same(velocity(sim, "crate", 2), falling)
    assert torch.equal(sim.params.body_mass[:, CART], torch.full((5,), 1.5).double())


def test_two_bodies_of_other_mass_respond_in_inverse_ratio():
    sim, randomizer = make(Randomize("body_mass", "crate", 2.0, 2.0, "scale"), num_envs=2)
    randomizer.reset_model(torch.tensor([True, False]), seeded())
    sim.reset()
    sim.data.xfrc_applied[:, CRATE, 1] = 7.0
    sim.forward()
    sim.step(20)
    heavy, half = velocity(sim, "crate", 1).tolist()
    assert half / heavy == pytest.approx(2.0, rel=1e-9)


def test_the_inverse_weights_of_contacts_follow_the_mass():
    sim, _ = ready(Randomize("body_mass", "crate", 0.5, 2.0, "scale"), num_envs=3)
    for env in range(3):
        model = copy.copy(MODEL)
        ratio = sim.params.body_mass[env, CRATE].item() / 3.0
        model.body_mass[CRATE] *= ratio
        model.body_inertia[CRATE] *= ratio
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        mujoco.mj_resetData(model, data)
        data.qpos[MODEL.joint("crate").qposadr[0] + 2] = 0.295  # 5 mm in the floor
        sim.data.qpos[env] = torch.from_numpy(data.qpos)
        mujoco.mj_step(model, data, nstep=10)
        expected = torch.from_numpy(data.qvel.copy())
        if env == 0:
            sim.data.qpos[:] = sim.data.qpos[0].clone()
            sim.forward()
            sim.step(10)
        same(sim.data.qvel[env], expected)


def test_a_body_without_mass_keeps_a_finite_inertia():
    sim, _ = ready(Randomize("body_mass", ".*", 0.5, 2.0, "scale"))
    assert torch.isfinite(sim.params.body_inertia).all()
    assert (sim.params.body_mass[:, 0] == 0).all() and (sim.params.body_inertia[:, 0] == 0).all()
    assert unlike(sim.params.body_mass[:, 1:])


def test_gravity_differs_between_environments():
    sim, _ = ready(Randomize("opt.gravity", column=2, operation="add", low=-2.0, high=2.0))
    gravity = sim.params["opt.gravity"]
    assert unlike(gravity[:, 2]) and (gravity[:, :2] == 0).all()
    assert (gravity[:, 2] + 10.0).abs().max() <= 2.0
    sim.step()
    same(velocity(sim, "crate", 2), H * gravity[:, 2])


def test_damping_slows_each_cart_by_its_own():
    sim, _ = ready(Randomize("dof_damping", "rail", 0.5, 20.0))
    damping = sim.params.dof_damping[:, 0]
    assert unlike(damping)
    velocity(sim, "rail")[:] = 1.0
    sim.forward()
    sim.step()
    # MuJoCo's Euler: (m + h d) v' = m v + h f, here f = -v of the servo; the rail's m = 1.5 + 0.5
    force = -1.0
    same(velocity(sim, "rail"), (2.0 * 1.0 + H * force) / (2.0 + H * damping))


def test_armature_adds_to_the_inertia():
    sim, _ = ready(Randomize("dof_armature", "rail", 0.1, 3.0))
    armature = sim.params.dof_armature[:, 0]
    sim.data.xfrc_applied[:, CART, 0] = 5.0
    sim.step()
    same(velocity(sim, "rail"), H * 5.0 / (1.5 + armature + H * 2.0))


def test_friction_holds_a_puck_up_to_its_own_cone():
    sim, _ = ready(Randomize("geom_friction", "puck", 0.2, 0.8, column=0), num_envs=12)
    friction = sim.params.geom_friction[:, MODEL.geom("puck").id]
    assert unlike(friction[:, 0])
    assert (friction[:, 1:] == torch.tensor(MODEL.geom("puck").friction[1:])).all()
    sim.data.xfrc_applied[:, PUCK, 0] = 5.0  # N; Coulomb's mu m g holds it from mu = 0.5 on
    sim.step(50)
    moved = sim.data.xpos[:, PUCK, 0] - 3.0
    slides = friction[:, 0] < 0.5
    assert 0 < slides.sum() < 12
    assert (moved[slides] > 0.02).all()
    assert (moved[~slides] < 0.01).all()  # soft contacts creep


def test_gains_scale_the_force():
    sim, _ = ready(Randomize("actuator_gainprm", "servo", 0.8, 1.25, "scale", column=0))
    gain = sim.params.actuator_gainprm[:, 0]
    assert unlike(gain[:, 0]) and (gain[:, 1:] == 0).all()
    sim.data.ctrl[:, 0] = 0.4
    sim.step(3)  # two substeps late
    same(velocity(sim, "rail"), H * gain[:, 0] * 0.4 / (2.0 + H * 2.0))


def test_a_servo_whose_gain_differs_still_rests_at_its_target():
    sim, _ = ready(Randomize("actuator_gainprm", "servo", 0.5, 2.0, "scale", column=0))
    gain, bias = sim.params.actuator_gainprm, sim.params.actuator_biasprm
    assert unlike(gain[:, 0, 0])
    same(bias[:, 0, 1], -gain[:, 0, 0])
    assert (bias[:, 0, 2] == -1.0).all()
    sim.data.ctrl[:, 0] = 0.4
    sim.step(4000)
    same(sim.data.qpos[:, 0].double(), torch.full_like(gain[:, 0, 0], 0.4), rtol=0.0, atol=2e-3)


def test_size_moves_the_surface_and_the_bounds_with_it():
    sim, _ = ready(Randomize("geom_size", "ball", 0.15, 0.6, column=0), num_envs=4)
    radius = sim.params.geom_size[:, MODEL.geom("ball").id, 0]
    assert unlike(radius)
    sim.step(400)
    height = sim.data.xpos[:, BALL, 2].double()
    same(height, radius, rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("field", ["actuator_delay", "sensor_delay"])
def test_delays_arrive_on_the_substep_that_they_name(field):
    names = {"actuator_delay": "servo", "sensor_delay": "late"}[field]
    sim, _ = ready(Randomize(field, names, 0.0, 6 * H), num_envs=12)
    delay = sim.params[field][:, 0].clone()
    assert unlike(delay) and delay.max() <= 6 * H
    late = torch.ceil(delay / H - 1e-9).long()
    assert len(set(late.tolist())) >= 4
    if field == "actuator_delay":
        sim.data.ctrl[:, 0] = 1.0
    else:
        velocity(sim, "rail")[:] = 1.0
    arrived = torch.full((12,), -1)
    for step in range(10):
        sim.step()
        seen = velocity(sim, "rail") if field == "actuator_delay" else sim.data.sensordata[:, 0]
        arrived = torch.where((arrived < 0) & (seen != 0), step, arrived)
    assert torch.equal(arrived, late)


@pytest.mark.parametrize(
    ("row", "need", "there"),
    [
        (Randomize("actuator_delay", "servo", 0.0, 0.085), 9, 8),
        (Randomize("actuator_delay", "spare", 0.0, H), 1, 0),
        (Randomize("sensor_delay", ".*", 0.0, 2 * H), 2, 0),
        (Randomize("sensor_delay", "late", 1.0, 7.0, "scale"), 7, 6),
        (Randomize("actuator_delay", "servo", 0.0, 7 * H, "add"), 9, 8),
        (Randomize("actuator_delay", "servo", 0.0, 3 * H, distribution="gaussian"), 9, 8),
    ],
)
def test_a_delay_that_the_model_has_no_memory_for_is_refused(row, need, there):
    with pytest.raises(ValueError, match=rf"nsample >= {need} .* there is {there}"):
        make(row)


def test_pushes_change_every_interval_and_hold_in_between():
    row = Randomize(
        *("xfrc_applied", "crate", -30.0, 30.0),
        column=slice(0, 2),
        when="interval",
        interval=0.15,
    )
    sim, randomizer = ready(row, control_dt=0.05)
    rng, speed, pushes = seeded(4), torch.zeros(5, 2, dtype=torch.float64), []
    for step in range(9):
        randomizer.interval(step, rng)
        pushes.append(sim.data.xfrc_applied[:, CRATE].clone())
        sim.step(5)
        speed += 5 * H * pushes[-1][:, :2] / 3.0
    same(torch.stack((velocity(sim, "crate", 0), velocity(sim, "crate", 1)), 1), speed)
    pushes = torch.stack(pushes)
    for start in (0, 3, 6):
        assert torch.equal(pushes[start], pushes[start + 1])
        assert torch.equal(pushes[start], pushes[start + 2])
        assert unlike(pushes[start, :, :2])
        assert (pushes[start, :, 2:] == 0).all()
    assert (pushes[0] != pushes[3])[..., :2].all() and (pushes[3] != pushes[6])[..., :2].all()
    assert pushes.abs().max() <= 30.0
    rest = sim.data.xfrc_applied.clone()
    rest[:, CRATE] = 0
    assert (rest == 0).all()


def test_noise_on_the_initial_state_starts_from_what_the_reset_wrote():
    rows = (
        Randomize("qpos", "rail", -0.2, 0.2, "add"),
        Randomize("qvel", "crate", 0.0, 0.5, "add", distribution="gaussian"),
    )
    sim, randomizer = make(*rows, num_envs=6)
    for mask in (everyone(sim), torch.arange(6) % 2 == 0):
        before = sim.data.qpos.clone(), sim.data.qvel.clone()
        sim.reset(mask)
        sim.data.qpos[mask, 0] = 1.0  # the task's own choice
        randomizer.reset_state(mask, seeded(3))
        noise = sim.data.qpos[mask, 0] - 1.0
        assert unlike(noise) and noise.abs().max() <= 0.2
        adr = MODEL.joint("crate").dofadr[0]
        assert unlike(sim.data.qvel[mask][:, adr : adr + 6])
        others = sim.data.qvel.clone()
        others[:, adr : adr + 6] = 0
        assert (others == 0).all()
        assert torch.equal(sim.data.qpos[~mask], before[0][~mask])
        assert torch.equal(sim.data.qvel[~mask], before[1][~mask])
        assert torch.equal(sim.data.qpos[mask][:, 1:], torch.from_numpy(MODEL.qpos0[1:]).expand(
            int(mask.sum()), -1
        ))  # fmt: skip


def test_every_environment_moves_as_a_plain_model_with_its_numbers():
    model = scenes.gripper()
    n = 4
    sim, _ = ready(*MANY, model=model, num_envs=n)
    worlds = []
    for env in range(n):
        own = copy.copy(model)
        for name in per_env_fields(MANY):
            owner = own.opt if name.startswith("opt.") else own
            field = getattr(owner, name.removeprefix("opt."))
            field[:] = sim.params[name][env].numpy()
        data = mujoco.MjData(own)
        mujoco.mj_setConst(own, data)
        mujoco.mj_resetData(own, data)
        worlds.append((own, data))
    for step in range(40):
        ctrl = scenes.controls(model, n, step)
        sim.data.ctrl.copy_(ctrl)
        sim.step(3)
        for (own, data), row in zip(worlds, ctrl.numpy(), strict=True):
            data.ctrl[:] = row
            mujoco.mj_step(own, data, nstep=3)
    expected = np.stack([data.qpos for _, data in worlds])
    np.testing.assert_array_equal(sim.data.qpos.numpy(), expected)
    assert all(np.ptp(expected, axis=0) > 1e-6)
