"""Where a server is: what `dlock.connect` and `DLOCK_ADDRESS` may say.

    host:port, host, [v6]:port, ::1, dlock://host:port   a server
    /path/to/file, ./file, file:/path/to/file            an address file, its first line HOST:PORT
    a,b,c                                                several of these, tried in turn

An address file is read again at each try, so it may appear, or name another server, later on. This
file reads files and nothing else: it looks up no names and opens no connections.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from dlock import _core

ENVIRONMENT: Final = "DLOCK_ADDRESS"
PORT_DEFAULT: Final[int] = _core.DLK_CONTROL_PORT_DEFAULT
DEFAULT: Final = f"127.0.0.1:{PORT_DEFAULT}"
FILE_BYTES_MAX: Final = 4096
_SCHEME: Final = "dlock://"
_FILE: Final = "file:"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server: a host name or number, and its control port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class AddressFile:
    """A file that names a server, or will."""

    path: str

    def __str__(self) -> str:
        return f"{_FILE}{self.path}"

    def read(self) -> Endpoint:
        """What it says now. OSError: it is not there or cannot be read; ValueError: it does not
        begin with HOST:PORT."""
        with open(self.path, "rb") as file:
            head = file.read(FILE_BYTES_MAX)
        line = head.decode("utf-8", "replace").partition("\n")[0].strip()
        try:
            return _endpoint(line)
        except ValueError as problem:
            raise ValueError(f"the address file {self.path} is damaged: {problem}") from None


@dataclass(frozen=True, slots=True)
class Address:
    """One or more places of a server, in the order in which they are tried. `str` gives a text
    that `parse` turns into an equal one, in any directory."""

    places: tuple[Endpoint | AddressFile, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.places))

    def endpoints(self) -> tuple[list[Endpoint], list[str]]:
        """The servers that it means now, each once, and why others could not be had: address files
        that are not there (yet), or say nothing of use."""
        found: dict[Endpoint, None] = {}
        problems = []
        for place in self.places:
            try:
                found[place if isinstance(place, Endpoint) else place.read()] = None
            except OSError as problem:
                problems.append(f"the address file {place} cannot be read: {problem.strerror}")
            except ValueError as problem:
                problems.append(str(problem))
        return list(found), problems


def parse(text: str | os.PathLike[str] | Address | None = None) -> Address:
    """What `connect` was given; None: the environment's DLOCK_ADDRESS, else the local server.
    ValueError if it is no address."""
    if isinstance(text, Address):
        return text
    if text is None:
        text = os.environ.get(ENVIRONMENT) or DEFAULT
    elif not isinstance(text, str):
        return Address((AddressFile(os.path.abspath(os.fspath(text))),))
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"{text!r} is no address: write HOST:PORT, or the path of an address "
                         f"file, several with commas between them")
    return Address(tuple(map(_place, parts)))


def _place(text: str) -> Endpoint | AddressFile:
    if text.startswith(_SCHEME):
        return _endpoint(text.removeprefix(_SCHEME).rstrip("/"))
    if text.startswith(_FILE):
        path = text.removeprefix(_FILE)
        # file:///path is the same as file:/path
        path = path[2:] if path.startswith("//") else path
    elif "/" in text:
        path = text
    else:
        return _endpoint(text)
    if not path:
        raise ValueError(f"{text!r} names no file")
    return AddressFile(os.path.abspath(path))


def _endpoint(text: str) -> Endpoint:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        wrong = not bracket or (rest and not rest.startswith(":"))
        port_text: str | None = rest[1:] if rest else None
    elif text.count(":") > 1:  # a bare IPv6 address has no room for a port
        host, port_text, wrong = text, None, False
    else:
        host, colon, rest = text.partition(":")
        port_text, wrong = (rest if colon else None), False
    if wrong or not host or any(char.isspace() for char in text) or "/" in text:
        raise ValueError(f"{text!r} is no HOST:PORT")
    if port_text is None:
        return Endpoint(host, PORT_DEFAULT)
    if not (port_text.isascii() and port_text.isdecimal()) or not 1 <= int(port_text) <= 65535:
        raise ValueError(f"{text!r} is no HOST:PORT: the port is 1..65535")
    return Endpoint(host, int(port_text))
