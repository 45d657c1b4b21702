"""A sweep: trainings one after the other, each with other values of some keys, the better ones on.

A YAML file says what is varied:

    overrides: [task=panda_lift_cube, total_samples=1000000, eval_every=10]
    space:
      algo.learning_rate: {low: 1e-4, high: 3e-3, log: true}
      algo.epochs: {low: 2, high: 8}        # whole numbers, since both ends are
      algo.hidden: {choices: [[64, 64], [128, 128]]}
    trials: 20

Optuna proposes values and keeps what came of them in `study.db`; a trial is a run in
`runs/<task>/trial-NNNN`. After each evaluation it is compared with the others at that evaluation,
and ended where it is not among the best (`pruner`). A sweep that was stopped goes on where it was,
in the middle of a trial: the proposals of a trial depend on the seed and on the trials before it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from penspin_style import storage
from penspin_style.config import TrainConfig, require
from penspin_style.env.task import task_name
from penspin_style.system.plain_yaml import read_mapping
from penspin_style.system.terminal import one_line
from penspin_style.train.compose import UsageError, assignment
from penspin_style.train.faults import FaultyRunError
from penspin_style.train.keys import nearest
from penspin_style.train.load_policy import compose_training
from penspin_style.train.run import EXIT_OK, Run

SAMPLERS = ("tpe", "random")
PRUNERS = ("asha", "hyperband", "none")
_TAKEN = ("name", "out", "resume", "resume_changes")


@dataclass
class SweepConfig:
    """What a sweep's file may say."""

    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Key of the configuration -> `{low, high}`, with `log: true` for equal odds of each decade, or
    `{choices: [...]}`. Numbers are whole where both ends are."""
    overrides: list[str] = field(default_factory=list)
    """What all trials have; those of the command line come after them."""
    trials: int = 20
    sampler: str = "tpe"
    pruner: str = "asha"
    reduction: int = 3
    """Of so many trials one goes on at each step of the pruner."""
    first: int = 1
    """Evaluations before a trial may be ended."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        require(bool(self.space), "space", self.space, "a mapping of keys to what they may be")
        texts = all(isinstance(each, str) for each in self.overrides)
        require(texts, "overrides", self.overrides, "a list of KEY=VALUE")
        require(self.trials >= 1, "trials", self.trials, ">= 1")
        require(self.sampler in SAMPLERS, "sampler", self.sampler, " or ".join(SAMPLERS))
        require(self.pruner in PRUNERS, "pruner", self.pruner, ", ".join(PRUNERS))
        require(self.reduction >= 2, "reduction", self.reduction, ">= 2")
        require(self.first >= 1, "first", self.first, ">= 1")
        require(self.seed >= 0, "seed", self.seed, ">= 0")
        for key, range_ in self.space.items():
            _check_range(key, range_)


@dataclass(frozen=True)
class Trial:
    """What became of a trial."""

    number: int
    state: str
    """`complete`, `pruned`, `failed` or `running`."""
    values: dict[str, Any]
    score: float | None
    """Of the final evaluation; of the last one before it was pruned."""
    evaluations: int


class _PrunedError(Exception):
    """A trial is not among the best."""


def read_sweep(path: pathlib.Path) -> SweepConfig:
    """Return what a file says.

    Raises:
        UsageError: unreadable, an unknown key, an invalid value; names the file.
    """
    try:
        given = read_mapping(path)
        names = [f.name for f in dataclasses.fields(SweepConfig)]
        for key in given:
            if key not in names:
                raise ValueError(f"unknown key {key!r}{nearest(str(key), names)}")
        for f in dataclasses.fields(SweepConfig):
            kind = (
                f.type
                if isinstance(f.type, type)
                else {"dict": dict, "list": list}[str(f.type).split("[")[0]]
            )
            value = given.get(f.name)
            if f.name in given and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ValueError(f"{f.name} must be a {kind.__name__}, got {value}")
        return SweepConfig(**given)
    except ValueError as error:
        text = str(error)
        raise UsageError(text if str(path) in text else f"{path}: {text}") from error


class Sweep:
    """The trials of one file, in one folder."""

    def __init__(self, cfg: SweepConfig, folder: pathlib.Path, overrides: Sequence[str]) -> None:
        """Open the study, or begin it.

        overrides: of the command line, after those of the file.

        Raises:
            UsageError: Optuna is missing; a key or value is none of the configuration; another
                process is at it; it has begun otherwise.
        """
        self.cfg, self.folder = cfg, folder
        self.overrides = [*cfg.overrides, *overrides]
        self.optuna = _optuna()
        self.train = self._check()
        try:
            lock = storage.lock(folder)
        except OSError as error:
            raise UsageError(f"--out {folder}: cannot write there: {error.strerror}") from error
        if lock is None:
            raise UsageError(f"another process is at the sweep in {folder}")
        self._lock = lock
        try:
            self.storage, self.study = self._open((folder / "study.db").resolve())
        except UsageError:
            lock.close()
            raise
        try:
            self._compare()
        except UsageError:
            self.close()
            raise

    def _open(self, path: pathlib.Path) -> tuple[Any, Any]:
        """Return Optuna's storage and study.

        Raises:
            UsageError: the file is none of Optuna's, or damaged.
        """
        from sqlalchemy.exc import SQLAlchemyError  # pyright: ignore[reportMissingImports]

        try:
            kept = self.optuna.storages.RDBStorage(f"sqlite:///{path}")
            study = self.optuna.create_study(
                storage=kept,
                study_name="sweep",
                direction="maximize",
                pruner=self._pruner(),
                load_if_exists=True,
            )
        except SQLAlchemyError as error:
            raise UsageError(
                f"{path} is damaged, or no study of Optuna: {one_line(error)}; put back a copy, "
                "or move it away to begin a new study: the runs beside it stay"
            ) from error
        return kept, study

    def close(self) -> None:
        """Give the folder free."""
        self.storage.remove_session()
        self.storage.engine.dispose()
        self._lock.close()

    def run(self, say: Callable[[str], None], *, quiet: bool = False) -> int:
        """Run the trials that are missing; return an exit code, that of the trial that was stopped.

        say: takes a line for people.
        """
        for trial in self._missing():
            code = self._run(trial, say, quiet=quiet)
            if code != EXIT_OK:
                return code
        return EXIT_OK

    def trials(self) -> list[Trial]:
        """Return all trials, the best first."""
        out = []
        for t in self.study.get_trials(deepcopy=False):
            last = max(t.intermediate_values, default=None)
            seen = None if last is None else t.intermediate_values[last]
            values = {k: json.loads(v) if k in self._listed else v for k, v in t.params.items()}
            name = "failed" if t.state.name == "FAIL" else str(t.state.name).lower()
            score = seen if t.value is None else t.value
            out.append(Trial(t.number, name, values, score, len(t.intermediate_values)))
        order = ("complete", "pruned", "running", "failed")
        return sorted(out, key=lambda t: (order.index(t.state), -(t.score or 0.0), t.number))

    # One trial.

    def _missing(self) -> Iterator[Any]:
        """Yield the trial that was left in the middle, then new ones."""
        running = [t for t in self.study.get_trials() if t.state.name == "RUNNING"]
        for t in running:
            self.study.sampler = self._sampler(t.number)
            yield self.optuna.trial.Trial(self.study, t._trial_id)
        for number in range(len(self.study.get_trials(deepcopy=False)), self.cfg.trials):
            self.study.sampler = self._sampler(number)
            yield self.study.ask()

    def _run(self, trial: Any, say: Callable[[str], None], *, quiet: bool) -> int:
        values = self._suggest(trial)
        name = f"trial-{trial.number:04d}"
        runs = self.folder / "runs"
        words = [*self.overrides, *values, assignment("out", str(runs)), assignment("name", name)]
        say(f"{name}: {' '.join(values)}")
        try:
            cfg, task, resolved = compose_training(words)
            begun = runs / task_name(task) / name
            if any((begun / "checkpoints").glob("[0-9]*")):
                cfg, task, resolved = compose_training([*words, "resume=true"])
            run = Run(cfg, task, resolved)
            run.watch = lambda: self._report(trial, run)
            code = run.fit(quiet=quiet)
        except _PrunedError:
            say(f"{name}: ended, it is not among the best")
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
            return EXIT_OK
        except (FaultyRunError, ValueError) as error:
            say(f"{name}: failed: {error}")
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            return EXIT_OK
        if code == EXIT_OK:
            score = None if run.final is None else run.final.score(task.score)
            self.study.tell(trial, run.score if score is None else score)
        return code

    def _report(self, trial: Any, run: Run) -> None:
        if run.scored != run.iteration or run.score is None:
            return
        step = run.iteration // run.cfg.eval_every
        trial.report(run.score, step)
        if trial.should_prune():
            raise _PrunedError

    def _suggest(self, trial: Any) -> list[str]:
        words = []
        for key, range_ in self.cfg.space.items():
            if "choices" in range_:
                texts = [json.dumps(v) if key in self._listed else v for v in range_["choices"]]
                value = trial.suggest_categorical(key, texts)
            else:
                low, high, log = range_["low"], range_["high"], range_.get("log", False)
                whole = isinstance(low, int) and isinstance(high, int)
                suggest = trial.suggest_int if whole else trial.suggest_float
                value = suggest(key, low, high, log=log)
            words.append(assignment(key, json.loads(value) if key in self._listed else value))
        return words

    @property
    def _listed(self) -> set[str]:
        """Keys whose choices are lists, which Optuna does not take."""
        return {
            key
            for key, range_ in self.cfg.space.items()
            if any(isinstance(v, list) for v in range_.get("choices", ()))
        }

    # What is to be run.

    def _check(self) -> TrainConfig:
        """Compose both ends of every range, each by itself, before anything is trained."""
        for word in (*self.overrides, *(f"{key}=" for key in self.cfg.space)):
            if (key := word.partition("=")[0].lstrip("+~")) in _TAKEN:
                raise UsageError(f"{key}: a sweep says itself what its runs are called, and where")
        for word in self.overrides:
            if (key := word.partition("=")[0]) in self.cfg.space:
                raise UsageError(f"{word}: the sweep varies {key} already; leave one of them out")
        cfg = compose_training(self.overrides)[0]
        for key, range_ in self.cfg.space.items():
            for value in range_.get("choices") or (range_["low"], range_["high"]):
                compose_training([*self.overrides, assignment(key, value)])
        if self.cfg.pruner != "none" and not cfg.eval_every:
            raise UsageError("eval_every=0: nothing to compare trials by; say pruner: none")
        return cfg

    def _sampler(self, number: int) -> Any:
        """Return what proposes a trial: the same wherever the sweep was stopped before it."""
        kinds = self.optuna.samplers
        kind = kinds.TPESampler if self.cfg.sampler == "tpe" else kinds.RandomSampler
        return kind(seed=self.cfg.seed + number)

    def _pruner(self) -> Any:
        cfg, kinds = self.cfg, self.optuna.pruners
        if cfg.pruner == "none":
            return kinds.NopPruner()
        common = {"min_resource": cfg.first, "reduction_factor": cfg.reduction}
        if cfg.pruner == "asha":
            return kinds.SuccessiveHalvingPruner(**common)
        return kinds.HyperbandPruner(**common, max_resource=max(cfg.first, self._evaluations()))

    def _evaluations(self) -> int:
        """Return about how many evaluations a whole trial has."""
        train = self.train
        steps = getattr(train.algo, "horizon", 0) or getattr(train.task, "episode_length", 1)
        return max(1, train.total_samples // (steps * train.num_envs * train.eval_every))

    def _compare(self) -> None:
        """Check that the folder's study is of the same file and overrides, or note what it is of.

        Raises:
            UsageError: it is not.
        """
        own = {**dataclasses.asdict(self.cfg), "overrides": self.overrides}
        own.pop("trials")
        for key, value in own.items():
            before = self.study.user_attrs.get(key, value)
            if before != value:
                raise UsageError(
                    f"{self.folder} holds a sweep with {key}={before}, now {value}; leave that as "
                    "it was, or name another folder with --out"
                )
            self.study.set_user_attr(key, value)


def _optuna() -> Any:
    try:
        import optuna  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"a sweep needs Optuna ({error}): pip install 'penspin_style[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_range(key: str, range_: Any) -> None:
    """Raise a ValueError unless a key has a range or choices."""
    where, says = f"space.{key}", "{low: A, high: B}, with log: true or not, or {choices: [A, B]}"
    require(isinstance(range_, dict), where, range_, says)
    if "choices" in range_:
        choices = range_["choices"]
        require(set(range_) == {"choices"}, where, range_, says)
        legal = isinstance(choices, list) and len(choices) > 0
        require(legal and not any(isinstance(c, dict) for c in choices), where, choices, "a list")
        return
    require({"low", "high"} <= set(range_) <= {"low", "high", "log"}, where, range_, says)
    low, high, log = range_["low"], range_["high"], range_.get("log", False)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    require(numbers and low <= high, where, range_, "low <= high, both numbers")
    require(isinstance(log, bool), f"{where}.log", log, "true or false")
    require(not log or low > 0, where, range_, "above 0 with log: true")
