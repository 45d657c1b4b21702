"""Random changes to images, so that a pixel student does not mistake the renderer for the world.

`Augment` applies what its config switches on, every time it is called: shift, then noise and
brightness of colour; shift, lost edges, disparity, dropout, lines and blackout of depth. Each is
also a function here, which returns a new tensor and writes none of its arguments.

Colour is float32 in [0, 1], (n, 3, H, W). Depth is float32 in metres, (n, H, W), finite; 0 means
that nothing came back, on the way in and on the way out: only a line turns 0 into something else.
So augment metres as they come from the camera, and clip and resize them afterwards.

The set is that of MuJoCo Playground's ALOHA peg insertion (pull request 76, `distillation.py` and
`depth_noise.py`); each function says what it does differently.

Drawing a random number for every pixel costs a CPU more than all the arithmetic. So there are
tables of a million equally probable values, shuffled once and for all, and pixels read windows of
them that begin where the generator says. Nothing here waits for a GPU.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from penspin_style.config import require

MIN_EDGE_LOSS = 0.05
"""Edges that would be lost with a smaller probability than this are kept."""
DISPARITY_STD = 1 / 6
"""Standard deviation of disparity noise, in steps of disparity (Barron and Malik 2013)."""
LINE_LENGTHS = (2, 5)
"""Shortest and longest line in an image of 32 pixels."""
_BANK, _WINDOW = 2**20, 2**10
_CHUNK = 2**17
"""Pixels of a camera that a CPU changes at once: what fits its cache."""


@dataclass
class AugmentConfig:
    """What a student's images suffer in training. Zero switches off, for brightness `[1, 1]`."""

    shift: int = 2
    """Furthest shift in pixels, the same for all images of a sample."""
    brightness: list[float] = field(default_factory=lambda: [0.5, 1.5])
    """Range of the factor on colour, the same for all cameras of a sample."""
    noise: float = 0.03
    """Half width of uniform noise on colour, per pixel and channel."""
    depth_edge: float = 10.0
    """Pixels per metre, k: a pixel at a gradient g (m per pixel) is lost with p = atan(k g)."""
    depth_jitter: float = 0.5
    """Standard deviation in pixels of where a depth pixel looks, per axis."""
    depth_disparity: float = 351.3
    """Steps of disparity times metres, c: depth is c over a whole number, so d^2 / c apart."""
    depth_dropout: float = 0.006
    """Probability that a depth pixel returns nothing."""
    depth_lines: int = 16
    """Most lines in a depth image; each has one at least."""
    depth_line_value: list[float] = field(default_factory=lambda: [0.08, 0.34])
    """Range of a line's depth in metres."""
    depth_blackout: float = 0.02
    """Probability that a whole depth image is 0."""

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("shift", "noise", "depth_edge", "depth_jitter", "depth_disparity"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"algo.augment.{key}", value, "finite and >= 0")
        lines = self.depth_lines
        require(0 <= lines < float("inf"), "algo.augment.depth_lines", lines, "finite and >= 0")
        for key in ("depth_dropout", "depth_blackout"):
            require(
                0 <= getattr(self, key) <= 1,
                f"algo.augment.{key}",
                getattr(self, key),
                "in [0, 1]",
            )
        for key in ("brightness", "depth_line_value"):
            value = list(getattr(self, key))
            legal = len(value) == 2 and 0 <= value[0] <= value[1] < float("inf")
            require(legal, f"algo.augment.{key}", value, "[low, high] with 0 <= low <= high")

    @classmethod
    def off(cls) -> "AugmentConfig":
        """Return one that changes nothing."""
        return cls(
            shift=0,
            brightness=[1.0, 1.0],
            noise=0.0,
            depth_edge=0.0,
            depth_jitter=0.0,
            depth_disparity=0.0,
            depth_dropout=0.0,
            depth_lines=0,
            depth_blackout=0.0,
        )


class Augment:
    """Change the images of a batch at random, as the config says.

    rng: where all randomness comes from; on the images' device.
    """

    def __init__(self, cfg: AugmentConfig, rng: torch.Generator) -> None:
        self.cfg = cfg
        self.rng = rng

    @torch.no_grad()
    def __call__(
        self, rgb: Mapping[str, Tensor], depth: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return changed images under the same names.

        rgb: camera -> (n, 3, H, W) in [0, 1]. depth: camera -> (n, H, W) metres. Cameras may differ
        in resolution. Inputs are never written; one that nothing is switched on for comes back
        itself, uncopied.

        Raises:
            ValueError: an image is not float32, has another shape or less than 5 pixels to a side,
                or batch sizes differ.
        """
        n = _check(rgb, depth)
        views = [*rgb.values(), *depth.values()]
        rows = n
        if views and views[0].device.type == "cpu":
            rows = max(1, _CHUNK // max(view.shape[-2:].numel() for view in views))
        if n > rows:
            views = self._change_by_rows(views, len(rgb), rows)
        elif n:
            views = self._change(views, len(rgb))
        names = iter(views)
        return {name: next(names) for name in rgb}, {name: next(names) for name in depth}

    def _change_by_rows(self, views: list[Tensor], ncolor: int, rows: int) -> list[Tensor]:
        """Change so many samples at a time."""
        whole = list(views)
        for k in range(0, len(views[0]), rows):
            parts = [view[k : k + rows] for view in views]
            for i, part in enumerate(self._change(parts, ncolor)):
                if part is not parts[i]:
                    if k == 0:
                        whole[i] = torch.empty_like(views[i])
                    whole[i][k : k + rows] = part
        return whole

    def _change(self, views: list[Tensor], ncolor: int) -> list[Tensor]:
        """Change images, of which the first `ncolor` are colour and the others depth."""
        cfg, rng = self.cfg, self.rng
        if cfg.shift:
            views = random_shift(views, cfg.shift, rng)
        color, depth = views[:ncolor], views[ncolor:]
        if cfg.noise:
            color = [add_noise(x, cfg.noise, rng) for x in color]
        low, high = cfg.brightness
        if color and not low == high == 1:
            color = scale_brightness(color, low, high, rng)
        if len(depth) > 1 and len({x.shape for x in depth}) == 1 and self._degrades:
            return [*color, *self._degrade(torch.cat(depth)).split(len(depth[0]))]
        return [*color, *(self._degrade(x) for x in depth)]

    @property
    def _degrades(self) -> bool:
        """Whether anything but the shift changes depth."""
        cfg = self.cfg
        numbers = (cfg.depth_edge, cfg.depth_jitter, cfg.depth_disparity, cfg.depth_dropout)
        return any((*numbers, cfg.depth_lines, cfg.depth_blackout))

    def _degrade(self, depth: Tensor) -> Tensor:
        """Make depth (n, H, W) that of a sensor."""
        cfg, rng = self.cfg, self.rng
        if cfg.depth_edge:
            depth = lose_edges(depth, rng, gain=cfg.depth_edge)
        if cfg.depth_jitter or cfg.depth_disparity:
            depth = jitter_and_quantize(
                depth, rng, jitter=cfg.depth_jitter, disparity=cfg.depth_disparity
            )
        if cfg.depth_dropout:
            depth = drop_pixels(depth, cfg.depth_dropout, rng)
        if cfg.depth_lines:
            low, high = cfg.depth_line_value
            depth = draw_lines(depth, cfg.depth_lines, rng, low=low, high=high)
        if cfg.depth_blackout:
            depth = black_out(depth, cfg.depth_blackout, rng)
        return depth


def random_shift(views: Sequence[Tensor], most: int, rng: torch.Generator) -> list[Tensor]:
    """Shift all images of a sample by one offset, uniform in -most..most pixels in x and in y.

    views: each (n, ..., H, W), with the same n. A shifted image is a crop of the image with its
    edges repeated outwards. Rows are copied whole: one `index_select` of windows of the widened
    rows.

    Source: DrQ (Kostrikov et al. 2020, arXiv 2004.13649). Upstream shifts images that its student
    never reads: the features that it does read are computed before.
    """
    if not views:
        return []
    n, device = len(views[0]), views[0].device
    offset = torch.randint(-most, most + 1, (2, n, 1, 1), device=device, generator=rng)
    starts, shifted = {}, []
    for view in views:
        height, width = view.shape[-2:]
        planes = view.reshape(1, -1, height, width)
        wide = F.pad(planes, (most, most, 0, 0), mode="replicate").contiguous()
        windows = wide.as_strided((wide.numel() - width + 1, width), (1, 1))
        size = wide.shape[-2:].numel()
        if (height, width) not in starts:  # within a plane, of each row: (n, 1, H)
            row = (torch.arange(height, device=device) + offset[0]).clamp_(0, height - 1)
            starts[height, width] = row.mul_(wide.shape[-1]).add_(offset[1] + most)
        plane = torch.arange(0, planes.shape[1] * size, size, device=device).view(n, -1, 1)
        start = plane + starts[height, width]
        shifted.append(windows.index_select(0, start.flatten()).view(view.shape))
    return shifted


def scale_brightness(
    images: Sequence[Tensor], low: float, high: float, rng: torch.Generator
) -> list[Tensor]:
    """Multiply all images of a sample by one factor, uniform in [low, high]; clip to [0, 1].

    images: each (n, 3, H, W) in [0, 1]. Upstream draws U(.5, 2.5) once per environment for the
    whole run, so that each environment has one exposure for ever; here every sample has its own.
    """
    if not images:
        return []
    n, device = len(images[0]), images[0].device
    factor = torch.rand((n, 1, 1, 1), device=device, generator=rng).mul_(high - low).add_(low)
    return [(image * factor).clamp_(0, 1) for image in images]


def add_noise(image: Tensor, half_width: float, rng: torch.Generator) -> Tensor:
    """Add uniform noise within +-half_width to each pixel and channel; clip to [0, 1].

    image: (n, 3, H, W) in [0, 1]. Upstream draws U(0, .03), so that its student learns on images
    that are .015 brighter than the camera's and never black; brightness has an augmentation of its
    own, so noise here is symmetric.
    """
    return image.add(_draw("uniform", image, rng), alpha=half_width).clamp_(0, 1)


def lose_edges(depth: Tensor, rng: torch.Generator, *, gain: float = 10.0) -> Tensor:
    """Set pixels at steps of depth (n, H, W) to 0 with probability atan(gain |gradient|).

    The gradient, in metres per pixel, is that of `numpy.gradient`: central differences, one-sided
    at the border. A step has the same gradient at every resolution, a slope a smaller one in a
    finer image. Probabilities below `MIN_EDGE_LOSS` count as 0; 0 beside a surface is a step.
    Then each pixel takes the decision on itself or on its neighbour above, left, or both, so that
    the rim is ragged and at most one pixel wider.

    Source: upstream `depth_noise.py`, as published.
    """
    slope = _squared_rise(depth).mul_(gain**2 / 4)
    keep = _draw("edge", depth, rng).sub_(slope).sign_().clamp_(min=0)
    for axis in (1, 2):
        size = depth.shape[axis]
        beside = torch.cat([keep.narrow(axis, 0, 1), keep.narrow(axis, 0, size - 1)], axis)
        keep.lerp_(beside, _draw("coin", depth, rng))
    return keep.mul_(depth)


def jitter_and_quantize(
    depth: Tensor, rng: torch.Generator, *, jitter: float = 0.5, disparity: float = 351.3
) -> Tensor:
    """Look up depth (n, H, W) beside each pixel, and round its disparity, as a Kinect does.

    jitter: standard deviation in pixels of the place where a pixel looks, per axis; 0 for none.
    Depth there is interpolated bilinearly between the pixels that returned something, and lost
    where these make up less than half. A pixel at 0 stays so.

    disparity: c in steps times metres; 0 for none. A sensor counts s = c / d steps of disparity,
    here with noise N(0, `DISPARITY_STD`) and rounded, and tells d = c / s. So c = focal length
    (pixels) x baseline (m) x steps per pixel. A Kinect has 585.5 px x 0.075 m x 8 = 351.3 m; the
    published constant, 35130, is that in centimetres (Barron and Malik, CVPR 2013). A RealSense
    D405 has about 674 px x 0.018 m x 32 = 388 m. Depth comes in quanta of d^2 / c: for 351.3 m,
    0.46 mm at 0.4 m and 2.8 mm at 1 m.

    Upstream divides 35130 by metres: quanta of 4.6e-6 m at 0.4 m, so that only jitter had an
    effect. It also interpolates between surfaces and 0, which invents surfaces in between.
    """
    if jitter:
        depth = _look_beside(depth, jitter, rng)
    if disparity:
        step = disparity / depth  # nothing returned: infinitely many, and back to 0
        step.add_(_draw("normal", depth, rng), alpha=DISPARITY_STD)
        depth = step.round_().clamp_(min=1).reciprocal_().mul_(disparity)
    return depth


def drop_pixels(depth: Tensor, p: float, rng: torch.Generator) -> Tensor:
    """Set each pixel of depth (n, H, W) to 0 with probability p.

    Source: upstream `depth_noise.py`, as published.
    """
    return _draw("uniform", depth, rng).sub_(2 * p - 1).sign_().clamp_(min=0).mul_(depth)


def draw_lines(
    depth: Tensor, most: int, rng: torch.Generator, *, low: float = 0.08, high: float = 0.34
) -> Tensor:
    """Draw 1 to `most` straight lines into each image of depth (n, H, W); the nearest shows.

    A line lies anywhere within the image, at a slope uniform in [-1, 1] to x or to y and a depth
    uniform in [low, high] metres. It counts 2 to 5 pixels along that axis and one across; both
    times the shorter side over 32, rounded and at least 1, so that lines cover the same part of a
    finer image.

    Upstream draws from a bank of 16,384 masks, always; here every line is new.
    """
    n, height, width = depth.shape
    device = depth.device
    scale = max(1, round(min(height, width) / 32))
    shortest, longest = (scale * length for length in LINE_LENGTHS)
    draw = torch.rand((6, n, most, 1, 1), device=device, generator=rng)
    value, turn, slope, length, start, beside = draw
    upright = turn.mul_(2).floor_()
    slope.mul_(2).sub_(1)
    length.mul_(longest - shortest + 1).floor_().add_(shortest)
    end = (slope * (length - 1)).round_()
    start.mul_(width + (height - width) * upright - length + 1).floor_()
    beside.mul_(height + (width - height) * upright - end.abs() - scale + 1).floor_()
    beside.sub_(end.clamp(max=0))
    step = torch.arange(longest, device=device, dtype=draw.dtype).view(-1, 1)
    step = torch.minimum(step, length - 1)  # (n, most, longest, 1): a short line ends repeatedly
    thick = torch.arange(scale, device=device, dtype=draw.dtype)
    across = (slope * step).round_().add_(beside) + thick
    frame = torch.arange(0, depth.numel(), height * width, device=device).view(n, 1, 1, 1)
    pixel = (start + step) * (1 + (width - 1) * upright) + across * (width + (1 - width) * upright)
    pixel = pixel.long().add_(frame)
    last = (torch.rand((n, 1, 1, 1), device=device, generator=rng) * most).long()
    drawn = torch.arange(most, device=device).view(1, most, 1, 1) <= last
    value.mul_(high - low).add_(low)
    values = torch.where(drawn, value, value[:, :1]).expand(pixel.shape)
    pixel = torch.where(drawn, pixel, pixel[:, :1])  # what is not drawn is the first line again
    out = depth.flatten().clone()
    out.scatter_reduce_(0, pixel.flatten(), values.flatten(), "amin", include_self=False)
    return out.view(depth.shape)


def black_out(depth: Tensor, p: float, rng: torch.Generator) -> Tensor:
    """Set whole images of depth (n, H, W) to 0 with probability p each.

    Source: upstream `depth_noise.py`, as published.
    """
    keep = torch.rand((len(depth), 1, 1), device=depth.device, generator=rng) >= p
    return depth * keep.to(depth.dtype)


def _check(rgb: Mapping[str, Tensor], depth: Mapping[str, Tensor]) -> int:
    """Return the batch size; refuse images of another shape or type."""
    sizes = set()
    for kind, views, shape in (("rgb", rgb, "(n, 3, H, W)"), ("depth", depth, "(n, H, W)")):
        for name, view in views.items():
            what = f"{kind} of camera {name!r}"
            if view.ndim != shape.count(",") + 1 or (kind == "rgb" and view.shape[1] != 3):
                raise ValueError(f"{what} must be {shape}, got {tuple(view.shape)}")
            if min(view.shape[-2:]) < LINE_LENGTHS[1]:
                legal = f"{LINE_LENGTHS[1]} pixels high and wide or more"
                raise ValueError(f"{what} must be {legal}, got {tuple(view.shape)}")
            if view.dtype != torch.float32:
                legal = "float32 in " + ("[0, 1]: divide by 255" if kind == "rgb" else "metres")
                raise ValueError(f"{what} must be {legal}, got {view.dtype}")
            sizes.add(len(view))
    if len(sizes) > 1:
        raise ValueError(f"images must have one batch size, got {sorted(sizes)}")
    return sizes.pop() if sizes else 0


@functools.lru_cache(maxsize=16)
def _bank(kind: str, device: torch.device) -> Tensor:
    """Return the windows, 1,024 long, of 2**20 equally probable values.

    The values stand in an order that is random, without repetition, and the same on every device.

    kind: `uniform` in (-1, 1); `normal`, N(0, 1) out to 4.9; `coin`, 0 or 1; `edge`, the square of
    the least gain |gradient| at which a pixel is lost: u < atan(x) just as tan(u) < x.
    """
    order = torch.randperm(_BANK, generator=torch.Generator().manual_seed(0))
    u = (order.double() + 0.5) / _BANK
    values = {
        "uniform": lambda: 2 * u - 1,
        "normal": lambda: torch.special.ndtri(u),
        "coin": lambda: (u < 0.5).double(),
        "edge": lambda: torch.tan(u.clamp(min=MIN_EDGE_LOSS)) ** 2,
    }
    return values[kind]().float().to(device).unfold(0, _WINDOW, 1)


def _draw(kind: str, like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw values of a bank in the shape of a tensor, in windows that begin anywhere."""
    windows, numel = _bank(kind, like.device), like.numel()
    count = -(-numel // _WINDOW)
    start = torch.randint(len(windows), (count,), device=like.device, generator=rng)
    drawn = windows.index_select(0, start)
    if numel % _WINDOW:
        drawn = drawn.flatten()[:numel]
    return drawn.view(like.shape)


def _squared_rise(depth: Tensor) -> Tensor:
    """Return the squared norm of twice the gradient of depth (n, H, W), per pixel."""
    flat = depth.flatten()
    rises = []
    for axis, stride in ((2, 1), (1, depth.shape[2])):
        rise = torch.empty_like(flat)
        torch.sub(flat[2 * stride :], flat[: -2 * stride], out=rise[stride:-stride])
        last = depth.shape[axis] - 1
        along, border = depth.transpose(axis, 2), rise.view(depth.shape).transpose(axis, 2)
        ahead, behind = along[..., 1 :: last - 1], along[..., :: last - 1]
        border[..., ::last] = (ahead - behind).mul_(2)  # not across rows or images
        rises.append(rise)
    return rises[0].square_().addcmul_(rises[1], rises[1]).view(depth.shape)


def _look_beside(depth: Tensor, jitter: float, rng: torch.Generator) -> Tensor:
    """Sample depth (n, H, W) bilinearly at N(0, jitter) pixels from each pixel."""
    n, height, width = depth.shape
    place, part = [], []
    for size, shape in ((width, (width,)), (height, (height, 1))):
        grid = torch.arange(size, dtype=depth.dtype, device=depth.device).view(shape)
        at = _draw("normal", depth, rng).mul_(jitter).add_(grid).clamp_(0, size - 1)
        whole = at.floor().clamp_(max=size - 2)
        place.append(whole)
        part.append(at.sub_(whole))
    index = torch.int32 if depth.numel() < 2**31 else torch.int64
    frame = torch.arange(n, dtype=index, device=depth.device).mul_(height * width)
    corner = place[1].mul_(width).add_(place[0]).to(index).add_(frame.view(n, 1, 1)).flatten()
    flat = depth.flatten()
    near = [flat[k:].index_select(0, corner).view(depth.shape) for k in (0, 1, width, width + 1)]
    some = [x.sign() for x in near]

    def between(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return a.lerp_(b, part[0]).lerp_(c.lerp_(d, part[0]), part[1])

    total, share = between(*near), between(*some)
    keep = (share - 0.5).sign_().clamp_(min=0).mul_(depth.sign())
    return total.div_(share.clamp_(min=0.5)).mul_(keep)
