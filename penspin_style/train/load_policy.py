"""Policies from anywhere, each with the environment that it was trained for.

Where the environment comes from, the first of these that is there:

1. `config.yaml` in the policy folder, under its manifest (for an `.onnx`: of the folder `policy`
   beside it);
2. `config.yaml` of the run folder, which is all that older runs have (for an `.onnx`: of the folder
   it lies in, where that names the card's task);
3. the card: its task and its control step, with the task's defaults for the rest.

Overrides of the command line come after. In the end the environment must take what the card says
that the policy gives, at its rate, and observe what it reads. None of these files may name a task
that is not registered, see `find_task.find_task`.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from penspin_style import storage
from penspin_style.algo.registry import algorithm_names, find_algorithm
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import task_name
from penspin_style.features import PolicyCard, command_differences
from penspin_style.nets.policy import CONFIG, load_policy_and_config, policy_folder, read_policy
from penspin_style.system.plain_yaml import MAX_BYTES
from penspin_style.train.checkpoint import Checkpoints
from penspin_style.train.compose import (
    UsageError,
    assignment,
    compose_train,
    saved_overrides,
    typed,
    typed_tasks,
)
from penspin_style.train.curriculum import evaluated_task
from penspin_style.train.environment import interface, make_env, needs_env, resolve_device
from penspin_style.train.evaluate import Act, acting
from penspin_style.train.run import versions


class LoadedPolicy:
    """A policy from anywhere, and the environment that it was trained for."""

    def __init__(self, cfg: TrainConfig, task: Any, card: PolicyCard, act: Act) -> None:
        self.cfg, self.task, self.card, self.act = cfg, task, card, act

    def env(self, num_envs: int, seed: int, *, training: bool = False, **settings: Any) -> Env:
        """Return the environment that it is evaluated in, or the one that it was trained in.

        settings: further keywords of `Env`.

        Raises:
            UsageError: it does not observe what the policy reads, takes other commands than the
                policy gives, or takes them at another rate.
        """
        task = self.task(self.cfg.task if training else evaluated_task(self.cfg))
        self._check_commands(task)
        settings |= {"num_envs": num_envs, "seed": seed}
        env = make_env(self.cfg.sim, task, resolve_device(self.cfg.device), **settings)
        observed = {i.name: i for i in env.inputs}
        for wanted in self.card.inputs:
            found = observed.get(wanted.name)
            if found != wanted:
                raise UsageError(
                    f"the policy reads {wanted.name!r}, {wanted.size} numbers; task.observation "
                    f"now gives {f'other {found.size}' if found else 'none of that name'}"
                )
        return env

    def _check_commands(self, task: Any) -> None:
        dt = task.cfg.control_dt
        faults = command_differences(self.card, task.actions, dt, "environment")
        if faults:
            more = f", and {len(faults) - 2} more" if len(faults) > 2 else ""
            raise UsageError(
                f"{'; '.join(faults[:2])}{more}: open the policy from its run folder, or give the "
                "task.KEY=VALUE that it was trained with"
            )


def compose_training(overrides: Sequence[str]) -> tuple[TrainConfig, Any, str]:
    """Return what `compose_train` does, for a training that may go on from a policy.

    Where an algorithm needs no environment, nothing else would show that the task is set otherwise
    than for the policy of `algo.init_from`, and what is trained could not be evaluated. So that
    policy's own task comes before these overrides.

    Raises:
        UsageError: as `compose_train`.
    """
    path, algo = (typed(overrides, key) for key in ("algo.init_from", "algo"))
    if not path or algo not in algorithm_names() or needs_env(algo):
        return compose_train(overrides)
    folder = policy_folder("algo.init_from", path)
    card, _, config = read_policy(folder)
    where, text = config_of(folder, config)
    saved = saved_overrides(where, text) if text else _card_overrides(card)
    own = [word for word in saved if not word.startswith(("algo=", "algo."))]
    return compose_train(overrides, own, typed_tasks(overrides))


def open_policy(
    path: pathlib.Path, overrides: list[str], *, trusted: Sequence[str] = ()
) -> LoadedPolicy:
    """Open a run folder, a policy folder or an ONNX file.

    overrides: they come after the policy's own.
    trusted: tasks that the user has named otherwise, see `compose_train`.

    Raises:
        UsageError: it is none of these, or does not agree with its own configuration.
    """
    if not path.exists():
        raise UsageError(
            f"{path} does not exist; give a run folder, a policy folder or an .onnx file"
        )
    if path.suffix == ".onnx":
        return _open_bundle(path, overrides, trusted)
    folder = path / "policy" if (path / "policy").is_dir() else path
    if (folder / "card.json").exists():
        return _open_folder(folder, overrides, trusted)
    if (path / "checkpoints").is_dir() and (path / CONFIG).exists():
        return _open_checkpoint(path, overrides, trusted)
    raise UsageError(f"{path} is neither a run folder, a policy folder nor an .onnx file")


def _open_folder(
    folder: pathlib.Path, overrides: list[str], trusted: Sequence[str]
) -> LoadedPolicy:
    policy, card, config = load_policy_and_config(folder)
    where, text = config_of(folder, config)
    saved = saved_overrides(where, text) if text else _card_overrides(card)
    cfg, task = _composed(card, overrides, saved, trusted)
    policy.to(resolve_device(cfg.device))
    return LoadedPolicy(cfg, task, card, acting(policy))


def config_of(folder: pathlib.Path, config: str) -> tuple[pathlib.Path, str]:
    """Return the file with a policy folder's configuration, and its text, empty if there is none.

    config: what the folder itself holds.

    Raises:
        UsageError: it is the run's file, and that is not readable.
    """
    policy = folder.resolve()
    run = policy.parent / CONFIG
    # only a folder of this name lies in its run's folder; a copy may lie anywhere
    if config or policy.name != "policy" or not run.exists():
        return folder / CONFIG, config
    try:
        return run, storage.read_file(run, MAX_BYTES).decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"{run} is not readable: {error}") from error


def _open_checkpoint(
    path: pathlib.Path, overrides: list[str], trusted: Sequence[str]
) -> LoadedPolicy:
    cfg, task, _ = compose_train(overrides, saved_overrides(path / CONFIG), trusted)
    try:
        policy, card = _from_checkpoint(path, cfg, task)
    except RuntimeError as error:  # torch lists every weight
        if not overrides:
            raise
        raise UsageError(
            f"{' '.join(overrides)}: the checkpoints of {path} are of other sizes; leave it out"
        ) from error
    policy.to(resolve_device(cfg.device))
    return LoadedPolicy(cfg, task, card, acting(policy))


def _open_bundle(path: pathlib.Path, overrides: list[str], trusted: Sequence[str]) -> LoadedPolicy:
    from penspin_style.deploy.bundle import Bundle
    from penspin_style.deploy.policy import next_action

    bundle = Bundle.load(path)
    card = bundle.card
    cfg, task = _composed(card, overrides, _overrides_beside(path.parent, card), trusted)
    names = [i.name for i in card.inputs]

    def act(td: Any) -> torch.Tensor:
        action = next_action(bundle, {name: td[name].cpu().numpy() for name in names})
        return torch.from_numpy(np.asarray(action)).to(td.device)

    return LoadedPolicy(cfg, task, card, act)


def _overrides_beside(folder: pathlib.Path, card: PolicyCard) -> list[str]:
    """Return the overrides that an ONNX file of this card was trained with, as far as known."""
    policy = folder / "policy"
    if (policy / CONFIG).exists():
        _, files = storage.read_verified(policy, limit=storage.MAX_WEIGHTS)
        saved = saved_overrides(policy / CONFIG, files[CONFIG].decode())
    elif (folder / CONFIG).exists():
        saved = saved_overrides(folder / CONFIG)
    else:
        return _card_overrides(card)
    return saved if assignment("task", card.task) in saved else _card_overrides(card)


def _card_overrides(card: PolicyCard) -> list[str]:
    """Return what a card says of its environment."""
    return [assignment("task", card.task), f"task.control_dt={card.control_dt!r}"]


def _composed(
    card: PolicyCard, overrides: list[str], saved: list[str], trusted: Sequence[str]
) -> tuple[TrainConfig, Any]:
    """Return configuration and task class of a policy.

    Raises:
        UsageError: they are of another task than the card.
    """
    cfg, task, _ = compose_train(overrides, saved, trusted)
    if (name := task_name(task)) != card.task:
        raise UsageError(f"the configuration is of the task {name}, the card of {card.task}")
    return cfg, task


def _from_checkpoint(path: pathlib.Path, cfg: TrainConfig, task: Any) -> tuple[Any, PolicyCard]:
    """Return the policy of an unfinished run's newest whole checkpoint."""
    folder, state, messages = Checkpoints(path / "checkpoints").newest()
    for message in messages:
        print(f"penspin: {message}", file=sys.stderr)
    env = Env(task(cfg.task), 1, "cpu")
    # its weights are all in the checkpoint, and no file should choose what else is opened
    policy: Any = find_algorithm(cfg.algo.name).untrained(cfg.algo, interface(env))
    try:
        policy.load_state_dict(state["algo"]["policy"])
        iteration = state["run"]["iteration"]
    except (KeyError, TypeError) as error:
        raise storage.DamagedError(f"{folder} is not a run's checkpoint: {error!r}") from error
    card = env.card(
        task=task_name(task),
        run=f"{path}/iteration{iteration}",
        network=policy.describe(),
        score={},
        versions=versions(),
        in_keys=policy.in_keys,
    )
    return policy, card
