"""A live page of a run, served from its folder: curves, throughput, faults, the latest video.

The folder is read, never written. The page is one file that loads nothing from elsewhere; three
addresses are served and no others, so that no path of a request reaches the disk.
"""

import http.server
import json
import pathlib
import threading
from collections.abc import Callable
from typing import Any

from penspin_style.train.runs import RunRecord, read_run

PAGE = pathlib.Path(__file__).with_name("watch.html")
_POINTS = 400
"""Points of a curve; more would not be seen."""
_FIRST = ("eval/", "env/", "reward/", "time/samples_per_s", "train/")
"""The order of the charts; other columns follow."""
_HIDDEN = ("iteration", "samples", "time/rollout", "time/update", "time/eval")


def describe(run: RunRecord) -> dict[str, Any]:
    """Return what the page shows of a run, as JSON values."""
    total = float(run.config.get("total_samples") or 0)
    speed = run.rows[-1].get("time/samples_per_s", 0.0) if run.rows else 0.0
    facts = {
        "state": run.state,
        "algorithm": run.algo,
        "seed": str(run.seed),
        "samples": f"{run.samples:,}" + (f" of {int(total):,}" if total else ""),
        "speed": f"{speed:,.0f} samples/s",
        "minutes": f"{run.minutes:.1f}",
        run.score_name: "none" if run.score is None else f"{run.score:.3g}",
    }
    if run.state == "running" and speed:
        facts["minutes left"] = f"{max(0.0, total - run.samples) / speed / 60:.1f}"
    if run.git:
        facts["code"] = run.git
    video = newest_video(run.folder)
    return {
        "title": f"{run.task}/{run.name}",
        "facts": facts,
        "charts": charts(run),
        "faults": sorted(path.name for path in (run.folder / "faults").glob("*")),
        "video": "" if video is None else f"{video.name}-{video.stat().st_mtime_ns}",
        "config": (run.folder / "config.yaml").read_text(errors="replace"),
    }


def charts(run: RunRecord) -> list[dict[str, Any]]:
    """Return the curve of each column of the log, thinned; constant zeros are left out."""
    names = {name for row in run.rows for name in row if name not in _HIDDEN}

    def place(name: str) -> tuple[int, str]:
        ranks = (i for i, prefix in enumerate(_FIRST) if name.startswith(prefix))
        return next(ranks, len(_FIRST)), name

    found = []
    for name in sorted(names, key=place):
        x, y = run.curve(name)
        if any(y):
            step = -(-len(x) // _POINTS)
            last = [len(x) - 1] if (len(x) - 1) % step else []
            kept = [*range(0, len(x), step), *last]
            found.append({"name": name, "x": [x[i] for i in kept], "y": [y[i] for i in kept]})
    return found


def newest_video(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the video that was written last, None if there is none."""
    videos = sorted((folder / "videos").glob("*.mp4"), key=lambda path: path.stat().st_mtime)
    return videos[-1] if videos else None


def make_server(
    folder: pathlib.Path, host: str, port: int
) -> tuple[http.server.ThreadingHTTPServer, str]:
    """Return a server of a run's page, and its address; `serve_forever` serves.

    Raises:
        ValueError: the folder is no run's.
        OSError: the port is taken.
    """
    read_run(folder)

    class Handler(_Handler):
        run_folder = folder

    server = http.server.ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server, f"http://{host}:{server.server_address[1]}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    run_folder: pathlib.Path
    _lock = threading.Lock()

    def do_GET(self) -> None:
        answers: dict[str, Callable[[], tuple[str, bytes]]] = {
            "/": lambda: ("text/html; charset=utf-8", PAGE.read_bytes()),
            "/data": self._data,
            "/video": self._video,
        }
        answer = answers.get(self.path.partition("?")[0])
        if answer is None:
            self.send_error(404)
            return
        try:
            kind, body = answer()
        except (OSError, ValueError) as error:
            self.send_error(503, explain=" ".join(str(error).split()))
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _data(self) -> tuple[str, bytes]:
        with self._lock:  # one reading of the folder at a time
            said = describe(read_run(self.run_folder))
        return "application/json", json.dumps(said, allow_nan=False).encode()

    def _video(self) -> tuple[str, bytes]:
        video = newest_video(self.run_folder)
        if video is None:
            raise ValueError("there is no video yet")
        return "video/mp4", video.read_bytes()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""
