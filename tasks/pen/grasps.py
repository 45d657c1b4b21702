"""Grasps of a pen: the six published ones, and caches of states in which a hand holds a pen.

A grasp is 23 numbers: 16 joints (rad, MuJoCo's order), the pen's position (m) and its quaternion
(w, x, y, z), in the world of `pen_spin`. A cache is a published folder, `s<scale>/`, of one tensor
`grasps` (n, 23) float32 and a card that says how it came about.
"""

import json
import math
import pathlib
from collections.abc import Sequence

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from penspin_style import rotation, storage
from penspin_style.system.tensors import read_tensors
from tasks.robots.allegro import model as allegro
from tasks.robots.allegro.description import HOME, TO_HORA

_FILE = "grasps.safetensors"
SHIPPED = pathlib.Path(__file__).parents[1] / "assets" / "grasps"
SIZE = 23

_WEST_EAST, _OBLIQUE = (0.7071068, 0.0, -0.7071068, 0.0), (0.6533, 0.2706, -0.6533, 0.2706)
_PENS = (_WEST_EAST, _WEST_EAST, _OBLIQUE, (0.5, 0.5, -0.5, 0.5),
         (0.270598, 0.653281, -0.270598, 0.653281), _WEST_EAST)  # fmt: skip
_HANDS = (  # PenSpin's order of joints: index, thumb, middle, ring
    (0.0344, 1.0537, 0.5184, 0.2920, 1.4615, 0.2352, 0.7243, -0.0436,
     0.0974, 1.1978, 0.3126, 0.2979, 0.1340, 1.0228, 0.6625, 0.2327),
    tuple(HOME[i] for i in TO_HORA),
    (0.0031, 1.0689, 0.8180, 0.1929, 1.2988, 0.7557, 0.5802, 0.3827,
     0.0077, 1.2703, 0.1356, 0.3160, 0.1375, 1.3213, 0.5802, 0.2302),
    (-0.1146, 1.1154, 0.4979, 0.1732, 0.8928, 1.1395, 0.5224, 1.1077,
     -0.1250, 1.2618, 0.1522, 0.7024, 0.0226, 1.2307, 0.7128, 0.1524),
    (-0.0804, 1.3213, 0.3743, 0.0876, 1.2907, 0.7441, 0.4251, 0.3748,
     -0.1412, 1.3882, 0.4888, 0.1689, -0.0802, 1.2987, 0.6577, 0.1455),
    (-0.1346, 1.1048, 0.5053, 0.1029, 1.2654, 0.6378, 0.8787, 0.0611,
     -0.0573, 1.0228, 1.1360, 0.2587, 0.0253, 1.0228, 1.0845, 0.3828),
)  # fmt: skip
CANONICAL_NAMES = (
    "thumb | index + middle + ring",
    "thumb | middle + ring",
    "thumb + index | middle + ring",
    "index | middle",
    "index | thumb + middle",
    "thumb | index",
)
"""Which fingers stand on which side of the pen."""


def canonical() -> Tensor:
    """Return the six published grasps, (6, 23)."""
    joints = allegro.from_hora(torch.tensor(_HANDS))
    place = torch.tensor((-0.01, -0.01, 0.62)).expand(len(_PENS), 3)
    return torch.cat((joints, place, torch.tensor(_PENS)), dim=1)


def folder_name(scale: float) -> str:
    """Return the name of a scale's cache: `s0.28`."""
    return f"s{scale:g}"


def save(grasps: Tensor, folder: pathlib.Path, card: dict[str, object]) -> None:
    """Publish a cache (n, 23), complete or absent.

    Raises:
        FileExistsError: the folder is there already.
    """
    with storage.publish(folder, {}) as stage:
        content = {"grasps": grasps.cpu().float().contiguous()}
        (stage / _FILE).write_bytes(save_tensors(content))
        (stage / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def load_one(folder: pathlib.Path) -> Tensor:
    """Return a verified cache, (n, 23).

    Raises:
        ValueError: it is missing or damaged, or holds something else.
    """
    if not folder.is_dir():
        there = sorted(f.name for f in folder.parent.glob("s*")) if folder.parent.is_dir() else []
        raise ValueError(
            f"there is no cache of grasps {folder} (there: {', '.join(there) or 'none'}); make it "
            f"with scripts/gen_grasp.sh GPU {folder.name.removeprefix('s')}"
        )
    _, contents = storage.read_verified(folder, limit=storage.MAX_WEIGHTS)
    found = read_tensors(contents.get(_FILE, b""), folder / _FILE).get("grasps")
    if found is None or found.dim() != 2 or found.shape[1] != SIZE or not len(found):
        raise ValueError(f"{folder}: a cache holds `grasps` (n, {SIZE})")
    if not torch.isfinite(found).all():
        raise ValueError(
            f"{folder}: row {int((~torch.isfinite(found)).any(1).nonzero()[0])} is not finite"
        )
    return found


def load(folder: str, scales: Sequence[float], *, sides: int = 1) -> Tensor:
    """Return the caches of several scales, cut to the shortest, (scales, sides * n, 23).

    folder: where they are; empty for those that come with the tasks.
    sides: how often each grasp is there; all but the first time as `other_sides` turns it.

    Raises:
        ValueError: one is missing or damaged, or sides is less than 1.
    """
    if sides < 1:
        raise ValueError(f"task.sides must be at least 1, got {sides}")
    root = pathlib.Path(folder) if folder else SHIPPED
    caches = [load_one(root / folder_name(scale)) for scale in scales]
    count = min(len(cache) for cache in caches)
    rows = torch.stack([cache[:count] for cache in caches])
    rng = torch.Generator().manual_seed(0)
    return torch.cat([rows, *(other_sides(rows, rng) for _ in range(sides - 1))], dim=1)


def other_sides(rows: Tensor, rng: torch.Generator) -> Tensor:
    """Return grasps (..., 23) of the same pens rolled at random, every other with swapped ends.

    A cylinder looks and weighs the same after that, so a grasp holds it as before.
    """
    shape = rows.shape[:-1]
    half = math.pi * torch.rand(shape, generator=rng)
    swap = torch.rand(shape, generator=rng) < 0.5
    zero = torch.zeros(shape)
    roll = torch.stack((half.cos(), zero, zero, half.sin()), dim=-1)
    # rolling by `half` twice, and turning by half a turn about an axis across
    swapped = torch.stack((zero, half.cos(), half.sin(), zero), dim=-1)
    turn = torch.where(swap[..., None], swapped, roll)
    quat = rotation.multiply(rows[..., 19:].reshape(-1, 4), turn.reshape(-1, 4))
    return torch.cat((rows[..., :19], quat.reshape(*shape, 4)), dim=-1)
