"""The operation `turn`: directions and orientations that differ by an angle about any axis."""

import copy
import math

import mujoco
import pytest
import torch

from penspin_style import rotation
from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.randomize import Randomize, Randomizer, per_env_fields

MODEL = mujoco.MjModel.from_xml_string("""
<mujoco>
  <option gravity="0 0 -10"/>
  <worldbody>
    <light name="lamp" pos="0 0 2" dir="0 .6 -.8"/>
    <light name="sun" type="directional" dir="1 0 0"/>
    <camera name="front" pos="2 0 1" xyaxes="0 1 0 -1 0 2"/>
    <body name="hand" euler="30 20 10"><joint name="wrist"/><joint name="roll" axis="1 0 0"/>
      <joint name="yaw" axis="0 1 0"/>
      <geom name="hand" type="box" size=".1 .2 .3"/>
      <camera name="palm" pos="0 .1 0" euler="10 -50 5"/></body>
    <body name="other"><joint name="knee"/><geom name="other" size=".1"/></body>
    <body name="third"><joint name="hip"/><geom name="third" size=".1"/></body>
  </worldbody>
</mujoco>
""")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(*rows, num_envs=5):
    sim = BatchSim(MODEL, num_envs, per_env=per_env_fields(rows), nthread=1)
    return sim, Randomizer(sim, rows, 0.05)


def drawn(*rows, num_envs=5, seed=2, times=1):
    sim, randomizer = make(*rows, num_envs=num_envs)
    rng = seeded(seed)
    for _ in range(times):
        randomizer.reset_model(torch.ones(num_envs, dtype=torch.bool), rng)
    sim.reset()
    sim.forward()
    return sim


def model_value(field, name):
    kind = {"cam": MODEL.camera, "light": MODEL.light}[field.split("_")[0]]
    return torch.from_numpy(getattr(MODEL, field)[kind(name).id].copy())


def rotation_of(quat, base):
    """Angle (n,) rad in [0, pi] and axis (n, 3) of the turn from base to quat, in the parent."""
    turn = rotation.multiply(quat, rotation.conjugate(base).expand_as(quat))
    sine = turn[:, 1:].norm(dim=1)
    return 2 * torch.atan2(sine, turn[:, 0].abs()), turn[:, 1:] / sine[:, None]


@pytest.mark.parametrize("name", ["front", "palm"])
def test_an_orientation_turns_by_its_draw_about_an_axis_of_any_direction(name):
    n = 3000
    sim = drawn(Randomize("cam_quat", name, 0.1, 0.5, "turn"), num_envs=n)
    quat = sim.params.cam_quat[:, MODEL.camera(name).id]
    torch.testing.assert_close(quat.norm(dim=1), torch.ones(n).double(), atol=1e-6, rtol=0.0)
    angle, axis = rotation_of(quat, model_value("cam_quat", name))
    assert angle.min() >= 0.1 - 1e-6 and angle.max() <= 0.5 + 1e-6
    assert angle.min() < 0.102 and angle.max() > 0.498
    assert angle.mean().item() == pytest.approx(0.3, abs=4 * 0.4 / 12**0.5 / n**0.5)
    # axes uniform on the sphere: mean 0, E[a a'] = I / 3; sd of a component 1 / sqrt(3)
    assert axis.mean(dim=0).abs().max() < 4 / (3 * n) ** 0.5
    moments = axis.T @ axis / n
    torch.testing.assert_close(moments, torch.eye(3).double() / 3, atol=0.025, rtol=0.0)
    other = {"front": "palm", "palm": "front"}[name]
    assert (sim.params.cam_quat[:, MODEL.camera(other).id] == model_value("cam_quat", other)).all()


def test_a_direction_turns_by_its_draw_and_keeps_its_length():
    n, a = 3000, 0.8
    sim = drawn(Randomize("light_dir", "lamp", a, a, "turn"), num_envs=n)
    turned = sim.params.light_dir[:, MODEL.light("lamp").id].double()
    nominal = model_value("light_dir", "lamp")
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(n).double(), atol=1e-6, rtol=0.0)
    cosine = turned @ nominal
    assert torch.acos(cosine.min()).item() <= a + 1e-4  # axis across the direction
    assert torch.acos(cosine.min()).item() > a - 0.01
    # Rodrigues with c the cosine between axis and direction, uniform in [-1, 1] (Archimedes):
    # cos = c^2 + (1 - c^2) cos a, in the mean 1/3 + 2/3 cos a
    assert cosine.mean().item() == pytest.approx(1 / 3 + 2 / 3 * math.cos(a), abs=0.01)
    assert cosine.max() > 1 - 1e-4


def test_each_object_turns_by_itself():
    sim = drawn(Randomize("light_dir", ".*", 0.2, 0.3, "turn"), num_envs=4)
    for i in range(2):
        value = sim.params.light_dir[:, i]
        assert len({tuple(row.tolist()) for row in value}) == 4
    angle, _ = rotation_of(
        drawn(Randomize("cam_quat", ".*", 0.2, 0.4, "turn"), num_envs=4).params.cam_quat[:, 0],
        model_value("cam_quat", "front"),
    )
    assert len(set(angle.tolist())) == 4


def test_a_shared_draw_is_one_angle_for_all_objects_of_an_environment():
    sim = drawn(Randomize("cam_quat", ".*", 0.1, 0.5, "turn", shared=True), num_envs=6)
    angles = [
        rotation_of(sim.params.cam_quat[:, MODEL.camera(n).id], model_value("cam_quat", n))[0]
        for n in ("front", "palm")
    ]
    torch.testing.assert_close(*angles, atol=1e-6, rtol=0.0)
    assert len(set(angles[0].tolist())) == 6


def test_turns_never_accumulate():
    for row in (
        Randomize("cam_quat", "palm", 0.0, 0.1, "turn"),
        Randomize("light_dir", "lamp", 0.0, 0.1, "turn"),
    ):
        sim = drawn(row, num_envs=20, times=300)  # a random walk would be 1 rad off
        if row.field == "cam_quat":
            value = sim.params.cam_quat[:, MODEL.camera("palm").id]
            angle = rotation_of(value, model_value("cam_quat", "palm"))[0]
        else:
            value = sim.params.light_dir[:, MODEL.light("lamp").id].double()
            angle = torch.acos((value @ model_value("light_dir", "lamp")).clamp(max=1.0))
        assert angle.max() <= 0.1 + 1e-4
        assert (value.norm(dim=1) - 1.0).abs().max() < 1e-6


def test_only_the_masked_environments_turn_again():
    sim, randomizer = make(Randomize("cam_quat", ".*", 0.1, 0.5, "turn"), num_envs=4)
    rng = seeded()
    randomizer.reset_model(torch.ones(4, dtype=torch.bool), rng)
    before = sim.params.cam_quat.clone()
    mask = torch.tensor([True, False, True, False])
    randomizer.reset_model(mask, rng)
    same = (sim.params.cam_quat == before).flatten(1).all(dim=1)
    assert torch.equal(same, ~mask)


def test_the_engine_looks_and_shines_along_what_was_drawn():
    rows = (
        Randomize("cam_quat", ".*", 0.1, 0.9, "turn"),
        Randomize("light_dir", ".*", 0.1, 0.9, "turn"),
    )
    sim = drawn(*rows, num_envs=3)
    for env in range(3):
        model = copy.copy(MODEL)
        model.cam_quat[:] = sim.params.cam_quat[env].numpy()
        model.light_dir[:] = sim.params.light_dir[env].numpy()
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        expected = torch.from_numpy(data.cam_xmat.reshape(-1, 3, 3)).float()
        torch.testing.assert_close(sim.data.cam_xmat[env], expected, atol=1e-6, rtol=0.0)
        shines = torch.from_numpy(data.light_xdir.copy()).float()
        torch.testing.assert_close(sim.data.light_xdir[env], shines, atol=1e-6, rtol=0.0)


def test_gravity_can_turn():
    gravity = drawn(Randomize("opt.gravity", low=0.3, high=0.3, operation="turn")).params[
        "opt.gravity"
    ]
    torch.testing.assert_close(gravity.norm(dim=1), torch.full((5,), 10.0).double())
    assert (gravity[:, 2] >= -10.0).all() and (gravity[:, 2] <= -10 * math.cos(0.3) + 1e-6).all()
    assert len(set(gravity[:, 0].tolist())) == 5


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        (Randomize("geom_rgba", "hand", column=slice(0, 2), operation="turn"), 2),
        (Randomize("cam_fovy", "front", operation="turn"), 1),
        (Randomize("geom_friction", "hand", column=1, operation="turn"), 1),
        (Randomize("body_mass", "hand|other|third", operation="turn"), 1),
        (Randomize("qpos", "wrist|roll|yaw|knee", operation="turn"), 1),
    ],
)
def test_what_is_no_direction_cannot_turn(row, numbers):
    with pytest.raises(
        ValueError, match=rf"Randomize\({row.field}\): turn is .* not for {numbers} numbers"
    ):
        make(row)
