"""Lock objects and numbers as a `Recorder` hands them out: those of `dlock`, and of `dlock.aio`.
They have the calls that programs use; whatever they do not have is the object's own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from dlock import _reentrant, atomic, errors, locks
from dlock._attempt import me
from dlock.aio import atomic as aio_atomic
from dlock.aio import kinds as aio_kinds
from dlock.aio import locks as aio_locks
from dlock.linear import history
from dlock.linear.record import Asking, Recorder, Watched, WatchedNumber, now_ns

__all__ = ["RecordedAioLock", "RecordedAioNumber", "RecordedLock", "RecordedNumber", "wrap"]

_L = TypeVar("_L", bound="RecordedLock")
_A = TypeVar("_A", bound="RecordedAioLock")


def wrap(recorder: Recorder, one: Any) -> Any:
    """See `Recorder.watch`."""
    if isinstance(one, locks.BaseLock):
        return RecordedLock(recorder, one, reentrant=isinstance(one, _reentrant.Reentrant))
    if isinstance(one, aio_locks.BaseLock):
        return RecordedAioLock(recorder, one, reentrant=isinstance(one, aio_kinds.Reentrant))
    if isinstance(one, atomic.AtomicInt64):
        return RecordedNumber(recorder, one)
    if isinstance(one, aio_atomic.AtomicInt64):
        return RecordedAioNumber(recorder, one)
    raise TypeError(f"{one!r} is neither a lock object nor a number of dlock or dlock.aio")


def _waits(blocking: bool, timeout: float | None) -> bool:
    return bool(blocking) and timeout != 0


# ---- dlock ---------------------------------------------------------------------------------------


class RecordedLock(Watched):
    """A lock object of `dlock`."""

    __slots__ = ()

    def acquire(
        self, blocking: bool = True, timeout: float | None = -1, *, lease: float | None = None
    ) -> bool:
        """As the lock object's."""
        lock = self._lock
        own = lock._own() if self._reentrant else None
        asking = self._begin(own, me.actor.number, _waits(blocking, timeout))
        try:
            got: bool = lock.acquire(blocking, timeout, lease=lease)
        except BaseException as error:
            self._struck(asking, error)
            raise
        self._ended(asking, lock._hold() if got else None)
        return got

    def release(self) -> None:
        """As the lock object's; of a semaphore one slot."""
        asking = self._begin_release(self._lock._hold(), me.actor.number)
        try:
            self._lock.release()
        except BaseException as error:
            if asking is not None:
                self._released(asking, error)
            raise
        if asking is not None:
            self._released(asking)

    @property
    def held(self) -> bool:
        """As the lock object's."""
        return self._look(self._lock._hold()) > 0

    @property
    def remaining(self) -> float:
        """As the lock object's."""
        return self._look(self._lock._hold()) / 1000

    def ensure_held(self, min_left: float = 0.0) -> None:
        """As the lock object's."""
        begin_ns, token = now_ns(), int(self._lock.token)
        self._lock.ensure_held(min_left)
        self._held(token, begin_ns, max(int(min_left * 1000), 1))

    def extend(self, lease: float | None = None) -> float:
        """As the lock object's."""
        begin_ns, token = now_ns(), int(self._lock.token)
        left_s: float = self._lock.extend(lease)
        self._held(token, begin_ns, int(left_s * 1000))
        return left_s

    def see_line(self) -> None:
        """Asks the server who stands in line, and writes it down: others must not overtake them."""
        begin_ns = now_ns()
        self._sight(begin_ns, self._lock._client.admin.show(self._lock._key[0]))

    def __enter__(self: _L) -> _L:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except errors.LockLost:
            if kind is None:
                raise


class RecordedNumber(WatchedNumber):
    """A number of `dlock`."""

    __slots__ = ()

    def get(self) -> int:
        """As the number's."""
        return self._operate(history.GET, lambda number: int(number.get()))

    def fetch_add(self, value: int) -> int:
        """As the number's."""
        return self._operate(
            history.ADD, lambda number: int(number.fetch_add(value)), argument=value)

    def add(self, value: int) -> int:
        """As the number's."""
        return _wrapped(self.fetch_add(value) + value)

    def next(self) -> int:
        """As the number's."""
        return self.fetch_add(1)

    def compare_exchange(self, expected: int, desired: int) -> tuple[bool, int]:
        """As the number's."""
        found = self._operate(
            history.SWAP, lambda number: int(number.compare_exchange(expected, desired)[1]),
            argument=expected, desired=desired)
        return found == expected, found

    def set(self, value: int) -> int:
        """As the number's."""
        return self._swapped(lambda _: value)[0]

    def update(self, function: Callable[[int], int]) -> int:
        """As the number's."""
        return self._swapped(function)[1]

    def _swapped(self, function: Callable[[int], int]) -> tuple[int, int]:
        found = self.get()
        while True:
            wanted = function(found)
            done, found = self.compare_exchange(found, wanted)
            if done:
                return found, wanted

    def _operate(
        self, action: str, ask: Callable[[Any], int], argument: int = 0, desired: int = 0
    ) -> int:
        number = self._begin(action, me.actor.number, argument, desired)
        try:
            result = ask(self._number)
        except BaseException as error:
            self._end(number, _outcome(error))
            raise
        self._end(number, history.DONE, result)
        return result


# ---- dlock.aio -----------------------------------------------------------------------------------


class RecordedAioLock(Watched):
    """A lock object of `dlock.aio`."""

    __slots__ = ()

    async def acquire(
        self, blocking: bool = True, timeout: float | None = -1, *, lease: float | None = None
    ) -> bool:
        """As the lock object's."""
        lock = self._lock
        actor = lock._client.enter()
        own = lock._own(actor) if self._reentrant else None
        asking = self._begin(own, actor, _waits(blocking, timeout))
        try:
            got: bool = await lock.acquire(blocking, timeout, lease=lease)
        except BaseException as error:
            self._struck(asking, error)
            raise
        self._ended(asking, lock._concerned() if got else None)
        return got

    def release(self) -> Coroutine[Any, Any, None]:
        """As the lock object's: given back when it is called; awaited, the server has taken it."""
        asking = self._begin_release(self._lock._concerned(), self._lock._client.enter())
        try:
            released = self._lock.release()
        except BaseException as error:
            if asking is not None:
                self._released(asking, error)
            raise
        return self._confirm(asking, released)

    async def _confirm(
        self, asking: Asking | None, released: Coroutine[Any, Any, None]
    ) -> None:
        try:
            await released
        except BaseException as error:
            if asking is not None:
                self._released(asking, error)
            raise
        if asking is not None:
            self._released(asking)

    @property
    def held(self) -> bool:
        """As the lock object's."""
        return self._look(self._lock._concerned()) > 0

    @property
    def remaining(self) -> float:
        """As the lock object's."""
        return self._look(self._lock._concerned()) / 1000

    def ensure_held(self, min_left: float = 0.0) -> None:
        """As the lock object's."""
        begin_ns, token = now_ns(), int(self._lock.token)
        self._lock.ensure_held(min_left)
        self._held(token, begin_ns, max(int(min_left * 1000), 1))

    async def extend(self, lease: float | None = None) -> float:
        """As the lock object's."""
        begin_ns, token = now_ns(), int(self._lock.token)
        left_s: float = await self._lock.extend(lease)
        self._held(token, begin_ns, int(left_s * 1000))
        return left_s

    async def see_line(self) -> None:
        """Asks the server who stands in line, and writes it down: others must not overtake them."""
        begin_ns = now_ns()
        self._sight(begin_ns, await self._lock._client.show(self._lock._key[0]))

    async def __aenter__(self: _A) -> _A:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.release()
        except errors.LockLost:
            if kind is None:
                raise


class RecordedAioNumber(WatchedNumber):
    """A number of `dlock.aio`."""

    __slots__ = ()

    async def get(self) -> int:
        """As the number's."""
        return await self._operate(history.GET, lambda number: number.get())

    async def fetch_add(self, value: int) -> int:
        """As the number's."""
        return await self._operate(
            history.ADD, lambda number: number.fetch_add(value), argument=value)

    async def add(self, value: int) -> int:
        """As the number's."""
        return _wrapped(await self.fetch_add(value) + value)

    async def next(self) -> int:
        """As the number's."""
        return await self.fetch_add(1)

    async def compare_exchange(self, expected: int, desired: int) -> tuple[bool, int]:
        """As the number's."""
        async def swap(number: Any) -> int:
            return int((await number.compare_exchange(expected, desired))[1])

        found = await self._operate(history.SWAP, swap, argument=expected, desired=desired)
        return found == expected, found

    async def set(self, value: int) -> int:
        """As the number's."""
        return (await self._swapped(lambda _: value))[0]

    async def update(self, function: Callable[[int], int]) -> int:
        """As the number's."""
        return (await self._swapped(function))[1]

    async def _swapped(self, function: Callable[[int], int]) -> tuple[int, int]:
        found = await self.get()
        while True:
            wanted = function(found)
            done, found = await self.compare_exchange(found, wanted)
            if done:
                return found, wanted

    async def _operate(
        self, action: str, ask: Callable[[Any], Coroutine[Any, Any, int]], argument: int = 0,
        desired: int = 0,
    ) -> int:
        number = self._begin(action, self._number._client.enter(), argument, desired)
        try:
            result = await ask(self._number)
        except BaseException as error:
            self._end(number, _outcome(error))
            raise
        self._end(number, history.DONE, result)
        return result


def _outcome(error: BaseException) -> str:
    """What an exception says of a change. ConnectionLost: the server never had it."""
    if isinstance(error, errors.ObjectLost):
        return history.GONE
    if isinstance(error, errors.ConnectionLost):
        return history.REFUSED
    return history.UNKNOWN


def _wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
