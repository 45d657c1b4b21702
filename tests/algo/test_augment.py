"""Augmentations on images whose pixels tell where they come from, and rates counted by hand."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from penspin_style.algo import augment
from penspin_style.algo.augment import Augment, AugmentConfig

OFF = dataclasses.asdict(AugmentConfig.off())
OFF.pop("depth_line_value")  # there is no line
COLOR = ("brightness", "noise")
DEPTH = tuple(key for key in OFF if key.startswith("depth"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def only(*keys):
    """A config with nothing but these augmentations, strong enough to see."""
    default = AugmentConfig(depth_blackout=0.5)
    return AugmentConfig(**{**OFF, **{key: getattr(default, key) for key in keys}})


def images(n, size=32, seed=1):
    """Colour, and a ball before nothing, of two cameras."""
    rng = seeded(seed)
    rgb = {name: torch.rand(n, 3, size, size, generator=rng) for name in ("left", "right")}
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    squared = ((x - size / 2) ** 2 + (y - size / 2) ** 2) / (0.4 * size) ** 2
    ball = torch.where(squared < 1, 0.35 - 0.1 * (1 - squared).clamp(min=0).sqrt(), 0.0)
    depth = {name: ball + 0.3 * (ball > 0) * torch.rand(n, 1, 1, generator=rng) for name in rgb}
    return rgb, depth


def numbered(n, size):
    """Images (n, size, size) whose pixel y, x is size y + x."""
    return torch.arange(float(size**2)).view(1, size, size).repeat(n, 1, 1)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def close(rate, p, count, sds=5):
    """Whether a rate of so many draws is p, within standard deviations."""
    return abs(rate - p) < sds * math.sqrt(p * (1 - p) / count)


# Shift.


def test_a_shift_is_a_crop_of_the_image_with_repeated_edges_and_all_offsets_occur():
    n, size, most = 3000, 8, 2
    (out,) = augment.random_shift([numbered(n, size)], most, seeded())
    dy, dx = out[:, 4, 4] // size - 4, out[:, 4, 4] % size - 4
    wide = F.pad(numbered(1, size)[None], (most,) * 4, mode="replicate")[0, 0]
    for k in range(n):
        top, left = int(dy[k]) + most, int(dx[k]) + most
        assert torch.equal(out[k], wide[top : top + size, left : left + size])
    counts = torch.bincount(((dy + 2) * 5 + dx + 2).long(), minlength=25)
    assert len(counts) == 25
    assert all(65 < count < 175 for count in counts.tolist())  # 120 expected, sd 10.7


def test_all_images_of_a_sample_shift_alike_and_samples_differently():
    n = 200
    small, large = numbered(n, 8), numbered(n, 12)
    color = torch.stack([small, 100 + small, 200 + small], 1)
    one, two, three = augment.random_shift([color, small, large], 3, seeded())
    for channel in range(3):
        assert torch.equal(one[:, channel], two + 100 * channel)
    assert torch.equal(two[:, 4, 4] // 8 - 4, three[:, 5, 5] // 12 - 5)
    assert torch.equal(two[:, 4, 4] % 8 - 4, three[:, 5, 5] % 12 - 5)
    assert len(two[:, 4, 4].unique()) == 49


def test_a_shift_further_than_the_image_shows_its_border_only():
    (out,) = augment.random_shift([numbered(300, 5)], 20, seeded())
    assert {0.0, 4.0, 20.0, 24.0} <= set(
        out[(out == out[:, :1, :1]).all(2).all(1)][:, 0, 0].tolist()
    )


def test_the_layout_in_memory_does_not_matter():
    rgb, depth = images(4)
    last = {name: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for name, x in rgb.items()}
    expected = Augment(AugmentConfig(), seeded())(rgb, depth)
    seen = Augment(AugmentConfig(), seeded())(last, depth)
    assert same(seen[0], expected[0]) and same(seen[1], expected[1])


# Colour.


def test_brightness_is_one_factor_per_sample_for_all_cameras():
    n = 4000
    images = [torch.full((n, 3, 2, 2), value) for value in (0.4, 0.6)]
    left, right = augment.scale_brightness(images, 0.5, 1.5, seeded())
    factor = left[:, 0, 0, 0] / 0.4
    assert torch.allclose(left, 0.4 * factor[:, None, None, None])
    assert torch.allclose(right, 0.6 * factor[:, None, None, None])
    assert factor.min() >= 0.5 and factor.max() <= 1.5 and len(factor.unique()) > 0.99 * n
    assert factor.mean().item() == pytest.approx(1.0, abs=5 / math.sqrt(12 * n))
    assert factor.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.03)


def test_brightness_is_clipped_to_white():
    (out,) = augment.scale_brightness([torch.full((50, 3, 2, 2), 0.9)], 1.2, 2.0, seeded())
    assert (out == 1).all()


def test_noise_is_uniform_about_zero_and_of_every_pixel_and_channel():
    out = augment.add_noise(torch.full((100, 3, 32, 32), 0.5), 0.03, seeded()) - 0.5
    assert out.abs().max() <= 0.03 + 1e-6  # 0.53 is rounded to float32
    assert out.max() > 0.0299 and out.min() < -0.0299
    assert abs(out.mean().item()) < 5 * 0.03 / math.sqrt(3 * out.numel())
    assert out.std().item() == pytest.approx(0.03 / math.sqrt(3), rel=0.01)
    flat = out.flatten(1)
    assert abs((flat[:, 1:] * flat[:, :-1]).mean().item()) < 5 * 0.03**2 / 3 / math.sqrt(
        flat.numel()
    )
    for one, two in ((out[:, 0], out[:, 1]), (out[0], out[1])):
        assert (one != two).float().mean() > 0.99


def test_noise_stays_within_black_and_white():
    for value in (0.0, 1.0):
        out = augment.add_noise(torch.full((10, 3, 32, 32), value), 0.03, seeded())
        assert out.min() >= 0 and out.max() <= 1
        assert (out == value).float().mean().item() == pytest.approx(0.5, abs=0.02)


# Depth: edges.


def test_flat_walls_lose_nothing_whatever_stands_in_the_next_image():
    walls = torch.linspace(0.1, 3, 50)[:, None, None].repeat(1, 16, 24)
    assert torch.equal(augment.lose_edges(walls, seeded()), walls)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_step_loses_pixels_there_only_at_the_rate_of_its_gradient(axis):
    n, size = 2000, 32
    depth = torch.full((n, size, size), 0.3)
    depth[:, :, 16:] = 0.4
    depth = depth.transpose(1, axis).transpose(2, axis) if axis == 1 else depth
    lost = (augment.lose_edges(depth.contiguous(), seeded()) == 0).transpose(2, axis)
    rate = lost.float().mean((0, 1))
    p = math.atan(10 * 0.05)  # 0.1 m over two pixels, on either side of the step
    count = n * size / 4  # decisions are shared by up to four pixels
    assert close(rate[15].item(), p / 2, count)  # itself, or its neighbour that is never lost
    assert close(rate[16].item(), p, count)
    assert close(rate[17].item(), p / 2, count)
    assert rate.nonzero().flatten().tolist() == [15, 16, 17]


def test_a_slope_is_lost_from_a_twentieth_on_borders_included():
    x = torch.arange(32.0).expand(2000, 32, 32)
    gentle = 0.5 + 0.0049 * x  # atan(0.049) = 0.049
    assert torch.equal(augment.lose_edges(gentle, seeded()), gentle)
    rate = (augment.lose_edges(0.5 + 0.006 * x, seeded()) == 0).float().mean((0, 1))
    for column in rate.tolist():
        assert close(column, math.atan(0.06), 2000 * 32 / 4)


def test_an_edge_that_is_certain_to_be_lost_is_lost():
    depth = torch.zeros(50, 16, 16)
    depth[:, :, 8:] = 0.5  # atan(10 * 0.25) = 1.19
    out = augment.lose_edges(depth, seeded())
    assert (out[:, :, :9] == 0).all()
    assert (out[:, :, 10:] == 0.5).all()


# Depth: disparity.


@pytest.mark.parametrize(
    ("wall", "steps", "share", "quantum"),
    # c = 351.3 m: 351.3 steps at 1 m, rounded up from a noise of 0.2 = 1.2 sd on; 878.25 at 0.4 m
    [(1.0, (351, 352), 0.8849, 2.84e-3), (0.4, (878, 879), 0.9332, 4.55e-4)],
)
def test_a_wall_comes_in_quanta_of_its_squared_depth(wall, steps, share, quantum):
    depth = torch.full((200, 32, 32), wall)
    out = augment.jitter_and_quantize(depth, seeded(), jitter=0.0)
    near, far = out.unique().tolist()
    assert far == pytest.approx(351.3 / steps[0], rel=1e-6)
    assert near == pytest.approx(351.3 / steps[1], rel=1e-6)
    assert far - near == pytest.approx(quantum, rel=2e-3)
    assert quantum == pytest.approx(wall**2 / 351.3, rel=5e-3)
    assert close((out > wall - quantum / 2).float().mean().item(), share, out.numel())
    spread = quantum * math.sqrt(share * (1 - share))  # 0.9 mm at 1 m: not inert
    assert out.std().item() == pytest.approx(spread, rel=0.02)


def test_jitter_alone_leaves_a_wall_as_it_is():
    wall = torch.full((20, 32, 32), 0.7)
    assert torch.allclose(augment.jitter_and_quantize(wall, seeded(), disparity=0.0), wall)


@pytest.mark.parametrize("axis", [1, 2])
def test_jitter_looks_half_a_pixel_beside_on_either_axis(axis):
    slope = 0.5 + 0.01 * torch.arange(32.0).expand(500, 32, 32).transpose(2, axis)
    out = augment.jitter_and_quantize(slope, seeded(), disparity=0.0)
    error = ((out - slope) / 0.01).transpose(2, axis)[:, :, 4:-4]
    assert error.std().item() == pytest.approx(0.5, rel=0.01)
    assert abs(error.mean().item()) < 5 * 0.5 / math.sqrt(error.numel())
    assert 2.0 < error.abs().max() < 2.5  # 4 to 5 sd


def test_jitter_invents_no_depth_at_a_rim_and_loses_what_looks_past_it():
    depth = torch.zeros(2000, 32, 32)
    depth[:, :, :16] = 0.4
    out = augment.jitter_and_quantize(depth, seeded(), disparity=0.0)
    assert ((out == 0) | ((out - 0.4).abs() < 1e-6)).all()
    assert (out[:, :, 16:] == 0).all()
    lost = (out == 0).float().mean((0, 1))
    assert close(lost[15].item(), 0.15866, 2000 * 32)  # beyond half a pixel: 1 sd
    assert close(lost[14].item(), 0.00135, 2000 * 32)  # beyond one and a half: 3 sd


def test_very_far_depth_stays_finite():
    out = augment.jitter_and_quantize(torch.full((1, 32, 32), 1e4), seeded())
    assert torch.isfinite(out).all()


# Depth: dropout, lines, blackout.


@pytest.mark.parametrize("p", [0.006, 0.3])
def test_dropout_loses_single_pixels_at_its_rate(p):
    depth = torch.full((1000, 32, 32), 0.5)
    lost = augment.drop_pixels(depth, p, seeded()) == 0
    assert close(lost.float().mean().item(), p, depth.numel())
    pairs = (lost[:, :, 1:] & lost[:, :, :-1]).float().mean().item()
    assert close(pairs, p**2, depth.numel())  # neighbours are independent
    assert close((lost[1:] & lost[:-1]).float().mean().item(), p**2, depth.numel())


def test_dropout_of_one_loses_everything():
    assert (augment.drop_pixels(torch.ones(3, 32, 32), 1.0, seeded()) == 0).all()


def test_a_line_is_two_to_five_pixels_of_one_depth_in_a_row():
    n = 4000
    out = augment.draw_lines(torch.zeros(n, 32, 32), 1, seeded())
    values, counts = out.flatten(1).max(1).values, (out > 0).flatten(1).sum(1)
    assert values.min() >= 0.08 and values.max() <= 0.34
    assert values.mean().item() == pytest.approx(0.21, abs=5 * 0.26 / math.sqrt(12 * n))
    assert torch.equal(out, torch.where(out > 0, values[:, None, None], 0.0))
    assert counts.unique().tolist() == [2, 3, 4, 5]
    for length in range(2, 6):
        assert close((counts == length).float().mean().item(), 0.25, n)
    columns, rows = ((out > 0).any(axis).sum(1) for axis in (1, 2))
    assert torch.equal(torch.maximum(columns, rows), counts)  # one pixel per column, or per row
    # Half lie along x; of the others k long, those at a slope above (k - 3/2) / (k - 1) do, too.
    p = 0.5 + 0.5 * (1 / 2 + 1 / 4 + 1 / 6 + 1 / 8) / 4
    assert close((columns == counts).float().mean().item(), p, n)
    assert (rows > 1).logical_and(columns > 1).float().mean() > 0.3


def test_lines_number_one_to_the_most_and_all_places_get_some():
    n = 4000
    out = augment.draw_lines(torch.zeros(n, 32, 32), 16, seeded())
    count = torch.tensor([len(x.unique()) - 1 for x in out])
    assert count.min() == 1 and count.max() == 16
    assert count.float().mean().item() == pytest.approx(8.5, rel=0.03)  # few hide each other
    covered = (out > 0).float().mean(0)
    assert covered.mean().item() == pytest.approx(8.5 * 3.5 / 1024, rel=0.05)
    assert covered.min() > 0 and covered[1:-1, 1:-1].min() > 0.3 * covered.mean()


def test_a_finer_image_has_thicker_and_longer_lines_that_cover_as_much():
    one = augment.draw_lines(torch.zeros(500, 64, 64), 1, seeded())
    counts = (one > 0).flatten(1).sum(1)
    assert counts.unique().tolist() == [8, 10, 12, 14, 16, 18, 20]  # 4 to 10 long, 2 wide
    coarse, fine = (
        (augment.draw_lines(torch.zeros(2000, size, size), 16, seeded()) > 0).float().mean().item()
        for size in (32, 96)
    )
    assert fine == pytest.approx(coarse, rel=0.06)


def test_beside_lines_depth_stays_and_where_they_cross_the_nearest_shows():
    depth = torch.full((200, 5, 9), 0.7)
    out = augment.draw_lines(depth, 16, seeded())
    drawn = out != 0.7
    assert drawn.any() and not drawn.all()
    assert (out[drawn] <= 0.34).all()
    farther = augment.draw_lines(depth, 16, seeded(), low=2.0, high=3.0)
    assert torch.equal(farther != 0.7, drawn)  # a line covers, even from behind
    assert torch.allclose((farther[drawn] - 2) * 0.26 + 0.08, out[drawn], atol=1e-6)


def test_blackout_takes_whole_images_at_its_rate():
    n = 20_000
    depth = torch.full((n, 5, 5), 0.5)
    out = augment.black_out(depth, 0.02, seeded())
    gone = (out == 0).all(2).all(1)
    assert torch.equal(out, torch.where(gone[:, None, None], 0.0, depth))
    assert close(gone.float().mean().item(), 0.02, n)


def test_cameras_black_out_independently():
    depth = {name: torch.full((5000, 5, 5), 0.5) for name in ("left", "right")}
    cfg = AugmentConfig(**{**OFF, "depth_blackout": 0.5})
    _, out = Augment(cfg, seeded())({}, depth)
    left, right = (x[:, 0, 0] == 0 for x in out.values())
    assert close((left & right).float().mean().item(), 0.25, 5000)


# All together.


def test_a_seed_reproduces_and_another_differs():
    batch = images(8)
    one, two, other = (Augment(AugmentConfig(), seeded(seed))(*batch) for seed in (3, 3, 4))
    for kind in (0, 1):
        assert same(one[kind], two[kind])
        assert not any(torch.equal(one[kind][name], other[kind][name]) for name in one[kind])


def test_a_second_call_draws_anew():
    batch, change = images(8), Augment(AugmentConfig(), seeded())
    first, second = change(*batch), change(*batch)
    assert not torch.equal(first[0]["left"], second[0]["left"])
    assert not torch.equal(first[1]["left"], second[1]["left"])


@pytest.mark.parametrize("n", [8, 300])
def test_with_all_off_images_come_back_themselves_and_nothing_is_drawn(n):
    rgb, depth = images(n)
    rng = seeded()
    before = rng.get_state()
    for seen, given in zip(Augment(only(), rng)(rgb, depth), (rgb, depth), strict=True):
        assert list(seen) == list(given)
        assert all(seen[name] is given[name] for name in given)
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("n", [8, 300])
@pytest.mark.parametrize("key", list(OFF))
def test_one_augmentation_changes_its_own_images_only(key, n):
    batch = images(n)
    seen = Augment(only(key), seeded())(*batch)
    for kind, given in enumerate(batch):
        touched = key == "shift" or key in (COLOR, DEPTH)[kind]
        for name, image in given.items():
            assert (seen[kind][name] is not image) == touched
            assert torch.equal(seen[kind][name], image) == (not touched)


@pytest.mark.parametrize("n", [8, 300])
def test_inputs_are_never_written(n):
    rgb, depth = images(n)
    kept = [{name: x.clone() for name, x in views.items()} for views in (rgb, depth)]
    Augment(AugmentConfig(), seeded())(rgb, depth)
    assert same(rgb, kept[0]) and same(depth, kept[1])


def test_no_function_writes_its_input():
    rgb, depth = images(8)
    image, metres = rgb["left"], depth["left"]
    kept = image.clone(), metres.clone()
    augment.random_shift([image, metres], 2, seeded())
    augment.scale_brightness([image], 0.5, 1.5, seeded())
    augment.add_noise(image, 0.03, seeded())
    augment.lose_edges(metres, seeded())
    augment.jitter_and_quantize(metres, seeded())
    augment.jitter_and_quantize(metres, seeded(), jitter=0.0)
    augment.drop_pixels(metres, 0.1, seeded())
    augment.draw_lines(metres, 16, seeded())
    augment.black_out(metres, 0.5, seeded())
    assert torch.equal(image, kept[0]) and torch.equal(metres, kept[1])


def test_only_lines_turn_nothing_into_something():
    _, depth = images(100)
    cfg = dataclasses.replace(AugmentConfig(), shift=0, depth_lines=0)
    _, out = Augment(cfg, seeded())({}, depth)
    for name, given in depth.items():
        assert (out[name][given == 0] == 0).all()
        assert torch.isfinite(out[name]).all()
        kept = out[name] > 0
        assert 0.3 < kept.sum() / (given > 0).sum() < 0.95
        assert (out[name] - given)[kept].abs().max() < 0.2  # no depth that is nowhere near


def test_a_large_batch_is_changed_throughout():
    n = 300
    rgb = {"left": numbered(n, 32)[:, None].repeat(1, 3, 1, 1) / 1024}
    depth = {"left": numbered(n, 32), "right": numbered(n, 32)}
    color, metres = Augment(only("shift"), seeded())(rgb, depth)
    assert torch.equal(color["left"][:, 1] * 1024, metres["left"])
    assert torch.equal(metres["left"], metres["right"])
    for part in metres["left"][:, 16, 16].split(100):
        assert len(part.unique()) > 20  # of 25


def test_cameras_may_differ_in_resolution_or_carry_one_kind_only():
    rgb = {"left": torch.rand(4, 3, 24, 40)}
    depth = {"left": torch.rand(4, 24, 40), "top": torch.rand(4, 64, 64)}
    change = Augment(AugmentConfig(), seeded())
    for colors, metres in ((rgb, depth), (rgb, {}), ({}, depth), ({}, {})):
        out = change(colors, metres)
        for seen, given in zip(out, (colors, metres), strict=True):
            assert [x.shape for x in seen.values()] == [x.shape for x in given.values()]


# Errors.


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"shift": -1}, "algo.augment.shift must be finite and >= 0, got -1"),
        ({"noise": math.nan}, "algo.augment.noise must be"),
        ({"depth_edge": -1.0}, "algo.augment.depth_edge must be"),
        ({"depth_jitter": math.inf}, "algo.augment.depth_jitter must be finite"),
        ({"depth_disparity": -1.0}, "algo.augment.depth_disparity must be"),
        ({"depth_dropout": 1.5}, r"algo.augment.depth_dropout must be in \[0, 1\], got 1.5"),
        ({"depth_blackout": -0.1}, "algo.augment.depth_blackout must be"),
        ({"depth_lines": -2}, "algo.augment.depth_lines must be"),
        ({"brightness": [1.5, 0.5]}, r"algo.augment.brightness must be \[low, high\]"),
        ({"brightness": [1.0]}, "algo.augment.brightness must be"),
        ({"depth_line_value": [-0.1, 0.3]}, "algo.augment.depth_line_value must be"),
    ],
)
def test_an_illegal_value_names_its_key_and_what_is_legal(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        AugmentConfig(**wrong)


def test_the_config_is_one_that_hydra_composes():
    schema = OmegaConf.structured(AugmentConfig)
    merged = OmegaConf.to_object(OmegaConf.merge(schema, {"brightness": [1, 2], "depth_lines": 4}))
    assert merged == AugmentConfig(brightness=[1.0, 2.0], depth_lines=4)


@pytest.mark.parametrize(
    ("rgb", "depth", "complaint"),
    [
        (torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8), r"rgb of camera 'c' must be \(n, 3, H, W\)"),
        (
            torch.rand(2, 3, 8, 8),
            torch.rand(2, 1, 8, 8),
            r"depth of camera 'c' must be \(n, H, W\)",
        ),
        (torch.ones(2, 3, 8, 8, dtype=torch.uint8), torch.rand(2, 8, 8), "divide by 255"),
        (torch.rand(2, 3, 8, 8), torch.ones(2, 8, 8, dtype=torch.float64), "float32 in metres"),
        (torch.rand(2, 3, 8, 8), torch.rand(2, 4, 8), "5 pixels high and wide"),
        (torch.rand(2, 3, 8, 8), torch.rand(3, 8, 8), r"one batch size, got \[2, 3\]"),
    ],
)
def test_an_image_of_another_kind_is_refused(rgb, depth, complaint):
    with pytest.raises(ValueError, match=complaint):
        Augment(AugmentConfig(), seeded())({"c": rgb}, {"c": depth})


class Recorded(TorchDispatchMode):
    """Keep the names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_makes_the_host_wait_for_a_device():
    batch, change = images(8), Augment(AugmentConfig(), seeded())
    change(*batch)  # the banks are made once
    with Recorded() as seen:
        change(*batch)
    assert {"index_select", "scatter_reduce_"} <= seen.names
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"}
    assert not seen.names & {*waits, "index", "index_put_", "_to_cpu"}
