"""A client of a policy server: what it returns, what it raises, how it comes back."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from websockets.sync.server import serve as plain_serve

from penspin_style.features import Joint
from real.serving.client import PolicyClient, PolicyError, Refused, Timeout, Unreachable
from real.serving.protocol import hello
from real.serving.server import PolicyServer, ServerLimits
from real.serving.wire import WireError, pack, unpack
from tests.support.policy_client import again, silent, value
from tests.support.serving import CARD, KEY, ROOT, Echo, asking, serving

pytestmark = pytest.mark.clock

LIMITS = ServerLimits(close=0.1, drain=0.5)


@pytest.fixture
def policy():
    return Echo()


@pytest.fixture
def server(policy):
    with PolicyServer(policy, port=0, limits=LIMITS) as server:
        yield server


@pytest.fixture
def client(server):
    with PolicyClient(server.url) as client:
        yield client


@contextlib.contextmanager
def scripted(answer, said=None):
    """A server that answers every request with what `answer(ws, frame)` does."""

    def converse(ws):
        ws.send(pack(hello(Echo()) if said is None else said))
        for frame in ws:
            answer(ws, frame)

    with plain_serve(converse, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


# What it returns.


def test_it_knows_the_card_and_returns_actions_and_times(client):
    assert client.card == CARD
    assert client.metadata["reset_pose"] == [0.25, 0.5]
    reply = client.infer(asking(0.5))
    assert reply.keys() == {"actions", "server_timing"}
    np.testing.assert_array_equal(reply["actions"], np.float32([[0.5, -0.5]]))
    assert client.connected


def test_a_reset_begins_an_episode_once(client, policy):
    for _ in range(2):
        client.infer(asking())
    client.reset()
    for _ in range(3):
        client.infer(asking())
    assert policy.steps == [[0, 1], [0, 1, 2]]


def test_a_server_of_others_gets_no_word_that_it_may_not_know():
    asked = []

    def answer(ws, frame):
        asked.append(unpack(frame))
        ws.send(pack({"actions": np.ones((10, 7)), "server_timing": {"infer_ms": 1.0}}))

    with scripted(answer, said={"reset_pose": [0.0]}) as url, PolicyClient(url) as client:
        client.reset()
        assert client.infer({"prompt": "spin"})["actions"].shape == (10, 7)
        assert client.card is None
    assert asked == [{"prompt": "spin"}]


# What it raises.


def test_nobody_there_is_said_at_once_or_after_the_wait():
    url = f"ws://127.0.0.1:{free_port()}"
    for wait, least in ((0.0, 0.0), (0.3, 0.1)):
        began = time.monotonic()
        with pytest.raises(Unreachable, match="refused"):
            PolicyClient(url, wait=wait)
        assert least <= time.monotonic() - began < wait + 0.5


def test_a_client_waits_for_a_server_that_comes_later(policy):
    port = free_port()
    server = PolicyServer(policy, port=port)
    starting = threading.Timer(0.3, server.__enter__)
    starting.start()
    with PolicyClient(f"ws://127.0.0.1:{port}", wait=10) as client:
        assert value(client.infer(asking(0.5))) == 0.5
    starting.join()
    server.__exit__(None, None, None)


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 200", b"SSH-2.0-x\r\n\r\n"])
def test_what_does_not_answer_as_a_server_is_unreachable_in_time(greeting):
    with silent(greeting) as url:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            PolicyClient(url, connect_timeout=0.3)
        assert time.monotonic() - began < 2.0


def test_a_wrong_key_is_refused(policy):
    with PolicyServer(policy, port=0, api_key=KEY) as server:
        for key in (None, KEY + "x"):
            with pytest.raises(Refused, match=r"does not let us in \(HTTP status 401.*API key"):
                PolicyClient(server.url, key)
        with PolicyClient(server.url, KEY) as client:
            assert value(client.infer(asking(0.5))) == 0.5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("http://127.0.0.1:1",), "is not the url of a policy server"),
        (("127.0.0.1:8000",), "is not the url of a policy server"),
        (("ws://127.0.0.1:99999",), "ort"),
        ((f"ws://{'a' * 70}.example",), "label"),
        (("ws://127.0.0.1:1", "key\r\nX: y"), "printable ASCII"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_sent(argv, message):
    with pytest.raises(ValueError, match=message):
        PolicyClient(*argv)
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0 and at most 3600 s"):
            PolicyClient("ws://127.0.0.1:1", timeout=timeout)


def test_a_hello_that_is_none_is_refused():
    said = hello(Echo())
    said["card"]["format"] = 99
    with scripted(None, said) as url, pytest.raises(Refused, match="format 99"):
        PolicyClient(url)


def test_a_slow_policy_costs_the_request_and_not_the_connection(client):
    began = time.monotonic()
    with pytest.raises(Timeout):
        client.infer(asking(0.5, delay=0.6), timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 0.5
    assert value(client.infer(asking(0.75))) == 0.75
    assert client.connections == 1


def test_an_error_of_the_server_says_whose_fault_it_is(client, caplog):
    with pytest.raises(PolicyError, match="the server's log says why") as caught:
        client.infer({})
    assert caught.value.code == "policy"
    assert f"error {caught.value.number}" in caplog.text
    assert value(client.infer(asking(0.5))) == 0.5  # over a new connection
    with pytest.raises(PolicyError, match="more than 4096 values") as caught:
        client.infer(asking(more=[0] * 5000))
    assert caught.value.code == "message"


def test_an_observation_that_cannot_be_sent_costs_nothing(client):
    with pytest.raises(WireError, match="complex128"):
        client.infer({"joint_pos": np.zeros(2, complex)})
    assert value(client.infer(asking(0.5))) == 0.5
    assert client.connections == 1


def reply_with(actions, **more):
    def answer(ws, frame):
        said = {"actions": actions, "__seq__": unpack(frame)["__seq__"], **more}
        ws.send(pack({k: v for k, v in said.items() if v is not ...}))

    return answer


BAD_REPLIES = [
    (reply_with(np.float32([[0.5, np.nan]])), "an action is nan"),
    (reply_with(np.float32([[0.5, 1.01]])), "an action is 1.01"),
    (reply_with(np.float32([[0.5]])), r"actions are \(1, 1\), not \(1, 2\)"),
    (reply_with(np.float32([0.5, 0.5])), "no actions"),
    (reply_with(np.array([[1, 1]])), "no actions"),
    (reply_with([[0.5, 0.5]]), "no actions"),
    (reply_with(...), "no actions"),
    (reply_with(np.float32([[0, 0]]), __seq__=0), "belongs to another request"),
    (reply_with(np.float32([[0, 0]]), __seq__=...), "belongs to another request"),
    (lambda ws, frame: ws.send(b"\xc1"), "the reply is not one"),
    (lambda ws, frame: ws.send("Traceback (most recent call last):\n  boom"), "boom"),
    (lambda ws, frame: ws.send('{"error": 1}'), "error"),
    (lambda ws, frame: ws.send("[" * 100_000), "policy"),
]


@pytest.mark.parametrize(("answer", "message"), BAD_REPLIES)
def test_what_is_no_action_is_never_returned(answer, message):
    with (
        scripted(answer) as url,
        PolicyClient(url) as client,
        pytest.raises(PolicyError, match=message),
    ):
        client.infer(asking())


def test_a_server_that_answers_twice_is_out_of_step_and_given_up():
    def twice(ws, frame):
        for _ in range(2):
            reply_with(np.float32([[0.5, 0.5]]))(ws, frame)

    with scripted(twice) as url, PolicyClient(url) as client:
        client.infer(asking())
        time.sleep(0.05)
        with pytest.raises(Unreachable, match="more often than it was asked"):
            client.infer(asking())


def test_a_server_that_hangs_up_is_unreachable_and_found_again():
    turns = []

    def answer(ws, frame):
        turns.append(frame)
        if len(turns) == 1:
            ws.close()
        else:
            reply_with(np.float32([[0.25, 0.25]]))(ws, frame)

    with scripted(answer) as url, PolicyClient(url) as client:
        with pytest.raises(Unreachable, match="hung up with 1000"):
            client.infer(asking())
        assert value(client.infer(asking())) == 0.25


def test_a_request_larger_than_the_server_reads_is_the_requests_fault(client):
    for _ in range(2):
        with pytest.raises(PolicyError, match="is refused: the server hung up with 1009") as caught:
            again(client, 2.0, observation=asking(more=np.zeros(20_000)))
        assert caught.value.code == "message"
    assert value(again(client, 2.0)[0]) == 0.25


# What it never returns, and how it comes back.


def test_an_answer_is_always_the_one_to_the_question(client):
    rng = random.Random(0)
    late = 0
    for i in range(60):
        asked = i / 128
        try:
            reply = client.infer(asking(asked, delay=rng.choice([0, 0.005, 0.02])), timeout=0.012)
        except Timeout:
            late += 1
        else:
            assert value(reply) == asked
    assert 5 < late < 60
    assert client.connections == 1


def test_a_connection_that_breaks_is_opened_again_at_once(policy, server):
    with PolicyClient(server.url) as client:
        for turn in range(1, 6):
            assert value(client.infer(asking(0.5))) == 0.5
            assert client.connections == turn
            client._socket._socket.shutdown(socket.SHUT_RDWR)
            with pytest.raises(Unreachable):
                client.infer(asking())
            _, took = again(client, 2.0, timeout=0.5)
            assert took < 1.0
    assert len(policy.steps) == 6  # a new connection is a new episode


def test_a_server_that_is_killed_is_found_again_within_2_s(policy):
    port = free_port()
    with PolicyServer(policy, port=port, limits=LIMITS) as server:
        client = PolicyClient(server.url)
        client.infer(asking())
    began = time.monotonic()
    with pytest.raises(Unreachable):
        client.infer(asking(), timeout=0.3)
    assert time.monotonic() - began < 1.5
    with PolicyServer(policy, port=port, limits=LIMITS):
        _, took = again(client, 2.0, timeout=0.05)
        assert took < 2.0
        client.close()


def test_a_server_that_freezes_delays_no_call_and_answers_nothing_old():
    x = {"teacher": np.ones(22, np.float32)}
    with serving() as process, PolicyClient(process.url, timeout=0.05, wait=5) as client:
        first = client.infer(x, timeout=5.0)["actions"]
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        while time.monotonic() - began < 1.3:
            asked = time.monotonic()
            with pytest.raises((Timeout, Unreachable)):
                client.infer({"teacher": np.full(22, 2, np.float32)})
            assert time.monotonic() - asked < 0.5
        process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        while True:
            try:
                reply = client.infer(x)
                break
            except (Timeout, Unreachable):
                assert time.monotonic() - began < 5.0
        assert reply["actions"].tobytes() == first.tobytes()


def test_a_server_with_another_policy_is_not_the_one_that_was_asked(policy):
    port = free_port()
    with PolicyServer(policy, port=port, limits=LIMITS) as server:
        client = PolicyClient(server.url)
        client.infer(asking())

    class Other(Echo):
        card = type(CARD)(**{**vars(CARD), "joints": (Joint("j9", "rad", 0, 1, 3.0, 0.1, 0.5),)})

    with PolicyServer(Other(), port=port, limits=LIMITS), pytest.raises(Refused, match="another"):
        again(client, 3.0, timeout=0.2)
    with PolicyServer(policy, port=port, limits=LIMITS):  # the first one is back
        began = time.monotonic()
        while True:
            try:
                assert value(client.infer(asking(0.5))) == 0.5
                break
            except (Refused, Timeout, Unreachable):
                time.sleep(0.02)
                assert time.monotonic() - began < 5.0
    client.close()


def test_it_answers_pings_while_nobody_asks(policy):
    with (
        PolicyServer(policy, port=0, limits=ServerLimits(ping=0.4, close=0.1)) as server,
        PolicyClient(server.url) as client,
    ):
        time.sleep(1.0)
        assert value(client.infer(asking(0.5))) == 0.5
        assert client.connections == 1


def test_closing_is_final_and_leaves_nothing_behind(server):
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        client = PolicyClient(server.url)
        client.infer(asking())
        client.close()
        client.close()
        with pytest.raises(Unreachable, match="this client is closed"):
            client.infer(asking())
    assert threading.active_count() == threads
    time.sleep(0.2)
    assert len(os.listdir("/proc/self/fd")) <= files


BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxruntime", "mujoco", "h5py"):
            raise ImportError(f"{name} is not on this robot")

sys.meta_path.insert(0, Refuse())
import numpy as np
from real.serving.client import PolicyClient
with PolicyClient(sys.argv[1]) as c:
    reply = c.infer({"joint_pos": np.float32([0.5, -0.5]), "delay": np.float32(0)})
    print(c.card.task, reply["actions"].tolist())
"""


def test_it_runs_on_a_computer_with_neither_torch_nor_onnxruntime(server):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE, server.url],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("toy [[0.5, -0.5]]\n", "")
