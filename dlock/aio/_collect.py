"""How calls of the C client end in an event loop: one descriptor, one look a wake-up, no thread.

A call is posted, and its frame goes out with those of all other tasks that ran in the same turn of
the loop. When the descriptor of the client becomes readable, one call into C collects everything
that has ended; the futures of those who wait are set, and owners are called back at once. There is
no timer for a call: the deadlines are in C, and are looked at twice a second while anybody waits.

Cookies are given out here. An odd one belongs to the release of a handle: when it has ended, the
handle is free again, whether anybody still waits for the answer or not.

Only the thread of the loop may use a collector.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final, NamedTuple, Protocol

from dlock import _core, _posted
from dlock._core import ffi, lib
from dlock._handle import Handle, NameTable
from dlock.aio._spin import Spin

PENDING: Final[int] = _core.DLK_STATUS_PENDING
ROOM: Final = 1024  # calls that one look brings at most; then it looks again
SWEEP_S: Final = 0.5

_SUCCESS: Final[int] = _core.DLK_STATUS_SUCCESS
_BROKEN: Final[int] = _core.DLK_RESULT_BROKEN
_CALLS_FROM: Final = 1 << 33  # cookies of other calls than those of handles

_ENDED: Final = _core.layout("dlk_ended", ("cookie", "status", "result"))
_iter_ended: Final = _ENDED.iter_unpack
_ENDED_BYTES: Final = _ENDED.size
_NOTHING: Final = memoryview(bytes(ROOM * _ENDED_BYTES))  # no call has cookie 0

_post: Final = lib.dlk_client_post
_flush: Final = lib.dlk_client_flush


class Odd(NamedTuple):
    """What became of a release that was not simply carried out. `good`: until it was posted the
    hold was good by the client's clock; `token`: of that hold; `broken`: by an operator."""

    status: int
    good: bool
    token: int
    broken: bool


class Asker(Protocol):
    """Who has asked by `Collector.ask`."""

    def answered(self, status: int) -> None:
        """The call has ended. It may ask and release, but neither wait nor raise."""
        ...


def cookies(handle: Handle) -> tuple[int, int]:
    """What the calls of a handle are to name themselves: of its acquisition, of its release."""
    return handle.serial << 1, handle.serial << 1 | 1


class Collector:
    """Posts the calls of one C client, and hands what has ended to those who wait."""

    __slots__ = ("_announced", "_askers", "_awaited", "_bytes", "_cookies", "_expected", "_fd",
                 "_loop", "_new_future", "_out", "_pointer", "_releases", "_spin", "_sweep")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pointer: Any, spin: Spin | None = None
    ) -> None:
        """Watches this C client; OSError: no descriptor could be had for it. `spin`: keeps the loop
        awake for a while after what is sent and what comes; None: nothing does."""
        self._loop = loop
        self._spin = spin
        self._new_future = loop.create_future
        self._pointer = pointer
        self._out = ffi.new("struct dlk_ended[]", ROOM)
        self._bytes = memoryview(ffi.buffer(self._out))
        self._awaited: dict[int, asyncio.Future[Any]] = {}
        self._askers: dict[int, Asker] = {}
        self._releases: dict[int, Handle] = {}
        self._cookies = itertools.count(_CALLS_FROM, 2)
        self._announced = False  # the end of this turn will send what was posted
        self._expected = 0  # tasks that the last look woke and that have posted nothing since
        self._sweep: asyncio.TimerHandle | None = None
        self._fd = _posted.collect_fd(pointer)
        loop.add_reader(self._fd, self._look)

    # ---- Asking ----------------------------------------------------------------------------------

    def acquire(self, handle: Handle) -> asyncio.Future[int] | int:
        """Posts the acquisition of a handle: the future of its status, or the status when it is
        known at once. Who gives up calls `forget`, and retires the handle."""
        status: int = _post(self._pointer, handle.acquire)
        if status != PENDING:
            return status
        future = self._awaited[handle.serial << 1] = self._new_future()
        self._send_soon()
        return future

    def release(self, handle: Handle) -> asyncio.Future[int | Odd] | int | Odd:
        """Posts the release of a handle, which the caller has no more: it is given back when this
        has ended. The future of SUCCESS or what else came of it, which nobody has to await; or
        that itself, when it is known at once."""
        status: int = _post(self._pointer, handle.release)
        if status != PENDING:
            return _free(handle, status)
        cookie = handle.serial << 1 | 1
        self._releases[cookie] = handle
        future = self._awaited[cookie] = self._new_future()
        self._send_soon()
        return future

    def ask(self, handle: Handle, asker: Asker) -> int:
        """As `acquire`, but without a future: PENDING, and the asker will be told what came of it;
        or the status, which it is not told."""
        status: int = _post(self._pointer, handle.acquire)
        if status == PENDING:
            self._askers[handle.serial << 1] = asker
            self._send_soon()
        return status

    def let_go(self, handle: Handle) -> None:
        """As `release`, for those who need not know what came of it."""
        status: int = _post(self._pointer, handle.release)
        if status != PENDING:
            _free(handle, status)
            return
        self._releases[handle.serial << 1 | 1] = handle
        self._send_soon()

    def call(self, call: Any) -> asyncio.Future[int] | int:
        """Posts another call: as `acquire`. Who gives up calls `forget_call`."""
        call.cookie = cookie = next(self._cookies)
        status: int = _post(self._pointer, call)
        if status != PENDING:
            return status
        future = self._awaited[cookie] = self._new_future()
        self._send_soon()
        return future

    def forget(self, handle: Handle) -> None:
        """Nobody waits for the calls of this handle any more."""
        cookie = handle.serial << 1
        self._askers.pop(cookie, None)
        self._awaited.pop(cookie, None)
        self._awaited.pop(cookie | 1, None)
        self._releases.pop(cookie | 1, None)

    def forget_call(self, call: Any) -> None:
        """Undoes another call; nobody waits for it any more."""
        self._awaited.pop(call.cookie, None)
        lib.dlk_client_cancel(self._pointer, call)

    @property
    def waits(self) -> int:
        """How many calls have not ended."""
        return len(self._awaited) + len(self._askers)

    # ---- Sending ---------------------------------------------------------------------------------

    def _send_soon(self) -> None:
        """What was posted goes out at the end of this turn; at once when all those have posted
        again that the last look woke, since then nobody else is to be expected. So a task that is
        alone never waits for a turn, and a thousand tasks send together."""
        if self._spin is not None:
            self._spin.stir()
        self._expected -= 1
        if self._expected == 0:
            _flush(self._pointer)
        elif not self._announced:
            self._announced = True
            self._loop.call_soon(self._send)
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_S, self._look_again)

    def _send(self) -> None:
        self._announced = False
        _flush(self._pointer)

    # ---- What has ended --------------------------------------------------------------------------

    def _look(self) -> None:
        if self._spin is not None:
            self._spin.stir()
        try:
            count = ROOM
            while count == ROOM:
                count = lib.dlk_client_collect(self._pointer, self._out, ROOM)
                self._expected = count
                self._hand_out(count)
        except BaseException:
            # A signal came: what had been collected is still there, and handed out twice is once.
            self._hand_out(ROOM)
            raise

    def _hand_out(self, count: int) -> None:
        awaited, askers = self._awaited, self._askers
        used = count * _ENDED_BYTES
        for cookie, status, _ in _iter_ended(self._bytes[:used]):
            asker = askers.pop(cookie, None)
            if asker is not None:
                asker.answered(status)
                continue
            outcome: int | Odd = status
            if cookie & 1 and (handle := self._releases.pop(cookie, None)) is not None:
                outcome = _free(handle, status)
            future = awaited.get(cookie)
            if future is not None:
                if not future.done():
                    future.set_result(outcome)
                del awaited[cookie]
        self._bytes[:used] = _NOTHING[:used]

    def _look_again(self) -> None:
        self._sweep = None
        self._look()
        if self._awaited or self._askers or self._releases:
            self._sweep = self._loop.call_later(SWEEP_S, self._look_again)

    def stop(self) -> None:
        """Ends the watch. The connection was detached, so that every call has ended."""
        if self._loop.is_closed():
            # Nobody can be told any more; but C must not be left with what belongs to tasks.
            while lib.dlk_client_collect(self._pointer, self._out, ROOM) == ROOM:
                pass
            return
        self._look()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._loop.remove_reader(self._fd)


def _free(handle: Handle, status: int) -> int | Odd:
    """A release has ended. Unless the server has confirmed it, the C client goes on telling the
    server, and nobody uses the handle again."""
    if status == _SUCCESS:
        NameTable.give_back(handle)
        return status
    good = handle.release.value > 0 and not handle.name.table.ended
    broken = handle.broken or handle.release.result == _BROKEN  # the notice may come later
    odd = Odd(status, good, int(handle.acquire.token), broken)
    NameTable.retire(handle)
    return odd
