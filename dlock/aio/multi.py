"""Several locks at once for asyncio, all or none: `Multi`.

Everybody takes them in one order, by kind and name, so that two of these never wait for each other
in a circle. The rest is tried at once; what was granted before the first that is taken is kept,
what was granted behind it is given back, and the first that is taken is waited for. So nobody holds
a lock while waiting for one that comes before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from dlock import _calls, _core
from dlock._calls import FOREVER
from dlock._handle import Handle, NameTable
from dlock.aio import _attempt
from dlock.aio.kinds import Reentrant
from dlock.aio.locks import BaseLock
from dlock.errors import LockLost, NotHeld

if TYPE_CHECKING:
    from dlock.aio._connection import Connection

_F = TypeVar("_F", bound=Callable[..., Coroutine[Any, Any, Any]])

LOCKS_MAX: Final[int] = _core.DLK_INFLIGHT_MAX // 2


class Multi:
    """Holds all of its locks or none. Its lock objects are held as if each had been acquired by
    itself, so `token` and `ensure_held` of each mean what they say; they are given back together.

    ValueError: a lock stands in it twice, belongs to another client, or is re-entrant (its count
    could not be undone as one).
    """

    __slots__ = ("_client", "_locks")

    def __init__(self, client: Connection, locks: Iterable[BaseLock]) -> None:
        self._client = client
        self._locks = tuple(sorted(locks, key=_order))
        if not 1 <= len(self._locks) <= LOCKS_MAX:
            raise ValueError(f"a multi has 1..{LOCKS_MAX} locks, not {len(self._locks)}")
        for one in self._locks:
            if one._client is not client:
                raise ValueError(f"{one!r} belongs to another client")
            if isinstance(one, Reentrant):
                raise ValueError(f"{one!r} is re-entrant; a multi takes plain locks")
        for one, following in zip(self._locks, self._locks[1:], strict=False):
            if _order(one) == _order(following):
                raise ValueError(f"{following!r} stands twice in a multi: it would wait for itself")

    @property
    def locks(self) -> tuple[BaseLock, ...]:
        """Its locks, in the order in which they are taken."""
        return self._locks

    # ---- Acquire ---------------------------------------------------------------------------------

    async def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """Takes all of them within one time; True when all are held, False when one of them is
        taken and the wait is over: then none is. Leases run from the moment when all are held.
        Cancelled, it leaves none behind. Errors are those of `Lock.acquire`."""
        actor = self._client.enter()
        wait_ms = _calls.wait_ms_of(blocking, timeout)
        deadline = _attempt.until(wait_ms)
        taken: list[Handle] = []
        try:
            while True:
                await self._try_rest(taken, actor, deadline)
                if len(taken) == len(self._locks):
                    await self._restart_leases(taken, deadline)
                    if not any(map(_calls.gone, taken)):
                        return True
                    await self._give_up(taken)  # the session ended during the wait: begin again
                elif not await self._wait_for_next(taken, actor, wait_ms, deadline):
                    break
        except BaseException:
            for one, handle in zip(self._locks, taken, strict=False):
                one._withdraw(handle)
            raise
        await self._give_up(taken)
        return False

    async def _give_up(self, taken: list[Handle]) -> None:
        """Gives back what was taken in vain, and may be lost in vain."""
        posted = _release_all(self._locks[: len(taken)])
        taken.clear()
        with contextlib.suppress(LockLost):
            await _conclude(posted)

    async def _try_rest(self, taken: list[Handle], actor: int, deadline: float) -> None:
        """Tries all that are not taken, together. Those granted before the first refusal are held
        then; what was granted behind it is given back."""
        client = self._client
        rest = self._locks[len(taken):]
        await asyncio.gather(*(
            client.get_name(one._key, deadline) for one in rest if one._key not in client.names))
        asking = [one._asked._replace(wait_ms=0) for one in rest]
        mine: list[Handle | None] = []  # those that are to be undone if this is struck
        try:
            posted = []
            for one, asked in zip(rest, asking, strict=True):
                handle = await client.take(one._key, actor | one._apart, deadline)
                mine.append(handle)
                _attempt.fill(handle, asked)
                if one._watch is not None:
                    one._watch.begin(handle)
                posted.append(client.collector.acquire(handle))
            refused = False
            for index, one in enumerate(rest):
                status = await _attempt.answer(posted[index])
                mine[index], granted = handle, granted = await _attempt.persist(
                    client, cast(Handle, mine[index]), asking[index], status, one._watch, deadline)
                refused = refused or not granted
                if not refused:
                    taken.append(handle)
                    one._hold(handle)
                mine[index] = None
                if refused and granted:
                    client.collector.release(handle)
                elif refused:
                    handle.watcher = None
                    NameTable.give_back(handle)
        except BaseException:
            for undone in mine:
                if undone is not None and undone not in taken:
                    _attempt.withdraw(client, undone)
            raise

    async def _wait_for_next(
        self, taken: list[Handle], actor: int, wait_ms: int, deadline: float
    ) -> bool:
        """Waits for the first that is not taken."""
        if wait_ms not in (0, FOREVER):
            wait_ms = max(int((deadline - time.monotonic()) * 1000), 0)
        if wait_ms == 0:
            return False
        one = self._locks[len(taken)]
        if not await one._acquire(one._asking(actor)._replace(wait_ms=wait_ms), actor):
            return False
        taken.append(one._held[-1])
        return True

    async def _restart_leases(self, taken: Sequence[Handle], deadline: float) -> None:
        """Extends all leases together, so that they run from now on. LockLost: one had ended while
        the others were waited for."""
        leased = [(one, handle) for one, handle in zip(self._locks, taken, strict=True)
                  if one._asked.lease_ms]
        if leased and len(self._locks) > 1:
            await asyncio.gather(*(
                _attempt.extend(self._client, handle, one.mode, one._asked.lease_ms, one.name,
                                max(deadline, _attempt.until(0)))
                for one, handle in leased))

    # ---- Release ---------------------------------------------------------------------------------

    def release(self) -> Coroutine[Any, Any, None]:
        """Gives all of them back, at once. NotHeld: it does not hold them. LockLost: one of them
        was lost before; the others are given back all the same."""
        self._client.enter()
        if not all(one._held for one in self._locks):
            raise NotHeld(f"{self!r} does not hold all of its locks")
        return _conclude(_release_all(self._locks))

    @property
    def held(self) -> bool:
        """Are all of them held, now?"""
        return all(one.held for one in self._locks)

    @property
    def remaining(self) -> float:
        """For how many seconds all of them are certainly held."""
        return min(one.remaining for one in self._locks)

    def ensure_held(self, min_left: float = 0.0) -> None:
        """LockLost unless all of them are held for `min_left` seconds more."""
        for one in self._locks:
            one.ensure_held(min_left)

    async def __aenter__(self) -> Multi:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.release()
        except LockLost:
            if kind is None:  # else the exception under way says more
                raise

    def __call__(self, function: _F) -> _F:
        """As a decorator of a coroutine function: each call takes all of them anew."""
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{self!r} decorates coroutine functions, not {function!r}")

        @functools.wraps(function)
        async def guarded(*arguments: Any, **keywords: Any) -> Any:
            async with Multi(self._client, [one._for_a_call() for one in self._locks]):
                return await function(*arguments, **keywords)

        return cast(_F, guarded)

    def __repr__(self) -> str:
        return f"<dlock.aio.Multi of {len(self._locks)} locks>"


def _order(one: BaseLock) -> tuple[int, bytes]:
    descriptor, kind, _size = one._key
    return kind, descriptor


def _release_all(locks: Sequence[BaseLock]) -> list[Coroutine[Any, Any, None] | LockLost]:
    """Posts the releases of all; what is to be waited for, or the loss that is known at once."""
    posted: list[Coroutine[Any, Any, None] | LockLost] = []
    for one in locks:
        try:
            posted.append(one.release())
        except LockLost as problem:
            posted.append(problem)
    return posted


async def _conclude(posted: Sequence[Coroutine[Any, Any, None] | LockLost]) -> None:
    """Waits for all of them; the first loss."""
    problem: LockLost | None = None
    waits = list(posted)
    try:
        while waits:
            one = waits.pop(0)
            if isinstance(one, LockLost):
                problem = problem or one
                continue
            try:
                await one
            except LockLost as loss:
                problem = problem or loss
    finally:
        for one in waits:  # struck: they are released all the same
            if not isinstance(one, LockLost):
                one.close()
    if problem is not None:
        raise problem
