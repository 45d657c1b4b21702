"""Policies from anywhere, each with the environment that it was trained for."""

import pathlib
import sys
from typing import Any

import numpy as np
import torch

from penspin_style.checkpoint import Checkpoints
from penspin_style.compose import UsageError, compose_train, saved_words
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.evaluate import Act, acting
from penspin_style.features import PolicyCard
from penspin_style.nets.policy import load_policy
from penspin_style.run import resolve_device, versions


class Source:
    """A policy from anywhere, and the environment that it was trained for."""

    def __init__(self, cfg: TrainConfig, task: Any, card: PolicyCard, act: Act) -> None:
        self.cfg, self.task, self.card, self.act = cfg, task, card, act

    def env(self, num_envs: int, seed: int) -> Env:
        """Return the environment.

        Raises:
            UsageError: it does not observe what the policy reads.
        """
        sim = self.cfg.sim
        env = Env(
            self.task(self.cfg.task),
            num_envs,
            resolve_device(self.cfg.device),
            seed=seed,
            engine=sim.engine,
            nthread=sim.nthread,
            nconmax=sim.nconmax,
            njmax=sim.njmax,
        )
        observed = {i.name: i for i in env.inputs}
        for wanted in self.card.inputs:
            found = observed.get(wanted.name)
            if found != wanted:
                raise UsageError(
                    f"the policy reads {wanted.name!r}, {wanted.size} numbers; task.observation "
                    f"now gives {f'other {found.size}' if found else 'none of that name'}"
                )
        return env


def open_source(path: pathlib.Path, words: list[str]) -> Source:
    """Open a run folder, a policy folder or an ONNX file.

    Raises:
        UsageError: it is none of these.
    """
    if not path.exists():
        raise UsageError(
            f"{path} does not exist; give a run folder, a policy folder or an .onnx file"
        )
    if path.suffix == ".onnx":
        return _open_bundle(path, words)
    folder = path / "policy" if (path / "policy").is_dir() else path
    config = next(
        (f / "config.yaml" for f in (path, path.parent) if (f / "config.yaml").exists()), None
    )
    if (folder / "card.json").exists():
        policy, card = load_policy(folder)
        start = saved_words(config) if config else [f"task={card.task}"]
        cfg, task, _ = compose_train([*start, *words])
    elif (path / "checkpoints").is_dir() and config:
        cfg, task, _ = compose_train([*saved_words(config), *words])
        try:
            policy, card = _from_checkpoint(path, cfg, task)
        except RuntimeError as error:  # torch lists every weight
            if not words:
                raise
            raise UsageError(
                f"{' '.join(words)}: the checkpoints of {path} are of other sizes; leave it out"
            ) from error
    else:
        raise UsageError(f"{path} is neither a run folder, a policy folder nor an .onnx file")
    device = resolve_device(cfg.device)
    policy.to(device)
    return Source(cfg, task, card, acting(policy))


def _open_bundle(path: pathlib.Path, words: list[str]) -> Source:
    from penspin_style.deploy.bundle import Bundle

    bundle = Bundle.load(path)
    config = path.parent / "config.yaml"
    start = saved_words(config) if config.exists() else [f"task={bundle.card.task}"]
    cfg, task, _ = compose_train([*start, *words])
    names = [i.name for i in bundle.card.inputs]

    def act(td: Any) -> torch.Tensor:
        action = bundle({name: td[name].cpu().numpy() for name in names})
        return torch.from_numpy(np.asarray(action)).to(td.device)

    return Source(cfg, task, bundle.card, act)


def _from_checkpoint(path: pathlib.Path, cfg: TrainConfig, task: Any) -> tuple[Any, PolicyCard]:
    """Return the policy of an unfinished run's newest whole checkpoint."""
    from penspin_style.algo.choose import make_algorithm

    _, state, messages = Checkpoints(path / "checkpoints").newest()
    for message in messages:
        print(f"penspin: {message}", file=sys.stderr)
    env = Env(task(cfg.task), 1, "cpu")
    algo: Any = make_algorithm(
        cfg,
        env.inputs,
        env.groups.reads,
        len(env.task.actions),
        device=torch.device("cpu"),
        seed=0,
    )
    algo.load_state_dict(state["algo"])
    card = env.card(
        task=task.__module__.removeprefix("tasks."),
        run=f"{path}/iteration{state['run']['iteration']}",
        network=algo.policy.describe(),
        score={},
        versions=versions(),
        in_keys=algo.policy.in_keys,
    )
    return algo.policy, card
