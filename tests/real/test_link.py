"""A policy behind a server that dies, freezes or lags; the server is a fake here."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from real.link import LinkError, Remote, first_action

CARD = PolicyCard(
    task="reach",
    inputs=(Input("state", (Feature("tip", (2,), "m"),)),),
    actions=(ActionChannel("x", "m", 0.1, -1.0, 1.0, "delta"),),
    joints=(),
    control_dt=0.05,
)
NEVER = float("inf")


class BrokenError(Exception):
    """What the fake connection fails with."""


class Fake:
    """A server and its connections: answers with the observation's first number."""

    def __init__(self):
        self.card, self.up, self.delay = CARD, True, 0.0
        self.seen, self.connections = [], 0
        self.running = threading.Event()  # cleared: frozen
        self.running.set()

    def connect(self):
        if not self.up:
            raise BrokenError("refused")
        self.connections += 1
        return self, self.card

    def infer(self, observation):
        self.running.wait()
        time.sleep(self.delay)
        if not self.up:
            raise BrokenError("reset by peer")
        self.seen.append(observation)
        return {"actions": np.array([[observation["state"][0]], [9.0]], np.float32)}

    def close(self):
        pass


@pytest.fixture
def server():
    return Fake()


@pytest.fixture
def link(server):
    found = Remote(server.connect, (BrokenError,), patience=0.4)
    yield found
    server.running.set()
    found.close()


def at(x):
    return {"state": np.array([x, 0.0], np.float32)}


def soon(seconds=0.05):
    return time.monotonic() + seconds


def until(condition, seconds=2.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_first_action_of_a_reply_is_the_one_for_now(link):
    assert link.ask(at(0.25), soon(1.0)).tolist() == [0.25]
    assert link.counts() == {"unanswered": 0, "late_answers": 0, "reconnects": 0}


def test_only_an_episodes_first_request_asks_for_a_reset(link, server):
    link.reset()
    for _ in range(3):
        link.ask(at(0.0), soon(1.0))
    assert ["__reset__" in seen for seen in server.seen] == [True, False, False]


def test_an_answer_to_an_older_observation_is_never_handed_out(link, server):
    server.delay = 0.06
    assert link.ask(at(0.1), soon(0.02)) is None
    # the answer to the first comes while the second is waited for
    assert link.ask(at(0.2), soon(1.0)).tolist() == [pytest.approx(0.2)]
    assert link.counts() == {"unanswered": 1, "late_answers": 1, "reconnects": 0}


def test_an_answer_that_comes_between_two_requests_is_late_too(link, server):
    server.delay = 0.03
    assert link.ask(at(0.1), soon(0.01)) is None
    until(lambda: link.counts()["late_answers"] == 1)
    assert link.ask(at(0.2), soon(1.0)).tolist() == [pytest.approx(0.2)]


def test_of_several_waiting_requests_only_the_newest_goes_out(link, server):
    server.running.clear()
    for x in (0.1, 0.2, 0.3, 0.4):
        assert link.ask(at(x), soon(0.01)) is None
    server.running.set()
    assert link.ask(at(0.5), soon(1.0)).tolist() == [0.5]
    assert [float(seen["state"][0]) for seen in server.seen] == pytest.approx([0.1, 0.5])


def test_what_is_sent_is_the_observation_as_it_was(link, server):
    server.running.clear()
    observation = at(0.1)
    assert link.ask(observation, soon(0.01)) is None
    observation["state"][:] = 7.0
    server.running.set()
    until(lambda: server.seen)
    assert server.seen[0]["state"][0] == np.float32(0.1)


def test_a_loop_waits_for_a_dead_server_no_longer_than_its_step(link, server):
    server.up = False
    began = time.monotonic()
    assert link.ask(at(0.1), soon(0.05)) is None
    assert 0.045 < time.monotonic() - began < 0.3


def test_a_server_that_comes_back_answers_again_on_a_new_connection(link, server):
    server.up = False
    assert link.ask(at(0.1), soon(0.02)) is None
    server.up = True
    back = time.monotonic()
    while (action := link.ask(at(0.2), soon(0.02))) is None:
        assert time.monotonic() < back + 2.0
    assert action.tolist() == [pytest.approx(0.2)]
    assert link.counts()["reconnects"] == 1 and server.connections == 2


def test_without_a_deadline_a_lost_request_is_sent_again(link, server):
    server.up = False
    threading.Timer(0.15, lambda: setattr(server, "up", True)).start()
    assert link.ask(at(0.3), NEVER).tolist() == [pytest.approx(0.3)]
    assert link.counts()["reconnects"] == 1


def test_without_a_deadline_patience_ends_the_waiting_and_says_why(link, server):
    server.up = False
    with pytest.raises(LinkError, match=r"has not answered for 0.4 s \((refused|reset by peer)\)"):
        link.ask(at(0.3), NEVER)


def test_a_server_with_another_policy_is_refused(link, server):
    server.up = False
    assert link.ask(at(0.1), soon(0.02)) is None
    server.card = dataclasses.replace(CARD, run="other")
    server.up = True
    with pytest.raises(LinkError, match=r"another policy now \(reach, run 'other'\)"):
        for _ in range(100):
            link.ask(at(0.2), soon(0.02))


def test_an_error_that_no_connection_mends_reaches_the_loop(link, server):
    server.infer = lambda observation: 1 / 0
    with pytest.raises(ZeroDivisionError):
        link.ask(at(0.1), soon(1.0))


def test_a_server_that_never_was_there_is_named_at_once(server):
    server.up = False
    began = time.monotonic()
    with pytest.raises(LinkError, match="no policy server answers \\(refused\\)"):
        Remote(server.connect, (BrokenError,), patience=0.2)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    "actions",
    [None, np.zeros((1, 2)), np.zeros((0, 1)), np.zeros(1), np.array([[np.nan]]), [["a"]]],
)
def test_a_reply_that_is_no_action_is_refused(actions):
    with pytest.raises(LinkError, match="the server answers"):
        first_action({"actions": actions}, 1)
