"""A program that ends with clients still open leaves their servers all the same, so that what it
held is free at once."""

from __future__ import annotations

import atexit
import contextlib
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dlock.aio._connection import Connection

_open: Final[weakref.WeakSet[Connection]] = weakref.WeakSet()


def remember(connection: Connection) -> None:
    """It has been opened."""
    if not _open:
        atexit.unregister(_leave_all)
        atexit.register(_leave_all)
    _open.add(connection)


def forget(connection: Connection) -> None:
    """It has been closed."""
    _open.discard(connection)


def _leave_all() -> None:
    for connection in list(_open):
        with contextlib.suppress(Exception):
            connection.abandon()
