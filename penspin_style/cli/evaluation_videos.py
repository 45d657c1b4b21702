"""Videos of a training's evaluations: the policy of the moment, several environments as tiles.

Each is drawn by `penspin play` in a process of its own, beside the training, one at a time: where
the last one is not done yet, an evaluation goes without.
"""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from penspin_style import storage
from penspin_style.nets.policy import save_policy
from penspin_style.system import ranks
from penspin_style.train.folder import versions
from penspin_style.train.run import Run

SECONDS = 900.0
"""Longest that a video may take once the training has ended."""


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
        (process, policy), self._drawing = self._drawing, None
        try:
            _, text = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            _, text = process.communicate()
            text = f"it took longer than {SECONDS:.0f} s"
        if process.returncode:
            lines = text.strip().splitlines() or [f"exit code {process.returncode}"]
            self.failed = self.failed or lines[-1].removeprefix("penspin: ")
        shutil.rmtree(policy, ignore_errors=True)

    def _begin(self) -> None:
        run, cfg = self.run, self.run.cfg
        policy: Any = run.algo.policy
        assert run.env is not None
        card = run.env.card(
            task=run.task_name,
            run=f"{run.task_name}/{cfg.name}/samples{run.samples}",
            network=policy.describe(),
            score={},
            versions=versions(),
            in_keys=policy.in_keys,
        )
        storage.make_folder(self.folder)
        storage.remove_stages(self.folder)  # of a run that was killed
        stage = self.folder / f"{storage.STAGE}{run.samples}"
        save_policy(policy, card, stage, run.resolved)
        command = [sys.executable, "-m", "penspin_style", "play", str(stage)]
        command += [f"task={run.task_name}", "--seed", "7", "--tiles", str(cfg.video_tiles)]
        command += ["--video", str(self.folder / f"{run.samples}.mp4")]
        command += ["--info"] * cfg.video_info
        command += ["--fps", str(cfg.video_fps)] if cfg.video_fps else []
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._drawing = process, stage
