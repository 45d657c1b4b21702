"""Normaliser, policy and its folder."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from penspin_style import config, storage
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from penspin_style.nets.critic import ValueFunction
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.mlp import ACTIVATIONS, mlp
from penspin_style.nets.normalizer import Normalizer
from penspin_style.nets.policy import load_policy, read_policy, save_policy
from penspin_style.storage import DamagedError
from tests.support.damage import DAMAGES, check_refused

SIZE, NACTION = 5, 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def make(seed=0, **changes):
    settings = {"hidden": [16, 8], "activation": "tanh", "init_std": 0.5, **changes}
    policy = GaussianPolicy("teacher", SIZE, NACTION, rng=seeded(seed), **settings)
    policy.normalizer.update(3.0 + 2.0 * randn(100, SIZE, seed=1))
    return policy


def card(policy, **changes):
    found = PolicyCard(
        task="cart",
        inputs=(Input("teacher", (Feature("x", (SIZE,), "m"),)),),
        actions=tuple(ActionChannel(f"a{i}", "m", 0.1, -1.0, 1.0, "delta") for i in range(NACTION)),
        joints=(),
        control_dt=0.05,
        network=policy.describe(),
    )
    return dataclasses.replace(found, **changes)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


# Normaliser.

DATA = torch.cat((5.0 + 2.0 * randn(60, 3), -1.0 + 0.1 * randn(40, 3, seed=1)))


@pytest.mark.parametrize("sizes", [[100], [60, 40], [1] * 100, [99, 1], [0, 50, 0, 50]])
def test_statistics_are_those_of_all_data_however_it_arrives(sizes):
    norm = Normalizer(3)
    for part in DATA.split(sizes):
        norm.update(part)
    assert norm.count.item() == 100
    close(norm.mean, DATA.mean(dim=0))
    close(norm.var, DATA.var(dim=0, correction=0))


def test_masked_rows_do_not_enter_the_statistics_whatever_they_hold():
    keep = torch.rand(100, generator=seeded(3)) < 0.6
    spoilt = DATA.clone()
    spoilt[~keep] = torch.tensor([1e30, math.inf, math.nan])
    norm = Normalizer(3)
    norm.update(spoilt[:50], keep[:50])
    norm.update(spoilt[50:], keep[50:])
    assert norm.count.item() == keep.sum().item()
    close(norm.mean, DATA[keep].mean(dim=0))
    close(norm.var, DATA[keep].var(dim=0, correction=0))


def test_a_batch_without_a_row_that_counts_changes_nothing():
    norm = Normalizer(3)
    norm.update(DATA)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    norm.update(DATA + 9.0, torch.zeros(100, dtype=torch.bool))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_normalised_data_has_mean_zero_and_variance_one():
    norm = Normalizer(3)
    assert torch.equal(norm(torch.zeros(3)), torch.zeros(3))
    norm.update(DATA)
    got = norm(DATA)
    close(got.mean(dim=0), torch.zeros(3))
    close(got.var(dim=0, correction=0), torch.ones(3), atol=1e-4)


def test_normalised_values_are_clipped_and_a_constant_is_no_division_by_zero():
    norm = Normalizer(1)
    norm.update(torch.full((10, 1), 7.0))
    got = norm(torch.tensor([[7.0], [1e6], [-1e6], [7.0 + 1e-3]]))
    expected = [0.0, 10.0, -10.0, 1e-3 / 1e-5**0.5]
    assert got.flatten().tolist() == pytest.approx(expected, abs=1e-3)


def test_a_long_run_loses_no_counts():
    norm = Normalizer(1)
    norm.count.fill_(2.0**24)  # float32 would stop here
    norm.update(torch.ones(1, 1))
    assert norm.count.item() == 2.0**24 + 1


def test_statistics_move_only_in_update():
    norm = Normalizer(3)
    norm.update(DATA)
    mean = norm.mean.clone()
    norm.train()(DATA + 100.0)
    assert torch.equal(norm.mean, mean)
    assert set(norm.state_dict()) == {"mean", "var", "count"}


# Networks.


def test_the_configuration_offers_exactly_the_activations_that_there_are():
    assert sorted(config.ACTIVATIONS) == sorted(ACTIVATIONS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_perceptron_has_the_layers_it_should(activation):
    net = mlp(5, [16, 8], 3, activation=activation, rng=seeded())
    kind = {"elu": nn.ELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}[activation]
    assert [type(layer) for layer in net] == [nn.Linear, kind, nn.Linear, kind, nn.Linear]
    assert [tuple(net[i].weight.shape) for i in (0, 2, 4)] == [(16, 5), (8, 16), (3, 8)]


def test_weights_are_orthogonal_with_their_gain_and_biases_zero():
    net = mlp(16, [16], 4, out_gain=0.01, rng=seeded())
    first, last = net[0], net[2]
    close(first.weight @ first.weight.T, 2.0 * torch.eye(16))
    close(last.weight @ last.weight.T, 1e-4 * torch.eye(4), atol=1e-9)
    assert not first.bias.any() and not last.bias.any()


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(0)
    a = mlp(4, [8], 2, rng=seeded(1))
    torch.manual_seed(1)
    b, c = mlp(4, [8], 2, rng=seeded(1)), mlp(4, [8], 2, rng=seeded(2))
    assert torch.equal(a[0].weight, b[0].weight) and torch.equal(a[2].weight, b[2].weight)
    assert not torch.equal(a[0].weight, c[0].weight)


def test_an_unknown_activation_names_the_known_ones():
    with pytest.raises(ValueError, match=r"one of \['elu', 'relu', 'silu', 'tanh'\], got 'swish'"):
        mlp(1, [1], 1, activation="swish", rng=seeded())


# Policy.


def test_actions_stay_within_their_limits_whatever_is_observed():
    policy = make()
    for layer in policy.net:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 500.0
    observation = torch.cat((randn(1000, SIZE), 1e20 * randn(10, SIZE)))
    action = policy.act(observation)
    assert action.shape == (1010, NACTION)
    assert action.abs().max() <= 1.0
    assert action.abs().max() > 0.99


def test_a_fresh_policy_acts_near_zero_with_its_initial_deviation():
    dist = make(init_std=0.5)(3.0 + 2.0 * randn(200, SIZE))
    assert dist.loc.abs().max() < 0.1
    close(dist.scale, torch.full((200, NACTION), 0.5))


def test_the_deviation_cannot_fall_below_its_floor():
    policy = make()
    policy.raw_std.data.fill_(-1e9)
    close(policy(torch.zeros(1, SIZE)).scale, torch.full((1, NACTION), policy.min_std))
    assert make(init_std=0.01)(torch.zeros(1, SIZE)).scale.min() >= policy.min_std


def test_the_policy_takes_raw_observations():
    policy = make()
    observation = randn(7, SIZE)
    inside = torch.tanh(policy.net(policy.normalizer(observation)))
    assert torch.equal(policy.act(observation), inside)
    assert torch.equal(policy(observation).loc, inside)
    assert not torch.allclose(policy.net(observation).tanh(), inside)


def test_any_leading_dimensions_will_do():
    policy, value = make(), ValueFunction("c", SIZE, hidden=[4], activation="elu", rng=seeded())
    assert policy.act(torch.zeros(SIZE)).shape == (NACTION,)
    assert policy(torch.zeros(2, 3, SIZE)).log_prob(torch.zeros(2, 3, NACTION)).shape == (2, 3)
    assert value(torch.zeros(2, 3, SIZE)).shape == (2, 3, 1)


# Folder.


@pytest.fixture
def saved(tmp_path):
    policy = make()
    policy.raw_std.data += 0.1234567
    folder = tmp_path / "policy"
    save_policy(policy, card(policy), folder)
    return policy, folder


def test_a_policy_survives_its_folder_bit_for_bit(saved):
    policy, folder = saved
    back, its_card = load_policy(folder)
    assert its_card == card(policy)
    assert not back.training
    assert back.state_dict().keys() == policy.state_dict().keys()
    for key, value in policy.state_dict().items():
        read = back.state_dict()[key]
        assert torch.equal(read, value) and read.dtype == value.dtype
    observation = randn(20, SIZE, seed=4)
    assert torch.equal(back.act(observation), policy.act(observation))
    assert torch.equal(back(observation).scale, policy(observation).scale)


def test_the_card_describes_the_network(saved):
    policy, folder = saved
    assert policy.describe() == {
        "kind": "gaussian",
        "in_key": "teacher",
        "hidden": [16, 8],
        "activation": "tanh",
    }
    back, its_card = load_policy(folder)
    assert its_card.network == back.describe() == policy.describe()


def test_the_weights_are_plain_safetensors_without_code(saved):
    policy, folder = saved
    names = {path.name for path in folder.iterdir()}
    assert names == {"policy.safetensors", "card.json", "manifest.json"}
    weights = load_file(folder / "policy.safetensors")
    assert weights.keys() == policy.state_dict().keys()


def test_a_folder_is_never_written_over(saved):
    policy, folder = saved
    with pytest.raises(FileExistsError, match="exists already"):
        save_policy(policy, card(policy), folder)


@pytest.mark.parametrize("name", ["policy.safetensors", "card.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(saved, name, damage):
    check_refused(load_policy, saved[1], name, damage)


def test_a_folder_with_a_file_of_its_own_is_refused(saved):
    (saved[1] / "extra.py").write_text("print('hello')")
    with pytest.raises(ValueError, match="is not in the manifest"):
        load_policy(saved[1])


def test_the_configuration_is_under_the_manifest(tmp_path):
    policy, folder = make(), tmp_path / "policy"
    save_policy(policy, card(policy), folder, "task_name: cart\n")
    assert read_policy(folder)[2] == "task_name: cart\n"
    (folder / "config.yaml").write_text("task_name: carts\n")
    with pytest.raises(DamagedError, match=r"config\.yaml does not match its checksum"):
        load_policy(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["net.2.weight", "normalizer.mean", "raw_std"])
def test_a_weight_that_is_not_finite_is_damage_and_named(tmp_path, name, value):
    policy = make()
    policy.state_dict()[name].view(-1)[-1] = value
    save_policy(policy, card(policy), tmp_path / "policy")
    with pytest.raises(DamagedError, match=rf"policy\.safetensors: {name} is not finite"):
        load_policy(tmp_path / "policy")


def republished(folder, **files):
    """Write files of a published folder anew, as one who can make a manifest does."""
    _, contents = storage.read_verified(folder, limit=2**30)
    storage.remove(folder)
    with storage.publish(folder, {}) as stage:
        for name, content in {**contents, **files}.items():
            (stage / name.replace("_", ".")).write_bytes(content)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"policy_safetensors": b"no weights"}, "is not readable as safetensors"),
        ({"card_json": b"[" * 100_000}, "policy: policy card is not JSON"),
        ({"card_json": b"\xff"}, "policy: .*decode"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line_that_names_the_folder(saved, files, complaint):
    republished(saved[1], **files)
    with pytest.raises(ValueError, match=complaint):
        load_policy(saved[1])


@pytest.mark.parametrize("task", ["../../elsewhere", "a/b", "", "a..b", "a b"])
def test_a_task_that_is_no_name_leads_to_no_folder(tmp_path, task):
    policy = make()
    save_policy(policy, card(policy, task=task), tmp_path / "policy")
    with pytest.raises(ValueError, match="is not the name of a task"):
        load_policy(tmp_path / "policy")


def test_a_network_of_another_kind_is_refused_by_name(tmp_path):
    policy = make()
    other = card(policy, network={**policy.describe(), "kind": "flow"})
    save_policy(policy, other, tmp_path / "policy")
    with pytest.raises(
        ValueError, match="network kind 'flow' is unknown; known: diffusion, gaussian"
    ):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": [16, 9]},
        {"hidden": [16]},
        {"in_key": "student"},
        {"activation": "swish"},
        {"hidden": None},
    ],
)
def test_a_card_that_does_not_fit_its_weights_is_refused(tmp_path, changes):
    policy = make()
    other = card(policy, network={**policy.describe(), **changes})
    save_policy(policy, other, tmp_path / "policy")
    with pytest.raises(ValueError, match=r"policy: the card's network .* does not fit"):
        load_policy(tmp_path / "policy")


def test_a_card_without_a_network_is_refused(tmp_path):
    policy = make()
    save_policy(policy, card(policy, network={"kind": "gaussian"}), tmp_path / "policy")
    with pytest.raises(ValueError, match="policy"):
        load_policy(tmp_path / "policy")


def test_a_family_is_imported_when_a_card_asks_for_it():
    code = (
        "import sys, penspin_style.nets.policy as p; "
        "print(sorted(p.named_modules('penspin_style.nets', 'POLICY')), "
        "[m for m in ('student', 'teacher') if f'penspin_style.nets.{m}' in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = ["diffusion", "gaussian", "oracle", "squashed", "student", "temporal"]
    assert said.stdout.strip() == f"{names} []"
