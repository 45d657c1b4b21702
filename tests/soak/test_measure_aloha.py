"""The programme that drives ALOHA's twin by a served policy: the same episodes, both ways."""

import numpy as np
import pytest

from penspin_style.features import Input
from real.robot import Observation
from real.serving.aloha import AlohaAdapter
from real.serving.client import PolicyClient
from real.serving.server import PolicyServer
from real.twin.batch_twin import BatchTwin
from real.twin.config import load_twin
from tests.soak.measure_aloha import as_camera, drive, latency, stock, successes
from tests.support.aloha_policy import CAMERAS, IMAGES, NUMBERS, Told, card

MEASURED = ("left_qpos", "right_qpos")
INPUT = Input("student", tuple(f for f in NUMBERS.features if f.name in MEASURED))


@pytest.fixture(scope="module")
def twin():
    found = load_twin("aloha_insertion")
    short = (*found.overrides, "task.episode_length=6")
    return BatchTwin(load_twin("aloha_insertion", features=MEASURED, overrides=short), 2)


def moving(twin):
    """A policy that moves the waists, so that it matters what the twin is sent."""
    action = np.zeros(14)
    action[[0, 7]] = 0.5, -1.0
    return Told(action, made=card(inputs=(INPUT,), channels=twin.channels))


class Shared(Told):
    """One that remembers nothing: each client may have it."""

    def fork(self):
        return Shared(*self.actions, made=self.card)

    def act(self, observation):
        return np.broadcast_to(super().act(observation), (len(observation["student"]), 14))


def test_a_served_twin_goes_where_the_policy_itself_would_take_it(twin):
    policy = moving(twin)
    with PolicyServer(AlohaAdapter(policy), port=0) as server:
        clients = [PolicyClient(server.url) for _ in range(2)]
        times = drive(twin, 3, clients, lambda image: image)
        served = twin.target
        for client in clients:
            client.close()
    assert [len(part) for part in times] == [12, 12, 12, 6]
    twin.seed(3)
    twin.reset()
    moved = (served - twin.target)[:, [0, 7]]  # 0.02 rad an action of 1, in 6 steps
    np.testing.assert_allclose(moved, [[0.06, -0.12]] * 2, atol=2e-3)


def test_shares_of_both_ways_and_times_are_told(twin):
    policy = moving(twin)
    here = Shared(*policy.actions, made=policy.card)
    with PolicyServer(AlohaAdapter(policy), port=0) as server:
        with PolicyClient(server.url) as one, PolicyClient(server.url) as two:
            said = successes(twin, here, [one, two], lambda image: image, 3)
        single = BatchTwin(twin.config)
        with PolicyClient(server.url) as one:
            times = latency(single, lambda: one, lambda x: x, episodes=1, rate=200.0, seed=3)
    assert said["episodes"] == 2 and said["differ"] == 0
    assert said["served"] == said["in_process"] == {"success": 0.0, "interval": [0.0, 0.6576]}
    assert times["steps"] == 6 and times["step_ms"]["p50"] >= times["client_ms"]["p50"] > 0.0


def test_an_image_of_the_twin_passes_a_stock_camera_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    assert as_camera(image[0]).shape == (480, 640, 3)
    seen = Observation({f"{camera}_rgb": image for camera in CAMERAS}, 0.0, np.zeros((1, 14)))
    policy = Told(inputs=(NUMBERS, *IMAGES))
    adapter = AlohaAdapter(policy)
    asked = stock(seen, 0, lambda image: image)
    adapter.expected.check(asked)
    adapter.act(asked)
    np.testing.assert_array_equal(policy.seen[0]["wrist_cam_right_rgb"], image[0])
