"""Temporal ensembling, which makes one action of chunks."""

import math

import numpy as np
import pytest

from penspin_style.deploy.history import Observer
from penspin_style.deploy.torch_policy import TorchPolicy
from real.serving.action_chunking import Ensemble, EnsembledPolicy
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


def test_a_batch_is_ensembled_as_each_of_its_rows():
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(7, 4, 3, 2))  # steps, batch, horizon, naction
    whole, alone = Ensemble(3), [Ensemble(3) for _ in range(4)]
    for chunk in chunks:
        together = whole(chunk)
        assert np.allclose(together, [one(chunk[i]) for i, one in enumerate(alone)])
    assert whole.k == 0.01
    with pytest.raises(ValueError, match="a chunk has 4 actions, not 3"):
        whole(np.zeros((4, 2)))


def test_an_ensembled_policy_is_one_of_single_actions():
    card = act_reads()
    policy = TorchPolicy(act_network(), card)
    whole, observer, ensemble = EnsembledPolicy(policy), Observer(card), Ensemble(5)
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
