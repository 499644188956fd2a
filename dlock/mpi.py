"""Names of mpi4py's `util.sync` over dlock: a program of ranks changes its import and goes on.

    from dlock.mpi import Counter, Mutex      # was: from mpi4py.util.sync import Counter, Mutex

mpi4py is not imported here. What is called `comm` is anything with `rank`, `size`, `bcast` and
`barrier`; objects with one are made by all its ranks together, in the same order. Without `comm`,
whoever gives the same `name` shares the object, so that ranks of several programs may. `client` is
the dlock client to use, None: the process's own for the address that rank 0 knows (DLOCK_ADDRESS).
`info` and `tag` are taken and mean nothing here.

As in mpi4py an object belongs to the process, not to a thread of it. What differs: waiting costs no
processor time, and a rank that dies frees what it holds when its session ends. `Condition` is
missing: a hold can be given up by its holder only, so nobody could wake who waits.
"""

from __future__ import annotations

import array
import contextlib
import socket
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Protocol

import dlock
from dlock.address import Endpoint, parse
from dlock.server import Server, ServerConfig, ServerError

_EVERYWHERE: Final = ("0.0.0.0", "::")


class Communicator(Protocol):
    """What is asked of a communicator; those of mpi4py fit."""

    @property
    def rank(self) -> int:
        """Which one this process is, from 0 on."""

    @property
    def size(self) -> int:
        """How many there are."""

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """What rank `root` has given, for all."""

    def barrier(self) -> object:
        """Returns when all have come."""


# ---- A primary for one program -------------------------------------------------------------------


@contextlib.contextmanager
def serving(comm: Communicator, *, host: str = "0.0.0.0", port: int = 0) -> Iterator[dlock.Client]:
    """Rank 0 runs a primary for the time of the block, and every rank gets a client of it.

    It ends when all ranks have left the block. `host` is where it listens; the others are told rank
    0's host name where that is everywhere. ConnectError: rank 0 could not listen, or cannot be
    reached. A rank that leaves with an exception does not wait for the others.
    """
    server: Server | None = None
    told, problem = "", ""
    if comm.rank == 0:
        try:
            server = Server(ServerConfig(host=host, port=port))
            known_as = socket.gethostname() if server.host in _EVERYWHERE else server.host
            told = str(Endpoint(known_as, server.port))
        except ServerError as error:
            problem = str(error)
    try:
        told, problem = comm.bcast((told, problem))
        if problem:
            raise dlock.ConnectError(f"rank 0 could not start a dlock server: {problem}")
        with dlock.connect(told) as client:
            yield client
        comm.barrier()
    finally:
        if server is not None:
            server.stop()


# ---- What all objects do -------------------------------------------------------------------------


class _Named:
    """An object of several ranks: agrees on its name and server."""

    _what = "object"

    def __init__(
        self, comm: Communicator | None, client: dlock.Client | None, name: str | None,
        root: int = 0,
    ) -> None:
        self._comm = comm
        address = client.address if client is not None else ""
        if comm is None:
            self.name = name or _fresh()
        else:
            told = None
            if comm.rank == root:
                told = (name or _fresh(), address or str(parse()))
            self.name, address = comm.bcast(told, root)
        self._client = client or dlock.shared(address or None)
        self._freed = False

    def _check(self) -> None:
        if self._freed:
            raise RuntimeError(f"{self._what} already freed")

    def __repr__(self) -> str:
        return f"<dlock.mpi.{type(self).__name__} {self.name!r}>"


def _fresh() -> str:
    return f"mpi/{uuid.uuid4()}"


class Mutex(_Named):
    """One rank at a time. With `recursive`, the rank that holds it may acquire it again."""

    _what = "mutex"

    def __init__(
        self, *, recursive: bool = False, comm: Communicator | None = None, info: object = None,
        client: dlock.Client | None = None, name: str | None = None,
    ) -> None:
        super().__init__(comm, client, name)
        self._recursive = bool(recursive)
        self._lock = self._client.lock(self.name)
        self._count = 0

    def acquire(self, blocking: bool = True) -> bool:
        """Whether it is held now. RuntimeError: it is held already, and not recursive; LockLost:
        it was held, and the hold was lost."""
        self._check()
        if self._count:
            if not self._recursive:
                raise RuntimeError("cannot acquire already held mutex")
            self._lock.ensure_held()
        elif not self._lock.acquire(blocking):
            return False
        self._count += 1
        return True

    def release(self) -> None:
        """Undoes one acquisition. RuntimeError: it is not held; LockLost: not any more."""
        self._check()
        if not self._count:
            raise RuntimeError("cannot release unheld mutex")
        self._count -= 1
        if not self._count:
            self._lock.release()

    def locked(self) -> bool:
        """Does this rank hold it, now?"""
        self._check()
        return self._lock.held

    def count(self) -> int:
        """How often this rank has acquired it."""
        self._check()
        return self._count

    def free(self) -> None:
        """Releases it if need be, and ends the use of this object."""
        self._check()
        self._freed = True
        if self._count:
            self._count = 0
            with contextlib.suppress(dlock.LockLost):
                self._lock.release()

    def __enter__(self) -> Mutex:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Counter(_Named):
    """A number that every rank can draw from: no two get the same. It has 64 bits, whatever integer
    `typecode` says; `start` counts at rank `root` only."""

    _what = "counter"

    def __init__(
        self, start: int = 0, step: int = 1, *, typecode: str = "i",
        comm: Communicator | None = None, info: object = None, root: int = 0,
        client: dlock.Client | None = None, name: str | None = None,
    ) -> None:
        if not isinstance(array.array(typecode, [0])[0], int):
            raise ValueError(f"a dlock counter holds integers, not what {typecode!r} says")
        super().__init__(comm, client, name, root)
        self._step = step
        self._number = self._client.atomic(self.name, start)
        self._destroys = name is None and (comm is None or comm.rank == root)
        if comm is None or comm.rank == root:
            self._number.get()  # now it is there, with this rank's start
        if comm is not None:
            comm.barrier()

    def next(self, incr: int | None = None) -> int:
        """Adds `incr`, or the step, and returns what the number was before. OutcomeUnknown: the
        answer was lost, and it may or may not have counted. ObjectLost: the server has ended, and
        with it the number; the next use begins at `start` again, once for all ranks."""
        self._check()
        return self._number.fetch_add(self._step if incr is None else incr)

    def __iter__(self) -> Counter:
        return self

    def __next__(self) -> int:
        return self.next()

    def free(self) -> None:
        """All ranks together: ends the number, unless it was given a name and others may use it."""
        self._check()
        self._freed = True
        if self._comm is not None:
            self._comm.barrier()
        if self._destroys:
            self._number.destroy()


class Semaphore(_Named):
    """At most `value` slots are taken at a time. A rank gives back its own slots only, so there is
    no unbounded one."""

    _what = "semaphore"

    def __init__(
        self, value: int = 1, *, bounded: bool = True, comm: Communicator | None = None,
        info: object = None, client: dlock.Client | None = None, name: str | None = None,
    ) -> None:
        if not bounded:
            raise ValueError("a dlock semaphore is bounded: who takes a slot gives it back")
        super().__init__(comm, client, name)
        self._slots = self._client.semaphore(self.name, value)

    def acquire(self, blocking: bool = True) -> bool:
        """Takes a slot; False: there was none."""
        self._check()
        return self._slots.acquire(blocking)

    def release(self, n: int = 1) -> None:
        """Gives `n` slots back. ValueError: this rank has fewer; LockLost: not any more."""
        self._check()
        try:
            self._slots.release(n)
        except dlock.NotHeld:
            raise ValueError("semaphore released too many times") from None

    def free(self) -> None:
        """Gives back what this rank has, and ends the use of this object."""
        self._check()
        self._freed = True
        while self._slots.tokens:
            with contextlib.suppress(dlock.LockLost):
                self._slots.release()

    def __enter__(self) -> Semaphore:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Sequential(_Named):
    """Rank after rank: each begins when the one before has ended, as often as wanted.

    Each round has a lock for each rank, held from the end of its round before to its own end; the
    next rank waits for that. A rank that died counts as having ended.
    """

    _what = "sequence"

    def __init__(
        self, comm: Communicator, tag: int = 0, *, client: dlock.Client | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(comm, client, name)
        self._rank = comm.rank
        self._round = 0
        self._mine = self._turn(self._rank)
        self._mine.acquire()
        comm.barrier()

    def _turn(self, rank: int) -> dlock.Lock:
        return self._client.lock(f"{self.name}/{self._round}/{rank}", deadlock=False)

    def begin(self) -> None:
        """Returns when the rank before has ended this round."""
        self._check()
        if self._rank > 0:
            with self._turn(self._rank - 1):
                pass

    def end(self) -> None:
        """Lets the next rank begin. LockLost: it may have begun too early."""
        self._check()
        self._round += 1
        following = self._turn(self._rank)
        following.acquire()  # first, so that the next rank finds it held in the next round
        mine, self._mine = self._mine, following
        mine.release()

    def free(self) -> None:
        """Ends the use of this object; the next rank does not wait for this one any more."""
        if not self._freed:
            self._freed = True
            with contextlib.suppress(dlock.DlockError):
                self._mine.release()

    def __del__(self) -> None:
        if not getattr(self, "_freed", True) and hasattr(self, "_mine"):
            self.free()

    def __enter__(self) -> Sequential:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
