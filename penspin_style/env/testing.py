"""The contract of all tasks as checks, for a task's own tests.

    from penspin_style.env.testing import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_the_contract_of_all_tasks(check):
        check(TASK)

Each takes a task's class and raises an AssertionError that says what is wrong. `penspin new` writes
such a test.
"""

import math
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.envs.utils import check_env_specs

from penspin_style.env.env import Env
from penspin_style.env.task import Task

_STEPS = 20
_ENVS = 4


def check_specs(task: type[Task[Any]]) -> None:
    """Check that what the environment gives is what its TorchRL specs say."""
    check_env_specs(_make(task), seed=0)


def check_units_and_limits(task: type[Task[Any]]) -> None:
    """Check that each number that goes in or out has a unit, and each action sane limits."""
    env = _make(task)
    for group in env.inputs:
        for feature in group.features:
            assert feature.unit, f"the observation term {feature.name} has no unit"
    names = [channel.name for channel in env.task.actions]
    assert len(set(names)) == len(names), f"two actions have one name: {names}"
    for channel in env.task.actions:
        assert channel.unit, f"the action {channel.name} has no unit"
        legal = math.isfinite(channel.low) and math.isfinite(channel.high)
        assert legal and channel.low < channel.high, f"the limits of {channel.name} are {channel}"
        assert channel.scale > 0, f"the scale of {channel.name} must be > 0, it is {channel.scale}"
        assert channel.mode in ("delta", "absolute"), f"the mode of {channel.name}: {channel.mode}"
    for joint in env.task.joints:
        assert joint.low <= joint.default <= joint.high, f"the default of {joint.name}: {joint}"


def check_camera(task: type[Task[Any]]) -> None:
    """Check that the camera of videos is there."""
    model = _make(task).model
    names = [model.camera(i).name for i in range(model.ncam)]
    assert task.camera in names, f"videos need the camera {task.camera!r}; the model has {names}"


def check_random_actions_are_healthy(task: type[Task[Any]]) -> None:
    """Check that no random action leads to a fault, as a NaN or an engine's warning."""
    env = _make(task)
    for action in _actions(env, 5 * _STEPS):
        fault = _step(env, action)["next", "fault"]
        assert not fault.any(), f"random actions lead to {env.faults}"


def check_a_seed_repeats(task: type[Task[Any]]) -> None:
    """Check that the seed decides everything: draws come from `rng` alone."""
    runs = []
    for _ in range(2):
        env = _make(task, seed=3)
        runs.append(torch.stack([_step(env, action) for action in _actions(env, _STEPS)]))
    _assert_equal(runs, "two environments of one seed and the same actions differ in")


def check_a_reset_touches_no_other(task: type[Task[Any]]) -> None:
    """Check that a new episode in one environment leaves the others as they are."""
    env = _make(task)
    for action in _actions(env, _STEPS):
        _step(env, action)
    mask = torch.tensor([True, False] * (_ENVS // 2))
    before = {"state": env.sim.get_state()}
    before |= {name: value.clone() for name, value in env.task.memory.items()}
    env.reset(TensorDict({"_reset": mask[:, None]}, [_ENVS]))
    after = {"state": env.sim.get_state(), **env.task.memory}
    for name, value in before.items():
        same = torch.equal(value[~mask], after[name][~mask])
        assert same, f"a reset of other environments has changed {name}"


def check_a_snapshot_continues(task: type[Task[Any]]) -> None:
    """Check that a resumed training repeats: what must survive a step is in `memory`."""
    env, other = _make(task, seed=1), _make(task, seed=2)
    actions = _actions(env, 2 * _STEPS)
    for action in actions[:_STEPS]:
        _step(env, action)
    other.load_state_dict(env.state_dict())
    runs = [torch.stack([_step(e, a) for a in actions[_STEPS:]]) for e in (env, other)]
    _assert_equal(runs, "a continued environment differs in")


CHECKS = (
    check_specs,
    check_units_and_limits,
    check_camera,
    check_random_actions_are_healthy,
    check_a_seed_repeats,
    check_a_reset_touches_no_other,
    check_a_snapshot_continues,
)
"""All of them."""


def _make(task: type[Task[Any]], seed: int = 0) -> Env:
    return Env(task(task.Config()), _ENVS, seed=seed, nthread=1)


def _actions(env: Env, steps: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return 2.0 * torch.rand(steps, *env.action_spec.shape, generator=rng) - 1.0


def _step(env: Env, action: torch.Tensor) -> Any:
    return env.step_and_maybe_reset(env.current().set("action", action))[0].clone()


def _assert_equal(runs: list[Any], what: str) -> None:
    a, b = runs
    wrong = [key for key in a.keys(True, True) if not torch.equal(a[key], b[key])]
    assert not wrong, f"{what} {wrong}"
