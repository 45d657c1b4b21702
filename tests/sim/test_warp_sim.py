"""The GPU engine, here on Warp's CPU device, against the CPU engine."""

import mujoco
import numpy as np
import pytest
import torch
import warp as wp

from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.sim import (
    ACCELERATION_FIELDS,
    DATA_FIELDS,
    STATE_FIELDS,
    Fault,
    make_sim,
)
from penspin_style.sim.warp_sim import WarpSim, constraint_rows
from tests.support import scenes

STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
TOUCH = 0
SENSOR_HISTORY = 18  # address; before it the actuator's, after it the sensor's

# Largest difference from BatchSim over 100 control steps: three times what was measured, and
# 3e-6 where nothing stands. float32 against float64; in `gripper` two fingers hold a box, whose
# rotation within the grip is the one stiff thing, on the Panda accelerations reach 180 rad/s^2.
TOLERANCE = {
    "gripper": {
        **dict.fromkeys(("time", "history"), 1e-5),
        **dict.fromkeys(("qpos", "xquat"), 3e-5),
        **dict.fromkeys(("xmat", "ximat", "geom_xmat", "cdof"), 6e-5),
        **dict.fromkeys(("qvel", "cvel"), 1.8e-3),
        "cdof_dot": 4e-5,
        **dict.fromkeys(("actuator_velocity", "ten_velocity"), 8e-6),
        **dict.fromkeys(("qfrc_passive", "qfrc_damper"), 9e-6),
        "sensordata": 6e-4,
        **dict.fromkeys(("qacc", "qacc_warmstart"), 1.4e-1),
        "qacc_smooth": 4e-4,
        **dict.fromkeys(("actuator_force", "qfrc_actuator"), 6e-6),
        "qfrc_constraint": 3.5e-4,
        "qfrc_smooth": 1.6e-5,
    },
    "panda": {
        "time": 5e-6,
        **dict.fromkeys(("qvel", "cvel", "actuator_velocity", "cdof_dot"), 5e-5),
        "cinert": 4e-6,
        "qfrc_bias": 1.5e-4,
        **dict.fromkeys(("qfrc_passive", "qfrc_damper", "qfrc_smooth"), 1.4e-3),
        **dict.fromkeys(("actuator_force", "qfrc_actuator"), 1.4e-3),
        **dict.fromkeys(("qacc", "qacc_smooth", "qacc_warmstart"), 4.5e-3),
        "qfrc_constraint": 9e-5,
    },
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def sims():
    """One WarpSim per scene for the whole module: compiling and loading kernels is what costs."""
    return {
        "gripper": WarpSim(scenes.gripper(), 4, "cpu"),
        "panda": WarpSim(scenes.panda(), 4, "cpu"),
    }


@pytest.fixture
def gripper(sims):
    return fresh(sims["gripper"])


@pytest.fixture(scope="module")
def varied():
    fields = (*scenes.VARIED, "body_pos", "cam_pos", "light_pos", "site_pos")
    sim = WarpSim(scenes.gripper(), 2, "cpu", per_env=fields)
    return sim, {name: sim.params[name].clone() for name in fields}


def fresh(sim):
    sim.reset()
    sim.forward()
    sim.faults.zero_()
    return sim


def run(sim, steps, start=0, nstep=1):
    for i in range(start, start + steps):
        sim.data.ctrl[:] = scenes.controls(sim.model, sim.num_envs, i)
        sim.step(nstep)
    return sim


def difference(name, one, other):
    one, other = one.data[name].double(), other.data[name].double()
    assert one.shape == other.shape, name
    if name == "history":  # Warp stores a sensor's sample one call earlier, which reads the same
        one, other = one[:, :SENSOR_HISTORY], other[:, :SENSOR_HISTORY]
    return float((one - other).abs().max()) if one.numel() else 0.0


@pytest.mark.parametrize("scene", TOLERANCE)
def test_every_field_follows_the_cpu_engine(sims, scene):
    warp = fresh(sims[scene])
    batch = BatchSim(warp.model, warp.num_envs, nthread=1)
    worst = {name: difference(name, warp, batch) for name in DATA_FIELDS}
    for i in range(100):
        for sim in (warp, batch):
            run(sim, 1, start=i, nstep=4)
        for name in DATA_FIELDS:
            worst[name] = max(worst[name], difference(name, warp, batch))
    wrong = {n: e for n, e in worst.items() if not e <= TOLERANCE[scene].get(n, 3e-6)}
    assert not wrong
    assert not warp.faults.any() and not batch.faults.any()
    if scene == "gripper":
        assert batch.data.sensordata[:, TOUCH].min() > 0.5, "the fingers no longer hold the box"


def test_fields_have_the_same_shapes_and_are_live(gripper):
    batch = BatchSim(gripper.model, 4, nthread=1)
    for name in DATA_FIELDS:
        assert gripper.data[name].shape == batch.data[name].shape, name
        if name != "eq_active":
            assert gripper.data[name].dtype == torch.float32, name
    gripper.data.qpos[2, 0] = 0.25
    gripper.forward()
    batch.data.qpos[2, 0] = 0.25
    batch.forward()
    assert difference("site_xpos", gripper, batch) < 1e-6
    assert set(STATE_FIELDS) <= set(dir(gripper.data))


def test_forces_are_those_that_acted_in_the_last_substep(gripper):
    batch = BatchSim(gripper.model, 4, nthread=1)
    for sim in (gripper, batch):
        run(sim, 25, nstep=5)
    acted = gripper.data.sensordata[:, TOUCH].clone()
    assert torch.allclose(acted, batch.data.sensordata[:, TOUCH], atol=6e-4)
    gripper.data.ctrl.zero_()  # opens the right finger
    gripper.forward()
    assert (gripper.data.sensordata[:, TOUCH] - acted).abs().max() > 0.1  # they can be told apart


@pytest.mark.parametrize("name", scenes.VARIANTS)
def test_parameters_of_one_environment_act_as_in_a_model_compiled_with_them(varied, name):
    sim, initial = varied
    for field, value in initial.items():
        sim.params[field].copy_(value)
    edit, fields = scenes.VARIANTS[name]
    edited = scenes.gripper(edit)
    scenes.write_variant(sim, 1, edited, fields)
    base, alone = BatchSim(sim.model, 1, nthread=1), BatchSim(edited, 1, nthread=1)
    worst, effect = 0.0, 0.0
    for i in range(12):
        for each in (sim, base, alone):
            each.data.ctrl[:] = scenes.controls(base.model, 1, i)
            each.step(5)
        for env, one in ((0, base), (1, alone)):
            worst = max(worst, float((sim.data.qpos[env] - one.data.qpos[0]).abs().max()))
        effect = max(effect, float((alone.data.qpos - base.data.qpos).abs().max()))
    assert worst < 1e-4
    if name != "sensor delay":  # changes a reading, not the motion
        assert effect > 3 * worst
    assert torch.allclose(sim.data.sensordata[1, 1], alone.data.sensordata[0, 1], atol=1e-5)


def test_set_const_derives_the_constants_and_static_poses_of_each_environment(varied):
    sim, initial = varied
    batch = BatchSim(sim.model, 2, per_env=(*initial,), nthread=1)
    model = sim.model
    for each in (sim, batch):
        for field in initial:
            each.params[field].copy_(initial[field])
        each.params.body_mass[1] *= 1.5
        each.params.body_inertia[1] *= 1.5
        each.params.dof_armature[1] += 0.02
        each.params.geom_size[1, model.geom("hand").id] *= 1.2
        each.params.geom_pos[1, model.geom("bump").id, 2] += 0.3
        each.params.body_pos[1, model.body("arm").id, 0] += 0.1
        each.params.cam_pos[1] += 0.1
        each.params.light_pos[1] += 0.1
        each.params.site_pos[1] += 0.01
        each.set_const()
        each.reset()
        each.forward()
    for field in ("geom_xpos", "geom_xmat", "xipos", "site_xpos", "cam_xpos", "light_xpos"):
        assert difference(field, sim, batch) < 1e-6, field
    assert sim.data.geom_xpos[1, model.geom("bump").id, 2] == pytest.approx(0.4)
    constants = ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0")
    for field in (*constants, "geom_rbound", "geom_aabb"):
        shape = (2, *getattr(model, field).shape)
        got = getattr(sim.m, field).numpy().reshape(shape)
        want = batch.batch.expanded(field)
        assert np.allclose(got, want, rtol=1e-5, atol=1e-6), field
        assert np.allclose(got[0], getattr(model, field), rtol=1e-5, atol=1e-6), field
        if field != "geom_aabb":
            assert not np.allclose(got[0], got[1]), field


def test_a_partial_reset_touches_nothing_else(gripper):
    run(gripper, 20)
    before = {name: gripper.data[name].clone() for name in DATA_FIELDS}
    mask = torch.tensor([False, True, False, True])
    gripper.reset(mask, keyframe=0)
    gripper.forward(mask)
    for name in DATA_FIELDS:
        assert torch.equal(gripper.data[name][~mask], before[name][~mask]), name
    batch = BatchSim(gripper.model, 4, nthread=1)
    batch.reset(mask, keyframe=0)
    batch.forward(mask)
    for name in (*STATE_FIELDS, "xpos", "sensordata", *ACCELERATION_FIELDS):
        got, want = gripper.data[name][mask], batch.data[name][mask].float()
        if name == "history":
            got, want = got[:, :SENSOR_HISTORY], want[:, :SENSOR_HISTORY]
        assert torch.allclose(got.float(), want, rtol=1e-5, atol=1e-5), name


def test_a_state_set_in_part_touches_nothing_else(gripper):
    saved = run(gripper, 20).get_state()
    mask = torch.tensor([True, False, False, True])
    later = run(gripper, 10, start=20).get_state()
    sensors = gripper.data.sensordata.clone()
    gripper.set_state(saved, mask)
    assert torch.equal(gripper.get_state(), torch.where(mask[:, None], saved, later))
    assert torch.equal(gripper.data.sensordata[~mask], sensors[~mask])


def test_a_restored_state_continues_bit_for_bit(gripper):
    saved = run(gripper, 150).get_state()
    first = run(gripper, 250, start=150).get_state()
    gripper.set_state(saved)
    assert torch.equal(run(gripper, 250, start=150).get_state(), first)
    assert saved.shape[1] == mujoco.mj_stateSize(gripper.model, STATE)


@pytest.fixture(scope="module")
def crowd():
    return WarpSim(scenes.stack(), 64, "cpu")


# 3 is part of a quaternion, of which Warp makes a legal rotation; 0 is a position
@pytest.mark.parametrize(("field", "index"), [("qpos", 0), ("qpos", 3), ("qvel", 4), ("ctrl", 0)])
def test_a_nan_is_reported_for_its_environment_within_the_step(crowd, field, index):
    others = torch.arange(64) != 17
    run(fresh(crowd), 2)
    crowd.data[field][17, index] = torch.nan
    crowd.step()
    assert crowd.faults[17] == Fault.NONFINITE and not crowd.faults[others].any()
    assert torch.isfinite(crowd.get_state()[others]).all()
    crowd.reset(~others)
    crowd.faults.zero_()
    crowd.step()
    assert not crowd.faults.any() and torch.isfinite(crowd.get_state()).all()


def test_sixteen_contacts_have_room_where_nothing_is_said():
    """By hand: three equality rows of a connect, and of a contact six edges of a pyramid."""
    spec = mujoco.MjSpec.from_string("""
        <mujoco><worldbody>
          <geom name="floor" type="plane" size="2 2 .1" condim="4"/>
          <body name="swing" pos="0 0 1"><freejoint/><geom size=".05"/></body>
        </worldbody><equality><connect body1="swing" anchor="0 0 .3"/></equality></mujoco>""")
    for i in range(4):
        body = spec.worldbody.add_body(pos=[0.3 * i, 0.5, 0.1])
        body.add_freejoint()
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.1, 0.1, 0.1])
    model = spec.compile()
    assert constraint_rows(model) == 3 + 16 * 6
    sim = WarpSim(model, 2, "cpu")
    sim.step(200)
    assert not sim.faults.any() and int(sim.d.nefc.numpy().max()) == 3 + 16 * 6
    assert WarpSim(model, 2, "cpu", njmax=80).d.njmax == 80
    model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    assert constraint_rows(model) == 3 + 16 * 4


def settle(**buffers):
    """Let two environments' boxes meet the floor and each other, in too little room."""
    sim = WarpSim(scenes.stack(), 2, "cpu", **buffers)
    start = sim.get_state()
    assert sim.overflow_hint() == "no buffer has overflowed"
    for _ in range(20):
        sim.step(10)
        if sim.faults.any():
            break
    return sim, start


@pytest.mark.parametrize(
    ("buffers", "remedy"),
    [
        ({"njmax": 6}, "NEFC overflowed; set sim.njmax=12"),
        ({"nconmax": 2, "njmax": 100}, "NARROWPHASE overflowed; set sim.nconmax=4"),
    ],
)
def test_a_full_buffer_is_reported_within_the_step_and_the_hint_doubles_it(buffers, remedy):
    sim, start = settle(**buffers)
    assert torch.isfinite(sim.data.qpos).all()
    assert (sim.faults == Fault.OVERFLOW).all()
    assert sim.overflow_hint() == remedy
    sim.faults.zero_()
    sim.set_state(start)  # in the air: nothing overflows, and nothing old is reported again
    sim.step()
    assert not sim.faults.any()


def test_errors_name_the_offender_and_the_remedy(gripper):
    model = gripper.model
    with pytest.raises(AttributeError, match=r"write in place, data.qpos\[:\] = value"):
        gripper.data.qpos = torch.zeros(4, model.nq)
    with pytest.raises(AttributeError, match="no field 'xposs'; did you mean xpos"):
        gripper.data.xposs  # noqa: B018
    with pytest.raises(ValueError, match=r"'body_mas' cannot .*did you mean body_mass"):
        make_sim(model, 2, engine="warp", per_env=("body_mas",))
    with pytest.raises(ValueError, match=r"'geom_condim' cannot .*these can: .*geom_friction"):
        make_sim(model, 2, engine="warp", per_env=("geom_condim",))
    with pytest.raises(ValueError, match=r"'opt.impratio' cannot .*these can: .*opt.gravity"):
        make_sim(model, 2, engine="warp", per_env=("opt.impratio",))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_sim(model, 0, engine="warp")
    with pytest.raises(ValueError, match=r"must be \(4, \d+\), got \(1, 3\)"):
        gripper.set_state(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="keyframe must be -1 or one of 1, got 1"):
        gripper.reset(keyframe=1)


@pytest.mark.parametrize(
    ("device", "atol"),
    [
        ("cpu", 0.0),
        pytest.param(  # atomic additions come in any order there
            *("cuda:0", 1e-4),
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_replayed_graphs_equal_running_kernel_by_kernel(monkeypatch, device, atol):
    fields = ("body_mass", "geom_size", "geom_pos")
    graph, eager = (WarpSim(scenes.gripper(), 8, device, per_env=fields) for _ in range(2))

    def work_now(key, work):
        with wp.ScopedDevice(device):
            work()

    monkeypatch.setattr(eager, "_run", work_now)
    mask = torch.arange(8, device=device) % 3 == 0
    for i in range(4):  # first eagerly, then captured, then replayed
        for sim in (graph, eager):
            sim.params.body_mass[mask] *= 1.1
            sim.params.geom_pos[mask, 1, 0] += 0.01
            sim.set_const()
            run(sim, 15, start=15 * i, nstep=2)
            sim.reset(~mask, keyframe=(i % 2) - 1)
            sim.forward(~mask)
            sim.set_state(sim.get_state().roll(1, 0), mask)
            sim.data.qpos[i, 0] = torch.nan
            sim.step()
            sim.reset(torch.isnan(sim.data.qpos[:, 0]))
        for name in (*DATA_FIELDS, "faults"):
            one, other = (s.faults if name == "faults" else s.data[name] for s in (graph, eager))
            assert torch.allclose(one, other, rtol=0.0, atol=atol, equal_nan=True), name
        assert graph.faults.count_nonzero() == i + 1
    assert len([g for g in graph._graphs.values() if g is not None]) >= 6


def test_a_graph_captured_in_the_air_replays_contacts():
    sim = WarpSim(scenes.stack(), 4, "cpu")
    batch = BatchSim(sim.model, 4, nthread=1)
    run(sim, 3, nstep=5), run(batch, 3, nstep=5)
    assert not batch.data.qfrc_constraint.any()
    heights = run(sim, 200, start=3, nstep=5).data.xpos[:, 1:4, 2]
    assert heights.min() > 0.05 and heights.max() < 0.35
