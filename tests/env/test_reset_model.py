"""What a task writes into the model at each reset; draws start from it, checkpoints hold it."""

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.sim.perturb import Perturbation
from penspin_style.sim.randomize import Randomize
from tests.support.toy import Cart, Config

MASSES = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)


class LoadedCart(Cart):
    """Each episode has a load of its own; varied by a tenth. **Success**: the cart's."""

    reset_fields = ("body_mass", "body_inertia")

    def randomize(self):
        return [Randomize("body_mass", names="cart", operation="scale", low=0.9, high=1.1)]

    def start(self, sim):
        super().start(sim)
        self.cart = sim.model.body("cart").id
        self.memory["load"] = torch.zeros(sim.num_envs, dtype=torch.long)

    def reset_model(self, sim, mask, rng):
        draw = torch.randint(len(MASSES), (sim.num_envs,), generator=rng)
        load = self.memory["load"]
        load.copy_(torch.where(mask, draw, load))
        for name, value in (("body_mass", MASSES[load]), ("body_inertia", MASSES[load][:, None])):
            field = sim.params[name][:, self.cart]
            where = mask if field.dim() == 1 else mask[:, None]
            field.copy_(torch.where(where, value.expand_as(field).to(field.dtype), field))


def make(num_envs=32, *, kind=LoadedCart, seed=1, engine="auto", perturb=(), **config):
    return Env(kind(Config(**config)), num_envs, seed=seed, engine=engine, perturb=perturb)


def mass(env):
    return env.sim.params.body_mass[:, env.task.cart].clone()


def load(env):
    return MASSES[env.task.memory["load"]].to(env.sim.params.body_mass.dtype)


@pytest.mark.parametrize("engine", ["mujoco", "warp"])
def test_the_table_scales_what_the_task_has_written_and_never_accumulates(engine):
    env = make(engine=engine)
    for _ in range(20):
        ratio = mass(env) / load(env)
        assert ratio.min() >= 0.9 - 1e-6 and ratio.max() <= 1.1 + 1e-6
        assert len(ratio.unique()) > 25
        inertia = env.sim.params.body_inertia[:, env.task.cart, 0]
        torch.testing.assert_close(inertia, mass(env), rtol=1e-5, atol=0)
        assert len(load(env).unique()) == 3
        env.reset()


def test_constants_follow_what_was_written():
    env = make(8)
    for i in range(8):
        weight = env.sim.batch.get_model(i).body_invweight0[env.task.cart, 0]
        assert weight == pytest.approx(1.0 / float(mass(env)[i]))
    env = make(8, randomize=False)  # where there is no row that asks for them
    assert torch.equal(mass(env), load(env))
    for i in range(8):
        weight = env.sim.batch.get_model(i).body_invweight0[env.task.cart, 0]
        assert weight == pytest.approx(1.0 / float(mass(env)[i]))


def test_environments_that_are_not_reset_keep_what_they_have():
    env = make(6)
    before, mask = mass(env), torch.tensor([True, False] * 3)
    for _ in range(5):
        env.reset(env.current().set("_reset", mask[:, None]))
    assert torch.equal(mass(env)[~mask], before[~mask])
    assert (mass(env)[mask] != before[mask]).all()


def test_perturbations_act_on_what_the_task_has_written():
    env = make(randomize=False, perturb=[Perturbation("body_mass", "cart", 2.0)])
    for _ in range(3):
        assert torch.equal(mass(env), 2.0 * load(env))
        env.reset()


def test_a_checkpoint_of_the_other_engine_is_taken():
    env, other = make(4, seed=1), make(4, seed=2, engine="warp")
    other.load_state_dict(env.state_dict())
    torch.testing.assert_close(mass(other).double(), mass(env))
    twin = make(4, seed=3)
    twin.load_state_dict(env.state_dict())
    action = torch.full((4, 1), 0.5)
    for _ in range(3):
        a, b = (each.step(each.current().set("action", action))["next"] for each in (env, twin))
        assert torch.equal(a["teacher"], b["teacher"])


class Contradictory(LoadedCart):
    """Draws at startup what resets overwrite. **Success**: as the cart's."""

    def randomize(self):
        return [Randomize("body_mass", names="cart", low=1.0, high=2.0, when="startup")]


def test_a_startup_row_of_what_resets_overwrite_is_refused():
    with pytest.raises(ValueError, match=r"Randomize\(body_mass\).*draw it at reset"):
        make(kind=Contradictory)
