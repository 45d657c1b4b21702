"""The temporal student against torch's transformer and plain arithmetic on the same weights."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from penspin_style.algo.imitation import TemporalConfig
from penspin_style.deploy.bundle import Bundle
from penspin_style.deploy.export import export
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from penspin_style.nets import attention
from penspin_style.nets.attention import TemporalEncoder, keep
from penspin_style.nets.policy import load_policy, save_policy
from penspin_style.nets.temporal import TemporalPolicy

NACTION, N = 16, 7
PUBLISHED = {
    "proprio": Feature("proprio", (32,), "rad", history=30),
    "fingertips": Feature("fingertips", (4, 3), "m"),
    "pen_ends": Feature("pen_ends", (2, 3), "m", history=3),
    "tactile": Feature("tactile", (32,), "1", history=30),
    "pen_points": Feature("pen_points", (100, 3), "m"),
}
SMALL = {
    "proprio": Feature("proprio", (8,), "rad", history=5),
    "fingertips": Feature("fingertips", (4, 3), "m"),
    "pen_ends": Feature("pen_ends", (2, 3), "m", history=3),
    "tactile": Feature("tactile", (3,), "1", history=5),
    "pen_points": Feature("pen_points", (9, 3), "m"),
}
WIDTHS = {"width": 8, "feedforward": 12, "latent": 5, "fingertips": [7, 4], "trunk": [11, 9]}
MODES = (
    ("proprio",),
    ("proprio", "fingertips"),
    ("fingertips", "pen_ends", "proprio"),
    ("tactile", "proprio", "fingertips"),
    ("pen_points", "tactile", "pen_ends", "proprio", "fingertips"),
)
modes = pytest.mark.parametrize("names", MODES, ids="+".join)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def given(names, terms=SMALL):
    return (Input("student", tuple(terms[name] for name in names)),)


def make(names, *, terms=SMALL, naction=NACTION, seed=0, **changes):
    settings = dataclasses.asdict(TemporalConfig(**{**WIDTHS, **changes}))
    return TemporalPolicy(given(names, terms), naction, rng=seeded(seed), **settings)


def drawn(policy, n=N, seed=3):
    """Observations, of which some numbers are clipped."""
    size = policy.inputs[0].size
    return 0.2 + 0.5 * torch.randn(n, size, generator=seeded(seed)).clamp(-2.0, 9.0)


def trained(policy, seed=1):
    """As training leaves it: weights off their start, units of their own, actions that differ."""
    rng = seeded(seed)
    policy.normalizer.update(0.2 + 0.1 * torch.randn(50, policy.inputs[0].size, generator=rng))
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
        policy.trunk[-1].weight.mul_(50.0)
    return policy


def term(policy, name):
    """Where a term lies in the vector."""
    start = 0
    for feature in policy.inputs[0].features:
        if feature.name == name:
            return slice(start, start + feature.size)
        start += feature.size
    raise AssertionError(name)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


# The transformer.


def torch_twin(encoder, dropout=0.0):
    """Torch's own transformer with the weights of one of ours."""
    state, blocks = encoder.state_dict(), len(encoder.blocks)
    width, hidden = state["blocks.0.fall.weight"].shape
    heads = encoder.blocks[0].heads
    layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True)
    twin = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
    for i, layer in enumerate(twin.layers):
        ours = {
            k.removeprefix(f"blocks.{i}."): v
            for k, v in state.items()
            if k.startswith(f"blocks.{i}.")
        }
        joined = {
            f"self_attn.in_proj_{part}": torch.cat(
                (ours[f"query.{part}"], ours[f"key_value.{part}"])
            )
            for part in ("weight", "bias")
        }
        names = {"join": "self_attn.out_proj", "rise": "linear1", "fall": "linear2",
                 "norm1": "norm1", "norm2": "norm2"}  # fmt: skip
        named = {
            f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v
            for k, v in ours.items()
            if k.split(".")[0] in names
        }
        layer.load_state_dict(joined | named)
    return twin


def read_by_torch(encoder, frames, twin):
    """What the encoder is told to compute: every token of every block."""
    state = encoder.state_dict()
    if "project.weight" in state:
        frames = F.linear(frames, state["project.weight"], state["project.bias"])
    n, history, width = frames.shape
    places = torch.arange(history + 1)[:, None]
    angle = places / 10_000 ** (torch.arange(0, width, 2) / width)
    positions = torch.zeros(history + 1, width)
    positions[:, 0::2], positions[:, 1::2] = torch.sin(angle), torch.cos(angle)
    tokens = torch.cat((state["token"].expand(n, 1, width), frames), dim=1) + positions
    x = F.elu(F.linear(twin(tokens)[:, 0], state["out.0.weight"], state["out.0.bias"]))
    return F.linear(x, state["out.2.weight"], state["out.2.bias"])


def encoder_of(channels=8, *, layers=2, dropout=0.0, hidden=12):
    encoder = TemporalEncoder(
        6, channels, 5, width=8, heads=2, layers=layers, feedforward=hidden, dropout=dropout,
        rng=seeded(),
    )  # fmt: skip
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=seeded(weight.numel())))
    return encoder


@pytest.mark.parametrize("channels", [8, 3])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_transformer_and_its_gradient_are_torchs(channels, layers, monkeypatch):
    monkeypatch.setattr(attention, "_ROWS", 5)  # several parts, the last one smaller
    encoder = encoder_of(channels, layers=layers)
    twin = torch_twin(encoder)
    frames = torch.randn(4, 6, channels, generator=seeded(1))
    frames.requires_grad_()
    out = encoder(frames)
    close(out, read_by_torch(encoder, frames, twin))
    weight = torch.randn(out.shape, generator=seeded(2))
    (ours,) = torch.autograd.grad((out * weight).sum(), frames, retain_graph=True)
    (theirs,) = torch.autograd.grad((read_by_torch(encoder, frames, twin) * weight).sum(), frames)
    close(ours, theirs)
    (out * weight).sum().backward()
    (read_by_torch(encoder, frames, twin) * weight).sum().backward()
    for block, layer in zip(encoder.blocks, twin.layers, strict=True):
        pairs = [(block.rise, layer.linear1), (block.fall, layer.linear2),
                 (block.join, layer.self_attn.out_proj), (block.norm2, layer.norm2)]  # fmt: skip
        for a, b in pairs:
            close(a.weight.grad, b.weight.grad)
            close(a.bias.grad, b.bias.grad)
        rows = torch.cat((block.query.weight.grad, block.key_value.weight.grad))
        close(rows, layer.self_attn.in_proj_weight.grad)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradient_of_the_wide_layer_is_that_of_what_it_computes(dropout, monkeypatch):
    monkeypatch.setattr(attention, "_ROWS", 4)
    rng = seeded()
    shapes = (10, 3), (7, 3), (7,), (3, 7), (3,)
    values = [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes]

    def same_draws(*tensors):
        return attention._Wide.apply(*tensors, dropout, seeded(5))

    assert torch.autograd.gradcheck(same_draws, values)


def test_dropout_keeps_its_share_and_is_made_up_for():
    kept = keep(torch.Size((1000, 999)), 0.1, seeded())
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.0015)  # sd 0.0003
    assert kept.float().mean(dim=0).std() < 0.015  # 0.0095 expected: no column is special
    rng = seeded(1)
    x, rise, bias, fall, shift = (
        torch.randn(s, generator=rng) for s in ((6, 8), (64, 8), (64,), (8, 64), (8,))
    )
    plain = F.linear(torch.relu(F.linear(x, rise, bias)), fall, shift)
    draws = [attention._Wide.apply(x, rise, bias, fall, shift, 0.3, rng) for _ in range(3000)]
    mean, deviation = torch.stack(draws).mean(dim=0), torch.stack(draws).std(dim=0)
    assert deviation.min() > 1.0
    assert ((mean - plain).abs() < 5.0 * deviation / 3000**0.5).all()


def test_dropout_spreads_the_answers_as_much_as_torchs_does():
    encoder = encoder_of(dropout=0.1, hidden=64)
    twin = torch_twin(encoder, dropout=0.1).train()
    frames = torch.randn(1, 6, 8, generator=seeded(1)).expand(4000, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        ours = encoder(frames, seeded(2))
        theirs = read_by_torch(encoder, frames, twin)
    assert ours.std(dim=0).min() > 0.02
    assert ((ours.std(dim=0) / theirs.std(dim=0) - 1.0).abs() < 0.07).all()
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 0.1 * theirs.std(dim=0)).all()


# The whole.


def mlp_by_hand(state, name, x, *, last=False):
    indices = sorted({int(k.split(".")[-2]) for k in state if k.startswith(f"{name}.")})
    for i in indices:
        x = F.linear(x, state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"])
        if i != indices[-1] or last:
            x = F.elu(x)
    return x


def by_hand(policy, observation, *, recent=3):
    state = policy.state_dict()
    mean, var = state["normalizer.mean"], state["normalizer.var"]
    scaled = ((observation - mean) / (var + 1e-5).sqrt()).clamp(-10.0, 10.0)
    parts, frames = [], None
    features = {f.name: f for f in policy.inputs[0].features}

    def split(vector, name):
        f = features[name]
        return vector[:, term(policy, name)].reshape(len(vector), f.history, *f.shape)

    frames = split(scaled if policy.normalize_history else observation, "proprio")
    if "tactile" in features:
        frames = torch.cat((frames, split(observation, "tactile")), dim=-1)
    parts.append(split(scaled, "proprio")[:, -recent:].flatten(1))
    parts.append(read_by_torch(policy.history, frames, torch_twin(policy.history)))
    if "fingertips" in features:
        tips = split(scaled, "fingertips").flatten(1)
        parts.append(mlp_by_hand(state, "fingertips", tips))
    for name, net in (("pen_ends", "ends"), ("pen_points", "points")):
        if name in features:
            each = mlp_by_hand(state, f"{net}.net", split(scaled, name), last=True)
            parts.append(each.max(dim=2).values.flatten(1))
    return torch.tanh(mlp_by_hand(state, "trunk", torch.cat(parts, dim=1)))


@modes
@pytest.mark.parametrize("normalize_history", [True, False])
def test_acting_is_the_arithmetic_of_the_weights(names, normalize_history):
    policy = trained(make(names, normalize_history=normalize_history))
    observation = drawn(policy)
    with torch.no_grad():
        action = policy.act(observation)
        close(action, by_hand(policy, observation), atol=2e-5)
    assert action.shape == (N, NACTION)
    assert action.std(dim=0).min() > 0.02


def count(policy):
    return sum(p.numel() for p in policy.parameters())


def test_the_parameters_are_as_many_as_were_published():
    """But for the published value head and deviation, which no student uses."""
    unused = 128 + 1 + 16
    default = dataclasses.asdict(TemporalConfig())
    for names, published in (
        (("proprio", "fingertips"), 555_345),
        (("proprio", "fingertips", "pen_ends"), 564_669),
    ):
        policy = TemporalPolicy(given(names, PUBLISHED), 16, rng=seeded(), **default)
        assert count(policy) == published - unused
    full = TemporalPolicy(given(PUBLISHED, PUBLISHED), 16, rng=seeded(), **default)
    points = (3 * 32 + 32) + 2 * (32 * 32 + 32) + 32 * 512
    assert count(full) == 564_669 - unused + (64 * 32 + 32) + points


def test_a_fresh_student_acts_near_zero():
    policy = make(MODES[-1])
    observation = drawn(policy)
    policy.normalizer.update(observation)
    with torch.no_grad():
        action = policy.act(observation)
    assert 0.0 < action.abs().max() < 0.1


def test_weights_come_from_the_generator_alone():
    one, two, three = (make(MODES[-1], seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(one.parameters(), two.parameters(), three.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)


# What is looked at.


def test_points_and_ends_may_come_in_any_order_but_frames_may_not():
    policy = trained(make(MODES[-1]))
    observation = drawn(policy)
    policy.normalizer.update(observation)
    points, ends = term(policy, "pen_points"), term(policy, "pen_ends")

    def moved(where, change):
        other = observation.clone()
        other[:, where] = change(observation[:, where])
        with torch.no_grad():
            return (policy.act(other) - policy.act(observation)).abs().max()

    order = torch.randperm(9, generator=seeded())
    assert moved(points, lambda x: x.view(-1, 9, 3)[:, order].flatten(1)) < 1e-6
    assert moved(ends, lambda x: x.view(-1, 3, 2, 3).flip(2).flatten(1)) < 1e-6
    assert moved(ends, lambda x: x.view(-1, 3, 2, 3).flip(1).flatten(1)) > 1e-3
    assert moved(points, lambda x: x.view(-1, 9, 3).flip(2).flatten(1)) > 1e-3
    for name, history in (("proprio", 5), ("tactile", 5)):
        where = term(policy, name)
        assert moved(where, lambda x, h=history: x.view(N, h, -1).flip(1).flatten(1)) > 1e-4


def test_every_frame_counts_and_the_newest_pass_by_the_transformer():
    policy = trained(make(("proprio",)))
    observation = drawn(policy).requires_grad_()
    gradient = torch.autograd.grad(policy.act(observation).sum(), observation)[0]
    assert (gradient.abs().view(N, 5, 8).amax(dim=(0, 2)) > 0).all()
    with torch.no_grad():  # the transformer says nothing any more
        policy.history.out[-1].weight.zero_()
    observation = drawn(policy).requires_grad_()
    gradient = torch.autograd.grad(policy.act(observation).sum(), observation)[0]
    seen = gradient.abs().view(N, 5, 8).amax(dim=(0, 2)) > 0
    assert seen.tolist() == [False, False, True, True, True]


def test_statistics_are_shared_by_frames_and_by_the_points_of_a_set():
    names = ("fingertips", "pen_points", "proprio", "pen_ends")
    policy = make(names)
    rng = seeded(4)
    parts = [3.0 + 2.0 * torch.randn(n, policy.inputs[0].size, generator=rng) for n in (40, 25, 3)]
    for part in parts[:2]:
        policy.normalizer.update(part)
    keep_rows = torch.tensor([True, False, True])
    parts[2][1] = float("nan")
    policy.normalizer.update(parts[2], keep_rows)
    x = torch.cat((*parts[:2], parts[2][keep_rows]))
    assert policy.normalizer.count == 67
    for name, channels in (("fingertips", 12), ("pen_points", 3), ("proprio", 8), ("pen_ends", 3)):
        where = term(policy, name)
        values = x[:, where].reshape(-1, channels)
        got = policy.normalizer.mean[where].view(-1, channels)
        close(got, values.mean(dim=0).expand_as(got))
        got = policy.normalizer.var[where].view(-1, channels)
        close(got, values.var(dim=0, correction=0).expand_as(got))


@pytest.mark.parametrize("normalize_history", [True, False])
def test_a_sensor_that_fails_high_does_no_more_than_one_at_the_edge(normalize_history):
    policy = trained(make(MODES[-1], normalize_history=normalize_history))
    with torch.no_grad():
        far, further = (policy.act(torch.full((1, policy.inputs[0].size), x)) for x in (1e4, 1e30))
    assert torch.equal(far, further) and torch.isfinite(far).all()


# The draws of training.


def test_acting_draws_nothing_and_training_draws_from_the_generator_it_is_given():
    policy = trained(make(MODES[-1]))
    observation = drawn(policy)
    before = torch.get_rng_state()
    with torch.no_grad():
        plain = [policy.train(mode).act(observation) for mode in (True, False, True)]
        noisy = [policy(observation, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(plain[0], plain[1]) and torch.equal(plain[0], plain[2])
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], noisy[2])
    assert not torch.equal(noisy[0], plain[0])


def test_without_dropout_and_noise_training_sees_what_acting_does():
    policy = trained(make(MODES[-1], dropout=0.0, fingertip_noise=0.0))
    observation = drawn(policy)
    assert torch.equal(policy(observation, seeded()), policy.act(observation))


def test_the_noise_on_fingertips_is_uniform_and_in_normalised_units():
    policy = trained(make(("proprio", "fingertips"), dropout=0.0))
    seen = []
    policy.fingertips.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    observation = drawn(policy, 1).expand(3000, -1)
    with torch.no_grad():
        policy.act(observation), policy(observation, seeded())
    noise = seen[1] - seen[0]
    assert 0.0099 < noise.max() <= 0.010002 and -0.010002 <= noise.min() < -0.0099
    assert noise.std(dim=0).sub(0.01 / 3**0.5).abs().max() < 2e-4
    assert noise.mean(dim=0).abs().max() < 5e-4


# Folder and file.


def card(policy, **changes):
    actions = [ActionChannel(f"a{i}", "rad", 0.04, -1, 1, "delta") for i in range(policy.naction)]
    found = PolicyCard("pen", policy.inputs, tuple(actions), (), 0.05, network=policy.describe())
    return dataclasses.replace(found, **changes)


@modes
def test_a_student_survives_its_folder_and_its_export(names, tmp_path):
    policy = trained(make(names, normalize_history=names == MODES[1]))
    save_policy(policy, card(policy), tmp_path / "policy")
    back, its_card = load_policy(tmp_path / "policy")
    assert isinstance(back, TemporalPolicy) and not back.training
    assert its_card == card(policy) and back.describe() == policy.describe()
    observation = drawn(policy)
    with torch.no_grad():
        action = policy.act(observation)
        assert torch.equal(back.act(observation), action)
    export(back, its_card, tmp_path / "policy.onnx", samples=100)  # asserts parity itself
    served = Bundle.load(tmp_path / "policy.onnx")({"student": observation.numpy()})
    close(torch.as_tensor(served), action)


def test_the_published_widths_export_within_a_hundred_thousandth(tmp_path):
    default = dataclasses.asdict(TemporalConfig())
    policy = TemporalPolicy(given(PUBLISHED, PUBLISHED), 16, rng=seeded(), **default)
    policy = trained(policy)
    report = export(policy, card(policy), tmp_path / "policy.onnx", samples=100)
    assert report.max_abs_diff <= 1e-5


def test_a_card_that_does_not_fit_the_weights_is_refused(tmp_path):
    policy = make(MODES[1])
    wrong = card(policy, network={**policy.describe(), "latent": 6})
    save_policy(policy, wrong, tmp_path / "policy")
    with pytest.raises(ValueError, match="does not fit its weights"):
        load_policy(tmp_path / "policy")


# What is refused.

IMAGE = Input("front_rgb", (Feature("front_rgb", (32, 32, 3), "1", "uint8"),))


def changed(term, **changes):
    return dataclasses.replace(SMALL[term], **changes)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((*given(["proprio"]), IMAGE), "reads one vector, got student, front_rgb; leave images"),
        ((IMAGE,), "reads one vector, got front_rgb"),
        (
            given(["fingertips", "pen_points"]),
            "needs the term 'proprio', found fingertips, pen_points",
        ),
        (
            (Input("student", (SMALL["proprio"], changed("pen_points", name="point"))),),
            "unknown term 'point', known proprio, .*; did you mean pen_points",
        ),
        (
            (Input("student", (SMALL["proprio"], changed("pen_points", name="xyz"))),),
            "unknown term 'xyz', .*; rename it, or leave it out",
        ),
        (
            (Input("student", (changed("proprio", history=2),)),),
            "'proprio' has a history of 2, recent=3 are needed",
        ),
        (
            (Input("student", (SMALL["proprio"], changed("tactile", history=1))),),
            "'tactile' has a history of 1, it must be that of 'proprio', 5",
        ),
        (
            (Input("student", (SMALL["proprio"], changed("pen_ends", shape=(6,)))),),
            r"'pen_ends' has shape \(6,\), not 2 axes",
        ),
    ],
)
def test_what_a_student_cannot_be_built_of_is_refused(inputs, message):
    settings = dataclasses.asdict(TemporalConfig())
    with pytest.raises(ValueError, match=message):
        TemporalPolicy(inputs, 2, rng=seeded(), **settings)
