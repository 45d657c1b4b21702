"""The randomisation table on the CPU engine: what is drawn, for whom, and what physics makes of it.

Where the motion of one substep can be derived by hand it is; everything else is compared with a
plain MuJoCo model that was given the same numbers.
"""

import copy
import math

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.randomize import Randomize, Randomizer, per_env_fields
from tests.support import scenes

H = 0.01
XML = f"""
<mujoco>
  <option timestep="{H}" gravity="0 0 -10"/>
  <worldbody>
    <geom name="floor" type="plane" size="9 9 .1" friction=".1"/>
    <body name="cart" pos="0 0 5">
      <joint name="rail" type="slide" axis="1 0 0" damping="2" armature=".5"/>
      <geom name="cart" type="box" size=".1 .1 .1" mass="1.5"/>
    </body>
    <body name="crate" pos="0 0 9"><freejoint name="crate"/>
      <geom name="crate" type="box" size=".1 .2 .3" mass="3"/></body>
    <body name="puck" pos="3 0 .05"><freejoint name="puck"/>
      <geom name="puck" type="box" size=".1 .1 .05" mass="1"/></body>
    <body name="ball" pos="-3 0 .4"><freejoint name="ball"/>
      <geom name="ball" type="sphere" size=".1" mass="1"/></body>
  </worldbody>
  <actuator>
    <general name="servo" joint="rail" gainprm="50" biastype="affine" biasprm="0 -50 -1"
             delay="{2 * H}" nsample="8"/>
    <motor name="spare" joint="rail" gear="0"/>
  </actuator>
  <sensor>
    <jointpos name="late" joint="rail" delay="{H}" nsample="6"/>
    <jointpos name="prompt" joint="rail"/>
  </sensor>
</mujoco>
"""
MODEL = mujoco.MjModel.from_xml_string(XML)
CART, CRATE, PUCK, BALL = (MODEL.body(n).id for n in ("cart", "crate", "puck", "ball"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(*rows, num_envs=5, model=MODEL, control_dt=0.05):
    sim = BatchSim(model, num_envs, per_env=per_env_fields(rows), nthread=1)
    return sim, Randomizer(sim, rows, control_dt)


def everyone(sim):
    return torch.ones(sim.num_envs, dtype=torch.bool)


def restart(sim, randomizer, rng=None, mask=None):
    """What the environment does at a reset."""
    rng = rng or seeded()
    mask = everyone(sim) if mask is None else mask
    randomizer.reset_model(mask, rng)
    sim.reset(mask)
    randomizer.reset_state(mask, rng)
    sim.forward(mask)


def ready(*rows, **kwargs):
    sim, randomizer = make(*rows, **kwargs)
    randomizer.startup(seeded(1))
    restart(sim, randomizer, seeded(2))
    return sim, randomizer


def unlike(values):
    """Whether every environment has a value of its own."""
    return len(set(values.flatten().tolist())) == values.numel()


def velocity(sim, joint, component=0):
    return sim.data.qvel[:, MODEL.joint(joint).dofadr[0] + component]


def same(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


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


MANY = (
    Randomize("body_mass", "box|arm", 0.5, 2.0, "scale"),
    Randomize("geom_friction", "box|left", 0.4, 1.4, column=0),
    Randomize("dof_damping", "shoulder|wrist", 0.5, 2.0, "scale"),
    Randomize("dof_armature", "wrist", 0.0, 0.02, "add"),
    Randomize("dof_frictionloss", "wrist", 0.0, 0.05),
    Randomize("actuator_gainprm", "right", 0.7, 1.3, "scale", column=0),
    Randomize("actuator_delay", "shoulder", 0.0, 0.016),
    Randomize("sensor_delay", "late", 0.0, 0.012),
    Randomize("geom_size", "box", 0.9, 1.1, "scale"),
    Randomize("body_ipos", "box", -0.003, 0.003, "add"),
    Randomize("jnt_range", "left", 0.001, 0.003, column=1),
    Randomize("opt.gravity", low=-0.5, high=0.5, operation="add"),
    Randomize("opt.wind", low=0.0, high=0.0),
)


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


# What is drawn.


def draws(count=4000, **row):
    """Masses of the crate (whose own is 3), one per environment, from one draw."""
    sim, _ = ready(Randomize("body_mass", "crate", **row), num_envs=count)
    return sim.params.body_mass[:, CRATE]


def test_uniform_draws_lie_in_their_range_with_its_moments():
    x = draws(low=2.0, high=5.0)
    assert x.min() >= 2.0 and x.max() <= 5.0
    assert x.mean().item() == pytest.approx(3.5, abs=4 * 3 / 12**0.5 / 4000**0.5)
    assert x.var().item() == pytest.approx(9 / 12, rel=0.06)
    assert torch.histc(x, 3, 2, 5).tolist() == pytest.approx([4000 / 3] * 3, abs=130)


def test_log_uniform_draws_are_uniform_in_the_logarithm():
    x = draws(low=0.1, high=10.0, distribution="log_uniform")
    assert x.min() >= 0.1 * (1 - 1e-9) and x.max() <= 10.0
    logs = x.log10()
    assert logs.mean().item() == pytest.approx(0.0, abs=4 * 2 / 12**0.5 / 4000**0.5)
    assert logs.var().item() == pytest.approx(4 / 12, rel=0.06)
    assert torch.histc(logs, 4, -1, 1).tolist() == pytest.approx([1000] * 4, abs=110)


def test_gaussian_draws_have_the_given_mean_and_deviation():
    x = draws(low=10.0, high=0.5, distribution="gaussian")
    assert x.mean().item() == pytest.approx(10.0, abs=4 * 0.5 / 4000**0.5)
    assert x.std().item() == pytest.approx(0.5, rel=0.05)
    within = ((x - 10.0).abs() < 0.5).double().mean().item()
    assert within == pytest.approx(math.erf(0.5**0.5), abs=0.03)


@pytest.mark.parametrize(
    ("operation", "low", "high", "bounds"),
    [("abs", 2.0, 5.0, (2.0, 5.0)), ("scale", 0.5, 2.0, (1.5, 6.0)), ("add", -1, 2, (2.0, 5.0))],
)
def test_operations_start_from_the_models_own_value_at_every_draw(operation, low, high, bounds):
    sim, randomizer = make(Randomize("body_mass", "crate", low, high, operation), num_envs=50)
    rng, before = seeded(), None
    for _ in range(30):
        restart(sim, randomizer, rng)
        mass = sim.params.body_mass[:, CRATE].clone()
        assert mass.min() >= bounds[0] and mass.max() <= bounds[1]
        assert before is None or (mass != before).all()
        before = mass
    ratio = sim.params.body_inertia[:, CRATE] / mass[:, None]
    same(ratio, ratio[:1].expand(50, 3))


@pytest.mark.parametrize(
    ("row", "spread"),
    [
        (Randomize("geom_size", "ball", 0.5, 2.0, "scale"), (0.05, 0.2)),
        (Randomize("dof_damping", "rail", 0.5, 2.0, "scale", when="interval", interval=0.05), None),
        (Randomize("opt.gravity", low=-1, high=1, operation="add", column=2), (-11.0, -9.0)),
    ],
)
def test_no_field_accumulates(row, spread):
    sim, randomizer = make(row)
    rng = seeded()
    for step in range(60):
        randomizer.interval(step, rng)
        restart(sim, randomizer, rng)
        drawn = sim.params[row.field]
        if row.field == "geom_size":
            drawn = drawn[:, MODEL.geom("ball").id, 0]
        elif row.field == "opt.gravity":
            drawn = drawn[:, 2]
        else:
            drawn, spread = drawn[:, 0], (1.0, 4.0)
        assert drawn.min() >= spread[0] and drawn.max() <= spread[1]


def test_state_noise_does_not_accumulate_over_resets():
    sim, randomizer = make(Randomize("qpos", "rail", -0.1, 0.1, "add"))
    for _ in range(50):
        restart(sim, randomizer, seeded())
        sim.step(3)
    restart(sim, randomizer, seeded())
    assert sim.data.qpos[:, 0].abs().max() <= 0.1


def test_each_matched_value_has_a_draw_of_its_own_unless_shared():
    own = Randomize("geom_friction", "puck|ball", 0.1, 2.0, column=slice(0, 2))
    common = Randomize("geom_friction", "puck|ball", 0.1, 2.0, column=slice(0, 2), shared=True)
    ids = [MODEL.geom("puck").id, MODEL.geom("ball").id]
    for row in (own, common):
        sim, _ = ready(row)
        drawn = sim.params.geom_friction[:, ids, :2].reshape(5, -1)
        assert unlike(drawn[:, 0])
        assert all(unlike(values) is not row.shared for values in drawn)
        if row.shared:
            assert (drawn == drawn[:, :1]).all()


def test_shared_scale_keeps_the_proportions_of_a_shape():
    sim, _ = ready(Randomize("geom_size", "crate", 0.5, 2.0, "scale", shared=True))
    size = sim.params.geom_size[:, MODEL.geom("crate").id]
    same(size / size[:, :1], torch.tensor([[1.0, 2.0, 3.0]]).double().expand(5, 3))
    assert unlike(size[:, 0])


# Who is drawn, and when.


def test_only_the_masked_environments_are_drawn_again():
    sim, randomizer = ready(*MANY, model=scenes.gripper(), num_envs=6)
    before = {name: sim.params[name].clone() for name in dir(sim.params)}
    mask = torch.tensor([True, False, False, True, False, True])
    restart(sim, randomizer, seeded(9), mask)
    for name, value in before.items():
        assert torch.equal(sim.params[name][~mask], value[~mask]), name
        if name != "opt.wind":
            changed = (sim.params[name] != value).flatten(1).any(dim=1)
            assert changed[mask].all(), name


def test_each_time_of_drawing_draws_only_its_own_rows():
    rows = (
        Randomize("body_mass", "crate", 1.0, 2.0, when="startup"),
        Randomize("dof_damping", "rail", 1.0, 2.0, when="reset"),
        Randomize("dof_armature", "rail", 1.0, 2.0, when="interval", interval=0.1),
        Randomize("qvel", "rail", 1.0, 2.0, when="reset"),
        Randomize("xfrc_applied", "crate", 1.0, 2.0, when="interval", interval=0.2),
    )
    sim, randomizer = make(*rows)

    def values():
        return {
            "mass": sim.params.body_mass[0, CRATE].item(),
            "damping": sim.params.dof_damping[0, 0].item(),
            "armature": sim.params.dof_armature[0, 0].item(),
            "qvel": sim.data.qvel[0, 0].item(),
            "push": sim.data.xfrc_applied[0, CRATE, 0].item(),
        }

    def changes(action):
        before = values()
        action()
        after = values()
        return {name for name in after if after[name] != before[name]}

    rng, all_ = seeded(), everyone(sim)
    assert changes(lambda: randomizer.startup(rng)) == {"mass"}
    assert changes(lambda: randomizer.reset_model(all_, rng)) == {"damping"}
    assert changes(lambda: randomizer.reset_state(all_, rng)) == {"qvel"}
    due = [changes(lambda: randomizer.interval(step, rng)) for step in range(9)]  # noqa: B023
    armature, both = {"armature"}, {"armature", "push"}
    assert due == [both, set(), armature, set(), both, set(), armature, set(), both]


def test_the_same_generator_gives_the_same_draws():
    def drawn(seed):
        sim, randomizer = make(*MANY, model=scenes.gripper(), num_envs=3)
        restart(sim, randomizer, seeded(seed))
        return torch.cat([sim.params[name].double().flatten() for name in dir(sim.params)])

    first = drawn(1)
    assert torch.equal(first, drawn(1))
    assert not torch.equal(first, drawn(2))


def test_draws_depend_on_nothing_but_the_generator():
    torch.manual_seed(0)
    first = draws(20, low=1.0, high=2.0)
    torch.manual_seed(1)
    assert torch.equal(first, draws(20, low=1.0, high=2.0))


# Which objects.


def test_a_name_must_match_whole_and_several_may():
    sim, _ = ready(Randomize("body_mass", "c.*", 7.0, 8.0))
    changed = (sim.params.body_mass >= 7.0).all(dim=0).nonzero().flatten().tolist()
    assert changed == [CART, CRATE]
    for part in ("rat", "cra"):
        with pytest.raises(ValueError, match=f"no name matches '{part}'"):
            make(Randomize("body_mass", part, 1.0, 2.0))


def test_joint_names_select_all_coordinates_of_their_joint():
    for field, joint, width in (("qpos", "crate", 7), ("qvel", "crate", 6), ("qvel", "rail", 1)):
        sim, _ = ready(Randomize(field, joint, 5.0, 6.0))
        drawn = sim.data[field] >= 5.0
        start = getattr(MODEL.joint(joint), {"qpos": "qposadr", "qvel": "dofadr"}[field])[0]
        expected = list(range(start, start + width))
        if field == "qvel":
            assert drawn.all(dim=0).nonzero().flatten().tolist() == expected
        assert drawn[:, expected].all()


def test_a_name_that_matches_nothing_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no name matches 'lid'.*'cart', 'crate', 'puck', 'ball'"):
        make(Randomize("body_mass", "lid", 1.0, 2.0))
    with pytest.raises(ValueError, match=r"'knee'; there are \['rail', 'crate', 'puck', 'ball'\]"):
        make(Randomize("dof_damping", "knee", 1.0, 2.0))
    with pytest.raises(ValueError, match=r"there are \['servo', 'spare'\]"):
        make(Randomize("ctrl", "motor", 1.0, 2.0))


def test_equality_constraints_are_named_too():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body name="a"><joint name="x"/><joint name="y" axis="0 1 0"/>'
        '<geom size=".1"/></body></worldbody><equality><joint name="e0" joint1="x"/>'
        '<joint name="e1" joint1="y"/><joint name="e2" joint1="x" joint2="y"/></equality></mujoco>'
    )
    sim, _ = ready(Randomize("eq_active", "e2"), model=model)
    assert sim.data.eq_active[0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Randomize("time", low=0.0, high=1.0), "names select objects of body_"),
        (Randomize("geom_friction", "puck", column=3, high=1.0), r"column 3 is not in 0\.\.2"),
        (Randomize("geom_friction", "puck", column=slice(3, 5), high=1.0), "is not in"),
        (Randomize("opt.gravity", column=7), r"column 7 is not in 0\.\.2"),
        (Randomize("body_mass", "puck", column=0, high=1.0), "there is one number per object"),
    ],
)
def test_a_row_that_selects_nothing_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        make(row)


def test_a_misspelt_field_is_refused_with_the_nearest():
    with pytest.raises(Exception, match="body_mas"):
        make(Randomize("body_mas", "crate"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"operation": "multiply"}, "operation must be one of"),
        ({"distribution": "normal"}, "distribution must be one of"),
        ({"when": "never"}, "when must be one of"),
        ({"low": 2.0, "high": 1.0}, "high 1.0 is below low 2.0"),
        ({"high": -1.0, "distribution": "gaussian"}, "standard deviation"),
        ({"low": 0.0, "high": 1.0, "distribution": "log_uniform"}, "needs low > 0"),
        ({"when": "interval"}, "needs interval > 0"),
    ],
)
def test_a_row_that_means_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=rf"Randomize\(body_mass\): .*{message}"):
        Randomize("body_mass", **values)


def test_a_state_drawn_at_startup_would_be_lost_and_is_refused():
    with pytest.raises(ValueError, match="the first reset overwrites"):
        Randomize("qpos", when="startup", high=1.0)


def test_mass_brings_inertia_among_the_fields_of_an_environment():
    rows = (*MANY[:2], Randomize("body_mass", "hand", 1, 2), Randomize("qpos", "wrist"))
    assert per_env_fields(rows) == ("body_mass", "geom_friction", "body_inertia")
