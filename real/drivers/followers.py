"""Joints that only follow their targets: what moves behind a simulated node without physics."""

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np


class Followers:
    """Joints that follow their targets with a lag of first order, in real time."""

    def __init__(
        self,
        home: Sequence[float],
        lower: Sequence[float],
        upper: Sequence[float],
        time_constant: float = 0.05,
    ) -> None:
        """Begin at home.

        lower, upper: limits, in the joints' units; time_constant: s until 63 % of a step is done.
        """
        self.time_constant = time_constant
        self._limits = np.array(lower), np.array(upper)
        self._position = np.array(home, float)
        self._target = self._position.copy()
        self._at = time.monotonic()
        self._lock = threading.RLock()

    def command(self, target: np.ndarray) -> None:
        """Follow targets (n,) from now on, within the joints' limits."""
        with self._lock:
            self.joints()
            self._target = np.clip(target, *self._limits)

    def joints(self) -> np.ndarray:
        """Return the joints as they are now, (n,)."""
        with self._lock:
            now = time.monotonic()
            gone = -math.expm1((self._at - now) / self.time_constant)
            self._position = self._position + gone * (self._target - self._position)
            self._at = now
            return self._position.copy()

    def begin(self) -> None:
        """Nothing lies on them."""

    def limp(self) -> None:
        """Stay where they are."""
        with self._lock:
            self._target = self.joints()

    def facts(self) -> dict[str, Any]:
        """Return nothing."""
        return {}
