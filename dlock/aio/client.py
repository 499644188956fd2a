"""`connect` and `Client` for asyncio: what gives out lock objects. What they share, and how links
are brought back, is in dlock/aio/_connection.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final

from dlock import _calls, _core
from dlock._enter import Options
from dlock._info import checked_role, client_info
from dlock._objects import OnRecover
from dlock._session import Session, Steps
from dlock._transport import Transport, wished
from dlock.address import Address, parse
from dlock.admin import LockDetails
from dlock.aio import kinds
from dlock.aio._connection import Connection
from dlock.aio._watch import Told
from dlock.aio.atomic import AtomicInt64
from dlock.aio.keys import Key
from dlock.aio.locks import BaseLock, FairLock, Lock
from dlock.aio.locks import Options as LockOptions
from dlock.aio.multi import Multi
from dlock.aio.owner import Owner
from dlock.aio.records import Records
from dlock.control.messages import Stats

WAITS: Final = ("block", "adaptive")
TIMEOUT_S: Final = 10.0  # of connect, and of what was given no time


def connect(
    address: str | os.PathLike[str] | Address | None = None,
    *,
    timeout: float = TIMEOUT_S,
    name: str | None = None,
    wait: str = "block",
    transport: str | None = None,
    device: str | None = None,
    gid: str | bytes | None = None,
    on_lost: Told | None = None,
    on_suspended: Told | None = None,
    role: str = "",
    on_superseded: Callable[[], object] | None = None,
) -> Connecting:
    """Connects to a dlock server: `client = await connect(...)`, or `async with connect(...) as
    client`.

    `address`: HOST:PORT, the path of an address file, or several with commas between them; None:
    DLOCK_ADDRESS, else 127.0.0.1:21616. `timeout`: seconds in which a server must have answered; an
    address file that does not exist yet is waited for as long. `name`: shown to operators in the
    place of the program's. `wait`: "block", or "adaptive": for at most 0.1 ms after what is asked
    or answered the event loop looks for more before it sleeps, where that has been worth it and a
    core is to spare; for programs that ask one thing at a time and have nothing else to do.

    `transport`: over what the data plane is to be: "auto" (RDMA where this machine and the server
    have it, else TCP), "verbs" (RDMA or nothing), "tcp"; None: DLOCK_TRANSPORT, else auto.
    `device`, `gid`: which RDMA device, and which of its addresses (an IPv4 or IPv6 address, or 16
    bytes); None: DLOCK_DEVICE and DLOCK_GID, else the best there is. See `Client.transport`.

    `on_lost(lock)` and `on_suspended(lock)`: called by the event loop for every lock object of this
    client that has none of its own.

    `role`: a text of at most 128 bytes that at most one client of a service has. Connecting with it
    ends the session of the client that has it, whether that is dead, cut off or at work, with all
    that it holds: see "Roles" in docs/python.md for what that means. That one does not come back:
    its calls raise Superseded, and `on_superseded()` is called by its event loop.

    ConnectError: no server answered in time, or none over RDMA where nothing else was wanted;
    ValueError: no address, no such way to wait, transport or GID.
    """
    if wait not in WAITS:
        raise ValueError(f"wait is {wait!r}, not one of {', '.join(WAITS)}")
    # No thread waits in C, so that its waiting mode does not matter.
    info = {**client_info(name), "role": role} if checked_role(role) else client_info(name)
    options = Options(parse(address), _core.DLK_WAIT_BLOCK, info,
                      wished(transport, device, gid), logging.getLogger("dlock.aio"), role)
    return Connecting(
        options, timeout, on_lost, on_suspended, on_superseded, adaptive=wait == "adaptive")


class Connecting(Awaitable["Client"], AbstractAsyncContextManager["Client"]):
    """What `connect` returns: await it, or enter it with `async with`. Nothing happens before."""

    def __init__(
        self, options: Options, timeout_s: float, on_lost: Told | None, on_suspended: Told | None,
        on_superseded: Callable[[], object] | None, *, adaptive: bool = False,
    ) -> None:
        self._adaptive = adaptive
        self._options = options
        self._timeout_s = timeout_s
        self._told = on_lost, on_suspended, on_superseded
        self._client: Client | None = None

    async def _open(self) -> Client:
        connection = Connection(
            asyncio.get_running_loop(), self._options, adaptive=self._adaptive)
        connection.on_lost, connection.on_suspended, connection.on_superseded = self._told
        await connection.open(self._timeout_s)
        return Client(connection)

    def __await__(self) -> Generator[Any, None, Client]:
        return self._open().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._open()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.close()


class Client:
    """A connection to a dlock server, for the event loop in which it was made. Get one from
    `connect`, end it with `close` or `async with`.

    Links that break are brought back in the background; what is asked meanwhile waits for them. A
    client that is used from another loop or thread raises WrongLoop.
    """

    __slots__ = ("__weakref__", "_connection")

    def __init__(self, connection: Connection) -> None:
        """Use `connect`."""
        self._connection = connection

    def __repr__(self) -> str:
        connection = self._connection
        state = ("closed" if connection.closed else
                 "connected" if connection.whole else "reconnecting")
        return f"<dlock.aio.Client of {self.address}, {state}>"

    # ---- Locks -----------------------------------------------------------------------------------

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
        """A lock for one holder at a time. Nothing is asked of the server before its first use.

        `reentrant`: the task that holds it may acquire it again. `lease`, `renew`: see
        `Lock.acquire`. `deadlock=False`: waits even where that can never end. `on_lost`,
        `on_suspended`: called by the event loop, with the lock, when a hold of it is lost, or may
        be.
        """
        options = LockOptions(lease, renew, deadlock, on_lost, on_suspended)
        key = _calls.descriptor(name), _calls.ATOMIC, 1
        return (kinds.ReentrantLock if reentrant else Lock)(self._connection, key, options)

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
        """A lock whose waiters are served strictly in order of arrival; `shared`: to hold it
        together with others who only read. The rest as for `lock`."""
        options = LockOptions(lease, renew, deadlock, on_lost, on_suspended)
        key = _calls.descriptor(name), _calls.FAIR, 1
        made: type[FairLock] = kinds.SharedFairLock if shared else FairLock
        if reentrant:
            made = kinds.ReentrantSharedFairLock if shared else kinds.ReentrantFairLock
        return made(self._connection, key, options)

    def rwlock(
        self,
        name: str | bytes,
        *,
        reentrant: bool = False,
        deadlock: bool = True,
        on_lost: Told | None = None,
        on_suspended: Told | None = None,
    ) -> kinds.RWLock:
        """Readers and one writer: `async with lock.read():`, `async with lock.write():`."""
        options = LockOptions(None, True, deadlock, on_lost, on_suspended)
        key = _calls.descriptor(name), _calls.RW, 1
        return kinds.RWLock(self._connection, key, options, reentrant=reentrant)

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
    ) -> kinds.Semaphore:
        """At most `size` hold it at a time."""
        options = LockOptions(lease, renew, deadlock, on_lost, on_suspended)
        key = _calls.descriptor(name), _calls.SEMAPHORE, _calls.semaphore_size(size)
        return kinds.Semaphore(self._connection, key, options)

    def multi(self, locks: Iterable[BaseLock]) -> Multi:
        """Several locks of this client at once, all or none: `async with client.multi([a, b]):`.
        Everybody who does so takes them in one order, so that no two wait for each other."""
        return Multi(self._connection, locks)

    def atomic(
        self, name: str | bytes, initial: int = 0, *, on_recover: OnRecover | None = None
    ) -> AtomicInt64:
        """A signed 64-bit number that everybody changes in one step; `initial`: what it is when
        nobody has named it before.

        `on_recover`: what it is to be at a new primary, where it is gone: a number, or what returns
        one (or a coroutine) and is called by one client only. None: the first use after that raises
        ObjectLost."""
        return AtomicInt64(self._connection, _calls.descriptor(name), initial, on_recover)

    # ---- Many parties behind one client ----------------------------------------------------------

    def owner(self, label: str = "", *, patience: float | None = None) -> Owner:
        """A party with locks of its own, for a program that speaks for many: see
        `dlock.aio.Owner`. `label`: shown to operators; `patience`: for how many seconds an `ask`
        that does not wait for its lock waits for an answer of the server; None: for ever."""
        self._connection.check()
        return Owner(self._connection, label, patience)

    async def show(self, name: str | bytes) -> LockDetails | None:
        """Who holds the lock of this name and who waits for it; None: there is no such lock. The
        answer may be old when it is read. ConnectionLost."""
        self._connection.check()
        return await self._connection.show(_calls.descriptor(name))

    def describe(self, key: Key, text: bytes) -> None:
        """Tells operators what the name of this lock stands for, where it is a hash of something
        longer: at most 48 KiB of it, for as long as this client has the name. Costs next to nothing
        when it has been said before."""
        self._connection.descriptions.text(key.descriptor, text)

    def let_go(self, key: Key) -> bool:
        """Gives a name up that nobody of this client uses: the server forgets kind and size of a
        lock that no client has got. False: it is in use, or is not had."""
        return self._connection.let_go(key.lock)

    def let_go_idle(self, older_than: float) -> int:
        """Gives those names up that were not used for so many seconds; how many. To be called now
        and then: the first call that meets an idle name only begins to count."""
        return self._connection.let_go_idle(older_than)

    def records(self, space: str) -> Records:
        """Bytes under keys that outlive this client, its session and the primary: on the disk of
        the state directory before a call returns. `space` keeps those of one user apart."""
        return Records(self._connection, space)

    # ---- The client ------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The address that it was given, such that `connect` understands it anywhere."""
        return str(self._connection.options.address)

    @property
    def transport(self) -> Transport:
        """What carries what is asked of locks and numbers, or carried it last: `kind`, "verbs" or
        "tcp"; `device`, the RDMA device or None; `why`, in words. It may be another one after each
        reconnect."""
        return self._connection.session.transport

    @property
    def closed(self) -> bool:
        """True after `close`, and when another client has taken its role."""
        return self._connection.closed

    @property
    def superseded(self) -> bool:
        """Has another client taken the role of this one?"""
        return self._connection.superseded is not None

    @property
    def session_left(self) -> float:
        """Seconds for which locks without a lease are certainly held, if the server is not heard of
        again; 0.0: they are SUSPENDED."""
        if self.closed:
            raise self._connection.why_closed()
        return self._connection.session.left_s

    async def stats(self) -> dict[str, int]:
        """Counters (capital names) and gauges (small ones) of the server. ConnectionLost."""

        def ask(_session: Session) -> Steps[dict[str, int]]:
            (reply,) = yield [Stats()]
            return dict(reply.stats)

        return await self._connection.run(ask, time.monotonic() + TIMEOUT_S)

    async def close(self) -> None:
        """Leaves the server, which frees at once what this client holds, and ends every call that
        waits (ClientClosed). Does nothing the second time, and nothing in a forked child."""
        await self._connection.close()

    async def __aenter__(self) -> Client:
        self._connection.check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
