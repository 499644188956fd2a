"""Durable records: bytes under a key, on the primary's disk before a call returns.

They belong to no session and no client. A space is a name for records that belong together; who
uses one is its only writer, or agrees with the others. A record is there whole or not at all, also
after the primary was killed in the middle of a call.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dlock._session import Refusal, Session, Steps
from dlock.control import messages as m
from dlock.control.messages_durable import (
    KEY_BYTES_MAX,
    PIECE_BYTES,
    SPACE_BYTES_MAX,
    VALUE_BYTES_MAX,
)
from dlock.errors import StoreError
from dlock.types import DlockStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dlock.aio._connection import Connection

WINDOW: Final = 16  # pieces without an answer
LONG_S: Final = 3e7  # a year: what loops can count


class Records:
    """The records of one space; `Client.records` makes it. Several calls may be under way: those on
    one key are carried out in the order in which they were made.

    Every call waits while the primary is away, for `timeout` seconds if that is given; then
    ConnectionLost: it is not known whether it was carried out. StoreError: it certainly was not (no
    room on the disk), but for errno.ECOMM, where that is not known or nothing durable is served.
    """

    def __init__(self, connection: Connection, space: str) -> None:
        """Use `Client.records`."""
        self._connection = connection
        self._space = space.encode()
        if not 1 <= len(self._space) <= SPACE_BYTES_MAX:
            raise ValueError(f"the name of a space has 1..{SPACE_BYTES_MAX} bytes, not "
                             f"{len(self._space)}")
        self._uploads = itertools.count()
        self._last: dict[bytes, asyncio.Future[None]] = {}

    async def put(self, key: bytes, value: bytes, *, timeout: float | None = None) -> None:
        """Writes a record, or writes it anew. ValueError: the key is longer than 1024 bytes, or the
        value than 8 MiB."""
        _check(key)
        if len(value) > VALUE_BYTES_MAX:
            raise ValueError(f"a value has at most {VALUE_BYTES_MAX} bytes, not {len(value)}")
        value = bytes(value)

        def ask(_session: Session) -> Steps[None]:
            upload, size = next(self._uploads) & 0xFFFFFFFF, len(value)
            puts = [m.RecordPut(self._space, key, upload, size, at, value[at:at + PIECE_BYTES])
                    for at in range(0, max(size, 1), PIECE_BYTES)]
            for at in range(0, len(puts), WINDOW):
                answers = yield list(puts[at:at + WINDOW])
                for answer in answers:
                    _expect(answer.error)

        async with self._turn(key):
            await self._connection.run(ask, _deadline(timeout))

    async def delete(self, key: bytes, *, timeout: float | None = None) -> None:
        """Removes a record. One that is not there is removed already."""
        _check(key)

        def ask(_session: Session) -> Steps[None]:
            (answer,) = yield [m.RecordDelete(self._space, key)]
            _expect(answer.error)

        async with self._turn(key):
            await self._connection.run(ask, _deadline(timeout))

    async def all(self, *, timeout: float | None = None) -> dict[bytes, bytes]:
        """Every record, by its key. Each is whole; records that are written meanwhile may be there
        or not."""
        deadline = _deadline(timeout)
        found: dict[bytes, bytes] = {}
        asked = m.RecordList(self._space, False, b"")
        while True:
            page = await self._connection.run(partial(_page, asked), deadline)
            for line in page.lines:
                value = line.head
                if len(value) < line.size:
                    whole = await self._rest(line, deadline)
                    if whole is None:
                        break  # It was written since: asked for again.
                    value = whole
                found[line.key] = value
            else:
                if not page.more:
                    return found
            last = max(found, default=None)
            asked = m.RecordList(self._space, last is not None, last or b"")

    async def _rest(self, line: m.RecordLine, deadline: float) -> bytes | None:
        """A long value; None: it is another one by now."""
        starts = range(len(line.head), line.size, PIECE_BYTES)

        def ask(_session: Session) -> Steps[bytes | None]:
            value = bytearray(line.head)
            for window in _windows(starts):
                answers = yield [m.RecordGet(self._space, line.key, line.version, at)
                                 for at in window]
                for answer in answers:
                    if answer.error == errno.ESTALE:
                        return None
                    _expect(answer.error)
                    value += answer.piece
            return bytes(value)

        return await self._connection.run(ask, deadline)

    @asynccontextmanager
    async def _turn(self, key: bytes) -> AsyncIterator[None]:
        """One call on a key at a time, in the order in which they came."""
        former = self._last.get(key)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last[key] = mine
        try:
            while former is not None and not former.done():
                await asyncio.shield(former)
            yield
        finally:
            if former is None or former.done():
                mine.set_result(None)
            else:
                former.add_done_callback(lambda _former: mine.set_result(None))
            if self._last.get(key) is mine:
                del self._last[key]


def _windows(starts: range) -> Iterator[range]:
    return (starts[at:at + WINDOW] for at in range(0, len(starts), WINDOW))


def _page(asked: m.RecordList, _session: Session) -> Steps[Any]:
    (lines,) = yield [asked]
    _expect(lines.error)
    return lines


def _check(key: bytes) -> None:
    if not isinstance(key, bytes):
        raise TypeError(f"a key is bytes, not {type(key).__name__}")
    if len(key) > KEY_BYTES_MAX:
        raise ValueError(f"a key has at most {KEY_BYTES_MAX} bytes, not {len(key)}")


def _deadline(timeout: float | None) -> float:
    return time.monotonic() + (LONG_S if timeout is None else min(timeout, LONG_S))


def _expect(error: int) -> None:
    if error == errno.ENOTCONN:
        raise Refusal(DlockStatus.CLIENT_NOT_INIT)
    if error:
        raise StoreError(error)
