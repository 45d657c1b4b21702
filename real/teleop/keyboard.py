"""A keyboard: a pair of keys for each of six channels. Needs pynput, and a display or macOS."""

import threading
from typing import Any

import numpy as np

from real.robot import RequestError
from real.teleop.device import Axes, Key, Reading

PAIRS = ("ws", "ad", "rf", "ik", "jl", "uo")
"""Keys that move a channel up and down, one pair each."""
KEYS = {
    "enter": Key.SUCCESS,
    "backspace": Key.FAILURE,
    "delete": Key.DISCARD,
    "esc": Key.QUIT,
}
_NEXT = "tab"


class Keyboard:
    """Keys as they are held, wherever the focus is."""

    by_hand = True

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.legend = axes.legend(["/".join(pair) for pair in PAIRS])
        ends = ", ".join(f"{name} {key.value}" for name, key in KEYS.items())
        self.legend += f"\n{ends}" + (f", {_NEXT} next line" if len(axes.groups) > 1 else "")
        self._held: set[str] = set()
        self._pressed: Key | None = None
        self._lock = threading.Lock()
        self._listener: Any = None

    def open(self) -> None:
        """Begin to listen."""
        try:
            from pynput import keyboard  # pyright: ignore[reportMissingImports]
        except ImportError as error:  # also where there is no display
            raise RequestError(
                f"--device keyboard needs pynput and a display ({' '.join(str(error).split())}): "
                "pip install 'penspin_style[teleop]'; a gamepad needs no display"
            ) from error
        self._listener = keyboard.Listener(on_press=self._press, on_release=self._release)
        self._listener.start()

    def begin(self) -> None:
        """Forget what ended the last episode; what is held goes on."""
        with self._lock:
            self._pressed = None

    def read(self, last: np.ndarray) -> Reading:
        """Return what is held."""
        with self._lock:
            held = np.array([float(up in self._held) - (down in self._held) for up, down in PAIRS])
            key = self._pressed
        return Reading(self.axes.action(held, last), key)

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def _press(self, key: Any) -> None:
        name = _name(key)
        with self._lock:
            if name == _NEXT and name not in self._held:  # a held key is said again and again
                self.axes.next_group()
            self._held.add(name)
            self._pressed = KEYS.get(name, self._pressed)

    def _release(self, key: Any) -> None:
        with self._lock:
            self._held.discard(_name(key))


def _name(key: Any) -> str:
    """Return a key's name: its character, or `enter`, `tab`, ..."""
    return (getattr(key, "char", None) or getattr(key, "name", None) or "").lower()
