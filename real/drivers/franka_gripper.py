"""The hand of a Franka arm, on franky-control.

It takes one order at a time, and each takes a while. A thread follows the newest target: it opens
to a width, and closes with a force, so that what is between the fingers is held.
"""

import threading
import time
from typing import Any

from real.robot import RobotError
from tasks.robots.panda.description import FINGER_OPEN

OPEN = 2 * FINGER_OPEN
"""m between the fingers at an opening of 1."""


class Gripper:
    """The hand: a thread reads it and follows the newest goal.

    goal: opening 0 to 1; None to let it be.
    """

    def __init__(self, franky: Any, host: str, speed: float, force: float, step: float) -> None:
        """Connect and read once.

        speed: m/s; force: N; step: change of the opening below which it is left alone.
        """
        self._speed, self._force, self._step = speed, force, step
        self._errors = errors_of(franky)
        self._hand = franky.Gripper(host)
        self.goal: float | None = None
        self._width, self._read_at = float(self._hand.width), time.monotonic()
        self._ordered = self._width / OPEN
        self._order: Any = None
        self._fault = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="franka-hand", daemon=True)
        self._thread.start()

    def opening(self) -> float:
        """Return how far it is open, 0 to about 1.

        Raises:
            RobotError: it has stopped answering.
        """
        age = time.monotonic() - self._read_at
        if self._fault or age > 1.0:
            raise RobotError(f"the hand has not answered for {age:.2f} s {self._fault}".strip())
        return self._width / OPEN

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join(timeout=2.0)

    def _follow(self) -> None:
        while not self._over.wait(0.01):
            try:
                self._width, self._read_at = float(self._hand.width), time.monotonic()
                self._give_order()
                self._fault = ""
            except self._errors as error:
                self._fault = f"({error})"

    def _give_order(self) -> None:
        if self._order is not None:
            if not self._order.wait(0.0):
                return
            order, self._order = self._order, None
            try:
                order.get()  # False where the fingers met something: they hold it
            except self._errors:
                self._ordered = self._width / OPEN  # not done, to be given again
        goal = self.goal
        if goal is None or abs(goal - self._ordered) < self._step:
            return
        width = OPEN * goal
        if goal < self._ordered:
            anything = {"epsilon_inner": OPEN, "epsilon_outer": OPEN}
            self._order = self._hand.grasp_async(width, self._speed, self._force, **anything)
        else:
            self._order = self._hand.move_async(width, self._speed)
        self._ordered = goal


def errors_of(franky: Any) -> tuple[type[Exception], ...]:
    """Return what franky raises; its errors have no common class."""
    return (
        franky.Exception,
        franky.GripperException,
        franky.InvalidMotionTypeException,
        franky.MotionReuseException,
    )
