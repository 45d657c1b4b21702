"""The JAX engine against the CPU engine, on memory that torch and JAX share."""

import math
import subprocess
import sys

import mujoco
import numpy as np
import pytest
import torch

import tasks
from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.sim import ACCELERATION_FIELDS, STATE_FIELDS, Fault, make_sim
from penspin_style.storage import MANIFEST
from scripts import engine_parity
from tests.support import scenes

jax = pytest.importorskip("jax")
pytest.importorskip("mujoco.mjx")

from penspin_style.sim import mjx_sim  # noqa: E402
from penspin_style.sim.mjx_sim import FIELDS, MjxSim  # noqa: E402

pytestmark = pytest.mark.timeout(1800)  # compiling takes minutes beside other programs

DELAYS = ('delay=".006" nsample="8"', 'delay=".004" nsample="6"')
TOUCH, SHOULDER = 0, 2
PARAMS = (*scenes.VARIED, "body_pos", "site_pos")
PARAMS = tuple(name for name in PARAMS if not name.endswith("_delay"))


def on_time(edit=lambda spec: None):
    """The gripper without delays, which MJX does not know."""
    text = scenes.GRIPPER
    for delay in DELAYS:
        text = text.replace(delay, "")
    spec = mujoco.MjSpec.from_string(text)
    edit(spec)
    return spec.compile()


@pytest.fixture(scope="module")
def sim():
    """One simulation for the module: to compile it is what costs."""
    sim = MjxSim(on_time(), 4, "cpu", per_env=PARAMS)
    return sim, {name: sim.params[name].clone() for name in PARAMS}


@pytest.fixture
def gripper(sim):
    sim, initial = sim
    for name, value in initial.items():
        sim.params[name].copy_(value)
    sim.set_const()
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
    return float((one - other).abs().max()) if one.numel() else 0.0


def worst_of(one, other, steps, nstep):
    worst = {name: difference(name, one, other) for name in FIELDS}
    for i in range(steps):
        for sim in (one, other):
            run(sim, 1, start=i, nstep=nstep)
        for name in FIELDS:
            worst[name] = max(worst[name], difference(name, one, other))
    return worst


# Physics.

# Largest difference from BatchSim over 100 control steps: about three times what was measured, and
# 5e-6 where nothing stands. float32 against float64; two fingers hold a box, whose rotation within
# the grip is stiff, and fast where it slips.
TOLERANCE = {
    **dict.fromkeys(("time",), 1e-5),
    **dict.fromkeys(("qpos", "xquat", "xpos", "xipos", "geom_xpos", "site_xpos"), 1e-4),
    **dict.fromkeys(("xmat", "ximat", "geom_xmat", "cdof", "xaxis", "xanchor"), 2e-4),
    **dict.fromkeys(("site_xmat", "cam_xmat", "subtree_com", "actuator_length"), 5e-5),
    **dict.fromkeys(("ten_length",), 8e-5),
    **dict.fromkeys(("qvel", "cvel"), 2e-2),
    **dict.fromkeys(("cdof_dot", "actuator_velocity", "ten_velocity"), 8e-3),
    **dict.fromkeys(("qfrc_passive", "actuator_force", "qfrc_actuator"), 1e-2),
    **dict.fromkeys(("qfrc_constraint", "qfrc_smooth"), 2e-2),
    **dict.fromkeys(("sensordata",), 0.8),  # an accelerometer of the finger
    **dict.fromkeys(("qacc", "qacc_warmstart"), 2.5),
    **dict.fromkeys(("qacc_smooth",), 0.5),
}


def test_every_field_follows_the_cpu_engine(gripper):
    batch = BatchSim(gripper.model, 4, nthread=1)
    worst = worst_of(gripper, batch, 100, 4)
    assert not {n: e for n, e in worst.items() if not e <= TOLERANCE.get(n, 5e-6)}
    assert not gripper.faults.any()
    assert batch.data.sensordata[:, TOUCH].min() > 0.5, "the fingers no longer hold the box"
    assert abs(gripper.data.sensordata[0, TOUCH] / batch.data.sensordata[0, TOUCH] - 1) < 0.02


@pytest.mark.parametrize(
    "name", [n for n, (_, f) in scenes.VARIANTS.items() if not any("delay" in x for x in f)]
)
def test_parameters_of_one_environment_act_as_in_a_model_compiled_with_them(gripper, name):
    edit, fields = scenes.VARIANTS[name]
    edited = on_time(edit)
    scenes.write_variant(gripper, 1, edited, fields)
    base, alone = BatchSim(gripper.model, 1, nthread=1), BatchSim(edited, 1, nthread=1)
    worst, effect = 0.0, 0.0
    for i in range(12):
        for each in (gripper, base, alone):
            each.data.ctrl[:] = scenes.controls(base.model, 1, i)
            each.step(5)
        for env, one in ((0, base), (1, alone)):
            worst = max(worst, float((gripper.data.qpos[env] - one.data.qpos[0]).abs().max()))
        effect = max(effect, float((alone.data.qpos - base.data.qpos).abs().max()))
    assert worst < 2e-4 and effect > 3 * worst


def test_set_const_derives_the_constants_of_each_environment(gripper):
    batch = BatchSim(gripper.model, 4, per_env=PARAMS, nthread=1)
    for each in (gripper, batch):
        each.params.body_mass[1] *= 1.5
        each.params.body_inertia[1] *= 1.5
        each.params.dof_armature[1] += 0.02
        each.set_const()
    for name in ("body_invweight0", "dof_invweight0", "actuator_acc0", "body_subtreemass"):
        got, want = gripper._constants[name], torch.from_numpy(batch.batch.expanded(name).copy())
        assert torch.allclose(got.double(), want.view(got.shape), rtol=1e-5), name
        assert not torch.equal(got[0], got[1]), name


# Memory.


def test_fields_have_the_same_shapes_and_are_live(gripper):
    batch = BatchSim(gripper.model, 4, nthread=1)
    for name in FIELDS:
        assert gripper.data[name].shape == batch.data[name].shape, name
        if name != "eq_active":
            assert gripper.data[name].dtype == torch.float32, name
    heading = gripper.data.xpos[:, 3]  # a view that a task may keep
    gripper.data.qpos[2, 0] = 0.25
    gripper.forward()
    batch.data.qpos[2, 0] = 0.25
    batch.forward()
    assert difference("site_xpos", gripper, batch) < 1e-6
    assert torch.equal(heading, gripper.data.xpos[:, 3])
    assert set(STATE_FIELDS) <= set(dir(gripper.data))
    with pytest.raises(AttributeError, match="no field 'light_xpos'"):
        gripper.data.light_xpos  # noqa: B018


def test_the_program_reads_the_memory_of_the_tensors_and_nothing_passes_the_host(
    gripper, monkeypatch
):
    seen, program = {}, gripper._program

    def spy(varying, m, d, *rest):
        seen.update({name: getattr(d, name).unsafe_buffer_pointer() for name in ("qpos", "ctrl")})
        seen["body_mass"] = m.body_mass.unsafe_buffer_pointer()
        return program(varying, m, d, *rest)

    monkeypatch.setattr(gripper, "_program", spy)
    tensors = {**gripper._state, **gripper._served, **gripper._params}
    before = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    copies = []
    for name in ("cpu", "numpy", "tolist", "item"):
        real = getattr(torch.Tensor, name)
        count = lambda self, *a, real=real, name=name: (copies.append(name), real(self, *a))[1]  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, count)
    with jax.transfer_guard_device_to_host("disallow"), jax.transfer_guard_host_to_device("log"):
        monkeypatch.setattr(jax, "device_get", lambda *_: copies.append("device_get"))
        run_step(gripper)
    assert copies == []
    monkeypatch.undo()
    assert seen["qpos"] == gripper.data.qpos.data_ptr()
    assert seen["ctrl"] == gripper.data.ctrl.data_ptr()
    assert seen["body_mass"] == gripper.params.body_mass.data_ptr()
    assert {name: tensor.data_ptr() for name, tensor in tensors.items()} == before
    assert gripper.copied_bytes == sum(
        t.nbytes for t in (*gripper._state.values(), *gripper._served.values())
    )


def run_step(sim):
    sim.data.ctrl.add_(0.01)
    sim.step(2)


def test_simulations_alike_share_one_compiled_program(gripper):
    again = MjxSim(on_time(), 4, "cpu", per_env=PARAMS)
    assert again.compile_seconds < 5.0 and again._program is gripper._program
    assert mjx_sim._compiled("cpu")._cache_size() <= 3


# State.


def test_a_partial_reset_touches_nothing_else(gripper):
    run(gripper, 20)
    before = {name: gripper.data[name].clone() for name in FIELDS}
    mask = torch.tensor([False, True, False, True])
    gripper.reset(mask, keyframe=0)
    gripper.forward(mask)
    for name in FIELDS:
        assert torch.equal(gripper.data[name][~mask], before[name][~mask]), name
    batch = BatchSim(gripper.model, 4, nthread=1)
    batch.reset(mask, keyframe=0)
    batch.forward(mask)
    for name in (*STATE_FIELDS, "xpos", *ACCELERATION_FIELDS):
        got, want = gripper.data[name][mask], batch.data[name][mask].float()
        assert torch.allclose(got.float(), want, rtol=1e-4, atol=1e-4), name


def test_a_reset_gives_each_environment_its_own_defaults(gripper):
    gripper.params.body_pos[1, 1, 2] += 0.5  # of the mocap body
    gripper.reset()
    heights = gripper.data.mocap_pos[:, 0, 2].tolist()
    assert heights == pytest.approx([0.5, 1.0, 0.5, 0.5])


def test_state_rows_are_laid_out_as_mujocos(gripper):
    run(gripper, 5)
    batch = BatchSim(gripper.model, 4, nthread=1)
    batch.set_state(gripper.get_state().double())
    assert torch.equal(batch.get_state().float(), gripper.get_state())
    assert torch.equal(batch.data.qpos.float(), gripper.data.qpos)


def test_a_restored_state_continues_bit_for_bit(gripper):
    saved = run(gripper, 30).get_state()
    first = run(gripper, 50, start=30).get_state()
    mask = torch.tensor([True, False, False, True])
    gripper.set_state(saved, mask)
    assert torch.equal(gripper.get_state(), torch.where(mask[:, None], saved, first))
    gripper.set_state(saved)
    assert torch.equal(run(gripper, 50, start=30).get_state(), first)


@pytest.mark.parametrize(("field", "index"), [("qpos", 0), ("qpos", 7), ("qvel", 4), ("ctrl", 0)])
def test_a_nan_is_reported_for_its_environment_within_the_step(gripper, field, index):
    others = torch.arange(4) != 2
    run(gripper, 2)
    gripper.data[field][2, index] = torch.nan
    gripper.step()
    assert gripper.faults[2] == Fault.NONFINITE and not gripper.faults[others].any()
    assert torch.isfinite(gripper.get_state()[others]).all()
    gripper.reset(~others)
    gripper.faults.zero_()
    gripper.step()
    assert not gripper.faults.any() and torch.isfinite(gripper.get_state()).all()


SWING = """
<mujoco><option timestep="0.01"/>
  <worldbody>
    <body><joint name="hinge" axis="0 1 0"/><geom size=".1" pos="0 0 -.5"/></body>
  </worldbody>
  <actuator><motor joint="hinge" gear="9"/></actuator>
</mujoco>
"""


def test_inputs_change_between_the_substeps_of_a_call():
    model = mujoco.MjModel.from_xml_string(SWING)
    sims = MjxSim(model, 2, "cpu"), BatchSim(model, 2, nthread=1)
    values = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-3.0, 0.0]])[..., None]
    for sim in sims:
        sim.step(3, {"ctrl": values.to(sim.data.ctrl.dtype)}, torch.tensor([True, True]))
        assert sim.data.ctrl[:, 0].tolist() == [-3.0, 0.0]
    one, other = (sim.data.qvel.double() for sim in sims)
    assert torch.allclose(one, other, atol=1e-5) and (other[:, 0].abs() > 0.02).all()
    shifted = torch.tensor([False, True, False])[1:]  # a mask on an odd address
    sims[0].reset(shifted)
    sims[0].forward(shifted)
    assert sims[0].data.qvel[0, 0] == 0.0 and sims[0].data.qvel[1, 0] != 0.0


TILTED = """
<mujoco><worldbody><geom type="plane" size="1 1 .1"/>
  <body pos="0 0 .09875" euler="0 .43 0"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
</worldbody></mujoco>
"""


def test_a_tilted_box_stands_on_every_corner_below_the_floor():
    """MJX itself leaves out those that are more than 1 mm above the deepest, here 1.5 mm."""
    from mujoco.mjx._src import collision_convex, collision_driver

    model = mujoco.MjModel.from_xml_string(TILTED)
    mjx, batch = MjxSim(model, 1, "cpu"), BatchSim(model, 1, nthread=1)
    batch.forward()
    assert (batch.data.qfrc_constraint[:, 2] > 10.0).all()
    assert difference("qfrc_constraint", mjx, batch) < 0.01
    dist = torch.from_numpy(np.array(mjx.jax_data._impl.contact.dist[0]))
    assert dist.sort().values.tolist() == pytest.approx([-2e-3, -2e-3, -5e-4, -5e-4], abs=2e-5)
    key = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX)
    table = {tuple(map(int, k)): found for k, found in collision_driver._COLLISION_FUNC.items()}
    assert table[tuple(map(int, key))] is collision_convex.plane_convex  # other programs keep it


# Refusals.


def edited(change):
    spec = mujoco.MjSpec.from_string(scenes.STACK)
    change(spec)
    return spec.compile()


def add_contact_sensor(spec):
    sensor = spec.add_sensor(name="felt", type=mujoco.mjtSensor.mjSENS_CONTACT)
    sensor.objtype, sensor.objname = mujoco.mjtObj.mjOBJ_BODY, "low"
    sensor.intprm[:3] = [1, 3, 1]


def option(name, value):
    return lambda spec: setattr(spec.option, name, value)


def cylinder(spec):
    spec.geom("top").type = mujoco.mjtGeom.mjGEOM_CYLINDER
    spec.geom("top").size = [0.06, 0.05, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_contact_sensor, r"contact sensors of a body \(felt\); .*netforce \(felt\)"),
        (cylinder, r"collisions cylinder-box \(top with (low|mid)"),
        (option("noslip_iterations", 3), r"opt.noslip_iterations \(3\)"),
        (option("integrator", mujoco.mjtIntegrator.mjINT_IMPLICIT), "opt.integrator .*IMPLICIT"),
        (option("solver", mujoco.mjtSolver.mjSOL_PGS), r"opt.solver \(mjSOL_PGS\)"),
        (option("enableflags", int(mujoco.mjtEnableBit.mjENBL_ENERGY)), "mjENBL_ENERGY"),
        (option("density", 1.2), "opt.integrator in a fluid"),
    ],
)
def test_what_mjx_cannot_do_is_refused_by_name_with_a_remedy(change, said):
    with pytest.raises(ValueError, match=f"{said}.*use engine=mujoco, or engine=warp"):
        make_sim(edited(change), 2, engine="mjx")


def test_delays_which_mjx_ignores_are_refused():
    said = r"actuator_delay and history \(shoulder\); sensor_delay and history \(late\)"
    with pytest.raises(ValueError, match=said):
        make_sim(scenes.gripper(), 2, engine="mjx")


def test_fields_that_are_compiled_in_cannot_differ_between_worlds():
    model = on_time()
    with pytest.raises(ValueError, match=r"'geom_dataid' cannot .*engine=mujoco.*: .*body_mass"):
        MjxSim(model, 2, "cpu", per_env=("geom_dataid",))
    with pytest.raises(ValueError, match=r"'body_mas' cannot .*did you mean body_mass"):
        MjxSim(model, 2, "cpu", per_env=("body_mas",))


RUNS = {
    "panda_lift_cube",
    "panda_pick_cube",
    "panda_pick_cube_cartesian",
    "panda_pick_cube_orientation",
}
NETFORCE = r"this model: contact sensors with reduce=netforce \(left_fingers_\w+:left_left_"
UNLIT = "sim.engine=mjx does not compute light_xpos and light_xdir"
BOXES = r"collisions cylinder-box \(\w.* with "
REFUSED = {
    **dict.fromkeys(("aloha_handover", "aloha_pick", "aloha_pick_both"), NETFORCE),
    "aloha_peg_insertion": NETFORCE,
    **dict.fromkeys(("aloha_peg_insertion_student", "panda_lift_cube_vision"), UNLIT),
    "panda_pick_cube_cartesian_vision": UNLIT,
    **dict.fromkeys(("pen_grasp", "pen_spin", "pen_spin_student"), BOXES),
    "real2sim_pick_place": "'geom_dataid' cannot differ between environments in MJX",
}


def test_the_table_of_tasks_is_whole():
    """That of docs/engines.md."""
    assert {*tasks.task_names()} == RUNS | {*REFUSED}


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_is_refused_by_the_name_of_what_mjx_lacks(name):
    kind = load_task(name)
    with pytest.raises(ValueError, match=f"{REFUSED[name]}.*engine=mujoco"):
        Env(kind(kind.Config()), 2, engine="mjx")


@pytest.mark.parametrize("name", sorted(RUNS))
def test_nothing_of_the_other_tasks_is_refused(name):
    """Nothing is compiled here; that they go the same way is tested below."""
    kind = load_task(name)
    task = kind(kind.Config())
    rows = [row.field for row in task.randomize() if not row.is_state]
    mjx_sim.check_model(task.spec().compile())
    mjx_sim.check_per_env((*rows, *kind.varied, *kind.reset_fields))


def test_without_jax_the_engine_is_refused_and_everything_else_imports():
    code = """
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def find(name, *rest):
    return None if name.split('.')[0] in ('jax', 'jaxlib') else real(name, *rest)
PathFinder.find_spec = find
import mujoco
import penspin_style.bridge.brax, penspin_style.bridge.playground, penspin_style.bridge.policy
import penspin_style.render.madrona_renderer, penspin_style.train.run, penspin_style.cli.train
import tasks.panda.lift_cube
from penspin_style.sim.sim import make_sim
model = mujoco.MjModel.from_xml_string('<mujoco/>')
make_sim(model, 1)
try:
    make_sim(model, 1, engine='mjx')
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "engine=mjx needs jax" in done.stdout
    assert "pip install 'penspin_style[jax]'" in done.stdout


# A task.

SMALL = (
    *("task=panda_lift_cube", "sim.engine=mjx", "num_envs=4", "algo.horizon=8"),
    *("algo.num_minibatches=2", "eval_every=1", "eval_episodes=4", "final_episodes=4"),
    *("task.episode_length=12", "learn_threads=1", "loggers=[csv]", "video=false", "device=cpu"),
)
# over 100 control steps of random actions, SI units; a box that just touches the floor is in
# contact or not by the last bit, and so far apart is MuJoCo C from itself, too
TASK_TOLERANCE = {"qpos": 2.5e-4, "qvel": 1e-2, "xpos": 2.5e-4, "sensordata": 3e-5}


@pytest.fixture(scope="module")
def lift():
    kind = load_task("panda_lift_cube")
    return [Env(kind(kind.Config()), 4, seed=3, engine=engine) for engine in ("mjx", "mujoco")]


def test_a_task_goes_the_same_way_from_its_drawn_states(lift):
    mjx, batch = lift
    engine_parity.begin_alike(batch, mjx)
    [worst] = engine_parity.compare([mjx], batch, 100, seed=5)
    assert not mjx.sim.faults.any()
    found = {name: worst[name] for name in TASK_TOLERANCE}
    assert found == {n: pytest.approx(0.0, abs=TASK_TOLERANCE[n]) for n in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["panda_pick_cube", "panda_pick_cube_orientation"])
def test_the_other_tasks_go_the_same_way(name):
    """Half a minute of compiling each; fingers touch the floor, and boxes stand on it."""
    mjx, batch = (engine_parity.make(name, engine, 4, seed=3) for engine in ("mjx", "mujoco"))
    engine_parity.begin_alike(batch, mjx)
    [worst] = engine_parity.compare([mjx], batch, 100, seed=3)
    assert not mjx.sim.faults.any()
    found = {name: worst[name] for name in TASK_TOLERANCE}
    assert found == {n: pytest.approx(0.0, abs=TASK_TOLERANCE[n]) for n in found}


def test_a_task_trains_evaluates_and_resumes_exactly(lift, tmp_path, one_thread, capsys):
    from penspin_style.__main__ import main

    assert math.isfinite(lift[0].sim.compile_seconds)
    whole, parts = (f"out={tmp_path / name}" for name in ("whole", "parts"))
    assert main(["train", *SMALL, whole, "name=a", "total_samples=64"]) == 0
    assert main(["train", *SMALL, parts, "name=a", "total_samples=32"]) == 0
    assert main(["train", *SMALL, parts, "name=a", "total_samples=64", "resume=true"]) == 0
    runs = [tmp_path / name / "panda_lift_cube" / "a" for name in ("whole", "parts")]
    one, other = (sorted((run / "checkpoints").iterdir())[-1] for run in runs)
    assert one.name == other.name
    assert (one / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
    capsys.readouterr()
    policy = str(runs[0] / "policy")
    assert main(["eval", policy, "--episodes", "4", "sim.engine=mjx"]) == 0
    assert "success" in capsys.readouterr().out
