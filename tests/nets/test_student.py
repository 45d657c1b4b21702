"""The student against the same arithmetic in plain torch, from the weights in its file."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.export import export
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from penspin_style.nets.mlp import ACTIVATIONS
from penspin_style.nets.policy import load_policy, save_policy
from penspin_style.nets.student import StudentPolicy

NUMBERS, NACTION, N = 5, 3, 7
LIMITS = {"left": 0.4, "right": 1.1}
PADS = (2, 1, 1)  # SAME for 32 pixels: kernels 8, 4, 3 at strides 4, 2, 1 keep 8, 4, 4
STRIDES = (4, 2, 1)
SQUASH = {"relu": F.relu, "tanh": torch.tanh, "silu": lambda x: x * torch.sigmoid(x)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vector(size=NUMBERS):
    return Input("student", (Feature("q", (size,), "rad"),))


def rgb(camera, size=32, history=1):
    name = f"{camera}_rgb"
    return Input(name, (Feature(name, (size, size, 3), "1", "uint8", history),))


def depth(camera, size=32, history=1):
    name = f"{camera}_depth"
    return Input(name, (Feature(name, (size, size), "m", history=history),))


IMAGES = (rgb("left"), depth("left"), rgb("right"), depth("right"))
INPUTS = (vector(), *IMAGES)


def make(inputs=INPUTS, naction=NACTION, seed=0, **changes):
    settings = {
        **{"pool": True, "latent": 6, "depth_pixels": 8, "max_depth": {}, "hidden": [9, 8]},
        **{"activation": "relu", "train_encoder": False, **changes},
    }
    return StudentPolicy(inputs, naction, rng=seeded(seed), **settings)


def trained(policy, seed=1):
    """As training leaves it: weights off their start, units of their own, actions that differ."""
    rng = seeded(seed)
    if policy.normalizer is not None:
        policy.normalizer.update(2.0 + 3.0 * torch.randn(50, NUMBERS, generator=rng))
    last = policy.trunk[-1]
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=rng))
            if weight.ndim == 1:
                weight.normal_(0.0, 0.1, generator=rng)
        last.weight.mul_(1e-3), last.bias.zero_()  # so small that the squash is none
        action = policy.act(*observations(policy))
        gain = 0.7 / action.std(dim=0)
        last.weight.mul_(gain[:, None])
        last.bias.copy_(-gain * action.mean(dim=0))
    return policy


def observations(policy, n=N, seed=3):
    """What a camera and a body give: bytes, metres with holes, raw numbers."""
    rng, drawn = seeded(seed), []
    for given in policy.inputs:
        dtype, shape = given.tensor
        if dtype == "uint8":
            drawn.append(torch.randint(0, 256, (n, *shape), generator=rng).to(torch.uint8))
        elif given.is_image:
            metres = 1.5 * torch.rand(n, *shape, generator=rng)
            drawn.append(torch.where(torch.rand(metres.shape, generator=rng) < 0.2, 0.0, metres))
        else:
            drawn.append(2.0 + 40.0 * torch.randn(n, *shape, generator=rng))  # some are clipped
    return drawn


def conv_features(state, camera, pixels, *, pool):
    """NatureCNN on bytes (n, 32, 32, 3)."""
    x = pixels.permute(0, 3, 1, 2).float() / 255.0
    x = x - torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    x = x / torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
    for i, (pad, stride) in enumerate(zip(PADS, STRIDES, strict=True)):
        weight = state[f"encoders.{camera}.convs.{i}.weight"]
        x = F.relu(F.conv2d(F.pad(x, (pad,) * 4), weight, stride=stride))
    assert x.shape[1:] == (64, 4, 4)
    return x.mean(dim=(2, 3)) if pool else x.reshape(len(x), 64 * 16)


def few_pixels(metres, limit):
    """The third of every four pixels; nothing beyond the limit; parts of the limit."""
    few = metres[:, 2::4, 2::4].reshape(len(metres), 64)
    return torch.where(few > limit, torch.zeros(()), few) / limit


def standardised(x):
    """Rows with mean 0 and variance 1."""
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim=1, keepdim=True) + 1e-5)


def by_hand(state, inputs, values, *, pool, squash, limits, layer_norm=False):
    parts, numbers = [], None
    for given, value in zip(inputs, values, strict=True):
        camera, _, kind = given.name.rpartition("_")
        if kind == "rgb":
            x = conv_features(state, camera, value, pool=pool)
            x = standardised(x) if layer_norm else x
        elif kind == "depth":
            x = few_pixels(value, limits.get(camera, 2.0))
        else:
            std = torch.sqrt(state["normalizer.var"] + 1e-5)
            numbers = ((value - state["normalizer.mean"]) / std).clamp(-10.0, 10.0)
            assert (numbers.abs() == 10.0).any() and (numbers.abs() < 10.0).any()
            continue
        at = f"heads.{given.name}.0.0"
        parts.append(squash(F.linear(x, state[f"{at}.weight"], state[f"{at}.bias"])))
    x = torch.cat((*parts, *([] if numbers is None else [numbers])), dim=1)
    layers = sorted({int(k.split(".")[1]) for k in state if k.startswith("trunk")})
    for i in layers:
        x = F.linear(x, state[f"trunk.{i}.weight"], state[f"trunk.{i}.bias"])
        x = torch.tanh(x) if i == layers[-1] else squash(x)
    return x


def card(policy, **changes):
    actions = [ActionChannel(f"a{i}", "m", 0.1, -1.0, 1.0, "delta") for i in range(policy.naction)]
    found = PolicyCard(
        task="cart",
        inputs=policy.inputs,
        actions=tuple(actions),
        joints=(),
        control_dt=0.05,
        network=policy.describe(),
    )
    return dataclasses.replace(found, **changes)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0.0)


# The whole function.


@pytest.mark.parametrize("activation", SQUASH)
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("pool", [True, False])
def test_acting_is_the_arithmetic_of_the_weights(pool, layer_norm, activation):
    made = make(pool=pool, activation=activation, max_depth=LIMITS, layer_norm=layer_norm)
    policy = trained(made)
    values = observations(policy)
    settings = {"pool": pool, "squash": SQUASH[activation], "limits": LIMITS}
    settings["layer_norm"] = layer_norm
    expected = by_hand(policy.state_dict(), policy.inputs, values, **settings)
    with torch.no_grad():
        action = policy.act(*values)
    close(action, expected, atol=2e-5)
    assert action.shape == (N, NACTION)
    assert 0.1 < action.abs().mean() < 0.95 and action.std(dim=0).min() > 0.05


@pytest.mark.parametrize(
    "inputs", [(vector(),), IMAGES, (rgb("left"),), (depth("right"), vector())]
)
def test_any_of_the_streams_may_be_missing(inputs):
    policy = trained(make(inputs=inputs))
    values = observations(policy)
    settings = {"pool": True, "squash": F.relu, "limits": {}}
    expected = by_hand(policy.state_dict(), inputs, values, **settings)
    with torch.no_grad():
        close(policy.act(*values), expected, atol=2e-5)
    assert policy.in_keys == tuple(i.name for i in inputs)


def test_acting_goes_through_the_three_parts():
    policy = trained(make())
    values = observations(policy)
    seen = policy.decode(dict(zip(policy.in_keys, values, strict=True)))
    assert set(seen.rgb) == set(seen.depth) == {"left", "right"}
    assert torch.equal(seen.numbers, values[0])
    close(seen.rgb["right"], values[3].permute(0, 3, 1, 2) / 255.0, atol=1e-7)
    assert seen.rgb["right"].dtype == torch.float32
    assert torch.equal(seen.depth["left"], values[2])
    features = policy.encode(seen.rgb, seen.depth)
    assert {k: tuple(v.shape) for k, v in features.items()} == {i.name: (N, 64) for i in IMAGES}
    assert torch.equal(policy.head(seen.numbers, features), policy.act(*values))
    assert set(policy.encode({"left": seen.rgb["left"]}, {})) == {"left_rgb"}


def test_every_input_moves_the_action():
    policy = trained(make())
    values = observations(policy)
    with torch.no_grad():
        action = policy.act(*values)
        for i, value in enumerate(values):
            changed = list(values)
            changed[i] = torch.zeros_like(value)
            assert (policy.act(*changed) != action).any(dim=1).all(), policy.in_keys[i]


def test_cameras_have_weights_of_their_own():
    policy = make()
    left, right = (policy.encoders[c].convs[0].weight for c in ("left", "right"))
    assert not torch.equal(left, right)
    policy.load_encoder(policy.encoders["left"].state_dict())
    assert torch.equal(left, policy.encoders["right"].convs[0].weight)
    values = observations(policy)
    values[3] = values[1]
    seen = policy.decode(dict(zip(policy.in_keys, values, strict=True)))
    features = policy.encode(seen.rgb, {})
    assert torch.equal(features["left_rgb"], features["right_rgb"])


def test_a_fresh_student_acts_near_zero():
    policy = make()
    with torch.no_grad():
        assert policy.act(*observations(policy)).abs().max() < 0.2


# Depth.


@pytest.mark.parametrize(
    ("size", "pixels", "rows"),
    [
        (32, 8, [2, 6, 10, 14, 18, 22, 26, 30]),
        (16, 8, [1, 3, 5, 7, 9, 11, 13, 15]),
        (12, 4, [1, 4, 7, 10]),
        (20, 8, [1, 3, 6, 8, 11, 13, 16, 18]),  # 2.5 pixels a cell
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_depth_is_taken_in_the_middle_of_each_cell(size, pixels, rows):
    policy = make(inputs=(depth("left", size),), depth_pixels=pixels, max_depth={"left": 1e4})
    metres = 1.0 + torch.arange(float(size**2)).view(1, size, size)
    (few,) = policy.encode({}, {"left": metres}).values()
    expected = [1.0 + size * row + column for row in rows for column in rows]
    close(few[0] * 1e4, torch.tensor(expected), atol=1e-2)


def test_depth_counts_up_to_its_limit_and_is_told_in_parts_of_it():
    policy = make(inputs=(depth("left", 8), depth("right", 8)), max_depth={"left": 0.4})
    metres = torch.zeros(1, 8, 8)
    metres[0, 0, :5] = torch.tensor([0.1, 0.4, 0.401, 1.0, 99.0])
    few = policy.encode({}, {"left": metres, "right": metres})
    assert few["left_depth"][0, :6].tolist() == pytest.approx([0.25, 1.0, 0.0, 0.0, 0.0, 0.0])
    # 2 m where nothing is said
    assert few["right_depth"][0, :6].tolist() == pytest.approx([0.05, 0.2, 0.2005, 0.5, 0.0, 0.0])


# Stacks.


def test_a_stack_of_images_is_encoded_one_by_one_oldest_first():
    inputs = (vector(), rgb("left", history=2), depth("left", history=3))
    policy = trained(make(inputs=inputs))
    values = observations(policy)
    assert [tuple(v.shape) for v in values[1:]] == [(N, 2, 32, 32, 3), (N, 3, 32, 32)]
    state = policy.state_dict()
    assert state["heads.left_rgb.0.0.weight"].shape == (6, 128)
    assert state["heads.left_depth.0.0.weight"].shape == (6, 192)
    with torch.no_grad():
        seen = policy.decode(dict(zip(policy.in_keys, values, strict=True)))
        features = policy.encode(seen.rgb, seen.depth)
        action = policy.act(*values)
    colour = [conv_features(state, "left", values[1][:, k], pool=True) for k in range(2)]
    close(features["left_rgb"], torch.cat(colour, dim=1))
    metres = [few_pixels(values[2][:, k], 2.0) for k in range(3)]
    close(features["left_depth"], torch.cat(metres, dim=1))
    assert torch.equal(action, policy.head(values[0], features))


# Sizes.


def count(policy):
    sizes = [(p.requires_grad, p.numel()) for p in policy.parameters()]
    return tuple(sum(n for learns, n in sizes if learns is wanted) for wanted in (True, False))


def test_the_parameters_are_as_many_as_were_published():
    inputs = (vector(33), *IMAGES)
    settings = {"latent": 64, "hidden": [256, 256, 256]}
    heads = 4 * (64 * 64 + 64)
    trunk = (4 * 64 + 33 + 1) * 256 + 2 * (256 + 1) * 256
    frozen = 2 * 64 * (3 * 32 * 1 + 32 * 4 * 4 + 64 * 3 * 3)  # 8 x 8 x 3 x 32 is 64 times 96
    # upstream's last layer has two numbers for each of 14 actions, a mean and a scale
    assert count(make(inputs, 28, **settings)) == (229_660, 151_552)
    assert heads + trunk + 28 * 257 == 229_660 and frozen == 151_552
    # ours has the mean alone
    assert count(make(inputs, 14, **settings)) == (heads + trunk + 14 * 257, frozen)
    # and reads the maps whole by default: 1,024 numbers instead of 64 of each of two cameras
    whole = 2 * (1024 - 64) * 64
    assert count(make(inputs, 14, pool=False, **settings)) == (
        heads + whole + trunk + 14 * 257,
        frozen,
    )


# Training.


@pytest.mark.parametrize("train_encoder", [False, True])
def test_encoders_learn_only_if_asked_to(train_encoder):
    policy = trained(make(train_encoder=train_encoder))
    policy.act(*observations(policy)).square().sum().backward()
    grads = {name: p.grad is not None for name, p in policy.named_parameters()}
    assert {name for name, has in grads.items() if not has} == (
        set() if train_encoder else {name for name in grads if name.startswith("encoders")}
    )
    names = {i.name for i in IMAGES}
    assert set(policy.frozen) == ({"left_depth", "right_depth"} if train_encoder else names)


def test_weights_come_from_the_generator_alone():
    torch.manual_seed(0)
    a = make(seed=1).state_dict()
    torch.manual_seed(1)
    b, c = make(seed=1).state_dict(), make(seed=2).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    drawn = [k for k in a if k.endswith("weight")]
    assert drawn and not any(torch.equal(a[k], c[k]) for k in drawn)


# Folder and file.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    policy = trained(make(activation="silu", max_depth=LIMITS, pool=False))
    folder = tmp_path_factory.mktemp("student") / "policy"
    save_policy(policy, card(policy), folder)
    return policy, folder


def test_a_student_survives_its_folder_bit_for_bit(saved):
    policy, folder = saved
    back, its_card = load_policy(folder)
    assert its_card == card(policy) and its_card.network == back.describe()
    assert isinstance(back, StudentPolicy) and not back.training
    state = policy.state_dict()
    assert (
        back.state_dict().keys() == state.keys() == load_file(folder / "policy.safetensors").keys()
    )
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in state.items())
    values = observations(policy)
    with torch.no_grad():
        assert torch.equal(back.act(*values), policy.act(*values))


def test_the_card_says_how_the_network_is_built(saved):
    policy, _ = saved
    assert policy.describe() == {
        **{"kind": "student", "pool": False, "latent": 6, "depth_pixels": 8, "max_depth": LIMITS},
        **{"hidden": [9, 8], "activation": "silu", "train_encoder": False},
        "layer_norm": False,
    }


def test_the_exported_student_has_the_activation_that_it_was_trained_with(saved, tmp_path):
    """Upstream rebuilt the network for its export, with another activation than in training."""
    _, folder = saved
    policy, its_card = load_policy(folder)
    path = tmp_path / "policy.onnx"
    export(policy, its_card, path, samples=100)
    bundle = Bundle.load(path)
    assert bundle.card.network["activation"] == "silu"
    values = observations(policy)
    named = {name: value.numpy() for name, value in zip(policy.in_keys, values, strict=True)}
    action = torch.from_numpy(np.asarray(bundle(named)))
    settings = {"pool": False, "limits": LIMITS}
    state = load_file(folder / "policy.safetensors")
    hand = {
        name: by_hand(state, policy.inputs, values, squash=squash, **settings)
        for name, squash in SQUASH.items()
    }
    close(action, hand["silu"], atol=2e-5)
    assert (action - hand["relu"]).abs().max() > 0.05
    # what is loaded back into torch is told from the card, too
    kinds = {type(m) for m in policy.modules()}
    assert nn.SiLU in kinds and not kinds & {ACTIVATIONS["relu"], ACTIVATIONS["elu"]}


@pytest.mark.parametrize(
    "changes",
    [{"pool": True}, {"latent": 7}, {"depth_pixels": 4}, {"activation": "swish"}, {"hidden": [9]},
     {"max_depth": {"nose": 1.0}}, {"extra": 1}],
)  # fmt: skip
def test_a_card_that_does_not_fit_the_weights_is_refused(tmp_path, changes):
    policy = make(pool=False)
    other = card(policy, network={**policy.describe(), **changes})
    save_policy(policy, other, tmp_path / "policy")
    with pytest.raises(ValueError, match=r"policy: the card's network .* does not fit"):
        load_policy(tmp_path / "policy")


# Refusals.


@pytest.mark.parametrize(
    ("inputs", "changes", "message"),
    [
        (
            (vector(), Input("more", (Feature("x", (2,)),))),
            {},
            r"reads one vector, got \['student', 'more'\]",
        ),
        (
            (Input("eye", (Feature("eye", (8, 8, 3), dtype="uint8"),)),),
            {},
            r"'eye', uint8 \(8, 8, 3\), is neither CAMERA_rgb",
        ),
        (
            (Input("a_rgb", (Feature("a_rgb", (3, 8, 8), dtype="uint8"),)),),
            {},
            r"'a_rgb', uint8 \(3, 8, 8\), is neither",
        ),
        (
            (Input("a_depth", (Feature("a_depth", (8, 8, 1)),)),),
            {},
            r"'a_depth', float32 \(8, 8, 1\), is neither",
        ),
        (
            (Input("a_depth", (Feature("a_depth", (8, 8), dtype="uint8"),)),),
            {},
            r"'a_depth', uint8 \(8, 8\), is neither",
        ),
        (
            IMAGES,
            {"max_depth": {"lift": 1.0, "left": 1.0}},
            r"max_depth names \['lift'\], the cameras are \['left', 'right'\]",
        ),
        ((vector(),), {"activation": "swish"}, "activation must be one of"),
    ],
)
def test_what_a_student_cannot_be_built_of_is_refused(inputs, changes, message):
    with pytest.raises(ValueError, match=message):
        make(inputs, **changes)


def test_images_of_another_size_are_refused():
    policy = make(inputs=(rgb("left"),))
    with pytest.raises((ValueError, RuntimeError)):
        policy.act(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
