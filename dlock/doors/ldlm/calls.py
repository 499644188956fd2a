"""gRPC's rules for a unary call: what the headers of a request mean, how a message is framed, what
a status looks like. Pure, and knows nothing of frames and streams (dlock/doors/ldlm/http2.py), nor
of locks. The texts are those of grpc-go, which LDLM's own server is made with.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from hpack import Encoder, NeverIndexedHeaderTuple

from dlock.doors.ldlm.wire import SERVICE

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
TEXT_MAX: Final = 1000  # of a refusal: its headers fit into one frame
PREFIX_BYTES: Final = 5  # compressed or not, and the length
METHODS: Final = frozenset(("Lock", "TryLock", "Unlock", "Renew"))

UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16

Header = tuple[bytes, bytes]

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}


class Refusal(NamedTuple):
    """A call that ends without an answer of LDLM's: a status, and its text."""

    status: int
    text: str
    http: int = 200


class Route(NamedTuple):
    """What the headers of a request ask for. `refusal`: it is refused, whatever its message says;
    `encoding`: how a compressed message is compressed."""

    method: str
    refusal: Refusal | None = None
    authorization: bytes | None = None
    timeout_s: float | None = None
    encoding: bytes = b""


def route(headers: Iterable[Header]) -> Route:
    """What a request asks for; a header that came twice counts as it came first."""
    said: dict[bytes, bytes] = {}
    for name, value in headers:
        said.setdefault(bytes(name), bytes(value))
    path = said.get(b":path", b"").decode("utf-8", "replace")
    timeout = said.get(b"grpc-timeout")
    timeout_s = None if timeout is None else timeout_of(timeout)
    kind = said.get(b"content-type", b"")
    if said.get(b":method") != b"POST":
        method = said.get(b":method", b"").decode("utf-8", "replace")
        return Route("", Refusal(INTERNAL, f"Received a HEADERS frame with :method {quoted(method)}"
                                           " which should be POST", 405))
    if kind != b"application/grpc" and not kind.startswith((b"application/grpc+",
                                                            b"application/grpc;")):
        shown = quoted(kind.decode("utf-8", "replace"))
        return Route("", Refusal(INTERNAL, f"invalid gRPC request content-type {shown}", 415))
    if timeout is not None and timeout_s is None:
        shown = quoted(timeout.decode("utf-8", "replace"))
        return Route("", Refusal(INTERNAL, f"malformed grpc-timeout: {shown}", 400))
    service, slash, method = path.removeprefix("/").rpartition("/")
    if not slash:
        return Route("", Refusal(UNIMPLEMENTED, f"malformed method name: {quoted(path)}"))
    if service != SERVICE:
        return Route("", Refusal(UNIMPLEMENTED, f"unknown service {service}"))
    if method not in METHODS:
        return Route("", Refusal(UNIMPLEMENTED, f"unknown method {method} for service {SERVICE}"))
    return Route(method, None, said.get(b"authorization"), timeout_s,
                 said.get(b"grpc-encoding", b""))


def timeout_of(value: bytes) -> float | None:
    """grpc-timeout in seconds; None: it is none."""
    found = _TIMEOUT.fullmatch(value)
    return int(found[1]) * _SECONDS[found[2]] if found else None


def quoted(text: str) -> str:
    """As Go's %q, for what can be in a header."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---- Messages ------------------------------------------------------------------------------------


def oversized(length: int) -> Refusal | None:
    """Is a message of this length taken?"""
    if length <= MESSAGE_BYTES_MAX:
        return None
    return Refusal(RESOURCE_EXHAUSTED, "grpc: received message larger than max "
                                       f"({length} vs. {MESSAGE_BYTES_MAX})")


def unpacked(body: bytes | bytearray, encoding: bytes) -> bytes | Refusal:
    """The one message in the body of a request."""
    length = int.from_bytes(body[1:PREFIX_BYTES], "big")
    if len(body) < PREFIX_BYTES or len(body) < PREFIX_BYTES + length:
        return Refusal(INTERNAL, "unexpected EOF" if body else "EOF")
    if body[0] == 1:
        if encoding in (b"", b"identity"):
            return Refusal(INTERNAL, "grpc: compressed flag set with identity or empty encoding")
        name = quoted(encoding.decode("utf-8", "replace"))
        return Refusal(
            UNIMPLEMENTED, f"grpc: Decompressor is not installed for grpc-encoding {name}")
    if body[0] != 0:
        return Refusal(INTERNAL, f"grpc: received unexpected payload format {body[0]}")
    if len(body) > PREFIX_BYTES + length:
        return Refusal(INTERNAL, "grpc: a unary call has one message")
    return bytes(body[PREFIX_BYTES:])


def undecodable(text: str) -> Refusal:
    """The message is not of its type."""
    return Refusal(INTERNAL, f"grpc: error unmarshalling request: {text}")


def credentials(found: bytes | None, password: bytes | None) -> Refusal | None:
    """Is this the password?"""
    if password is None or found == password:
        return None
    if found is None:
        return Refusal(UNAUTHENTICATED, "missing credentials")
    return Refusal(UNAUTHENTICATED, "invalid credentials")


# ---- Headers of answers --------------------------------------------------------------------------
# Of a kind that no table remembers (RFC 7541, 6.2.3): a block is the same bytes at any moment, on
# any connection, whatever was sent before it.


def _fields(*headers: Header) -> tuple[NeverIndexedHeaderTuple, ...]:
    return tuple(NeverIndexedHeaderTuple(*header) for header in headers)


_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
ANSWER_FIELDS: Final = _fields((b":status", b"200"), _CONTENT_TYPE)
ANSWER_TRAILER_FIELDS: Final = _fields((b"grpc-status", b"0"))


def refusal_fields(refusal: Refusal) -> tuple[NeverIndexedHeaderTuple, ...]:
    """Headers and status at once, since there is no message: "trailers only"."""
    return _fields((b":status", b"%d" % refusal.http), _CONTENT_TYPE,
                   (b"grpc-status", b"%d" % refusal.status),
                   (b"grpc-message", percent_encoded(refusal.text[:TEXT_MAX])))


def _block(fields: tuple[NeverIndexedHeaderTuple, ...]) -> bytes:
    encoded: bytes = Encoder().encode(fields)
    return encoded


ANSWER_HEADERS: Final = _block(ANSWER_FIELDS)
ANSWER_TRAILERS: Final = _block(ANSWER_TRAILER_FIELDS)


@functools.lru_cache(maxsize=256)
def refusal_block(refusal: Refusal) -> bytes:
    """The same as a header block."""
    return _block(refusal_fields(refusal))


def percent_encoded(text: str) -> bytes:
    """grpc-message: what is not printable ASCII as %XX of its UTF-8."""
    return b"".join(bytes((one,)) if one in _PLAIN else b"%%%02X" % one
                    for one in text.encode("utf-8", "replace"))
