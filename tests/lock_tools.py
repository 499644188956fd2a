"""What the tests of lock objects share: a server, its own view of a lock, and clients."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

from dlock.admin import Admin, LockDetails
from dlock.client import Client, connect
from dlock.server import Server, ServerConfig

_numbers = itertools.count(1)


def fresh_name() -> str:
    """A name that no other test uses."""
    return f"lock {next(_numbers)}"


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for what must come true; how soon is not asserted."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)


class Service:
    """A server in this process, and clients of it that end with it."""

    def __init__(self, server: Server, stack: contextlib.ExitStack) -> None:
        self.server = server
        self.stack = stack
        self.address = f"{server.host}:{server.port}"
        self.admin = stack.enter_context(Admin(self.address))

    def client(self) -> Client:
        return self.stack.enter_context(connect(self.address, wait="block"))

    def view(self, name: str | bytes) -> LockDetails | None:
        return self.admin.show(name)

    def holders(self, name: str | bytes) -> int:
        view = self.view(name)
        return len(view.holders) if view is not None else 0

    def waiters(self, name: str | bytes) -> int:
        view = self.view(name)
        return len(view.waiters) if view is not None else 0

    def tokens(self, name: str | bytes) -> set[int]:
        view = self.view(name)
        return {one.token for one in view.holders} if view is not None else set()


@contextlib.contextmanager
def serving(**settings: object) -> Iterator[Service]:
    """A server for the time of a block."""
    settings.setdefault("wait_mode", "block")
    server = Server(ServerConfig(host="127.0.0.1", port=0, **settings))  # type: ignore[arg-type]
    try:
        with contextlib.ExitStack() as stack:
            yield Service(server, stack)
    finally:
        server.stop()
