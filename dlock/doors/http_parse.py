"""Bytes of one HTTP connection into requests, one after the other, on httptools. It waits for
nothing, opens nothing and knows no clock.

Heads are cut here, at their empty line, and given to httptools up to there and no further. So a
request never depends on how its bytes were cut into segments, nothing behind it is touched before
it has been answered, and what a connection may keep in memory has a limit. httptools alone says
what is well-formed; where this module and httptools do not agree on where a request ends, the
request is malformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

_END: Final = b"\r\n\r\n"
# httptools takes only ASCII in a target; curl sends what was typed. The text itself is kept.
_AS_ASCII: Final = bytes(range(128)) + b"x" * 128
_SIZES: Final = 8  # what a chunked body may be on the wire: so many times its limit, and a head


@dataclass(frozen=True)
class Limits:
    """What a client may ask of a server, in bytes and seconds."""

    head_bytes: int = 64 * 1024  # request line and headers
    body_bytes: int = 1024 * 1024
    ahead_bytes: int = 256 * 1024  # sent behind a request that is not answered yet; then it waits
    head_s: float = 10.0  # for a head, from its first byte on
    body_s: float = 30.0
    ahead_s: float = 10.0  # for a request behind which so much was sent
    idle_s: float = 300.0  # between two requests
    write_s: float = 30.0  # for a client that does not read its answers
    linger_s: float = 2.0  # to read a refusal before the connection is closed


class RequestError(Exception):
    """What a request is answered with instead, before its connection ends. `counter` names it to
    operators."""

    def __init__(self, status: int, counter: str) -> None:
        super().__init__(status, counter)
        self.status = status
        self.counter = counter


class Message:
    """A request as it came. `path`: without the query, not decoded; bytes that are not UTF-8 are
    kept as surrogates (`errors="surrogateescape"`). `keep_alive`: the connection may go on."""

    __slots__ = ("_headers", "_query", "_raw_query", "body", "head", "keep_alive", "method", "path",
                 "version")

    def __init__(self, head: bytes, keep_alive: bool) -> None:
        """RequestError: the first line is not a request's."""
        words = head[: head.index(b"\r\n")].split()
        if len(words) != 3:
            raise RequestError(400, "http_malformed")
        method, target, self.version = words
        if self.version != b"HTTP/1.1" and self.version != b"HTTP/1.0":
            raise RequestError(505, "http_malformed")
        self.method = method.decode("ascii", "replace")
        path, _, self._raw_query = target.decode("utf-8", "surrogateescape").partition("?")
        if not path.startswith("/"):
            path = _origin_form(path)
        self.path = path
        self.head = head
        self.keep_alive = keep_alive
        self.body = b""
        self._query: dict[str, str] | None = None
        self._headers: dict[str, str] | None = None

    @property
    def target(self) -> str:
        return f"{self.path}?{self._raw_query}" if self._raw_query else self.path

    @property
    def query(self) -> dict[str, str]:
        """Names and values, decoded; of a repeated name the first value."""
        found = self._query
        if found is None:
            found = self._query = parse_query(self._raw_query)
        return found

    @property
    def headers(self) -> dict[str, str]:
        """By name in small letters; what came several times is joined by commas."""
        found = self._headers
        if found is None:
            found = self._headers = _parse_headers(self.head)
        return found


def parse_query(text: str) -> dict[str, str]:
    """`a=1&b=x%20y+z`: %XX and + are decoded, the first of a repeated name counts, a name without
    a value has an empty one."""
    found: dict[str, str] = {}
    encoded = "%" in text or "+" in text
    for pair in text.split("&"):
        name, _, value = pair.partition("=")
        if encoded:
            name, value = _decoded(name), _decoded(value)
        if name and name not in found:
            found[name] = value
    return found


def _decoded(text: str) -> str:
    if "%" not in text and "+" not in text:
        return text
    # Whatever was there as raw bytes stays beside what was written as %XX.
    raw = text.replace("+", " ").encode("utf-8", "surrogateescape")
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


def _origin_form(target: str) -> str:
    """The path of `http://host/path`, as clients of a proxy write it."""
    scheme, found, rest = target.partition("://")
    if not found or not scheme.isalpha():
        return target
    _, slash, path = rest.partition("/")
    return slash + path or "/"


def _parse_headers(head: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


class Continue:
    """The client waits for `100 Continue` before it sends the body."""


CONTINUE: Final = Continue()
M = TypeVar("M", bound=Message)


class Reader(Generic[M]):
    """The requests of one connection, each made by `made`. `feed` bytes as they come, then call
    `next` until it has nothing. After a RequestError the connection is of no use any more."""

    __slots__ = ("_body", "_body_bytes", "_buffer", "_complete", "_fed", "_keep_alive", "_left",
                 "_limits", "_made", "_parser", "_pending", "_start")

    def __init__(self, limits: Limits, made: type[M]) -> None:
        self._limits = limits
        self._made = made
        self._buffer = b""
        self._start = 0  # where in the buffer the next request begins, or its body goes on
        self._fed = 0  # bytes from there on that are known as part of an unfinished head
        self._pending: M | None = None  # its body is not here yet
        self._left = 0  # bytes of that body; of a chunked one -1 minus those that may still come
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._complete = False
        self._keep_alive = False
        self._parser = HttpRequestParser(self)

    @property
    def ahead_bytes(self) -> int:
        """Bytes that have come and belong to no whole request yet."""
        return len(self._buffer) - self._start

    @property
    def in_body(self) -> bool:
        """A request's head has come, its body has not."""
        return self._pending is not None

    def feed(self, data: bytes) -> None:
        buffer = self._buffer
        if self._start == len(buffer):
            self._buffer = data
        else:
            self._buffer = buffer[self._start :] + data
        self._start = 0

    def next(self) -> M | Continue | None:
        """The next request, whole; CONTINUE, once a request; None: more bytes are needed.
        RequestError."""
        if self._pending is not None:
            return self._next_body()
        buffer, start = self._buffer, self._start
        if not self._fed:
            while buffer[start : start + 1] in (b"\r", b"\n"):  # empty lines before a request
                start += 1
            self._start = start
        if start == len(buffer):
            return None
        end = buffer.find(_END, max(start, start + self._fed - 3)) + 4
        if end < 4 or end - start > self._limits.head_bytes:
            self._unfinished_head()
            return None
        head = buffer[start:end]
        self._parse(head[self._fed :] if self._fed else head)
        self._start = end
        self._fed = 0
        if self._complete:
            self._complete = False
            return self._made(head, self._keep_alive)
        return self._begin_body(head)

    def _unfinished_head(self) -> None:
        """What is wrong is said at once; the rest of it may come later, up to the limit."""
        most = self._limits.head_bytes
        head = self._buffer[self._start : self._start + most]
        self._parse(head[self._fed :])
        self._fed = len(head)
        if self._fed == most:
            raise RequestError(431 if b"\r\n" in head else 414, "http_head_too_long")

    # ---- Bodies ----------------------------------------------------------------------------------

    def _begin_body(self, head: bytes) -> M | Continue | None:
        request = self._made(head, False)
        headers = request.headers
        limit = self._limits.body_bytes
        if "transfer-encoding" in headers:
            self._left = -1 - (_SIZES * limit + self._limits.head_bytes)
        else:
            length = headers.get("content-length", "")
            if not length.isdecimal() or int(length) == 0:
                raise RequestError(400, "http_malformed")
            if len(length) > 18 or int(length) > limit:
                raise RequestError(413, "http_body_too_long")
            self._left = int(length)
        expected = headers.get("expect")
        if expected is not None and expected.lower() != "100-continue":
            raise RequestError(417, "http_malformed")
        self._body = []
        self._body_bytes = 0
        self._pending = request
        if expected is not None and request.version == b"HTTP/1.1":
            return CONTINUE
        return self._next_body()

    def _next_body(self) -> M | None:
        if self._left >= 0:
            self._feed_sized()
        else:
            self._feed_chunks()
        request = self._pending
        if not self._complete or request is None:
            return None
        self._complete = False
        self._pending = None
        request.body = b"".join(self._body)
        request.keep_alive = self._keep_alive
        self._body = []
        return request

    def _feed_sized(self) -> None:
        piece = self._buffer[self._start : self._start + self._left]
        self._start += len(piece)
        self._left -= len(piece)
        self._parse(piece)
        if self._complete != (self._left == 0):
            raise RequestError(400, "http_malformed")

    def _feed_chunks(self) -> None:
        """Line by line, since a chunked body can end only with a line."""
        buffer = self._buffer
        while self._start < len(buffer) and not self._complete:
            start = self._start
            end = (buffer.find(b"\n", start) + 1) or len(buffer)
            end = min(end, start - 1 - self._left)
            self._parse_chunk(buffer[start:end])
            self._left += end - start
            self._start = end
            if self._left == -1 and not self._complete:
                raise RequestError(413, "http_body_too_long")

    def _parse_chunk(self, piece: bytes) -> None:
        try:
            self._parse(piece)
        except RequestError:
            if self._body_bytes <= self._limits.body_bytes:
                raise
        if self._body_bytes > self._limits.body_bytes:
            raise RequestError(413, "http_body_too_long")

    # ---- httptools -------------------------------------------------------------------------------

    def _parse(self, piece: bytes) -> None:
        if not piece.isascii() and self._pending is None:
            piece = piece.translate(_AS_ASCII)
        try:
            self._parser.feed_data(piece)
        except HttpParserUpgrade:
            # Whatever it wants to be instead, it is answered as it is.
            self._parser = HttpRequestParser(self)
            self._keep_alive = False
        except HttpParserError:
            raise RequestError(400, "http_malformed") from None

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        """Called by httptools."""
        self._body.append(piece)
        self._body_bytes += len(piece)
