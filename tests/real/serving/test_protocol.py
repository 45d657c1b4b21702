"""What a request may hold: refused by its names and shapes before the policy computes anything."""

import asyncio
import time

import msgpack
import numpy as np
import pytest

from penspin_style.deploy.bundle import Bundle, ObservationError
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from real.serving.protocol import Episode, Expected
from real.serving.turns import Share, Turns
from real.serving.wire import pack, unpack
from tests.support.serving import CARD, ONNX, Echo, asking

ACTION = ActionChannel("x", "m", 0.1, -1.0, 1.0, "delta")


def card(*inputs):
    return PolicyCard("toy", inputs, (ACTION, ACTION), (), 0.05)


IMAGE = Input("camera", (Feature("camera", (240, 320, 3), "1", dtype="uint8"),))
STATE = Input("state", (Feature("q", (7,), "rad", history=3), Feature("grip", (), "m")))


class Counting:
    """A policy that notes what reaches it."""

    def __init__(self, card):
        self.card, self.seen = card, []

    def __call__(self, observation):
        self.seen.append({name: np.shape(v) for name, v in observation.items()})
        return np.zeros(2, np.float32)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


BATCHES = {
    "whole": {"state": zeros(5, 22)},
    "one row": {"state": zeros(1, 22)},
    "features": {"q": zeros(5, 3, 7), "grip": zeros(5)},
    "a scalar": {"q": zeros(3, 7), "grip": zeros(5)},
    "lists": {"state": [[0.0] * 22] * 5},
    "images": {"camera": zeros(5, 240, 320, 3, dtype=np.uint8)},
    "of the wrong type": {"state": zeros(5, 22, dtype=np.float64)},
}


@pytest.mark.parametrize("said", BATCHES.values(), ids=BATCHES)
def test_a_batch_is_refused_before_the_policy_sees_it(said):
    policy = Counting(card(STATE, IMAGE))
    count = 1 if said.get("state", [0]) is BATCHES["one row"]["state"] else 5
    with pytest.raises(ObservationError, match=f"is a batch of {count}; send one, without"):
        Episode(policy, Expected(policy.card)).answer(pack(said))
    assert policy.seen == []


WRONG = [
    ({"state": zeros(21)}, r"'state': got \(21,\); the policy reads \(22,\)"),
    ({"state": zeros(0, 22)}, r"got \(0, 22\)"),
    ({"state": zeros(2, 3, 22)}, r"got \(2, 3, 22\)"),
    ({"q": zeros(7)}, r"'q': got \(7,\); the policy reads \(3, 7\) or \(21,\)"),
    ({"state": [[1.0], [1.0, 2.0]]}, "'state': not an array"),
    ({"camera": zeros(480, 640, 3, dtype=np.uint8)}, r"got \(480, 640, 3\)"),
]


@pytest.mark.parametrize(("said", "message"), WRONG)
def test_another_shape_is_refused_before_the_policy_sees_it(said, message):
    policy = Counting(card(STATE, IMAGE))
    with pytest.raises(ObservationError, match=message):
        Episode(policy, Expected(policy.card)).answer(pack(said))
    assert policy.seen == []


def test_every_shape_that_is_one_observation_reaches_the_policy():
    policy = Counting(card(STATE, IMAGE))
    episode = Episode(policy, Expected(policy.card))
    for said in (
        {"state": zeros(22), "camera": zeros(240, 320, 3, dtype=np.uint8)},
        {"q": zeros(3, 7), "grip": zeros()},
        {"q": zeros(21), "grip": zeros(1), "prompt": "spin"},
        {"state": [0.0] * 22},
    ):
        assert unpack(episode.answer(pack(said)))["actions"].shape == (1, 2)
    assert len(policy.seen) == 4


def test_names_that_no_policy_reads_are_not_compared_with_those_that_it_does():
    bundle = Bundle.load(ONNX)
    episode = Episode(bundle, Expected(bundle.card))
    for names in (["n" * 4000 + str(i) for i in range(15)], [f"reacher{i}" for i in range(63)]):
        began = time.process_time()
        with pytest.raises(ObservationError, match="does not read") as caught:
            episode.answer(pack(dict.fromkeys(names, 1)))
        assert time.process_time() - began < 0.02
        assert len(str(caught.value)) < 500
    with pytest.raises(ObservationError, match="nearest: 'teachers'"):  # one typo is
        episode.answer(pack({"teachers": np.zeros(22, np.float32)}))


def test_a_frame_may_be_as_large_as_the_largest_observation_and_no_larger():
    assert Expected(CARD).max_frame == 2**16
    # 22 numbers of 9 bytes, an image of 1 byte each, 256 for each name, 4 KiB for all else
    names = sum(256 + len(n) for n in ("state", "q", "grip", "camera"))
    expected = Expected(card(STATE, IMAGE))
    assert expected.max_frame == 22 * 9 + 240 * 320 * 3 + names + 4096
    depth = Input("depth", (Feature("depth", (480, 640), "m"),))
    policy = Counting(card(depth, STATE))
    widest = {"depth": zeros(480, 640, dtype=np.float64), "q": [[0.1] * 7] * 3, "grip": 0.5}
    frame = pack({**widest, "__reset__": True, "__seq__": 2**63})
    assert 0.85 < len(frame) / Expected(policy.card).max_frame < 1.0
    assert Episode(policy, Expected(policy.card)).answer(frame)


def test_the_policys_answer_is_what_it_was_before():
    policy = Echo()
    reply = Episode(policy, Expected(CARD)).answer(pack(asking(0.5, __seq__=3)))
    assert msgpack.unpackb(reply, strict_map_key=False)["__seq__"] == 3


# Whose turn it is.


def test_of_those_who_wait_the_one_that_had_least_is_next():
    async def play():
        turns, done = Turns(1), []
        shares = {name: Share() for name in ("busy", "greedy", "rare")}
        shares["busy"].add(0.2)
        shares["greedy"].add(0.4)

        async def ask(name):
            async with turns.of(shares[name]):
                done.append(name)
                await asyncio.sleep(0.01)

        first = asyncio.create_task(ask("greedy"))
        await asyncio.sleep(0)
        others = [asyncio.create_task(ask(n)) for n in ("greedy", "busy", "greedy", "rare")]
        await asyncio.gather(first, *others)
        return done, shares["rare"].now()

    done, had = asyncio.run(play())
    assert done == ["greedy", "rare", "busy", "greedy", "greedy"]
    assert 0 < had < 0.1


def test_a_turn_is_given_back_by_those_who_fail_or_leave():
    async def play():
        turns = Turns(2)
        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                async with turns.of(Share()):
                    raise ValueError("no")

        async def hold(seconds):
            async with turns.of(Share()):
                await asyncio.sleep(seconds)

        tasks = [asyncio.create_task(hold(9.0)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(1.0), turns.of(Share()), turns.of(Share()):
            return True

    assert asyncio.run(play())
