"""CIFAR-10's reader, the optimiser, and pre-training from data to the published folder."""

import dataclasses
import json
import math
import os
import pathlib

import pytest
import torch
from torch import nn

from penspin_style import storage
from penspin_style.nets.encoder import NatureCNN, load_encoder, load_head, save_encoder
from penspin_style.pretrain import cifar as pretraining
from penspin_style.pretrain.cifar import (
    Muon,
    PretrainConfig,
    augment,
    digest,
    measure,
    orthogonal,
    pretrain,
    read_cifar10,
)

SHIPPED = pathlib.Path(__file__).parents[2] / "outputs" / "pretrained" / "nature_cnn_cifar10"
NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
COUNT = 60  # images per file; 10,000 in the real ones
ROW = 3073
TINY = PretrainConfig(epochs=6, batch_size=50, learning_rate=0.02, seed=1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def write(folder, seed=0, count=COUNT):
    """Six files of noise in which the class decides where a square lies and how red it is."""
    rng = seeded(seed)
    folder.mkdir(parents=True)
    for name in NAMES:
        rows = torch.randint(0, 100, (count, ROW), generator=rng)
        label = torch.randint(0, 10, (count,), generator=rng)
        image = rows[:, 1:].view(count, 3, 32, 32)
        for i, k in enumerate(label.tolist()):
            image[i, 0, 6 * (k % 5) : 6 * (k % 5) + 6, 13:19] = 255 if k < 5 else 0
            image[i, 2, 6 * (k % 5) : 6 * (k % 5) + 6, 13:19] = 0 if k < 5 else 255
        rows[:, 0] = label
        (folder / name).write_bytes(bytes(rows.flatten().tolist()))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "cifar-10-batches-bin")


@pytest.fixture
def own(tmp_path):
    return write(tmp_path / "cifar-10-batches-bin", count=2)


def train(folder, out, cfg=TINY, **rest):
    return pretrain(folder, out, cfg, images_per_file=COUNT, **rest)


def rewrite(path, at, value):
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data)


# Data.


def test_an_image_is_a_label_and_three_planes_row_by_row(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for k, name in enumerate(NAMES):
        rows = []
        for i in range(2):
            planes = [bytes((c * 80 + row + k + i) % 256 for row in range(32)) for c in range(3)]
            red, green, blue = (bytes(b for b in plane for _ in range(32)) for plane in planes)
            rows.append(bytes([k + i]) + red + green + blue)
        (folder / name).write_bytes(b"".join(rows))
    rewrite(folder / NAMES[0], 1 + 5, 201)  # red, row 0, column 5
    rewrite(folder / NAMES[0], 1 + 1024 + 32, 202)  # green, row 1, column 0
    train_x, train_y, test_x, test_y = read_cifar10(folder, images_per_file=2)
    assert train_x.shape == (10, 3, 32, 32) and test_x.shape == (2, 3, 32, 32)
    assert train_x.dtype == test_x.dtype == torch.uint8
    assert train_y.dtype == test_y.dtype == torch.int64
    assert train_y.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert test_y.tolist() == [5, 6]
    assert train_x[0, 0, 0, 5] == 201
    assert train_x[0, 1, 1, 0] == 202
    assert test_x[1, 2, 7].tolist() == [2 * 80 + 7 + 5 + 1] * 32
    train_x[0, 0, 0, 5] = 0
    train_x[0, 1, 1, 0] = 81
    assert train_x[0, :, :, 9].tolist() == [[c * 80 + row for row in range(32)] for c in range(3)]


def test_the_folder_or_its_parent_will_do(own):
    inside, above = (read_cifar10(f, images_per_file=2) for f in (own, str(own.parent)))
    assert all(torch.equal(a, b) for a, b in zip(inside, above, strict=True))


def test_the_real_files_hold_ten_thousand_images_each(own):
    with pytest.raises(ValueError, match="10000 images of 3073 bytes are 30730000"):
        read_cifar10(own)


def test_missing_files_are_named_with_the_remedy(own):
    for name in (NAMES[2], NAMES[5]):
        (own / name).unlink()
    with pytest.raises(ValueError) as caught:
        read_cifar10(own, images_per_file=2)
    said = str(caught.value)
    assert "has no data_batch_3.bin, test_batch.bin" in said
    assert "download cifar-10-binary.tar.gz" in said


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere has no data_batch_1\.bin, .*unpack it"):
        read_cifar10(tmp_path / "nowhere")


@pytest.mark.parametrize("change", [-1, 1, -ROW, -2 * ROW, ROW])
@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_a_file_of_another_length_is_refused(own, name, change):
    data = (own / name).read_bytes()
    (own / name).write_bytes(data[:change] if change < 0 else data + bytes(change))
    complaint = rf"{name} has {2 * ROW + change} bytes; 2 images .* are {2 * ROW}; .*download"
    with pytest.raises(ValueError, match=complaint):
        read_cifar10(own, images_per_file=2)


def test_a_label_above_nine_is_refused_with_its_place(own):
    rewrite(own / "data_batch_2.bin", ROW, 10)
    complaint = r"data_batch_2\.bin: image 1 has label 10, labels are 0 \.\. 9; .*CIFAR-100"
    with pytest.raises(ValueError, match=complaint):
        read_cifar10(own, images_per_file=2)


def test_the_digest_knows_every_byte(own):
    before = digest(read_cifar10(own, images_per_file=2))
    rewrite(own / "test_batch.bin", ROW - 1, 255)
    assert digest(read_cifar10(own, images_per_file=2)) != before


# Augmentation.


def test_windows_are_shifted_and_mirrored_copies_with_every_offset():
    shift, n = 2, 2000
    place = torch.arange(36 * 36).view(1, 1, 36, 36).expand(n, 3, 36, 36)
    got = augment(place, shift, flip=True, rng=seeded())
    assert got.shape == (n, 3, 32, 32)
    seen = set()
    for window in got:
        corner, beside = int(window[0, 0, 0]), int(window[0, 0, 1])
        flipped = beside < corner
        top, left = divmod(corner - 31 * flipped, 36)
        want = place[0, :, top : top + 32, left : left + 32]
        assert torch.equal(window, want.flip(2) if flipped else want)
        seen.add((top, left, flipped))
    assert len(seen) == 5 * 5 * 2


def test_without_shift_and_mirror_images_stay_as_they_are():
    image = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    got = augment(image, 0, flip=False, rng=seeded())
    assert got.dtype == torch.uint8 and torch.equal(got, image)


# Optimiser.


def test_an_orthogonal_step_has_even_singular_values_and_the_same_directions():
    weight = (
        torch.randn(32, 3, 8, 8, generator=seeded())
        * torch.logspace(-1, 1, 32)[:, None, None, None]
    )
    got = orthogonal(weight)
    assert got.shape == weight.shape
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    turned = u.T @ got.flatten(1) @ v.T
    assert s.max() / s.min() > 50
    values = turned.diagonal()
    assert values.min() > 0.5 and values.max() < 1.3
    assert (turned - values.diag()).abs().max() < 1e-3


def test_a_gradient_of_zero_moves_nothing():
    assert not orthogonal(torch.zeros(4, 3, 2, 2)).any()


def test_steps_are_the_papers():
    weight = nn.Parameter(torch.randn(4, 2, 3, 3, generator=seeded()))
    want, momentum = weight.detach().clone(), torch.zeros_like(weight)
    muon = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    for i in range(3):
        weight.grad = torch.randn(4, 2, 3, 3, generator=seeded(i))
        muon.step()
        momentum = 0.9 * momentum + weight.grad
        want = want * (1 - 0.1 * 0.5) - 0.1 * 2.0 * orthogonal(weight.grad + 0.9 * momentum)
    torch.testing.assert_close(weight.detach(), want)


def test_the_rates_rise_then_fall_to_zero(folder):
    cfg = PretrainConfig(warmup=0.2, learning_rate=0.5, head_learning_rate=2.0)
    training = pretraining._Training(read_cifar10(folder, images_per_file=COUNT), cfg)
    for done, factor in [(0, 0), (0.1, 0.5), (0.2, 1), (0.6, 0.5), (1, 0)]:
        training._set_rates(done)
        assert training.muon.param_groups[0]["lr"] == pytest.approx(0.5 * factor)
        assert training.adam.param_groups[0]["lr"] == pytest.approx(2.0 * factor)


def test_at_the_start_every_layer_has_outputs_of_unit_variance(folder):
    data = read_cifar10(folder, images_per_file=COUNT)
    encoder = pretraining._Training(data, TINY).encoder
    x = (data[0].float() / 255 - encoder.mean) / encoder.std
    for conv in encoder.convs:
        x = conv(x)
        assert x.std().item() == pytest.approx(1.0, rel=1e-4)
        x = x.relu()


# Configuration.


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"batch_size": -1}, "batch_size must be >= 1, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and > 0, got 0.0"),
        ({"head_learning_rate": math.nan}, "head_learning_rate must be finite and > 0, got nan"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\), got -0.1"),
        ({"weight_decay": math.inf}, "weight_decay must be finite and >= 0, got inf"),
        ({"shift": 32}, r"shift must be in 0 \.\. 31, got 32"),
        ({"seed": -1}, r"seed must be in 0 \.\. 2\*\*63 - 1, got -1"),
    ],
)
def test_an_illegal_value_is_named_with_what_is_legal(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        PretrainConfig(**changes)


# Training.


def test_it_learns_and_publishes_what_it_says(folder, tmp_path):
    rows = []
    card = train(folder, tmp_path / "new" / "encoder", on_epoch=rows.append)
    out = tmp_path / "new" / "encoder"
    state, read = load_encoder(out)
    assert read == card
    assert [path.name for path in out.parent.iterdir()] == ["encoder"]
    assert card["test_accuracy"] > 0.8  # chance is 0.1
    assert card["train_accuracy"] > 0.8
    assert card["recipe"] == dataclasses.asdict(TINY) and card["seed"] == TINY.seed
    assert card["parameters"] == sum(w.numel() for w in state.values()) == 75_776
    assert (card["train_images"], card["test_images"]) == (5 * COUNT, COUNT)
    data = read_cifar10(folder, images_per_file=COUNT)
    assert card["data_sha256"] == digest(data)
    assert measure(out, *data[2:]) == card["test_accuracy"]
    assert measure(out, *data[:2]) == card["train_accuracy"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row["epochs"] for row in rows} == {6}
    assert rows[-1]["test/accuracy"] == card["test_accuracy"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["seconds"] == pytest.approx(card["seconds"], abs=0.06)
    assert 0.0 < rows[0]["seconds"] < rows[-1]["seconds"]
    assert all(isinstance(value, float | int) for row in rows for value in row.values())


def weights(out):
    return {**load_encoder(out)[0], **load_head(out).state_dict()}


def same(a, b):
    return all(torch.equal(weight, b[name]) for name, weight in a.items())


class Killed(Exception):  # noqa: N818 - it is no error
    pass


def kill_after(epoch):
    def on_epoch(row):
        if row["epoch"] == epoch:
            raise Killed

    return on_epoch


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "encoder"
    train(folder, out)
    return weights(out)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(folder, finished, tmp_path):
    torch.manual_seed(99)
    train(folder, tmp_path / "again")
    assert same(finished, weights(tmp_path / "again"))
    train(folder, tmp_path / "other", dataclasses.replace(TINY, seed=2))
    assert not same(finished, weights(tmp_path / "other"))


def test_a_killed_training_continues_bit_for_bit(folder, finished, tmp_path):
    out, said, rows = tmp_path / "encoder", [], []
    for epoch in (2, 3):
        with pytest.raises(Killed):
            train(folder, out, on_epoch=kill_after(epoch), say=said.append)
        assert not out.exists()
    train(folder, out, on_epoch=rows.append, say=said.append)
    assert [row["epoch"] for row in rows] == [4, 5, 6]
    assert [line.split(" (")[0] for line in said] == [
        "resuming after epoch 2",
        "resuming after epoch 3",
    ]
    assert same(finished, weights(out))
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_a_training_killed_before_it_published_only_publishes(folder, finished, tmp_path):
    out, rows = tmp_path / "encoder", []
    with pytest.raises(Killed):
        train(folder, out, on_epoch=kill_after(TINY.epochs))
    train(folder, out, on_epoch=rows.append, say=lambda _: None)
    assert rows == []
    assert same(finished, weights(out))


def test_a_damaged_checkpoint_is_passed_over_and_said(folder, finished, tmp_path):
    out, said = tmp_path / "encoder", []
    with pytest.raises(Killed):
        train(folder, out, on_epoch=kill_after(3))
    newest = tmp_path / "encoder-training" / "00000003" / "state.safetensors"
    rewrite(newest, 5000, newest.read_bytes()[5000] ^ 1)
    train(folder, out, say=said.append)
    assert "checkpoint 00000003 is damaged" in said[0]
    assert "resuming after epoch 2" in said[1]
    assert same(finished, weights(out))


def test_what_people_should_read_goes_to_standard_error(folder, tmp_path, capsys):
    with pytest.raises(Killed):
        train(folder, tmp_path / "encoder", on_epoch=kill_after(5))
    train(folder, tmp_path / "encoder")
    said = capsys.readouterr()
    assert "resuming after epoch 5" in said.err
    assert said.out == ""


def test_an_unfinished_training_of_another_recipe_or_data_is_not_continued(folder, tmp_path):
    out = tmp_path / "encoder"
    with pytest.raises(Killed):
        train(folder, out, on_epoch=kill_after(1))
    other = dataclasses.replace(TINY, epochs=7, seed=2)
    complaint = "encoder-training holds an .* with epochs=6 instead of 7, seed=1 instead of 2; "
    with pytest.raises(ValueError, match=complaint):
        train(folder, out, other)
    with pytest.raises(ValueError, match=r"with data=[0-9a-f]{64} instead of [0-9a-f]{64}; "):
        train(write(tmp_path / "data", seed=1), out)


def test_a_published_encoder_is_never_written_over(folder, tmp_path):
    out = tmp_path / "encoder"
    out.mkdir()
    with pytest.raises(FileExistsError, match="encoder exists already; remove it or choose"):
        train(folder, out)
    assert list(out.iterdir()) == []


def test_a_training_that_diverges_says_so(folder, tmp_path):
    cfg = dataclasses.replace(TINY, learning_rate=1e30, warmup=0.0)
    with pytest.raises(ValueError, match=r"after epoch 1: .* diverged; .* smaller learning_rate"):
        train(folder, tmp_path / "encoder", cfg)
    assert not (tmp_path / "encoder").exists()


def test_an_encoder_without_its_head_cannot_be_measured(tmp_path):
    save_encoder(NatureCNN(pool=True, rng=seeded()), {}, tmp_path / "encoder")
    image, label = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"published without head\.safetensors"):
        measure(tmp_path / "encoder", image, label)


# The encoder that is shipped.


def test_the_shipped_encoder_is_whole_and_of_the_default_recipe():
    state, card = load_encoder(SHIPPED)
    assert card["parameters"] == sum(w.numel() for w in state.values()) == 75_776
    assert card["recipe"] == dataclasses.asdict(PretrainConfig())
    assert (card["mean"], card["std"]) == ([*pretraining.MEAN], [*pretraining.STD])
    assert card["test_images"] == 10_000
    assert card["test_accuracy"] >= 0.78
    assert load_head(SHIPPED).weight.shape == (10, 64)
    names = {path.name for path in SHIPPED.iterdir()} - {storage.MANIFEST}
    assert names == {"encoder.safetensors", "head.safetensors", "card.json"}
    assert json.loads((SHIPPED / "card.json").read_text()) == card


@pytest.mark.skipif("PENSPIN_CIFAR10" not in os.environ, reason="PENSPIN_CIFAR10 names no CIFAR-10")
def test_the_shipped_card_says_what_the_weights_measure():
    data = read_cifar10(os.environ["PENSPIN_CIFAR10"])
    _, card = load_encoder(SHIPPED)
    assert card["data_sha256"] == digest(data)
    # another processor may round one image's scores over the edge, hardly five
    assert measure(SHIPPED, *data[2:]) == pytest.approx(card["test_accuracy"], abs=5e-4)
