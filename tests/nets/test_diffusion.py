"""The network of the diffusion policy: its schedule is diffusers', its chunks are a function."""

import dataclasses

import pytest
import torch

from penspin_style.algo import distill
from penspin_style.algo.chunks import chunk_card, eyes_of
from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.export import export
from penspin_style.env import frozen_policy
from penspin_style.nets.diffusion import DiffusionPolicy, ddim, noise_in, schedule
from penspin_style.nets.policy import load_policy, save_policy
from tests.support.episodes import vector_card
from tests.support.learning import SMALL_DIFFUSION, seeing

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(inputs=None, eyes=None, **changes):
    inputs = chunk_card(vector_card()).inputs if inputs is None else inputs
    return DiffusionPolicy(inputs, 3, eyes=eyes, rng=seeded(), **{**SMALL_DIFFUSION, **changes})


def test_the_schedule_is_that_of_diffusers():
    # diffusers 0.35.2: DDIMScheduler(100, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    wanted = torch.tensor([0.9993687, 0.9667166, 0.4782646, 0.0195444, 2e-07])
    torch.testing.assert_close(schedule(100)[[0, 10, 50, 90, 99]], wanted, atol=5e-8, rtol=1e-5)


def test_a_step_of_denoising_is_that_of_diffusers():
    # the same scheduler with set_timesteps(10), noise (0.5, -1, 0.1) at every step
    told = [
        (0.770038, -0.664682, 0.306421),
        (0.886521, -0.462872, 0.405416),
        (0.981517, -0.24984, 0.494586),
        (1.052723, -0.030746, 0.571768),
        (1.098411, 0.189104, 0.635093),
        (1.11747, 0.404388, 0.683024),
        (1.109428, 0.609911, 0.714399),
        (1.074436, 0.80078, 0.728447),
        (1.012246, 0.974559, 0.724611),
        (1.0, 1.0, 0.722326),
    ]
    x, noise = torch.tensor([1.5, -0.7, 0.2]), torch.tensor([0.5, -1.0, 0.1])
    shares = schedule(100)
    for level, wanted in zip(range(90, -1, -10), told, strict=True):
        after = shares[level - 10] if level else torch.ones(())
        x = ddim(x, noise, shares[level], after)
        torch.testing.assert_close(x, torch.tensor(wanted), atol=2e-6, rtol=0.0)


def test_a_chunk_whose_noise_is_known_is_found():
    net = network(levels=100, steps=10)
    label = torch.rand(1, 5, 3, generator=seeded(1)) * 1.6 - 0.8

    def noise(x, told, waves):
        level = (net.waves - waves).abs().sum(dim=1).argmin()
        share = net.alphas[level]
        return (x - share.sqrt() * label.flatten(1)) / (1.0 - share).sqrt()

    net._denoised = noise
    found = net.denoise(torch.zeros(1, 9), {})
    torch.testing.assert_close(found, label, atol=1e-5, rtol=0.0)


def test_the_noise_follows_from_the_chunk_that_is_in_it():
    # 0.5 of 0.64 and 0.36 of the variance: 0.8 * 0.5 + 0.6 * 2 = 1.6
    found = noise_in(torch.tensor(1.6), torch.tensor(0.5), torch.tensor(0.64))
    torch.testing.assert_close(found, torch.tensor(2.0), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("steps", [1, 10])
def test_a_network_that_predicts_the_chunk_ends_at_its_last_word(steps):
    net = network(levels=100, steps=steps, predicts="sample")
    label = torch.rand(1, 5, 3, generator=seeded(1)) * 1.6 - 0.8
    net._denoised = lambda x, told, waves: label.flatten(1)
    torch.testing.assert_close(net.denoise(torch.zeros(1, 9), {}), label, atol=1e-5, rtol=0.0)
    # what is missed is the chunk: by its own square, if the network says 0
    net._denoised = lambda x, told, waves: torch.zeros_like(x)
    loss = net(torch.zeros(1, 9), {}, label, seeded(2)).item()
    assert loss == pytest.approx(label.square().mean().item())


def test_a_card_without_a_word_of_what_is_predicted_is_of_noise():
    described = network().describe()
    kind = described.pop("kind")
    del described["predicts"]
    card = dataclasses.replace(chunk_card(vector_card()), network={"kind": kind, **described})
    assert DiffusionPolicy.from_card(card, described).predicts == "noise"


def test_the_loss_is_of_the_noise_that_was_added():
    net, numbers = network(), torch.rand(64, 9, generator=seeded())
    label = torch.rand(64, 5, 3, generator=seeded(1))
    net._denoised = lambda x, told, waves: torch.zeros_like(x)
    loss = net(numbers, {}, label, seeded(2))
    assert loss.shape == (64,) and loss.mean().item() == pytest.approx(1.0, abs=0.1)


def test_its_chunks_follow_from_what_it_observes_alone():
    net = network().eval()
    numbers = torch.rand(4, 9, generator=seeded())
    one, two = net.act(numbers), net.act(numbers.flip(0))
    assert one.shape == (4, 5, 3) and torch.allclose(one, two.flip(0), atol=1e-6)
    assert not torch.allclose(one[0], one[1], atol=1e-4) and one.abs().max() <= 1.0


def test_what_cannot_be_predicted_is_refused():
    with pytest.raises(ValueError, match=r"algo\.predicts='speed': it must be sample or noise"):
        network(predicts="speed")


def test_more_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match=r"algo\.steps=30: it must be from 1 to algo\.levels=20"):
        network(levels=20, steps=30)


def test_a_policy_of_chunks_with_eyes_is_built_again_and_exported_whole(tmp_path):
    policy, card = seeing()
    own = chunk_card(card)
    net = network(own.inputs, eyes=eyes_of(policy), predicts="sample")
    own = dataclasses.replace(own, network=net.describe())
    save_policy(net, own, tmp_path / "policy")
    again, read = load_policy(tmp_path / "policy")
    assert torch.equal(again.begin, net.begin) and again.horizon == 5
    report = export(again, read, tmp_path / "policy.onnx", samples=100)
    bundle = Bundle.load(tmp_path / "policy.onnx")
    assert report.max_abs_diff < 1e-5 and bundle.horizon == 5
    given = {
        i.name: torch.zeros(i.tensor[1], dtype=getattr(torch, i.tensor[0])) for i in own.inputs
    }
    said = bundle({name: value.numpy() for name, value in given.items()})
    wanted = net.eval().act(*(value[None] for value in given.values()))[0]
    torch.testing.assert_close(torch.from_numpy(said), wanted.detach(), atol=1e-5, rtol=0.0)
    # who needs one action at a time says so
    for path in (tmp_path / "policy", tmp_path / "policy.onnx"):
        with pytest.raises(ValueError, match=r"task\.helper=.*policy.* answers chunks of actions"):
            frozen_policy._open("task.helper", str(path), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"algo\.teacher=.* answers chunks .*it cannot teach"):
        distill._load_teacher(str(tmp_path / "policy"), {i.name: i for i in own.inputs}, 3)
