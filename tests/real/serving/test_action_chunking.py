"""Temporal ensembling, which makes one action of chunks."""

import math

import numpy as np
import pytest

from penspin_style.deploy.history import Observer
from penspin_style.deploy.torch_policy import TorchPolicy
from real.serving.action_chunking import Ensemble, EnsembledPolicy, RecedingPolicy
from real.serving.protocol import hello
from tests.support.learning import act_network, act_reads

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ensembling_is_the_weighted_mean_that_was_computed_by_hand():
    ensemble = Ensemble(3, k=0.5)
    chunks = [np.array([[10.0], [20.0], [30.0]]) + i for i in range(4)]
    e = math.exp
    assert ensemble(chunks[0]) == 10.0
    # the older opinion first: 20 said one step ago, 11 said now
    assert ensemble(chunks[1]) == pytest.approx((20 + 11 * e(-0.5)) / (1 + e(-0.5)))
    third = (30 + 21 * e(-0.5) + 12 * e(-1.0)) / (1 + e(-0.5) + e(-1.0))
    assert ensemble(chunks[2]) == pytest.approx(third)
    # the first chunk has nothing to say any more
    fourth = (31 + 22 * e(-0.5) + 13 * e(-1.0)) / (1 + e(-0.5) + e(-1.0))
    assert ensemble(chunks[3]) == pytest.approx(fourth)
    ensemble.reset()
    assert ensemble(chunks[3]) == 13.0


def test_steps_are_averaged_as_the_places_that_they_lead_to():
    ensemble = Ensemble(2, k=0.0, delta=(True, False))
    # to 0.5 and then 1; the other channel is no step
    assert ensemble(np.array([[0.5, 0.5], [0.5, 0.1]])).tolist() == [0.5, 0.5]
    # the last says 1, this one 0.5 - 0.2: between them 0.65, 0.15 from here; 0.1 and 0.3 are 0.2
    assert ensemble(np.array([[-0.2, 0.3], [0.7, 0.3]])) == pytest.approx([0.15, 0.2])
    # that one says 0.3 + 0.7, a third 0.65 + 5: 3.325, further than an action reaches
    assert ensemble(np.array([[5.0, 0.3], [0.0, 0.3]])) == pytest.approx([1.0, 0.3])
    # and what follows begins from where it did reach, 1.65; the third says 5.65
    assert ensemble(np.array([[-4.0, 0.3], [0.0, 0.3]])) == pytest.approx([0.0, 0.3])
    ensemble.reset()
    assert ensemble(np.array([[0.25, 0.5], [0.5, 0.1]])).tolist() == [0.25, 0.5]


def test_a_change_of_mind_is_over_when_the_chunks_before_it_are():
    """From 0 to 1 m by 0.1 m at most, as who sees the place plans it; from step 5 on to 0.6 m."""

    def reached(delta):
        place, ensemble = 0.0, Ensemble(8, delta=(delta,))
        for step in range(5 + 8):
            left, chunk = 10.0 * ((1.0 if step < 5 else 0.6) - place), []
            for _ in range(8):
                chunk.append([float(np.clip(left, -1.0, 1.0))])
                left -= chunk[-1][0]
            place += 0.1 * float(ensemble(np.array(chunk))[0])
        return place

    assert reached(True) == pytest.approx(0.6, abs=1e-6)
    # averaged steps: older chunks mean theirs from where nothing has led
    assert reached(False) > 0.7


def test_a_batch_is_ensembled_as_each_of_its_rows():
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(7, 4, 3, 2))  # steps, batch, horizon, naction
    delta = (True, False)
    whole, alone = Ensemble(3, delta=delta), [Ensemble(3, delta=delta) for _ in range(4)]
    for chunk in chunks:
        together = whole(chunk)
        assert np.allclose(together, [one(chunk[i]) for i, one in enumerate(alone)])
    assert whole.k == 0.01
    with pytest.raises(ValueError, match="a chunk has 4 actions, not 3"):
        whole(np.zeros((4, 2)))


def test_an_ensembled_policy_is_one_of_single_actions():
    card = act_reads()
    policy = TorchPolicy(act_network(), card)
    whole, observer, ensemble = (
        EnsembledPolicy(policy),
        Observer(card),
        Ensemble(5, delta=[True] * 3),
    )
    rng = np.random.default_rng(0)
    for _ in range(8):
        values = {"proprio": rng.random(6, np.float32), "fingertips": rng.random(3, np.float32)}
        inputs = observer(values)
        action = whole.act(inputs)
        assert np.allclose(action, ensemble(policy.act(inputs)), atol=1e-6) and action.shape == (3,)
    first = whole.act(inputs)
    other = whole.fork()
    assert np.allclose(other.act(inputs), policy.act(inputs)[0])  # it has seen nothing yet
    whole.reset()
    again = whole.act(inputs)
    assert np.allclose(again, policy.act(inputs)[0]) and not np.allclose(first, again)
    assert hello(policy)["horizon"] == 5  # as the policy server offers it


def test_a_receding_horizon_carries_out_the_first_part_of_a_chunk():
    card = act_reads()
    policy = TorchPolicy(act_network(), card)
    whole, observer = RecedingPolicy(policy, 2), Observer(card)
    rng = np.random.default_rng(0)
    for t in range(5):
        values = {"proprio": rng.random(6, np.float32), "fingertips": rng.random(3, np.float32)}
        inputs = observer(values)
        if t % 2 == 0:
            chunk = policy.act(inputs)
        assert np.array_equal(whole.act(inputs), chunk[t % 2])
    assert np.array_equal(whole.fork().act(inputs), policy.act(inputs)[0])
    whole.reset()  # in the middle of a chunk
    assert np.array_equal(whole.act(inputs), policy.act(inputs)[0])
    with pytest.raises(ValueError, match="6 actions of a chunk: it must be from 1 to its 5"):
        RecedingPolicy(policy, 6)
