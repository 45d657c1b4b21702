"""Whom a policy server lets in."""

import time

import pytest
from websockets.exceptions import InvalidStatus

from real.serving.server import PolicyServer, ServeError
from tests.support.policy_server import health, refused
from tests.support.serving import (
    KEY,
    UPGRADE,
    ask,
    asking,
    bare,
    client,
)

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
