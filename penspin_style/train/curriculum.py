"""Stages of a training: worlds that become harder, with the same policy, critic and optimiser.

    curriculum:
      - {task: {difficulty: 0.0}, until: 0.5}
      - {task: {difficulty: 0.5}, until: 0.8, samples: 5000000}
      - {}

A stage changes keys of the task for the environments that the policy learns in. It ends with its
samples, or as soon as an evaluation on the task as it is scores `until`; the last one does not end.
The task as it is, for every evaluation, is the one of the configuration with what `eval.task` says
otherwise: neither a stage nor where training's episodes begin changes it.
"""

from collections.abc import Sequence
from typing import Any

from penspin_style.config import StageConfig, TrainConfig
from penspin_style.env.env import Env
from penspin_style.train.keys import changed_task


class Curriculum:
    """Which stage a training is in, and since when."""

    def __init__(self, stages: Sequence[StageConfig], task: Any) -> None:
        """Check every stage.

        task: the task's own Config.

        Raises:
            ValueError: a stage sets what the task does not have, or has no end and is not the last.
        """
        self.stages = list(stages) or [StageConfig()]
        for i, stage in enumerate(self.stages[:-1]):
            if not stage.samples and stage.until is None:
                raise ValueError(f"curriculum[{i}] has no end: give it samples or until")
        self.tasks = [
            changed_task(task, stage.task, f"curriculum[{i}]")
            for i, stage in enumerate(self.stages)
        ]
        self.index = 0
        self.since = 0
        """Samples with which the stage began."""

    @property
    def task(self) -> Any:
        """The task's Config in this stage."""
        return self.tasks[self.index]

    def advance(self, samples: int, score: float | None) -> bool:
        """Go to the next stage if it is time; return whether it was.

        samples: of the whole run; score: of an evaluation of this very policy, None if none was.
        """
        stage = self.stages[self.index]
        if self.index + 1 == len(self.stages):
            return False
        long = bool(stage.samples) and samples - self.since >= stage.samples
        good = stage.until is not None and score is not None and score >= stage.until
        if not (long or good):
            return False
        self.index, self.since = self.index + 1, samples
        return True

    def state_dict(self) -> dict[str, int]:
        """Return where it stands."""
        return {"index": self.index, "since": self.since}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self.index, self.since = state["index"], state["since"]


def evaluated_task(cfg: TrainConfig) -> Any:
    """Return the task's Config as evaluations know it.

    Raises:
        ValueError: `eval.task` has what the task does not.
    """
    return changed_task(cfg.task, cfg.eval.task, "eval")


def check_evaluated(env: Env, training: Env) -> None:
    """Check that what is learned in one environment can be evaluated in another.

    Raises:
        ValueError: it observes or takes something else than the one of the training.
    """
    if env.inputs != training.inputs or env.task.actions != training.task.actions:
        what = "observation" if env.inputs != training.inputs else "action"
        raise ValueError(
            f"eval.task changes the task's {what}, which the policy could not be evaluated with; "
            "set it by task.KEY, for training too"
        )
