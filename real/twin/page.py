"""A twin on a page in a browser, while something drives it: `--view` of `rollout` and `teleop`."""

import contextlib
import sys
import time
from typing import Any

import numpy as np

from penspin_style.viewer.bodies import Bodies
from penspin_style.viewer.browser import as_image, check_installed
from real.control.loop import Command, TargetSource
from real.control.safety import SafeRobot
from real.robot import Observation
from real.twin.robot import SimRobot

_DRAWN_PER_SECOND = 30.0


class TwinPage:
    """Bodies and images of a twin, as they were when it was last observed."""

    def __init__(self, robot: SimRobot, *, host: str = "127.0.0.1", port: int = 8080) -> None:
        """Serve it.

        Raises:
            ValueError: viser is missing.
        """
        check_installed()
        import viser  # pyright: ignore[reportMissingImports]

        with contextlib.redirect_stdout(sys.stderr):  # it greets, and --json is one object
            self.server: Any = viser.ViserServer(host=host, port=port, verbose=False)
        self.address = f"http://{host}:{self.server.get_port()}/"
        self.robot = robot
        model, camera = robot.batch.sim.model, robot.batch.task.camera
        self._bodies = Bodies(self.server, model, 1, camera)
        self._told = self.server.gui.add_markdown("")
        blank = {
            f.name: np.zeros(f.shape, f.dtype) for f in robot.features.values() if len(f.shape) > 1
        }
        self._insets = {
            name: self.server.gui.add_image(as_image(image), label=name)
            for name, image in blank.items()
            if image.ndim == 3 or min(image.shape) >= 8  # neither points nor ends of a pen
        }
        self._drawn = 0.0

    def show(self, seen: Observation, target: np.ndarray) -> None:
        """Draw what is there now, at most 30 times a second. target: (naction,)."""
        now = time.monotonic()
        if now - self._drawn < 1.0 / _DRAWN_PER_SECOND:
            return
        self._drawn = now
        self._bodies.draw([0], *self.robot.poses())
        for name, inset in self._insets.items():
            inset.image = as_image(seen.values[name])
        names = [c.name for c in self.robot.channels]
        rows = [f"| {name} | {value:.3f} |" for name, value in zip(names, target, strict=True)]
        self._told.content = "\n".join(("| target | |", "|---|---|", *rows))

    def close(self) -> None:
        """Stop the server."""
        self.server.stop()


class WatchedSource:
    """Targets from a source, while the twin is shown; fast time passes as fast as real time."""

    def __init__(self, source: TargetSource, page: TwinPage) -> None:
        self.source, self.page = source, page
        self._due = 0.0

    @property
    def ended(self) -> bool:
        """Whether the source has ended the episode."""
        return getattr(self.source, "ended", False)

    def check(self, robot: SafeRobot) -> None:
        """Check that the targets are for this robot."""
        self.source.check(robot)

    def begin(self) -> None:
        """Get ready for an episode."""
        self.source.begin()

    def next(self, observation: Observation, last: np.ndarray, deadline: float) -> Command | None:
        """Show what is observed; return what the source wants sent."""
        robot = self.page.robot
        self.page.show(observation, last)
        if not robot.config.realtime:
            now = time.monotonic()
            self._due = max(self._due + robot.control_dt, now)
            time.sleep(self._due - now)
        return self.source.next(observation, last, deadline)

    def counts(self) -> dict[str, int]:
        """Return what the source counts."""
        return self.source.counts()
