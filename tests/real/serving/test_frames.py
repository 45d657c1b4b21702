"""Frames are counted by their headers, wherever the packets are cut."""

import random

import pytest

from real.serving.frames import FrameCount
from tests.support.serving import UPGRADE, masked

ACCEPT = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def fed(data, sizes=(10**9,), max_frame=2**20, clock=lambda: 0.0):
    """A count that has had these bytes in packets of these sizes, and how many it let through."""
    count, at, fine = FrameCount(max_frame), 0, 0
    for n in range(len(data)):
        size = sizes[n % len(sizes)]
        packet = data[at : at + size]
        if not packet:
            break
        fine += count.feed(packet, clock())
        at += size
    return count, fine


STREAM = (
    masked(bytes(300))
    + masked(b"", opcode=9)
    + masked(bytes(70_000), fin=False)
    + masked(bytes(5), opcode=10)
    + masked(bytes(20), opcode=0)
)


@pytest.mark.parametrize("opening", [UPGRADE, ACCEPT])
@pytest.mark.parametrize("sizes", [(1,), (2, 3), (7,), (4096,), (10**9,)])
def test_whole_messages_are_held_until_they_are_taken_however_packets_are_cut(opening, sizes):
    count, fine = fed(opening + STREAM, sizes)
    assert fine == len(opening + STREAM)
    assert (count.held, count.since, count.fault, count.over) == (70_320, None, "", False)
    count.taken()
    assert count.held == 70_020
    count.taken()
    count.taken()
    assert count.held == 0


def test_what_is_not_whole_is_dated_by_its_first_byte():
    count, clock = FrameCount(2**20), iter(range(100))
    count.feed(UPGRADE, next(clock))
    assert count.since is None
    for byte in masked(bytes(9), fin=False)[:-1]:
        count.feed(bytes([byte]), next(clock))
    assert (count.since, count.held) == (1, 8)
    for frame in (b"\0", masked(b"", opcode=9), masked(b"x", opcode=0, fin=False)):
        count.feed(frame, next(clock))
        assert count.since == 1
    count.feed(masked(b"x", opcode=0), next(clock))
    assert (count.since, count.held) == (None, 11)
    at = next(clock)
    count.feed(masked(b"ping", opcode=9)[:3], at)
    assert count.since == at


TOO_MUCH = [
    (masked(b"", opcode=9), 64, "more than 64 pings or pongs at once"),
    (masked(b"", opcode=10), 64, "more than 64 pings or pongs at once"),
    (masked(b"x"), 64, "more than 64 messages that nobody has taken yet"),
    (masked(b"", opcode=0, fin=False), 64, "a message has more than 64 fragments"),
    (masked(bytes(512), opcode=0, fin=False), 128, "a message has more than 64 fragments"),
]


@pytest.mark.parametrize(("frame", "legal", "fault"), TOO_MUCH)
@pytest.mark.parametrize("sizes", [(1000,), (10**9,)])
def test_frames_beyond_what_is_legal_are_not_let_through(frame, legal, fault, sizes):
    count, fine = fed(UPGRADE + frame * 2000, sizes)
    assert count.fault.startswith(fault)
    assert fine == len(UPGRADE) + (legal + 1) * len(frame)
    assert count.feed(frame, 0.0) == 0


def test_pings_that_take_their_time_are_legal():
    count = FrameCount(2**10)
    count.feed(UPGRADE, 0.0)
    for n in range(1000):
        count.feed(masked(b"x", opcode=9), n / 9.0)
    assert count.fault == ""


def test_fragments_of_a_kib_are_legal_without_end_and_so_are_messages_that_are_taken():
    count = FrameCount(2**30)
    count.feed(UPGRADE + masked(b"", fin=False), 0.0)
    for _ in range(5000):
        count.feed(masked(bytes(1024), opcode=0, fin=False), 0.0)
    count.feed(masked(b"", opcode=0), 0.0)
    for _ in range(500):
        count.taken()
        count.feed(masked(b"x"), 0.0)
    assert (count.fault, count.held) == ("", 1)


def test_of_a_frame_that_is_too_large_only_the_header_is_let_through():
    header = masked(bytes(2**16))[:14]
    for sizes in ((1,), (10**9,)):
        count, fine = fed(UPGRADE + header + bytes(1000), sizes, max_frame=2**16 - 1)
        assert (count.over, fine, count.held) == (True, len(UPGRADE + header), 0)


def test_an_opening_has_an_end_and_the_text_of_a_refusal_is_no_frame():
    count, _ = fed(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 20_000, (1000,))
    assert count.fault == "the opening handshake has more than 16384 bytes"
    refusal = b"HTTP/1.1 401 Unauthorized\r\n\r\n" + b"\x89\x00" * 500
    count, fine = fed(refusal, (3,))
    assert (count.fault, fine) == ("", len(refusal))


def test_any_bytes_are_counted_without_an_exception():
    rng = random.Random(0)
    for _ in range(300):
        data = UPGRADE + rng.randbytes(rng.randrange(2000))
        count, fine = fed(data, (rng.randrange(1, 50),))
        assert 0 <= fine <= len(data) and count.held >= 0
