"""Judge a policy on twins: many episodes at once, each as a robot would run it."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from penspin_style.evaluate import Episodes, Measure
from penspin_style.features import PolicyCard
from real.fleet import Fleet
from real.observer import Observer
from real.robot import RobotError, check_channels
from real.twin import TwinConfig

Policy = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From a card's inputs, (num, ...) each, to actions (num, naction)."""


def judge(
    config: TwinConfig, card: PolicyCard, policy: Policy, *, episodes: int, seed: int
) -> Episodes:
    """Run the policy in as many twins as episodes, one episode each; return what happened.

    Figures with 95 % intervals are in the result's `measures()`; `success` is among them. A policy
    that remembers by itself must be new.

    Raises:
        RobotError: the twin does not measure what the policy reads, or takes other commands.
    """
    fleet = Fleet(config, episodes)
    check_twin(fleet, card)
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


def check_twin(fleet: Fleet, card: PolicyCard) -> None:
    """Check that a twin measures what a policy reads, and takes what it commands.

    Raises:
        RobotError: names what differs.
    """
    check_channels(fleet, card.actions)
    for feature in (f for group in card.inputs for f in group.features):
        its = fleet.features.get(feature.name)
        if its is None or (its.shape, its.unit, its.dtype) != (
            feature.shape,
            feature.unit,
            feature.dtype,
        ):
            raise RobotError(
                f"the policy reads {feature.name} {feature.shape} of {feature.dtype} in "
                f"{feature.unit}; the twin has {its if its else ', '.join(fleet.features)}"
            )
    if abs(card.control_dt - fleet.control_dt) > 1e-9:
        raise RobotError(
            f"the policy acts every {card.control_dt:g} s, the twin every {fleet.control_dt:g} s"
        )


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
