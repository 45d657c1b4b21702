"""What a task itself says is right, on its way to a student."""

import pytest
import torch
from torchrl.envs import check_env_specs

from penspin_style.env.env import Env
from tests.support.rail import Config, Rail

HALF = 0.5


class Told(Rail):
    """Left of the middle the task says: half speed to the right."""

    def label(self, sim):
        left = sim.data.qpos < 0.0
        return torch.where(left, HALF, float("nan")).float()


class Wrong(Rail):
    def label(self, sim):
        return torch.zeros(1, 1)


def make(kind=Told, **settings):
    return Env(kind(Config()), 3, seed=1, **settings)


def walk(env, *actions):
    root = env.current()
    for action in actions:
        td = root.set("action", torch.tensor([[action], [-action], [0.0]]))
        _, root = env.step_and_maybe_reset(td)
    return root


def test_a_root_holds_the_tasks_label_of_its_own_state():
    env = make(labels=True)
    root = walk(env, 1.0, 1.0)
    place = env.sim.data.qpos
    assert (place[:, 0] > 0).tolist() == [True, False, False] and place[1, 0] < 0
    label = root["task_label"]
    assert label[0].isnan().all() and label[1].item() == HALF and label[2].isnan().all()
    assert torch.equal(env.rollout(1)["task_label"][:, 0].isnan()[:, 0], place.new_ones(3) > 0)


def test_the_label_is_of_the_new_episode_where_one_has_ended():
    env = make(labels=True)
    while env.sim.data.qpos[1, 0] > -0.5:
        assert walk(env, 1.0)["task_label"][1].isnan().item() == (env.sim.data.qpos[1, 0] >= 0)
    while env.sim.data.qpos[1, 0] != 0.0:  # until the cart falls off the end, and begins anew
        root = walk(env, 1.0)
    assert root["task_label"].isnan().all()


def test_nobody_is_asked_for_labels_that_are_not_wanted_or_not_there():
    assert "task_label" not in make().current().keys()  # noqa: SIM118
    assert "task_label" not in make(Rail, labels=True).current().keys()  # noqa: SIM118
    check_env_specs(make(labels=True))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"must be \(3, 1\) float32, got \(1, 1\)"):
        make(Wrong, labels=True)
