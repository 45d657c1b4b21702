"""A policy server as a process: how it ends, what it needs, encrypted, and under attack."""

import contextlib
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from penspin_style.__main__ import main
from penspin_style.deploy.bundle import Bundle
from real.serving.client import PolicyClient, Refused, Unreachable
from real.serving.wire import pack
from tests.soak.attack_server import Plan, attack
from tests.soak.fuzz_server import fuzz
from tests.support.policy_server import end_of, limited
from tests.support.serving import (
    KEY,
    ONNX,
    ROOT,
    ask,
    asking,
    bare,
    client,
)
from tests.support.serving import serving as process_serving

pytestmark = pytest.mark.clock

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


def test_invalid_arguments_end_in_one_line(tmp_path, capsys, monkeypatch):
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
        for argv, message in wrong.items():
            try:
                code = main(["serve", *map(str, argv)])
            except SystemExit as stopped:
                code = stopped.code
            out, err = capsys.readouterr()
            assert (code, out) == (2, ""), err
            (line,) = err.splitlines()
            assert line.startswith("penspin: ")
            assert re.search(message, line), (argv, line)


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
    argv = ["--tls-cert", cert, "--tls-key", key, "--api-key-file", secret, "--host", "127.0.0.1"]
    with process_serving(*argv) as process:
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
