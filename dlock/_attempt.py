"""One attempt to acquire, release or extend, carried on to its end: waiting in slices, asking again
after a lost link within the time of the call, and saying at last what came of it.

What a status means is decided in _calls.py; how a client gets its links back, in client.py.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from dlock import _calls, _core
from dlock._calls import FOREVER, PENDING, Asked, Outcome
from dlock._core import lib
from dlock._cycle import Cycle, explaining
from dlock.errors import Deadlock, DlockError

if TYPE_CHECKING:
    from dlock._handle import Handle, Key
    from dlock._session import Session
    from dlock._watch import Watch
    from dlock.client import Client

_EINVAL: Final[int] = _core.DLK_STATUS_EINVAL

EXPLAIN_S: Final = 2.0  # how long a refused wait may take to say why

_call: Final = lib.dlk_client_call
_wait: Final = lib.dlk_client_wait

_numbers: Final = itertools.count(1)


class Actor:
    """A thread, as the server's search for deadlocks knows it: by `number`. `holds`: the handles
    with which it has got locks, by serial, whoever releases them."""

    __slots__ = ("holds", "number")

    def __init__(self) -> None:
        self.number = next(_numbers) & 0xFFFFFFFF
        self.holds: set[int] = set()


class _Me(threading.local):
    def __init__(self) -> None:
        self.actor = Actor()


# me.actor: the calling thread's.
me: Final = _Me()


def take(client: Client, key: Key, actor: int, wait_ms: int) -> Handle:
    """A handle on a name that was not got yet: asks the server for it."""
    return client._take(key, actor, client._until(wait_ms))


def persist(
    client: Client, handle: Handle, asked: Asked, status: int, watch: Watch | None
) -> tuple[Handle, bool]:
    """Carries on an acquisition that was not granted at once. The handle that was used last, and
    whether it holds the lock. Whatever it raises, nothing is left behind."""
    key, wait_ms, until = handle.name.key, asked.wait_ms, client._until(asked.wait_ms)
    told: Session | None = None
    try:
        while True:
            while status == PENDING:
                status = _wait(handle.client, handle.acquire)
            if status == _EINVAL and asked.lease_ms and told is not client._session:
                told = declare(client, asked.lease_ms, until)
                status = _call(handle.client, handle.acquire)
                continue
            outcome = _calls.judge_acquire(status, key[0], asked.lease_ms)
            if outcome is Outcome.DONE or outcome is Outcome.REFUSED:
                return handle, outcome is Outcome.DONE
            if outcome is Outcome.DEADLOCK:
                if not handle.name.table.fading(handle.actor) or time.monotonic() >= until:
                    raise deadlock(client, int(handle.acquire.value))
                time.sleep(_calls.FADING_S)
            else:
                handle.abandon()
                client._await(outcome, handle.name, until)
                handle = client._take(key, handle.actor, until)
                if watch is not None:
                    watch.begin(handle)
            if wait_ms not in (0, FOREVER):
                wait_ms = max(math.ceil((until - time.monotonic()) * 1000), 1)
            _calls.fill_acquire(handle, asked._replace(wait_ms=wait_ms))
            status = _call(handle.client, handle.acquire)
    except BaseException:
        handle.abandon()
        raise


def declare(client: Client, lease_ms: int, until: float) -> Session:
    """Tells the server of a longer lease than it has written down for this session, unless another
    thread has done so since it was refused. The session of which it knows now: if it refuses once
    more there, it was not that. LeaseTooLong."""
    while lease_ms > (session := client._session).free_lease_ms:
        client._declare(lease_ms, until)
    return session


def conclude(client: Client, handle: Handle, status: int) -> bool:
    """Carries on a release. True: it was carried out. False: the client remembers it and makes it
    when the server answers again, and until now the hold was good. LockLost."""
    while status == PENDING:
        status = _wait(handle.client, handle.release)
    outcome = _calls.judge_release(status, handle.name.key[0])
    if outcome is Outcome.DONE:
        return True
    good = handle.release.value > 0 and not handle.name.table.ended
    if outcome in (Outcome.NOT_READY, Outcome.UNANSWERED) and good:
        return False
    raise client._lost(handle)


def deadlock(client: Client, number: int) -> Deadlock:
    """The exception for a refused wait. Without an answer the cycle stays unnamed."""
    cycle = Cycle()
    with contextlib.suppress(DlockError):
        cycle = client._run(lambda _session: explaining(number), time.monotonic() + EXPLAIN_S)
    return Deadlock(cycle)


def extend(client: Client, handle: Handle, token: int, mode: int, lease_ms: int) -> int:
    """Extends the lease of the hold with this token; what is left of it, in ms. It asks again for
    as long as the lease runs."""
    until = time.monotonic() + _calls.look(handle).left_ms / 1000
    told: Session | None = None
    while True:
        call = _calls.new_extend(handle, token, mode, lease_ms)
        status = run(handle.client, call)
        if status == _EINVAL and told is not client._session:
            told = declare(client, lease_ms, until)
            continue
        if status == _EINVAL and _calls.look(handle).token != token:
            raise client._lost(handle, token)
        outcome = _calls.judge_extend(status, handle.name.key[0], lease_ms)
        if outcome is Outcome.DONE:
            return int(call.left_ms)
        if outcome in (Outcome.LOST, Outcome.REMOVED) or handle.name.table.ended:
            raise client._lost(handle, token)
        client._await(outcome, handle.name, until)


def run(client: Any, call: Any) -> int:
    """Carries out a filled call to its end; undone when interrupted."""
    try:
        status: int = _call(client, call)
        while status == PENDING:
            status = _wait(client, call)
        return status
    except BaseException:
        lib.dlk_client_cancel(client, call)
        raise
