"""A policy server: what it answers, and what no client can do to the others."""

import contextlib
import gc
import json
import logging
import os
import socket
import threading
import time
import types

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from penspin_style.deploy.bundle import Bundle
from penspin_style.features import PolicyCard
from real.serving.server import PolicyServer, ServerLimits
from real.serving.wire import pack
from tests.support.policy_server import all_of, end_of, health, limited
from tests.support.serving import (
    CARD,
    ONNX,
    UPGRADE,
    Echo,
    ask,
    asking,
    bare,
    client,
    hung_up,
    masked,
)

pytestmark = pytest.mark.clock

# What it says.


def test_the_hello_says_what_the_card_says(server):
    with client(server.url) as ws:
        said = ws.hello
    assert PolicyCard.from_json(json.dumps(said.pop("card"))) == CARD
    assert said == {
        "server": "penspin_style",
        "protocol": {"format": 1, "reset": "__reset__", "sequence": "__seq__"},
        "task": "toy",
        "control_dt": 0.05,
        "horizon": 1,
        "action": {
            "name": ["finger", "thumb"],
            "unit": ["rad", "rad"],
            "mode": ["delta", "absolute"],
            "scale": [0.04, 0.08],
            "low": [-0.5, -0.25],
            "high": [1.5, 1.25],
        },
        "reset_pose": [0.25, 0.5],
        "sha256": "of the toy",
    }


def test_a_reply_holds_one_action_a_row_and_the_time_it_took(server):
    with client(server.url) as ws:
        first, second = ask(ws, asking(0.25, 0.1)), ask(ws, asking(0.5))
    assert first["actions"].dtype == np.float32
    np.testing.assert_array_equal(first["actions"], [[0.25, -0.25]])
    np.testing.assert_array_equal(second["actions"], [[0.5, -0.5]])
    assert first.keys() == second.keys() == {"actions", "server_timing"}
    assert first["server_timing"].keys() == {"infer_ms"}
    assert 100 <= first["server_timing"]["infer_ms"] <= second["server_timing"]["prev_total_ms"]
    assert second["server_timing"]["infer_ms"] < 100


def test_an_exported_policy_answers_as_it_does_without_a_server():
    bundle = Bundle.load(ONNX)
    x = np.random.default_rng(0).normal(size=bundle.card.inputs[0].size).astype(np.float32)
    with PolicyServer(bundle, port=0) as server, client(server.url) as ws:
        assert ws.hello["reset_pose"] == [j.default for j in bundle.card.joints]
        assert ws.hello["sha256"] == bundle.sha256
        whole = ask(ws, {"teacher": x})["actions"]
        at, parts = 0, {}
        for f in bundle.card.inputs[0].features:
            parts[f.name] = x[at : at + f.size].reshape(f.shape)
            at += f.size
        one_by_one = ask(ws, parts)["actions"]
        batch = ask(ws, {"teacher": np.stack([x, x])})
    assert whole.tobytes() == one_by_one.tobytes() == bundle(x).tobytes()
    assert batch["message"].startswith("the observation is a batch of 2; send one")


def test_a_connection_and_a_reset_begin_an_episode(server, policy):
    with client(server.url) as one, client(server.url) as other:
        for observation in (asking(), asking(), asking(__reset__=False), asking(__reset__=True)):
            ask(one, observation)
        ask(other, asking())
        ask(one, asking())
    assert policy.steps == [[0, 1, 2], [0, 1], [0]]


def test_a_sequence_number_comes_back_in_its_reply(server):
    with client(server.url) as ws:
        assert [ask(ws, asking(__seq__=n))["__seq__"] for n in (7, 0, 2**63)] == [7, 0, 2**63]


def test_a_policy_with_a_horizon_answers_that_many_rows():
    class Chunk(Echo):
        horizon = 3
        fork = None

        def act(self, observation):
            return np.arange(6, dtype=np.float64).reshape(3, 2) / 10

    with PolicyServer(Chunk(), port=0) as server, client(server.url) as ws:
        assert ws.hello["horizon"] == 3
        np.testing.assert_allclose(
            ask(ws, asking())["actions"], [[0, 0.1], [0.2, 0.3], [0.4, 0.5]], atol=1e-7
        )


def test_it_serves_others_while_a_policy_thinks(server):
    with client(server.url) as slow:
        slow.send(pack(asking(delay=0.6)))
        began = time.monotonic()
        with client(server.url):
            assert health(server.url) == (200, b"OK\n")
        assert time.monotonic() - began < 0.5
        assert slow.recv(timeout=5)


# What it does not answer.

BAD = [
    ("text", b"\x80", "message", "a request is a binary frame"),
    ("bytes", b"", "message", "cut off"),
    ("bytes", b"\x93\1\2\3", "message", "a list, not a map"),
    ("bytes", pack(asking(__reset__=1)), "message", "'__reset__' must be true or false"),
    ("bytes", pack(asking(__seq__=-1)), "message", "'__seq__' must be a whole number"),
    ("bytes", pack(asking(__seq__="1")), "message", "'__seq__' must be a whole number"),
    ("bytes", pack({}), "policy", "the server's log says why"),
]


@pytest.mark.parametrize(("kind", "frame", "code", "message"), BAD)
def test_a_request_that_is_none_ends_its_own_connection(server, caplog, kind, frame, code, message):
    with client(server.url) as other, client(server.url) as ws:
        ws.send("{}" if kind == "text" else frame)
        said = json.loads(ws.recv(timeout=5))
        assert said.keys() == {"error", "id", "message"}
        assert said["error"] == code
        assert message in said["message"]
        assert end_of(ws) == (1011, f"{code} {said['id']}")
        assert f"error {said['id']}, {code}" in caplog.text
        np.testing.assert_array_equal(ask(other, asking(0.125))["actions"], [[0.125, -0.125]])


def test_a_policy_that_fails_tells_the_log_and_not_the_client(caplog):
    class Failing(Echo):
        failure: BaseException = RuntimeError("secret /root/path")

        def fork(self):
            raise self.failure

    policy = Failing()
    with PolicyServer(policy, port=0) as server:
        failures = RuntimeError("secret"), SystemExit(3), StopIteration(), MemoryError()
        for failure in (*failures, TimeoutError("secret")):
            policy.failure = failure
            with client(server.url) as ws:
                said = ask(ws, asking())
                assert end_of(ws)[0] == 1011
            assert said["error"] == "policy"
            assert said["message"] == "the policy could not answer; the server's log says why"
    assert "RuntimeError: secret" in caplog.text
    assert "Traceback" in caplog.text


def test_actions_of_another_shape_are_no_reply():
    class Wide(Echo):
        fork = None

        def act(self, observation):
            return np.zeros(3, np.float32)

    with PolicyServer(Wide(), port=0) as server, client(server.url) as ws:
        assert ask(ws, asking())["error"] == "policy"


@pytest.mark.parametrize(
    "message", [bytes(2**16 + 1), [bytes(2**15), bytes(2**15), bytes(1)]], ids=["whole", "parts"]
)
def test_a_frame_above_the_limit_is_not_read(server, message):
    with client(server.url) as ws:
        with contextlib.suppress(ConnectionClosed):  # it may hang up while we still send
            ws.send(message)
        assert end_of(ws)[0] == 1009


def test_fragments_are_joined_but_not_without_end(server):
    frame = pack(asking(0.75))
    with client(server.url) as ws:
        ws.send([frame[:9], b"", frame[9:]])
        assert isinstance(ws.recv(timeout=5), bytes)
    with bare(server.url) as sock:
        sock.sendall(UPGRADE)
        time.sleep(0.1)
        sock.sendall(masked(b"", fin=False) + masked(b"", opcode=0, fin=False) * 64)
        assert b"a message has more than 64 fragments" in all_of(sock)
    with bare(server.url) as sock:  # as many fragments again, of 1 KiB each, are none too many
        parts = masked(bytes(1024), fin=False) + masked(bytes(1024), opcode=0, fin=False) * 60
        sock.sendall(UPGRADE + parts + masked(b"", opcode=0, fin=False) * 3 + masked(b"", opcode=0))
        assert b"bytes follow the message" in all_of(sock)


@pytest.mark.parametrize(
    ("flood", "reason"),
    [
        (masked(b"", opcode=9), "more than 64 pings or pongs at once"),
        (masked(b"never asked", opcode=10), "more than 64 pings or pongs at once"),
        (masked(b""), "more than 64 messages that nobody has taken yet"),
        (masked(pack(asking(delay=0.5))), "more than 64 messages that nobody has taken yet"),
    ],
    ids=["pings", "pongs", "empty", "requests"],
)
def test_a_packet_of_thousands_of_frames_costs_the_others_nothing(server, caplog, flood, reason):
    with client(server.url) as other, bare(server.url) as sock:
        sock.sendall(UPGRADE)
        time.sleep(0.05)
        sender = threading.Thread(target=send_all, args=(sock, flood * 60_000))
        sender.start()
        took = []
        for _ in range(20):
            began = time.perf_counter()
            other.ping().wait(5)
            took.append(time.perf_counter() - began)
        assert "actions" in ask(other, asking())
        assert reason.encode() in all_of(sock)
        sender.join()
    wait_for(lambda: "cut off" in caplog.text)  # by the count, or the first empty message is
    assert max(took) < 0.2  # a packet of 256 KiB, parsed whole, takes longer


def wait_for(condition, seconds=5.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def send_all(sock, data):
    with contextlib.suppress(OSError):
        sock.sendall(data)


def test_a_message_has_its_time_from_the_first_byte_on_whatever_follows():
    fragment, ping = masked(b"", opcode=0, fin=False), masked(b"", opcode=9)
    drips = {
        "payload": (UPGRADE + masked(bytes(1000))[:10], b"x"),
        "header": (UPGRADE + masked(bytes(2**16 - 1))[:1], b""),
        "fragments": (UPGRADE + masked(b"", fin=False), fragment),
        "pings": (UPGRADE + masked(b"x", fin=False), ping),
        "a ping's payload": (UPGRADE + masked(bytes(100), opcode=9)[:7], b"x"),
        "handshake": (UPGRADE[:30], b"x"),
    }
    with limited(open=0.4, message=0.4) as server:
        for what, (begin, drop) in drips.items():
            with bare(server.url) as sock:
                sock.sendall(begin)
                began = time.monotonic()
                with contextlib.suppress(OSError):
                    while time.monotonic() - began < 3.0:
                        sock.sendall(drop)
                        time.sleep(0.05)
                        if not drop:
                            break
                said = all_of(sock)
                assert time.monotonic() - began < 2.0, what
                assert what == "handshake" or b"did not end in time" in said, what
        with client(server.url) as ws:  # a pause between messages is none within one
            for _ in range(3):
                time.sleep(0.3)
                assert "actions" in ask(ws, asking())


def test_those_who_hold_the_most_are_cut_off_before_the_memory_is_full(caplog):
    with (
        limited(max_frame=2**20, max_held=2**20) as server,
        client(server.url) as ws,
        contextlib.ExitStack() as stack,
    ):
        large = [stack.enter_context(bare(server.url)) for _ in range(4)]
        for size, sock in zip((600_000, 610_000, 500_000, 450_000), large, strict=True):
            sock.sendall(UPGRADE + masked(bytes(900_000))[:size])
            time.sleep(0.1)
            assert "actions" in ask(ws, asking())
        # two frames may be held in all, so the fourth is too many, and the second holds the most
        assert hung_up(large[1], 1.0) < 1.0
        wait_for(lambda: "cut off, holds the most, 6099" in caplog.text)
        for sock in (large[0], large[2], large[3]):
            with pytest.raises(TimeoutError):
                hung_up(sock, 0.05)


def test_new_connections_come_one_after_the_other():
    with limited(apart=0.05) as server:
        began = time.monotonic()
        socks = [bare(server.url) for _ in range(7)]
        for sock in socks:
            sock.sendall(UPGRADE)
        for sock in socks:
            assert sock.recv(12) == b"HTTP/1.1 101"
            sock.close()
        assert time.monotonic() - began >= 6 * 0.05


def test_a_client_that_says_nothing_or_half_is_sent_away():
    limits = {"open": 0.2, "idle": 0.5, "message": 0.2, "ping": 0.3}
    with limited(**limits) as server, contextlib.ExitStack() as stack:
        with client(server.url) as idle:
            # until it speaks, and again after an answer
            time.sleep(0.3)
            ask(idle, asking())
            assert end_of(idle) == (1001, "no request in time")
        socks = [stack.enter_context(bare(server.url)) for _ in range(5)]
        slow, half, begun, dead, gone = socks
        slow.sendall(UPGRADE[:20])
        half.sendall(UPGRADE + masked(b"abc", fin=False))
        begun.sendall(UPGRADE + masked(bytes(100))[:50])
        dead.sendall(UPGRADE)  # answers no ping
        gone.close()
        assert hung_up(slow, 5) < 3
        assert hung_up(half, 5) < 3
        assert hung_up(begun, 5) < 3
        assert hung_up(dead, 5) < 3
        with client(server.url) as ws:
            assert "actions" in ask(ws, asking())


def test_a_client_that_does_not_read_is_cut_off_before_it_fills_the_memory(caplog):
    class Long(Echo):
        horizon = 2**15
        fork = None

        def act(self, observation):
            return np.zeros((self.horizon, 2), np.float32)

    limits = ServerLimits(send=0.2, close=0.1, max_unread=2**18)
    with PolicyServer(Long(), port=0, limits=limits) as server:
        # replies of 256 KiB that nobody takes
        with bare(server.url) as deaf:
            deaf.sendall(UPGRADE + masked(pack(asking())) * 60)
            for _ in range(200):
                if "does not read its replies, dropped" in caplog.text:
                    break
                time.sleep(0.05)
            hung_up(deaf, 10)
        assert "does not read its replies, dropped" in caplog.text
        # pings by the thousand, whose answers nobody takes
        with bare(server.url) as flood:
            flood.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            flood.sendall(UPGRADE)
            with pytest.raises(OSError):  # it hangs up while we still send
                for _ in range(3000):
                    flood.sendall(masked(bytes(125), opcode=9) * 100)


def test_the_log_does_not_grow_with_what_clients_send(server, caplog, monkeypatch):
    second = 100.0
    clock = types.SimpleNamespace(monotonic=lambda: second, perf_counter=time.perf_counter)
    monkeypatch.setattr("real.serving.server.time", clock)

    def offend():
        with client(server.url) as ws:
            ws.send("no")
            ws.recv(timeout=5)

    for _ in range(30):
        offend()
    assert len(caplog.records) == 20
    second += 1.0
    offend()
    said = [record.getMessage() for record in caplog.records[20:]]
    assert said[0] == "10 more such lines"
    assert "is a binary frame" in said[1] and len(said) == 2
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_many_who_idle_do_not_slow_one_who_asks():
    with limited(max_connections=130) as server:
        idle = [bare(server.url) for _ in range(120)]
        for sock in idle:
            sock.sendall(UPGRADE)
        with client(server.url) as ws:
            took = []
            for _ in range(100):
                began = time.perf_counter()
                ask(ws, asking())
                took.append(time.perf_counter() - began)
        for sock in idle:
            sock.close()
    assert np.median(took) < 0.1


def test_it_leaves_no_thread_socket_or_object_behind():
    def once():
        with limited() as server, client(server.url) as ws:
            ask(ws, asking())

    once()
    gc.collect()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        once()
    gc.collect()
    time.sleep(0.1)
    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files
