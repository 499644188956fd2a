"""Bytes that no client sends, at the LDLM door's end of an HTTP/2 connection; and the same clients
with the short way through HTTP/2 and without it, who must not see a difference."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

pytest.importorskip("h2", reason="the extra doors is not installed")
pytest.importorskip("google.protobuf", reason="the extra doors is not installed")

from http2_peer import EMPTY_SETTINGS, PREFACE, Pair, Seen, echo, frame, framed, headers
from hypothesis import given, settings
from hypothesis import strategies as st

from dlock.doors.ldlm.http2 import Broken, Call, Http2

KINDS = st.integers(0, 11)
FLAGS = st.sampled_from([0, 1, 4, 5, 8, 9, 0x0C, 0x20, 0x25, 0xFF])
STREAMS = st.sampled_from([0, 1, 2, 3, 5, 7, 1001, 0x7FFFFFFF, 0xFFFFFFFF])
# A request whose header block leaves no trace in the table: the lane takes the next one.
BLOCK = b"".join(
    b"\x10" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
    for name, value in headers("Lock"))
SMALL = framed(b"\x0a\x01x")
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([
        BLOCK, SMALL, b"", bytes(4), bytes(5), bytes(8), b"\0\0\0\x08", b"\x82", b"\x20",
        b"\x3f\xe1\x1f", b"\x7f\xff\xff\xff", b"\0\1\0\0\0\0", b"\0\4\0\0\0\0",
        b"\0\4\x7f\xff\xff\xff", b"\0\5\0\0\x40\0", b"\0\0\0\0\x10" + BLOCK]))
FRAMES = st.lists(st.tuples(KINDS, FLAGS, STREAMS, CONTENTS), max_size=30)


def drive(server: Http2, pieces: list[bytes]) -> None:
    """Whatever comes, calls are answered, and nothing but Broken is raised."""
    for piece in pieces:
        try:
            happened = server.receive(piece)
        except Broken:
            assert server.ended
            assert server.take_output()
            return
        for one in happened:
            if isinstance(one, Call) and one.stream % 4 == 1:
                server.answer(one.stream, echo(one))
        server.take_output()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=5))
def test_random_bytes(pieces: list[bytes]) -> None:
    drive(Http2(), pieces)
    drive(Http2(), [PREFACE + EMPTY_SETTINGS, *pieces])


@settings(max_examples=500, deadline=None)
@given(FRAMES, st.booleans())
def test_random_frames(frames: list[tuple[int, int, int, bytes]], warm: bool) -> None:
    server = Http2()
    hello = PREFACE + EMPTY_SETTINGS
    if warm:
        hello += frame(1, 4, 1, BLOCK) + frame(0, 1, 1, SMALL)
    drive(server, [hello, *(frame(*one) for one in frames)])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)),
                                        min_size=1, max_size=4))
def test_a_conversation_with_a_few_bytes_changed(cut: int, changes: list[tuple[int, int]]) -> None:
    whole = bytearray(PREFACE + EMPTY_SETTINGS)
    for stream in (1, 3, 5, 7):
        whole += frame(1, 4, stream, BLOCK) + frame(0, 1, stream, SMALL)
    for at, value in changes:
        whole[at % len(whole)] = value
    cut %= len(whole)
    drive(Http2(), [bytes(whole[:cut]), bytes(whole[cut:])])


def test_a_peer_that_only_makes_trouble_costs_no_memory() -> None:
    server = Http2()
    server.receive(PREFACE + EMPTY_SETTINGS)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for stream in range(1, 20_001, 2):
            server.receive(frame(1, 4, stream, BLOCK) + frame(0, 1, stream, SMALL)
                           + frame(3, 0, stream, b"\0\0\0\x08"))
            server.take_output()
        assert tracemalloc.get_traced_memory()[0] - before < 2 * 1024 * 1024
    finally:
        tracemalloc.stop()


# ---- With the lane and without -------------------------------------------------------------------

METHODS = st.sampled_from(["Lock", "TryLock", "Unlock", "Renew", "Foo"])
STEPS = st.one_of(
    st.tuples(st.just("ask"), METHODS, st.sampled_from([0, 1, 30, 8000, 9000, 20_000]),
              st.booleans()),
    st.tuples(st.just("named"), METHODS, st.integers(0, 4), st.integers(0, 60)),
    st.tuples(st.just("cancel"), st.integers(0, 40)),
    st.tuples(st.just("answer"), st.integers(0, 40)),
    st.tuples(st.just("ping")),
    st.tuples(st.just("set"), st.sampled_from([1, 4]), st.sampled_from([0, 100, 4096, 70_000])),
    st.tuples(st.just("goaway")),
)


def play(steps: list[Any], fast: bool, chunk_bytes: int) -> tuple[dict[int, Seen], int]:
    """What a client saw that did this, on each stream; and how often it was answered a ping."""
    pair = Pair(fast, chunk_bytes=chunk_bytes,
                answers=lambda call: None if call.message.startswith(b"w") else echo(call))
    streams: list[int] = []
    cancelled: set[int] = set()
    for step in steps:
        match step:
            case ("ask", method, size, waits):
                message = (b"w" if waits else b"x") * size
                if size + 5 > min(pair.client.outbound_flow_control_window, 16_384):
                    continue
                streams.append(pair.begin(message, method))
            case ("named", method, number, length):
                streams.append(pair.begin(b"x", method, (f"x-{number}", "v" * length)))
            case ("cancel", which) if which < len(streams) and streams[which] not in cancelled:
                stream = streams[which]
                cancelled.add(stream)
                if not pair.seen.get(stream, Seen()).ended:
                    pair.client.reset_stream(stream, 8)
            case ("answer", which) if which < len(streams):
                pair.server.answer(streams[which], b"late")
            case ("ping",):
                pair.client.ping(b"12345678")
            case ("set", setting, value):
                pair.client.update_settings({setting: value})
            case ("goaway",):
                pair.server.receive(frame(7, 0, 0, bytes(8)))
        pair.exchange()
    pair.client.increment_flow_control_window(1_000_000)
    pair.client.update_settings({4: 1_000_000})  # type: ignore[dict-item]
    pair.exchange()
    del pair.seen[0]
    return {stream: seen for stream, seen in pair.seen.items() if stream not in cancelled}, \
        pair.pongs


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=40), st.sampled_from([1, 7, 100, 1 << 30]))
def test_a_client_cannot_tell_the_lane_from_h2(steps: list[Any], chunk_bytes: int) -> None:
    assert play(steps, True, chunk_bytes) == play(steps, False, chunk_bytes)
