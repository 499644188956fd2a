"""The end of a client: of its session, of one that was dropped, and at the end of the program. One
that ends with clients still open leaves their servers all the same, so that what it held is free at
once."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import weakref
from typing import TYPE_CHECKING, Final

from dlock import _notices
from dlock._session import Session
from dlock.aio._collect import Collector
from dlock.aio._drive import Driver
from dlock.control.messages import ClientDeinit

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


def end(session: Session, collector: Collector) -> None:
    """The session is over; every call that runs ends."""
    session.end()
    collector.stop()
    _notices.forget(session.number)


def leave(
    session: Session, collector: Collector, driver: Driver, recovering: asyncio.Task[None] | None
) -> None:
    """What is left to do when a client was dropped."""
    if recovering is not None:
        recovering.cancel()
    driver.farewell(ClientDeinit())
    end(session, collector)
