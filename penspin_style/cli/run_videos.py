"""Videos of a training: of its policy at the end, and of its evaluations while it goes on.

Each is drawn by `penspin play` in a process of its own. Those of evaluations are tiles of several
environments, drawn beside the training, one at a time: where the last one is not done yet, an
evaluation goes without.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

from penspin_style import storage
from penspin_style.nets.policy import save_policy
from penspin_style.system import ranks
from penspin_style.train.publish import describe_policy
from penspin_style.train.run import Run

SECONDS = 900.0
"""Longest that a training waits for a video at its end."""


def draw(policy: pathlib.Path, task: str, *more: str) -> subprocess.Popen[str]:
    """Start `penspin play` in a process of its own: a renderer may crash or hang.

    Raises:
        OSError: it cannot be started.
    """
    command = [sys.executable, "-m", "penspin_style", "play", str(policy), f"task={task}", *more]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def wait_for(drawing: subprocess.Popen[str]) -> str:
    """Wait for what `draw` has started; return why there is no video, empty if there is one."""
    try:
        _, text = drawing.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        drawing.kill()
        drawing.communicate()
        return f"it took longer than {SECONDS:.0f} s"
    code = drawing.returncode
    if not code:
        return ""
    reason = f"the renderer ended with {signal.Signals(-code).name}" if code < 0 else ""
    lines = text.strip().splitlines()
    reason = reason or f"exit code {code}"
    return f"{reason}: {lines[-1].removeprefix('penspin: ')}" if lines else reason


class EvaluationVideos:
    """Draws what a run's `watch` is called after; see `TrainConfig.video_every`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.folder = run.folder / "videos"
        self.skipped = 0
        """Evaluations without a video, because the last one was not done."""
        self.failed = ""
        """Why the first video that failed is not there."""
        self._drawing: tuple[subprocess.Popen[str], pathlib.Path] | None = None

    def __call__(self) -> None:
        """Begin a video if the iteration that has ended was evaluated, and it is its turn."""
        run, cfg = self.run, self.run.cfg
        if not ranks.is_first() or run.env is None or run.scored != run.iteration:
            return
        if run.iteration // cfg.eval_every % cfg.video_every:
            return
        if self._drawing is not None and self._drawing[0].poll() is None:
            self.skipped += 1
            return
        self.finish()
        try:
            self._begin()
        except OSError as error:
            self.failed = self.failed or str(error)

    def finish(self) -> None:
        """Wait for the video that is being drawn, and remove what it was drawn from."""
        if self._drawing is None:
            return
        (drawing, policy), self._drawing = self._drawing, None
        if reason := wait_for(drawing):
            self.failed = self.failed or reason
        shutil.rmtree(policy, ignore_errors=True)

    def notes(self) -> list[str]:
        """Return what is to be said in the end of videos that are not there, a line each."""
        notes = [f"a video of an evaluation is missing: {self.failed}"] if self.failed else []
        if self.skipped:
            many = "1 evaluation has" if self.skipped == 1 else f"{self.skipped} evaluations have"
            notes.append(f"{many} no video: the last one was still being drawn")
        return notes

    def _begin(self) -> None:
        run, cfg = self.run, self.run.cfg
        assert run.env is not None
        title = f"{run.task_name}/{cfg.name}/samples{run.samples}"
        card = describe_policy(run.env, run.algo.policy, run.task_name, title, {})
        storage.make_folder(self.folder)
        storage.remove_stages(self.folder)  # of a run that was killed
        stage = self.folder / f"{storage.STAGE}{run.samples}"
        save_policy(run.algo.policy, card, stage, run.resolved)
        more = ["--seed", "7", "--tiles", str(cfg.video_tiles)]
        more += ["--video", str(self.folder / f"{run.samples}.mp4")]
        more += ["--info"] * cfg.video_info
        more += ["--fps", str(cfg.video_fps)] if cfg.video_fps else []
        self._drawing = draw(stage, run.task_name, *more), stage
