"""The genuine openpi-client against our server, and its messages against ours, byte for byte.

It is never a dependency: installed for this test without what it pins, or skipped where no package
index is reachable.
"""

import importlib
import sys
import types

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from penspin_style.deploy.bundle import Bundle
from real.serving import wire
from real.serving.aloha import AlohaAdapter
from real.serving.server import PolicyServer
from tasks.robots.aloha.description import HOME
from tests.soak.load_server import NotThereError, install_openpi
from tests.support.aloha_policy import Told
from tests.support.serving import KEY, ONNX, Echo, asking

MODULES = ("msgpack_numpy", "websocket_client_policy", "action_chunk_broker")


@pytest.fixture(scope="module")
def openpi(tmp_path_factory):
    before, known = list(sys.path), set(sys.modules)
    try:
        importlib.import_module("openpi_client.action_chunk_broker")
    except ImportError:
        folder = tmp_path_factory.mktemp("openpi")
        try:
            install_openpi(folder, timeout=60)
        except NotThereError as error:
            pytest.skip(str(error))
        sys.path.insert(0, str(folder))
    yield types.SimpleNamespace(
        **{name: importlib.import_module(f"openpi_client.{name}") for name in MODULES}
    )
    sys.path[:] = before
    for name in set(sys.modules) - known:
        if name.split(".")[0] in ("openpi_client", "tree", "wrapt"):
            del sys.modules[name]


@pytest.fixture
def policy():
    return Echo()


def connect(openpi, server, **options):
    host, port = server.url.removeprefix("ws://").split(":")
    return openpi.websocket_client_policy.WebsocketClientPolicy(host, int(port), **options)


MESSAGES = [
    {"state": np.linspace(-1, 1, 14), "prompt": "spin the pen"},
    {"images": {"cam_high": np.arange(48, dtype=np.uint8).reshape(3, 4, 4)}, "n": np.int32(3)},
    {"a": np.float32(0.1), "b": np.bool_(True), "c": [1, None, 2.5, "x"], "d": {"e": np.zeros(0)}},
    {"f": np.arange(8, dtype=np.int64).reshape(2, 2, 2)[:, ::-1], "g": np.array(1.5, np.float32)},
    {"actions": np.zeros((50, 14), np.float32), "server_timing": {"infer_ms": 12.5}},
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: next(iter(m)))
def test_messages_are_theirs_byte_for_byte_both_ways(openpi, message):
    theirs = openpi.msgpack_numpy
    assert wire.pack(message) == theirs.packb(message)
    assert theirs.Packer().pack(wire.unpack(theirs.packb(message))) == wire.pack(message)
    assert theirs.packb(theirs.unpackb(wire.pack(message))) == wire.pack(message)


def test_it_gets_what_the_policy_answers_without_a_server(openpi):
    bundle = Bundle.load(ONNX)
    rng = np.random.default_rng(0)
    with PolicyServer(bundle, port=0) as server:
        client = connect(openpi, server)
        said = client.get_server_metadata()
        assert said["task"] == "panda_lift_cube"
        assert said["card"]["control_dt"] == bundle.card.control_dt
        assert said["reset_pose"] == [j.default for j in bundle.card.joints]
        for turn in range(100):
            x = rng.normal(size=bundle.card.inputs[0].size).astype(np.float32)
            reply = client.infer({"teacher": x})
            assert reply["actions"].shape == (1, 4)
            assert reply["actions"][0].tobytes() == bundle(x).tobytes()
            assert ("prev_total_ms" in reply["server_timing"]) == (turn > 0)
        with pytest.raises(
            RuntimeError, match=r"Error in inference server:\n.*got \(21,\)"
        ) as error:
            client.infer({"teacher": np.zeros(21, np.float32)})
        assert "Traceback" not in str(error.value)
        client._ws.close()


def test_its_key_is_checked(openpi, policy):
    with PolicyServer(policy, port=0, api_key=KEY) as server:
        for key in (None, "wrong"):
            with pytest.raises(InvalidStatus, match="401"):
                connect(openpi, server, api_key=key)
        client = connect(openpi, server, api_key=KEY)
        np.testing.assert_array_equal(client.infer(asking(0.5))["actions"], [[0.5, -0.5]])
        client._ws.close()


def test_a_new_connection_of_it_is_a_new_episode_as_its_reset_says_nothing(openpi, policy):
    with PolicyServer(policy, port=0) as server:
        for _ in range(2):
            client = connect(openpi, server)
            client.infer(asking())
            client.reset()
            client.infer(asking())
            client._ws.close()
    assert policy.steps == [[0, 1], [0, 1]]


def test_its_broker_plays_a_chunk_row_by_row(openpi):
    class Chunk(Echo):
        horizon = 3
        fork = None
        asked = 0

        def act(self, observation):
            self.asked += 1
            return np.arange(6, dtype=np.float32).reshape(3, 2) / 8

    policy = Chunk()
    with PolicyServer(policy, port=0) as server:
        client = connect(openpi, server)
        broker = openpi.action_chunk_broker.ActionChunkBroker(client, action_horizon=3)
        rows = [broker.infer(asking())["actions"].tolist() for _ in range(4)]
        client._ws.close()
    assert rows == [[0, 0.125], [0.25, 0.375], [0.5, 0.625], [0, 0.125]]
    assert policy.asked == 2


def test_it_drives_arms_of_aloha_with_its_stock_observation(openpi):
    """What its ALOHA example does: images padded to 224 x 224, CHW, and targets row by row."""
    tools = importlib.import_module("openpi_client.image_tools")
    rng, action = np.random.default_rng(0), np.full(14, 0.5)
    camera = rng.integers(0, 256, (480, 640, 3), np.uint8)
    image = tools.convert_to_uint8(tools.resize_with_pad(camera, 224, 224))
    state = np.array([*HOME[:6], 0.5] * 2)
    observation = {
        "state": state,
        "images": {
            name: np.moveaxis(image, -1, 0)
            for name in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
        },
        "prompt": "put the peg into the socket",
    }
    policy = Told(action)
    with PolicyServer(AlohaAdapter(policy), port=0) as server:
        client = connect(openpi, server)
        assert len(client.get_server_metadata()["reset_pose"]) == 14
        broker = openpi.action_chunk_broker.ActionChunkBroker(client, action_horizon=1)
        rows = np.array([broker.infer(observation)["actions"] for _ in range(3)])
        client._ws.close()
    assert rows.shape == (3, 14)
    steps = np.arange(1, 4)
    np.testing.assert_allclose(rows[:, 8], state[8] + 0.01 * steps, atol=1e-6)
    np.testing.assert_allclose(rows[:, 13], 0.5 + 0.002 / 0.035 * steps, atol=1e-6)
    assert policy.seen[0]["wrist_cam_right_rgb"].shape == (32, 32, 3)
