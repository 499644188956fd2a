"""Bytes <-> control messages: a u32 little-endian length, then a msgpack array.

The array is [number, request_id, field, ...]. `Decoder` takes bytes as they come and never holds
more than one message and what one `feed` brought; anything odd is a ProtocolError, after which the
decoder must be thrown away with its connection. No sockets here.
"""

from __future__ import annotations

import struct
from typing import Any, Final, cast

import msgpack

from dlock import _core
from dlock.control.fields import U32_MAX, ProtocolError
from dlock.control.messages import (
    BY_MESSAGE,
    BY_NUMBER,
    STATS_ITEMS_MAX,
    Message,
)
from dlock.control.messages_durable import PIECE_BYTES
from dlock.control.messages_operate import BROKEN_MAX

MESSAGE_BYTES_MAX: Final = _core.DLK_CONTROL_MESSAGE_BYTES_MAX
ARRAY_ITEMS_MAX: Final = 4096  # the longest array is that of the tokens that were broken
TEXT_BYTES_MAX: Final = 512
BINARY_BYTES_MAX: Final = 49152  # the longest is a piece of a record
_LENGTH: Final = struct.Struct("<I")

assert ARRAY_ITEMS_MAX >= BROKEN_MAX
assert BINARY_BYTES_MAX >= PIECE_BYTES


def encode(request_id: int, message: Message) -> bytes:
    """One message as it travels. ProtocolError: a field is out of range, or it gets too long."""
    declaration = BY_MESSAGE[type(message)]
    wire = [declaration.number, request_id, *declaration.record.dump(message)]
    try:
        body = cast(bytes, msgpack.packb(wire, use_bin_type=True))
    except (ValueError, OverflowError, TypeError) as problem:
        raise ProtocolError(f"{type(message).__name__} cannot be encoded: {problem}") from None
    if len(body) > MESSAGE_BYTES_MAX:
        raise ProtocolError(
            f"{type(message).__name__} of {len(body)} bytes, at most {MESSAGE_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes | memoryview) -> tuple[int, Message]:
    """(request_id, message) of what followed a length."""
    wire = _unpack(body)
    if not isinstance(wire, list) or len(wire) < 2:
        raise ProtocolError("a message is no array of at least two")
    number, request_id = wire[0], wire[1]
    if type(number) is not int or number not in BY_NUMBER:
        raise ProtocolError(f"unknown message type {str(number)[:40]}")
    if type(request_id) is not int or not 0 <= request_id <= U32_MAX:
        raise ProtocolError("the request id is no u32")
    return request_id, cast(Message, BY_NUMBER[number].record.load(wire[2:]))


def _unpack(body: bytes | memoryview) -> Any:
    try:
        return msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_str_len=TEXT_BYTES_MAX,
            max_bin_len=BINARY_BYTES_MAX,
            max_array_len=ARRAY_ITEMS_MAX,
            max_map_len=STATS_ITEMS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError,
            msgpack.UnpackException) as problem:
        raise ProtocolError(f"no msgpack: {str(problem)[:80]}") from None


class Decoder:
    """Feed bytes, then take messages until None comes."""

    __slots__ = ("_buffer", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Adds what a socket brought. The caller takes every message before it feeds again."""
        if self._start:
            del self._buffer[:self._start]
            self._start = 0
        self._buffer += data

    def take(self) -> tuple[int, Message] | None:
        """The next (request_id, message), or None: more bytes are needed."""
        if len(self._buffer) - self._start < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        if not 0 < length <= MESSAGE_BYTES_MAX:
            raise ProtocolError(f"a message of {length} bytes, 1..{MESSAGE_BYTES_MAX} are allowed")
        start = self._start + _LENGTH.size
        if len(self._buffer) < start + length:
            return None
        with memoryview(self._buffer) as whole, whole[start:start + length] as body:
            result = decode(body)
        self._start = start + length
        return result

    @property
    def pending_bytes(self) -> int:
        """What has been fed and not taken."""
        return len(self._buffer) - self._start
