"""Shifts against the same draws without them: what is drawn, times or plus what the row says."""

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.sim.perturb import Perturbation

PEN = "pen_spin"


def make(*rows, task=PEN, num_envs=3, seed=1, **config):
    kind = load_task(task)
    return Env(kind(kind.Config(**config)), num_envs, seed=seed, nthread=1, perturb=rows)


def params(env, field):
    return env.sim.params[field].clone()


def same_but(plain, other, field):
    """Whether all other model fields are alike."""
    names = [n for n in dir(plain.sim.params) if n != field]
    return all(torch.equal(plain.sim.params[n], other.sim.params[n]) for n in names)


def test_no_shift_changes_nothing():
    plain, other = make(), make(Perturbation("geom_friction", "pen", 1.0))
    action = 0.3 * torch.ones(plain.action_spec.shape)
    for _ in range(5):
        for env in (plain, other):
            env.step(env.current().set("action", action))
    assert torch.equal(plain.sim.get_state(), other.sim.get_state())


def test_what_is_drawn_once_is_shifted_once_however_often_an_episode_begins():
    plain, other = make(), make(Perturbation("geom_friction", "pen", 0.25, column=0))
    pen = plain.model.geom("pen").id
    for _ in range(3):
        drawn, got = params(plain, "geom_friction"), params(other, "geom_friction")
        assert torch.equal(got[:, pen, 0], 0.25 * drawn[:, pen, 0])
        got[:, pen, 0] = drawn[:, pen, 0]
        assert torch.equal(got, drawn)
        assert same_but(plain, other, "geom_friction")
        mask = torch.tensor([True, False, True])
        for env in (plain, other):
            env._restart(mask)


def test_what_is_drawn_at_every_reset_is_shifted_every_time():
    plain, other = make(), make(Perturbation("actuator_gainprm", value=0.5, column=0))
    seen = []
    for _ in range(3):
        gain = params(plain, "actuator_gainprm")[..., 0]
        assert torch.equal(params(other, "actuator_gainprm")[..., 0], 0.5 * gain)
        # the servo's return term follows, so that it still rests at its target
        assert torch.equal(params(other, "actuator_biasprm")[..., 1], -0.5 * gain)
        damping = params(plain, "actuator_biasprm")[..., 2]
        assert torch.equal(params(other, "actuator_biasprm")[..., 2], damping)
        seen.append(gain)
        for env in (plain, other):
            env.reset()
    assert not torch.equal(seen[0], seen[1])


def test_a_seed_draws_the_startup_rows_anew_without_the_shift():
    plain, other = make(), make(Perturbation("body_mass", "pen", 3.0))
    pen = plain.model.body("pen").id
    for seed in (5, 6):
        for env in (plain, other):
            env.set_seed(seed)
            env.reset()
        assert torch.equal(
            params(other, "body_mass")[:, pen], 3 * params(plain, "body_mass")[:, pen]
        )


def test_a_mass_takes_its_inertia_along():
    plain, other = make(), make(Perturbation("body_mass", "pen", 0.05, "abs"))
    pen = plain.model.body("pen").id
    drawn = params(plain, "body_mass")[:, pen, None]
    assert (params(other, "body_mass")[:, pen] == 0.05).all()
    expected = params(plain, "body_inertia")[:, pen] * 0.05 / drawn
    assert torch.allclose(params(other, "body_inertia")[:, pen], expected, rtol=1e-6)


def test_shifts_of_one_field_act_one_after_the_other():
    rows = [
        Perturbation("body_mass", "pen", 0.02, "abs"),
        Perturbation("body_mass", "pen", 0.01, "add"),
    ]
    other = make(*rows, Perturbation("body_mass", "pen", 2.0))
    assert params(other, "body_mass")[:, other.model.body("pen").id].tolist() == [0.06] * 3


def test_a_pen_in_a_shifted_world_without_randomisation_weighs_what_it_should():
    other = make(Perturbation("body_mass", "pen", 2.0), randomize=False)
    pen = other.model.body("pen").id
    assert other.sim.data.xfrc_applied[:, pen, 2].tolist() == pytest.approx([-9.81 * 0.03] * 3)


def test_gravity_can_be_tilted():
    """The cube, which the floor's friction of 1 holds up to 45 degrees, slides at 63."""
    tilt = Perturbation("opt.gravity", value=(20.0, 0.0, 0.0), operation="add")
    moved = []
    for rows in ((), (tilt,)):
        env = make(*rows, task="panda_lift_cube", num_envs=1)
        at = int(env.model.joint("box").qposadr[0])
        begun = env.sim.data.qpos[0, at].item()
        for _ in range(2):
            env.step(env.current().set("action", torch.zeros(1, 4)))
        moved.append(env.sim.data.qpos[0, at].item() - begun)
    assert env.sim.params["opt.gravity"].tolist() == [[20.0, 0.0, -9.81]]
    assert abs(moved[0]) < 1e-3
    # s = a t^2 / 2 with a between 20 - 1.2 * 9.81 and 20 - 0.7 * 9.81 m/s^2, after 0.1 s
    assert 0.03 < moved[1] < 0.08


def test_a_camera_can_be_turned_and_moved():
    turn = 0.2  # rad about the world's z: the camera looks along another direction
    kind, where = "panda_lift_cube_vision", "front"
    rows = [
        Perturbation("cam_quat", where, (0.0, 0.0, turn), "turn"),
        Perturbation("cam_pos", where, (0.0, 0.1, 0.0), "add"),
    ]
    plain, other = (make(*r, task=kind, num_envs=1) for r in ((), rows))
    at = plain.model.camera(where).id
    moved = params(other, "cam_pos")[0, at] - params(plain, "cam_pos")[0, at]
    assert moved.tolist() == pytest.approx([0.0, 0.1, 0.0], abs=1e-7)
    p, q = params(plain, "cam_quat")[0, at], params(other, "cam_quat")[0, at]
    # the angle between two unit quaternions is twice that of their product
    assert 2 * torch.arccos((p * q).sum()).item() == pytest.approx(turn, abs=1e-4)
    assert not torch.equal(plain.images()["front_rgb"], other.images()["front_rgb"])
    seen = (plain.images()[f"front_{k}"].float() for k in ("rgb", "depth"))
    moved = (other.images()[f"front_{k}"].float() for k in ("rgb", "depth"))
    for before, after in zip(seen, moved, strict=True):
        assert (before - after).abs().mean() > 0


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"operation": "gain"}, "operation must be one of"),
        ({"field": "qpos"}, "perturb a field of the model"),
        ({"value": float("nan")}, "value must be finite"),
        ({"operation": "turn"}, "three numbers"),
        ({"names": "pencil"}, "no name matches 'pencil'"),
        ({"value": (1.0, 2.0)}, r"by \(1.0, 2.0\) does not fit rows of 3 numbers"),
        ({"column": 9}, "column 9 is not in"),
        ({"operation": "turn", "value": (0.0, 0.0, 1.0), "column": 0}, "does not fit"),
        ({"field": "geom_fiction"}, "geom_fiction"),
    ],
)
def test_an_invalid_perturbation_is_refused(fields, complaint):
    with pytest.raises((ValueError, KeyError, AttributeError), match=complaint):
        make(Perturbation(**{"field": "geom_friction", "names": "pen", **fields}))
