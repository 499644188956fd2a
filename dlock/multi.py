"""Several locks at once, all or none: `Multi`.

Everybody takes them in one order, by kind and name, so that two of these never wait for each other
in a circle. The whole batch is tried at once; what was granted before the first that is taken is
kept, the rest given back, and the first that is taken is waited for. So nobody holds a lock while
waiting for one that comes before it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
import time
from collections.abc import Callable, Container, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

from dlock import _attempt, _calls, _core
from dlock._attempt import me
from dlock._calls import FOREVER, PENDING, Asked, Outcome
from dlock._core import ffi, lib
from dlock._handle import NameTable
from dlock._reentrant import Reentrant
from dlock.errors import DlockError, LockLost, NotHeld
from dlock.locks import BaseLock

if TYPE_CHECKING:
    from dlock._handle import Handle
    from dlock.client import Client

_F = TypeVar("_F", bound=Callable[..., Any])

LOCKS_MAX: Final = _core.DLK_INFLIGHT_MAX // 2
_CALL_BYTES: Final = ffi.sizeof("struct dlk_call")
_SUCCESS: Final[int] = _core.DLK_STATUS_SUCCESS
_BUSY: Final[int] = _core.DLK_STATUS_FAIL


class Multi:
    """Holds all of its locks or none. Its lock objects are held as if each had been acquired by
    itself, so `token` and `ensure_held` of each mean what they say; they are given back together.

    ValueError: a lock stands in it twice, belongs to another client, or is re-entrant (its count
    could not be undone as one).
    """

    __slots__ = ("_client", "_locks")

    def __init__(self, client: Client, locks: Iterable[BaseLock]) -> None:
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

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """Takes all of them within one time; True when all are held, False when one of them is
        taken and the wait is over: then none is. Leases run from the moment when all are held.
        Errors are those of `Lock.acquire`."""
        wait_ms = _calls.wait_ms_of(blocking, timeout)
        until = self._client._until(wait_ms)
        taken: list[Handle] = []
        try:
            self._get_names(until)
            while self._take_all(taken, wait_ms, until):
                self._restart_leases(taken)
                if any(map(_calls.gone, taken)):
                    self._give_back(taken)  # The session ended during the wait: begin again.
                    continue
                for one, handle in zip(self._locks, taken, strict=True):
                    handle.holds = me.actor.holds
                    handle.holds.add(handle.serial)
                    one._hold_from(handle)
                return True
        except BaseException:
            for one, handle in zip(self._locks, taken, strict=False):
                one._withdraw(handle)
            raise
        return False

    def _get_names(self, until: float) -> None:
        """Asks for all names that the session does not know, many at a time."""
        client = self._client
        missing = [one._key for one in self._locks if one._key not in client._names]
        for start in range(0, len(missing), _core.DLK_BATCH_MAX):
            client._get(missing[start : start + _core.DLK_BATCH_MAX], until)

    def _take_all(self, taken: list[Handle], wait_ms: int, until: float) -> bool:
        """Fills `taken` with the handles of the locks, in order, all held; False: none is."""
        while len(taken) < len(self._locks):
            self._try_rest(taken, until)
            if len(taken) == len(self._locks):
                break
            if not self._wait_for_next(taken, wait_ms, until):
                self._give_back(taken)
                return False
        return True

    def _asked(self, one: BaseLock, wait_ms: int, taken: Sequence[Handle]) -> Asked:
        alone, among_others = one._ways
        asked = among_others if taken or me.actor.holds else alone
        return asked._replace(wait_ms=wait_ms)

    def _try_rest(self, taken: list[Handle], until: float) -> None:
        """One batch of tries. Handles of what was granted before the first refusal go to `taken`;
        what was granted behind it is given back."""
        first = len(taken)
        tries = self._locks[first:]
        handles: list[Handle] = []
        calls = ffi.new("struct dlk_call[]", len(tries))
        try:
            for index, one in enumerate(tries):
                handle = self._client._take(one._key, me.actor.number | one._apart, until)
                handles.append(handle)
                if one._watch is not None:
                    one._watch.begin(handle)
                _calls.fill_acquire(handle, self._asked(one, 0, ()))
                ffi.memmove(calls + index, handle.acquire, _CALL_BYTES)
            run_batch(handles, calls)
            statuses = [call.status for call in calls]
            kept = next((i for i, status in enumerate(statuses) if status), len(tries))
            for handle, call in zip(handles[:kept], calls, strict=False):
                handle.acquire.token = call.token
            rest = handles[kept:]
            granted = [h for h, status in zip(handles, statuses, strict=True) if not status]
            clean, _ = unlock(self._client, granted[kept:])
            clean.update(h for h, status in zip(handles, statuses, strict=True) if status == _BUSY)
            taken += handles[:kept]
        except BaseException:
            del taken[first:]
            for handle in handles:
                handle.abandon()
            raise
        put_back(rest, clean)

    def _wait_for_next(self, taken: list[Handle], wait_ms: int, until: float) -> bool:
        """Waits for the first lock that is not held yet, or asks again for it where the try got no
        answer. False: it is taken, and the time is over."""
        one = self._locks[len(taken)]
        if wait_ms not in (0, FOREVER):
            wait_ms = max(math.ceil((until - time.monotonic()) * 1000), 0)
        asked = self._asked(one, wait_ms, taken)
        handle = self._client._take(one._key, me.actor.number | one._apart, until)
        try:
            _calls.fill_acquire(handle, asked)
            if one._watch is not None:
                one._watch.begin(handle)
            status = lib.dlk_client_call(handle.client, handle.acquire)
            granted = not status
            if status:
                handle, granted = _attempt.persist(
                    self._client, handle, asked, status, one._watch
                )
            if granted:
                taken.append(handle)
                return True
        except BaseException:
            with contextlib.suppress(ValueError):
                taken.remove(handle)
            handle.abandon()
            raise
        handle.watcher = None
        NameTable.give_back(handle)
        return False

    def _restart_leases(self, taken: Sequence[Handle]) -> None:
        """Extends all leases by one batch, so that they run from now on. LockLost: one had ended
        while the others were waited for."""
        leased = [
            (handle, one.mode, one._ways[0].lease_ms)
            for one, handle in zip(self._locks, taken, strict=True)
            if one._ways[0].lease_ms
        ]
        if not leased or len(self._locks) == 1:
            return
        calls = ffi.new("struct dlk_call[]", len(leased))
        for index, (handle, mode, lease_ms) in enumerate(leased):
            extend = _calls.new_extend(handle, handle.acquire.token, mode, lease_ms)
            ffi.memmove(calls + index, extend, _CALL_BYTES)
        run_batch([handle for handle, _, _ in leased], calls)
        for index, (handle, _, lease_ms) in enumerate(leased):
            name = handle.name.key[0]
            outcome = _calls.judge_extend(calls[index].status, name, lease_ms)
            if outcome is Outcome.LOST or _calls.look(handle).left_ms == 0:
                raise self._client._lost(handle)

    # ---- Release ---------------------------------------------------------------------------------

    def release(self) -> None:
        """Gives all of them back, in one batch. NotHeld: it does not hold them. LockLost: one of
        them was lost before; the others are given back all the same."""
        if not all(one._held for one in self._locks):
            raise NotHeld(f"{self!r} does not hold all of its locks")
        handles: list[Handle] = []
        try:
            for one in self._locks:
                handles.append(one._claim())
            clean, problem = unlock(self._client, handles)
        except BaseException:
            for handle in handles:
                handle.abandon()
            raise
        finally:
            for handle in handles:
                handle.holds.discard(handle.serial)
        put_back(handles, clean)
        if problem is not None:
            raise problem

    def _give_back(self, taken: list[Handle]) -> None:
        """What was taken in vain."""
        clean, _ = unlock(self._client, taken)
        handles = taken.copy()
        taken.clear()  # from here on nobody may abandon them: they may be somebody else's again
        put_back(handles, clean)

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

    def __enter__(self) -> Multi:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except LockLost:
            if kind is None:  # else the exception under way says more
                raise

    def __call__(self, function: _F) -> _F:
        """As a decorator: each call of the function takes all of them anew."""
        self._locks[0]._refuse_coroutine(function)

        @functools.wraps(function)
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            with Multi(self._client, [one._for_a_call() for one in self._locks]):
                return function(*arguments, **keywords)

        return cast(_F, guarded)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled; pickle its lock objects, and make another")

    def __repr__(self) -> str:
        return f"<dlock.Multi of {len(self._locks)} locks>"


def _order(one: BaseLock) -> tuple[int, bytes]:
    descriptor, kind, _size = one._key
    return kind, descriptor


def run_batch(handles: Sequence[Handle], calls: Any) -> None:
    """Carries out an array of filled calls, one a handle; each has its status then. Interrupted, it
    undoes them all. Handles of two sessions, one of which has ended meanwhile, take two batches."""
    start = 0
    for client, group in itertools.groupby(handles, operator.attrgetter("client")):
        count = sum(1 for _ in group)
        _run_batch(client, calls + start, count)
        start += count


def _run_batch(client: Any, calls: Any, count: int) -> None:
    try:
        status: int = lib.dlk_client_batch(client, calls, count)
        while status == PENDING:
            status = lib.dlk_client_batch_wait(client, calls, count)
        if status != _SUCCESS:
            raise _calls.refusal(status, "a multi")
    except BaseException:
        for index in range(count):
            lib.dlk_client_cancel(client, calls + index)
        raise


def unlock(
    client: Client, handles: Sequence[Handle]
) -> tuple[set[Handle], DlockError | None]:
    """Unlocks all of them in one batch. Those of which the server has confirmed it, and the first
    loss among the others; whose unlock got no answer is owed."""
    clean: set[Handle] = set()
    problem: DlockError | None = None
    if not handles:
        return clean, problem
    calls = ffi.new("struct dlk_call[]", len(handles))
    for index, handle in enumerate(handles):
        ffi.memmove(calls + index, handle.release, _CALL_BYTES)
    run_batch(handles, calls)
    for handle, call in zip(handles, calls, strict=True):
        handle.release.value = call.value
        try:
            if not call.status or _attempt.conclude(client, handle, call.status):
                clean.add(handle)
        except DlockError as error:
            problem = problem or error
    return clean, problem


def put_back(handles: Sequence[Handle], clean: Container[Handle]) -> None:
    """Ends the use of handles; only the clean ones may be used again."""
    for handle in handles:
        handle.watcher = None
        if handle in clean:
            NameTable.give_back(handle)
        else:
            handle.abandon()
