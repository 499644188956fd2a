"""Answers of HTTP into bytes. It waits for nothing and opens nothing; the time is an argument."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple

JSON: Final = "application/json"
TEXT: Final = "text/plain"
CONTINUE_BYTES: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEADS_MAX: Final = 256  # kinds of answers that are kept ready
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


class Response(NamedTuple):
    """An answer. `headers`: besides Server, Date, Content-Type and Content-Length. `close`: the
    connection ends with it."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False


def plain(status: int, close: bool = False) -> Response:
    """`404 Not Found` as a line of text."""
    return Response(status, f"{status} {_REASONS[status]}\n".encode(), TEXT, (), close)


class Writer:
    """Makes the bytes of answers. ValueError: a header would end the line it stands in."""

    __slots__ = ("_date_s", "_heads", "_server_name")

    def __init__(self, server_name: str | None) -> None:
        self._server_name = server_name
        self._date_s = 0
        self._heads: dict[tuple[int, str, tuple[tuple[str, str], ...], str], bytes] = {}

    def encode(self, response: Response, connection: str, with_body: bool, now_s: float) -> bytes:
        """`connection`: what the header of that name says, "": nothing. Without the body (HEAD)
        the length is still told. `now_s`: seconds since 1970."""
        status, body, content_type, headers, _ = response
        if int(now_s) != self._date_s:
            self._date_s = int(now_s)
            self._heads.clear()
        key = status, content_type, headers, connection
        head = self._heads.get(key)
        if head is None:
            head = self._head(*key)
            if len(self._heads) < _HEADS_MAX:
                self._heads[key] = head
        if with_body:
            return b"%b%d\r\n\r\n%b" % (head, len(body), body)
        return b"%b%d\r\n\r\n" % (head, len(body))

    def _head(
        self, status: int, content_type: str, headers: tuple[tuple[str, str], ...], connection: str
    ) -> bytes:
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}"]
        if self._server_name is not None:
            lines.append(f"Server: {self._server_name}")
        lines.append(f"Date: {formatdate(self._date_s, usegmt=True)}")
        lines.extend(f"{name}: {value}" for name, value in headers)
        if connection:
            lines.append(f"Connection: {connection}")
        lines.append(f"Content-Type: {content_type}")
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError(f"a header of this answer holds a line break: {lines!r}")
        lines.append("Content-Length: ")
        return "\r\n".join(lines).encode("latin-1", "replace")
