"""What the tests of the DoubleDutch door share: a door, and what its clients say and hear."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from door_tools import Door, Place, beside, free_port

KEY = "secret"
WAIT_S = 60.0


class Heard(NamedTuple):
    """An answer. `said`: its JSON, or None."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


def ask(door: Door, method: str, target: str) -> Heard:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*door.address, timeout=WAIT_S)
    with contextlib.closing(connection):
        connection.request(method, target)
        answer = connection.getresponse()
        return Heard(answer.status, dict(answer.getheaders()), answer.read())


def get_lock(door: Door, name: str, **words: object) -> str | None:
    """The token; None: not acquired."""
    query = urlencode({"lockname": name, "auth": KEY, **words})
    said = ask(door, "GET", f"/getlock?{query}").said
    assert said["lockname"] == name
    assert said["lockacquired"] is (said["sessiontoken"] != "")
    return said["sessiontoken"] or None


def release_lock(door: Door, name: str, token: str) -> bool:
    query = urlencode({"lockname": name, "token": token})
    heard = ask(door, "DELETE", f"/releaselock?{query}")
    assert heard.status == (200 if heard.said["lockreleased"] else 400)
    return bool(heard.said["lockreleased"])


def shown(door: Door) -> list[dict[str, Any]]:
    """The locks as /status has them."""
    heard = ask(door, "GET", f"/status?auth={KEY}")
    assert heard.said["status"] == "ok"
    return list(heard.said["locks"])


def doubledutch(place: Place, *words: str, **options: str) -> Door:
    """A door over plain HTTP."""
    return place.door("doubledutch", str(free_port()), "h", "0", "a", KEY, "--host", "127.0.0.1",
                      *words, **options)


@contextlib.contextmanager
def one_door(folder: Path, *words: str, ttl_s: float = 10.0) -> Iterator[tuple[Place, Door]]:
    """A primary and a door over plain HTTP."""
    with beside(folder, ttl_s=ttl_s) as place:
        yield place, doubledutch(place, *words)


def self_signed(folder: Path) -> tuple[str, str]:
    """Paths of a certificate for localhost, and of its key."""
    certificate, key = str(folder / "certificate.crt"), str(folder / "privateKey.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out",
         certificate, "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )
    return certificate, key


class Wire:
    """A client with one connection and no library, since thirty of them share an interpreter."""

    def __init__(self, door: Door) -> None:
        self._socket = socket.create_connection(door.address, WAIT_S)
        self._unread = b""
        host, port = self._socket.getsockname()[:2]
        self.address = f"{host}:{port}"

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, name: str, timeout: float = 0, lifetime: float = 30) -> str | None:
        said = self._ask("GET", f"/getlock?lockname={name.replace(' ', '+')}&auth={KEY}"
                                f"&timeout={timeout}&lifetime={lifetime}")
        return said["sessiontoken"] or None

    def release(self, name: str, token: str) -> bool:
        said = self._ask("DELETE", f"/releaselock?lockname={name.replace(' ', '+')}&token={token}")
        return bool(said["lockreleased"])

    def status(self) -> list[dict[str, Any]]:
        return list(self._ask("GET", f"/status?auth={KEY}")["locks"])

    def _ask(self, method: str, target: str) -> Any:
        self._socket.sendall(f"{method} {target} HTTP/1.1\r\n\r\n".encode())
        while b"\r\n\r\n" not in self._unread:
            self._read()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        found = re.search(rb"Content-Length: (\d+)", head)
        assert found is not None
        length = int(found[1])
        while len(self._unread) < length:
            self._read()
        body, self._unread = self._unread[:length], self._unread[length:]
        return json.loads(body)

    def _read(self) -> None:
        piece = self._socket.recv(65536)
        assert piece, "the door has closed the connection"
        self._unread += piece
