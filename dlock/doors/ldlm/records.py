"""LDLM's state file (-s): which keys are held, written down where the primary keeps what must last.

A record a key: its lock's name and size, and the fencing token of its hold. It is durable before
its key is given out, and gone before its unlock is answered. Between an unlock and the end of its
record somebody else may have got the lock, and a door that is killed then leaves both records: the
higher token is the later one, and of a lock with N places the N latest keys stand (`survivors`).

While the primary is away, what is to be written waits and is written again: both, a record put
twice and one deleted twice, are the same as once. The order of two writes of one key is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from dlock.errors import ConnectError, DlockError, OutcomeUnknown

PAUSE_S: Final = 0.05
PAUSE_S_MAX: Final = 1.0
DRAIN_S: Final = 2.0
SPACE_BYTES_MAX: Final = 64  # what the primary allows
_HEAD: Final = re.compile(rb"([1-9][0-9]{0,9}) ([1-9][0-9]{0,18})")
_log: Final = logging.getLogger("dlock.doors.ldlm")


class Records(Protocol):
    """What `client.records(space)` gives: each call is answered when it is on disk."""

    def put(self, key: bytes, value: bytes) -> Awaitable[None]: ...

    def delete(self, key: bytes) -> Awaitable[None]: ...

    def all(self) -> Awaitable[Mapping[bytes, bytes]]: ...


class Record(NamedTuple):
    """One key that was held."""

    name: str
    size: int
    key: str
    token: int


def encode(name: str, size: int, token: int) -> bytes:
    """What is written down of a key: size, token, and the name as it is, which may be long."""
    return b"%d %d\n%b" % (size, token, name.encode())


def decode(key: bytes, value: bytes) -> Record:
    """ValueError: it is no such record."""
    head, _, name = value.partition(b"\n")
    found = _HEAD.fullmatch(head)
    if found is None or not name:
        raise ValueError(f"the record of {key!r} is not one of a lock")
    return Record(name.decode(), int(found[1]), key.decode(), int(found[2]))


def survivors(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Those that stand, in the order in which they were granted, and those that do not: of each
    name the size of its latest record is right, and as many of the latest as that have a place."""
    stand: list[Record] = []
    fall: list[Record] = []
    places: dict[str, tuple[int, int]] = {}  # of a name: its size, how many are free
    for record in sorted(records, key=lambda record: record.token, reverse=True):
        size, free = places.get(record.name, (record.size, record.size))
        if record.size == size and free > 0:
            stand.append(record)
            free -= 1
        else:
            fall.append(record)
        places[record.name] = size, free
    stand.reverse()
    return stand, fall


def space_of(namespace: str, state_file: str) -> str:
    """Where the records of a door are: what -s says names them, under the namespace of the door."""
    space = f"ldlm:{namespace}:{state_file}"
    whole = space.encode(errors="surrogateescape")
    if len(whole) <= SPACE_BYTES_MAX and space.isprintable():
        return space
    return f"ldlm+long:{hashlib.sha256(whole).hexdigest()[:48]}"


class _Line:
    """What is to be written of one key, and who waits for it. `wanted` None: nothing is to be left
    of it."""

    __slots__ = ("task", "waiters", "wanted")

    def __init__(self) -> None:
        self.wanted: bytes | None = None
        self.waiters: list[asyncio.Future[None]] = []
        self.task: asyncio.Task[None] | None = None


class Book:
    """Writes and strikes out records, each key's in order."""

    def __init__(self, records: Records, counters: Counter[str]) -> None:
        self._records = records
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._lines: dict[str, _Line] = {}

    async def load(self) -> list[Record]:
        """What is held according to the book, oldest first; what cannot be is struck out."""
        found: list[Record] = []
        for key, value in (await self._records.all()).items():
            try:
                found.append(decode(key, value))
            except ValueError as problem:
                self._counters["records_unreadable"] += 1
                _log.error("State record skipped: %s", problem)
        stand, fall = survivors(found)
        for record in fall:
            self.strike(record.key)
        return stand

    def write(self, name: str, size: int, key: str, token: int) -> asyncio.Future[None]:
        """Done when it is durable; DlockError: it may or may not be, strike it out."""
        return self._set(key, encode(name, size, token))

    def strike(self, key: str) -> asyncio.Future[None]:
        """Done when it is durable."""
        return self._set(key, None)

    async def close(self, limit_s: float = DRAIN_S) -> None:
        """Finishes what is under way, within a limit."""
        end_s = self._loop.time() + limit_s
        while self._lines and (left_s := end_s - self._loop.time()) > 0:
            tasks = [line.task for line in self._lines.values() if line.task is not None]
            await asyncio.wait(tasks, timeout=left_s)
            await asyncio.sleep(0)  # who was told may have more to write
        for line in self._lines.values():
            if line.task is not None:
                line.task.cancel()

    def _set(self, key: str, wanted: bytes | None) -> asyncio.Future[None]:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            line.task = self._loop.create_task(self._carry(key, line))
        line.wanted = wanted
        waiter: asyncio.Future[None] = self._loop.create_future()
        line.waiters.append(waiter)
        return waiter

    async def _carry(self, key: str, line: _Line) -> None:
        """Until what is wanted of this key is so."""
        pause_s = PAUSE_S
        problem: DlockError | None = None
        written: bytes | None = b""
        try:
            while written != line.wanted:
                wanted = line.wanted
                try:
                    await self._apply(key, wanted)
                    written, problem = wanted, None
                except (ConnectError, OutcomeUnknown):
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_S_MAX)
                except DlockError as error:
                    self._counters["records_failed"] += 1
                    written, problem = wanted, error
        except asyncio.CancelledError:
            for waiter in line.waiters:
                waiter.cancel()
            raise
        finally:
            del self._lines[key]
        self._tell(line, key, problem)

    async def _apply(self, key: str, wanted: bytes | None) -> None:
        if wanted is None:
            await self._records.delete(key.encode())
        else:
            await self._records.put(key.encode(), wanted)

    def _tell(self, line: _Line, key: str, problem: DlockError | None) -> None:
        if problem is not None and line.wanted is None:
            # The lock is free all the same. A door that starts anew would hold it again until its
            # default lock timeout.
            _log.error("State record of key %s could not be struck out: %s", key, problem)
            problem = None
        for waiter in line.waiters:
            if waiter.done():
                continue
            if problem is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(problem)
