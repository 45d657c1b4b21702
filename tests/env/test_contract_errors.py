"""A mistake in a task is answered with the method, its file and line, what is asked, what came."""

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from penspin_style.env.contract import ContractError, check_class
from penspin_style.env.env import Env
from penspin_style.env.task import Task, TaskConfig
from penspin_style.env.testing import CHECKS
from tests.support.toy import Cart, Config

HERE = __file__
WRONG = {
    "spec": (lambda self: "<mujoco/>", "must return a mujoco.MjSpec, got '<mujoco/>'"),
    "actions": (property(lambda self: ["push"]), "must return a tuple, got ['push']"),
    "observe": (
        lambda self, sim: {"position": torch.zeros(3)},
        "must return {name: tensor (num_envs, ...)} with num_envs = 2, got 'position': (3,) float",
    ),
    "reward": (
        lambda self, sim, action: {"near": torch.zeros(2, 1), "effort": torch.zeros(2)},
        "must return {name: tensor (num_envs,)} with num_envs = 2, got 'near': (2, 1) float32",
    ),
    "start": (
        lambda self, sim: self.memory.update(count=0),
        "must keep tensors (num_envs, ...) in memory, with num_envs = 2, got 'count': 0",
    ),
    "terminated": (
        lambda self, sim: torch.zeros(2),
        "must return a tensor (num_envs,) bool with num_envs = 2, got (2,) float32",
    ),
    "success": (
        lambda self, sim: None,
        "must return a tensor (num_envs,) bool with num_envs = 2, got None",
    ),
}


@pytest.mark.parametrize("method", WRONG)
def test_what_a_method_returns_is_held_against_the_contract(method):
    body, text = WRONG[method]
    task = type("Wrong", (Cart,), {method: body})(Config(randomize=False))
    with pytest.raises(ContractError) as caught:
        env = Env(task, 2)
        env.step_and_maybe_reset(env.current().set("action", torch.zeros(2, 1)))
    assert text in str(caught.value)
    assert re.match(rf"Wrong\.{method} \({re.escape(HERE)}:\d+\) ", str(caught.value))


def test_none_for_terms_is_no_terms():
    kind = type("Wrong", (Cart,), {"reward": lambda self, sim, action: None})
    with pytest.raises(
        ContractError, match=r"must return \{name: tensor \(num_envs,\)\}, got None"
    ):
        Env(kind(Config()), 2)


class Unfinished(Task[Config]):
    Config = Config


class Undecorated(TaskConfig):
    length: float = 1.0


def test_a_class_that_is_not_whole_is_named_with_what_is_missing():
    with pytest.raises(ContractError) as caught:
        check_class(Unfinished, Task, TaskConfig)
    text = str(caught.value)
    assert text.startswith(f"Unfinished ({HERE}:")
    assert "must define actions, apply_action, observe, reset, reward, spec" in text
    assert "actions: Return the meaning of each number of the action." in text
    for change, wanted in (
        ({"Config": None}, "must name its configuration, Config = YourConfig"),
        ({"Config": Undecorated}, "must be a @dataclass, or length is no key of it"),
        ({"units": None}, "must name the unit of each observation term"),
    ):
        with pytest.raises(ContractError, match=wanted):
            check_class(type("Cart", (Cart,), change), Task, TaskConfig)
    check_class(Cart, Task, TaskConfig)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checks_for_a_tasks_own_tests_pass_one_that_is_whole(check):
    check(Cart)


def leaky(self, sim, mask, rng):
    sim.data.qpos[:] = 0.1


def unseeded(self, sim, mask, rng):
    sim.data.qpos[:] = torch.where(mask[:, None], torch.rand(4, 1), sim.data.qpos)


def forgetful(self, sim):
    self.calls = getattr(self, "calls", 0) + 1
    return {**Cart.observe(self, sim), "velocity": sim.data.qvel + self.calls}


@pytest.mark.parametrize(
    ("change", "check", "text"),
    [
        ({"reset": leaky}, "check_a_reset_touches_no_other", "has changed state"),
        ({"reset": unseeded}, "check_a_seed_repeats", "differ in"),
        ({"observe": forgetful}, "check_a_snapshot_continues", "differs in"),
        ({"camera": "front"}, "check_camera", "'front'; the model has ['view']"),
        ({"largest": 0.5}, "check_random_actions_are_healthy", "lead to"),
    ],
)
def test_the_checks_find_what_is_wrong(change, check, text):
    (run,) = (one for one in CHECKS if one.__name__ == check)
    with pytest.raises(AssertionError, match=re.escape(text)):
        run(type("Wrong", (Cart,), change))


@dataclass
class WithConstant(Config):
    legal: ClassVar[tuple[str, ...]] = ("a", "b")


class Constant(Cart):
    Config = WithConstant


def test_a_configuration_may_name_what_is_of_its_class():
    check_class(Constant, Task, TaskConfig)
