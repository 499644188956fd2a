"""Locks: `Lock`, `FairLock`, and what every kind of lock object has in common (`BaseLock`).

Every acquisition is an owner of its own: it takes a handle (dlock/_handle.py), the server queues it
behind whoever came before, and the object keeps the handle until the release. So two threads of
one client exclude each other, and any number of threads may use one lock object.

Interrupts. KeyboardInterrupt can come between any two bytecodes, and afterwards the object's word
and the server's must agree. Three things see to it. A handle is in one place at a time: in a local
variable, or in the list `_held`, out of which `pop` and `remove` take it whole. While it is in a
variable, an exception undoes whatever was asked with it. And a handle that is dropped unseen, off
the evaluation stack say, gives back what it holds when it dies. So the order of the lines in
`_acquire` and `release` matters; tests/test_interrupts.py breaks in at each of their bytecodes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar, cast

from dlock import _attempt, _calls, futures
from dlock._attempt import me
from dlock._calls import EXCLUSIVE, FOREVER, SHARED, Asked, look, shown
from dlock._core import lib
from dlock._handle import APART, Key, NameTable
from dlock._watch import Told, Watch
from dlock.errors import LockLost, NotHeld

if TYPE_CHECKING:
    from dlock._handle import Handle
    from dlock.admin import Holder
    from dlock.client import Client
    from dlock.futures import LockFuture

_F = TypeVar("_F", bound=Callable[..., Any])
_L = TypeVar("_L", bound="BaseLock")

# What is used once an acquisition: a global is found faster than an attribute of a module.
_call: Final = lib.dlk_client_call
_fill: Final = _calls.fill_acquire
_give_back: Final = NameTable.give_back

# The same way of asking is the same object, so that a handle that has asked so is filled already.
ask: Final = functools.lru_cache(maxsize=1024)(Asked)


class Options(NamedTuple):
    """How a lock object was asked for; what it is pickled with."""

    lease: float | None = None
    renew: bool = True
    deadlock: bool = True
    on_lost: Told | None = None
    on_suspended: Told | None = None


DEFAULT: Final = Options()


def _ways(mode: int, lease_ms: int, renew: int, flags: int) -> tuple[Asked, Asked]:
    """How to ask: when the thread holds nothing, so that it is in nobody's way, and when it does;
    `flags` for the latter."""
    alone = ask(mode, lease_ms, FOREVER, 0, renew)
    return alone, ask(mode, lease_ms, FOREVER, flags, renew)


_EXCLUSIVE_WAYS: Final = _ways(EXCLUSIVE, 0, 1, _calls.DEADLOCK_FLAG)
SHARED_WAYS: Final = _ways(SHARED, 0, 1, _calls.DEADLOCK_FLAG)


class BaseLock:
    """What all lock objects do. Made by a `dlock.Client`, which they belong to."""

    __slots__ = ("__weakref__", "_address", "_apart", "_client", "_entries", "_held", "_key",
                 "_options", "_watch", "_ways")
    _address: str
    _entries: dict[Handle, int]

    mode: ClassVar[int] = EXCLUSIVE
    _plain: ClassVar[tuple[Asked, Asked]] = _EXCLUSIVE_WAYS
    leases: ClassVar[bool] = True  # does the kind know leases?

    def __init__(self, client: Client, key: Key, options: Options = DEFAULT) -> None:
        self._client = client
        self._key = key
        self._options = options
        self._held: list[Handle] = []
        self._watch: Watch | None = None
        self._ways = self._plain
        self._apart = 0
        if options is not DEFAULT:
            self._configure(options)

    def _configure(self, options: Options) -> None:
        lease_ms = self._lease_ms(options.lease)
        flags = _calls.DEADLOCK_FLAG if options.deadlock else 0
        self._apart = 0 if options.deadlock else APART
        renew = int(options.renew)
        self._ways = _ways(self.mode, lease_ms, renew, flags)
        on_lost, on_suspended = options.on_lost, options.on_suspended
        client = cast("Client | None", self._client)  # None: it comes out of a pickle
        if client is not None:
            on_lost = on_lost or client._on_lost
            on_suspended = on_suspended or client._on_suspended
        if on_lost is not None or on_suspended is not None:
            self._watch = Watch(self, on_lost, on_suspended)

    def _lease_ms(self, lease: float | None) -> int:
        if lease is not None and not self.leases:
            raise ValueError(f"{self!r} has no leases: a hold of it ends with the session")
        return _calls.lease_ms_of(lease)

    # ---- Acquire ---------------------------------------------------------------------------------

    def acquire(
        self, blocking: bool = True, timeout: float | None = -1, *, lease: float | None = None
    ) -> bool:
        """Takes the lock; True when it is held, False when it is taken and the wait is over.

        As `threading.Lock.acquire`: `blocking=False` only tries, `timeout` is in seconds, -1 or
        None waits for ever. `lease`, in seconds: the hold ends by then unless it is extended, and
        by itself it is extended while this process lives, unless the lock was made with
        `renew=False`. None: the lock's own lease, or none: the hold ends with the session.

        Deadlock; ConnectionLost: no server in this time; LeaseTooLong; ServerFull; KindMismatch.
        """
        if lease is None and blocking is True and timeout == -1:
            return self._acquire(None)
        alone, among_others = self._ways
        mode, lease_ms, _, flags, renew = among_others if me.actor.holds else alone
        if lease is not None:
            lease_ms = self._lease_ms(lease)
        wait_ms = _calls.wait_ms_of(blocking, timeout)
        return self._acquire(ask(mode, lease_ms, wait_ms, flags, renew))

    def _acquire(self, asked: Asked | None) -> bool:
        actor = me.actor
        if asked is None:
            alone, among_others = self._ways
            asked = among_others if actor.holds else alone
        number = actor.number | self._apart
        handle = self._client._names.take(self._key, number)
        if handle is None:
            handle = _attempt.take(self._client, self._key, number, asked.wait_ms)
        try:
            if handle.asked is not asked:
                _fill(handle, asked)
            if self._watch is not None:
                self._watch.begin(handle)
            status = _call(handle.client, handle.acquire)
            if status:
                handle, granted = _attempt.persist(self._client, handle, asked, status, self._watch)
            if not status or granted:
                handle.holds = actor.holds
                self._held.append(handle)
                actor.holds.add(handle.serial)
                if self._watch is not None:
                    self._watch.look_again(handle)
                return True
        except BaseException:
            self._withdraw(handle)
            raise
        handle.watcher = None
        _give_back(handle)
        return False

    def _withdraw(self, handle: Handle) -> None:
        """An acquisition that was interrupted leaves nothing behind."""
        with contextlib.suppress(ValueError):  # it had not come that far
            self._held.remove(handle)
        handle.abandon()

    # ---- Release ---------------------------------------------------------------------------------

    def release(self) -> None:
        """Gives the lock back. Any thread may. NotHeld: this object does not hold it; LockLost: it
        was lost before, so somebody else may have held it meanwhile (Broken: by an operator).

        Without a link the release is remembered and made when the link is back."""
        held, handle = self._held, None
        try:
            handle = held.pop() if len(held) == 1 else self._claim()
            status = _call(handle.client, handle.release)
            clean = not status or _attempt.conclude(self._client, handle, status)
        except BaseException as error:
            if handle is not None:
                handle.abandon()
            elif isinstance(error, IndexError):
                raise self._not_held() from None
            raise
        handle.holds.discard(handle.serial)  # of whoever acquired it
        if handle.watcher is not None:
            handle.watcher = None
        if clean:
            _give_back(handle)
        else:
            handle.abandon()  # what is owed is not the handle's any more

    def _claim(self) -> Handle:
        """Takes one hold out of `_held`: the calling thread's, if it has one. IndexError: none.
        It must not be in a variable here: an interrupted frame lives on in its traceback."""
        actor = me.actor.number | self._apart
        own = [index for index, one in enumerate(tuple(self._held)) if one.actor == actor]
        return self._held.pop(own[-1] if own else -1)

    # ---- with, and as a decorator ----------------------------------------------------------------

    def __enter__(self: _L) -> _L:
        self._acquire(None)
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
        """As a decorator: each call of the function is an acquisition of its own."""
        self._refuse_coroutine(function)

        @functools.wraps(function)
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            with self._for_a_call():
                return function(*arguments, **keywords)

        return cast(_F, guarded)

    def _refuse_coroutine(self, function: Callable[..., Any]) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{self!r} would be given back before {function!r} runs; use `async with` of "
                "dlock.aio, or `with` inside of it"
            )

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

    def _hold(self) -> Handle | None:
        """The hold that concerns the calling thread: its own, or the newest."""
        held = tuple(self._held)
        if len(held) > 1:
            actor = me.actor.number | self._apart
            for handle in reversed(held):
                if handle.actor == actor:
                    return handle
        return held[-1] if held else None

    def _held_hold(self) -> Handle:
        handle = self._hold()
        if handle is None:
            raise self._not_held()
        return handle

    def _not_held(self) -> NotHeld:
        return NotHeld(f"{self!r} does not hold that: it was never acquired, or released already")

    @property
    def held(self) -> bool:
        """Does this object hold the lock, now, by the client's own clock? False too while the hold
        is SUSPENDED: act as if it were gone."""
        handle = self._hold()
        return handle is not None and look(handle).left_ms > 0

    @property
    def token(self) -> int:
        """The fencing token of the hold, for storage to compare; see `dlock.FenceGuard`. It stays
        what it was when the hold is lost. NotHeld."""
        return int(self._held_hold().acquire.token)

    @property
    def tokens(self) -> frozenset[int]:
        """The tokens of everything that this object holds."""
        return frozenset(int(handle.acquire.token) for handle in tuple(self._held))

    @property
    def remaining(self) -> float:
        """For how many seconds the hold is certainly good if the server is not heard of again: of
        its lease, or of the session. 0.0: not held, or suspended."""
        handle = self._hold()
        return look(handle).left_ms / 1000 if handle is not None else 0.0

    def ensure_held(self, min_left: float = 0.0) -> None:
        """LockLost unless the lock is held, and stays so for `min_left` seconds more; NotHeld. To
        be called before what must not be done without it."""
        handle = self._held_hold()
        view = look(handle)
        if view.token == 0 or view.left_ms == 0 or view.left_ms < min_left * 1000:
            raise self._client._lost(handle)

    def extend(self, lease: float | None = None) -> float:
        """Makes the lease of the hold end `lease` seconds from now (None: as long as it was asked
        for), if that is later than now; `remaining` afterwards. NotHeld; LockLost; LeaseTooLong;
        ConnectionLost."""
        handle = self._held_hold()
        token = int(handle.acquire.token)
        asked = cast(Asked, handle.asked)
        if asked.lease_ms == 0:
            raise ValueError(f"{self!r} is held without a lease: there is nothing to extend")
        lease_ms = asked.lease_ms if lease is None else self._lease_ms(lease)
        if handle not in self._held:
            raise self._not_held()  # another thread has released it
        return _attempt.extend(self._client, handle, token, asked.mode, lease_ms) / 1000

    @property
    def lost(self) -> threading.Event:
        """Set when a hold of this object is lost, cleared by the next acquisition."""
        if self._watch is None:
            self._watch = Watch(self)
            for handle in tuple(self._held):
                handle.watcher = self._watch
                self._watch.look_again(handle)
        return self._watch.lost

    # ---- What the server says --------------------------------------------------------------------

    def holder(self) -> Holder | None:
        """Who holds it, one of them if there are several; None: nobody. Asks the server; the answer
        may be old when it is read."""
        shown = self._client.admin.show(self._key[0])
        return shown.holders[0] if shown is not None and shown.holders else None

    def locked(self) -> bool:
        """Is it held by anybody? Asks the server; the answer may be old when it is read."""
        return self.holder() is not None

    # ---- Without waiting -------------------------------------------------------------------------

    def acquire_future(
        self, timeout: float | None = -1, *, lease: float | None = None
    ) -> LockFuture:
        """Asks for the lock and returns at once: a `concurrent.futures.Future` of what `acquire`
        would return. When it is True, this object holds the lock. `cancel` takes the request back
        at the server. (The first use of a name asks the server for it, and waits for that.)"""
        asked = self._ways[0]  # without a part in deadlocks: nobody knows which thread will wait
        lease_ms = asked.lease_ms if lease is None else self._lease_ms(lease)
        wait_ms = _calls.wait_ms_of(True, timeout)
        return futures.post(self, asked._replace(lease_ms=lease_ms, wait_ms=wait_ms))

    def _hold_from(self, handle: Handle) -> None:
        """A hold that was got for this object elsewhere."""
        self._held.append(handle)
        if self._watch is not None:
            self._watch.look_again(handle)

    # ---- As an object ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = "held" if self._held else "not held"
        return f"<dlock.{type(self).__name__} {shown(self._key[0])}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """By address, name and options: who unpickles it connects, at its first use."""
        if self._held:
            raise TypeError(f"{self!r} cannot be pickled while held: a hold stays where it is")
        return _unpickle, (type(self), self._client.address, self._key, self._options)

    def __getattr__(self, name: str) -> Any:
        """Only for what is missing: the client of an unpickled lock, until its first use."""
        if name == "_client":
            from dlock.client import shared  # which imports this module

            self._client = shared(self._address)
            return self._client
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _unpickle(cls: type[_L], address: str, key: Key, options: Options) -> _L:
    lock = cls(cast("Client", None), key, options)
    del lock._client  # until its first use
    lock._address = address
    return lock


# ---- Exclusive locks -----------------------------------------------------------------------------


class Lock(BaseLock):
    """A lock for one holder at a time, used like `threading.Lock`. Who waits is served in order of
    arrival; who only tries may come in between."""

    __slots__ = ()


class FairLock(BaseLock):
    """A lock whose waiters, exclusive and shared ones, are served strictly in order of arrival."""

    __slots__ = ()


class SharedFairLock(FairLock):
    """A `FairLock` for those who only read: they hold it together."""

    __slots__ = ()
    mode = SHARED
    _plain = SHARED_WAYS
