"""Conversations with servers that speak another protocol than dlock's, for the load generator of
native/bench_wire.c: what is asked, what the answer must have in it, and which piece of an answer
goes into a later request.

A hole in a request is where such a piece is put: `hole(0, 32)` stands for the 32 bytes that an
earlier answer left in place 0.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import native
from dlock._core import ffi, lib

KEPT_MAX: Final[int] = lib.DLK_BENCH_KEPT_MAX
# No text and no HTTP has a run of these bytes: they never stand in UTF-8.
_HOLES: Final = [bytes([0xF8 + kept]) for kept in range(KEPT_MAX)]
_HOLE_BYTES_MIN: Final = 8
PATIENCE_MS: Final = 60_000  # beyond the time of a measurement, until something has been answered
FRAMINGS: Final = {
    "lines": lib.DLK_BENCH_LINES, "http": lib.DLK_BENCH_HTTP, "http2": lib.DLK_BENCH_HTTP2}


def hole(kept: int, count: int) -> bytes:
    """So many bytes of what is kept there."""
    if count < _HOLE_BYTES_MIN:
        raise ValueError(f"a hole has at least {_HOLE_BYTES_MIN} bytes")
    return _HOLES[kept] * count


@dataclass(frozen=True)
class Piece:
    """What comes behind `marker` in an answer, and where it is kept."""

    marker: bytes
    count: int
    kept: int = 0


@dataclass(frozen=True)
class Ask:
    """One request and what a good answer has in it."""

    request: bytes
    expect: bytes
    piece: Piece | None = None


@dataclass(frozen=True)
class Conversation:
    """What one connection says: the opening, which nobody answers; every request once; then those
    from `repeat_from` on, again and again."""

    asks: Sequence[Ask]
    repeat_from: int = 0
    opening: bytes = b""

    @property
    def text(self) -> bytes:
        """All of it."""
        return self.opening + b"".join(one.request for one in self.asks)


def _holes(request: bytes) -> list[dict[str, int]]:
    found = []
    for kept, byte in enumerate(_HOLES):
        for match in re.finditer(re.escape(byte) + b"{%d,}" % _HOLE_BYTES_MIN, request):
            found.append({"offset": match.start(), "bytes": len(match[0]), "kept": kept})
    return found


def _asks(shape: Conversation, keep: list[Any]) -> list[dict[str, Any]]:
    """What C wants to know of each request; `keep`: what has to live as long."""
    described = []
    begin = len(shape.opening)
    for ask in shape.asks:
        piece = ask.piece or Piece(b"", 0)
        expect, marker = (ffi.from_buffer("unsigned char[]", text)
                          for text in (ask.expect, piece.marker))
        keep += [expect, marker]
        patches = _holes(ask.request)
        described.append({
            "begin": begin, "length": len(ask.request), "expect": expect, "marker": marker,
            "expect_bytes": len(ask.expect), "marker_bytes": len(piece.marker),
            "piece_bytes": piece.count, "kept": piece.kept, "patches": len(patches),
            "patch": patches})
        begin += len(ask.request)
    return described


def talk(sockets: Sequence[socket.socket], framing: str,
         conversation: Callable[[int], Conversation], seconds: float, *, wait: str = "block",
         rounds_min: int = 0, strict: bool = True) -> native.Result:
    """Each connection says its conversation, one request under way, until the time is over and each
    has done `rounds_min` rounds. Conversations differ in their bytes only. `strict`: a wrong answer
    is an error; otherwise it is counted. Samples are from a request to its answer."""
    shape = conversation(0)
    texts = [conversation(number).text for number in range(len(sockets))]
    if {len(one) for one in texts} != {len(shape.text)}:
        raise ValueError("the conversations differ in their lengths")
    keep: list[Any] = []
    counts = ffi.new("uint64_t[]", len(sockets))
    samples = ffi.new("uint32_t[]", native.SAMPLES_MAX)
    asks = ffi.new("struct dlk_bench_ask[]", _asks(shape, keep))
    fds = ffi.new("int32_t[]", [one.fileno() for one in sockets])
    text = ffi.new("unsigned char[]", b"".join(texts))
    config = ffi.new("struct dlk_bench_wire *", {
        "framing": FRAMINGS[framing], "wait_mode": native.WAIT_MODES[wait],
        "connections": len(sockets), "asks": len(shape.asks), "repeat_from": shape.repeat_from,
        "bytes_each": len(shape.text), "opening_bytes": len(shape.opening),
        "duration_ms": round(seconds * 1000), "rounds_min": rounds_min,
        "patience_ms": PATIENCE_MS,
        "samples_room": native.SAMPLES_MAX, "fds": fds, "ask": asks, "bytes": text,
        "counts": counts, "samples_ns": samples})
    out = ffi.new("struct dlk_bench_result *")
    result = native.checked(lib.dlk_bench_wire(config, out), out, strict=strict)
    result.counts = list(counts)
    result.samples_ns = native.samples_of(out, samples)
    return result


# ---- Requests ------------------------------------------------------------------------------------


def http(method: str, target: str | bytes, body: bytes = b"", *headers: bytes) -> bytes:
    """A request of HTTP/1.1 as a plain client sends it."""
    head = [method.encode() + b" " + (target.encode() if isinstance(target, str) else target)
            + b" HTTP/1.1", b"Host: 127.0.0.1", b"Accept: */*", *headers]
    if body:
        head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4
# As little as a client may say; and that it never runs out of room.
HTTP2_OPENING: Final = b"".join((
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    struct.pack(">BHBBI", 0, 0, _SETTINGS, 0, 0),
    struct.pack(">BHBBII", 0, 4, _WINDOW_UPDATE, 0, 0, 0x7FFF0000)))


def _frame(kind: int, flags: int, payload: bytes, stream: int = 0) -> bytes:
    high, low = divmod(len(payload), 1 << 16)
    return struct.pack(">BHBBI", high, low, kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value


def _unary(header_block: bytes, message: bytes, stream: int = 0) -> bytes:
    return (_frame(_HEADERS, _END_HEADERS, header_block, stream)
            + _frame(_DATA, _END_STREAM, struct.pack(">BI", 0, len(message)) + message, stream))


def grpc_call(stream: int, service: bytes, method: bytes, message: bytes) -> bytes:
    """One call, its headers in full and in no table."""
    block = b"\x83\x86" + b"".join((
        b"\x04" + _text(b"/" + service + b"/" + method), b"\x01" + _text(b"127.0.0.1"),
        b"\x00" + _text(b"content-type") + _text(b"application/grpc"),
        b"\x00" + _text(b"te") + _text(b"trailers")))
    return _unary(block, message, stream)


def http2_acknowledged(kind: int, flags: int, payload: bytes) -> bytes:
    """What a frame of the connection itself is answered with, if with anything."""
    asks = kind in (_SETTINGS, _PING) and not flags & _ACK
    return _frame(kind, _ACK, payload if kind == _PING else b"") if asks else b""


def grpc_pair(service: bytes, first: tuple[bytes, Ask], second: tuple[bytes, Ask]) -> Conversation:
    """Two methods with their messages, again and again, as gRPC's own clients say them: headers in
    full at first, then by their number in the table of the connection (RFC 7541)."""
    common = b"".join((
        b"\x41" + _text(b"127.0.0.1"),                      # :authority
        b"\x5f" + _text(b"application/grpc"),               # content-type
        b"\x7a" + _text(b"grpc-c/42.0 (linux)"),            # user-agent
        b"\x40" + _text(b"te") + _text(b"trailers"),
        b"\x40" + _text(b"grpc-accept-encoding") + _text(b"identity, deflate, gzip")))
    post_http = b"\x83\x86"
    (name_a, ask_a), (name_b, ask_b) = first, second
    path = [b"\x44" + _text(b"/" + service + b"/" + name) for name in (name_a, name_b)]
    # Of the table, the newest first: path b, five common ones, path a.
    known = bytes([0x80 | 62 + 1 + place for place in (4, 3, 2, 1, 0)])
    blocks = [post_http + path[0] + common, post_http + path[1] + known,
              post_http + bytes([0x80 | 62 + 6]) + known, post_http + bytes([0x80 | 62]) + known]
    asks = [Ask(_unary(block, ask.request), ask.expect, ask.piece)
            for block, ask in zip(blocks, (ask_a, ask_b, ask_a, ask_b), strict=True)]
    return Conversation(asks, repeat_from=2, opening=HTTP2_OPENING)

