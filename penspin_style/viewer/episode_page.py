"""Recorded episodes on a page: scrub through images, joints and actions (`penspin data view`)."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penspin_style.data.episodes.episode import TIME, Channel, Episode
from penspin_style.viewer.browser import as_image
from penspin_style.viewer.comparison import COLORS

_SMALLEST = 8  # pixels of a depth image's side
_LINES = 40
"""Numbers of a channel that are drawn; the first, where it has more."""


class EpisodePage:
    """A page with one of several episodes, at one of its steps."""

    def __init__(
        self, episodes: Sequence[Episode], *, host: str = "127.0.0.1", port: int = 8080
    ) -> None:
        """Serve it.

        Raises:
            EpisodeError: the first episode is damaged.
        """
        import viser  # pyright: ignore[reportMissingImports]

        with contextlib.redirect_stdout(sys.stderr):  # it greets, and --json is one object
            self.server: Any = viser.ViserServer(host=host, port=port, verbose=False)
        self.address = f"http://{host}:{self.server.get_port()}/"
        self.episodes = {e.path.name: e for e in episodes}
        self._handles: list[Any] = []
        names = [*self.episodes]
        gui = self.server.gui
        self._which = gui.add_dropdown("episode", names, initial_value=names[0])
        self._playing = gui.add_checkbox("playing", initial_value=False)
        self._speed = gui.add_slider("speed", min=0.1, max=4.0, step=0.1, initial_value=1.0)
        self._shown = ("", -1)
        self.draw()

    @property
    def episode(self) -> Episode:
        """The one that is shown."""
        return self.episodes[self._which.value]

    def run(self, seconds: float = float("inf")) -> None:
        """Follow what the page asks for, until a signal comes."""
        end = time.monotonic() + seconds
        due = time.monotonic()
        while (now := time.monotonic()) < end:
            if self._playing.value and now >= due:
                self.step()
                due = max(due + self.episode.header.control_dt / self._speed.value, now)
            self.draw()
            time.sleep(0.01)

    def step(self) -> None:
        """Go on by a step; after the last begin anew."""
        self._step.value = (int(self._step.value) + 1) % self.episode.steps

    def draw(self) -> None:
        """Show what is asked for, if it is not shown already."""
        name = str(self._which.value)
        if name != self._shown[0]:
            self._open(self.episodes[name])
        step = min(int(self._step.value), self.episode.steps - 1)
        if (name, step) != self._shown:
            self._shown = (name, step)
            self._show(step)

    def close(self) -> None:
        """Stop the server."""
        self.server.stop()

    def _open(self, episode: Episode) -> None:
        """Read an episode, and make its part of the page."""
        for handle in self._handles:
            handle.remove()
        gui, last = self.server.gui, max(1, episode.steps - 1)
        self._step = gui.add_slider("step", min=0, max=last, step=1, initial_value=0)
        self._facts = gui.add_markdown("")
        self._columns = {c.name: episode[c.name] for c in episode.header.columns}
        self._time = self._columns.pop(TIME)
        channels = episode.header.channels
        self._images = {
            c.name: gui.add_image(as_image(self._columns[c.name][0]), label=_short(c))
            for c in channels
            if _is_image(c)
        }
        self._plots = {c.name: self._plot(c) for c in channels if c.name not in self._images}
        self._handles = [self._step, self._facts, *self._images.values(), *self._plots.values()]

    def _plot(self, channel: Channel) -> Any:
        """Return curves of a channel's numbers over time, and a line where the step is."""
        rows = self._lines(channel.name)
        names = channel.names or tuple(str(i) for i in range(rows.shape[1]))
        series = ({"label": "s"}, *({"label": n, **_stroke(i)} for i, n in enumerate(names)))
        series = (*series[: 1 + rows.shape[1]], {"label": "now", "stroke": "#000", "width": 1})
        return self.server.gui.add_uplot(
            self._data(channel.name, 0),
            series,
            title=f"{_short(channel)} [{channel.unit}]",
            aspect=1.8,
            scales={"x": {"time": False}},
        )

    def _lines(self, name: str) -> np.ndarray:
        """Return a channel's first numbers, (steps, n)."""
        column = self._columns[name]
        return column.reshape(len(column), -1)[:, :_LINES].astype(float)

    def _data(self, name: str, step: int) -> tuple[np.ndarray, ...]:
        """Return what a plot is given: time, curves, and a spike at the step."""
        rows = self._lines(name)
        low, high = rows.min(), rows.max()
        now = np.full(len(rows), low)
        now[step] = high if high > low else low + 1.0
        return (self._time, *rows.T, now)

    def _show(self, step: int) -> None:
        episode = self.episode
        said = {True: "success", False: "failure", None: "success unknown"}[episode.success]
        told = str(episode.header.facts.get("instruction", ""))
        lines = [f"step {step} of {episode.steps}, {self._time[step]:.2f} s; {said}"]
        lines += [f"*{_plain(told)}*"] if told else []
        lines.append(f"{_plain(episode.header.task)}, {episode.header.source}")
        self._facts.content = "\n\n".join(lines)
        for name, handle in self._images.items():
            handle.image = as_image(self._columns[name][step])
        for name, handle in self._plots.items():
            handle.data = self._data(name, step)


def open_page(files: Sequence[Path], *, host: str, port: int) -> EpisodePage:
    """Serve the episodes of these files.

    Raises:
        EpisodeError: one is damaged.
    """
    return EpisodePage([Episode.open(path) for path in files], host=host, port=port)


def _is_image(channel: Channel) -> bool:
    """Return whether a channel is RGB or depth, and not a few numbers or points."""
    shape = channel.shape
    if channel.dtype == "uint8":
        return len(shape) == 3 and shape[2] == 3
    return len(shape) == 2 and min(shape) >= _SMALLEST


def _short(channel: Channel) -> str:
    return channel.name.rpartition("/")[2]


def _stroke(i: int) -> dict[str, Any]:
    return {"stroke": COLORS[i % len(COLORS)], "width": 1}


def _plain(text: str) -> str:
    """Return a text from a file without what Markdown would make of it."""
    return "".join(c if c.isalnum() or c in " .,:;?!_-'" else " " for c in text)
