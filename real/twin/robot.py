"""The simulated twin: a `Robot` that is one of our tasks, with physics and sensors of its own.

    twin = SimRobot(load_twin("pen_shifted"))
    twin.connect()
    twin.reset()
    sent = twin.command(target)
    twin.measures()                                  # turns, success, ... as the task names them

In fast time a `command` lets one control step pass, at once; between commands time stands still. In
real time the world goes on by itself: a new command acts when it comes, and until then the last one
goes on. The world is then advanced by who asks for it next, so it needs no thread. A stop acts
at its own time, also where the world is just being advanced, which it does not wait for.
"""

import threading
import time
from collections.abc import Mapping

import numpy as np

from penspin_style.features import ActionChannel, Feature
from real.robot import Observation, RobotError, StoppedError, check_target
from real.twin.batch_twin import BatchTwin
from real.twin.config import Measured, TwinConfig, load_twin, twin_names

__all__ = ["BatchTwin", "Measured", "SimRobot", "TwinConfig", "load_twin", "twin_names"]

_LONGEST = 5.0
"""Seconds that the world catches up at most, after nobody has asked for it."""


class SimRobot:
    """One twin. See the module's docstring."""

    def __init__(self, config: TwinConfig | str) -> None:
        """Build the world.

        config: a description, or the name of one in `cfg/twin`, or a YAML file.

        Raises:
            UsageError, ValueError: it is invalid.
        """
        self.config = load_twin(config) if isinstance(config, str) else config
        self.batch = BatchTwin(self.config)
        self._lock = threading.RLock()  # of the world
        self._state = threading.Lock()  # of the three that a stop sets; never held for long
        self._stops = 0
        self._stopped = False
        self._halt_at: float | None = None  # s, monotonic, from when on the motors only damp
        self._connected = False
        self._ready = False
        self._limp = False
        self._begun = 0.0  # of the world's clock, in time.monotonic()

    @property
    def features(self) -> Mapping[str, Feature]:
        """What it measures."""
        return self.batch.features

    @property
    def channels(self) -> tuple[ActionChannel, ...]:
        """What it takes: the task's own."""
        return self.batch.channels

    @property
    def control_dt(self) -> float:
        """Seconds between two commands."""
        return self.batch.control_dt

    @property
    def target(self) -> np.ndarray:
        """What it follows now, (naction,)."""
        with self._lock:
            self._check_ready()
            return self.batch.target[0].copy()

    def connect(self) -> None:
        """Nothing to open."""
        self._connected = True

    def disconnect(self) -> None:
        """Stop."""
        if self._connected and self._ready:
            self.stop()
        self._connected = False

    def clock(self) -> float:
        """Return the robot's time, s: `time.monotonic()`, or in fast time the world's own."""
        return time.monotonic() if self.config.realtime else self.batch.time

    def seed(self, seed: int) -> None:
        """Make everything from the next reset on depend on the seed alone."""
        with self._lock:
            self.batch.seed(seed)

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Begin an episode: place robot and objects; start is `BatchTwin.reset`'s."""
        stops = self._stops
        with self._lock:
            if not self._connected:
                raise RobotError("the twin is not connected; call connect() first")
            self._advance()
            self.batch.reset(start)
            self._begun = time.monotonic() - self.batch.time
            self._ready, self._limp = True, False
            with self._state:
                if self._stops == stops:
                    self._stopped, self._halt_at = False, None
                    return
            self._advance()
            self._check_running()

    def observe(self) -> Observation:
        """Return what has arrived."""
        with self._lock:
            self._check_ready()
            self._advance()
            seen = self.batch.observe()
            offset = self._begun if self.config.realtime else 0.0
            measured = None if seen.measured is None else seen.measured[0]
            values = {name: value[0].copy() for name, value in seen.values.items()}
            return Observation(values, seen.stamp + offset, measured)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Follow a target, as far as one control step's action reaches; return what that was."""
        with self._lock:
            self._check_ready()
            self._check_running()
            rows = check_target(target, self.channels)[None]
            self._advance()
            self._check_running()
            before = self.batch.target
            self.batch.send(rows)
            if not (self.config.realtime or self._stopped):
                self.batch.advance(self.batch.substeps)
            if self._stopped:  # meanwhile: what was sent is forgotten
                self._let_go()
                self.batch.target = before
                self._check_running()
            return self.batch.target[0].copy()

    def hold(self) -> None:
        """Keep the last target; it does so by itself."""
        if self._lock.acquire(blocking=False):
            try:
                self._advance()
            finally:
                self._lock.release()

    def stop(self) -> None:
        """Let the motors only damp, from now on."""
        with self._state:
            self._stops += 1
            if not self._stopped:
                self._stopped, self._halt_at = True, time.monotonic()
        if self._lock.acquire(blocking=False):  # the thread that has it lets the motors go limp
            try:
                self._advance()
            finally:
                self._lock.release()

    @property
    def terminated(self) -> bool:
        """Whether the task has ended the episode."""
        with self._lock:
            self._check_ready()
            return bool(self.batch.terminated[0])

    @property
    def done(self) -> bool:
        """Whether the episode is over: it terminated, its time is up, or the physics failed."""
        with self._lock:
            self._check_ready()
            return bool(self.batch.done[0])

    def measures(self) -> dict[str, float | bool]:
        """Return what the episode amounts to until now; see `BatchTwin.measures`."""
        with self._lock:
            self._check_ready()
            return {name: value[0].item() for name, value in self.batch.measures().items()}

    def poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where the bodies truly are, (1, nbody, 3) m, and how turned, (1, nbody, 4)."""
        with self._lock:
            data = self.batch.sim.data
            return data.xpos.cpu().numpy().copy(), data.xquat.cpu().numpy().copy()

    def _advance(self) -> None:
        """Let the world's clock catch up with the wall's, limp since it was stopped."""
        if not self._ready:
            return
        if self._halt_at is not None and not self._limp:
            self._catch_up(self._halt_at)
            self._let_go()
        self._catch_up(time.monotonic())

    def _let_go(self) -> None:
        self.batch.limp()
        self._limp = True

    def _catch_up(self, now: float) -> None:
        if not self.config.realtime:
            return
        late = now - self._begun - self.batch.time
        if late > _LONGEST:  # nobody looked; what nobody saw need not have happened
            self._begun += late - _LONGEST
            late = _LONGEST
        self.batch.advance(max(0, int(late / self.batch.timestep + 1e-6)))

    def _check_running(self) -> None:
        if self._stopped:
            raise StoppedError("the twin is stopped; reset() it")

    def _check_ready(self) -> None:
        if not self._connected:
            raise RobotError("the twin is not connected; call connect() first")
        if not self._ready:
            raise RobotError("the twin has no target yet; call reset() first")
