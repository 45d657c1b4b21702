"""The image encoder against a convolution written out by hand, and its folder."""

import io
import json
import logging
import math
import warnings

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save
from torch.nn import functional as F

from penspin_style import storage
from penspin_style.nets.encoder import (
    MEAN,
    STD,
    NatureCNN,
    freeze,
    load_encoder,
    load_head,
    same_padding,
    save_encoder,
)
from tests.support.damage import DAMAGES, check_refused, flip

SIZES = [(32, 32), (64, 64), (128, 128), (33, 47), (30, 31), (84, 84), (1, 1), (5, 100)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, height, width, seed=0):
    return torch.rand(n, 3, height, width, generator=seeded(seed))


def make(height=32, width=32, *, pool=True, seed=0):
    return NatureCNN(height, width, pool=pool, rng=seeded(seed))


def reference(encoder, image):
    """The last map, from windows of a padded image and one matrix product a layer."""
    x = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    for conv, kernel, stride in zip(encoder.convs, (8, 4, 3), (4, 2, 1), strict=True):
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        windows = F.pad(x, pads).unfold(2, kernel, stride).unfold(3, kernel, stride)
        x = torch.einsum("nchwij,ocij->nohw", windows, conv.weight).clamp(min=0.0)
    return x


# Network.


def test_it_has_the_published_number_of_parameters_and_no_bias():
    for pool in (True, False):
        encoder = make(64, 48, pool=pool)
        shapes = {name: tuple(p.shape) for name, p in encoder.state_dict().items()}
        assert shapes == {
            "convs.0.weight": (32, 3, 8, 8),
            "convs.1.weight": (64, 32, 4, 4),
            "convs.2.weight": (64, 64, 3, 3),
        }
        assert sum(p.numel() for p in encoder.parameters()) == 75_776
        assert all(conv.bias is None for conv in encoder.convs)


@pytest.mark.parametrize(
    ("height", "width", "flat"),
    [
        (32, 32, 1024),
        (64, 64, 4096),
        (128, 128, 16384),
        (64, 32, 2048),
        (33, 47, 64 * 5 * 6),
        (1, 1, 64),
    ],
)
def test_the_output_has_64_numbers_pooled_and_64_per_cell_flat(height, width, flat):
    for pool, size in ((True, 64), (False, flat)):
        encoder = make(height, width, pool=pool)
        assert encoder.out_features == size
        assert encoder(images(3, height, width)).shape == (3, size)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_convolutions_are_padded_as_tensorflow_and_jax_pad(height, width):
    encoder = make(height, width, pool=False)
    image = images(2, height, width)
    want = reference(encoder, image)
    assert want.shape[2:] == (math.ceil(height / 8), math.ceil(width / 8))
    torch.testing.assert_close(encoder(image), want.flatten(1), atol=1e-5, rtol=1e-5)


def test_padding_at_32_pixels_is_2_1_1_and_an_odd_zero_goes_after():
    assert [same_padding(*s) for s in ((32, 8, 4), (8, 4, 2), (4, 3, 1))] == [
        (2, 2),
        (1, 1),
        (1, 1),
    ]
    assert same_padding(33, 8, 4) == (3, 4)  # 9 windows span 40 pixels
    assert same_padding(31, 4, 2) == (1, 2)  # 16 windows span 34
    assert same_padding(16, 2, 4) == (0, 0)  # windows with gaps need none


def test_the_padding_is_the_mean_colour():
    encoder = make()
    blank = torch.tensor(MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert not encoder(blank).any()
    white, grey = encoder(torch.ones(1, 3, 32, 32)), encoder(0.5 * (1.0 + blank))
    torch.testing.assert_close(grey, 0.5 * white)  # without biases, scale goes straight through


def test_the_pooled_features_are_the_mean_of_the_flat_ones():
    pooled, flat = make(40, 56), make(40, 56, pool=False, seed=1)
    flat.load_state_dict(pooled.state_dict())
    image = images(4, 40, 56)
    want = flat(image).view(4, 64, 5 * 7).mean(dim=2)
    torch.testing.assert_close(pooled(image), want)


def test_weights_fit_either_variant_at_any_size():
    state = make(32, 32).state_dict()
    for height, width, pool in ((128, 96, True), (33, 47, False)):
        other = make(height, width, pool=pool, seed=1)
        other.load_state_dict(state)
        for name, weight in other.state_dict().items():
            assert torch.equal(weight, state[name])


def test_weights_come_from_the_generator_alone_and_are_orthogonal():
    torch.manual_seed(0)
    a = make(seed=3)
    torch.manual_seed(1)
    b, c = make(seed=3), make(seed=4)
    for name, weight in a.state_dict().items():
        assert torch.equal(weight, b.state_dict()[name])
        assert not torch.equal(weight, c.state_dict()[name])
        rows = weight.flatten(1)
        torch.testing.assert_close(rows @ rows.T, 2.0 * torch.eye(len(rows)), atol=1e-5, rtol=0)


def test_a_frozen_encoder_keeps_its_weights_and_passes_gradients_on():
    encoder = make().train()
    assert freeze(encoder) is encoder
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    image = images(2, 32, 32).requires_grad_()
    encoder(image).sum().backward()
    assert image.grad is not None and image.grad.any()
    assert all(p.grad is None for p in encoder.parameters())


def test_the_description_builds_it_again():
    encoder = make(64, 48, pool=False)
    said = encoder.describe()
    assert json.loads(json.dumps(said)) == said
    assert said == {"kind": "nature_cnn", "height": 64, "width": 48, "pool": False}
    said.pop("kind")
    assert NatureCNN(**said, rng=seeded()).out_features == encoder.out_features


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"got torch.uint8; divide uint8 by 255"),
        (torch.zeros(1, 32, 32, 3), r"must be \(n, 3, 32, 32\), got \(1, 32, 32, 3\)"),
        (torch.zeros(3, 32, 32), r"must be \(n, 3, 32, 32\), got \(3, 32, 32\)"),
        (torch.zeros(1, 3, 64, 64), r"must be \(n, 3, 32, 32\), got \(1, 3, 64, 64\)"),
    ],
)
def test_images_of_another_kind_are_refused(image, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()(image)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="at least 1 pixel, got 32 x 0"):
        make(32, 0)


@pytest.mark.parametrize(
    ("height", "width", "pool"), [(32, 32, True), (64, 64, False), (33, 47, False)]
)
def test_onnxruntime_computes_the_same(height, width, pool):
    encoder = make(height, width, pool=pool).eval()
    file = io.BytesIO()
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it lists operators of packages that are not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about torch
        torch.onnx.export(
            encoder,
            (images(2, height, width),),
            file,
            input_names=["image"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    log.setLevel(level)
    session = onnxruntime.InferenceSession(file.getvalue())
    for n in (1, 5):
        image = images(n, height, width, seed=n)
        (got,) = session.run(None, {"image": image.numpy()})
        want = encoder(image).detach()
        torch.testing.assert_close(torch.from_numpy(got), want, atol=1e-5, rtol=1e-5)


# Folder.

CARD = {"accuracy": {"test": 0.5}, "seed": 3}


@pytest.fixture
def saved(tmp_path):
    encoder = make(seed=5)
    folder = tmp_path / "encoder"
    save_encoder(encoder, CARD, folder)
    return encoder, folder


def publish(folder, **files):
    with storage.publish(folder, {}) as stage:
        for name, content in files.items():
            (stage / name.replace("_", ".")).write_bytes(content)
    return folder


def test_an_encoder_survives_its_folder_bit_for_bit(saved):
    encoder, folder = saved
    state, card = load_encoder(folder)
    assert card == CARD
    assert state.keys() == encoder.state_dict().keys()
    assert all(torch.equal(state[name], w) for name, w in encoder.state_dict().items())
    back = make(seed=6)
    back.load_state_dict(state)
    assert torch.equal(back(images(2, 32, 32)), encoder(images(2, 32, 32)))


def test_the_folder_holds_plain_safetensors_and_json(saved):
    encoder, folder = saved
    names = {path.name for path in folder.iterdir()}
    assert names == {"encoder.safetensors", "card.json", "manifest.json"}
    assert load_file(folder / "encoder.safetensors").keys() == encoder.state_dict().keys()


def test_a_folder_is_never_written_over(saved):
    with pytest.raises(FileExistsError, match="exists already"):
        save_encoder(make(), CARD, saved[1])


def test_a_card_that_is_no_json_leaves_no_folder(tmp_path):
    with pytest.raises(TypeError):
        save_encoder(make(), {"x": object()}, tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["encoder.safetensors", "card.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(saved, name, damage):
    check_refused(load_encoder, saved[1], name, damage)


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        load_encoder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: s.pop("convs.2.weight"), "those of a NatureCNN are"),
        (lambda s: s.update({"convs.0.bias": torch.zeros(32)}), r"convs\.0\.bias"),
        (lambda s: s.update({"convs.0.weight": torch.zeros(32, 3, 7, 7)}), r"\(32, 3, 7, 7\)"),
        (lambda s: s["convs.1.weight"].fill_(math.nan), r"convs\.1\.weight is not finite"),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path, change, complaint):
    state = dict(make().state_dict())
    change(state)
    other = publish(tmp_path / "other", encoder_safetensors=save(state), card_json=b"{}")
    with pytest.raises(ValueError, match=complaint):
        load_encoder(other)


@pytest.mark.parametrize(
    "files",
    [
        {"readme_txt": b"no weights here"},
        {"encoder_safetensors": b"no weights here", "card_json": b"{}"},
        {"encoder_safetensors": save({}), "card_json": b"no card"},
    ],
)
def test_a_published_folder_of_something_else_is_refused(tmp_path, files):
    with pytest.raises(ValueError, match="other holds no encoder"):
        load_encoder(publish(tmp_path / "other", **files))


def test_the_layer_it_was_trained_with_is_kept_beside_it(tmp_path):
    head = torch.nn.Linear(64, 10)
    save_encoder(make(), CARD, tmp_path / "encoder", head=head)
    back = load_head(tmp_path / "encoder")
    assert torch.equal(back.weight, head.weight) and torch.equal(back.bias, head.bias)
    assert not back.training and not back.weight.requires_grad
    assert load_encoder(tmp_path / "encoder")[0].keys() == make().state_dict().keys()
    flip(tmp_path / "encoder" / "head.safetensors")
    for load in (load_head, load_encoder):
        with pytest.raises(ValueError, match=r"head\.safetensors does not match"):
            load(tmp_path / "encoder")


@pytest.mark.parametrize(
    "content",
    [
        b"no weights here",
        save({"weight": torch.zeros(3, 2)}),
        save({"weight": torch.zeros(3), "bias": torch.zeros(3)}),
        save({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}),
    ],
)
def test_a_head_of_something_else_is_refused(tmp_path, content):
    folder = publish(tmp_path / "encoder", head_safetensors=content)
    with pytest.raises(ValueError, match=r"head\.safetensors is no linear layer"):
        load_head(folder)


def test_a_folder_without_a_head_says_so(saved):
    with pytest.raises(ValueError, match=r"published without head\.safetensors"):
        load_head(saved[1])
