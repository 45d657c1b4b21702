"""What a task varies itself: models by `vary`, within a control step by `substeps`."""

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from tests.support.toy import FORCE, Cart, Config, substep

WALL = 0.7  # m, where its face stands
WIDE = 0.5  # m, half width of the wide carts


class VariedCart(Cart):
    """Carts, every second one so wide that a wall pushes it; pushes change in every substep.

    **Success**: as the cart's.
    """

    varied = ("geom_size", "body_inertia")

    def __init__(self, cfg):
        super().__init__(cfg)
        self.said = []

    def spec(self):
        spec = super().spec()
        spec.geom("cart").contype = 1
        shape = {"type": mujoco.mjtGeom.mjGEOM_BOX, "size": [0.1, 0.1, 0.1]}
        spec.worldbody.add_geom(name="wall", pos=[WALL + 0.1, 0, 0], **shape)
        return spec

    def vary(self, sim, rng):
        """Note the masses that the table has drawn; draw widths."""
        self.said.append(("vary", sim.params.dof_damping.clone()))
        cart = sim.model.geom("cart").id
        draw = 0.01 * torch.rand(sim.num_envs, generator=rng)
        wide = torch.arange(sim.num_envs) % 2 == 1
        sim.params.geom_size[:, cart, 0] = draw + torch.where(wide, WIDE, 0.1)

    def reset(self, sim, mask, rng):
        super().reset(sim, mask, rng)
        self.said.append(("reset", None))

    def substeps(self, sim, n, rng):
        """Push with the action in the first substep alone."""
        self.said.append(("substeps", sim.data.ctrl.clone()))
        ctrl = torch.zeros(n, *sim.data.ctrl.shape)
        ctrl[0] = self.memory["action"]
        return {"ctrl": ctrl}


class Noisy(VariedCart):
    """Carts whose pushes are noise. **Success**: as the cart's."""

    def substeps(self, sim, n, rng):
        return {"ctrl": torch.randn(n, *sim.data.ctrl.shape, generator=rng)}


def make(num_envs=4, *, kind=VariedCart, seed=1, engine="auto", **config):
    return Env(kind(Config(**config)), num_envs, seed=seed, engine=engine)


def push(env, *actions):
    action = torch.tensor(actions)[:, None]
    return env.step(env.current().set("action", action))["next"]


def at_rest(env, *positions):
    env.sim.data.qpos[:, 0] = torch.tensor(positions).to(env.sim.data.qpos)
    env.sim.data.qvel.zero_()
    env.sim.data.xfrc_applied.zero_()
    env.sim.forward()


def width(env):
    return env.sim.params.geom_size[:, env.model.geom("cart").id, 0]


# vary


def test_models_vary_once_after_the_startup_rows_and_before_the_first_reset():
    env = make()
    (name, damping), *later = env.task.said
    assert name == "vary"
    assert torch.equal(damping, env.sim.params.dof_damping)
    assert len(damping.unique()) == 4  # had been drawn
    for _ in range(3):
        push(env, 1.0, 1.0, 1.0, 1.0)
        env.reset()
    assert "vary" not in {name for name, _ in later} | {name for name, _ in env.task.said[1:]}


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_contacts_know_of_varied_sizes(engine):
    """At 0.5 m from the wall's middle the narrow carts' spheres are far from the wall's."""
    env = make(engine=engine)
    at_rest(env, *[WALL - 0.4] * 4)
    push(env, 0.0, 0.0, 0.0, 0.0)
    moved = env.sim.data.qpos[:, 0] < WALL - 0.41
    assert moved.tolist() == [False, True, False, True]


def test_bounds_and_inverse_weights_follow_the_sizes_and_masses_of_each_world():
    env = make()
    cart, body = env.model.geom("cart").id, env.model.body("cart").id
    for i in range(4):
        model = env.sim.batch.get_model(i)
        size, mass = model.geom_size[cart], float(env.sim.params.body_mass[i, body])
        assert size[0] == float(width(env)[i])
        assert model.geom_rbound[cart] == pytest.approx(np.linalg.norm(size))
        assert model.body_invweight0[body, 0] == pytest.approx(1.0 / mass)


def test_nothing_varies_where_nothing_is_randomised():
    env = make(randomize=False)
    assert [name for name, _ in env.task.said] == ["reset"]
    assert "geom_size" not in env.sim.params
    env.set_seed(4)
    assert [name for name, _ in env.task.said] == ["reset"]


def test_a_seed_determines_what_a_task_varies():
    one, other = make(seed=1), make(seed=2)
    assert (width(one) != width(other)).all()
    for env in (one, other):
        env.set_seed(7)
        env.reset()
    assert torch.equal(width(one), width(other))
    assert torch.equal(width(one), width(make(seed=7)))


def test_what_was_varied_comes_back_with_a_checkpoint_and_so_do_its_bounds():
    """Environments 0 and 2 of the checkpoint are narrow, in the other all are made wide."""
    env, other = make(seed=1), make(seed=2)
    width(other)[:] = WIDE
    other.sim.set_const()
    before = len(other.task.said)
    other.load_state_dict(env.state_dict())
    assert len(other.task.said) == before
    assert torch.equal(width(env), width(other))
    for each in (env, other):
        at_rest(each, *[WALL - 0.4] * 4)
    a, b = (push(each, 0.5, 0.5, -0.5, -0.5) for each in (env, other))
    assert torch.equal(a["teacher"], b["teacher"])
    width(env)[:] = 0.1
    env.sim.set_const()
    env.load_state_dict(other.state_dict())  # and bounds that must grow
    for each in (env, other):
        at_rest(each, *[WALL - 0.4] * 4)
    a, b = (push(each, 0.5, 0.5, -0.5, -0.5) for each in (env, other))
    assert torch.equal(a["teacher"], b["teacher"])


class Bare(VariedCart):
    """Carts without a table: nothing but `vary` asks for constants. **Success**: as the cart's."""

    def randomize(self):
        return []

    def vary(self, sim, rng):
        cart = sim.model.geom("cart").id
        sim.params.geom_size[:, cart, 0] = WIDE


def test_bounds_come_back_also_where_the_table_is_empty():
    env, other = make(kind=Bare), make(kind=Bare)
    width(other)[:] = 0.1
    other.sim.set_const()
    other.load_state_dict(env.state_dict())
    for each in (env, other):
        at_rest(each, *[WALL - 0.4] * 4)
    a, b = (push(each, 0.0, 0.0, 0.0, 0.0) for each in (env, other))
    assert torch.equal(a["teacher"], b["teacher"])
    assert (other.sim.data.qpos < WALL - 0.41).all()


# substeps


def test_inputs_of_substeps_act_in_the_substeps_that_they_are_for():
    env = make(2, randomize=False)
    at_rest(env, 0.0, -0.5)
    push(env, 1.0, -0.5)
    expected = []
    for x, action in ((0.0, 1.0), (-0.5, -0.5)):
        x, v = substep(x, 0.0, action, n=1)
        expected.append(substep(x, v, 0.0, n=4)[0])
    assert env.sim.data.qpos[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[0] == pytest.approx(5e-3, rel=0.5)  # 0.01 s of FORCE, not 0.05 s
    assert FORCE == 8.0


def test_substeps_are_asked_once_a_control_step_after_the_action_is_applied():
    env = make(2, randomize=False)
    env.task.said.clear()
    push(env, 0.25, -0.5)
    ((name, ctrl),) = env.task.said
    assert name == "substeps"
    assert ctrl.flatten().tolist() == [0.25, -0.5]


def test_noise_within_substeps_comes_from_the_environments_seed_and_survives_a_checkpoint():
    one, twin, other = (make(kind=Noisy, seed=seed) for seed in (3, 3, 4))
    first = push(one, 0.0, 0.0, 0.0, 0.0)["teacher"]
    assert torch.equal(first, push(twin, 0.0, 0.0, 0.0, 0.0)["teacher"])
    assert not torch.equal(first, push(other, 0.0, 0.0, 0.0, 0.0)["teacher"])
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        a, b = (push(env, 0.0, 0.0, 0.0, 0.0)["teacher"] for env in (one, other))
        assert torch.equal(a, b)
