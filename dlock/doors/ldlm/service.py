"""What LDLM's calls mean on dlock: sessions, locks and their keys, waits, timers.

One `LdlmService` a door; a `Session` for each HTTP/2 connection and each REST session, both of
which call the same methods. No sockets here, and no bytes. Every method of a session returns a
future of an `Answer`; who cancels it has given up: a wait ends, and a lock that was granted in that
moment is given back.

Each session is a party of its own at dlock (`client.owner`). A lock has no lease there: it is held
by the door, and what LDLM calls the lock timeout is a timer here, eager, and compared with the
clock whenever a key is shown. A wait at dlock is a little longer than the client's, so that where
the end of a lock and of a wait fall together the lock ends first.

| a lock that was granted ends | by |
|---|---|
| unlocked | anybody who has its key, or an operator (`force_unlock`) |
| over | its timer |
| with its session | `Session.close`, unless locks outlive their sessions (-n) |
| lost | dlock, which could not keep it; the session is told, and its connection is closed |

Durable locks (-s): a key is written down before it is given out, and struck out before its unlock
is answered; see dlock/doors/ldlm/records.py. When the service stops, they are not.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from dlock.aio import FOREVER
from dlock.doors.ldlm import problems
from dlock.doors.ldlm.logs import fields
from dlock.doors.ldlm.problems import SIZE_DEFAULT, Answer, Problem
from dlock.doors.ldlm.request import Request, ShutDown
from dlock.doors.ldlm.table import Entry, Held, Table
from dlock.errors import KindMismatch

if TYPE_CHECKING:
    from dlock.aio import Client, Hold, Owner
    from dlock.aio.keys import Key
    from dlock.doors.ldlm.records import Book, Record

WAIT_GRACE_MS: Final = 100
WAIT_MS_MAX: Final = 0xFFFFFFFE  # 49 days; a longer wait is one without an end
LABEL_KEPT: Final = "state file"
RESTORED_AT_ONCE: Final = 256
_log: Final = logging.getLogger("dlock.doors.ldlm")

__all__ = ["LdlmService", "Rules", "Session", "ShutDown"]


class Rules(NamedTuple):
    """What the operator has said. `outlive`: locks stay when their session ends (-n)."""

    gc_interval_s: float = 1800.0
    gc_min_idle_s: float = 300.0
    default_lock_timeout_s: float = 600.0
    outlive: bool = False


class Named(Protocol):
    """What dlock calls a name: see dlock/doors/names.py."""

    def __call__(self, name: str, size: int) -> Key: ...


class LdlmService:
    """The locks of one door. `book`: where keys are written down; None: nowhere."""

    def __init__(
        self, client: Client, named: Named, rules: Rules, counters: Counter[str],
        book: Book | None = None,
    ) -> None:
        self.client = client
        self.rules = rules
        self.counters = counters
        self.book = book
        self.loop = asyncio.get_running_loop()
        self.table: Table[Key] = Table(named)
        self.stopped = False
        self.sessions: set[Session] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._gc = self.loop.call_later(rules.gc_interval_s, self._collect)

    # ---- Sessions and operators ------------------------------------------------------------------

    def open(self, label: str, session_id: str | None = None) -> Session:
        """A session. `label`: who it is, for operators; `session_id`: what it calls itself."""
        session = Session(self, label, session_id or str(uuid.uuid4()))
        if not self.stopped:
            self.sessions.add(session)
        self.counters["sessions"] += 1
        return session

    def list(self) -> list[tuple[str, str, int]]:
        """Name, key and size of everything that is held."""
        now_s = self.loop.time()
        return [(held.name, held.key, held.entry.size)
                for held in self.table.held() if not held.over(now_s)]

    def force_unlock(self, name: str, key: str = "") -> asyncio.Future[Answer]:
        """An operator unlocks; without a key the one that was given out last."""
        if not key:
            self._end_lapsed(name)
            newest = self.table.newest(name)
            if newest is None:
                return self.answered(Answer(False, name, error=problems.NO_SUCH_LOCK))
            key = newest.key
        self.counters["forced_unlocks"] += 1
        return self.unlock(name, key)

    async def restore(self) -> int:
        """Takes every lock that is written down, with its old key and the default lock timeout;
        returns how many."""
        if self.book is None:
            return 0
        owner = self.client.owner(LABEL_KEPT)
        records = await self.book.load()
        taken = 0
        for first in range(0, len(records), RESTORED_AT_ONCE):
            some = records[first:first + RESTORED_AT_ONCE]
            taken += sum(await asyncio.gather(*(self._restored(owner, one) for one in some)))
        return taken

    async def _restored(self, owner: Owner, record: Record) -> bool:
        """One lock of the last time; False: somebody else has it by now."""
        assert self.book is not None
        said = fields(name=record.name, key=record.key)
        entry = self.table.entry(record.name, record.size, self.loop.time())
        assert isinstance(entry, Entry), "survivors of one name are of one size"
        hold: Hold | None = None
        entry.asking += 1
        try:
            hold = await owner.take(entry.lock, 0)
        except KindMismatch:
            pass
        finally:
            entry.asking -= 1
        if hold is None:
            self.table.forget(entry)
            _log.error("Error locking loaded lock: it is held by somebody else", extra=said)
            self.counters["records_refused"] += 1
            self.book.strike(record.key)
            return False
        held = self.grant(entry, record.key, hold, self.rules.default_lock_timeout_s, None)
        held.stored = True
        _log.info("Loaded lock", extra=said)
        return True

    async def stop(self) -> None:
        """Nothing more is granted. Waits end with `ShutDown`; what is written down stays so."""
        self.stopped = True
        self._gc.cancel()
        for session in list(self.sessions):
            session.shut_down()
        for held in list(self.table.held()):
            if held.timer is not None:
                held.timer.cancel()
        if self.book is not None:
            await self.book.close()
        for task in self._tasks:
            task.cancel()

    # ---- Holds -----------------------------------------------------------------------------------

    def grant(
        self, entry: Entry[Key], key: str, hold: Hold, timeout_s: float | None,
        session: Session | None,
    ) -> Held[Key]:
        now_s = self.loop.time()
        deadline_s = now_s + timeout_s if timeout_s else None
        held = self.table.give(entry, key, deadline_s, now_s)
        held.hold = hold
        held.session = session
        if session is not None:
            session.holds.add(held)
        hold.on_lost = partial(self._lost, held)
        self._wind(held)
        return held

    def _wind(self, held: Held[Key]) -> None:
        """Sets the timer of a hold anew."""
        if held.timer is not None:
            held.timer.cancel()
        if held.deadline_s is not None:
            held.timer = self.loop.call_at(held.deadline_s, self._ring, held)

    def _ring(self, held: Held[Key]) -> None:
        """The timer of a hold is over."""
        held.timer = None
        if not held.over(self.loop.time()):  # the clock of the loop is coarser than its timers
            self._wind(held)
            return
        self.counters["lock_timeouts"] += 1
        _log.info("Lock timer timeout", extra=fields(lock=held.name, key=held.key))
        self.give_back(held)

    def _end_lapsed(self, entry: Entry[Key] | str) -> None:
        """Ends what is over and whose timer has not been served yet."""
        found = self.table.get(entry) if isinstance(entry, str) else entry
        if found is not None:
            for held in found.lapsed(self.loop.time()):
                self._ring(held)

    def take_away(self, held: Held[Key]) -> bool:
        """Nobody has this key any more; False: nobody had it."""
        if not self.table.take(held, self.loop.time()):
            return False
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        session = held.session
        if session is not None:
            session.holds.discard(held)
            session.retire()
        return True

    def give_back(self, held: Held[Key]) -> None:
        """Takes a key away and releases what it held, without anybody who waits for that."""
        if self.take_away(held):
            held.hold.on_lost = None
            held.hold.release()
            self._strike(held)

    def _strike(self, held: Held[Key]) -> None:
        if held.stored and self.book is not None and not self.stopped:
            self.book.strike(held.key)

    def _lost(self, held: Held[Key], _hold: Hold) -> None:
        """dlock could not keep it: somebody else may have it. Never silent."""
        session: Session | None = held.session
        if not self.take_away(held):
            return
        self.counters["lost_holds"] += 1
        _log.error("Lock lost", extra=fields(
            lock=held.name, key=held.key, session_id=session.id if session else ""))
        self._strike(held)
        if session is not None:
            session.lost()

    # ---- Calls -----------------------------------------------------------------------------------

    def answered(self, answer: Answer) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = self.loop.create_future()
        future.set_result(answer)
        return future

    def carry_on(self, coroutine: Coroutine[Any, Any, Answer]) -> asyncio.Future[Answer]:
        """Carries on to the end, whoever gives up waiting for it."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.shield(task)

    def ask(
        self, session: Session, name: str, wait_ms: int, timeout_s: int | None, size: int | None
    ) -> asyncio.Future[Answer]:
        """Lock and TryLock, when their timeouts are found to be good."""
        wanted = SIZE_DEFAULT if size is None else size
        problem = problems.name_problem(name, wanted)
        if problem is None and self.stopped:
            problem = problems.SHUT_DOWN
        if problem is None and session.closed:
            problem = problems.NO_SESSION
        if problem is None:
            entry = self.table.entry(name, wanted, self.loop.time())
            if isinstance(entry, Entry):
                if entry.full:
                    self._end_lapsed(entry)
                return Request(session, entry, wait_ms, timeout_s)
            problem = entry
        return self.answered(Answer(False, name, str(uuid.uuid4()), problem))

    def unlock(self, name: str, key: str) -> asyncio.Future[Answer]:
        if self.stopped:
            return self.answered(Answer(False, name, error=problems.SHUT_DOWN))
        held = self.table.find(name, key, self.loop.time())
        if isinstance(held, Problem):
            self._end_lapsed(name)
            return self.answered(Answer(False, name, error=held))
        self.take_away(held)
        hold: Hold = held.hold
        hold.on_lost = None
        certain = hold.release()
        if certain and not held.stored:
            return self.answered(Answer(True, name))
        return self.carry_on(self._unlocked(held, certain))

    async def _unlocked(self, held: Held[Key], certain: bool) -> Answer:
        """A release whose outcome is not known yet, or a lock that is to be struck out."""
        struck = self.book.strike(held.key) if held.stored and self.book is not None else None
        released = certain or await held.hold.settled()
        if struck is not None:
            await struck
        if released:
            return Answer(True, held.name)
        self.counters["lost_holds"] += 1
        _log.error("Lock lost before it was unlocked", extra=fields(lock=held.name, key=held.key))
        return Answer(False, held.name, error=problems.WRONG_KEY)

    def renew(self, name: str, key: str, timeout_s: int) -> asyncio.Future[Answer]:
        if timeout_s <= 0:
            return self.answered(Answer(False, name, "", problems.BAD_LOCK_TIMEOUT))
        held = self.table.find(name, key, self.loop.time())
        if isinstance(held, Problem) or held.deadline_s is None:
            return self.answered(Answer(False, name, key, problems.NO_TIMER))
        held.deadline_s = self.loop.time() + timeout_s
        self._wind(held)
        if held.hold.held:
            return self.answered(Answer(True, name, key))
        return self.carry_on(self._renewed(held))

    async def _renewed(self, held: Held[Key]) -> Answer:
        """What is held may be gone: only the server can say."""
        if await held.hold.settled():
            return Answer(True, held.name, held.key)
        return Answer(False, held.name, held.key, problems.NO_TIMER)

    # ---- Idle names ------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Names that nobody uses go, and with them their sizes."""
        gone = self.table.collect(self.rules.gc_min_idle_s, self.loop.time())
        for entry in gone:
            self.client.let_go(entry.lock)
        self.counters["names_collected"] += len(gone)
        _log.info("Lock garbage collection cleared %d locks", len(gone))
        self._gc = self.loop.call_later(self.rules.gc_interval_s, self._collect)


class Session:
    """One client of the door: an HTTP/2 connection, or a REST session. `on_lost`: called when a
    lock that it took was lost; whoever sets it ends the session."""

    def __init__(self, service: LdlmService, label: str, session_id: str) -> None:
        self.service = service
        self.label = label
        self.id = session_id
        self.closed = False
        self.on_lost: Callable[[], None] | None = None
        self.holds: set[Held[Key]] = set()
        self.requests: set[Request] = set()
        self.owner: Owner = service.client.owner(label)

    def try_lock(
        self, name: str, lock_timeout_s: int | None, size: int | None
    ) -> asyncio.Future[Answer]:
        """TryLock: `ok` False without an error if the lock is taken, be it by this session."""
        service = self.service
        problem = problems.timeouts_problem(lock_timeout_s, None)
        if problem is not None:
            return service.answered(Answer(False, name, "", problem))
        return service.ask(self, name, 0, lock_timeout_s, size)

    def lock(
        self, name: str, wait_timeout_s: int | None, lock_timeout_s: int | None, size: int | None
    ) -> asyncio.Future[Answer]:
        """Lock: waits in line; no wait timeout, or 0, is for ever."""
        service = self.service
        problem = problems.timeouts_problem(lock_timeout_s, wait_timeout_s)
        if problem is not None:
            return service.answered(Answer(False, name, "", problem))
        wait_ms = FOREVER
        if wait_timeout_s and wait_timeout_s * 1000 + WAIT_GRACE_MS <= WAIT_MS_MAX:
            wait_ms = wait_timeout_s * 1000 + WAIT_GRACE_MS
        return service.ask(self, name, wait_ms, lock_timeout_s, size)

    def unlock(self, name: str, key: str) -> asyncio.Future[Answer]:
        """Unlock: whoever has the key may, in whatever session."""
        return self.service.unlock(name, key)

    def renew(self, name: str, key: str, lock_timeout_s: int) -> asyncio.Future[Answer]:
        """Renew: the timer ends so many seconds from now; a lock without a timer has none to
        renew."""
        return self.service.renew(name, key, lock_timeout_s)

    def close(self) -> None:
        """The connection has ended. Waits are gone; what was taken is released, unless locks
        outlive their sessions. Does nothing the second time."""
        if self.closed:
            return
        self.closed = True
        service = self.service
        service.sessions.discard(self)
        for request in list(self.requests):
            request.cancel()
        if service.stopped:  # what is written down stays, and the client's end frees the rest
            return
        if not service.rules.outlive:
            for held in list(self.holds):
                service.give_back(held)
        self.retire()

    def retire(self) -> None:
        """A closed session whose last lock is gone is no party any more."""
        if self.closed and not self.holds and not self.service.stopped:
            self.owner.close()

    def lost(self) -> None:
        """A hold was lost."""
        if not self.closed and self.on_lost is not None:
            self.on_lost()

    def shut_down(self) -> None:
        """The door stops."""
        for request in list(self.requests):
            request.shut_down()
