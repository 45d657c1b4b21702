"""Roll out a teacher in simulation and keep what is worth repeating on a robot.

The simulation is the robot's twin as it would be without what makes it a robot: no shifted physics,
no worse sensors; the same task, the same start poses. There a teacher that knows everything acts,
in many worlds at once. What is kept is a trajectory of absolute targets and where it began, an
episode with source `sim`, for `real.replay.replay` to repeat where nobody knows everything.

Kept is an episode that the rule calls a success; or, of all that were tried, the best share by a
measure. An episode that ended in a fall is cut `CUT` seconds before it, but not before it was a
success: what a teacher does with a pen that falls already is nothing to learn.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from penspin_style.data.episodes.episode import Header, write_episode
from penspin_style.deploy.actions import Decoder
from penspin_style.deploy.history import Observer
from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.train.compose import typed_tasks
from penspin_style.train.load_policy import LoadedPolicy
from real.control.loop import START
from real.control.match import check_policy
from real.control.success import SuccessRule
from real.robot import RobotError
from real.twin.batch_twin import BatchTwin
from real.twin.config import TwinConfig, load_twin

CUT = 0.5
"""Seconds before a fall at which a trajectory ends."""


@dataclass(frozen=True)
class Trajectory:
    """What one world did."""

    start: dict[str, list[float]]
    """Joint of the model -> its positions at the begin: 1, or 7 for a free one."""
    columns: dict[str, np.ndarray]
    """As an episode has them, (T, ...)."""
    measures: dict[str, float]
    seed: int
    world: int


class Stage:
    """Many worlds in which a teacher acts for a robot."""

    def __init__(
        self,
        source: LoadedPolicy,
        robot: str,
        overrides: Sequence[str],
        num: int,
        *,
        speed: float = 1.0,
    ) -> None:
        """Build the worlds.

        robot: the twin that the trajectories are for.
        overrides: overrides of the twin's task.
        speed: share of the teacher's actions that is taken, as one begins on a robot.

        Raises:
            UsageError, ValueError: there is no such twin, or it lacks what the teacher reads.
            MismatchError: it takes other commands than the teacher gives, or at another rate.
        """
        card = with_delays(source)
        twin = load_twin(robot, trusted=typed_tasks(overrides))
        features = tuple(dict.fromkeys(f.name for i in card.inputs for f in i.features))
        config = TwinConfig(
            twin.task,
            overrides=(*twin.overrides, *overrides),
            features=features,
            measured=twin.measured,
        )
        self.source, self.card, self.num, self.robot = source, card, num, robot
        self.speed = speed
        self.batch = BatchTwin(config, num, nthread=0)
        check_policy(card, self.batch)
        self.observer, self.decoder = Observer(card, num), Decoder(card)

    def play(self, seed: int, rule: SuccessRule) -> Iterator[Trajectory]:
        """Yield what happens in every world, in one episode each.

        rule: what a success is.
        """
        batch = self.batch
        batch.seed(seed)
        batch.reset()
        self.observer.reset()
        starts = self._starts()
        rows: list[dict[str, np.ndarray]] = []
        ends, reached = np.zeros(self.num, int), np.zeros(self.num, int)  # control steps
        while not (over := batch.done).all():
            ends[~over] += 1
            rows.append(self._step())
            first = (reached == 0) & rule.where(batch.measures())
            reached[first] = ends[first]
        measures = {name: value.astype(float) for name, value in batch.measures().items()}
        for i in range(self.num):
            mine = {name: float(value[i]) for name, value in measures.items()}
            if mine["faulty"]:
                continue
            cut = round(CUT / batch.control_dt) if mine["terminated"] else 0
            steps = max(ends[i] - cut, reached[i])
            if steps < 1:
                continue
            columns = {name: np.stack([row[name][i] for row in rows[:steps]]) for name in rows[0]}
            columns["time"] = batch.control_dt * np.arange(steps)
            yield Trajectory(starts[i], columns, mine, seed, i)

    def header(self) -> Header:
        """Return what the trajectories' files say of all of them."""
        return Header.of_card(self.card, source="sim", robot=self.robot)

    @torch.no_grad()
    def _step(self) -> dict[str, np.ndarray]:
        """Let one control step pass in every world; return its row, (num, ...) each."""
        batch = self.batch
        values = batch.observe().values
        inputs = self.observer(values)
        td = TensorDict(
            {name: torch.from_numpy(value) for name, value in inputs.items()}, [self.num]
        )
        action = (self.speed * self.source.act(td).clamp(-1.0, 1.0)).float().numpy()
        target = self.decoder.decode(action, batch.target)
        sent = batch.command(target)
        row = {f"observation/{name}": value for name, value in values.items()}
        return row | {"action": action, "target": target, "sent": sent}

    def _starts(self) -> list[dict[str, list[float]]]:
        """Return where every world stands, by joint."""
        model, qpos = self.batch.sim.model, self.batch.sim.data.qpos.cpu().numpy()
        spans = {}
        for j in range(model.njnt):
            begin = int(model.jnt_qposadr[j])
            end = int(model.jnt_qposadr[j + 1]) if j + 1 < model.njnt else model.nq
            spans[model.joint(j).name] = slice(begin, end)
        return [{name: row[span].tolist() for name, span in spans.items()} for row in qpos]


def with_delays(source: LoadedPolicy) -> PolicyCard:
    """Return a policy's card that says how late its values were, also if the file is too old to."""
    groups = source.cfg.task.observation

    def feature(group: dict[str, Any], f: Feature) -> Feature:
        low, high = group[f.name].delay
        return dataclasses.replace(f, delay=low if low == high else 0)

    inputs = []
    for given in source.card.inputs:  # one is a group's numbers, or an image of some group
        terms = groups.get(given.name) or next(g for g in groups.values() if given.name in g)
        inputs.append(Input(given.name, tuple(feature(terms, f) for f in given.features)))
    return dataclasses.replace(source.card, inputs=tuple(inputs))


def choose(
    stage: Stage,
    *,
    count: int,
    rule: SuccessRule,
    best: str = "",
    share: float = 0.1,
    most: int = 5000,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda kept, tried: None,
) -> tuple[list[Trajectory], dict[str, Any]]:
    """Return trajectories worth keeping, and how they were chosen.

    count: how many are wanted.
    rule: what a success is; the first ones are taken.
    best: a measure; then all are tried that `count` is the best `share` of, instead.
    most: episodes to try at most for successes.

    Raises:
        RobotError: there is no such measure, or nothing to keep.
    """
    kept: list[Trajectory] = []
    tried = 0
    wanted = round(count / share) if best else most
    while tried < wanted and (best or len(kept) < count):
        for found in stage.play(seed + tried, rule):
            if best and best not in found.measures:
                raise RobotError(
                    f"the task does not measure {best!r}, it measures "
                    f"{', '.join(sorted(found.measures))}"
                )
            if best or rule.holds(found.measures):
                kept.append(found)
        tried += stage.num
        if best:  # what cannot be among them any more need not be remembered
            kept = sorted(kept, key=lambda t: -t.measures[best])[:count]
        progress(min(len(kept), count), tried)
    kept = kept[:count]
    if not kept:
        raise RobotError(
            f"none of {tried} episodes fulfilled {rule}; train the teacher further, state another "
            "--success, or keep the best with --best MEASURE"
        )
    chosen = f"best {count} of {tried} by {best}" if best else str(rule)
    return kept, {"chosen": chosen, "tried": tried}


def keep(
    stage: Stage,
    kept: Sequence[Trajectory],
    folder: pathlib.Path,
    *,
    rule: SuccessRule,
    how: dict[str, Any],
    smooth: int = 1,
    channels: Sequence[str] = (),
) -> list[pathlib.Path]:
    """Write trajectories, one file each, in their order; return the files.

    rule: what a success is; how: what `choose` says of the choice.
    smooth: control steps over which the targets of these channels, of all by default, are averaged.

    Raises:
        ValueError: there is no such channel.
    """
    names = [a.name for a in stage.card.actions]
    if unknown := sorted(set(channels) - set(names)):
        raise ValueError(f"the teacher commands no {unknown[0]!r}, it commands {names}")
    columns = [names.index(name) for name in channels] or list(range(len(names)))
    head, files = stage.header(), []
    for found in kept:
        facts = {
            START: found.start,
            "measures": found.measures,
            "seed": found.seed,
            "world": found.world,
            "policy": stage.card.run,
            "speed": stage.speed,
            "smooth": smooth,
            **how,
        }
        mine = dataclasses.replace(head, facts=facts)
        rows = found.columns | {"target": smoothed(found.columns["target"], smooth, columns)}
        files.append(write_episode(folder, mine, rows, rule.holds(found.measures)))
    return files


def smoothed(targets: np.ndarray, width: int, columns: Sequence[int]) -> np.ndarray:
    """Return targets (T, naction), some columns as the mean over `width` control steps around."""
    out, half = targets.copy(), width // 2
    weights = np.full(2 * half + 1, 1.0 / (2 * half + 1))
    for c in columns if half else ():
        out[:, c] = np.convolve(np.pad(targets[:, c], half, mode="edge"), weights, mode="valid")
    return out
