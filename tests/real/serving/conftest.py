"""A policy that notes its steps, and its server."""

import pytest

from real.serving.server import PolicyServer, ServerLimits
from tests.support.serving import (
    Echo,
)


@pytest.fixture
def policy():
    return Echo()


@pytest.fixture
def server(policy):
    limits = ServerLimits(max_frame=2**16, max_connections=8, close=0.2, drain=1.0)
    with PolicyServer(policy, port=0, limits=limits) as server:
        yield server
