"""A gamepad of the XInput kind, through pygame: two sticks and the triggers move six channels."""

import os
from typing import Any

import numpy as np

from real.robot import RequestError, RobotError
from real.teleop.device import Axes, Key, Reading

AXES = (
    "left stick forward",
    "left stick left",
    "right stick forward",
    "right less left trigger",
    "right stick left",
    "directional pad right",
)
BUTTONS = {0: Key.SUCCESS, 1: Key.FAILURE, 2: Key.DISCARD, 7: Key.QUIT}
"""A, B, X, Start."""
_BUMPERS = (4, 5)
_DEAD = 0.12
"""Share of a stick's way that is nothing."""


class Gamepad:
    """The first gamepad of this computer."""

    by_hand = True

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.legend = axes.legend([f"[{name}]" for name in AXES])
        self.legend += "\nA success, B failure, X discard, Start quit"
        self.legend += ", bumper next line" if len(axes.groups) > 1 else ""
        self._pygame: Any = None
        self._pad: Any = None
        self._bumped = False
        self._down: set[int] = set()

    def open(self) -> None:
        """Open it."""
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # needs no display
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise RequestError(
                f"--device gamepad needs pygame ({error}): pip install 'penspin_style[teleop]'"
            ) from error
        pygame.init()
        if not pygame.joystick.get_count():
            pygame.quit()
            raise RobotError("--device gamepad: no gamepad is connected; /dev/input lists them")
        self._pygame, self._pad = pygame, pygame.joystick.Joystick(0)
        self._pad.init()

    def begin(self) -> None:
        """Let a button that is still held from the last episode end nothing."""
        self._pygame.event.pump()
        self._down = {button for button in BUTTONS if self._pad.get_button(button)}

    def read(self, last: np.ndarray) -> Reading:
        """Return where the sticks are."""
        self._pygame.event.pump()
        bumped = any(self._pad.get_button(button) for button in _BUMPERS)
        if bumped and not self._bumped:
            self.axes.next_group()
        self._bumped = bumped
        down = {button for button in BUTTONS if self._pad.get_button(button)}
        pressed = sorted(down - self._down)
        self._down &= down
        key = BUTTONS[pressed[0]] if pressed else None
        return Reading(self.axes.action(self._held(), last), key)

    def close(self) -> None:
        """Close it."""
        if self._pygame is not None:
            self._pygame.quit()
            self._pygame = self._pad = None

    def _held(self) -> np.ndarray:
        stick = [_alive(self._pad.get_axis(i)) for i in range(min(6, self._pad.get_numaxes()))]
        stick += [0.0] * (6 - len(stick))
        # triggers rest at -1; until they are first touched some drivers say 0
        triggers = 0.5 * (stick[5] - stick[2])
        hat = float(self._pad.get_hat(0)[0]) if self._pad.get_numhats() else 0.0
        return np.array([-stick[1], -stick[0], -stick[4], triggers, -stick[3], hat])


def _alive(value: float) -> float:
    """Return a stick's place without its dead zone."""
    return float(np.sign(value) * max(0.0, abs(value) - _DEAD) / (1.0 - _DEAD))
