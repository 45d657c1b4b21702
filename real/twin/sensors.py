"""What a robot's sensors make of the truth: noise, a constant error, lost frames, and lateness."""

from collections import deque
from collections.abc import Collection, Mapping

import numpy as np

Values = dict[str, np.ndarray]


class Sensors:
    """Measurements of `num` worlds that share one clock; values are (num, *shape).

    State and cameras lose frames independently of each other: a frame is one control step long, and
    what is lost repeats the frame before, with its time.
    """

    def __init__(
        self,
        num: int,
        control_dt: float,
        *,
        images: Collection[str],
        noise: Mapping[str, float],
        bias: Mapping[str, np.ndarray],
        state_drop: float,
        frame_drop: float,
        latency: float,
        seed: int,
    ) -> None:
        """Describe the sensors.

        images: the features that cameras deliver.
        noise: feature -> standard deviation of white noise, in its unit.
        bias: feature -> constant error, of a shape that broadcasts to the feature's.
        state_drop, frame_drop: odds that a frame of the numbers, or of an image, is lost.
        latency: s.
        """
        self.num, self.dt, self.latency = num, control_dt, latency
        self.images = frozenset(images)
        self.noise, self.bias = dict(noise), dict(bias)
        self.odds = {False: state_drop, True: frame_drop}
        self.seed(seed)
        self.clear()

    def seed(self, seed: int) -> None:
        """Make everything from now on depend on the seed alone."""
        self.rng = np.random.default_rng(seed)

    def clear(self) -> None:
        """Forget every frame: an episode begins."""
        self._past: deque[tuple[float, Values, np.ndarray]] = deque()
        self._frame = -1
        self._lost = {False: np.zeros(self.num, bool), True: np.zeros(self.num, bool)}
        self._since = {False: np.zeros(self.num), True: np.zeros(self.num)}

    def sample(self, time: float, truth: Mapping[str, np.ndarray]) -> None:
        """Measure the worlds as they are at a time, s."""
        self._draw_losses(time)
        last = self._past[-1][1] if self._past else None
        values = {}
        for name, value in truth.items():
            value = self._measured(name, value)
            lost = self._lost[name in self.images]
            if last is not None and lost.any():
                value = np.where(lost.reshape(-1, *(1,) * (value.ndim - 1)), last[name], value)
            values[name] = value
        for kind, lost in self._lost.items():
            self._since[kind] = np.where(lost, self._since[kind], time)
        kinds = {name in self.images for name in truth}
        stamps = np.min([self._since[kind] for kind in kinds], axis=0)
        self._past.append((time, values, stamps))
        while len(self._past) > 1 and self._past[1][0] <= time - self.latency + 1e-9:
            self._past.popleft()

    def read(self, time: float) -> tuple[Values, np.ndarray]:
        """Return what has arrived by a time: values, and (num,) when the oldest was measured, s.

        Until anything has, that is the episode's first frame.
        """
        newest = self._past[0]
        for frame in self._past:
            if frame[0] <= time - self.latency + 1e-9:
                newest = frame
        return newest[1], newest[2]

    def _draw_losses(self, time: float) -> None:
        frame = int(time / self.dt + 1e-6)
        if frame == self._frame:
            return
        self._frame = frame
        for kind, odds in self.odds.items():
            if odds:
                self._lost[kind] = (self.rng.random(self.num) < odds) & bool(self._past)

    def _measured(self, name: str, value: np.ndarray) -> np.ndarray:
        if name not in self.noise and name not in self.bias:
            return value.copy()
        exact = value.astype(np.float64)
        if name in self.noise:
            exact = exact + self.noise[name] * self.rng.standard_normal(value.shape)
        exact = exact + self.bias.get(name, 0.0)
        if value.dtype == np.uint8:
            exact = np.clip(np.rint(exact), 0, 255)
        return exact.astype(value.dtype)
