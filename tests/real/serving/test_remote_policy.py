"""What a control loop gets from a policy that dies, freezes or lags behind a real server."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from websockets.sync.server import serve as plain_serve

from penspin_style.deploy.bundle import ObservationError
from penspin_style.deploy.policy import (
    NoActionError,
    fork,
    horizon_of,
    next_action,
    set_deadline,
)
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from real.control.loop import PolicySource
from real.robot import Observation
from real.serving.action_chunking import EnsembledPolicy
from real.serving.client import PolicyClient
from real.serving.protocol import hello
from real.serving.remote_policy import PolicyLostError, RemotePolicy
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

    def reset(self):
        self.episodes += 1

    def act(self, observation):
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
def remote(server):
    found = RemotePolicy(PolicyClient(server.url), patience=0.5)
    yield found
    found.close()


@pytest.fixture
def source(remote):
    """As a control loop asks it."""
    return PolicySource(remote)


def at(x):
    return {"state": np.array([x, 0.0], np.float32)}


def ask(source, x, deadline):
    """The action for a tip at x; None if it is not there by the deadline."""
    seen = Observation({"tip": np.array([x, 0.0])}, 0.0)
    command = source.next(seen, np.zeros(1), deadline)
    return None if command is None else command.action


def soon(seconds=0.05):
    return time.monotonic() + seconds


def test_an_answer_in_time_is_the_action(source):
    source.begin()
    assert ask(source, 0.25, soon(1.0)).tolist() == [0.25]
    assert source.counts() == {"unanswered": 0, "dropped": 0, "reconnects": 0}


def test_a_remote_policy_is_one_like_every_other(remote, policy):
    remote.reset()
    assert next_action(remote, at(0.5)).tolist() == remote.act(at(0.5)).tolist() == [0.5]
    assert horizon_of(remote) == 1 and remote.card == CARD and fork(remote) is remote
    policy.delay = 0.1
    set_deadline(remote, soon(0.03))
    with pytest.raises(NoActionError, match="no answer in time"):
        remote.act(at(0.5))
    with pytest.raises(NoActionError, match="no time was left"):
        remote.act(at(0.5))


def test_served_chunks_are_ensembled_on_the_robots_side():
    class Chunks(Echo):
        horizon = 2

        def act(self, observation):
            return np.array([observation["state"][:1], [0.5]], np.float32)

    with PolicyServer(Chunks(), port=0) as server:
        remote = RemotePolicy(PolicyClient(server.url))
        whole = EnsembledPolicy(remote, k=0.0)
        source = PolicySource(whole)
        source.begin()
        assert ask(source, 0.25, soon(1.0)).tolist() == [0.25]
        assert ask(source, 1.0, soon(1.0)).tolist() == [0.75]  # 1 said now, 0.5 said before
        assert ask(source, 1.0, soon(-1.0)) is None
        # without ensembling the first action of a chunk is the one for now
        assert ask(PolicySource(remote), 0.25, soon(1.0)).tolist() == [0.25]
        remote.close()


def test_every_episode_begins_anew_at_the_server(remote, source, policy):
    for _ in range(3):
        remote.reset()
        for _ in range(2):
            ask(source, 0.0, soon(1.0))
    assert policy.episodes == 3


def test_a_lagging_server_costs_a_step_and_its_answer_is_dropped(source, policy):
    ask(source, 0.0, soon(1.0))
    policy.delay = 0.1
    began = time.monotonic()
    assert ask(source, 0.1, soon(0.03)) is None
    assert 0.029 < time.monotonic() - began < 0.09
    policy.delay = 0.0
    assert ask(source, 0.2, soon(1.0)).tolist() == [np.float32(0.2)]
    assert source.counts() == {"unanswered": 1, "dropped": 0, "reconnects": 0}


def test_a_server_that_dies_and_comes_back_is_found_again(source, policy, server):
    ask(source, 0.0, soon(1.0))
    server.stop()
    server._thread.join()
    assert ask(source, 0.1, soon(0.03)) is None
    with PolicyServer(policy, port=server.port):
        back = time.monotonic()
        while (action := ask(source, 0.2, soon(0.03))) is None:
            assert time.monotonic() < back + 2.0
        assert action.tolist() == [np.float32(0.2)]
        assert source.counts()["reconnects"] == 1
        source.begin()
        assert source.counts() == {"unanswered": 0, "dropped": 0, "reconnects": 0}


def test_without_a_deadline_a_broken_connection_is_waited_for(source, server, policy):
    ask(source, 0.0, NEVER)
    server.stop()
    server._thread.join()
    with PolicyServer(policy, port=server.port):
        assert ask(source, 0.3, NEVER).tolist() == [np.float32(0.3)]


def test_without_a_deadline_patience_ends_the_waiting(source, server):
    server.stop()
    server._thread.join()
    with pytest.raises(PolicyLostError, match=r"has not answered for 0.5 s \(.+\)"):
        ask(source, 0.3, NEVER)


def test_another_policy_at_the_same_place_ends_the_roll_out(source, policy, server):
    ask(source, 0.0, soon(1.0))
    server.stop()
    server._thread.join()
    policy.card = dataclasses.replace(CARD, run="other")
    with (
        PolicyServer(policy, port=server.port),
        pytest.raises(PolicyLostError, match="another policy now"),
    ):
        for _ in range(100):
            ask(source, 0.2, soon(0.03))


def test_an_observation_that_the_server_refuses_ends_the_roll_out(source, policy):
    policy.fault = ObservationError("state[1] is nan")
    with pytest.raises(PolicyLostError, match=r"no more actions: state\[1\] is nan"):
        ask(source, 0.1, soon(1.0))


def test_a_policy_that_fails_costs_a_step_and_in_fast_time_the_episode(source, policy):
    policy.fault = RuntimeError("out of order")
    assert ask(source, 0.1, soon(1.0)) is None
    with pytest.raises(PolicyLostError, match="the policy failed"):
        ask(source, 0.1, NEVER)
    policy.fault = None
    assert ask(source, 0.1, NEVER).tolist() == [np.float32(0.1)]


def test_a_server_without_a_card_is_refused(remote):
    remote.client.card = None
    with pytest.raises(PolicyLostError, match="sends no policy card"):
        RemotePolicy(remote.client)


def test_without_a_deadline_a_day_of_patience_is_legal(source):
    source.policy.patience = 86_400.0
    assert ask(source, 0.25, NEVER).tolist() == [0.25]


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
        found = RemotePolicy(PolicyClient(url), patience=0.5)
        began = time.monotonic()
        with pytest.raises(PolicyLostError):
            found.act(at(0.1))
        assert time.monotonic() - began < 1.5
        found.close()
        server.shutdown()
        thread.join()
