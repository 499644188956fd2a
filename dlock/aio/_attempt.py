"""One attempt to acquire, release or extend in an event loop, carried on to its end: asking again
after a lost link within the time of the call, and saying at last what came of it.

What a status means is decided in dlock/_calls.py; how a client gets its links back, in
dlock/aio/client.py; what an exception in the middle leaves behind, in dlock/aio/locks.py.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, cast

from dlock import _calls, _core
from dlock._calls import FADING_S, FOREVER, Asked, Outcome
from dlock._handle import Handle
from dlock._retry import Backoff
from dlock._session import REPLY_TIMEOUT_MS, Session
from dlock.aio._collect import Odd, cookies
from dlock.errors import Broken, LockLost

if TYPE_CHECKING:
    from dlock.aio._connection import Connection
    from dlock.aio._watch import Watch

_SUCCESS: Final[int] = _core.DLK_STATUS_SUCCESS
_EINVAL: Final[int] = _core.DLK_STATUS_EINVAL
_FOREVER_S: Final = 1e9  # thirty years


def until(wait_ms: int) -> float:
    """Until when (time.monotonic) an acquisition may look for a server. One that does not wait for
    the lock still waits for an answer."""
    if wait_ms == FOREVER:
        return time.monotonic() + _FOREVER_S
    return time.monotonic() + (wait_ms or REPLY_TIMEOUT_MS) / 1000


def fill(handle: Handle, asked: Asked) -> None:
    """Has the next acquisition of the handle ask for this."""
    _calls.fill_acquire(handle, asked)
    handle.acquire.cookie, handle.release.cookie = cookies(handle)


async def persist(
    client: Connection, handle: Handle, asked: Asked, status: int, watch: Watch | None,
    deadline: float | None = None,
) -> tuple[Handle, bool]:
    """Carries on an acquisition that has ended, but was not granted. The handle that was used last,
    and whether it holds the lock. Whatever it raises, nothing is left behind. `deadline`
    (time.monotonic): until when it looks for a server; None: as long as it would wait."""
    key, wait_ms = handle.name.key, asked.wait_ms
    deadline = until(wait_ms) if deadline is None else deadline
    backoff = Backoff()
    told: Session | None = None
    try:
        while True:
            if status == _EINVAL and asked.lease_ms and told is not client.session:
                told = await declare(client, asked.lease_ms, deadline)
                status = await answer(client.collector.acquire(handle))
                continue
            outcome = _calls.judge_acquire(status, key[0], asked.lease_ms)
            if outcome is Outcome.DONE or outcome is Outcome.REFUSED:
                return handle, outcome is Outcome.DONE
            if outcome is Outcome.DEADLOCK:
                if not handle.name.table.fading(handle.actor) or time.monotonic() >= deadline:
                    raise await client.deadlock(int(handle.acquire.value))
                await asyncio.sleep(FADING_S)
            else:
                handle.abandon()
                await recover(client, handle, outcome, backoff, deadline)
                handle = await client.take(key, handle.actor, deadline)
                if watch is not None:
                    watch.begin(handle)
            if wait_ms not in (0, FOREVER):
                wait_ms = max(int((deadline - time.monotonic()) * 1000), 1)
            fill(handle, asked._replace(wait_ms=wait_ms))
            status = await answer(client.collector.acquire(handle))
    except BaseException:
        withdraw(client, handle)
        raise


def withdraw(client: Connection, handle: Handle) -> None:
    """Ends an acquisition or a release in whatever state it is: what is held is given back."""
    if handle.name.table is client.names:
        client.collector.forget(handle)
    handle.abandon()


async def answer(posted: Any) -> int:
    """The status of a posted call."""
    return cast(int, posted if posted.__class__ is int else await posted)


async def declare(client: Connection, lease_ms: int, deadline: float) -> Session:
    """Tells the server of a longer lease than it has written down for this session, unless another
    task has done so since it was refused. The session of which it knows now: if it refuses once
    more there, it was not that. LeaseTooLong."""
    while lease_ms > (session := client.session).free_lease_ms:
        await client.declare_lease(lease_ms, deadline)
    return session


async def recover(
    client: Connection, handle: Handle, outcome: Outcome, backoff: Backoff, deadline: float
) -> None:
    """Until it makes sense to ask again. ConnectionLost at the deadline."""
    table = handle.name.table
    if outcome is Outcome.STALE:
        table.forget(handle.name)
        if time.monotonic() < deadline:
            return
    if outcome is Outcome.REMOVED:
        client.session_removed(table.session)
    elif outcome is Outcome.NOT_READY:
        client.not_ready(table.session)
    await client.regain(table.session, backoff, deadline)


async def conclude(handle: Handle, posted: Any, name: str | bytes) -> None:
    """Waits for what comes of a release. Without an answer the C client remembers it and makes it
    later: that is all one could want, if the hold was good until then. LockLost."""
    outcome: int | Odd = posted if isinstance(posted, (int, Odd)) else await posted
    if outcome == _SUCCESS:
        return
    odd = outcome if isinstance(outcome, Odd) else Odd(outcome, False, 0, False)
    judged = _calls.judge_release(odd.status, handle.name.key[0])
    if judged in (Outcome.NOT_READY, Outcome.UNANSWERED) and odd.good:
        return
    raise (Broken if odd.broken else LockLost)(name, odd.token)


def lost(handle: Handle, name: str | bytes) -> LockLost:
    """The exception for a hold that is not held, or not certainly."""
    return (Broken if handle.broken else LockLost)(name, int(handle.acquire.token))


async def extend(
    client: Connection, handle: Handle, mode: int, lease_ms: int, name: str | bytes,
    deadline: float | None = None,
) -> int:
    """Extends the lease of a hold; what is left of it, in ms. `deadline` (time.monotonic): until
    when it looks for a server; None: as long as an answer may take."""
    deadline = until(0) if deadline is None else deadline
    backoff = Backoff()
    token = int(handle.acquire.token)
    told: Session | None = None
    while True:
        call = _calls.new_extend(handle, token, mode, lease_ms)
        if handle.name.table.ended:
            raise lost(handle, name)
        status = await run(client, call)
        if status == _EINVAL and told is not client.session:
            told = await declare(client, lease_ms, deadline)
            continue
        if status == _EINVAL and _calls.look(handle).token != token:
            raise lost(handle, name)
        outcome = _calls.judge_extend(status, handle.name.key[0], lease_ms)
        if outcome is Outcome.DONE:
            return int(call.left_ms)
        if outcome in (Outcome.LOST, Outcome.REMOVED) or handle.name.table.ended:
            raise lost(handle, name)
        await recover(client, handle, outcome, backoff, deadline)


async def run(client: Connection, call: Any) -> int:
    """Carries out a filled call to its end; undone when it is struck."""
    collector = client.collector
    try:
        return await answer(collector.call(call))
    except BaseException:
        collector.forget_call(call)
        raise
