"""What a client gives out: `client.lock(name)` and its sisters. The part of `Client` that knows the
kinds of locks; it asks nothing of the server (a name is got at its first use)."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, cast

from dlock import _calls
from dlock._calls import ATOMIC, FAIR, RW, SEMAPHORE, descriptor
from dlock._objects import OnRecover
from dlock._reentrant import ReentrantFairLock, ReentrantLock, ReentrantSharedFairLock
from dlock._watch import Told
from dlock.admin import Admin
from dlock.atomic import AtomicInt64
from dlock.locks import DEFAULT, BaseLock, FairLock, Lock, Options, SharedFairLock
from dlock.multi import Multi
from dlock.rwlock import RWLock
from dlock.semaphore import Semaphore

if TYPE_CHECKING:
    from dlock._handle import Key
    from dlock.client import Client

_FAIR: Final = {
    (False, False): FairLock,
    (False, True): ReentrantFairLock,
    (True, False): SharedFairLock,
    (True, True): ReentrantSharedFairLock,
}


@functools.lru_cache(maxsize=4096)
def _lock_key(name: str | bytes) -> Key:
    return descriptor(name), ATOMIC, 1


def _options(
    default: Options, lease: float | None, renew: bool, deadlock: bool, on_lost: Told | None,
    on_suspended: Told | None,
) -> Options:
    """The same object for those who ask for nothing special, whose way of asking is known then."""
    if lease is None and renew and deadlock and on_lost is None and on_suspended is None:
        return default
    return Options(lease, renew, deadlock, on_lost, on_suspended)


class Factory:
    """Base of `Client`. Names are str (UTF-8) or bytes, 1..512 bytes; a name belongs to one kind.

    Options of all locks. `lease`: seconds after which a hold ends unless it is extended, None: it
    ends with the session. `renew`: leases are extended by themselves while this process lives.
    `deadlock`: a wait that would close a cycle is refused with Deadlock. `reentrant`: a thread may
    acquire again what it holds. `on_lost(lock)`: called when a hold is lost; `on_suspended(lock)`:
    when it could have ended and the server is silent; both in a thread of the library.

    A lock with `deadlock=False` takes no part in anybody's search for a cycle. It is for locks that
    one thread takes and another gives back, as a signal: for the server its taker would have to.
    """

    _default: Options = DEFAULT
    _on_lost: Told | None = None
    _on_suspended: Told | None = None

    def _tell_all(self, on_lost: Told | None, on_suspended: Told | None) -> None:
        """These are for all lock objects without callbacks of their own."""
        if on_lost is not None or on_suspended is not None:
            self._on_lost, self._on_suspended = on_lost, on_suspended
            self._default = Options()  # the same, and yet it has a lock object look here

    def lock(
        self,
        name: str | bytes,
        *,
        reentrant: bool = False,
        lease: float | None = None,
        renew: bool = True,
        deadlock: bool = True,
        on_lost: Told | None = None,
        on_suspended: Told | None = None,
    ) -> Lock:
        """A lock for one holder at a time. Options: see `Factory`."""
        options = self._default  # as _options, without a call more
        plain = lease is None and on_lost is None and on_suspended is None
        if not (plain and renew and deadlock):
            options = Options(lease, renew, deadlock, on_lost, on_suspended)
        kind = ReentrantLock if reentrant else Lock
        return kind(self, _lock_key(name), options)  # type: ignore[arg-type]  # it is a Client

    def fair_lock(
        self,
        name: str | bytes,
        *,
        shared: bool = False,
        reentrant: bool = False,
        lease: float | None = None,
        renew: bool = True,
        deadlock: bool = True,
        on_lost: Told | None = None,
        on_suspended: Told | None = None,
    ) -> FairLock:
        """A lock that serves readers (`shared`) and writers strictly in order of arrival."""
        options = _options(self._default, lease, renew, deadlock, on_lost, on_suspended)
        kind = _FAIR[bool(shared), bool(reentrant)]
        return kind(cast("Client", self), (descriptor(name), FAIR, 1), options)

    def rwlock(
        self,
        name: str | bytes,
        *,
        reentrant: bool = False,
        deadlock: bool = True,
        on_lost: Told | None = None,
        on_suspended: Told | None = None,
    ) -> RWLock:
        """A lock for many readers or one writer: `.read()` and `.write()`. It has no leases."""
        options = _options(self._default, None, True, deadlock, on_lost, on_suspended)
        key = (descriptor(name), RW, 1)
        return RWLock(cast("Client", self), key, options, reentrant=reentrant)

    def semaphore(
        self,
        name: str | bytes,
        size: int,
        *,
        lease: float | None = None,
        renew: bool = True,
        deadlock: bool = True,
        on_lost: Told | None = None,
        on_suspended: Told | None = None,
    ) -> Semaphore:
        """At most `size` may hold it; all must name the same size."""
        options = _options(self._default, lease, renew, deadlock, on_lost, on_suspended)
        key = (descriptor(name), SEMAPHORE, _calls.semaphore_size(size))
        return Semaphore(cast("Client", self), key, options)

    def atomic(
        self, name: str | bytes, initial: int = 0, *, on_recover: OnRecover | None = None
    ) -> AtomicInt64:
        """A signed 64-bit number; `initial` counts for whoever names it first.

        `on_recover`: what it is to be at a new primary, where it is gone: a number, or what returns
        one and is called by one client only. None: the first use after that raises ObjectLost."""
        return AtomicInt64(cast("Client", self), descriptor(name), initial, on_recover)

    @property
    def admin(self) -> Admin:
        """An operator's view of the same server: who holds what, and taking it away."""
        client = cast("Client", self)
        client._check()
        found: Admin = client.__dict__.setdefault("_admin", Admin(client._options.address))
        return found

    def _close_admin(self) -> None:
        admin = self.__dict__.get("_admin")
        if admin is not None:
            admin.close()

    def multi(self, locks: Iterable[BaseLock]) -> Multi:
        """All of these locks of this client, or none."""
        return Multi(cast("Client", self), locks)
