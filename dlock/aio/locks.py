"""Locks for asyncio: `Lock` and `FairLock`, and what every kind of lock object has in common.

Every acquisition is an owner of its own: it takes a handle (dlock/_handle.py), the server queues it
behind whoever came before, and the object keeps the handle until the release. So two tasks exclude
each other, any number of tasks may use one object, and none of them waits but at the server.

What a cancellation, or any other exception that strikes a wait, leaves behind: nothing.

| an acquisition | waits for | struck, it |
|---|---|---|
| is new | nothing | has done nothing |
| has no link | the link, with all others | has asked for nothing |
| has no name yet | the name's number, with all who want it | leaves; others go on waiting |
| is asked | the server | is cancelled there: its place goes, a grant under way is given back |
| has ended | its turn in the loop | gives back what was granted |
| holds | nothing | is over: the object holds the lock, and `release` works |

A release is posted when `release` is called, not when what it returns first runs. From then on the
object does not hold the lock, and nothing that becomes of the task changes that: struck in its
wait, cancelled before it ran, or never awaited at all, the lock is released.

Interrupts (KeyboardInterrupt in a loop that does not turn it into a cancellation) come between any
two bytecodes. A handle is in one place at a time: a local variable, or `_held`. While it is in a
variable, an exception undoes whatever was asked with it, and a handle that is dropped unseen gives
back what it holds when it dies.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar, cast

from dlock import _calls, _core
from dlock._calls import EXCLUSIVE, FOREVER, Asked, look, shown
from dlock._handle import APART, Handle, Key, NameTable
from dlock.aio import _attempt
from dlock.aio._watch import Told, Watch
from dlock.errors import LockLost, NotHeld

if TYPE_CHECKING:
    from dlock.admin import Holder
    from dlock.aio._connection import Connection

_F = TypeVar("_F", bound=Callable[..., Coroutine[Any, Any, Any]])
_L = TypeVar("_L", bound="BaseLock")

_SUCCESS: Final[int] = _core.DLK_STATUS_SUCCESS
_UNTIMED: Final = (FOREVER, 0)
_give_back: Final = NameTable.give_back

# The same way of asking is the same object, so that a handle that has asked so is filled already.
ask: Final = functools.lru_cache(maxsize=1024)(Asked)


class Options(NamedTuple):
    """How a lock object was asked for."""

    lease: float | None = None
    renew: bool = True
    deadlock: bool = True
    on_lost: Told | None = None
    on_suspended: Told | None = None


class BaseLock:
    """What all lock objects do. Made by a `Client`, and used in its event loop."""

    __slots__ = ("__weakref__", "_apart", "_asked", "_client", "_held", "_key", "_nested",
                 "_options", "_watch")

    mode: ClassVar[int] = EXCLUSIVE
    leases: ClassVar[bool] = True  # does the kind know leases?

    def __init__(self, client: Connection, key: Key, options: Options) -> None:
        self._client = client
        self._key = key
        self._options = options
        self._held: list[Handle] = []
        self._watch: Watch | None = None
        lease_ms = self._lease_ms(options.lease)
        flags = _calls.DEADLOCK_FLAG if options.deadlock else 0
        self._apart = 0 if options.deadlock else APART
        self._asked = ask(self.mode, lease_ms, FOREVER, 0, int(options.renew))
        # Who holds nothing closes no cycle of waits; for others the server looks.
        self._nested = ask(self.mode, lease_ms, FOREVER, flags, int(options.renew))
        on_lost = options.on_lost or client.on_lost
        on_suspended = options.on_suspended or client.on_suspended
        if on_lost is not None or on_suspended is not None:
            self._watch = Watch(self, on_lost, on_suspended)

    def _lease_ms(self, lease: float | None) -> int:
        if lease is not None and not self.leases:
            raise ValueError(f"{self!r} has no leases: a hold of it ends with the session")
        return _calls.lease_ms_of(lease)

    # ---- Acquire ---------------------------------------------------------------------------------

    async def acquire(
        self, blocking: bool = True, timeout: float | None = -1, *, lease: float | None = None
    ) -> bool:
        """Takes the lock; True when it is held, False when it is taken and the wait is over.

        `blocking=False` only tries, `timeout` is in seconds, -1 or None waits for ever. `lease`, in
        seconds: the hold ends by then unless it is extended, and by itself it is extended while
        this process lives, unless the lock was made with `renew=False`. None: the lock's own
        lease, or none: the hold ends with the session.

        Deadlock; ConnectionLost: no server in this time; LeaseTooLong; ServerFull; KindMismatch.
        """
        actor = self._client.enter()
        asked = self._asking(actor)
        if lease is not None or timeout != -1 or blocking is not True:
            mode, lease_ms, _, flags, renew = asked
            if lease is not None:
                lease_ms = self._lease_ms(lease)
            asked = ask(mode, lease_ms, _calls.wait_ms_of(blocking, timeout), flags, renew)
        return await self._acquire(asked, actor)

    def _asking(self, actor: int) -> Asked:
        """How this actor asks, where nothing else is said."""
        return self._nested if actor in self._client.holding else self._asked

    async def _acquire(self, asked: Asked, actor: int) -> bool:
        client = self._client
        actor |= self._apart
        # From here on: the first attempt may take all of it.
        deadline = None if asked.wait_ms in _UNTIMED else _attempt.until(asked.wait_ms)
        handle = client.names.take(self._key, actor)
        if handle is None:
            take_by = _attempt.until(asked.wait_ms) if deadline is None else deadline
            handle = await client.take(self._key, actor, take_by)
        try:
            if handle.asked is not asked:
                _attempt.fill(handle, asked)
            if self._watch is not None:
                self._watch.begin(handle)
            status = client.collector.acquire(handle)
            if status.__class__ is not int:
                status = await cast(Any, status)
            granted = not status
            if status:
                handle, granted = await _attempt.persist(
                    client, handle, asked, cast(int, status), self._watch, deadline)
            if granted:
                self._hold(handle)
                return True
        except BaseException:
            self._withdraw(handle)
            raise
        handle.watcher = None
        _give_back(handle)
        return False

    def _hold(self, handle: Handle) -> None:
        """From now on the object holds the lock."""
        self._held.append(handle)
        self._client.holds(handle.actor)
        if self._watch is not None:
            self._watch.look_again(handle)

    def _withdraw(self, handle: Handle) -> None:
        """An acquisition that was struck leaves nothing behind."""
        with contextlib.suppress(ValueError):  # it had not come that far
            self._held.remove(handle)
            self._client.holds_no_more(handle.actor)
        _attempt.withdraw(self._client, handle)

    # ---- Release ---------------------------------------------------------------------------------

    def release(self) -> Coroutine[Any, Any, None]:
        """Gives the lock back, at once; await the result to know that the server has taken it. Any
        task may. NotHeld: this object does not hold it; LockLost: it was lost before, so somebody
        else may have held it meanwhile (Broken: by an operator).

        Without a link the release is remembered and made when the link is back."""
        client = self._client
        actor = client.enter()
        handle: Handle | None = None
        try:
            handle = self._claim(actor | self._apart)
            client.holds_no_more(handle.actor)
            if handle.watcher is not None:
                handle.watcher = None
            if handle.name.table.ended:
                raise _attempt.lost(handle, self.name)
            return _attempt.conclude(handle, client.collector.release(handle), self.name)
        except BaseException:
            if handle is not None:
                _attempt.withdraw(client, handle)
            raise

    def _claim(self, actor: int) -> Handle:
        """Takes a hold out: of several that of this actor, if it has one."""
        held = self._held
        if len(held) > 1:
            for index in range(len(held) - 1, -1, -1):
                if held[index].actor == actor:
                    return held.pop(index)
        if not held:
            raise NotHeld(f"{self!r} is not held by this object")
        return held.pop()

    # ---- async with, and as a decorator ----------------------------------------------------------

    async def __aenter__(self: _L) -> _L:
        actor = self._client.enter()
        await self._acquire(self._asking(actor), actor)
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
        """As a decorator of a coroutine function: each call is an acquisition of its own."""
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"{self!r} decorates coroutine functions, not {function!r}; use the "
                            f"locks of `dlock` for others")

        @functools.wraps(function)
        async def guarded(*arguments: Any, **keywords: Any) -> Any:
            async with self._for_a_call():
                return await function(*arguments, **keywords)

        return cast(_F, guarded)

    def _for_a_call(self: _L) -> _L:
        """The object that guards one call of a decorated function."""
        return type(self)(self._client, self._key, self._options)

    # ---- What is held ----------------------------------------------------------------------------

    @property
    def name(self) -> str | bytes:
        """The name of the lock; bytes where it is no UTF-8."""
        try:
            return self._key[0].decode()
        except UnicodeDecodeError:
            return self._key[0]

    @property
    def exclusive(self) -> bool:
        """Does a hold keep everybody else out? Only then its token fences."""
        return self.mode == EXCLUSIVE

    def _concerned(self) -> Handle | None:
        """The hold that concerns the running task: its own, or the newest."""
        held = self._held
        if len(held) > 1:
            actor = self._client.actor | self._apart
            for handle in reversed(held):
                if handle.actor == actor:
                    return handle
        return held[-1] if held else None

    def _held_hold(self) -> Handle:
        handle = self._concerned()
        if handle is None:
            raise NotHeld(f"{self!r} is not held by this object")
        return handle

    @property
    def held(self) -> bool:
        """Does this object hold the lock, now, by the client's own clock? False too while the hold
        is SUSPENDED: act as if it were gone."""
        handle = self._concerned()
        return handle is not None and look(handle).left_ms > 0

    @property
    def token(self) -> int:
        """The fencing token of the hold, for storage to compare; see `dlock.FenceGuard`. It stays
        what it was when the hold is lost. NotHeld."""
        return int(self._held_hold().acquire.token)

    @property
    def tokens(self) -> frozenset[int]:
        """The tokens of everything that this object holds."""
        return frozenset(int(handle.acquire.token) for handle in self._held)

    @property
    def remaining(self) -> float:
        """For how many seconds the hold is certainly good if the server is not heard of again: of
        its lease, or of the session. 0.0: not held, or suspended."""
        handle = self._concerned()
        return look(handle).left_ms / 1000 if handle is not None else 0.0

    def ensure_held(self, min_left: float = 0.0) -> None:
        """LockLost unless the lock is held, and stays so for `min_left` seconds more; NotHeld. To
        be called before what must not be done without it."""
        handle = self._held_hold()
        view = look(handle)
        if view.token == 0 or view.left_ms == 0 or view.left_ms < min_left * 1000:
            raise _attempt.lost(handle, self.name)

    async def extend(self, lease: float | None = None) -> float:
        """Makes the lease of the hold end `lease` seconds from now (None: as long as it was asked
        for), if that is later than now; `remaining` afterwards. NotHeld; LockLost; LeaseTooLong;
        ConnectionLost."""
        self._client.enter()
        handle = self._held_hold()
        asked = cast(Asked, handle.asked)
        if asked.lease_ms == 0:
            raise ValueError(f"{self!r} is held without a lease: there is nothing to extend")
        lease_ms = asked.lease_ms if lease is None else self._lease_ms(lease)
        return await _attempt.extend(self._client, handle, asked.mode, lease_ms, self.name) / 1000

    @property
    def lost(self) -> Any:
        """An asyncio.Event: set when a hold of this object is lost, cleared by the next
        acquisition."""
        if self._watch is None:
            self._watch = Watch(self)
            for handle in self._held:
                handle.watcher = self._watch
                self._watch.look_again(handle)
        return self._watch.lost

    # ---- What the server says --------------------------------------------------------------------

    async def holder(self) -> Holder | None:
        """Who holds it, one of them if there are several; None: nobody. Asks the server; the answer
        may be old when it is read."""
        shown = await self._client.show(self._key[0])
        return shown.holders[0] if shown is not None and shown.holders else None

    async def locked(self) -> bool:
        """Is it held by anybody? Asks the server; the answer may be old when it is read."""
        return await self.holder() is not None

    # ---- As an object ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = "held" if self._held else "not held"
        return f"<dlock.aio.{type(self).__name__} {shown(self._key[0])}, {state}>"


class Lock(BaseLock):
    """A mutex."""

    __slots__ = ()


class FairLock(BaseLock):
    """A mutex that is given out in the order in which it was asked for."""

    __slots__ = ()
