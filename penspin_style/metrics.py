"""Where a run's numbers go: metrics.csv, the trackers a user names, and the terminal."""

import csv
import io
import os
import pathlib
import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from penspin_style import storage


class CSVLog:
    """`metrics.csv`: a row per iteration, a column per metric; a new metric adds a column."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            with path.open(newline="") as file:
                self.columns = next(csv.reader(file), [])

    def write(self, row: dict[str, float]) -> None:
        """Append a row."""
        new = [name for name in row if name not in self.columns]
        if new:
            self._rewrite(self._rows(), [*self.columns, *new])
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        except OSError:
            os.truncate(self.path, size)  # the next row must not continue half a row
            raise

    def truncate(self, iteration: int) -> None:
        """Drop the rows after an iteration: a resumed run writes them anew."""
        rows = [
            r for r in self._rows() if r.get("iteration") and float(r["iteration"]) <= iteration
        ]
        self._rewrite(rows, self.columns)

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        storage.write_file(self.path, text.getvalue().encode())
        self.columns = columns


def make_trackers(names: list[str], folder: pathlib.Path, run: str) -> list[Any]:
    """Return the trackers besides csv: objects with log_metrics(dict, step).

    Raises:
        ValueError: a tracker's package is not installed.
    """
    trackers: list[Any] = []
    for name in names:
        if name == "csv":
            continue
        try:
            if name == "swanlab":
                trackers.append(_SwanLab(folder, run))
            else:
                from torchrl.record.loggers import get_logger

                label = "tensorboard" if name == "tensorboard" else run
                kind: Any = name
                trackers.append(get_logger(kind, str(folder), label))
        except ImportError as error:
            raise ValueError(
                f"loggers={name} needs a package that is missing ({error}): pip install {name}"
            ) from error
    return trackers


class _SwanLab:
    """SwanLab behind TorchRL's logger interface, which does not know it."""

    def __init__(self, folder: pathlib.Path, run: str) -> None:
        import swanlab  # pyright: ignore[reportMissingImports]

        self._run = swanlab.init(project="penspin_style", experiment_name=run, logdir=str(folder))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)


class Progress:
    """Show a run: a live panel on a terminal, a plain line every few seconds when piped."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, title: str, total_samples: int, *, quiet: bool = False) -> None:
        self.title = title
        self.total = total_samples
        self.quiet = quiet
        self.console = Console(stderr=True)
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._is_live = self.console.is_terminal and not quiet
        self._last_line = float("-inf")

    def __enter__(self) -> "Progress":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, row: dict[str, float]) -> None:
        """Show the metrics of one iteration."""
        if self._is_live:
            self._live.update(self._panel(row))
        elif time.monotonic() - self._last_line >= self.SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(self._line(row))

    def _line(self, row: dict[str, float]) -> str:
        parts = [f"{row['samples'] / 1e6:6.2f}M samples", f"{row['time/samples_per_s']:6.0f}/s"]
        for label, key, form in _SHOWN:
            if key in row:
                parts.append(f"{label} {row[key]:{form}}")
        parts.append(f"ETA {self._eta(row)}")
        return "  ".join(parts)

    def _panel(self, row: dict[str, float]) -> Table:
        table = Table(title=self.title, show_header=False, title_justify="left", min_width=60)
        done = row["samples"] / self.total
        bar = "█" * round(30 * done) + "░" * (30 - round(30 * done))
        table.add_row("samples", f"{row['samples'] / 1e6:.2f}M of {self.total / 1e6:.2f}M  {bar}")
        table.add_row("speed", f"{row['time/samples_per_s']:.0f} samples/s, ETA {self._eta(row)}")
        for label, key, form in _SHOWN:
            if key in row:
                table.add_row(label, f"{row[key]:{form}}")
        for key in sorted(k for k in row if k.startswith("reward/")):
            table.add_row(key, f"{row[key]:.2f}")
        return table

    def _eta(self, row: dict[str, float]) -> str:
        seconds = max(0.0, self.total - row["samples"]) / max(row["time/samples_per_s"], 1e-9)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


_SHOWN = (
    ("success", "env/success_once", ".1%"),
    ("evaluated", "eval/success_once", ".1%"),
    ("return", "env/return", ".2f"),
    ("length", "env/episode_len", ".0f"),
    ("kl", "train/actor/approx_kl", ".4f"),
    ("std", "train/actor/std", ".2f"),
    ("faults", "env/fault", ".0f"),
)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on standard output."""
    import json

    print(json.dumps(value, indent=1, allow_nan=False), file=sys.stdout, flush=True)
