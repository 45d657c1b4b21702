import mujoco
import numpy as np
import pytest
import torch

from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.sim import (
    ACCELERATION_FIELDS,
    DATA_FIELDS,
    DERIVED_FIELDS,
    MATRIX_FIELDS,
    STATE_FIELDS,
    Fault,
    make_sim,
)
from tests.support import scenes

STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
COMPARED = ("qpos", "qvel", "qacc_warmstart", "time")
# gripper's sensors whose value comes from forces, as addresses in sensordata
TOUCH = 0
FORCES = [TOUCH, 13, 14, 15, 16]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir()), "MuJoCo wrote a log into the current folder"


def run(sim, steps, start=0, nstep=1):
    for i in range(start, start + steps):
        sim.data.ctrl[:] = scenes.controls(sim.model, sim.num_envs, i)
        sim.step(nstep)
    return sim


@pytest.fixture(scope="module")
def loop():
    """1,000 mj_steps of five worlds, one MjData each: {field: (1000, 5, ...)}."""
    model, num_envs = scenes.stack(), 5
    worlds = [mujoco.MjData(model) for _ in range(num_envs)]
    rows, contacts = {name: [] for name in COMPARED}, 0
    for i in range(1000):
        for world, ctrl in zip(worlds, scenes.controls(model, num_envs, i), strict=True):
            world.ctrl[:] = ctrl
            mujoco.mj_step(model, world)
            contacts += world.ncon
        for name in COMPARED:
            rows[name].append(np.stack([np.copy(getattr(world, name)) for world in worlds]))
    assert contacts > 10_000
    return {name: np.stack(values) for name, values in rows.items()}


@pytest.mark.parametrize("nthread", [1, 2, 3])
def test_a_batch_equals_a_loop_of_mj_step_bit_for_bit(loop, nthread):
    sim = BatchSim(scenes.stack(), 5, nthread=nthread)
    for i in range(1000):
        run(sim, 1, start=i)
        for name in COMPARED:
            assert np.array_equal(sim.data[name].numpy(), loop[name][i]), (name, i)


def test_substeps_equal_single_steps_with_the_same_controls():
    one, four = (BatchSim(scenes.stack(), 3, nthread=1) for _ in range(2))
    for i in range(50):
        for sim, calls in ((one, 4), (four, 1)):
            sim.data.ctrl[:] = scenes.controls(sim.model, 3, i)
            for _ in range(calls):
                sim.step(4 // calls)
    assert torch.equal(one.get_state(), four.get_state())


def test_every_field_has_the_shape_of_mjdata_with_leading_environments():
    model = scenes.gripper()
    data, sim = mujoco.MjData(model), BatchSim(model, 3, nthread=1)
    for name in DATA_FIELDS:
        shape = np.shape(getattr(data, name))
        shape = (shape[0], 3, 3) if name in MATRIX_FIELDS else shape
        dtype = torch.float64 if name in STATE_FIELDS else torch.float32
        assert sim.data[name].shape == (3, *shape), name
        assert sim.data[name].dtype == dtype, name


def test_derived_fields_describe_the_state_after_the_call():
    model = scenes.gripper()
    sim = BatchSim(model, 3, nthread=2)
    for name in DERIVED_FIELDS:
        sim.data[name]
    run(sim, 60, nstep=3)
    data = mujoco.MjData(model)
    current = [i for i in range(model.nsensordata) if i not in FORCES]
    for env in range(3):
        mujoco.mj_setState(model, data, sim.get_state()[env].numpy(), STATE)
        mujoco.mj_forward(model, data)
        assert data.ncon > 0
        for name in DERIVED_FIELDS:
            got, want = sim.data[name][env].numpy(), getattr(data, name).astype(np.float32)
            if name == "sensordata":
                got, want = got[current], want[current]
            assert np.array_equal(got, want.reshape(got.shape)), name


def test_forces_are_those_that_acted_in_the_last_substep():
    model, data = scenes.gripper(), mujoco.MjData(scenes.gripper())
    sim = BatchSim(model, 1, nthread=1)
    for i in range(60):
        data.ctrl[:] = scenes.controls(model, 1, i)[0]
        mujoco.mj_step(model, data, 3)
    run(sim, 60, nstep=3)
    acted = data.sensordata[FORCES].astype(np.float32)
    for name in ACCELERATION_FIELDS:
        assert np.array_equal(sim.data[name][0], getattr(data, name).astype(np.float32)), name
    assert np.array_equal(sim.data.sensordata[0, FORCES], acted)
    mujoco.mj_forward(model, data)
    assert abs(data.sensordata[TOUCH] - acted[0]) > 1e-3  # so the two can be told apart


def test_touching_a_field_late_changes_no_other():
    early, late = (BatchSim(scenes.gripper(), 3, nthread=1) for _ in range(2))
    for name in (*DERIVED_FIELDS, *ACCELERATION_FIELDS):
        early.data[name]
    run(early, 60), run(late, 60)
    mask = torch.tensor([True, False, False])
    for sim in (early, late):
        sim.data.site_xpos  # noqa: B018 - late binds it here
        sim.forward(mask)
    for name in DATA_FIELDS:
        assert torch.equal(early.data[name], late.data[name]), name


@pytest.mark.parametrize("name", scenes.VARIANTS)
def test_parameters_of_one_environment_equal_a_model_compiled_with_them(name):
    edit, fields = scenes.VARIANTS[name]
    edited = scenes.gripper(edit)
    sim = BatchSim(scenes.gripper(), 2, per_env=fields, nthread=1)
    scenes.write_variant(sim, 1, edited, fields)
    base, alone = BatchSim(scenes.gripper(), 1, nthread=1), BatchSim(edited, 1, nthread=1)
    for i in range(100):
        for each in (sim, base, alone):
            each.data.ctrl[:] = scenes.controls(base.model, 1, i)
            each.step(2)
        for field in ("qpos", "qvel", "sensordata", "history"):
            assert torch.equal(sim.data[field][0], base.data[field][0]), field
            assert torch.equal(sim.data[field][1], alone.data[field][0]), field
    differ = (alone.data.qpos - base.data.qpos).abs().max() > 1e-4
    assert differ or not torch.equal(alone.data.sensordata, base.data.sensordata)


def test_set_const_derives_the_constants_of_each_environment():
    derived = ("body_subtreemass", "body_invweight0", "dof_invweight0", "geom_rbound", "geom_aabb")
    wanted = ("body_mass", "body_inertia", "geom_size", "geom_pos", *derived)
    sim = BatchSim(scenes.gripper(), 2, per_env=wanted, nthread=1)
    for name in ("mass", "size"):
        edit, fields = scenes.VARIANTS[name]
        edited = scenes.gripper(edit)
        for field in set(fields) & set(wanted):
            sim.params[field][1] = torch.from_numpy(getattr(edited, field))
        sim.set_const(torch.tensor([False, True]))
        for field in derived:
            assert np.allclose(sim.params[field][1], getattr(edited, field), rtol=1e-12), field
            assert np.array_equal(sim.params[field][0], getattr(sim.model, field)), field
        for field in set(fields) & set(wanted):
            sim.params[field][1] = torch.from_numpy(getattr(sim.model, field))


def test_a_simple_body_whose_centre_moves_is_refused_with_mujocos_advice():
    model = mujoco.MjModel.from_xml_string(scenes.GRIPPER.replace(' simple="false"', ""))
    sim = BatchSim(model, 2, per_env=("body_ipos",), nthread=1)
    sim.params.body_ipos[1, model.body("box").id, 0] += 0.01
    with pytest.raises(mujoco.batch.SimulationError, match="simple='false'"):
        sim.set_const()


def test_a_partial_reset_touches_nothing_else():
    sim = run(BatchSim(scenes.gripper(), 4, nthread=2), 40)
    for name in DATA_FIELDS:
        sim.data[name]
    before = {name: sim.data[name].clone() for name in DATA_FIELDS}
    rows, mask = sim.get_state(), torch.tensor([False, True, False, True])
    sim.reset(mask, keyframe=0)
    sim.forward(mask)
    assert torch.equal(sim.get_state()[~mask], rows[~mask])
    for name in DATA_FIELDS:
        assert torch.equal(sim.data[name][~mask], before[name][~mask]), name
    data = mujoco.MjData(sim.model)
    mujoco.mj_resetDataKeyframe(sim.model, data, 0)
    row = np.empty(rows.shape[1])
    mujoco.mj_getState(sim.model, data, row, STATE)
    for env in (1, 3):
        assert np.array_equal(sim.get_state()[env], row)


def test_a_state_set_in_part_touches_nothing_else():
    sim = run(BatchSim(scenes.gripper(), 4, nthread=2), 40)
    sim.data.sensordata  # noqa: B018
    saved, mask = sim.get_state(), torch.tensor([True, False, False, True])
    run(sim, 40, start=40)
    later, sensors = sim.get_state(), sim.data.sensordata.clone()
    sim.set_state(saved, mask)
    assert torch.equal(sim.get_state(), torch.where(mask[:, None], saved, later))
    assert torch.equal(sim.data.sensordata[~mask], sensors[~mask])


def test_a_restored_state_continues_bit_for_bit():
    sim = run(BatchSim(scenes.stack(), 4, nthread=2), 150)
    saved = sim.get_state()
    first = run(sim, 250, start=150).get_state()
    sim.set_state(saved)
    assert torch.equal(run(sim, 250, start=150).get_state(), first)
    assert not torch.equal(saved, first)


def test_a_nan_is_reported_for_its_environment_within_the_step():
    sim, clean = (run(BatchSim(scenes.stack(), 64, nthread=2), 20) for _ in range(2))
    for _ in range(2):  # a reset clears MuJoCo's counters: the second time must count too
        sim.data.qpos[17, 3] = torch.nan
        run(sim, 1), run(clean, 1)
        assert sim.faults[17] & (Fault.WARNING | Fault.NONFINITE)
        assert sim.faults.count_nonzero() == 1
        sim.faults.zero_()
        others = torch.arange(64) != 17
        assert torch.equal(sim.get_state()[others], clean.get_state()[others])
        sim.reset(~others)
    assert not clean.faults.any()


def test_a_nan_control_is_reported():
    sim = BatchSim(scenes.stack(), 3, nthread=1)
    sim.data.ctrl[1] = torch.nan
    sim.step()
    assert sim.faults.bool().tolist() == [False, True, False]


def test_a_world_without_memory_keeps_its_state_and_the_hint_names_the_setting():
    xml = scenes.STACK.replace("<worldbody>", '<size memory="12K"/><worldbody>', 1)
    sim = run(BatchSim(mujoco.MjModel.from_xml_string(xml), 2, nthread=1), 200)
    assert sim.faults.tolist() == [Fault.ERROR, Fault.ERROR]
    assert torch.isfinite(sim.get_state()).all() and sim.data.qpos[:, 2].min() > 0.05
    assert "out of memory" in sim.overflow_hint()
    assert '<size memory="1M"/>' in sim.overflow_hint()


def test_a_warning_about_dropped_contacts_is_an_overflow():
    sim = BatchSim(scenes.stack(), 3, nthread=1)
    sim.batch.warning[1, int(mujoco.mjtWarning.mjWARN_CONTACTFULL), 1] += 1
    sim.step()
    assert sim.faults.tolist() == [0, Fault.OVERFLOW, 0]


def test_errors_name_the_offender_and_the_remedy():
    model = scenes.stack()
    sim = make_sim(model, 2, per_env=("body_mass",))
    with pytest.raises(AttributeError, match=r"write in place, data.qpos\[:\] = value"):
        sim.data.qpos = torch.zeros(2, model.nq)
    with pytest.raises(AttributeError, match="no field 'xposs'; did you mean xpos"):
        sim.data.xposs  # noqa: B018
    with pytest.raises(AttributeError, match=r"make_sim got per_env=\('dof_damping',\)"):
        sim.params.dof_damping  # noqa: B018
    with pytest.raises(ValueError, match=r"body_mas is not .*did you mean 'body_mass'"):
        make_sim(model, 2, per_env=("body_mas",))
    with pytest.raises(ValueError, match="auto, mujoco, warp, mjx; got 'isaac'"):
        make_sim(model, 2, engine="isaac")
    with pytest.raises(ValueError, match="runs on the CPU, not cuda"):
        make_sim(model, 2, "cuda", engine="mujoco")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_sim(model, 0)
    with pytest.raises(ValueError, match=r"must be \(2, \d+\), got \(1, 3\)"):
        sim.set_state(torch.zeros(1, 3))
