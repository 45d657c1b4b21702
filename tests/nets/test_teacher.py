"""The teacher's encoders, its two heads, its folder and its export."""

import dataclasses

import pytest
import torch
from torch import nn

from penspin_style.deploy.export import export
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from penspin_style.nets.points import PointEncoder
from penspin_style.nets.policy import load_policy, save_policy
from penspin_style.nets.teacher import TeacherPolicy, encode_points, is_cloud

TEACHER = Input("teacher", (Feature("proprio", (32,), "rad", history=3),))
POINTS = Input("points", (Feature("surface", (100, 3), "m"),))
PRIVILEGED = Input("privileged", (Feature("pen", (29,), "m"), Feature("tactile", (32,))))
ALL = (TEACHER, POINTS, PRIVILEGED)
ENCODERS = {"privileged": [256, 128, 8], "points": [32, 32, 32]}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def make(inputs=ALL, *, naction=16, seed=0, **changes):
    settings = {
        "encoders": {i.name: ENCODERS.get(i.name, [8]) for i in inputs[1:]},
        "hidden": [512, 256, 128],
        "activation": "elu",
        "value": True,
        "init_std": 0.5,
        **changes,
    }
    return TeacherPolicy(inputs, naction, rng=seeded(seed), **settings)


def observed(n=7, inputs=ALL):
    return [randn(n, given.size, seed=k) for k, given in enumerate(inputs)]


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


# Shapes.


def test_the_published_widths_have_the_published_number_of_parameters():
    assert [i.size for i in ALL] == [96, 300, 61]
    policy = make()
    assert sum(p.numel() for p in policy.parameters()) == 288_617
    assert policy.trunk[0].in_features == 96 + 32 + 8


def test_one_evaluation_gives_distribution_and_value():
    policy, seen = make(), observed()
    dist, value = policy.evaluate(*seen)
    assert (dist.loc.shape, dist.scale.shape, value.shape) == ((7, 16), (7, 16), (7, 1))
    close(dist.scale, torch.full((7, 16), 0.5))
    close(dist.loc, policy.act(*seen))
    assert torch.equal(policy(*seen).loc, dist.loc)
    batch = [x.view(1, 7, -1).expand(2, 7, -1) for x in seen]
    assert policy.evaluate(*batch)[1].shape == (2, 7, 1)
    close(policy.evaluate(*batch)[1][1], value)
    close(policy.act(*batch)[1], dist.loc)
    with torch.no_grad():
        close(policy.evaluate(*batch)[0].loc[0], dist.loc)
        assert policy.evaluate(*(x[:0] for x in seen))[0].loc.shape == (0, 16)


def test_without_a_value_head_there_is_no_value():
    policy = make(value=False)
    assert policy.evaluate(*observed())[1] is None
    assert sum(p.numel() for p in policy.parameters()) == 288_617 - 129


def test_the_network_is_that_of_the_paper():
    """Layer by layer, by hand: what is normalised, where an activation is, and where none is."""
    policy, (own, cloud, told) = make(), observed()
    for normalizer, shift in zip(policy.normalizers.values(), (0.1, 0.2, 0.3), strict=True):
        normalizer.mean += shift
        normalizer.var *= 4.0

    def layers(net, x):
        for layer in (m for m in net if isinstance(m, nn.Linear)):
            yield (x := layer(x))
            x = nn.functional.elu(x)

    *_, told = layers(policy.encoders["privileged"], (told - 0.3) / 2.0)
    *_, each = layers(policy.encoders["points"].net, (cloud.view(7, 100, 3) - 0.2) / 2.0)
    code = torch.cat((nn.functional.elu(each).amax(dim=1), told), dim=1).tanh()
    *_, last = layers(policy.trunk, torch.cat(((own - 0.1) / 2.0, code), dim=1))
    features = nn.functional.elu(last)
    dist, value = policy.evaluate(own, cloud, observed()[2])
    close(dist.loc, policy.mean(features).tanh())
    close(value, policy.value(features), atol=1e-4)


def test_groups_can_be_left_out():
    sizes = {}
    for inputs in (ALL, (TEACHER, POINTS), (TEACHER, PRIVILEGED), (TEACHER,)):
        policy = make(inputs)
        assert policy.in_keys == tuple(i.name for i in inputs)
        assert policy.act(*observed(inputs=inputs)).shape == (7, 16)
        sizes[len(inputs), policy.trunk[0].in_features] = policy
    assert set(sizes) == {(3, 136), (2, 128), (2, 104), (1, 96)}


def test_a_policy_without_hidden_layers_reads_groups_and_codes_alone():
    policy = make(hidden=[])
    assert policy.mean[0].in_features == policy.value[0].in_features == 136


def test_encoders_must_be_those_of_the_inputs():
    with pytest.raises(ValueError, match=r"\['privileged'\].*'teacher' are \['points'\]"):
        make((TEACHER, POINTS), encoders={"privileged": [8]})
    camera = Input("front_rgb", (Feature("front_rgb", (8, 8, 3), dtype="uint8"),))
    with pytest.raises(ValueError, match="'front_rgb' is neither"):
        make((TEACHER, camera), encoders={"front_rgb": [8]})


def test_a_cloud_is_one_feature_of_points_without_a_history():
    assert is_cloud(POINTS)
    assert not is_cloud(Input("x", (Feature("a", (5, 3)), Feature("b", (5, 3)))))
    assert not is_cloud(Input("x", (Feature("a", (5, 3), history=2),)))
    assert not is_cloud(Input("x", (Feature("a", (5, 2)),)))
    assert not is_cloud(Input("x", (Feature("a", (3,)),)))


# Points.


def test_the_order_of_the_points_does_not_matter():
    policy, (own, cloud, told) = make(), observed()
    order = torch.randperm(100, generator=seeded(5))
    other = cloud.view(7, 100, 3)[:, order].reshape(7, 300)
    assert not torch.equal(other, cloud)
    close(policy.act(own, other, told), policy.act(own, cloud, told), atol=1e-6)
    other[:, 0] += 100.0
    assert (policy.act(own, other, told) != policy.act(own, cloud, told)).any(dim=1).all()


@pytest.mark.parametrize("activation", ["elu", "relu", "silu", "tanh"])
@pytest.mark.parametrize("clouds", [1, 3, 600])
def test_the_quick_encoder_gives_the_plain_ones_values_and_gradients(activation, clouds):
    encoder = PointEncoder(3, (8, 16, 12), activation=activation, rng=seeded())
    points, pull = randn(clouds, 40, 3, seed=1), randn(clouds, 12, seed=2)
    seen = []
    for encode in (encoder, lambda x: encode_points(encoder, x)):
        encoder.zero_grad()
        code = encode(points)
        (code * pull).sum().backward()
        seen.append((code.detach(), torch.cat([p.grad.flatten() for p in encoder.parameters()])))
    close(seen[0][0], seen[1][0], atol=1e-6)
    close(seen[0][1], seen[1][1], atol=1e-3)
    with torch.no_grad():
        close(encode_points(encoder, points), seen[0][0], atol=1e-6)


def test_every_parameter_has_a_gradient():
    policy = make()
    dist, value = policy.evaluate(*observed(64))
    (dist.log_prob(randn(64, 16)).sum() + value.sum()).backward()
    assert [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.any()] == []


# Folder and export.


def card(policy, inputs=ALL):
    return PolicyCard(
        task="pen",
        inputs=inputs,
        actions=tuple(ActionChannel(f"a{i}", "rad", 0.1, -1.0, 1.0, "delta") for i in range(16)),
        joints=(),
        control_dt=0.05,
        network=policy.describe(),
    )


@pytest.mark.parametrize("inputs", [ALL, (TEACHER, POINTS)])
def test_a_policy_survives_its_folder_bit_for_bit(tmp_path, inputs):
    policy = make(inputs, hidden=[32, 16])
    for normalizer in policy.normalizers.values():
        normalizer.update(randn(50, len(normalizer.mean)))
    save_policy(policy, card(policy, inputs), tmp_path / "policy")
    back, its_card = load_policy(tmp_path / "policy")
    assert isinstance(back, TeacherPolicy) and not back.training
    assert its_card.network == back.describe() == policy.describe()
    assert list(back.describe()["encoders"]) == [i.name for i in inputs[1:]]
    seen = observed(inputs=inputs)
    assert torch.equal(back.act(*seen), policy.act(*seen))
    assert torch.equal(back.evaluate(*seen)[1], policy.evaluate(*seen)[1])


def test_a_teacher_can_be_exported(tmp_path):
    policy = make(hidden=[32, 16])
    for normalizer in policy.normalizers.values():
        normalizer.update(0.3 + 0.05 * randn(50, len(normalizer.mean)))
    for p in policy.mean.parameters():
        p.data *= 50.0  # actions of every size
    report = export(policy, card(policy), tmp_path / "policy.onnx", samples=200)
    assert report.max_abs_diff < 1e-5
    other = dataclasses.replace(card(policy), inputs=(TEACHER, PRIVILEGED, POINTS))
    with pytest.raises(ValueError, match="the policy reads"):
        export(policy, other, tmp_path / "other.onnx")
