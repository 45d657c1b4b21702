"""Export of a policy: the file acts as torch does, says what the card says, or is not there."""

import dataclasses
import hashlib
import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from penspin_style.deploy import export as export_module
from penspin_style.deploy.bundle import CARD_KEY, Bundle, BundleError
from penspin_style.deploy.export import ParityError, export
from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import save_policy

THIRD = 1.0 / 3.0
# floats that no short decimal holds
CARD = PolicyCard(
    task="spin",
    inputs=(
        Input(
            "student",
            (
                Feature("joint_pos", (4,), "rad", history=3),
                Feature("pen_pos", (3,), "m"),
                Feature("grip", (), "N"),
            ),
        ),
    ),
    actions=(
        ActionChannel("finger", "rad", 0.1 + 0.2, -THIRD, np.pi / 7, "delta"),
        ActionChannel("thumb", "rad", 1e-7 * THIRD, -2.0 * THIRD, 1.1, "absolute"),
    ),
    joints=(
        Joint("thumb_1", "rad", -0.1 - 0.2, np.sqrt(2.0), 7.0 * THIRD, 1e-3 * THIRD, np.e / 10),
        Joint("index_0", "rad", -np.pi, np.pi, 300.0, 2.5, -0.2245),
    ),
    control_dt=1.0 / 30.0,
    run="runs/spin-7",
    network={"hidden": [32, 32]},
    score={"success": 0.1 + 0.7},
)
SIZE = CARD.inputs[0].size


def make_policy(seed=0, in_key="student"):
    """A policy as training leaves it: weights off their start, statistics of real units."""
    rng = torch.Generator().manual_seed(seed)
    policy = GaussianPolicy(
        in_key, SIZE, 2, hidden=(32, 32), activation="elu", init_std=1.0, rng=rng
    )
    with torch.no_grad():
        policy.net[-1].weight.mul_(60.0)
        policy.net[-1].bias.normal_(generator=rng)
        policy.normalizer.mean.normal_(0.0, 5.0, generator=rng)
        policy.normalizer.var.uniform_(1e-4, 9.0, generator=rng)
    return policy


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "policy.onnx"
    policy = make_policy()
    return policy, path, export(policy, CARD, path)


def test_torch_and_onnxruntime_agree_on_ten_thousand_observations(exported):
    _, path, report = exported
    assert report.samples == 10_000
    assert 0.0 < report.max_abs_diff <= 1e-5
    data = path.read_bytes()
    assert (report.bytes, report.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert report.as_dict()["samples"] == 10_000


def test_the_file_acts_as_torch_does_on_observations_that_export_did_not_draw(exported):
    policy, path, _ = exported
    session = onnxruntime.InferenceSession(path.read_bytes())
    rng = np.random.default_rng(12345)
    spread = np.concatenate([np.zeros(1), rng.uniform(0.1, 50.0, 400)])
    x = (policy.normalizer.mean.numpy() + spread[:, None] * rng.normal(size=(401, SIZE))).astype(
        "f4"
    )
    with torch.no_grad():
        want = policy.act(torch.from_numpy(x)).numpy()
    assert want.std(axis=0).min() > 0.3  # a policy that answers with a constant would prove nothing
    for batch in (1, 2, 7, 64, 401):
        got = session.run(["action"], {"student": x[:batch]})[0]
        np.testing.assert_allclose(got, want[:batch], rtol=0, atol=1e-5)


def test_the_draws_cover_every_batch_size_and_add_up():
    sizes = list(export_module._batches(10_000))
    assert sum(sizes) == 10_000
    assert {b: sizes.count(b) for b in (1, 2, 7, 64)} == {1: 136, 2: 136, 7: 136, 64: 135}


def test_the_draws_lie_around_the_normalisers_statistics_and_reach_its_clip():
    policy = make_policy()
    acting = export_module.ActingModule(policy)
    x = export_module._observation(acting, CARD, 20_000, np.random.default_rng(0))["student"]
    z = (x - policy.normalizer.mean.numpy()) / np.sqrt(policy.normalizer.var.numpy() + 1e-5)
    assert (x != 0.0).all()
    # a tenth is put on the clip; of the rest a sixth each is drawn at 0.3 std and at 1 std
    assert (np.isclose(np.abs(z), 10.0, rtol=1e-3)).mean() == pytest.approx(0.1, abs=0.01)
    assert (np.abs(z) < 1.0).mean() == pytest.approx(0.9 / 6 * (1 + 0.683 + 0.26 + 0.08), abs=0.01)
    assert np.abs(z).max() > 1e6


def test_a_graph_that_is_off_by_a_thousandth_is_refused_and_leaves_no_file(tmp_path, monkeypatch):
    right = export_module._graph

    def wrong(acting, card):
        model = right(acting, card)
        bias = next(w for w in model.graph.initializer if w.dims == [2])
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1e-3, bias.name))
        return model

    monkeypatch.setattr(export_module, "_graph", wrong)
    with pytest.raises(ParityError, match=r"differ by 1\.0e-03, more than 1\.0e-05"):
        export(make_policy(), CARD, tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_sessions_that_differ_in_one_bit_are_refused(tmp_path, monkeypatch):
    count = itertools.count()

    class Restless(Bundle):
        def __init__(self, *args):
            super().__init__(*args)
            self.lift = next(count) * np.float32(6e-8)

        def __call__(self, observation):
            return super().__call__(observation) * (np.float32(1.0) - self.lift)

    monkeypatch.setattr(export_module, "Bundle", Restless)
    with pytest.raises(ParityError, match="two sessions of one model differ"):
        export(make_policy(), CARD, tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_policy_steeper_than_float32_is_refused_with_the_remedy(tmp_path):
    policy = make_policy()
    with torch.no_grad():
        policy.net[-1].weight.mul_(300.0)
    path = tmp_path / "policy.onnx"
    with pytest.raises(ParityError, match=r"torch alone differs by .* a larger tolerance is right"):
        export(policy, CARD, path, samples=500)
    report = export(policy, CARD, path, samples=500, tolerance=0.1)
    assert 1e-5 < report.max_abs_diff < 0.1


def test_a_failed_export_keeps_the_file_that_was_there(exported, tmp_path):
    path = tmp_path / "policy.onnx"
    path.write_bytes(exported[1].read_bytes())
    broken = make_policy()
    with torch.no_grad():
        broken.net[0].weight[3, 3] = torch.nan
    with pytest.raises(BundleError, match="weights that are NaN"):
        export(broken, CARD, path)
    assert path.read_bytes() == exported[1].read_bytes()
    assert [f.name for f in tmp_path.iterdir()] == ["policy.onnx"]


def test_few_samples_still_cover_every_batch_size(tmp_path):
    report = export(make_policy(), CARD, tmp_path / "deep" / "policy.onnx", samples=3)
    assert report.samples == 1 + 2 + 7 + 64


def test_the_same_policy_gives_the_same_bytes_and_no_path_of_this_computer(exported, tmp_path):
    _, path, report = exported
    again = export(make_policy(), CARD, tmp_path / "again.onnx", samples=74, seed=5)
    assert again.sha256 == report.sha256
    assert b".py" not in path.read_bytes()


def test_the_policy_that_is_exported_stays_as_it_was(tmp_path):
    policy = make_policy().train()
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    export(policy, CARD, tmp_path / "policy.onnx", samples=74)
    assert policy.training
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


def test_the_card_travels_exactly_and_names_the_weights(exported, tmp_path):
    policy, path, report = exported
    save_policy(policy, CARD, tmp_path / "folder")
    weights = hashlib.sha256((tmp_path / "folder" / "policy.safetensors").read_bytes()).hexdigest()
    card = Bundle.load(path).card
    # dataclass equality compares floats bit for bit here: none is NaN or a zero
    assert card == dataclasses.replace(CARD, weights_sha256=weights)
    assert report.weights_sha256 == weights
    assert card.joints[0].high.hex() == float(np.sqrt(2.0)).hex()


def test_joint_order_scale_limits_and_units_survive_to_the_last_bit(exported):
    card = Bundle.load(exported[1]).card
    assert [j.name for j in card.joints] == ["thumb_1", "index_0"]
    assert [(j.unit, a.unit) for j, a in zip(card.joints, card.actions, strict=True)] == [
        ("rad", "rad")
    ] * 2
    for dtype in (np.float32, np.float64):
        got = np.array([(a.scale, a.low, a.high) for a in card.actions], dtype)
        want = np.array(
            [(0.1 + 0.2, -THIRD, np.pi / 7), (1e-7 * (1.0 / 3.0), -2.0 / 3.0, 1.1)], dtype
        )
        assert got.tobytes() == want.tobytes()
        limits = np.array([(j.low, j.high, j.default) for j in card.joints], dtype)
        want = [(-0.30000000000000004, 2.0**0.5, np.e / 10), (-np.pi, np.pi, -0.2245)]
        assert limits.tobytes() == np.array(want, dtype).tobytes()
    assert card.control_dt.hex() == (1.0 / 30.0).hex()


def test_a_loader_written_for_mjlab_finds_its_keys(exported):
    model = onnx.load(exported[1])
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata.pop(CARD_KEY) == Bundle.load(exported[1]).card.to_json()
    assert metadata == {
        "run_path": "runs/spin-7",
        "joint_names": "thumb_1,index_0",
        "joint_stiffness": "2.333,300.000",
        "joint_damping": "0.000,2.500",
        "default_joint_pos": "0.272,-0.225",
        "command_names": "",
        "observation_names": "joint_pos,pen_pos,grip",
        "observation_terms_scale": "1.000,1.000,1.000",
        "observation_terms_flatten_history_dim": "1.000,1.000,1.000",
        "observation_terms_history_length": "3.000,0.000,0.000",
        "observation_terms_clip": "-inf;inf,-inf;inf,-inf;inf",
        "action_scale": "0.300,0.000",
    }


class SeesAndFeels(nn.Module):
    """Two inputs, one of them an image of bytes."""

    def __init__(self):
        super().__init__()
        self.eye = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Linear(4 + 5, 2)

    def forward(self, state, rgb):
        pixels = rgb.permute(0, 3, 1, 2).float() / 255.0
        seen = torch.relu(self.eye(pixels)).mean(dim=(2, 3))
        return torch.tanh(self.head(torch.cat([state, seen], dim=1)))


def test_a_policy_with_a_vector_and_an_image_is_exported_with_both_inputs(tmp_path):
    torch.manual_seed(0)
    policy = SeesAndFeels()
    inputs = (
        Input("state", (Feature("joint_pos", (4,), "rad"), Feature("grip", (), "N"))),
        Input("rgb", (Feature("wrist", (16, 12, 3), dtype="uint8"),)),
    )
    path = tmp_path / "policy.onnx"
    report = export(policy, dataclasses.replace(CARD, inputs=inputs), path, samples=300)
    assert report.max_abs_diff <= 1e-5
    nodes = onnxruntime.InferenceSession(path.read_bytes()).get_inputs()
    assert [(n.name, n.type, n.shape) for n in nodes] == [
        ("state", "tensor(float)", ["batch", 5]),
        ("rgb", "tensor(uint8)", ["batch", 16, 12, 3]),
    ]
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (16, 12, 3), dtype=np.uint8)
    pos, grip = rng.normal(size=4), np.float64(0.7)
    got = Bundle.load(path)({"joint_pos": pos, "grip": grip, "wrist": rgb})
    with torch.no_grad():
        state = torch.tensor([[*pos, grip]], dtype=torch.float32)
        want = policy(state, torch.from_numpy(rgb)[None])[0].numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


class Branches(nn.Module):
    def forward(self, student):
        return torch.tanh(student[:, :2] if student.sum() > 0 else -student[:, :2])


def test_a_branch_on_the_observation_is_refused_rather_than_frozen(tmp_path):
    with pytest.raises(ValueError, match="torch cannot export Branches"):
        export(Branches(), CARD, tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


class Unsquashed(nn.Module):
    def forward(self, student):
        return student[:, :2]


@pytest.mark.parametrize(
    ("policy", "change", "message"),
    [
        (
            make_policy(in_key="teacher"),
            {},
            r"reads \['teacher'\], its card has inputs \['student'\]",
        ),
        (
            make_policy(),
            {"actions": CARD.actions[:1]},
            r"action is \(2, 2\), its card has 1 action",
        ),
        (make_policy(), {"weights_sha256": "0" * 64}, "the card is of weights 000"),
        (make_policy(), {"control_dt": 0.0}, "control_dt must be positive, is 0.0"),
        (make_policy(), {"joints": (CARD.joints[0],) * 2}, "joint 'thumb_1' is there twice"),
        (
            make_policy(),
            {"joints": (dataclasses.replace(CARD.joints[0], name="a,b"),)},
            "'a,b': mjlab's metadata",
        ),
        (Unsquashed(), {}, r"which is not in \[-1, 1\]"),
    ],
)
def test_a_card_that_does_not_fit_the_policy_is_refused(tmp_path, policy, change, message):
    with pytest.raises(ValueError, match=message):
        export(policy, dataclasses.replace(CARD, **change), tmp_path / "policy.onnx", samples=74)
    assert list(tmp_path.iterdir()) == []


def test_export_says_nothing_on_the_console(tmp_path, capfd):
    export(make_policy(), CARD, tmp_path / "policy.onnx", samples=74)
    assert capfd.readouterr() == ("", "")
