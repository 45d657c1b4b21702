"""Messages of robots and policy servers: what they are on the wire, and what is not read."""

import math
import tracemalloc

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings

from real.serving import wire
from real.serving.wire import Limits, WireError, pack, unpack

ARRAYS = [
    np.arange(6, dtype=np.uint8).reshape(3, 2),
    np.array([[-1, 2**31 - 1]], np.int32),
    np.array([-(2**63), 2**63 - 1], np.int64),
    np.array([1.5, -0.0, np.inf, np.nan], np.float32),
    np.array(2.5, np.float64),
    np.array([[[[True]], [[False]]]]),
    np.zeros((0, 3), np.float32),
]


def array(data=b"\0\0\xc0\x3f", dtype="<f4", shape=(1,), **more):
    """A message with one array, said as plain msgpack."""
    said = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    said |= {key.encode(): value for key, value in more.items()}
    return msgpack.packb({"a": {k: v for k, v in said.items() if v is not ...}})


def number(data, dtype):
    return msgpack.packb({"a": {b"__npgeneric__": True, b"data": data, b"dtype": dtype}})


# What is written and read back.


def test_an_array_is_these_bytes():
    assert pack({"a": np.array([1.5], np.float32)}) == (
        b"\x81\xa1a\x84"
        b"\xc4\x0b__ndarray__\xc3"
        b"\xc4\x04data\xc4\x04\x00\x00\xc0\x3f"
        b"\xc4\x05dtype\xa3<f4"
        b"\xc4\x05shape\x91\x01"
    )
    assert pack({"n": np.int64(5)}) == (
        b"\x81\xa1n\x83\xc4\x0d__npgeneric__\xc3\xc4\x04data\x05\xc4\x05dtype\xa3<i8"
    )


@pytest.mark.parametrize("value", ARRAYS, ids=lambda a: a.dtype.name)
def test_an_array_comes_back_as_it_was(value):
    back = unpack(pack({"a": value}))["a"]
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert back.tobytes() == value.tobytes()
    assert back.flags.writeable and back.flags.aligned and back.flags.owndata


def test_the_layout_in_memory_does_not_matter():
    value = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(unpack(pack({"a": value}))["a"], value)


@pytest.mark.parametrize(
    "value", [np.uint8(255), np.int32(-7), np.int64(2**62), np.float32(0.1), np.bool_(True)]
)
def test_a_number_of_numpy_keeps_its_type(value):
    back = unpack(pack({"a": value}))["a"]
    assert type(back) is type(value)
    assert back == value


@pytest.mark.parametrize(
    "value",
    [
        *(np.array([1j]), np.array([None]), np.array(["x"]), np.zeros(1, "V4"), np.zeros(1, ">f4")),
        *(np.zeros(1, np.float16), np.zeros(1, "M8[s]"), np.uint16(1), object(), {1, 2}, 2**70),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)
def test_what_could_not_be_read_is_not_sent(value):
    with pytest.raises(WireError, match="cannot be sent"):
        pack({"a": value})


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(-1e38, 1e38)
    | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=9), PLAIN, max_size=6), st.booleans())
def test_plain_messages_are_read_as_msgpack_reads_them(message, single):
    frame = msgpack.packb(message, use_single_float=single)
    want = msgpack.unpackb(frame)
    try:
        got = unpack(frame)
    except WireError as error:
        assert "nests deeper" in str(error)  # the only limit that such a message can reach
    else:
        assert got == want
        assert [type(v) for v in got.values()] == [type(v) for v in want.values()]


# What is not read.

DEEP = b"\x91" * 8 + b"\x01"
REFUSED = [
    (b"", "cut off"),
    (b"\x81\xa1a", "cut off"),
    (b"\x81\xa1a\xcd\x01", "cut off"),
    (b"\x80\x80", "1 bytes follow"),
    (b"\x01", "a int, not a map"),
    (b"\xa1a", "a str, not a map"),
    (b"\x91\x01", "a list, not a map"),
    (b"\xc4\x01a", "a memoryview, not a map"),
    (b"\x81\x01\x01", "a int for a key"),
    (b"\x81\x91\x01\x01", "a list for a key"),
    (b"\x81\xc0\x01", "a NoneType for a key"),
    (b"\x82\xa1a\x01\xa1a\x02", "the key 'a' twice"),
    (b"\x81\xa1a\xa1\xff", "not UTF-8"),
    (b"\x81\xa1a\xc1", "tag 0xc1"),
    (b"\x81\xa1a\xd4\x01\x00", "tag 0xd4"),  # extension
    (b"\x81\xa1a\xd6\xff\0\0\0\0", "tag 0xd6"),  # extension: a time
    (b"\x81\xa1a\xc7\x01\x05x", "tag 0xc7"),
    (b"\x81\xa1a\xc4\x01x", "'a' is raw bytes"),
    (b"\x81\xa1a\x91\xc4\x01x", "a list holds raw bytes"),
    (b"\x81\xc4\x01k\x01", "neither an array nor a number"),
    (b"\x81\xa1a" + DEEP, "nests deeper than 8"),
    (b"\x81\xa1a" + b"\x91" * 100_000, "nests deeper than 8"),
    (b"\x81\xa1a" + b"\x81\xa1b" * 100_000, "nests deeper than 8"),
    (b"\x81\xa1a\xdd\xff\xff\xff\xff", "more than 4096 values"),
    (b"\x81\xa1a\xdf\xff\xff\xff\xff", "4294967295 keys, at most 64"),
    (b"\x81\xa1a\xdb\xff\xff\xff\xff", "4294967295 bytes, at most 4096"),
    (b"\x81\xa1a\xc6\xff\xff\xff\xff", "cut off"),
    (array(dtype="|O", data=b"\0" * 8), "'|O'; legal: uint8, int32"),
    (array(dtype="<c8"), "'<c8'; legal"),
    (array(dtype="<U1"), "'<U1'; legal"),
    (array(dtype="|V4"), "'|V4'; legal"),
    (array(dtype="<f2", shape=(2,)), "'<f2'; legal"),
    (array(dtype=">f4"), "'>f4'; legal"),
    (array(dtype="f4,f4"), "'f4,f4'; legal"),
    (array(dtype=[["a", "<f4"]]), "'list'; legal"),
    (array(dtype="x" * 4000), f"'{'x' * 32}'; legal"),
    (array(shape=(2,)), r"\(2,\) takes 8 bytes, has 4"),
    (array(shape=()), None),
    (array(shape=(-1,)), "whole numbers of at least 0"),
    (array(shape=(1.0,)), "whole numbers of at least 0"),
    (array(shape=(True,)), "whole numbers of at least 0"),
    (array(shape=1), "not a list"),
    (array(shape=None), "not a list"),
    (array(shape=(1,) * 4), None),
    (array(shape=(1,) * 5), "5 axes, at most 4"),
    (array(data=b"", shape=(0, 2**40)), "more than 2\\*\\*31"),
    (array(data=b"", shape=(2**31, 0, 2**31, 2**31)), "more than 2\\*\\*31"),
    (array(data=b"", shape=(2**32, 2**32)), "more than 2\\*\\*31"),
    (array(data=[1.5]), "data is a list, not bytes"),
    (array(data="abcd"), "data is a str, not bytes"),
    (array(data=...), "neither an array"),
    (array(shape=...), "neither an array"),
    (array(strides=[0]), "neither an array"),
    (array(__npgeneric__=True), "neither an array"),
    (array(data=b"\2", dtype="|b1"), "neither 0 nor 1"),
    (array(data=b"", dtype="|b1", shape=(0,)), None),
    (number(1.5, "<i4"), "a number of int32 is a float"),
    (number(True, "<i4"), "a number of int32 is a bool"),
    (number(1, "|b1"), "a number of bool is a int"),
    (number(2**40, "<i4"), "outside int32"),
    (number(-1, "|u1"), "outside uint8"),
    (number("1", "<f4"), "a number of float32 is a str"),
    (number(1e300, "<f4"), None),  # infinite, which is the policy's to refuse
    (number(b"\0" * 8, "|O"), "'|O'; legal"),
]


@pytest.mark.parametrize(
    ("frame", "message"), REFUSED, ids=[f"{i}-{m or 'read'}" for i, (_, m) in enumerate(REFUSED)]
)
def test_only_what_is_meant_is_read(frame, message):
    if message is None:
        assert list(unpack(frame)) == ["a"]
        return
    with pytest.raises(WireError, match=message) as caught:
        unpack(frame)
    assert len(str(caught.value)) < 200


def test_every_limit_is_the_largest_that_is_read():
    nested: dict = {}
    for _ in range(7):
        nested = {"a": nested}
    fine = [
        nested,
        {str(i): i for i in range(64)},
        {"a": "x" * 4096},
        {"a": "é" * 2048},
        {"a": [0] * 4093},
        {"a": np.zeros((1, 1, 1, 1))},
    ]
    beyond = [
        ({"a": nested}, "nests deeper"),
        ({str(i): i for i in range(65)}, "65 keys"),
        ({"a": "x" * 4097}, "4097 bytes"),
        ({"a": "é" * 2049}, "4098 bytes"),
        ({"a": [0] * 4094}, "more than 4096 values"),
        ({"a": np.zeros((1, 1, 1, 1, 1))}, "5 axes"),
    ]
    for message in fine:
        assert unpack(pack(message)).keys() == message.keys()
    for message, why in beyond:
        with pytest.raises(WireError, match=why):
            unpack(pack(message))
    with pytest.raises(WireError, match="2 axes, at most 1"):
        unpack(pack({"a": np.zeros((1, 1))}), Limits(ndim=1))


def test_a_claim_costs_neither_memory_nor_time():
    frames = [frame for frame, _ in REFUSED]
    frames += [b"\x81\xa1a\xdc\x0f\x00" + b"\x90" * 2**20]  # a list of lists in 1 MB
    frames += [b"\xdf\x00\x00\x00\x40" + b"\xdd\xff\xff\xff\xff" * 64]
    tracemalloc.start()
    try:
        for frame in frames:
            try:
                unpack(frame)
            except WireError:
                continue
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


VALID = pack(
    {
        "state": np.linspace(-1, 1, 24, dtype=np.float32),
        "front_rgb": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
        "grip": np.float64(0.5),
        "prompt": "spin the pen",
        "nested": {"list": [1, -2.5, None, True]},
    }
)


@st.composite
def mutated(draw):
    frame = bytearray(VALID)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        kind = draw(st.sampled_from(["flip", "insert", "cut", "splice"]))
        if kind == "flip" and at < len(frame):
            frame[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            frame[at:at] = draw(st.binary(max_size=6))
        elif kind == "cut":
            del frame[at : at + draw(st.integers(1, 40))]
        else:
            part = VALID[draw(st.integers(0, len(VALID))) :][: draw(st.integers(1, 60))]
            frame[at:at] = part
    return bytes(frame)


@settings(max_examples=120, deadline=None)
@given(mutated() | st.binary(max_size=60))
def test_bytes_are_a_message_within_the_limits_or_a_wire_error(frame):
    try:
        message = unpack(frame)
    except WireError:
        return

    def walk(value, depth):
        assert depth <= 9
        if isinstance(value, dict):
            assert len(value) <= 64 and all(type(k) is str for k in value)
            return 1 + sum(1 + walk(v, depth + 1) for v in value.values())
        if isinstance(value, list):
            return 1 + sum(walk(v, depth + 1) for v in value)
        if isinstance(value, np.ndarray):
            assert value.dtype.str in wire.DTYPES and value.ndim <= 4
            assert value.nbytes == math.prod(value.shape) * value.itemsize <= len(frame)
        elif isinstance(value, np.generic):
            assert value.dtype.str in wire.DTYPES
        else:
            assert type(value) in (str, int, float, bool, type(None))
        return 1

    assert walk(message, 1) <= 4096
