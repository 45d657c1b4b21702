"""Where objects stand, as files: what a camera and a detector deliver.

A folder of poses:

    camera.json   {"format": 1, "position": [3] m, "quaternion": [w, x, y, z]}
    poses.json    {"format": 1, "frame": "base" or "camera",
                   "poses": [{"object": name, "position": [3] m, "quaternion": [w, x, y, z]}, ...]}

`camera.json` is the camera's optical frame (x right, y down, z forward) in the robot's base frame
(x forward, y left, z up; the table's top is z = 0), as a hand-eye calibration gives it; it is
needed only if the poses are in the camera's frame. A pose is of an object's origin, its centre of
mass, with the axes of its meshes.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from penspin_style import storage

FORMAT = 1
POSES, CAMERA = "poses.json", "camera.json"
FRAMES = ("base", "camera")
_MAX = 2**20  # bytes
_FAR = 10.0  # m: nothing that the arm is to see is further away


class PosesError(ValueError):
    """A file of poses cannot be used."""


@dataclass(frozen=True)
class Pose:
    """A frame in another one."""

    position: tuple[float, float, float]
    """m"""
    quaternion: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """w, x, y, z, of length 1"""

    def then(self, inner: "Pose") -> "Pose":
        """Return a pose in this frame as one in the frame that this one is in."""
        offset, quat = np.zeros(3), np.zeros(4)
        mujoco.mju_rotVecQuat(offset, np.array(inner.position), np.array(self.quaternion))
        mujoco.mju_mulQuat(quat, np.array(self.quaternion), np.array(inner.quaternion))
        x, y, z = (np.array(self.position) + offset).tolist()
        w, i, j, k = quat.tolist()
        return Pose((x, y, z), (w, i, j, k))


def read_poses(path: pathlib.Path | str) -> dict[str, Pose]:
    """Return the objects' poses in the robot's base frame, by name.

    path: a folder of poses, or its `poses.json` alone if that is in the base frame.

    Raises:
        PosesError: names file, key and what would be legal.
    """
    given = pathlib.Path(path)
    file = given / POSES if given.is_dir() else given
    facts = _read(file, {"format", "frame", "poses"})
    if facts["frame"] not in FRAMES:
        raise PosesError(f"{file}: frame must be base or camera, not {facts['frame']!r}")
    if not isinstance(facts["poses"], list) or not facts["poses"]:
        raise PosesError(f"{file}: poses must be a list of at least one pose")
    found: dict[str, Pose] = {}
    for index, entry in enumerate(facts["poses"]):
        where = f"{file}: poses[{index}]"
        if not isinstance(entry, dict) or set(entry) != {"object", "position", "quaternion"}:
            raise PosesError(f"{where} must have the keys object, position and quaternion")
        name = entry["object"]
        if not isinstance(name, str) or not name:
            raise PosesError(f"{where}.object must be an object's name, not {name!r}")
        if name in found:
            raise PosesError(f"{where}: {name} has a pose already; an object stands in one place")
        found[name] = _pose(where, entry)
    if facts["frame"] == "base":
        return found
    camera = read_camera(file.parent)
    return {name: camera.then(pose) for name, pose in found.items()}


def read_camera(folder: pathlib.Path | str) -> Pose:
    """Return the pose of a folder's camera in the robot's base frame.

    Raises:
        PosesError: names file, key and what would be legal.
    """
    file = pathlib.Path(folder) / CAMERA
    return _pose(str(file), _read(file, {"format", "position", "quaternion"}))


def poses_text(poses: Mapping[str, Pose]) -> str:
    """Return the text of a `poses.json` in the base frame."""
    rows = [
        {"object": name, "position": list(pose.position), "quaternion": list(pose.quaternion)}
        for name, pose in poses.items()
    ]
    return json.dumps({"format": FORMAT, "frame": "base", "poses": rows}, indent=1) + "\n"


def _read(file: pathlib.Path, keys: set[str]) -> dict[str, Any]:
    try:
        facts = storage.parse_json(storage.read_file(file, _MAX))
    except FileNotFoundError:
        raise PosesError(f"{file}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise PosesError(f"{file}: {error}") from error
    if not isinstance(facts, dict) or set(facts) != keys:
        raise PosesError(f"{file} must hold a JSON object with the keys {', '.join(sorted(keys))}")
    if facts["format"] != FORMAT or isinstance(facts["format"], bool):
        raise PosesError(f"{file}: format {facts['format']!r} is not {FORMAT}")
    return facts


def _pose(where: str, entry: Mapping[str, Any]) -> Pose:
    x, y, z = _numbers(f"{where}: position", entry["position"], 3)
    w, i, j, k = _numbers(f"{where}: quaternion", entry["quaternion"], 4)
    if max(abs(x), abs(y), abs(z)) > _FAR:
        raise PosesError(
            f"{where}: position {entry['position']} is more than {_FAR:g} m away; is it in metres?"
        )
    norm = math.hypot(w, i, j, k)
    if abs(norm - 1.0) > 0.01:
        raise PosesError(f"{where}: quaternion must have length 1, w first; it has {norm:.4g}")
    return Pose((x, y, z), (w / norm, i / norm, j / norm, k / norm))


def _numbers(where: str, values: Any, count: int) -> list[float]:
    legal = isinstance(values, list) and len(values) == count
    if not legal or not all(_is_number(value) for value in values):
        raise PosesError(f"{where} must be a list of {count} finite numbers, not {values!r}")
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    """Return whether a JSON value, never NaN, is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
