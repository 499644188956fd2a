"""What there is once a process: the clients that are open, and the one that is shared for each
address. Sees to it that they leave when the interpreter ends, and that a forked child begins with
none.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dlock.client import Client

EXIT_S: Final = 1.0  # how long all clients together wait for their servers at exit


class Place:
    """Where the shared client of one address is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.client: Client | None = None


class _Process:
    def __init__(self) -> None:
        self.registered = False
        self.clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self.places: dict[str, Place] = {}
        # Of the parent, in a forked child: kept, so that nothing of them is torn down here.
        self.inherited: list[object] = []


_process: Final = _Process()


def _register() -> None:
    if not _process.registered:
        _process.registered = True
        atexit.register(_leave_all)
        os.register_at_fork(after_in_child=_after_fork_in_child)


def remember(client: Client) -> None:
    """It leaves at exit, if it is not closed before."""
    _register()
    _process.clients.add(client)


@contextlib.contextmanager
def place(address: str) -> Iterator[Place]:
    """The place of the client for this address, held while it is being filled."""
    _register()
    one = _process.places.setdefault(address, Place())
    with one.lock:
        yield one


def _leave_all() -> None:
    deadline = time.monotonic() + EXIT_S
    for client in list(_process.clients):
        client._leave(max(deadline - time.monotonic(), 0.05))


def _after_fork_in_child() -> None:
    _process.inherited += [_process.clients, _process.places]
    _process.clients = weakref.WeakSet()
    _process.places = {}
