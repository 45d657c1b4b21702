"""Watch a policy in a browser, on this computer or over ssh: `penspin play` without a display.

A server of `viser` draws the bodies of one or several environments, which the page turns, pauses
and steps; the loop that simulates is the caller's. What the page asks for is noted by threads of
the server, and done by that loop between two control steps.
"""

import contextlib
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from penspin_style.env.env import Env
from penspin_style.train.evaluate import Act
from penspin_style.viewer.bodies import Bodies
from penspin_style.viewer.comparison import COLORS
from penspin_style.viewer.touch import Commands, Contacts

_DRAWN_PER_SECOND = 30.0
_TOLD_PER_SECOND = 5.0
_PAST = 200
"""Control steps that the plot of the reward shows."""
_ALL = "all"


def check_installed() -> None:
    """Refuse to watch where viser is missing.

    Raises:
        ValueError: says how to install it.
    """
    try:
        import viser  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        need = "pip install 'penspin_style[viewer]'"
        raise ValueError(f"a browser view needs viser ({error}): {need}") from error


class BrowserViewer:
    """A page on which environments are watched."""

    def __init__(
        self, env: Env, act: Act, *, host: str = "127.0.0.1", port: int = 8080, server: Any = None
    ) -> None:
        """Serve the page; server: of viser, on whose empty page it is drawn instead."""
        import viser  # pyright: ignore[reportMissingImports]

        self.env, self.act = env, act
        if server is None:
            with contextlib.redirect_stdout(sys.stderr):  # it greets, and --json is one object
                server = viser.ViserServer(host=host, port=port, verbose=False)
        self.server: Any = server
        self.address = f"http://{host}:{self.server.get_port()}/"
        self.steps = 0
        self._root = env.current()
        self._wishes: set[str] = set()
        self._lock = threading.Lock()
        self._bodies = Bodies(self.server, env.model, env.num_envs, env.task.camera)
        self._offsets = self._bodies.offsets
        self._add_controls()
        self._contacts = Contacts(self.server, env.sim)
        self._commands = Commands(self.server, env.sim, self._bodies.extent)
        self._told = 0.0
        self.draw()

    # What the page asks for.

    @property
    def shown(self) -> list[int]:
        """Return the environments that are drawn."""
        return [*range(self.env.num_envs)] if self._which.value == _ALL else [self.chosen]

    @property
    def chosen(self) -> int:
        """Return the environment whose reward, images and contacts are told, and that obeys."""
        return 0 if self._which.value == _ALL else int(self._which.value)

    def _wish(self, what: str) -> Callable[[Any], None]:
        def note(_: Any) -> None:
            with self._lock:
                self._wishes.add(what)

        return note

    def _take(self, what: str) -> bool:
        with self._lock:
            found = what in self._wishes
            self._wishes.discard(what)
            return found

    # The loop.

    def run(self, seconds: float = math.inf, until: Callable[[], bool] = lambda: False) -> None:
        """Simulate and draw in real time, times the page's speed, until a signal comes."""
        end = time.monotonic() + seconds
        drawn = due = time.monotonic()
        while (now := time.monotonic()) < end and not until():
            if self._take("reset"):
                self.env.reset()
                self._root = self.env.current()
                drawn = 0.0
            self._commands.apply(self.chosen, self._offsets[self.chosen])
            if self._take("step") or (not self._paused.value and now >= due):
                self.step()
                # after a pause, or where it cannot keep up, nothing is made up for
                due = max(due + self.env.cfg.control_dt / self._speed.value, now)
            if now - drawn >= 1.0 / _DRAWN_PER_SECOND:
                self.draw()
                drawn = now
            time.sleep(0.001 if not self._paused.value else 0.02)

    @torch.no_grad()
    def step(self) -> None:
        """Advance every environment by a control step."""
        self._root.set("action", self.act(self._root))
        _, self._root = self.env.step_and_maybe_reset(self._root)
        self.steps += 1
        for name, value in self.env.reward_terms.items():
            self._past[name].append(float(value[self.chosen]))

    def draw(self) -> None:
        """Show the present state; figures and images a few times a second."""
        data = self.env.sim.data
        rows = self.shown
        positions, turns = data.xpos[rows].cpu().numpy(), data.xquat[rows].cpu().numpy()
        self._bodies.draw(rows, positions, turns)
        self._contacts.draw(self.chosen, self._offsets[self.chosen])
        if time.monotonic() - self._told >= 1.0 / _TOLD_PER_SECOND:
            self._told = time.monotonic()
            self._tell()

    def close(self) -> None:
        """Stop the server."""
        self.server.stop()

    def _tell(self) -> None:
        i, env = self.chosen, self.env
        rows = [f"| {name} | {float(v[i]):.3f} |" for name, v in env.reward_terms.items()]
        seconds = int(env.step_count[i]) * env.cfg.control_dt
        head = f"environment {i}, {seconds:.2f} s into its episode\n\n"
        self._figures.content = head + "\n".join(("| reward | |", "|---|---|", *rows))
        longest = max((len(past) for past in self._past.values()), default=0)
        if longest > 1:
            steps = np.arange(longest, dtype=float)
            self._plot.data = (steps, *(np.array(past) for past in self._past.values()))
        for name, image in env.images().items():
            self._insets[name].image = as_image(image[i].cpu().numpy())

    # The page.

    def _add_controls(self) -> None:
        gui, n = self.server.gui, self.env.num_envs
        self._paused = gui.add_checkbox("paused", initial_value=False)
        gui.add_button("step").on_click(self._wish("step"))
        gui.add_button("reset").on_click(self._wish("reset"))
        self._speed = gui.add_slider("speed", min=0.1, max=4.0, step=0.1, initial_value=1.0)
        some = [*([_ALL] if n > 1 else []), *map(str, range(n))]
        self._which = gui.add_dropdown("environment", some, initial_value=some[0])
        self._figures = gui.add_markdown("")
        terms = [*self.env.cfg.reward]
        self._past = {name: deque([0.0], maxlen=_PAST) for name in terms}
        series = ({"label": "step"}, *({"label": t, **_stroke(i)} for i, t in enumerate(terms)))
        start = tuple(np.zeros(1) for _ in series)
        self._insets = {
            name: gui.add_image(as_image(image[0].cpu().numpy()), label=name)
            for name, image in self.env.images().items()
        }
        self._plot = gui.add_uplot(
            *(start, series), title="reward", aspect=1.6, scales={"x": {"time": False}}
        )


def _stroke(i: int) -> dict[str, Any]:
    return {"stroke": COLORS[i % len(COLORS)], "width": 1}


def as_image(image: np.ndarray) -> np.ndarray:
    """Return an image of a camera as the page shows it, (height, width, 3) uint8.

    image: the last of a history; RGB uint8, or depth in m, of which white is the farthest.
    """
    if image.dtype == np.uint8:
        return image[-1] if image.ndim == 4 else image
    depth = image[-1] if image.ndim == 3 else image
    gray = np.round(255 * depth / max(float(depth.max()), 1e-6)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)
