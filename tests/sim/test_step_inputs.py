"""`Sim.step(n, inputs)`: state fields that take new values before every substep."""

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.sim import INPUT_FIELDS
from penspin_style.sim.warp_sim import WarpSim
from tests.support import scenes

NUM, NSTEP = 3, 4
STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)


def draw_inputs(model, call):
    """Controls that jump from substep to substep, and forces on every degree of freedom."""
    ctrl = torch.stack([scenes.controls(model, NUM, 40 * (NSTEP * call + i)) for i in range(NSTEP)])
    rng = torch.Generator().manual_seed(call)
    force = 0.05 * torch.randn(NSTEP, NUM, model.nv, generator=rng, dtype=torch.float64)
    return {"ctrl": ctrl, "qfrc_applied": force}


@pytest.fixture(scope="module")
def loop():
    """30 calls as a loop of mj_step, an MjData a world: [state rows (NUM, nstate)]."""
    model = scenes.stack()
    worlds = [mujoco.MjData(model) for _ in range(NUM)]
    rows, contacts = [], 0
    for call in range(30):
        inputs = {k: v.numpy() for k, v in draw_inputs(model, call).items()}
        for i in range(NSTEP):
            for n, world in enumerate(worlds):
                world.ctrl[:] = inputs["ctrl"][i, n]
                world.qfrc_applied[:] = inputs["qfrc_applied"][i, n]
                mujoco.mj_step(model, world)
                contacts += world.ncon
        row = np.empty((NUM, mujoco.mj_stateSize(model, STATE)))
        for n, world in enumerate(worlds):
            mujoco.mj_getState(model, world, row[n], STATE)
        rows.append(row)
    assert contacts > 100
    return rows


@pytest.mark.parametrize("nthread", [1, 3])
def test_inputs_equal_a_loop_of_mj_step_that_sets_them_bit_for_bit(loop, nthread):
    sim = BatchSim(scenes.stack(), NUM, nthread=nthread)
    for call, row in enumerate(loop):
        sim.step(NSTEP, draw_inputs(sim.model, call))
        assert np.array_equal(sim.get_state().numpy(), row), call


def test_every_field_of_inputs_may_change_and_their_order_means_nothing():
    def edit(spec):
        pair = {"name1": "box", "name2": "hand", "objtype": mujoco.mjtObj.mjOBJ_BODY}
        spec.add_equality(type=mujoco.mjtEq.mjEQ_WELD, **pair)

    model = scenes.gripper(edit)
    rng = torch.Generator().manual_seed(1)
    inputs = {}
    for name in reversed(INPUT_FIELDS):
        shape = np.shape(getattr(mujoco.MjData(model), name))
        draw = torch.randn(NSTEP, 1, *shape, generator=rng)
        inputs[name] = (draw > 0).float() if name == "eq_active" else 0.1 * draw
    assert all(values.numel() for values in inputs.values())
    data, sim = mujoco.MjData(model), BatchSim(model, 1)
    for i in range(NSTEP):
        for name, values in inputs.items():
            getattr(data, name)[:] = values[i, 0].numpy()
        mujoco.mj_step(model, data)
    sim.step(NSTEP, inputs)
    row = np.empty(mujoco.mj_stateSize(model, STATE))
    mujoco.mj_getState(model, data, row, STATE)
    assert np.array_equal(sim.get_state()[0].numpy(), row)


def test_derived_fields_are_current_after_a_step_with_inputs():
    sim = BatchSim(scenes.stack(), NUM)
    height = sim.data.xpos
    for call in range(5):
        sim.step(NSTEP, draw_inputs(sim.model, call))
    seen = height.clone()
    sim.forward()
    assert torch.equal(seen, height)


@pytest.fixture(scope="module")
def warp():
    return WarpSim(scenes.stack(), NUM, "cpu")


def test_warp_follows_mujoco_and_reads_new_contents_at_every_call(warp):
    """The first call runs kernel by kernel, the second is captured, the rest replay it.

    float32 against float64, boxes that fall on each other: 60 substeps differed by 2e-7.
    """
    exact = BatchSim(warp.model, NUM)
    warp.reset()
    warp.forward()
    for call in range(15):
        inputs = draw_inputs(exact.model, call)
        exact.step(NSTEP, inputs)
        warp.step(NSTEP, inputs)
        np.testing.assert_allclose(warp.data.qpos, exact.data.qpos, atol=2e-6, err_msg=str(call))
        np.testing.assert_allclose(warp.data.ctrl, inputs["ctrl"][-1], atol=1e-6)
    assert warp.data.qvel.abs().max() > 0.1


def test_on_warp_other_sets_of_inputs_have_graphs_of_their_own(warp):
    """The same calls in another order of kinds: none replays what another one captured."""
    exact = BatchSim(warp.model, NUM)
    warp.reset()
    warp.forward()
    for call in range(12):
        inputs = draw_inputs(exact.model, call)
        chosen = [{}, inputs, {"ctrl": inputs["ctrl"]}, None][call % 4]
        for sim in (exact, warp):
            sim.step(NSTEP, chosen)
        np.testing.assert_allclose(warp.data.qpos, exact.data.qpos, atol=2e-6, err_msg=str(call))
        for name in ("ctrl", "qfrc_applied"):
            np.testing.assert_allclose(warp.data[name], exact.data[name], atol=1e-6)


@pytest.fixture(params=["mujoco", "warp"])
def sim(request, warp):
    return warp if request.param == "warp" else BatchSim(scenes.stack(), NUM)


def test_a_field_keeps_its_last_values_and_others_stay(sim):
    inputs = draw_inputs(sim.model, 3)
    sim.reset()
    sim.data.ctrl.fill_(0.25)
    force = {"qfrc_applied": inputs["qfrc_applied"]}
    sim.step(NSTEP, force)
    np.testing.assert_allclose(sim.data.qfrc_applied, force["qfrc_applied"][-1], atol=1e-7)
    assert (sim.data.ctrl == 0.25).all()
    sim.step(2)
    np.testing.assert_allclose(sim.data.qfrc_applied, force["qfrc_applied"][-1], atol=1e-7)


def test_inputs_are_read_and_not_kept(sim):
    inputs = draw_inputs(sim.model, 3)
    sim.step(NSTEP, inputs)
    last = sim.data.ctrl.clone()
    for values in inputs.values():
        values.zero_()
    assert torch.equal(sim.data.ctrl, last)
    sim.data.ctrl.fill_(0.5)  # and the caller's memory is not the simulation's
    assert not inputs["ctrl"].any()


@pytest.mark.parametrize("substep", [0, NSTEP - 1])
def test_a_nan_among_inputs_faults_its_own_simulation_alone(sim, substep):
    inputs = draw_inputs(sim.model, 5)
    sim.reset()
    sim.step(NSTEP, inputs)
    expected = sim.get_state()
    assert not sim.faults.any()
    inputs["qfrc_applied"][substep, 1, 0] = float("nan")
    sim.reset()
    sim.step(NSTEP, inputs)
    assert (sim.faults != 0).tolist() == [False, True, False]
    assert torch.equal(sim.get_state()[[0, 2]], expected[[0, 2]])
    sim.reset()
    sim.faults.zero_()
    sim.step(NSTEP, draw_inputs(sim.model, 5))
    assert not sim.faults.any()
    assert torch.equal(sim.get_state(), expected)


def test_invalid_inputs_are_refused_before_anything_moves(sim):
    sim.reset()
    before = sim.get_state()
    for name in ("xpos", "qpos", "sparkle"):  # derived, the engine's own, unknown
        with pytest.raises(ValueError, match=rf"must be among ctrl, qfrc_.*, got '{name}'"):
            sim.step(NSTEP, {name: torch.zeros(NSTEP, NUM, 3)})
    shape = rf"\({NSTEP}, {NUM}, {sim.model.nu}\)"
    for wrong in ((NSTEP - 1, NUM, 1), (NUM, 1), (NSTEP, 1, 1), (NSTEP, NUM, 2)):
        got = rf"\({', '.join(map(str, wrong))}\)"
        with pytest.raises(ValueError, match=rf"inputs\['ctrl'\] must be {shape}, got {got}"):
            sim.step(NSTEP, {"ctrl": torch.zeros(wrong)})
    assert torch.equal(sim.get_state(), before)


def test_inputs_reach_the_masked_simulations_alone():
    sim, exact = (BatchSim(scenes.stack(), NUM, nthread=1) for _ in range(2))
    inputs = draw_inputs(sim.model, 9)
    mask = torch.arange(NUM) % 2 == 0
    before = sim.data.qpos.clone()
    sim.step(NSTEP, inputs, mask)
    exact.step(NSTEP, inputs)
    assert torch.equal(sim.data.qpos[mask], exact.data.qpos[mask])
    assert torch.equal(sim.data.qpos[~mask], before[~mask])
