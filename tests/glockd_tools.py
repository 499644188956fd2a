"""What the tests of the glockd door share: a door with all its listeners, and plain sockets that
talk to it like its clients do."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from door_tools import Door, Place, beside, free_port
from failover_tools import Primary, until

LIMIT_S = 20.0


class Wire:
    """One connection, TCP or unix. What is sent and what comes are bytes."""

    def __init__(self, made: socket.socket) -> None:
        self.socket = made
        self._come = bytearray()  # and not read yet
        self._mine = b""  # how the answer to `me` begins
        made.settimeout(LIMIT_S)

    @property
    def called(self) -> bytes:
        """Its address, as the door shows it."""
        host, port = self.socket.getsockname()[:2]
        return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()

    def send(self, data: bytes) -> None:
        """As it stands."""
        self.socket.sendall(data)

    def read(self, count: int) -> bytes:
        """So many bytes; fewer: it was closed."""
        while len(self._come) < count and self._more():
            pass
        return self._cut(count)

    def line(self) -> bytes:
        """One line, with its end."""
        looked = 0
        while (end := self._come.find(b"\n", looked)) < 0:
            looked = len(self._come)
            if not self._more():
                end = looked
                break
        return self._cut(end + 1)

    def _more(self) -> bool:
        piece = self.socket.recv(1 << 18)
        self._come += piece
        return bool(piece)

    def _cut(self, count: int) -> bytes:
        got = bytes(self._come[:count])
        del self._come[:count]
        return got

    def ask(self, command: bytes) -> bytes:
        """The one line that answers a command."""
        self.send(command + b"\n")
        return self.line()

    def all(self, command: bytes) -> bytes:
        """Everything that answers a command: up to the answer to a `me` behind it."""
        if not self._mine:
            self._mine = b" ".join([*self.ask(b"me").split(b" ")[:2], b""])
        self.send(command + b"\nme\n")
        got = b""
        while not (line := self.line()).startswith(self._mine):
            assert line, "the door closed the connection"
            got += line
        return got

    def statistics(self) -> dict[str, int]:
        """What q says."""
        rows = [row.split(b": ") for row in self.all(b"q").splitlines()]
        return {key.decode(): int(value) for key, value in rows}

    def rest(self) -> bytes:
        """Everything until the door closes the connection."""
        with contextlib.suppress(ConnectionResetError):
            while self._more():
                pass
        return self._cut(len(self._come))

    def close(self) -> None:
        self.socket.close()


class Glockd:
    """A door with its three listeners, and the connections that a test has made to it."""

    def __init__(self, place: Place, *words: str, **options: Any) -> None:
        self.place = place
        self.port, self.ws_port = free_port(), free_port()
        self.path = str(place.folder / f"socket{len(place.doors)}")
        self.pidfile = str(place.folder / f"pid{len(place.doors)}")
        self.door: Door = place.door(
            "glockd", "-host", "127.0.0.1", "-port", str(self.port), "-ws", str(self.ws_port),
            "-unix", self.path,
            "-pidfile", self.pidfile, *words, **options)
        self._wires: list[Wire] = []

    def tcp(self, host: str = "127.0.0.1") -> Wire:
        """A client over TCP."""
        return self._noted(socket.create_connection((host, self.port), LIMIT_S))

    def unix(self) -> Wire:
        """A client over the unix socket."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.connect(self.path)
        return self._noted(made)

    def _noted(self, made: socket.socket) -> Wire:
        self._wires.append(Wire(made))
        return self._wires[-1]

    def close(self) -> None:
        """All connections of the test; those of the door are seen to be gone."""
        for wire in self._wires:
            wire.close()
        self._wires.clear()


@contextlib.contextmanager
def stopped(primary: Primary) -> Iterator[None]:
    """All threads of the primary stand still."""
    primary.stop()
    _, status = os.waitpid(primary.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    try:
        yield
    finally:
        primary.go_on()


@contextlib.contextmanager
def glockd(folder: Path, *words: str, ttl_s: float = 10.0) -> Iterator[Glockd]:
    """A primary and a glockd door."""
    with beside(folder, ttl_s=ttl_s) as place:
        made = Glockd(place, *words)
        try:
            yield made
        finally:
            made.close()


def leave_alone(door: Glockd) -> None:
    """Ends what a test has left at a door that others use after it: connections, and so locks."""
    door.close()
    watch = door.tcp()
    until(lambda: watch.statistics()["connections"] == 1)
    assert watch.all(b"d") + watch.all(b"sd") == b""
    watch.close()
