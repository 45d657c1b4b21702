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

from penspin_style.data.episodes.episode import Episode, write_episode
from penspin_style.data.episodes.layout import seal, sha256
from penspin_style.features import PolicyCard
from tests.support.recording import CARD, columns, header

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


@hostile(": 'sent' must be float64, is float32|: its header is invalid.*'sent' must be float64")
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
    """Put an empty, deflated dataset of images in the place of one."""
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


def is_good(path):
    """Prove that what is spoilt here was good before."""
    good(path)
    return Episode.open(path).header.card == CARD and PolicyCard.from_json(CARD.to_json()) == CARD
