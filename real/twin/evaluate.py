"""Evaluate a policy on twins: many episodes at once, each as a robot would run it."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict

import torch

from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.history import Observer
from penspin_style.deploy.policy import Policy, next_action
from penspin_style.train.compose import UsageError
from penspin_style.train.evaluate import Episodes, Measure
from real.control.match import check_policy
from real.twin.batch_twin import BatchTwin
from real.twin.config import TwinConfig, load_twin, twin_names


def evaluate_on_twins(
    config: TwinConfig,
    policy: Policy,
    *,
    episodes: int,
    seed: int,
    nthread: int = 1,
) -> Episodes:
    """Run the policy in as many twins as episodes, one episode each; return what happened.

    Figures with 95 % intervals are in the result's `measures()`; `success` is among them. The
    policy acts on all twins at once, (num, ...).

    nthread: threads of the physics, 0 for all cores.

    Raises:
        MismatchError: the twin does not measure what the policy reads, or takes other commands.
    """
    batch = BatchTwin(config, episodes, nthread=nthread)
    check_policy(policy.card, batch)
    batch.seed(seed)
    batch.reset()
    kind = batch.task.kinds(batch.sim).clone()
    observer = Observer(policy.card, episodes)
    policy.reset()
    while not batch.done.all():
        action = next_action(policy, observer(batch.observe().values))
        batch.command(batch.decoder.decode(action, batch.target))
    found = {name: torch.from_numpy(value) for name, value in batch.measures().items()}
    return Episodes(
        steps=found.pop("steps"),
        terminated=found.pop("terminated"),
        faulty=found.pop("faulty"),
        kind=kind,
        kind_names=batch.task.kind_names,
        values=found,
    )


def run(args: argparse.Namespace) -> int:
    """List the twins, or evaluate the policy of the command line on one; return the exit code.

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
        raise UsageError(f"say which policy to evaluate: penspin twin {args.name} POLICY.onnx")
    torch.set_num_threads(1)  # the physics' threads need the cores
    config, bundle = load_twin(args.name), Bundle.load(args.policy)
    found = evaluate_on_twins(config, bundle, episodes=args.episodes, seed=args.seed, nthread=0)
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
