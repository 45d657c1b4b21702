"""A training run: its folder, its checkpoints, and the one training loop.

outputs/<task>/<name>/
    config.yaml      the resolved configuration
    git.txt git.diff versions.json
    changes.jsonl    what resumes changed; see run_folder.py
    metrics.csv      and tensorboard/ or other trackers
    checkpoints/     the last few and the best; see checkpoint.py
    policy/          the best policy: weights, card with its score, the configuration
    videos/          an evaluation episode as mp4 and as a strip
    faults/          bounded dumps of simulations that went wrong
"""

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any, cast

from penspin_style import storage
from penspin_style.algo.algorithm import Algorithm, DivergedError, torch_threads
from penspin_style.algo.recorded import Recorded
from penspin_style.algo.registry import make_algorithm
from penspin_style.config import TrainConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task, task_name
from penspin_style.features import PolicyCard
from penspin_style.system import interrupt, ranks
from penspin_style.train import folder as run_folder
from penspin_style.train import parallel
from penspin_style.train.checkpoint import Checkpoints
from penspin_style.train.collection import Collection
from penspin_style.train.curriculum import Curriculum, check_evaluated, evaluated_task
from penspin_style.train.environment import env_settings, interface, make_env, resolve_device
from penspin_style.train.evaluate import Evaluation, acting, evaluate
from penspin_style.train.faults import FaultWatch, FaultyRunError
from penspin_style.train.folder import versions
from penspin_style.train.logging import CSVLog, Progress, Trackers
from penspin_style.train.publish import describe_policy, is_published, publish
from penspin_style.train.ray_workers import Workers

EXIT_OK, EXIT_USAGE, EXIT_DATA, EXIT_INTERRUPTED = 0, 2, 3, 4
_SAVING = "saving after this iteration; a second signal ends at once"


class _GaveUpError(Exception):
    """An evaluation was left because a signal has come."""


class Run:
    """One run in one folder."""

    def __init__(self, cfg: TrainConfig, task: type[Task[Any]], resolved: str) -> None:
        self.cfg = cfg
        self.task = task
        self.task_name = task_name(task)
        self.resolved = resolved
        self.folder = pathlib.Path(cfg.out) / self.task_name / cfg.name
        self.checkpoints = Checkpoints(self.folder / "checkpoints", cfg.keep_last)
        parallel.check(cfg)
        self._check_use()
        self.device = resolve_device(cfg.device)
        self.curriculum = Curriculum(cfg.curriculum, cfg.task)
        self.workers = Workers(cfg, task) if cfg.launcher == "ray" else None
        self.env: Env | None = None  # for an algorithm that learns from recorded episodes alone
        if env_settings(cfg, training=True) is not None:
            self.env = self._make_env(cfg.num_envs, ranks.own_seed(cfg.seed), training=True)
            if cfg.eval.task:
                check_evaluated(self._make_env(1, cfg.eval_seed), self.env)
        elif cfg.curriculum:
            raise ValueError(f"curriculum: algo={cfg.algo.name} learns in no world; leave it out")
        self.algo: Algorithm = make_algorithm(
            cfg, interface(self.env), device=self.device, seed=cfg.seed
        )
        if self.env is None and (of := self._recorded.card.task) != self.task_name:
            raise ValueError(
                f"algo.init_from={cfg.algo.init_from} is of the task {of}: say task={of}"
            )
        self.collection = Collection.make(cfg, self.algo, self.env)
        self._lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self._claim()
        self._former = self._processes  # before a resume
        self.iteration = 0
        self.samples = 0  # environment steps so far, summed over environments
        self.score: float | None = None  # of the last evaluation, what task.score names
        self.success_rate: float | None = None  # of the same, the one that the task asks for
        self.final: Evaluation | None = None  # of the policy that is published
        self.scored = -1  # the iteration whose weights have the score
        self.rate_halved = False
        self.loggers = cfg.loggers if ranks.is_first() else []
        self.csv = CSVLog(self.folder / "metrics.csv") if "csv" in self.loggers else None
        self.faults = FaultWatch(self.folder / "faults", cfg.num_envs * self._processes)
        self.watch: Callable[[], None] = lambda: None  # after each iteration
        self._stop = interrupt.Stop()

    @property
    def interrupted(self) -> bool:
        """Whether a signal has asked this process to end."""
        return self._stop.is_set()

    # The loop.

    def fit(self, *, quiet: bool = False) -> int:
        """Train to the end or to a signal, once; give the folder free. Return the exit code.

        A run that is finished already is left as it is.
        """
        title, score = f"{self.task_name}/{self.cfg.name}", self.task.score
        total = self._recorded.total_samples if self.env is None else self.cfg.total_samples
        shown = Progress(title, total, score=score, quiet=quiet or not ranks.is_first())
        asking = interrupt.asking(_SAVING, parallel.GRACE if ranks.size() > 1 else 0.0)
        there = run_folder.entered(self.folder, self.workers or ranks.joined(self.device))
        with self._lock, there, shown as progress, asking as self._stop:
            if self.cfg.resume and not self._restore(progress):
                return EXIT_OK
            with Trackers(self.loggers, self.folder, self.cfg.name, progress.say) as trackers:
                self._begin(progress)
                self._train(trackers, progress)
                saved = self._save(progress)
            if self.interrupted:
                return self._interrupted(progress, saved=saved)
            return self._finish(progress, saved=saved) if ranks.is_first() else EXIT_OK

    def _restore(self, progress: Progress) -> bool:
        """Load the newest checkpoint; return whether anything is left to do. Nothing is written.

        Raises:
            ValueError: nothing is, and yet something else than before is wanted.
        """
        folder, state = self._newest(progress)
        self._load_own(folder, state)
        self._former, text = parallel.change_of_size(
            state, self._per_iteration, self._processes, by_workers=self.workers is not None
        )
        if not ranks.of_first(self._is_finished):
            progress.say(f"resuming from iteration {self.iteration} ({folder})")
            if text:
                progress.say(text)
            return True
        own = "algo.num_epochs, with resume_changes=[algo.num_epochs],"
        key = own if self.env is None else "total_samples"
        if changed := run_folder.check_changes(self.folder, self.resolved, self.cfg.resume_changes):
            raise ValueError(
                f"{self.folder} is finished, nothing would be trained with the changed "
                f"{', '.join(changed)}; a larger {key} goes on, name=OTHER starts another"
            )
        progress.say(
            f"{self.folder} is finished, at iteration {self.iteration}; nothing is done, a larger "
            f"{key} would go on"
        )
        return False

    def _begin(self, progress: Progress) -> None:
        if self.env is None:
            progress.say(self._recorded.about())
        if ranks.is_first():
            self._describe(progress)
        if not self.cfg.resume:
            self._save(progress)
            return
        self._truncate_log(progress)
        self._make_up_for_evaluation(progress)

    def _describe(self, progress: Progress) -> None:
        """Write what the run depends on, and what a resume changes."""
        if self.cfg.resume:
            was, now = str(self._former), str(self._processes)
            more = {} if was == now else {"processes": (was, now)}
            changed = run_folder.note_changes(self.folder, self.resolved, self.iteration, more)
            for key, (before, then) in changed.items():
                progress.say(f"changed from here on: {key}={then}, was {before}")
        run_folder.describe(self.folder, self.resolved, self.task.score)

    def _train(self, trackers: Trackers, progress: Progress) -> None:
        while not self._is_trained() and not parallel.is_asked_to_end(self._stop):
            began = time.perf_counter()
            try:
                batch = self._next(progress)
                seen = self._seen(progress)
                with (
                    self.collection.ahead(self._collecting),
                    torch_threads(self.cfg.learn_threads),
                ):
                    self.algo.process(batch)
                    row = self.algo.update()
            except DivergedError as error:
                self._roll_back(str(error), progress)
                continue
            took, learned = time.perf_counter() - began, self.collection.learned
            fresh = batch.numel() if self.workers else self._per_iteration
            self.iteration, self.samples = self.iteration + 1, self.samples + fresh
            row |= {"time/rollout": took - learned, "time/update": learned}
            if self.collection.is_ahead:
                row["time/overlap"] = self.collection.overlap
            row["time/samples_per_s"] = fresh / took
            self._close_iteration(row | seen, trackers, progress)
        if not self.interrupted and self._has_succeeded():
            progress.say(f"stop_at_success={self.cfg.stop_at_success} is reached: done")

    def _next(self, progress: Progress) -> Any:
        """Return transitions [horizon, num_envs], of all workers' environments; None for none."""
        if self.workers is not None and self.env is not None:
            return self.workers.collect(self.algo, self.env, self.curriculum.index, progress.say)
        return self.collection.next(self._collecting)

    def _seen(self, progress: Progress) -> dict[str, float]:
        """Return what the environments tell of the batch that is to be learned from."""
        if self.env is None:
            return {}
        row = parallel.env_metrics(self.env) | (self.workers.metrics() if self.workers else {})
        return row | self.faults.check(self.env, self.iteration + 1, progress.say)

    @property
    def _collecting(self) -> Any:  # the environment, or the workers: what is saved
        return (self.workers or self.env) if self.algo.collects else None

    @property
    def _processes(self) -> int:
        return ranks.size() if self.workers is None else len(self.workers.slots)

    @property
    def _per_iteration(self) -> int:
        return self.algo.horizon * (1 if self.env is None else self.cfg.num_envs * self._processes)

    def _close_iteration(
        self, row: dict[str, float], trackers: Trackers, progress: Progress
    ) -> None:
        """Evaluate, log and save what an iteration led to."""
        began = time.perf_counter()
        row |= self._maybe_evaluate()
        row["time/eval"] = time.perf_counter() - began
        row = {"iteration": self.iteration, "samples": self.samples, **parallel.shared_row(row)}
        self._log(row, progress)
        self._maybe_advance(progress)
        # what was evaluated is kept too, or the best would be lost between two checkpoints
        if self.iteration % self.cfg.checkpoint_every == 0 or self.iteration == self.scored:
            self._save(progress)
        trackers.log(row, self.samples)  # late: they may take long, and break
        self.watch()

    def _maybe_advance(self, progress: Progress) -> None:
        """Go to the curriculum's next stage if it is time."""
        score = self.score if self.scored == self.iteration else None
        if not self.curriculum.advance(self.samples, score):
            return
        stages = len(self.curriculum.stages)
        progress.say(f"stage {self.curriculum.index + 1} of {stages} of the curriculum")
        self._enter_stage()

    def _enter_stage(self) -> None:
        """Build the environments of the curriculum's stage; what was reached before goes along."""
        self.collection.drop(self.env)
        before = self.env
        seed = ranks.own_seed(self.cfg.seed)
        self.env = self._make_env(self.cfg.num_envs, seed, training=True)
        if before is not None and self.env.starts is not None and before.starts is not None:
            self.env.starts.take_over(before.starts)

    def _interrupted(self, progress: Progress, *, saved: bool) -> int:
        kept = "saved" if saved else "could not save"
        progress.say(
            f"signal {self._stop.number}: {kept} iteration {self.iteration}; resume=true continues"
        )
        return EXIT_INTERRUPTED if saved else EXIT_DATA

    def _log(self, row: dict[str, float], progress: Progress) -> None:
        if self.csv:
            self.csv.log(row, progress.say)
        progress.show(row)

    def _truncate_log(self, progress: Progress) -> None:
        """Drop the rows of iterations that are to come, again."""
        if self.csv:
            self.csv.drop_after(self.iteration, progress.say)

    # Evaluation.

    def _maybe_evaluate(self) -> dict[str, float]:
        """Evaluate when it is time; return what the log is told."""
        every = self.cfg.eval_every
        if self.env is None or not every or self.iteration % every:
            return {}
        try:
            result = self.evaluate(self.cfg.eval_episodes, self.cfg.eval_seed)
        except _GaveUpError:
            result = None
        if ranks.any_of(result is None) or result is None:
            return {}
        found = (result.score(self.task.score), result.success(self.task.score))
        (self.score, self.success_rate), self.scored = parallel.of_first(*found), self.iteration
        return result.row()

    def _make_up_for_evaluation(self, progress: Progress) -> None:
        """Evaluate what a signal kept from being evaluated, so that the run is as if it had not."""
        known = not self.iteration or self.scored == self.iteration
        if known or not (found := self._maybe_evaluate()):
            return
        if self.csv and (row := self.csv.last()):
            try:
                self.csv.truncate(self.iteration - 1)
                self.csv.write({**row, **found})
            except OSError as error:
                progress.say(f"warning: no evaluation in {self.csv.path} ({error})")
        self._maybe_advance(progress)
        self._save(progress, again=True)

    def evaluate(self, episodes: int, seed: int) -> Evaluation:
        """Evaluate the policy as it is, deterministic, on fresh environments.

        Raises:
            _GaveUpError: a signal has come; it would take longer than one may wait.
        """
        self._give_up_if_asked()
        env = self._make_env(episodes, seed)
        return evaluate(env, acting(self.algo.policy), seed=seed, on_step=self._give_up_if_asked)

    def _give_up_if_asked(self) -> None:
        if self.interrupted:
            raise _GaveUpError

    # The end.

    def _has_succeeded(self) -> bool:
        """Return whether the weights as they are have reached `stop_at_success`."""
        stop, rate = self.cfg.stop_at_success, self.success_rate
        return stop is not None and self.scored == self.iteration and (rate or 0.0) >= stop

    def _is_trained(self) -> bool:
        """Return whether no iteration is to come."""
        if self.env is None:
            return self._recorded.finished
        return self.samples >= self.cfg.total_samples or self._has_succeeded()

    def _is_finished(self) -> bool:
        """Return whether all is trained, and the policy of it is there."""
        return self._is_trained() and is_published(self.folder, self.samples)

    def _finish(self, progress: Progress, *, saved: bool) -> int:
        """Publish the best policy, evaluated; return the exit code.

        Raises:
            FaultyRunError: it cannot be written.
        """
        try:
            card, text = self._validated() if self.env is None else self._evaluated(progress)
        except _GaveUpError:
            return self._interrupted(progress, saved=saved)
        target = publish(self.folder, self.algo.policy, card, self.resolved)
        progress.say(f"{text}; policy in {target}")
        return EXIT_OK

    def _evaluated(self, progress: Progress) -> tuple[PolicyCard, str]:
        """Take the best weights and evaluate them; return their card, and the score for people."""
        best = self.checkpoints.best()
        try:
            if best is not None:
                self.algo.load_state_dict(self.checkpoints.load(best)["algo"])
        except storage.DamagedError as error:
            progress.say(f"warning: {error}; the policy is the last one instead of the best")
        result = self.evaluate(self.cfg.final_episodes, self.cfg.eval_seed)
        self.final = result
        own = "".join(f", {k} {m.text}" for k, m in result.measures.items())
        assert self.env is not None
        score = {**result.as_dict(), "scored_by": self.task.score}
        card = describe_policy(self.env, self.algo.policy, self.task_name, self._title, score)
        return card, f"{result.success_text(self.task.score)}{own}"

    def _validated(self) -> tuple[PolicyCard, str]:
        """Take the weights that validate best; return their card, and the loss for people."""
        card, text = self._recorded.result(self._title, versions())
        self.score = card.score["validation_loss"]
        return card, text

    @property
    def _recorded(self) -> Recorded:
        """The algorithm, where there is no environment."""
        return cast(Recorded, self.algo)

    @property
    def _title(self) -> str:
        """What the policy's card calls the run."""
        return f"{self.task_name}/{self.cfg.name}/seed{self.cfg.seed}/samples{self.samples}"

    # State.

    def _roll_back(self, reason: str, progress: Progress) -> None:
        if self.rate_halved:
            raise FaultyRunError(f"{reason}, again after the learning rate was halved")
        folder, state = self._newest(progress)
        self._load(state)
        self.rate_halved = True
        for optimizer in self.algo.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        progress.say(f"{reason}: rolled back to {folder.name} with half the learning rate")
        self._truncate_log(progress)

    def _save(self, progress: Progress, *, again: bool = False) -> bool:
        """Write a checkpoint; return whether it is there.

        again: also where there is one of this iteration.

        Raises:
            FaultyRunError: too many failed in a row, or the weights are not worth keeping.
        """
        state = {
            "algo": self.algo.state_dict(),
            "env": self.collection.env_state(self._collecting),
            "collection": self.collection.state_dict(),
            "run": {
                "iteration": self.iteration,
                "samples": self.samples,
                "score": self.score,
                "success_rate": self.success_rate,
                "scored": self.scored,
                "rate_halved": self.rate_halved,
                "faulty": list(self.faults.recent),
                "curriculum": self.curriculum.state_dict(),
            },
            **parallel.rank_states(self.algo, self._collecting),
        }
        if not ranks.is_first():
            return True
        score = self.score if self.scored == self.iteration else None
        return self.checkpoints.keep(self.iteration, state, score, progress.say, again=again)

    def _newest(self, progress: Progress) -> tuple[pathlib.Path, dict[str, Any]]:
        folder, state, messages = self.checkpoints.newest()
        for message in messages:
            progress.say(message)
        return folder, state

    def _load_own(self, folder: pathlib.Path, state: dict[str, Any]) -> None:
        """Load a checkpoint of this run.

        Raises:
            ValueError: it is of another configuration; names what differs.
        """
        try:
            self._load(state)
        except (KeyError, RuntimeError, ValueError) as error:
            found = run_folder.changes(self.folder, self.resolved)
            found = {k: v[0] for k, v in found.items() if k not in run_folder.FREE}
            changed = ", ".join(f"{k}={v}" for k, v in found.items()) or str(error)
            raise ValueError(
                f"{folder} does not fit this configuration; it was trained with {changed}"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        stage = self.curriculum.index
        # before there were stages, all was the first
        self.curriculum.load_state_dict(state["run"].get("curriculum", {"index": 0, "since": 0}))
        if self.curriculum.index != stage:
            self._enter_stage()
        own = parallel.own_state(self.algo, state, by_workers=self.workers is not None)
        self.algo.load_state_dict(own["algo"])
        if self._collecting is not None and own["env"] is not None:
            self._collecting.load_state_dict(
                # generators keep their state on the CPU whatever they draw on
                {k: v if k == "rng" else v.to(self.device) for k, v in own["env"].items()}
            )
        self.collection.load_state_dict(state.get("collection", {}), self._collecting)
        self.iteration = state["run"]["iteration"]
        # before runs counted them, all iterations had the same number
        self.samples = state["run"].get("samples", self.iteration * self._per_iteration)
        self.score = state["run"]["score"]
        # before tasks named their score, it was the success rate
        self.success_rate = state["run"].get("success_rate", self.score)
        self.scored = state["run"]["scored"]
        self.rate_halved = state["run"]["rate_halved"]
        self.faults.recent.clear()
        self.faults.recent.extend(state["run"]["faulty"])

    def _make_env(self, num_envs: int, seed: int, *, training: bool = False) -> Env:
        settings = {"num_envs": num_envs, "stagger": training and self.cfg.stagger}
        settings |= env_settings(self.cfg, training=training) or {}
        if training and self.workers is not None:  # it only says what the workers' are like
            settings = {"num_envs": 1}
        task = self.task(self.curriculum.task if training else evaluated_task(self.cfg))
        return make_env(self.cfg.sim, task, self.device, seed=seed, **settings)

    def _check_use(self) -> None:
        if not ranks.is_first():
            return
        found, cfg = bool(self.checkpoints.published()), self.cfg
        run_folder.check_use(
            self.folder, self.resolved, found, resume=cfg.resume, allowed=cfg.resume_changes
        )

    def _claim(self) -> None:
        """Make the folder, lock it until `fit` ends, remove what a kill left there."""
        if not ranks.is_first():
            return
        try:
            self._lock = run_folder.lock(self.folder)
        except OSError as error:
            raise ValueError(f"out={self.cfg.out}: cannot write there ({error})") from error
        self._check_use()  # it may have begun and ended meanwhile
        storage.remove_stages(self.folder)
        storage.remove_stages(self.checkpoints.folder)
