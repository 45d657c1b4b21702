"""Load a policy server with the genuine openpi-client and tell what each request cost.

    python tests/soak/load_server.py [--requests 1000] [--clients 8] [--rate 50] [--seconds 300]

First one client asks as fast as it can, then several at a steady rate, each in a process of its
own. Latency is what the client waits; `above_ms` is that without the policy's own time, which every
reply tells. openpi-client is used where it is importable, else installed into a temporary folder.
Exit code 1 if one reply is missing or wrong.
"""

import argparse
import contextlib
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from penspin_style.deploy.bundle import Bundle  # noqa: E402
from tests.soak.fuzz_server import POLICY, quantiles, resident, server  # noqa: E402

OPENPI = ("openpi-client==0.1.2", "dm-tree", "wrapt")


class NotThereError(Exception):
    """openpi-client is neither importable nor to be had."""


def install_openpi(folder: pathlib.Path, timeout: float = 120.0) -> None:
    """Put openpi-client and what it imports into a folder, without what it says it depends on.

    It pins a numpy older than ours, and runs with ours.

    Raises:
        NotThereError: the package index is not reachable.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--retries", "0", "--timeout", "10"]
    try:
        subprocess.run(
            [*command, "--target", str(folder), *OPENPI],
            check=True,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["no reason given"]
        raise NotThereError(f"pip cannot install openpi-client: {said[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise NotThereError(f"pip needs more than {timeout:g} s for openpi-client") from error


@contextlib.contextmanager
def openpi() -> Iterator[str]:
    """Yield the folder that openpi-client is imported from; empty if it is installed."""
    with contextlib.suppress(ImportError):
        import openpi_client.websocket_client_policy  # type: ignore  # noqa: F401

        yield ""
        return
    with tempfile.TemporaryDirectory() as folder:
        install_openpi(pathlib.Path(folder))
        yield folder


def client(url: str, policy: pathlib.Path, requests: int, rate: float) -> dict[str, Any]:
    """Ask a server so many times and return what each request took; this process's own work.

    rate: requests a second; 0 for as fast as they are answered.
    """
    from openpi_client.websocket_client_policy import WebsocketClientPolicy  # type: ignore

    bundle = Bundle.load(policy)
    rng = np.random.default_rng(os.getpid())
    questions = [
        {i.name: rng.normal(size=i.tensor[1]).astype(i.tensor[0]) for i in bundle.card.inputs}
        for _ in range(16)
    ]
    answers = [bundle(question)[None] for question in questions]
    asked = WebsocketClientPolicy(url)
    for question in questions:
        asked.infer(question)
    took, above, wrong = [], [], 0
    begin = due = time.perf_counter()
    for i in range(requests):
        if rate:
            due += 1.0 / rate
            time.sleep(max(due - time.perf_counter(), 0.0))
        began = time.perf_counter()
        reply = asked.infer(questions[i % 16])
        took.append(1e3 * (time.perf_counter() - began))
        above.append(took[-1] - reply["server_timing"]["infer_ms"])
        wrong += not np.array_equal(reply["actions"], answers[i % 16])
    seconds = time.perf_counter() - begin
    return {"took": took, "above": above, "wrong": wrong, "seconds": seconds}


def run_clients(
    url: str, policy: pathlib.Path, count: int, requests: int, rate: float, folder: str
) -> list[subprocess.Popen]:
    """Start that many processes of `client`."""
    argv = ["--as-client", url, "--policy", policy, "--requests", requests, "--rate", rate]
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    return [
        subprocess.Popen(
            [sys.executable, __file__, *map(str, argv)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        for _ in range(count)
    ]


def collected(processes: list[subprocess.Popen], requests: int) -> dict[str, Any]:
    """Return the figures of several clients together; what one did not report is lost."""
    said = [json.loads(out) if out else {} for out, _ in (p.communicate() for p in processes)]
    took = [ms for one in said for ms in one.get("took", [])]
    above = [ms for one in said for ms in one.get("above", [])]
    asked = requests * len(processes)
    seconds = max((one.get("seconds", 0.0) for one in said), default=0.0)
    return {
        "requests": asked,
        "lost": asked - len(took),
        "wrong": sum(one.get("wrong", 0) for one in said),
        "seconds": round(seconds, 2),
        "requests_per_second": round(len(took) / max(seconds, 1e-9), 1),
        "latency_ms": quantiles(took),
        "above_ms": quantiles(above),
    }


def main() -> int:
    """Run it; 0 if every reply came and was right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", type=pathlib.Path, default=POLICY)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=float, default=50.0, help="Hz of each client")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--as-client", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_client:
        json.dump(client(args.as_client, args.policy, args.requests, args.rate), sys.stdout)
        return 0
    load = [round(value, 1) for value in os.getloadavg()]
    figures: dict[str, Any] = {"policy": str(args.policy), "load_average": load}
    try:
        with openpi() as folder, server(args.policy) as (process, url):
            one = run_clients(url, args.policy, 1, args.requests, 0.0, folder)
            figures["one_client"] = collected(one, args.requests)
            each = round(args.rate * args.seconds)
            many = run_clients(url, args.policy, args.clients, each, args.rate, folder)
            figures["server"] = watched(process.pid, many)
            figures["clients"] = {"count": args.clients, **collected(many, each)}
    except NotThereError as error:
        print(f"load_server: {error}", file=sys.stderr)
        return 2
    figures["exit_code_of_the_server"] = process.returncode
    print(json.dumps(figures, indent=1))
    faults = sum(figures[k]["lost"] + figures[k]["wrong"] for k in ("one_client", "clients"))
    return int(faults > 0 or process.returncode != 0)


def watched(pid: int, clients: list[subprocess.Popen]) -> dict[str, Any]:
    """Return how a server's memory and open files change until the first client reports."""
    memory, files = [], []
    reported = clients[0].stdout
    while not select.select([reported], [], [], 0.1)[0]:
        memory.append(resident(pid))
        files.append(len(os.listdir(f"/proc/{pid}/fd")))
    # the first tenth is for clients that are still connecting
    tenth = max(len(memory) // 10, 1)
    early, late = memory[tenth : 2 * tenth], memory[-tenth:]
    ends = [round(float(np.median(part)), 1) if part else 0.0 for part in (early, late)]
    return {
        "rss_mb": ends,
        "rss_drift_mb": round(ends[1] - ends[0], 1),
        "files": files[tenth::tenth],
    }


if __name__ == "__main__":
    sys.exit(main())
