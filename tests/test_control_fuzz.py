"""Bytes that no client sends: random, mutated, truncated. The codec says ProtocolError or gives a
message that encodes to something that decodes to the same; nothing else, and no more memory."""

from __future__ import annotations

import struct
import tracemalloc

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st
from test_messages import SAMPLES

from dlock.control.codec import MESSAGE_BYTES_MAX, Decoder, decode, encode
from dlock.control.messages import ProtocolError

ENCODED = [encode(number, one)[4:] for number, one in enumerate(SAMPLES)]
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**64 - 1) | st.floats() | st.binary()
    | st.text() | st.sampled_from([b"x" * 512, b"x" * 513, 2**31, 2**32, 31, 32, -1]),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=40)


def check(body: bytes) -> None:
    reason = "none"
    try:
        request_id, message = decode(body)
    except ProtocolError as problem:
        reason = str(problem)
    assert 0 < len(reason) < 400, "the log is not flooded by what came"
    if reason == "none":
        assert decode(encode(request_id, message)[4:]) == (request_id, message)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes(body: bytes) -> None:
    check(body)


@settings(max_examples=400, deadline=None)
@given(st.integers(-1, 141), ANY_VALUE, st.lists(ANY_VALUE, max_size=12))
def test_well_formed_but_meant_badly(number: int, request_id: object, fields: list[object]) -> None:
    check(msgpack.packb([number, request_id, *fields], use_bin_type=True))  # type: ignore[arg-type]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(ENCODED), st.lists(
    st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated(body: bytes, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(body)
    for at, value in changes:
        mutated[at % len(mutated)] = value
    check(bytes(mutated))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ENCODED), st.integers(0, 20_000), st.binary(max_size=5))
def test_cut_and_continued(body: bytes, length: int, tail: bytes) -> None:
    check(body[:length % (len(body) + 1)] + tail)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_a_stream_of_rubbish(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        decoder.feed(piece)
        try:
            while decoder.take() is not None:
                pass
        except ProtocolError:
            return
        assert decoder.pending_bytes < 4 + MESSAGE_BYTES_MAX + len(piece)


def test_a_message_that_never_ends_costs_no_more_than_one() -> None:
    decoder = Decoder()
    header = struct.pack("<I", MESSAGE_BYTES_MAX)
    tracemalloc.start()
    decoder.feed(header)
    for _ in range(MESSAGE_BYTES_MAX // 1024 - 1):
        decoder.feed(b"\x00" * 1024)
        assert decoder.take() is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MESSAGE_BYTES_MAX


BOMBS = [
    b"\xdd\xff\xff\xff\xff",  # an array of 2**32-1 ...
    b"\xdf\xff\xff\xff\xff",  # a map
    b"\xc6\xff\xff\xff\xff",  # bytes
    b"\xdb\xff\xff\xff\xff",  # text
    b"\xc9\xff\xff\xff\xff\x01",  # an extension
    b"\x91" * MESSAGE_BYTES_MAX,
    b"\xdc\x00\x40" * (MESSAGE_BYTES_MAX // 3),
    b"\x81\xa1a" * (MESSAGE_BYTES_MAX // 3),
]


def test_bombs_stay_small() -> None:
    for bomb in BOMBS:
        tracemalloc.start()
        check(bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * MESSAGE_BYTES_MAX, bomb[:8]
