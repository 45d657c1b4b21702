"""Pre-training on recorded renders, on images from which the numbers can be read off by hand."""

import math

import pytest
import torch

from penspin_style.data.rollouts import LABEL, RolloutWriter
from penspin_style.features import Feature, Input
from penspin_style.nets.encoder import NatureCNN, load_encoder
from penspin_style.pretrain.renders import HELD_OUT, RendersConfig, pretrain_on_renders

SIDE, ROWS = 16, 6  # pixels; rows of a shard
TEACHER = Input("teacher", (Feature("brightness", (2,), "1"),))


def eye(name="eye_rgb", side=SIDE):
    return Input(name, (Feature(name, (side, side, 3), "1", "uint8"),))


BOTH = (TEACHER, eye())
TINY = RendersConfig(epochs=6, batch_size=24, learning_rate=3e-3, seed=1)


def shard(seed, inputs, rows=ROWS):
    """Images whose left and right half are as bright as the two numbers say."""
    rng = torch.Generator().manual_seed(seed)
    level = torch.rand(rows, 2, generator=rng)
    out = {"teacher": 10.0 * level - 3.0, LABEL: torch.zeros(rows, 1)}
    for given in inputs:
        dtype, shape = given.tensor
        if dtype == "uint8":
            side = shape[0]
            image = (255 * level).round()[:, None, :, None].expand(rows, side, 2, 3)
            out[given.name] = image.repeat_interleave(side // 2, dim=2).to(torch.uint8)
        elif given.name != "teacher":
            out[given.name] = torch.zeros(rows, *shape)
    return out


def record(folder, *, shards=HELD_OUT, inputs=BOTH, rows=ROWS, other=()):
    """other: shards whose images and numbers are those of another seed."""
    writer = RolloutWriter(folder, inputs, {"task": "toy"})
    for k in range(shards):
        writer.add(shard(k + 1000 * (k in other), inputs, rows))
    writer.close()
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return record(tmp_path_factory.mktemp("renders") / "rows")


def weights(folder):
    state = load_encoder(folder)[0]
    return torch.cat([state[name].flatten() for name in sorted(state)])


# What is learned.


def test_what_an_image_shows_is_learned_and_published_with_how_much_of_it(recording, tmp_path):
    seen = []
    card = pretrain_on_renders(recording, tmp_path / "encoder", TINY, seen.append)
    assert [row["epoch"] for row in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1]["loss"] < 0.05 < 0.2 < seen[0]["loss"]
    assert 0.8 < card["explained_variance"] == seen[-1]["test/explained"] <= 1.0
    assert card["cameras"] == ["eye_rgb"] and card["data"]["task"] == "toy"
    assert (card["train_rows"], card["test_rows"]) == (ROWS * (HELD_OUT - 1), ROWS)
    assert card["recipe"]["learning_rate"] == 3e-3 and card["recipe"]["privileged"] == "teacher"
    state, read = load_encoder(tmp_path / "encoder")
    assert read == card
    encoder = NatureCNN(SIDE, SIDE, pool=False, rng=torch.Generator())
    assert card["parameters"] == sum(p.numel() for p in encoder.parameters())
    encoder.load_state_dict(state)


def test_explained_is_one_minus_the_error_over_the_variance(recording, tmp_path):
    # with steps of nothing the heads stay at zero: every guess is the training mean
    frozen = RendersConfig(epochs=1, learning_rate=1e-12, seed=1)
    card = pretrain_on_renders(recording, tmp_path / "encoder", frozen)
    taught = torch.cat([shard(k, BOTH)["teacher"] for k in range(HELD_OUT - 1)])
    goal = (shard(HELD_OUT - 1, BOTH)["teacher"] - taught.mean(dim=0)) / taught.std(dim=0)
    expected = 1.0 - (goal.square().mean() / goal.var(dim=0).mean()).item()
    assert card["explained_variance"] == pytest.approx(expected, abs=0.05)


def test_held_out_shards_teach_nothing(recording, tmp_path):
    cfg = RendersConfig(epochs=1, batch_size=24, seed=2)
    last = record(tmp_path / "last", other=[HELD_OUT - 1])
    first = record(tmp_path / "first", other=[0])
    cards = {
        name: pretrain_on_renders(folder, tmp_path / f"{name}_encoder", cfg)
        for name, folder in (("base", recording), ("last", last), ("first", first))
    }
    base = weights(tmp_path / "base_encoder")
    assert torch.equal(weights(tmp_path / "last_encoder"), base)
    assert cards["last"]["explained_variance"] != cards["base"]["explained_variance"]
    assert not torch.equal(weights(tmp_path / "first_encoder"), base)


def test_the_seed_alone_decides(recording, tmp_path):
    for i, (name, seed) in enumerate((("one", 3), ("two", 3), ("other", 4))):
        torch.manual_seed(i)
        cfg = RendersConfig(epochs=1, batch_size=24, seed=seed)
        pretrain_on_renders(recording, tmp_path / name, cfg)
    assert torch.equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not torch.equal(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_all_colour_images_teach_and_depth_does_not(tmp_path):
    depth = Input("eye_depth", (Feature("eye_depth", (SIDE, SIDE), "m"),))
    inputs = (TEACHER, eye("wrist_rgb"), depth, eye("eye_rgb"))
    folder = record(tmp_path / "rows", inputs=inputs)
    card = pretrain_on_renders(folder, tmp_path / "encoder", RendersConfig(epochs=1))
    assert card["cameras"] == ["eye_rgb", "wrist_rgb"]


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shards": HELD_OUT - 1},
            r"has 19 shards, 20 or more are needed to validate; record more",
        ),
        ({"rows": 1}, r"keeps one test row, which does not vary; record more"),
        ({"inputs": (TEACHER,)}, r"must hold colour images of one size, it holds teacher"),
        ({"inputs": (TEACHER, eye(), eye("b_rgb", 8))}, r"images of one size, it holds .*b_rgb"),
    ],
)
def test_a_recording_that_cannot_teach_is_refused(tmp_path, changes, message):
    folder = record(tmp_path / "rows", **changes)
    with pytest.raises(ValueError, match=message):
        pretrain_on_renders(folder, tmp_path / "encoder", TINY)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize("privileged", ["master", "eye_rgb"])
def test_a_vector_that_was_not_recorded_is_named(recording, tmp_path, privileged):
    cfg = RendersConfig(privileged=privileged)
    with pytest.raises(ValueError, match=rf"holds no vector '{privileged}', only .*'teacher'"):
        pretrain_on_renders(recording, tmp_path / "encoder", cfg)


def test_an_encoder_is_never_written_over(recording, tmp_path):
    (tmp_path / "encoder").mkdir()
    with pytest.raises(FileExistsError, match="exists already; remove it or choose another"):
        pretrain_on_renders(recording, tmp_path / "encoder", TINY)
    assert list((tmp_path / "encoder").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"batch_size": -1}, "batch_size must be >= 1, got -1"),
        ({"learning_rate": 0.0}, r"learning_rate must be finite and > 0, got 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be finite and > 0, got nan"),
        ({"learning_rate": math.inf}, "learning_rate must be finite and > 0, got inf"),
        ({"seed": -1}, "seed must be in 0"),
        ({"seed": 2**63}, "seed must be in 0"),
    ],
)
def test_an_illegal_value_is_named_with_what_is_legal(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        RendersConfig(**changes)
