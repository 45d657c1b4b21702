"""Files of PenSpin's that must be refused; see `hostile`."""

import hashlib
import zlib

import h5py
import numpy as np

from tests.support.hostile import hostile


def pack(path, demos=2, steps=20):
    """Write a good file of PenSpin's and open it to be spoilt."""
    rng = np.random.default_rng(0)
    file = h5py.File(path, "w")
    for i in range(demos):
        group = file.create_group(f"replay_demon_{i}")
        qpos, target = rng.uniform(0.3, 0.4, (2, steps, 16))
        group["qpos"], group["current_target_qpos"] = qpos, target
        group["action"] = target - qpos
    return file


@hostile(": replay_demon_1: is missing: numbers have gaps; penspin data repair")
def pack_with_a_gap(path):
    with pack(path, 3) as file:
        del file["replay_demon_1"]


@hostile(": replay_demon_1: has the number of replay_demon_01")
def pack_with_a_number_twice(path):
    with pack(path) as file:
        file.copy("replay_demon_1", "replay_demon_01")


@hostile(": replay_demon_9{30}: has the number of none")
def pack_with_a_giant_number(path):
    with pack(path) as file:
        file.move("replay_demon_1", "replay_demon_" + "9" * 30)


@hostile(": replay_demon_1/qpos: is missing")
def pack_without_positions(path):
    with pack(path) as file:
        del file["replay_demon_1/qpos"]


@hostile(": replay_demon_1/current_target_qpos or current_target: is missing")
def pack_without_targets(path):
    with pack(path) as file:
        del file["replay_demon_1/current_target_qpos"]


@hostile(": replay_demon_0/action: has 19 rows, qpos has 20")
def pack_ragged(path):
    with pack(path) as file:
        values = file["replay_demon_0/action"][:-1]
        del file["replay_demon_0/action"]
        file["replay_demon_0/action"] = values


@hostile(": replay_demon_0/qpos: is \\(T, \\(15,\\)\\) float64, not \\(T, \\(16,\\)\\) of floats")
def pack_of_fifteen_joints(path):
    with pack(path) as file:
        del file["replay_demon_0/qpos"]
        file["replay_demon_0/qpos"] = np.zeros((20, 15))


@hostile(": replay_demon_0/qpos: is \\(T, \\(16,\\)\\) int64, not")
def pack_of_whole_numbers(path):
    with pack(path) as file:
        del file["replay_demon_0/qpos"]
        file["replay_demon_0/qpos"] = np.zeros((20, 16), np.int64)


@hostile(": replay_demon_1/qpos, row 4: nan at \\(2,\\) is not finite")
def pack_with_nan(path):
    with pack(path) as file:
        file["replay_demon_1/qpos"][4, 2] = np.nan


@hostile(": replay_demon_1/current_target: is not what current_target_qpos is")
def pack_with_two_targets(path):
    with pack(path) as file:
        file["replay_demon_1/current_target"] = np.zeros((20, 16))


@hostile(": replay_demon_0/qpos: is a link elsewhere")
def pack_with_a_link(path):
    with pack(path) as file:
        del file["replay_demon_0/qpos"]
        file["replay_demon_0/qpos"] = h5py.ExternalLink("/etc/passwd", "/x")


@hostile(": replay_demon_0/depth: would unfold .* more than 250 times")
def pack_with_a_bomb(path):
    with pack(path) as file:
        data = file.create_dataset(
            "replay_demon_0/depth", (20, 2048, 2048), "u2", chunks=(1, 2048, 2048), compression=9
        )
        chunk = zlib.compress(bytes(2 * 2048**2), 9)
        for row in range(20):
            data.id.write_direct_chunk((row, 0, 0), chunk)


@hostile(": replay_demon_0/qpos: does not match its checksum")
def pack_altered(path):
    with pack(path) as file:
        data = file["replay_demon_0/qpos"]
        data.attrs.create(
            "sha256", hashlib.sha256(data[()].tobytes()).hexdigest().encode(), dtype="S64"
        )
        data[3, 3] += 1e-9


@hostile(": notes: is no trajectory; it does not belong there")
def pack_with_a_stranger(path):
    with pack(path) as file:
        file["notes"] = np.zeros(3)


@hostile(": episode_0/proprio_hist: has 10 frames, a window has 30")
def baked_of_short_windows(path):
    with h5py.File(path, "w") as file:
        file["episode_0/proprio_hist"] = np.zeros((10, 32))
