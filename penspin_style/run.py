"""A training run: its folder, its checkpoints, and the one training loop.

outputs/<task>/<name>/
    config.yaml      the resolved configuration
    git.txt git.diff versions.json
    metrics.csv      and tensorboard/ or other trackers
    checkpoints/     the last few and the best; see checkpoint.py
    policy/          the best policy: weights, card with its score, the configuration
    videos/          an evaluation episode as mp4 and as a strip
    faults/          bounded dumps of simulations that went wrong
"""

import collections
import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import pathlib
import signal
import subprocess
import time
from types import FrameType
from typing import Any

import mujoco
import numpy as np
import torch

from penspin_style import storage
from penspin_style.algo.algorithm import Algorithm, DivergedError, rollout, torch_threads
from penspin_style.algo.choose import make_algorithm
from penspin_style.checkpoint import Checkpoints
from penspin_style.compose import differences
from penspin_style.config import DistillConfig, TrainConfig
from penspin_style.env.env import Env, FaultRecord
from penspin_style.env.task import Task
from penspin_style.evaluate import Evaluation, acting, evaluate
from penspin_style.features import PolicyCard
from penspin_style.metrics import CSVLog, Progress, make_trackers
from penspin_style.nets.policy import save_policy
from penspin_style.sim.sim import Fault

EXIT_OK, EXIT_USAGE, EXIT_DATA, EXIT_INTERRUPTED = 0, 2, 3, 4
FAULT_WINDOW = 10
"""Iterations over which the share of faulty environments is taken."""
MAX_FAULTY_SHARE = 0.01
MAX_DUMPS = 16
MAX_FAILED_SAVES = 3


class FaultyRunError(RuntimeError):
    """The run cannot go on with meaningful physics or numbers; exit code 3."""


class BusyError(ValueError):
    """Another process trains in the same folder."""


def resolve_device(name: str) -> torch.device:
    """Return the device; `auto` is the first GPU if there is one.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}: torch finds no GPU here; use device=cpu")
    return torch.device(name)


class Run:
    """One run in one folder."""

    def __init__(self, cfg: TrainConfig, task: type[Task[Any]], resolved: str) -> None:
        self.cfg = cfg
        self.task = task
        self.task_name = task.__module__.removeprefix("tasks.")
        self.resolved = resolved
        self.folder = pathlib.Path(cfg.out) / self.task_name / cfg.name
        self.checkpoints = Checkpoints(self.folder / "checkpoints", cfg.keep_last)
        self._check_use()
        self.device = resolve_device(cfg.device)
        self.env = self._make_env(cfg.num_envs, cfg.seed, training=True)
        self.algo: Algorithm = make_algorithm(
            cfg,
            self.env.inputs,
            self.env.groups.reads,
            len(self.env.task.actions),
            device=self.device,
            seed=cfg.seed,
        )
        self._claim()
        self.iteration = 0
        self.samples = 0  # environment steps so far, summed over environments
        self.score: float | None = None  # of the last evaluation, what task.score names
        self.success_rate: float | None = None  # of the same
        self.scored = -1  # the iteration whose weights have the score
        self.rate_halved = False
        self.csv = CSVLog(self.folder / "metrics.csv") if "csv" in cfg.loggers else None
        self.faulty: collections.deque[float] = collections.deque(maxlen=FAULT_WINDOW)
        self._dumps = len(list((self.folder / "faults").glob("*.npz")))
        self._failed_saves = 0
        self._signal = 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal has asked this process to end."""
        return self._signal != 0

    # The loop.

    def fit(self, *, quiet: bool = False) -> int:
        """Train to the end or to a signal, once; give the folder free. Return the exit code."""
        title = f"{self.task_name}/{self.cfg.name}"
        shown = Progress(title, self.cfg.total_samples, quiet=quiet)
        with self._lock, shown as progress, _signals(self):
            trackers = make_trackers(self.cfg.loggers, self.folder, self.cfg.name)
            self._begin(progress)
            buffer, root = None, self.env.current()
            while self.samples < self.cfg.total_samples and not self._signal:
                began = time.perf_counter()
                try:
                    if self.algo.collects:
                        buffer, root = rollout(self.env, self.algo, root, buffer)
                    collected = time.perf_counter()
                    with torch_threads(self.cfg.learn_threads):
                        self.algo.process(buffer)
                        row = self.algo.update()
                except DivergedError as error:
                    self._roll_back(str(error), progress)
                    root = self.env.current()
                    continue
                fresh = self.algo.horizon * self.cfg.num_envs
                self.iteration, self.samples = self.iteration + 1, self.samples + fresh
                updated = time.perf_counter()
                row |= {"time/rollout": collected - began, "time/update": updated - collected}
                row["time/samples_per_s"] = fresh / (updated - began)
                if self._close_iteration(row, trackers, progress):
                    progress.say(f"success {self.success_rate:.1%} reached stop_at_success: done")
                    break
            saved = self._save(progress)
            if self._signal:
                return self._interrupted(progress, saved=saved)
            self._finish(progress)
        return EXIT_OK

    def _begin(self, progress: Progress) -> None:
        if self.cfg.resume:
            folder, state, messages = self.checkpoints.newest()
            for message in messages:
                progress.say(message)
            self._load_own(folder, state)
            progress.say(f"resuming from iteration {self.iteration} ({folder})")
            if self.csv:
                self.csv.truncate(self.iteration)
            self._describe()
        else:
            self._describe()
            self._save(progress)

    def _close_iteration(
        self, row: dict[str, float], trackers: list[Any], progress: Progress
    ) -> bool:
        """Judge, log and save what an iteration has led to; return whether to stop."""
        row |= self.env.metrics() | self._check_faults(progress)
        began = time.perf_counter()
        stop = self._maybe_evaluate(row)
        row["time/eval"] = time.perf_counter() - began
        self._log(row, trackers, progress)
        # what was judged is kept too, or the best would be lost between two checkpoints
        if self.iteration % self.cfg.checkpoint_every == 0 or self.iteration == self.scored:
            self._save(progress)
        return stop

    def _interrupted(self, progress: Progress, *, saved: bool) -> int:
        kept = "saved" if saved else "could not save"
        progress.say(
            f"signal {self._signal}: {kept} iteration {self.iteration}; resume=true continues"
        )
        return EXIT_INTERRUPTED if saved else EXIT_DATA

    def _log(self, row: dict[str, float], trackers: list[Any], progress: Progress) -> None:
        row = {"iteration": self.iteration, "samples": self.samples, **row}
        if self.csv:
            try:
                self.csv.write(row)
            except OSError as error:
                progress.say(f"warning: no row in {self.csv.path} ({error})")
        for tracker in trackers:
            tracker.log_metrics(row, step=self.samples)
        progress.show(row)

    def _maybe_evaluate(self, row: dict[str, float]) -> bool:
        """Evaluate when it is time; return whether to stop."""
        if not self.cfg.eval_every or self.iteration % self.cfg.eval_every:
            return False
        result = self.evaluate(self.cfg.eval_episodes, self.cfg.eval_seed)
        self.score, self.scored = result.score(self.task.score), self.iteration
        self.success_rate = result.success_rate
        row |= {
            "eval/success_once": result.success_rate,
            "eval/success_at_end": result.success_at_end,
            "eval/return": result.return_,
            "eval/episode_len": result.episode_len,
        }
        row |= {f"eval/{k}": m.mean for k, m in result.measures.items() if m.mean is not None}
        stop = self.cfg.stop_at_success
        return stop is not None and result.success_rate >= stop

    def evaluate(self, episodes: int, seed: int) -> Evaluation:
        """Judge the policy as it is, deterministic, on fresh environments."""
        env = self._make_env(episodes, seed)
        return evaluate(env, acting(self.algo.policy), seed=seed)

    def _finish(self, progress: Progress) -> None:
        best = self.checkpoints.best()
        try:
            if best is not None:
                self.algo.load_state_dict(self.checkpoints.load(best)["algo"])
        except storage.DamagedError as error:
            progress.say(f"warning: {error}; the policy is the last one instead of the best")
        result = self.evaluate(self.cfg.final_episodes, self.cfg.eval_seed)
        target = self.folder / "policy"
        if target.exists():
            storage.remove(target)
        save_policy(self.algo.policy, self._card(result), target, self.resolved)
        low, high = result.interval
        own = "".join(f", {k} {m.text}" for k, m in result.measures.items())
        progress.say(
            f"success {result.success_rate:.1%} (95% interval {low:.1%} to {high:.1%}, "
            f"{result.episodes} episodes){own}; policy in {target}"
        )

    def _card(self, result: Evaluation) -> PolicyCard:
        policy: Any = self.algo.policy
        return self.env.card(
            task=self.task_name,
            run=f"{self.task_name}/{self.cfg.name}/seed{self.cfg.seed}/samples{self.samples}",
            network=policy.describe(),
            score=result.as_dict(),
            versions=versions(),
            in_keys=policy.in_keys,
        )

    # Faults.

    def _check_faults(self, progress: Progress) -> dict[str, float]:
        """Count, dump and judge the faults of this iteration.

        Raises:
            FaultyRunError: a buffer overflowed, or too many environments are faulty.
        """
        counts = self.env.fault_counts.tolist()
        self.env.fault_counts.zero_()
        out = {
            f"fault/{f.name.lower()}": float(c)
            for f, c in zip(Fault, counts, strict=True)
            if f.name
        }
        records = self.env.take_faults() if any(counts) else []
        out["env/fault"] = float(len(records))
        self.faulty.append(len(records) / self.cfg.num_envs)
        try:
            for record in records[: max(0, MAX_DUMPS - self._dumps)]:
                self._dump(record)
        except OSError as error:
            progress.say(f"warning: faulty state not written ({error})")
        if any(record.code & Fault.OVERFLOW for record in records):
            raise FaultyRunError(f"a contact buffer overflowed: {self.env.sim.overflow_hint()}")
        share = sum(self.faulty) / FAULT_WINDOW
        if share > MAX_FAULTY_SHARE:
            raise FaultyRunError(
                f"{share:.1%} of the environments were faulty over {FAULT_WINDOW} iterations "
                f"(limit {MAX_FAULTY_SHARE:.0%}); states are in {self.folder / 'faults'}; "
                "a smaller timestep or stiffer solver settings may help"
            )
        return out

    def _dump(self, record: FaultRecord) -> None:
        folder = self.folder / "faults"
        folder.mkdir(exist_ok=True)
        model = folder / "model.xml"
        if not model.exists():
            storage.write_file(model, self.env.task.spec().to_xml().encode())
        name = (
            f"{self.iteration:08d}-env{record.env_id}-{'+'.join(f.name or '' for f in record.code)}"
        )
        content = io.BytesIO()
        np.savez(
            content,
            state=record.row.cpu().numpy(),
            signature=int(mujoco.mjtState.mjSTATE_INTEGRATION),
        )
        storage.write_file(folder / f"{name}.npz", content.getvalue())
        self._dumps += 1

    def _roll_back(self, reason: str, progress: Progress) -> None:
        if self.rate_halved:
            raise FaultyRunError(f"{reason}, again after the learning rate was halved")
        folder, state, messages = self.checkpoints.newest()
        for message in messages:
            progress.say(message)
        self._load(state)
        self.rate_halved = True
        optimizer: torch.optim.Optimizer = self.algo.optimizer  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        progress.say(f"{reason}: rolled back to {folder.name} with half the learning rate")
        if self.csv:
            self.csv.truncate(self.iteration)

    # State.

    def _save(self, progress: Progress) -> bool:
        """Write a checkpoint; return whether it is there.

        Raises:
            FaultyRunError: too many failed in a row, or the weights are not worth keeping.
        """
        state = {
            "algo": self.algo.state_dict(),
            "env": self.env.state_dict(),
            "run": {
                "iteration": self.iteration,
                "samples": self.samples,
                "score": self.score,
                "success_rate": self.success_rate,
                "scored": self.scored,
                "rate_halved": self.rate_halved,
                "faulty": list(self.faulty),
            },
        }
        score = self.score if self.scored == self.iteration else None
        try:
            self.checkpoints.save(self.iteration, state, score)
        except ValueError as error:
            raise FaultyRunError(
                f"{error} after iteration {self.iteration}; resume=true continues from the "
                "checkpoint before"
            ) from error
        except OSError as error:
            self._failed_saves += 1
            progress.say(f"warning: checkpoint not saved ({error}); earlier ones are untouched")
            if self._failed_saves >= MAX_FAILED_SAVES:
                raise FaultyRunError(
                    f"{MAX_FAILED_SAVES} checkpoints in a row failed: {error}"
                ) from error
            return False
        self._failed_saves = 0
        return True

    def _load_own(self, folder: pathlib.Path, state: dict[str, Any]) -> None:
        """Load a checkpoint of this run.

        Raises:
            ValueError: it is of another configuration; names what differs.
        """
        try:
            self._load(state)
        except (KeyError, RuntimeError, ValueError) as error:
            saved = (self.folder / "config.yaml").read_text()
            changed = ", ".join(differences(saved, self.resolved)) or str(error)
            raise ValueError(
                f"{folder} does not fit this configuration; it was trained with {changed}"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        self.algo.load_state_dict(state["algo"])
        self.env.load_state_dict(
            # generators keep their state on the CPU whatever they draw on
            {k: v if k == "rng" else v.to(self.device) for k, v in state["env"].items()}
        )
        self.iteration = state["run"]["iteration"]
        each = self.algo.horizon * self.cfg.num_envs
        # before runs counted them, all iterations had the same number
        self.samples = state["run"].get("samples", self.iteration * each)
        self.score = state["run"]["score"]
        # before tasks named their score, it was the success rate
        self.success_rate = state["run"].get("success_rate", self.score)
        self.scored = state["run"]["scored"]
        self.rate_halved = state["run"]["rate_halved"]
        self.faulty.clear()
        self.faulty.extend(state["run"]["faulty"])

    def _make_env(self, num_envs: int, seed: int, *, training: bool = False) -> Env:
        sim, algo = self.cfg.sim, self.cfg.algo
        distills = isinstance(algo, DistillConfig)
        return Env(
            self.task(self.cfg.task),
            num_envs,
            self.device,
            seed=seed,
            engine=sim.engine,
            nthread=sim.nthread,
            nconmax=sim.nconmax,
            njmax=sim.njmax,
            stagger=training and self.cfg.stagger,
            final_pictures=not distills,  # labels are of what was seen before the step
            holdout=algo.holdout if training and distills else 0.0,
        )

    def _check_use(self) -> None:
        """Refuse to write over a run, and to continue one that is not there."""
        found = bool(self.checkpoints.published())
        if found and not self.cfg.resume:
            raise ValueError(
                f"{self.folder} holds a run already: resume=true continues it, "
                "name=OTHER starts another"
            )
        if self.cfg.resume and not found:
            raise ValueError(
                f"resume=true, but {self.folder} holds no checkpoint: leave resume out to start"
            )

    def _claim(self) -> None:
        """Make the folder, lock it until `fit` ends, remove what a kill left there."""
        try:
            storage.make_folder(self.folder)
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise ValueError(f"out={self.cfg.out}: cannot write there ({error})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise BusyError(
                f"another process trains in {self.folder}; choose another name"
            ) from error
        self._check_use()  # it may have begun and ended meanwhile
        storage.remove_stages(self.folder)
        storage.remove_stages(self.checkpoints.folder)

    def _describe(self) -> None:
        """Write what the run depends on."""
        for name, text in (
            ("config.yaml", self.resolved),
            ("git.txt", _git("rev-parse", "HEAD")),
            ("git.diff", _git("diff", "HEAD")),
            ("versions.json", json.dumps(versions(), indent=1)),
        ):
            storage.write_file(self.folder / name, text.encode())


class _signals:  # noqa: N801  (a context manager, used like a function)
    """Let SIGINT and SIGTERM ask the run to save and stop; a second one ends it at once."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __enter__(self) -> None:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.run._signal:
            os._exit(128 + number)
        self.run._signal = number
        text = f"signal {number}: saving after this iteration; a second signal ends at once\n"
        with contextlib.suppress(OSError):  # the terminal may be what went away
            os.write(2, text.encode())


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    names = ("penspin_style", "torch", "torchrl", "tensordict", "mujoco", "mujoco-warp", "numpy")
    out = {}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def _git(*words: str) -> str:
    """Return what git says about the code, or why it says nothing; never fail a run for it."""
    root = pathlib.Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed: a repository further up is somebody else's
        return f"{root} is not a git checkout\n"
    try:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no git: {error}\n"
    return done.stdout or done.stderr
