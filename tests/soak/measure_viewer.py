"""Watch a task in a headless browser: frames per second that are sent and drawn, and memory.

    python tests/soak/measure_viewer.py [--task panda_lift_cube] [--num-envs 1 16] [--seconds 10]
        [--browser chromium] [--image FILE.png]

The page of `penspin play` is opened in the browser, which draws in software. `sent_per_s` are the
scenes that the viewer has sent, at most 30 a second; `page_per_s` the frames that the browser has
drawn (`requestAnimationFrame`); `ours_mb` is the memory of the simulating process, `page_mb` that
of the page's JavaScript; `steps_per_s` the control steps, in real time 1 / control_dt. Exit code 1
if fewer are sent than `--least`, 2 where there is no browser or no viser.
"""

import argparse
import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from penspin_style.bench.alternate import make_env  # noqa: E402
from penspin_style.train.load_policy import compose_training  # noqa: E402
from penspin_style.viewer.browser import BrowserViewer, check_installed  # noqa: E402

COUNT = """
window.drawn = 0;
(function count() { window.drawn += 1; requestAnimationFrame(count); })();
"""


class Page:
    """One page of a headless browser, told through its debugging protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._count = socket, 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            said = json.loads(self._socket.recv(timeout=60))
            if said.get("id") == self._count:
                return said["result"]

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript is."""
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")


@contextlib.contextmanager
def opened(browser: str, address: str) -> Iterator[Page]:
    """Open an address in a headless browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        line = [browser, "--headless=new", "--no-sandbox", "--use-angle=swiftshader"]
        line += ["--enable-unsafe-swiftshader", "--window-size=1280,800", "--no-first-run"]
        line += ["--remote-debugging-port=0", f"--user-data-dir={folder}", address]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = pathlib.Path(folder) / "DevToolsActivePort"
            end = time.monotonic() + 60
            while not (told.exists() and told.read_text().count("\n")):
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit("the browser did not start")
                time.sleep(0.1)
            port = told.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = [p for p in json.load(answer) if p["type"] == "page"]
            with connect(pages[0]["webSocketDebuggerUrl"], max_size=2**26) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait()


def resident() -> int:
    """Return this process' memory in MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 >> 20


def measure(
    task: str, num_envs: int, seconds: float, browser: str, image: pathlib.Path | None
) -> dict[str, Any]:
    """Return the figures of one number of environments."""
    cfg, kind = compose_training([f"task={task}", f"num_envs={num_envs}", "sim.nthread=1"])[:2]
    env = make_env(cfg, kind)
    rng = torch.Generator().manual_seed(0)

    def act(_: Any) -> torch.Tensor:
        return 0.2 * (2.0 * torch.rand(num_envs, len(env.task.actions), generator=rng) - 1.0)

    viewer = BrowserViewer(env, act, port=8900)
    sent, draw = [0], viewer.draw

    def counted() -> None:
        sent[0] += 1
        draw()

    viewer.draw = counted  # type: ignore[method-assign]
    over = threading.Event()
    thread = threading.Thread(target=viewer.run, kwargs={"until": over.is_set})
    thread.start()
    try:
        with opened(browser, viewer.address) as page:
            time.sleep(8.0)  # it loads
            page.call("Runtime.enable")
            page.value(COUNT)
            before = sent[0], viewer.steps, page.value("window.drawn"), time.monotonic()
            time.sleep(seconds)
            after = sent[0], viewer.steps, page.value("window.drawn"), time.monotonic()
            heap = page.value("performance.memory.usedJSHeapSize") or 0
            if image:
                shot = page.call("Page.captureScreenshot", format="png")["data"]
                image.write_bytes(base64.b64decode(shot))
    finally:
        over.set()
        thread.join()
        viewer.close()
    spent = after[3] - before[3]
    rates = [round((b - a) / spent, 1) for a, b in zip(before[:3], after[:3], strict=True)]
    names = ("sent_per_s", "steps_per_s", "page_per_s")
    memory = {"ours_mb": resident(), "page_mb": heap >> 20}
    return {"num_envs": num_envs, **dict(zip(names, rates, strict=True)), **memory}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; print one line of JSON for each number of environments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="panda_lift_cube")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--image", type=pathlib.Path, help="of the last page")
    parser.add_argument("--least", type=float, default=20.0, help="scenes per second")
    args = parser.parse_args(argv)
    try:
        check_installed()
    except ValueError as error:
        parser.error(str(error))
    if not shutil.which(args.browser):
        parser.error(f"there is no {args.browser}: give one as --browser")
    torch.set_num_threads(1)
    slowest = args.least
    for count in args.num_envs:
        found = measure(args.task, count, args.seconds, args.browser, args.image)
        print(json.dumps(found), flush=True)
        slowest = min(slowest, found["sent_per_s"])
    return int(slowest < args.least)


if __name__ == "__main__":
    sys.exit(main())
