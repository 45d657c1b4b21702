"""Files that must be refused: what is done to a good one, and what is said about it."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tempfile
import zlib

import h5py
import numpy as np

from penspin_style.data.episode import Episode, write_episode
from penspin_style.data.layout import seal, sha256
from penspin_style.features import PolicyCard
from tests.data.recording import CARD, columns, header

STEPS = 70
FILES = {}
"""Name -> (what it does to a path, what is said of it)."""


def hostile(said):
    def note(make):
        FILES[make.__name__] = (make, said)
        return make

    return note


@functools.cache
def whole():
    with tempfile.TemporaryDirectory() as folder:
        path = write_episode(pathlib.Path(folder), header(), columns(STEPS), True)
        return path.read_bytes()


def good(path):
    """Write a good episode under a name."""
    path.write_bytes(whole())


def edited(path):
    """Write a good episode and open it to be spoilt."""
    good(path)
    return h5py.File(path, "r+")


def reseal(file):
    """Make every checksum right again, as an attacker would."""
    sums = {}
    for channel in header().columns:
        data = file[channel.name]
        names = tuple(json.loads(data.attrs["names"]))
        shape, dtype = data.shape[1:], data.dtype.name
        digest = hashlib.sha256(data[()].tobytes()).hexdigest()
        data.attrs.create("sha256", digest.encode(), dtype="S64")
        sums[dataclasses.replace(channel, shape=shape, dtype=dtype, names=names)] = digest
    card = file["card"][()].decode()
    file.attrs.create("card_sha256", sha256(card).encode(), dtype="S64")
    attributes = {
        name: value.decode() if isinstance(value, bytes) else value.item()
        for name, value in file.attrs.items()
        if name != "sha256"
    }
    file.attrs.create("sha256", seal(attributes, card, sums).encode(), dtype="S64")


def values(path, key, row, value):
    """Write an episode with one value out of order that no recorder would take, all sums right."""
    with edited(path) as file:
        data = file[key]
        data[(row, *(0 for _ in data.shape[1:]))] = value
        reseal(file)


def attribute(path, name, value, **how):
    with edited(path) as file:
        del file.attrs[name]
        file.attrs.create(name, value, **how)


def replaced(path, key, **how):
    """Put another dataset in the place of one, with the attributes of the one before."""
    with edited(path) as file:
        attributes = dict(file[key].attrs)
        del file[key]
        data = file.create_dataset(key, **how)
        for name, value in attributes.items():
            data.attrs.create(name, value, dtype=f"S{max(1, len(value))}")


# No HDF5.


@hostile(": is not an HDF5 file")
def empty(path):
    path.write_bytes(b"")


@hostile(": is not an HDF5 file")
def web_page(path):
    path.write_text("<html>404 not found</html>" * 100)


@hostile(": is not an HDF5 file")
def another_kind(path):
    path.write_bytes(b"\x93NUMPY\x01\x00" + bytes(1000))


@hostile(": is damaged or unreadable: ")
def signature_and_zeros(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(10_000))


@hostile(": is damaged or unreadable: ")
def signature_and_noise(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + np.random.default_rng(0).bytes(10_000))


@hostile(": is damaged or unreadable: .*truncated file")
def cut_in_half(path):
    good(path)
    os.truncate(path, path.stat().st_size // 2)


@hostile(": is damaged or unreadable: ")
def cut_after_the_superblock(path):
    good(path)
    os.truncate(path, 60)


@hostile(": is not a file")
def a_pipe(path):
    os.mkfifo(path)


@hostile(": is neither an episode nor a file of PenSpin; it holds \\['stranger'\\]")
def of_a_stranger(path):
    with h5py.File(path, "w") as file:
        file["stranger"] = np.zeros(3)


# Links and values elsewhere.


@hostile(": sent: is a link elsewhere; links are never followed")
def external_link(path):
    with edited(path) as file:
        del file["sent"]
        file["sent"] = h5py.ExternalLink("/etc/passwd", "/sent")


@hostile(": observation/on: is a link elsewhere")
def external_link_to_a_pipe(path):
    os.mkfifo(path.with_suffix(".pipe"))
    with edited(path) as file:
        del file["observation/on"]
        file["observation/on"] = h5py.ExternalLink(str(path.with_suffix(".pipe")), "/on")


@hostile(": sent: is a link elsewhere")
def soft_link(path):
    with edited(path) as file:
        del file["sent"]
        file["sent"] = h5py.SoftLink("/target")


@hostile(": measure: is a link elsewhere")
def loop_of_soft_links(path):
    with edited(path) as file:
        del file["observation"]
        file["observation"] = h5py.SoftLink("/measure")
        del file["measure"]
        file["measure"] = h5py.SoftLink("/observation")


@hostile(": observation/again: is not a dataset")
def group_in_itself(path):
    with edited(path) as file:
        file["observation/again"] = file["observation"]


@hostile(": observation/card: its type ")
def root_in_itself(path):
    with edited(path) as file:
        del file["observation"]
        file["observation"] = file["/"]


@hostile(": sent: keeps its values in other files; none is opened")
def values_in_another_file(path):
    outside = [("/etc/passwd", 0, STEPS * 16)]
    replaced(path, "sent", shape=(STEPS, 2), dtype="f8", external=outside)


@hostile(": sent: keeps its values in other files")
def virtual_dataset(path):
    layout = h5py.VirtualLayout((STEPS, 2), "f8", maxshape=(None, 2))
    source = h5py.VirtualSource("/dev/null", "x", (STEPS, 2), maxshape=(None, 2))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    with edited(path) as file:
        del file["sent"]
        file.create_virtual_dataset("sent", layout)


@hostile(": holds something whose name is no text")
def name_that_is_no_text(path):
    with edited(path) as file:
        file.id.links.create_hard(b"\xff\xfe", file.id, b"sent")


# Types.


@hostile(": sent: its type object is not one of")
def texts_on_the_heap(path):
    replaced(path, "sent", data=np.full((STEPS, 2), "x", object), dtype=h5py.string_dtype())


@hostile(": sent: its type object is not one of")
def lists_on_the_heap(path):
    replaced(path, "sent", shape=(STEPS, 2), dtype=h5py.vlen_dtype(np.float64))


@hostile(": sent: its type object is not one of")
def references(path):
    replaced(path, "sent", shape=(STEPS, 2), dtype=h5py.ref_dtype)


@hostile(": sent: its type \\[\\('a', '<f8'\\).* is not one of")
def compound(path):
    replaced(path, "sent", shape=(STEPS, 2), dtype=[("a", "f8"), ("b", "f8")])


@hostile(": sent: its type float16 is not one of")
def half_precision(path):
    replaced(path, "sent", data=np.zeros((STEPS, 2), np.float16))


@hostile(": sent: its type >f8 is not one of")
def other_endian(path):
    replaced(path, "sent", data=np.zeros((STEPS, 2), ">f8"))


@hostile(": sent: its type \\|S8 is not one of")
def texts(path):
    replaced(path, "sent", data=np.full((STEPS, 2), b"12345678"))


@hostile(": sent: its type bool is not one of")
def switches(path):
    replaced(path, "sent", data=np.zeros((STEPS, 2), bool))


@hostile(
    ": 'sent' must be float64, is float32|: its header cannot be meant.*'sent' must be float64"
)
def sent_in_single_precision(path):
    single = np.zeros((STEPS, 2), np.float32)
    replaced(path, "sent", data=single, chunks=(64, 2), maxshape=(None, 2))
    with h5py.File(path, "r+") as file:
        reseal(file)


# Claims.


@hostile(": time: claims 1000000000 rows, not 1 to")
def a_billion_rows(path):
    replaced(path, "time", shape=(10**9,), dtype="f8", chunks=(64,), maxshape=(None,))


@hostile(": claims 1000000000 steps, not 1 to 1000000")
def a_billion_steps(path):
    attribute(path, "steps", 10**9)


@hostile(": claims 0 steps")
def no_steps(path):
    attribute(path, "steps", 0)


@hostile(": claims -1 steps")
def steps_below_zero(path):
    attribute(path, "steps", -1)


@hostile(": sent: claims rows of 8000000000 bytes")
def a_billion_columns(path):
    replaced(path, "sent", shape=(STEPS, 10**9), dtype="f8")


@hostile(": sent: claims .* bytes that the file does not have: values are missing")
def values_never_written(path):
    replaced(path, "sent", shape=(STEPS, 100_000), dtype="f8")


@hostile(": sent: has 0 of the 2 chunks that \\(70, 2\\) needs: values are missing")
def chunks_never_written(path):
    replaced(path, "sent", shape=(STEPS, 2), dtype="f8", chunks=(64, 2), maxshape=(None, 2))


@hostile(": sent: has chunks of 4000000000 bytes")
def huge_chunk(path):
    how = {"chunks": (250_000_000, 2), "maxshape": (None, 2)}
    replaced(path, "sent", shape=(STEPS, 2), dtype="f8", **how)


@hostile(": observation/eye_rgb: would unfold .* more than 250 times")
def bomb_of_zeros(path):
    with edited(path) as file:
        chunk = zlib.compress(bytes(16 * 2**20), 9)  # 16 kB
        data = bare(file, "observation/eye_rgb", (STEPS, 4096, 4096))
        for row in range(STEPS):
            data.id.write_direct_chunk((row, 0, 0), chunk)


@hostile(": observation/eye_rgb, row 3: unfolds to more than 192 bytes")
def bomb_in_one_chunk(path):
    with edited(path) as file:
        file["observation/eye_rgb"].id.write_direct_chunk(
            (3, 0, 0, 0), zlib.compress(bytes(10**5), 9)
        )


@hostile(": observation/eye_rgb, row 3: takes 60000 bytes for 192")
def chunk_that_takes_far_too_much(path):
    with edited(path) as file:
        file["observation/eye_rgb"].id.write_direct_chunk((3, 0, 0, 0), bytes(60_000))


@hostile(": observation/eye_rgb, row 3: skips a filter")
def chunk_without_its_filters(path):
    with edited(path) as file:
        file["observation/eye_rgb"].id.write_direct_chunk((3, 0, 0, 0), bytes(192), 3)


def bare(file, key, shape):
    """Put an empty, deflated dataset of pictures in the place of one."""
    attributes = dict(file[key].attrs)
    del file[key]
    data = file.create_dataset(
        key, shape, "u1", chunks=(1, *shape[1:]), maxshape=(None, *shape[1:]), compression="gzip"
    )
    for name, value in attributes.items():
        data.attrs.create(name, value, dtype=f"S{max(1, len(value))}")
    return data


@hostile(": observation: holds 3004 things, over 256")
def thousands_of_columns(path):
    with edited(path) as file:
        for i in range(3000):
            file["observation"].create_group(f"x{i}")


@hostile(": has 14 attributes, an episode 11")
def attributes_of_its_own(path):
    with edited(path) as file:
        for i in range(3):
            file.attrs[f"x{i}"] = i


@hostile(": attribute facts is longer than 32768 bytes")
def long_facts(path):
    attribute(path, "facts", b" " * 50_000 + b"{}", dtype="S50002")


@hostile(": attribute task is longer than 256 bytes")
def array_of_texts(path):
    attribute(path, "task", np.full(100, b"cart"), dtype="S4")


@hostile(": attribute task is not a text of fixed length")
def text_on_the_heap(path):
    attribute(path, "task", "cart")


@hostile(": attribute control_dt is not one number")
def step_on_the_heap(path):
    attribute(path, "control_dt", "0.05")


@hostile(": attribute steps is float64")
def steps_with_a_fraction(path):
    attribute(path, "steps", 70.5)


@hostile(": card: is longer than 1048576 bytes")
def giant_card(path):
    with edited(path) as file:
        del file["card"]
        file.create_dataset("card", (), "S1000000000")


# Keys, shapes, filters.


@hostile(": sent: is missing")
def missing_column(path):
    with edited(path) as file:
        del file["sent"]


@hostile(": is no episode: attributes \\['control_dt'\\] are missing")
def missing_attribute(path):
    with edited(path) as file:
        del file.attrs["control_dt"]


@hostile(": sent: is no episode: attributes \\['unit'\\] are missing")
def missing_unit(path):
    with edited(path) as file:
        del file["sent"].attrs["unit"]


@hostile(": qpos: is unknown; legal are time, action")
def unknown_column(path):
    with edited(path) as file:
        file["qpos"] = np.zeros((STEPS, 2))


@hostile(": observation: is not a group")
def column_for_a_group(path):
    with edited(path) as file:
        del file["observation"]
        file["observation"] = np.zeros(3)


@hostile(": sent: is not a dataset")
def group_for_a_column(path):
    with edited(path) as file:
        del file["sent"]
        file.create_group("sent")


@hostile(": sent: has 69 rows, the header says 70")
def ragged(path):
    with edited(path) as file:
        file["sent"].resize(69, axis=0)


@hostile(": sent: has 64 rows, the header says 70")
def ragged_by_a_block(path):
    with edited(path) as file:
        file["sent"].resize(64, axis=0)


@hostile(r": its header cannot be meant: .* must be \(naction,\) alike")
def three_joints_of_two(path):
    wide = np.zeros((STEPS, 3))
    replaced(path, "sent", data=wide, chunks=(64, 3), maxshape=(None, 3))
    with h5py.File(path, "r+") as file:
        file["sent"].attrs.create("names", b"[]", dtype="S2")
        reseal(file)


@hostile(": sent: is not a table with rows")
def number_for_a_column(path):
    replaced(path, "sent", data=1.0)


@hostile(": sent: goes through the filters \\[32015\\]")
def filter_of_a_user(path):
    with edited(path) as file:
        attributes = dict(file["sent"].attrs)
        del file["sent"]
        data = file.create_dataset(
            "sent",
            (STEPS, 2),
            "f8",
            chunks=(64, 2),
            maxshape=(None, 2),
            compression=32015,
            allow_unknown_filter=True,
        )
        for name, value in attributes.items():
            data.attrs.create(name, value, dtype=f"S{max(1, len(value))}")
        for row in (0, 64):
            data.id.write_direct_chunk((row, 0), b"compressed")


@hostile(": sent: goes through the filters \\[32000\\]")
def filter_lzf(path):
    how = {"chunks": (64, 2), "maxshape": (None, 2), "compression": "lzf"}
    replaced(path, "sent", data=np.zeros((STEPS, 2)), **how)


@hostile(": sent: goes through the filters \\('deflate',\\), not \\(\\)")
def filter_where_none_belongs(path):
    how = {"chunks": (64, 2), "maxshape": (None, 2), "compression": "gzip"}
    replaced(path, "sent", data=np.random.default_rng(0).normal(size=(STEPS, 2)), **how)


@hostile(": sent: has chunks of \\(7, 2\\), not \\(64, 2\\)")
def other_chunks(path):
    replaced(path, "sent", data=np.zeros((STEPS, 2)), chunks=(7, 2), maxshape=(None, 2))


# Values.


@hostile(": sent, row 7: nan at \\(0,\\) is not finite")
def nan(path):
    values(path, "sent", 7, np.nan)


@hostile(": observation/joint_pos, row 66: -inf at \\(0,\\) is not finite")
def infinity(path):
    values(path, "observation/joint_pos", 66, -np.inf)


@hostile(": measure/turns, row 69: nan at \\(\\) is not finite")
def nan_in_the_last_row(path):
    values(path, "measure/turns", 69, np.nan)


@hostile(": sent, row 7: 2.3 at \\(0,\\) is outside -1.15 to 2.15")
def limit_of_a_target_exceeded_by_a_tenth(path):
    values(path, "sent", 7, 2.0 + 0.1 * 3.0)


@hostile(": observation/joint_pos, row 0: -1.29.* at \\(0,\\) is outside -1.15 to 2.15")
def limit_of_a_joint_exceeded_by_a_tenth(path):
    values(path, "observation/joint_pos", 0, -1.0 - 0.1 * 3.0)


@hostile(": action, row 3: 1.5 at \\(0,\\) is outside -1 to 1")
def action_beyond_one(path):
    values(path, "action", 3, 1.5)


@hostile(": time, row 5: 0.05 s does not come after 0.2 s")
def time_that_runs_backwards(path):
    values(path, "time", 5, 0.05)


@hostile(": time, row 0: -1.0 at \\(\\) is outside 0 to inf")
def time_before_the_beginning(path):
    values(path, "time", 0, -1.0)


# Checksums and header.


@hostile(": sent: does not match its checksum")
def value_altered(path):
    with edited(path) as file:
        file["sent"][3, 1] = 0.5


@hostile(": observation/eye_rgb: does not match its checksum")
def picture_altered(path):
    with edited(path) as file:
        file["observation/eye_rgb"][3, 1] = 0


@hostile(": observation/eye_rgb, row 3: is damaged: ")
def chunk_damaged(path):
    with edited(path) as file:
        file["observation/eye_rgb"].id.write_direct_chunk((3, 0, 0, 0), b"\x78\x9c\xff\xff\xff")


@hostile(": the header does not match its checksum")
def failure_made_a_success(path):
    attribute(path, "success", 0, dtype="i1")


@hostile(": the header does not match its checksum")
def unit_exchanged(path):
    with edited(path) as file:
        file["sent"].attrs.create("unit", b"deg", dtype="S3")


@hostile(": card: does not match its checksum")
def card_exchanged(path):
    with edited(path) as file:
        data = dataclasses.replace(CARD, control_dt=0.04).to_json().encode()
        del file["card"]
        file.create_dataset("card", data=data, dtype=f"S{len(data)}")


def with_card(path, text):
    with edited(path) as file:
        del file["card"]
        data = text.encode()
        file.create_dataset("card", data=data, dtype=f"S{len(data)}")
        reseal(file)


@hostile(": its header cannot be meant: policy card is not JSON")
def card_that_is_none(path):
    with_card(path, "{")


@hostile(": its header cannot be meant: ")
def card_of_a_thousand_lists(path):
    with_card(path, "[" * 100_000)


@hostile(": card: cannot be meant: ")
def card_with_texts_for_limits(path):
    raw = json.loads(CARD.to_json())
    raw["actions"][0]["low"] = "left"
    with_card(path, json.dumps(raw))


@hostile(": its header cannot be meant: ")
def facts_of_a_thousand_lists(path):
    attribute(path, "facts", b"[" * 30_000, dtype="S30000")
    with h5py.File(path, "r+") as file:
        reseal(file)


@hostile(": its header cannot be meant: .*control_dt must be positive, is nan")
def nan_for_a_step(path):
    attribute(path, "control_dt", np.nan, dtype="f8")
    with h5py.File(path, "r+") as file:
        reseal(file)


@hostile(": has format 2, this version reads 1")
def of_tomorrow(path):
    attribute(path, "format", 2)


@hostile(": success is 7")
def success_of_seven(path):
    attribute(path, "success", 7, dtype="i1")
    with h5py.File(path, "r+") as file:
        reseal(file)


@hostile(": is the same episode as .*original.h5; remove one")
def twice_the_same(path):
    original = path.with_name("original.h5")
    good(original)
    path.write_bytes(original.read_bytes())


# PenSpin's files.


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


def is_good(path):
    """Prove that what is spoilt here was good before."""
    good(path)
    return Episode.open(path).header.card == CARD and PolicyCard.from_json(CARD.to_json()) == CARD
