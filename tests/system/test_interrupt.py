"""What a signal does to every command, and to those whose terminal is gone."""

import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import pytest

from penspin_style.system import interrupt

ROOT = pathlib.Path(__file__).parents[2]
SLEEPER = """
import signal, sys, time
from penspin_style.system import interrupt
{before}
with interrupt.{block} as stop:
    try:
        print("ready", file=sys.stderr, flush=True)
        end = time.monotonic() + 20
        while time.monotonic() < end and not (stop and stop.is_set()):
            time.sleep(0.01)
        print("asked", file=sys.stderr, flush=True)
        time.sleep({after})
    finally:
        time.sleep({safe})
        open({done!r}, "w").write("safe")
sys.exit(4)
"""


@pytest.fixture
def start(tmp_path):
    """Start a process that is in a block of `interrupt`; return it once it is."""
    children = []

    def begin(block, *, before="", after=0.0, safe=0.0, stderr=subprocess.PIPE, **kwargs):
        done = str(tmp_path / "done")
        code = SLEEPER.format(block=block, before=before, after=after, safe=safe, done=done)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=stderr, **kwargs)
        children.append(child)
        if stderr == subprocess.PIPE:
            assert child.stderr.readline() == b"ready\n"
        return child

    begin.done = tmp_path / "done"
    yield begin
    for child in children:
        child.kill()
        child.wait()
        if child.stderr:
            child.stderr.close()


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_the_first_signal_asks_or_raises(start, number):
    asked = start("asking('saving')")
    asked.send_signal(number)
    assert asked.wait(10) == 4
    assert asked.stderr.read() == f"signal {int(number)}: saving\nasked\n".encode()
    start.done.unlink()
    raised = start("raising()")
    raised.send_signal(number)
    assert raised.wait(10) == 1  # the exception leaves the program
    assert f"Interrupted: signal {int(number)}".encode() in raised.stderr.read()
    assert start.done.read_text() == "safe"


def test_a_second_press_ends_at_once_but_not_before_a_robot_is_safe(start):
    for block, code in (("raising()", 143), ("raising(20.0)", 1)):
        child = start(block, safe=1.0)
        child.terminate()
        time.sleep(0.3)
        child.terminate()
        assert child.wait(10) == code
        assert start.done.exists() == (code == 1)
        start.done.unlink(missing_ok=True)


def test_a_lost_terminal_may_send_its_signal_again_and_sigterm_after_it(start):
    child = start("asking('saving')", after=0.5)
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        child.send_signal(number)
        time.sleep(0.05)
    assert child.wait(10) == 4


def test_under_nohup_sighup_stays_ignored(start):
    child = start("asking('saving')", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    child.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert child.poll() is None
    child.terminate()
    assert child.wait(10) == 4


def test_what_is_written_to_a_terminal_that_is_gone_goes_nowhere(start):
    master, slave = pty.openpty()
    child = start("asking('saving')", stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen = b""
    while not seen.endswith(b"\n"):  # a terminal may pass the line on in two pieces
        seen += os.read(master, 100)
    assert seen == b"ready\r\n"
    os.close(master)  # writing to the other end is an error from now on
    child.send_signal(signal.SIGHUP)
    assert child.wait(10) == 4
    assert start.done.read_text() == "safe"


def test_what_is_written_to_a_pipe_that_nobody_reads_goes_nowhere(start):
    child = start("asking('saving')")
    child.stderr.close()
    child.stderr = None
    child.send_signal(signal.SIGHUP)
    assert child.wait(10) == 4
    assert start.done.read_text() == "safe"


def test_a_block_within_a_block_lengthens_its_grace_and_gives_it_back():
    before = signal.getsignal(signal.SIGTERM)
    with interrupt.raising():
        outer = signal.getsignal(signal.SIGTERM)
        with interrupt.raising(5.0):
            assert signal.getsignal(signal.SIGTERM) is outer and outer.grace == 5.0
        assert outer.grace == 0.0
        with interrupt.asking("saving") as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.number == signal.SIGHUP and stop.is_set()
        with pytest.raises(interrupt.Interrupted) as raised:
            signal.raise_signal(signal.SIGHUP)
        assert raised.value.number == signal.SIGHUP
    assert signal.getsignal(signal.SIGTERM) == before
