"""A small client of the control plane for tests: typed requests over a real socket."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType

from dlock.control import messages as m
from dlock.control.codec import Decoder, encode
from dlock.control.link import ControlLink
from dlock.types import DlockStatus

TIMEOUT = 20.0


class Client:
    """A session. Leaving the block closes the connection, not the session."""

    def __init__(self, host: str, port: int, *, init: bool = True) -> None:
        self.address = host, port
        self.link = ControlLink.connect(host, port, TIMEOUT)
        self.welcome = self.ask(m.ClientInit(1, 1, {"program": "test"})) if init else None

    def ask(self, message: m.Request[m.Reply]) -> m.Reply:
        return self.link.request(message, TIMEOUT)

    def get(self, *names: bytes, kind: int = 0) -> tuple[m.LockResult, ...]:
        answer = self.ask(m.GetLocks(tuple(m.LockSpec(name, kind) for name in names)))
        assert answer.status is DlockStatus.SUCCESS
        return answer.results

    def stats(self) -> dict[str, int]:
        return dict(self.ask(m.Stats()).stats)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _value: BaseException | None,
                 _trace: TracebackType | None) -> None:
        self.link.close()


def raw(host: str, port: int) -> socket.socket:
    """A bare connection."""
    return socket.create_connection((host, port), TIMEOUT)


def closed_by_peer(connection: socket.socket) -> bool:
    """Reads until the end; False if that does not come in time."""
    connection.settimeout(TIMEOUT)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def answers(connection: socket.socket, count: int) -> list[tuple[int, m.Message]]:
    """The next `count` answers on a bare connection."""
    connection.settimeout(TIMEOUT)
    decoder, got = Decoder(), []
    while len(got) < count:
        data = connection.recv(65536)
        assert data, f"closed after {len(got)} of {count} answers"
        decoder.feed(data)
        while (taken := decoder.take()) is not None:
            got.append(taken)
    return got


def eventually(holds: Callable[[], bool], seconds: float = TIMEOUT) -> bool:
    """Waits until it holds; generous, since only a failure waits in full."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


__all__ = ["TIMEOUT", "Client", "answers", "closed_by_peer", "encode", "eventually", "frame", "raw"]
