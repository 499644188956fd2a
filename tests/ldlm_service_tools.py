"""What the tests of the LDLM door share: its service on a client of a real server."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping

from aio_tools import Addressed, connected, until
from lock_tools import Service

from dlock import aio
from dlock.aio import keys
from dlock.aio.keys import Key
from dlock.doors.ldlm.problems import Answer, Problem
from dlock.doors.ldlm.records import Book, Records
from dlock.doors.ldlm.service import LdlmService, Rules, Session
from dlock.doors.names import Names


def key_of(names: Names, name: str, size: int) -> Key:
    descriptor = names.exclusive(name.encode()).descriptor
    return keys.exclusive(descriptor) if size == 1 else keys.slots(descriptor, size)


@contextlib.asynccontextmanager
async def serving_ldlm(
    server: Addressed, rules: Rules | None = None, *, namespace: str = "ldlm",
    records: Records | None = None,
) -> AsyncIterator[LdlmService]:
    """The service of a door, in this loop; its client leaves at the end."""
    async with connected(server) as client:
        yield service_of(client, rules, namespace=namespace, records=records)


def service_of(
    client: aio.Client, rules: Rules | None = None, *, namespace: str = "ldlm",
    records: Records | None = None,
) -> LdlmService:
    names = Names(namespace)
    counters: Counter[str] = Counter()
    return LdlmService(client, lambda name, size: key_of(names, name, size), rules or Rules(),
                       counters, Book(records, counters) if records is not None else None)


def is_key(text: str) -> bool:
    """Is it a uuid4 as LDLM writes it?"""
    return len(text) == 36 and str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4


def granted(answer: Answer, name: str) -> str:
    """The key of an answer that must be a grant."""
    assert answer.ok
    assert answer.error is None
    assert answer.name == name
    assert is_key(answer.key)
    return answer.key


def refused(answer: Answer, name: str, problem: Problem | None) -> None:
    """The answer must be this refusal, with the unused key that LDLM sends along."""
    assert not answer.ok
    assert answer.error == problem
    assert answer.name == name
    assert is_key(answer.key)


async def waiting(server: Service, name: str, count: int) -> None:
    """Until so many wait for the name at the server."""
    await until(lambda: server.waiters(f"ldlm:{name}") == count)


async def free(session: Session, name: str) -> None:
    """Until the lock is free, as another session sees it."""
    while True:
        answer = await session.try_lock(name, None, None)
        if answer.ok:
            await session.unlock(name, answer.key)
            return
        await asyncio.sleep(0.005)


class Paper:
    """Where records are written, in the memory of the test. `fails`: what the next calls raise;
    `gate`: cleared, calls wait."""

    def __init__(self) -> None:
        self.written: dict[bytes, bytes] = {}
        self.fails: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0

    async def _turn(self) -> None:
        self.calls += 1
        await self.gate.wait()
        if self.fails:
            raise self.fails.pop(0)

    async def put(self, key: bytes, value: bytes) -> None:
        await self._turn()
        self.written[key] = value

    async def delete(self, key: bytes) -> None:
        await self._turn()
        self.written.pop(key, None)

    async def all(self) -> Mapping[bytes, bytes]:
        return dict(self.written)
