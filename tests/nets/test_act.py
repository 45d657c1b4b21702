"""The network of ACT: what it reads, what it hides, what its loss is of."""

import dataclasses

import numpy as np
import pytest
import torch

from penspin_style.algo.chunks import eyes_of
from penspin_style.deploy.history import Observer
from penspin_style.deploy.torch_policy import TorchPolicy, load_act
from penspin_style.features import Feature, Input
from penspin_style.nets.policy import save_policy
from penspin_style.nets.student import StudentPolicy
from tests.support.episodes import columns, vector_card
from tests.support.learning import act_network, act_reads, seeing

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_is_padded_changes_neither_latent_nor_chunk():
    net, rng = act_network(), torch.Generator().manual_seed(0)
    numbers, actions = torch.rand(4, 9, generator=rng), torch.rand(4, 5, 3, generator=rng)
    padded = torch.zeros(4, 5, dtype=torch.bool)
    padded[:, 3:] = True
    other = actions.clone()
    other[:, 3:] = 7.0
    one, two = (net(numbers, {}, a, padded) for a in (actions, other))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(net(numbers, {}, other)[0], one[0])


def test_the_divergence_is_that_of_normals():
    net = act_network()
    rng = torch.Generator().manual_seed(0)
    numbers, actions = torch.rand(4, 9, generator=rng), torch.rand(4, 5, 3, generator=rng)
    mean, log_var = net._posterior(net._tokens(numbers), actions, None, None).chunk(2, dim=-1)
    mine = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    wanted = torch.distributions.kl_divergence(mine, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(net(numbers, {}, actions)[1], wanted.sum(dim=-1), atol=1e-5)
    assert (net(numbers, {})[1] == 0).all()


ENDS = Feature("pen_ends", (2, 3), "m")


def test_the_pens_ends_may_be_exchanged_and_nothing_else():
    pos = Feature("joint_pos", (3,), "rad")
    net = act_network((Input("numbers", (pos, ENDS)),))
    net.normalizer.update(torch.rand(40, 9, generator=torch.Generator().manual_seed(1)))
    x = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    swapped = torch.cat((x[:, :3], x[:, 6:], x[:, 3:6]), dim=1)
    said = net.act(x)
    assert torch.allclose(net.act(swapped), said, atol=1e-6)
    assert not torch.allclose(net.act(x.flip(0)), said, atol=1e-3)  # rows stay their own
    turned = torch.cat((x[:, :3], x[:, 4:6], x[:, 3:4], x[:, 6:]), dim=1)
    assert not torch.allclose(net.act(turned), said, atol=1e-4)


def test_the_pens_ends_are_read_when_it_acts():
    card = dataclasses.replace(vector_card(), inputs=(Input("numbers", (ENDS,)),))
    policy = TorchPolicy(act_network(card.inputs), card)
    observer = Observer(card)
    ends = np.random.default_rng(0).random((2, 2, 3), np.float32)
    one, two = (policy.act(observer({"pen_ends": e})) for e in ends)
    assert one.shape == (5, 3) and not np.allclose(one, two, atol=1e-4)


def test_the_network_of_a_seeing_act_is_built_again_from_its_card(tmp_path):
    policy, card = seeing()
    own = act_reads(card)
    net = act_network(own.inputs, eyes=eyes_of(policy))
    own = dataclasses.replace(own, network=net.describe())
    save_policy(net, own, tmp_path / "policy")
    again = load_act(tmp_path)
    assert isinstance(again.network.eyes, StudentPolicy)
    values = columns(own, 3)
    given = {"numbers": values["observation/fingertips"]}
    given |= {n: values[f"observation/{n}"] for n in ("front_rgb", "front_depth")}
    wanted = net.eval().act(*(torch.from_numpy(given[i.name]) for i in own.inputs))
    assert np.allclose(again.act(given), wanted.detach().numpy(), atol=1e-6)
