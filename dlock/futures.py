"""Acquisitions that no thread waits for: `BaseLock.acquire_future`.

A request is posted to the C client; one thread a client, which lives only while futures wait,
collects what has ended. Who cancels and who collects take the request out of one dictionary: only
one of them gets it.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, NamedTuple

from dlock import _attempt, _calls, _core
from dlock._calls import AGAIN, FOREVER, PENDING, Asked, Outcome
from dlock._handle import NameTable
from dlock._posted import Collector, flush
from dlock._posted import post as post_call

if TYPE_CHECKING:
    from dlock._handle import Handle
    from dlock._session import Session
    from dlock.locks import BaseLock

_EINVAL: Final[int] = _core.DLK_STATUS_EINVAL
_SLICE_MS: Final = 50
_cookies: Final = itertools.count(1)


class Request(NamedTuple):
    """One posted acquisition. `told`: the session of which the server knows of its lease."""

    future: LockFuture
    lock: BaseLock
    handle: Handle
    asked: Asked
    until: float
    told: Session

    @property
    def untold(self) -> bool:
        """Has it come to another session, to which its lease may be too long only by that?"""
        return bool(self.asked.lease_ms) and self.told is not self.handle.name.table.session


class LockFuture(Future[bool]):
    """The outcome of an acquisition. Cancelling it takes the request back at the server."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self._reader = reader
        self._cookie = 0

    def cancel(self) -> bool:
        """True: it is cancelled, and nothing is held by it. False: it has ended already."""
        if not self._reader.withdraw(self._cookie):
            return self.cancelled()
        super().cancel()
        self.set_running_or_notify_cancel()
        return True


class Reader:
    """The posted acquisitions of one client. `requests`: by cookie, those that have not ended."""

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        self._thread: threading.Thread | None = None
        self.requests: dict[int, Request] = {}

    def submit(self, request: Request) -> bool:
        """Posts it. Its handle is the request's from now on. False: it was posted before, and
        cancelled meanwhile."""
        cookie, handle = request.future._cookie, request.handle
        with self._mutex:  # who cancels finds it before it is posted, or behind that
            if not cookie:
                cookie = request.future._cookie = next(_cookies)
            elif cookie not in self.requests:
                return False
            _calls.fill_acquire(handle, request.asked)
            handle.acquire.cookie = cookie
            self.requests[cookie] = request
            status = post_call(handle.client, handle.acquire)
            flush(handle.client)
            if status == PENDING:
                self._start()
        if status != PENDING:
            self._end(cookie, status)
        return True

    def withdraw(self, cookie: int) -> bool:
        """Takes a request back, if it has not ended."""
        with self._mutex:
            request = self.requests.pop(cookie, None)
            if request is None:
                return False
            request.handle.abandon()
            return True

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dlock-futures", daemon=True)
            self._thread.start()

    # ---- The thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        _core.block_signals()
        collectors: weakref.WeakKeyDictionary[Session, Collector] = weakref.WeakKeyDictionary()
        while True:
            sessions = {one.handle.name.table.session for one in tuple(self.requests.values())}
            for session in sessions:
                collector = collectors.get(session)
                if collector is None:
                    collector = collectors[session] = Collector(session.client)
                for cookie, status, _result in collector.collect_wait(_SLICE_MS):
                    self._end(cookie, status)
            with self._mutex:
                if not self.requests:
                    self._thread = None
                    return

    def _end(self, cookie: int, status: int) -> None:
        """What a request came to."""
        request = self.requests.get(cookie)
        if request is None:
            return  # it was cancelled meanwhile
        if status == _EINVAL and request.untold:
            self._ask_again(request, None)
            return
        try:
            outcome = _calls.judge_acquire(
                status, request.handle.name.key[0], request.asked.lease_ms
            )
        except Exception as error:
            if self.requests.pop(cookie, None) is not None:
                request.handle.abandon()
                request.future.set_exception(error)
            return
        if outcome in AGAIN:
            self._ask_again(request, outcome)
        elif self.requests.pop(cookie, None) is None:
            return  # the same, a moment ago
        elif outcome is Outcome.DONE:
            request.lock._hold_from(request.handle)
            request.future.set_result(True)
        elif outcome is Outcome.REFUSED:
            request.handle.watcher = None
            NameTable.give_back(request.handle)
            request.future.set_result(False)
        else:
            raise AssertionError(f"a posted call came to {outcome}")

    def _ask_again(self, request: Request, outcome: Outcome | None) -> None:
        """Rare, and it waits for the server: not in the thread that serves all the others. It stays
        among the requests, so that it can be cancelled."""
        request.handle.abandon()
        threading.Thread(
            target=self._again, args=(request, outcome), name="dlock-futures-again", daemon=True
        ).start()

    def _again(self, request: Request, outcome: Outcome | None) -> None:
        """Asks again when the link is back. `outcome` None: it was there, and only the lease had to
        be told."""
        _core.block_signals()
        client, cookie = request.lock._client, request.future._cookie
        try:
            if outcome is not None:
                client._await(outcome, request.handle.name, request.until)
            told = _attempt.declare(client, request.asked.lease_ms, request.until)
            handle = client._take(request.lock._key, 0, request.until)
            if request.lock._watch is not None:
                request.lock._watch.begin(handle)
        except Exception as error:
            if self.requests.pop(cookie, None) is not None:
                request.future.set_exception(error)
            return
        asked = request.asked
        if asked.wait_ms not in (0, FOREVER):
            left_ms = math.ceil((request.until - time.monotonic()) * 1000)
            asked = asked._replace(wait_ms=max(left_ms, 1))
        if not self.submit(request._replace(handle=handle, asked=asked, told=told)):
            NameTable.give_back(handle)


def post(lock: BaseLock, asked: Asked) -> LockFuture:
    """Asks for the lock; returns at once."""
    client = lock._client
    reader: Reader = client.__dict__.setdefault("_reader", Reader())
    until = client._until(asked.wait_ms)
    told = _attempt.declare(client, asked.lease_ms, until)
    handle = client._take(lock._key, 0, until)
    future = LockFuture(reader)
    try:
        if lock._watch is not None:
            lock._watch.begin(handle)
        reader.submit(Request(future, lock, handle, asked, until, told))
    except BaseException:
        reader.withdraw(future._cookie)
        handle.abandon()
        raise
    return future
