"""Judge a policy on twins: many episodes at once, each as a robot would run it."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import torch

from penspin_style.compose import UsageError
from penspin_style.deploy.bundle import Bundle
from penspin_style.evaluate import Episodes, Measure
from penspin_style.features import PolicyCard
from real.fleet import Fleet
from real.match import check_policy
from real.observer import Observer
from real.twin import TwinConfig, load_twin, twin_names

Policy = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From a card's inputs, (num, ...) each, to actions (num, naction)."""


def judge(
    config: TwinConfig,
    card: PolicyCard,
    policy: Policy,
    *,
    episodes: int,
    seed: int,
    nthread: int = 1,
) -> Episodes:
    """Run the policy in as many twins as episodes, one episode each; return what happened.

    Figures with 95 % intervals are in the result's `measures()`; `success` is among them. A policy
    that remembers by itself must be new.

    nthread: threads of the physics, 0 for all cores.

    Raises:
        MismatchError: the twin does not measure what the policy reads, or takes other commands.
    """
    fleet = Fleet(config, episodes, nthread=nthread)
    check_policy(card, fleet)
    fleet.seed(seed)
    fleet.reset()
    kind = fleet.task.kinds(fleet.sim).clone()
    observer = Observer(card, episodes)
    while not fleet.done.all():
        action = policy(observer(fleet.observe().values))
        fleet.command(fleet.decoder.decode(action, fleet.target))
    found = {name: torch.from_numpy(value) for name, value in fleet.measures().items()}
    return Episodes(
        steps=found.pop("steps"),
        fell=found.pop("fell"),
        faulty=found.pop("faulty"),
        kind=kind,
        kind_names=fleet.task.kind_names,
        values=found,
    )


def run(args: argparse.Namespace) -> int:
    """List the twins, or judge the policy of the command line on one; return the exit code.

    Raises:
        UsageError, BundleError: there is no such twin, or no such policy.
        MismatchError: the policy is not one for the twin.
    """
    if args.name is None:
        summaries = {name: load_twin(name).summary for name in twin_names()}
        lines = [f"{name:16} {summary}" for name, summary in summaries.items()]
        print(json.dumps({"twins": summaries}) if args.json else "\n".join(lines))
        return 0
    if args.policy is None:
        raise UsageError(f"say which policy to judge: penspin twin {args.name} POLICY.onnx")
    torch.set_num_threads(1)  # the physics' threads need the cores
    config, bundle = load_twin(args.name), Bundle.load(args.policy)
    found = judge(config, bundle.card, bundle, episodes=args.episodes, seed=args.seed, nthread=0)
    measures = found.measures()
    if args.json:
        print(json.dumps({name: asdict(measure) for name, measure in measures.items()}))
    else:
        print("\n".join(describe(measures)))
    return 0


def describe(measures: Mapping[str, Measure]) -> list[str]:
    """Return one line for each figure, with its 95 % interval."""
    lines = []
    for name, measure in measures.items():
        span = ""
        if measure.interval is not None:
            span = " to ".join(measure.write(end) for end in measure.interval)
            span = f"  95 % {span}"
        lines.append(f"{name:16} {measure.text}{span}")
    return lines
