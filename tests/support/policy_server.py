"""A policy server in this process, and what it says to those it does not serve."""

import contextlib
import http.client

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from real.serving.server import PolicyServer, ServerLimits
from tests.support.serving import (
    Echo,
    client,
)


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


def health(url):
    connection = http.client.HTTPConnection(url.split("//")[1], timeout=5)
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    return response.status, response.read()
