"""Where a run's numbers go: metrics.csv, the trackers a user names, and the terminal."""

import contextlib
import csv
import io
import itertools
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from penspin_style import storage
from penspin_style.system import interrupt


class CSVLog:
    """`metrics.csv`: a row per iteration, a column per metric; a new metric adds a column."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            self.columns = _read(path)[0]

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            rows = _read(self.path)[1] if self.path.exists() else []
            self._rewrite(rows, [*self.columns, *new])
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        except OSError:
            os.truncate(self.path, size)  # the next row must not continue half a row
            raise

    def log(self, row: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Append a row, or say why it is not there."""
        try:
            self.write(row)
        except OSError as error:
            say(f"warning: no row in {self.path} ({error})")

    def drop_after(self, iteration: float, say: Callable[[str], None]) -> None:
        """Do what `truncate` does, or say why later rows remain."""
        try:
            if message := self.truncate(iteration):
                say(message)
        except OSError as error:
            say(f"warning: later rows remain in {self.path} ({error})")

    def truncate(self, iteration: float) -> str:
        """Drop the rows after an iteration: a resumed run writes them anew.

        Lines that are damaged are dropped as well, and the file as it was is set aside; return a
        message that says so, empty if the file is whole.
        """
        if not self.path.exists():
            return ""
        columns, rows, damaged = _read(self.path)
        message = ""
        if damaged:
            aside = _free(self.path.with_name(f"{self.path.stem}.damaged{self.path.suffix}"))
            storage.write_file(aside, self.path.read_bytes())
            message = (
                f"{self.path}: {damaged} damaged lines; {len(rows)} whole rows are kept, and the "
                f"file as it was in {aside}"
            )
        columns = columns if rows or not damaged else []  # of no row: the header is what is damaged
        self._rewrite([r for r in rows if float(r.get(_KEY) or 0) <= iteration], columns)
        return message

    def last(self) -> dict[str, str]:
        """Return the last row, empty if there is none."""
        rows = _read(self.path)[1] if self.path.exists() else []
        return rows[-1] if rows else {}

    def _rewrite(self, rows: Sequence[Mapping[str, Any]], columns: list[str]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        if columns:
            writer.writeheader()
        writer.writerows(rows)
        storage.write_file(self.path, text.getvalue().encode())
        self.columns = columns


_KEY = "iteration"


def _read(path: pathlib.Path) -> tuple[list[str], list[dict[str, str]], int]:
    """Return (columns, the rows that are whole, the number of lines that are not).

    A row is whole if it has a number, or nothing, for every column, and its iteration is above that
    of the row before it.
    """
    lines = path.read_bytes().decode(errors="replace").splitlines()
    parsed = [_fields(line) for line in lines]
    columns = parsed[0] if parsed and parsed[0] else []
    if not columns or not all(columns) or len(set(columns)) < len(columns):
        return [], [], len(lines)
    rows: list[dict[str, str]] = []
    for fields in parsed[1:]:
        row = dict(zip(columns, fields, strict=False))
        if len(fields) != len(columns) or not all(map(_is_number, row.values())):
            continue
        if _KEY in row and not float(row[_KEY] or "nan") > float(rows[-1][_KEY] if rows else -1):
            continue
        rows.append(row)
    return columns, rows, len(lines) - 1 - len(rows)


def _fields(line: str) -> list[str]:
    """Return the fields of a line, none if it is no line of a CSV file."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def _free(path: pathlib.Path) -> pathlib.Path:
    """Return a path of this kind at which nothing is."""
    names = (path.with_name(f"{path.stem}-{k}{path.suffix}") for k in itertools.count(1))
    return next(p for p in itertools.chain([path], names) if not p.exists())


class Trackers:
    """The trackers besides csv; none of them ever ends a run.

    One that fails, whatever it raises, is named once and left out from then on.
    """

    def __init__(
        self, names: Sequence[str], folder: pathlib.Path, run: str, say: Callable[[str], None]
    ) -> None:
        """Prepare; a `with` block starts and ends them.

        say: takes a line for people.
        """
        self._names, self._folder, self._run, self._say = names, folder, run, say
        self._trackers: dict[str, Any] = {}
        self._threads: set[threading.Thread] | None = None  # theirs; None while they start

    def __enter__(self) -> "Trackers":
        """Start them.

        Raises:
            ValueError: a tracker's package is not installed.
        """
        self._excepthook = threading.excepthook
        self._others = set(threading.enumerate())
        threading.excepthook = self._pass_over
        try:
            for name in self._names:
                if name != "csv":
                    self._start(name)
        except ValueError:
            threading.excepthook = self._excepthook
            raise
        self._threads = set(threading.enumerate()) - self._others
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        for name, tracker in list(self._trackers.items()):
            try:
                if name == "tensorboard":  # the others end themselves when the process does
                    tracker.experiment.close()
            except Exception as error:
                self._drop(name, error)
        threading.excepthook = self._excepthook

    def log(self, row: dict[str, float], step: int) -> None:
        """Give every tracker the metrics of an iteration."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log_metrics(row, step=step)
            except Exception as error:
                self._drop(name, error)

    def _start(self, name: str) -> None:
        try:
            self._trackers[name] = _make_tracker(name, self._folder, self._run)
        except ImportError as error:
            raise ValueError(
                f"loggers={name} needs a package that is missing ({error}): pip install {name}"
            ) from error
        except Exception as error:
            self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        reason = " ".join(str(error).split()) or type(error).__name__
        self._say(f"warning: {name} has failed and is left out from now on ({reason})")

    def _pass_over(self, args: Any) -> None:
        """Leave it to `log` to report what ended a tracker's own thread: it raises the same."""
        is_starting = self._threads is None and args.thread not in self._others
        if not is_starting and args.thread not in (self._threads or ()):
            self._excepthook(args)


def _make_tracker(name: str, folder: pathlib.Path, run: str) -> Any:
    """Return an object with log_metrics(dict, step)."""
    if name == "swanlab":
        return _SwanLab(folder, run)
    from torchrl.record.loggers import get_logger

    kind: Any = name
    return get_logger(kind, str(folder), "tensorboard" if name == "tensorboard" else run)


class _SwanLab:
    """SwanLab behind TorchRL's logger interface, which does not know it."""

    def __init__(self, folder: pathlib.Path, run: str) -> None:
        import swanlab  # pyright: ignore[reportMissingImports]

        self._run = swanlab.init(project="penspin_style", experiment_name=run, logdir=str(folder))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)


class Progress:
    """Show a run: a live panel on a terminal, a plain line every few seconds when piped.

    Where nothing can be written any more, nothing is shown, and the run goes on.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(
        self, title: str, total_samples: int, *, score: str = "success_rate", quiet: bool = False
    ) -> None:
        """Prepare.

        score: what the task scores by, as `Task.score` names it; it is shown first.
        """
        self.title = title
        self.total = total_samples
        self.quiet = quiet
        self.console = _Console(stderr=True)
        self._shown = _shown(score)
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._is_live = self.console.is_terminal and not quiet
        self._last_line = float("-inf")

    def __enter__(self) -> "Progress":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            with contextlib.suppress(OSError):
                self._live.stop()

    def say(self, text: str) -> None:
        """Print one line that stays."""
        if not self.quiet:
            with contextlib.suppress(OSError):
                self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, row: dict[str, float]) -> None:
        """Show the metrics of one iteration."""
        if self._is_live:
            with contextlib.suppress(OSError):
                self._live.update(self._panel(row))
        elif time.monotonic() - self._last_line >= self.SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(self._line(row))

    def _line(self, row: dict[str, float]) -> str:
        parts = [f"{_count(row['samples']):>7} samples", f"{row['time/samples_per_s']:6.0f}/s"]
        for label, key, form in self._shown:
            if key in row:
                parts.append(f"{label} {row[key]:{form}}")
        parts.append(f"ETA {self._eta(row)}")
        return "  ".join(parts)

    def _panel(self, row: dict[str, float]) -> Table:
        table = Table(title=self.title, show_header=False, title_justify="left", min_width=60)
        done = row["samples"] / self.total
        bar = "█" * round(30 * done) + "░" * (30 - round(30 * done))
        table.add_row("samples", f"{_count(row['samples'])} of {_count(self.total)}  {bar}")
        table.add_row("speed", f"{row['time/samples_per_s']:.0f} samples/s, ETA {self._eta(row)}")
        for label, key, form in self._shown:
            if key in row:
                table.add_row(label, f"{row[key]:{form}}")
        for key in sorted(k for k in row if k.startswith("reward/")):
            table.add_row(key, f"{row[key]:.2f}")
        return table

    def _eta(self, row: dict[str, float]) -> str:
        seconds = max(0.0, self.total - row["samples"]) / max(row["time/samples_per_s"], 1e-9)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on; rich would end the process."""
        interrupt.silence_lost()


def _count(samples: float) -> str:
    return f"{samples / 1e6:.2f}M" if samples >= 1e5 else f"{samples:,.0f}"


def _shown(score: str) -> list[tuple[str, str, str]]:
    """Return (label, key of a row, format) of what is shown, what the task scores by first."""
    forms = {"success_once": ".1%", "success_at_end": ".1%"}
    if score != "success_rate":  # which is success_once
        forms = {score: forms.get(score, ".2f"), **forms}
    rows = [(key, f"env/{key}", form) for key, form in forms.items()]
    rows += [(f"evaluated {key}", f"eval/{key}", form) for key, form in forms.items()]
    return rows + [row for row in _ALWAYS if row[0] not in forms]


_ALWAYS = (
    ("return", "env/return", ".2f"),
    ("length", "env/episode_len", ".0f"),
    ("kl", "train/actor/approx_kl", ".4f"),
    ("std", "train/actor/std", ".2f"),
    ("faults", "env/fault", ".0f"),
)
