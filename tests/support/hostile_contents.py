"""Episodes whose keys, shapes, filters, values or header must be refused; see `hostile`."""

import dataclasses
import json

import h5py
import numpy as np

from tests.support.hostile import STEPS, attribute, edited, good, hostile, replaced, reseal, values
from tests.support.recording import CARD

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


@hostile(r": its header is invalid: .* must be \(naction,\) alike")
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
def image_altered(path):
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


@hostile(": its header is invalid: policy card is not JSON")
def card_that_is_none(path):
    with_card(path, "{")


@hostile(": its header is invalid: ")
def card_of_a_thousand_lists(path):
    with_card(path, "[" * 100_000)


@hostile(": card: is invalid: ")
def card_with_texts_for_limits(path):
    raw = json.loads(CARD.to_json())
    raw["actions"][0]["low"] = "left"
    with_card(path, json.dumps(raw))


@hostile(": its header is invalid: ")
def facts_of_a_thousand_lists(path):
    attribute(path, "facts", b"[" * 30_000, dtype="S30000")
    with h5py.File(path, "r+") as file:
        reseal(file)


@hostile(": its header is invalid: .*control_dt must be positive, is nan")
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
