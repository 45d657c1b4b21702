"""Several ranks of one training, forked from the test: nothing is imported again."""

import os
import signal
import socket
import sys
import time
import traceback

import pytest


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_ranks(count, work, seconds=120.0):
    """Call `work(rank)` on each of `count` ranks; return their exit codes, what it returns or 0."""
    if "jax" in sys.modules:
        pytest.skip("JAX's threads do not survive a fork: scripts/test.sh runs this without them")
    port = free_port()
    children = [_fork(rank, count, port, work) for rank in range(count)]
    end, codes = time.monotonic() + seconds, [None] * count
    try:
        while None in codes:
            assert time.monotonic() < end, f"still running: {codes}"
            for rank, pid in enumerate(children):
                if codes[rank] is None and (done := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(done[1])
            time.sleep(0.01)
    finally:
        for rank, pid in enumerate(children):
            if codes[rank] is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    return codes


def _fork(rank, count, port, work):
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = work(rank) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
