"""What a control loop gets from a policy that dies, freezes or lags behind a real server."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from websockets.sync.server import serve as plain_serve

from penspin_style.deploy.bundle import ObservationError
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from real.serving.client import PolicyClient
from real.serving.protocol import hello
from real.serving.remote_policy import LinkError, Remote
from real.serving.server import PolicyServer, ServerLimits
from real.serving.wire import pack

pytestmark = pytest.mark.clock

CARD = PolicyCard(
    task="reach",
    inputs=(Input("state", (Feature("tip", (2,), "m"),)),),
    actions=(ActionChannel("x", "m", 0.1, -1.0, 1.0, "delta"),),
    joints=(),
    control_dt=0.05,
)
NEVER = float("inf")


class Echo:
    """A policy that answers with the first number that it is shown."""

    def __init__(self):
        self.card, self.delay, self.fault, self.episodes = CARD, 0.0, None, 0

    def begin_episode(self):
        self.episodes += 1
        return self

    def __call__(self, observation):
        time.sleep(self.delay)
        if self.fault is not None:
            raise self.fault
        return observation["state"][:1]


@pytest.fixture
def policy():
    return Echo()


@pytest.fixture
def server(policy):
    with PolicyServer(policy, port=0, limits=ServerLimits(close=0.1, drain=0.3)) as running:
        yield running


@pytest.fixture
def link(server):
    found = Remote(PolicyClient(server.url), patience=0.5)
    yield found
    found.close()


def at(x):
    return {"state": np.array([x, 0.0], np.float32)}


def soon(seconds=0.05):
    return time.monotonic() + seconds


def test_an_answer_in_time_is_the_action(link):
    link.reset()
    assert link.ask(at(0.25), soon(1.0)).tolist() == [0.25]
    assert link.counts() == {"unanswered": 0, "reconnects": 0}


def test_every_episode_begins_anew_at_the_server(link, policy):
    for _ in range(3):
        link.reset()
        for _ in range(2):
            link.ask(at(0.0), soon(1.0))
    assert policy.episodes == 3


def test_a_lagging_server_costs_a_step_and_its_answer_is_dropped(link, policy):
    link.ask(at(0.0), soon(1.0))
    policy.delay = 0.1
    began = time.monotonic()
    assert link.ask(at(0.1), soon(0.03)) is None
    assert 0.029 < time.monotonic() - began < 0.09
    policy.delay = 0.0
    assert link.ask(at(0.2), soon(1.0)).tolist() == [np.float32(0.2)]
    assert link.counts() == {"unanswered": 1, "reconnects": 0}


def test_a_server_that_dies_and_comes_back_is_found_again(link, policy, server):
    link.ask(at(0.0), soon(1.0))
    server.stop()
    server._thread.join()
    assert link.ask(at(0.1), soon(0.03)) is None
    with PolicyServer(policy, port=server.port):
        back = time.monotonic()
        while (action := link.ask(at(0.2), soon(0.03))) is None:
            assert time.monotonic() < back + 2.0
        assert action.tolist() == [np.float32(0.2)]
        assert link.counts()["reconnects"] == 1
        link.reset()
        assert link.counts() == {"unanswered": 0, "reconnects": 0}


def test_without_a_deadline_a_broken_connection_is_waited_for(link, server, policy):
    link.ask(at(0.0), NEVER)
    server.stop()
    server._thread.join()
    with PolicyServer(policy, port=server.port):
        assert link.ask(at(0.3), NEVER).tolist() == [np.float32(0.3)]


def test_without_a_deadline_patience_ends_the_waiting(link, server):
    server.stop()
    server._thread.join()
    with pytest.raises(LinkError, match=r"has not answered for 0.5 s \(.+\)"):
        link.ask(at(0.3), NEVER)


def test_another_policy_at_the_same_place_ends_the_roll_out(link, policy, server):
    link.ask(at(0.0), soon(1.0))
    server.stop()
    server._thread.join()
    policy.card = dataclasses.replace(CARD, run="other")
    with (
        PolicyServer(policy, port=server.port),
        pytest.raises(LinkError, match="another policy now"),
    ):
        for _ in range(100):
            link.ask(at(0.2), soon(0.03))


def test_an_observation_that_the_server_refuses_ends_the_roll_out(link, policy):
    policy.fault = ObservationError("state[1] is nan")
    with pytest.raises(LinkError, match=r"no more actions: state\[1\] is nan"):
        link.ask(at(0.1), soon(1.0))


def test_a_policy_that_fails_costs_a_step_and_in_fast_time_the_episode(link, policy):
    policy.fault = RuntimeError("out of order")
    assert link.ask(at(0.1), soon(1.0)) is None
    with pytest.raises(LinkError, match="the policy failed"):
        link.ask(at(0.1), NEVER)
    policy.fault = None
    assert link.ask(at(0.1), NEVER).tolist() == [np.float32(0.1)]


def test_a_server_without_a_card_is_refused(link):
    link.client.card = None
    with pytest.raises(LinkError, match="sends no policy card"):
        Remote(link.client)


def test_without_a_deadline_a_day_of_patience_is_legal(link):
    link.patience = 86_400.0
    assert link.ask(at(0.25), NEVER).tolist() == [0.25]


def test_a_server_that_answers_without_end_cannot_use_up_more_than_the_patience():
    def talk(ws):
        ws.send(pack(hello(Echo())))
        for _ in ws:
            for _ in range(1000):
                ws.send(b"\x80" * 10)

    with plain_serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        found = Remote(PolicyClient(url), patience=0.5)
        began = time.monotonic()
        with pytest.raises(LinkError):
            found.ask(at(0.1), NEVER)
        assert time.monotonic() - began < 1.5
        found.close()
        server.shutdown()
        thread.join()
