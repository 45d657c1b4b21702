"""A policy server: what it answers, whom it lets in, and what no client can do to the others."""

import contextlib
import gc
import http.client
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from penspin_style.__main__ import main
from penspin_style.deploy.bundle import Bundle
from penspin_style.features import PolicyCard
from real.serving.client import PolicyClient, Refused, Unreachable
from real.serving.server import PolicyServer, ServeError, ServerLimits
from real.serving.wire import pack
from tests.soak.attack_server import Plan, attack
from tests.soak.fuzz_server import fuzz
from tests.support.serving import (
    CARD,
    KEY,
    ONNX,
    ROOT,
    UPGRADE,
    Echo,
    ask,
    asking,
    bare,
    client,
    hung_up,
    masked,
)
from tests.support.serving import serving as process_serving


@pytest.fixture
def policy():
    return Echo()


@pytest.fixture
def server(policy):
    limits = ServerLimits(max_frame=2**16, max_connections=8, close=0.2, drain=1.0)
    with PolicyServer(policy, port=0, limits=limits) as server:
        yield server


def limited(**limits):
    return PolicyServer(Echo(), port=0, limits=ServerLimits(close=0.1, drain=1.0, **limits))


def refused(url, **headers):
    with pytest.raises(InvalidStatus) as caught, client(url, additional_headers=headers):
        pass
    return caught.value.response


def all_of(sock):
    """What the server says until it hangs up."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            said += part
    return said


def end_of(ws):
    """The close code and reason; nothing else may come before."""
    with pytest.raises(ConnectionClosed) as caught:
        ws.recv(timeout=5)
    return caught.value.rcvd.code, caught.value.rcvd.reason


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


def health(url):
    connection = http.client.HTTPConnection(url.split("//")[1], timeout=5)
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    return response.status, response.read()


def test_it_serves_others_while_a_policy_thinks(server):
    with client(server.url) as slow:
        slow.send(pack(asking(delay=0.6)))
        began = time.monotonic()
        with client(server.url):
            assert health(server.url) == (200, b"OK\n")
        assert time.monotonic() - began < 0.5
        assert slow.recv(timeout=5)


# Whom it lets in.


def test_without_the_key_nobody_gets_past_the_handshake(policy, monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("real.serving.server.hmac.compare_digest", compare)
    with PolicyServer(policy, port=0, api_key=KEY) as server:
        for said in (None, "", "Api-Key", f"Api-Key {KEY}x", f"Bearer {KEY}", KEY, "Api-Key \xe9"):
            headers = {} if said is None else {"Authorization": said}
            response = refused(server.url, **headers)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Api-Key"
            assert KEY.encode() not in response.body
        with bare(server.url) as sock:
            twice = f"Authorization: Api-Key {KEY}\r\n".encode() * 2
            sock.sendall(UPGRADE[:-2] + twice + b"\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 401")
        assert len(compared) == 8  # each of them in constant time
        assert health(server.url) == (200, b"OK\n")
        right = {"Authorization": f"Api-Key {KEY}"}
        with client(server.url, additional_headers=right) as ws:
            assert "actions" in ask(ws, asking())


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.1.7", "robot.local"])
def test_other_computers_need_a_key_or_leave(policy, host):
    with pytest.raises(ServeError, match="lets other computers in: give a key"):
        PolicyServer(policy, host=host)
    PolicyServer(policy, host=host, api_key=KEY)
    PolicyServer(policy, host=host, insecure=True)


@pytest.mark.parametrize("key", ["", "short", "x" * 15, "sixteen letters and", "ä" * 16, "x\n" * 9])
def test_a_key_that_can_be_guessed_or_never_arrives_is_refused(policy, key):
    with pytest.raises(ServeError, match="at least 16 printable ASCII"):
        PolicyServer(policy, api_key=key)


def test_a_page_in_a_browser_cannot_use_the_server(server):
    assert refused(server.url, Origin="https://evil.example").status_code == 403


def test_a_client_too_many_is_told_so_and_finds_room_later(server):
    clients = [client(server.url) for _ in range(8)]
    for c in clients:
        c.__enter__()
    response = refused(server.url)
    assert (response.status_code, response.body) == (
        503,
        b"All connections of this server are taken.\n",
    )
    for c in clients:
        c.__exit__(None, None, None)
    for _ in range(50):
        try:
            with client(server.url) as ws:
                assert "actions" in ask(ws, asking())
            break
        except InvalidStatus:
            time.sleep(0.02)
    else:
        raise AssertionError("no room after everybody left")


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


def test_a_frame_above_the_limit_is_not_read(server):
    with client(server.url) as ws:
        ws.send(bytes(2**16 + 1))
        assert end_of(ws)[0] == 1009
    with client(server.url) as ws:
        ws.send([bytes(2**15), bytes(2**15), bytes(1)])
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


# How it ends.


def test_a_running_request_is_answered_before_the_server_stops():
    with client_and_server() as (server, busy, idle):
        busy.send(pack(asking(0.5, 0.4)))
        time.sleep(0.1)
        server.stop()
        assert end_of(idle) == (1001, "the server stops")
        assert isinstance(busy.recv(timeout=5), bytes)
        assert end_of(busy) == (1001, "the server stops")
        with pytest.raises(OSError):
            bare(server.url)


class client_and_server:  # noqa: N801
    def __enter__(self):
        self.server = limited().__enter__()
        self.clients = [client(self.server.url) for _ in range(2)]
        return self.server, *(c.__enter__() for c in self.clients)

    def __exit__(self, *error):
        for c in self.clients:
            c.__exit__(*error)
        self.server.__exit__(*error)


def test_a_policy_that_never_answers_does_not_keep_the_server_from_stopping():
    server = limited().__enter__()
    with client(server.url) as ws:
        ws.send(pack(asking(delay=4.0)))
        time.sleep(0.1)
        began = time.monotonic()
        server.__exit__(None, None, None)
        assert time.monotonic() - began < 2.5  # it was given 1 s
        with pytest.raises(ConnectionClosed):
            ws.recv(timeout=5)


def test_the_verb_stops_when_told_to_with_exit_code_0():
    with process_serving() as process, client(process.url) as ws:
        bundle = Bundle.load(ONNX)
        x = np.ones(22, np.float32)
        assert ask(ws, {"teacher": x})["actions"][0].tobytes() == bundle(x).tobytes()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert end_of(ws) == (1001, "the server stops")
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - began < 5
        assert process.stderr.read() == ""


NO_PICKLE = """
import sys, types

class Poisoned(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        def refuse(*args, **kwargs):
            raise SystemExit(f"pickle.{name} was called")
        return refuse

# numpy imports the name, for its own files; here nobody can use it
for name in ("pickle", "_pickle"):
    sys.modules[name] = Poisoned(name)
from penspin_style.__main__ import main
code = main(sys.argv[1:])
ours = [m for n, m in sys.modules.items() if n.split(".")[0] in ("real", "penspin_style")]
used = [m.__name__ for m in ours for v in vars(m).values() if isinstance(v, Poisoned)]
print(len(ours), used, {"torch", "mujoco", "onnx"} & set(sys.modules))
sys.exit(code)
"""


def test_it_serves_where_pickle_cannot_be_used_and_torch_is_not_needed():
    command = [sys.executable, "-c", NO_PICKLE, "serve", str(ONNX), "--port", "0", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = json.loads(process.stdout.readline())["url"]
        with client(url) as ws:
            assert "actions" in ask(ws, {"teacher": np.ones(22, np.float32)})
            assert "error" in ask(ws, {"teacher": np.ones(3, np.float32)})
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    count, rest = out.strip().split(" ", 1)
    assert int(count) > 5
    assert rest == "[] set()"
    assert process.returncode == 0


def test_words_that_cannot_be_meant_end_in_one_line(tmp_path, capsys, monkeypatch):
    # the process of all tests holds more than a server may
    monkeypatch.setattr("real.serving.serve.memory_limit", lambda size: contextlib.nullcontext())
    empty, key = tmp_path / "empty", tmp_path / "key"
    empty.write_text("\n")
    key.write_text(KEY)
    key.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            ("none.onnx",): "none.onnx is not a file; give the .onnx",
            (ONNX, "--port", "70000"): "'70000' is not a whole number of 0 to 65535",
            (ONNX, "--port", port): f"cannot listen on ws://127.0.0.1:{port}: .*choose another",
            (ONNX, "--host", "0.0.0.0"): "'0.0.0.0' lets other computers in",
            (ONNX, "--api-key", "x"): "at least 16 printable ASCII",
            (ONNX, "--api-key", KEY, "--api-key-file", key): "not allowed with",
            (ONNX, "--api-key-file", tmp_path / "no"): "no is not a file; write one line",
            (ONNX, "--api-key-file", empty): "empty: holds no key",
            (ONNX, "--tls-cert", key): "--tls-cert and --tls-key belong together",
            (ONNX, "--tls-cert", key, "--tls-key", key): "give PEM files",
        }
        for words, message in wrong.items():
            try:
                code = main(["serve", *map(str, words)])
            except SystemExit as stopped:
                code = stopped.code
            out, err = capsys.readouterr()
            assert (code, out) == (2, ""), err
            (line,) = err.splitlines()
            assert line.startswith("penspin: ")
            assert re.search(message, line), (words, line)


def test_connections_can_be_encrypted_and_need_the_key_in_the_file(tmp_path):
    cert, key, secret = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "secret"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
    made += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed: no certificate to test with")
    secret.write_text(KEY + "\n")
    secret.chmod(0o600)
    trust = ssl.create_default_context(cafile=str(cert))
    words = ["--tls-cert", cert, "--tls-key", key, "--api-key-file", secret, "--host", "127.0.0.1"]
    with process_serving(*words) as process:
        assert process.url.startswith("wss://")
        with PolicyClient(process.url, KEY, tls=trust) as c:
            assert c.infer({"teacher": np.ones(22, np.float32)})["actions"].shape == (1, 4)
        with pytest.raises(Refused, match="401"):
            PolicyClient(process.url, tls=trust)
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            PolicyClient(process.url, KEY)
        with pytest.raises(Unreachable):
            PolicyClient(process.url.replace("wss", "ws"), KEY)


@pytest.mark.parametrize("kind", ["batch", "pings"])
def test_an_attack_costs_a_good_client_no_answer(kind):
    figures = attack(kind, Plan(ONNX, seconds=1.0, turn=1.0))
    assert figures["requests"] > 10
    assert figures["lost"] == figures["wrong"] == figures["exit_code_of_the_server"] == 0
    assert figures["connections"] == 1
    assert figures["rss_growth_mb"] < 50
    assert sum(figures["did"].values()) > 0
    assert figures["during"]["p99"] < 500  # not a figure, that takes a minute of each


def test_no_mutated_frame_crashes_or_stalls_it_or_touches_another_client():
    figures = fuzz(80, ONNX, seed=3)
    assert figures["frames"] == 80
    assert figures["crashes"] == figures["hangs"] == figures["exit_code_of_the_server"] == 0
    other = figures["other_client_ms"]
    assert other["requests"] > 10
    assert other["lost"] == other["wrong"] == 0
    assert other["connections"] == 1
    assert figures["rss_growth_mb"] < 20
    assert len(figures["outcomes"]) >= 5  # answers, refusals of both kinds, closes of several
