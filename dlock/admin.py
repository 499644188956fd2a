"""An operator's view of a server: which locks there are, who holds them, taking a hold away.

`Admin` has no session: looking renews nothing, holds nothing, and works while no client can be let
in. What clients say of themselves (host, user, program, job) is shown as they said it, not proved.
It asks over one control connection, made at the first question and again after it broke.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, TypeVar

from dlock import _core
from dlock.address import Address, parse
from dlock.control import messages as m
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages_operate import LOCK_LINES_MAX, NEVER
from dlock.control.messages_recover import (
    AWAIT_MS_MAX,
    EVICT_ALL,
    EVICT_IDS_MAX,
    EVICT_NONE,
    EVICT_THESE,
)
from dlock.errors import ConnectError, ConnectionLost, DlockError, ForkedError
from dlock.types import DlockStatus

TIMEOUT: Final = 5.0
MS_PER_S: Final = 1000
_KINDS: Final = {
    _core.DLK_KIND_ATOMIC: "atomic",
    _core.DLK_KIND_RW: "rw",
    _core.DLK_KIND_FAIR: "fair",
    _core.DLK_KIND_SEMAPHORE: "semaphore",
}
_MODES: Final = {_core.DLK_MODE_EXCLUSIVE: "exclusive", _core.DLK_MODE_SHARED: "shared"}
_Answer = TypeVar("_Answer", bound=m.Message)


# ---- What it returns -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """Whatever has a lock's name. `key` is the name as the server knows it."""

    key: bytes

    @property
    def name(self) -> str:
        """The name for people; bytes that are no UTF-8 are shown as \\xNN."""
        return self.key.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class LockSummary(Named):
    """A lock in short. `kind` is "atomic" (a plain lock), "rw", "fair" or "semaphore"; `size` how
    many may hold a semaphore at a time; `served` grows, modulo 65536, with each request that was
    granted or gave up; `text`: what the name stands for, if it was too long for a name and a client
    has told it. Of its newest holder: `holder`, who its client is, None: nobody holds it; `label`,
    what the client says of the party that holds it; `since_s`, for how long."""

    kind: str
    size: int
    lock_id: int
    holders: int
    waiters: int
    served: int
    text: bytes = b""
    holder: Peer | None = None
    label: str = ""
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A client as it describes itself: empty, or pid 0, where it says nothing. `info` is all that
    it says."""

    client_id: int
    host: str = ""
    pid: int = 0
    user: str = ""
    program: str = ""
    job: str = ""
    info: Mapping[str, object] = field(default_factory=dict, repr=False)

    @property
    def role(self) -> str:
        """The role of its session, which at most one session has; empty: none."""
        return str(self.info.get("role", ""))


@dataclass(frozen=True, slots=True)
class Holder(Peer):
    """Who holds a lock. `mode` is "exclusive" or "shared"; `actor` tells the threads or tasks of
    one client apart, 0: not known; `since_s`: for how long; `lease_left_s`: None: no lease, the
    hold ends with its session; `session_left_s`: until the session ends unless the client is heard
    of, 0.0: it has ended; `breaking`: the client was asked to give the hold up; `label`: what the
    client says of this party of its."""

    actor: int = 0
    mode: str = "exclusive"
    token: int = 0
    since_s: float = 0.0
    lease_left_s: float | None = None
    session_left_s: float = 0.0
    breaking: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class Waiter(Peer):
    """Who waits, the first in line first. `stamp` is the place in the line: it comes before every
    larger one; `ticket`: keeps a place in the line of a fair lock without waiting."""

    actor: int = 0
    mode: str = "exclusive"
    stamp: int = 0
    since_s: float = 0.0
    session_left_s: float = 0.0
    ticket: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class LockDetails(Named):
    """One lock at one moment. `more`: holders and waiters beyond those that fitted the answer;
    `text`: what the name stands for, if it was too long for a name and a client has told it."""

    kind: str
    size: int
    lock_id: int
    holders: tuple[Holder, ...]
    waiters: tuple[Waiter, ...]
    more: int
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class ClientSummary(Peer):
    """A session. `connected`: it has a control connection; `ended`: it is over, and only holds
    whose lease still runs are left of it; `locks`: how many names it has got; `since_s`: its
    age; `transport`: of its data connection, "verbs" or "tcp"."""

    connected: bool = False
    ended: bool = False
    locks: int = 0
    since_s: float = 0.0
    transport: str = "tcp"


# ---- Asking --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Absent:
    """A client of the former primary that is waited for. `who`: its host and pid, as it said them;
    `lease_s`: the longest lease that it declared, 0.0: none; `left_s`: for how long it is still
    waited for; `came`: it has begun to re-initialise and has not said that it is done."""

    client_id: int
    who: str
    lease_s: float
    left_s: float
    came: bool


@dataclass(frozen=True, slots=True)
class RecoveryStatus:
    """How far a server is after its start. `ready`: it grants. Of `expected` clients of its
    predecessor `back` have re-initialised, `evicted` are not waited for any more, `absent_total`
    are; `absent` names those of them who are waited for longest (at most 64); `left_s`: it is ready
    at the latest then. `all_met`: every client that was to be evicted was waited for."""

    ready: bool
    expected: int
    back: int
    evicted: int
    left_s: float
    absent_total: int
    absent: tuple[Absent, ...]
    all_met: bool = True


class Admin:
    """Looks at one server and acts on it. Any thread may use it; leaving its block closes the
    connection, and the next question makes a new one.

    Names are text (UTF-8) or bytes, 1 to 512 bytes of them; ValueError for others.
    Every call raises ConnectError if no server answers at the address, ConnectionLost if it stopped
    answering, DlockError if it refuses, ForkedError in a child process.
    """

    def __init__(
        self, address: str | os.PathLike[str] | Address | None = None, *, timeout: float = TIMEOUT
    ) -> None:
        """`address` as for `dlock.connect`; `timeout` (seconds) is for one question each.
        ValueError: it is no address."""
        self._address = parse(address)
        self._timeout = timeout
        self._link: ControlLink | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _value: BaseException | None,
                 _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def stats(self) -> dict[str, int]:
        """Counters (capital names) and gauges (small ones) of the server."""
        return dict(self._ask(m.Stats()).stats)

    def locks(self, prefix: str | bytes = b"", *, busy_only: bool = False) -> Iterator[LockSummary]:
        """Every lock whose name begins so; busy_only: that somebody holds or waits for. Asked for
        in pieces: a lock that comes or goes meanwhile may be missed."""
        key, start = _key(prefix, 0), 0
        while start != m.NONE:
            answer = self._asked(m.ListLocks(key, start, LOCK_LINES_MAX, busy_only))
            who = {line.client_id: line.info for line in answer.clients}
            for line in answer.locks:
                yield _summary(line, who)
            start = answer.next

    def show(self, name: str | bytes) -> LockDetails | None:
        """Who holds this lock and who waits for it; None: there is no such lock, so nobody does."""
        return details(_key(name), self._asked(m.ShowLock(_key(name)), DlockStatus.LOCK_NOT_GET))

    def clients(self) -> Iterator[ClientSummary]:
        """Every session, also those that are over but for a leased hold."""
        start = 0
        while start != m.NONE:
            answer = self._asked(m.ListClients(start))
            for line in answer.clients:
                yield ClientSummary(
                    **_peer(line.client_id, line.info), connected=line.connected,
                    ended=line.ended, locks=line.locks, since_s=line.since_ms / MS_PER_S,
                    transport="verbs" if line.verbs else "tcp")
            start = answer.next

    def break_lock(
        self, name: str | bytes, *, token: int | None = None, now: bool = False
    ) -> tuple[int, ...]:
        """Takes holds of this lock away: that of `token`, or all there are; returns their tokens,
        at most 4096 of them.

        The clients are told, and cannot extend the holds any more. The lock passes on when they
        have answered, or can no longer believe in their holds: when the lease has ended, or the
        session. With `now` it passes on at once, while a client that has not heard of it yet still
        believes that it holds the lock: then only storage that checks tokens is safe. An empty
        result: there was nothing (any more) to break.
        """
        if token == 0:
            raise ValueError("0 is no token; leave it out to break every hold")
        answer = self._asked(m.BreakLock(_key(name), token or 0, now), DlockStatus.LOCK_NOT_GET)
        return answer.tokens

    def recovery(self) -> RecoveryStatus:
        """How far the server is after its start: whom it waits for before it grants anything."""
        return recovery_status(self._asked(m.Recover(EVICT_NONE)))

    def evict(self, client_ids: Iterable[int] | None = None) -> RecoveryStatus:
        """A recovering server waits for these clients no longer (None: for nobody who is absent).

        This says that they do not run any more. What they held is free, and when they come back
        they are told that their session is over; one that runs all the same believes in its holds
        until then, beside the next holder: only storage that checks tokens is safe. At a server
        that is ready it does nothing.
        """
        if client_ids is None:
            return recovery_status(self._asked(m.Recover(EVICT_ALL)))
        wanted = list(dict.fromkeys(client_ids))
        met = True
        status = self.recovery()
        for first in range(0, len(wanted), EVICT_IDS_MAX):
            these = tuple(wanted[first : first + EVICT_IDS_MAX])
            status = recovery_status(
                self._asked(m.Recover(EVICT_THESE, these), DlockStatus.FAIL))
            met = met and status.all_met
        return replace(status, all_met=met)

    def await_ready(self, seconds: float) -> bool:
        """Waits until the server is ready, at most so long; False: it was not."""
        wait_ms = min(round(seconds * MS_PER_S), AWAIT_MS_MAX)
        answer = self._ask(m.AwaitReady(wait_ms), wait_ms / MS_PER_S)
        return answer.status is DlockStatus.SUCCESS

    # ---- The connection --------------------------------------------------------------------------

    def _asked(self, message: m.Request[_Answer], *good: DlockStatus) -> _Answer:
        """The answer, if its status is SUCCESS or one of these."""
        answer: Any = self._ask(message)
        if answer.status is DlockStatus.NOT_READY:
            raise DlockError(
                "the server recovers: until the clients of its predecessor are back, or can no "
                "longer believe in their holds, it shows no locks. `dlock recover` says whom it "
                "waits for; ask again")
        if answer.status is DlockStatus.EAGAIN:
            raise DlockError("too many questions of operators wait at the server; ask again")
        if answer.status not in (DlockStatus.SUCCESS, *good):
            raise DlockError(f"the server refused: {_core.status_text(answer.status)}")
        return answer  # type: ignore[no-any-return]

    def _ask(self, message: m.Request[_Answer], more: float = 0.0) -> _Answer:
        """Over the link there is; if that turns out to be broken, once over a new one. To look
        twice changes nothing. To break twice could meet the next holder, to evict twice meets
        nobody: so these are asked once, over a new link. `more`: what the server may take beyond
        the timeout."""
        if self._pid != os.getpid():
            raise ForkedError
        timeout = self._timeout + more
        link, end = self._link, time.monotonic() + timeout
        if isinstance(message, m.BreakLock | m.Recover):
            self.close()
        elif link is not None and not link.closed:
            try:
                return link.request(message, timeout)
            except LinkError:
                link.close()
        link = self._connect(end)
        try:
            return link.request(message, max(end - time.monotonic(), 0))
        except LinkError as problem:
            raise ConnectionLost(f"the server does not answer: {problem}") from None

    def _connect(self, end: float) -> ControlLink:
        endpoints, problems = self._address.endpoints()
        for one in endpoints:
            try:
                self._link = ControlLink.connect(
                    one.host, one.port, max(end - time.monotonic(), 0.001))
            except LinkError as problem:
                problems.append(str(problem))
            else:
                return self._link
        raise ConnectError("; ".join(problems) or f"{self._address} names no server")


# ---- From lines to dataclasses -------------------------------------------------------------------


def _key(name: str | bytes, least: int = 1) -> bytes:
    key = name.encode() if isinstance(name, str) else bytes(name)
    if not least <= len(key) <= m.DESCRIPTOR_BYTES_MAX:
        raise ValueError(f"the name of a lock has {least} to {m.DESCRIPTOR_BYTES_MAX} bytes, "
                         f"not {len(key)}")
    return key


def _peer(client_id: int, info: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: str(info.get(key, "")) for key in ("host", "user", "program", "job")}
    pid = info.get("pid", 0)
    return {"client_id": client_id, "pid": pid if isinstance(pid, int) else 0, "info": dict(info),
            **texts}


def _summary(line: m.LockLine, who: Mapping[int, Mapping[str, Any]]) -> LockSummary:
    holder = None
    if line.client_id:
        holder = Peer(**_peer(line.client_id, who.get(line.client_id, {})))
    return LockSummary(
        line.descriptor, _KINDS[line.kind], line.size, line.lock_id, line.holders, line.waiters,
        line.served, line.text, holder, line.label, line.since_ms / MS_PER_S)


def recovery_status(answer: m.RecoveryShown) -> RecoveryStatus:
    """What an answer to Recover says."""
    return RecoveryStatus(
        bool(answer.ready), answer.expected, answer.back, answer.evicted,
        answer.left_ms / MS_PER_S, answer.absent_total,
        tuple(Absent(one.client_id, one.who, one.lease_ms / MS_PER_S, one.left_ms / MS_PER_S,
                     bool(one.came)) for one in answer.absent),
        answer.status is DlockStatus.SUCCESS)


def details(key: bytes, answer: m.LockShown) -> LockDetails | None:
    """What an answer to ShowLock says; None: there is no such lock."""
    if answer.status is DlockStatus.LOCK_NOT_GET:
        return None
    who = {line.client_id: line.info for line in answer.clients}
    held = [one for one in answer.entries if one.state == _core.DLK_ENTRY_HELD]
    queued = [one for one in answer.entries if one.state != _core.DLK_ENTRY_HELD]
    return LockDetails(
        key, _KINDS[answer.kind], answer.size, answer.lock_id,
        tuple(_holder(one, who.get(one.client_id, {})) for one in held),
        tuple(_waiter(one, who.get(one.client_id, {})) for one in queued),
        answer.total - len(answer.entries), answer.text)


def _holder(line: m.EntryLine, info: Mapping[str, Any]) -> Holder:
    leased = line.lease_left_ms != NEVER
    return Holder(
        **_peer(line.client_id, info), actor=line.actor, mode=_MODES[line.mode], token=line.token,
        since_s=line.since_ms / MS_PER_S,
        lease_left_s=line.lease_left_ms / MS_PER_S if leased else None,
        session_left_s=line.session_left_ms / MS_PER_S, breaking=line.breaking, label=line.label)


def _waiter(line: m.EntryLine, info: Mapping[str, Any]) -> Waiter:
    return Waiter(
        **_peer(line.client_id, info), actor=line.actor, mode=_MODES[line.mode], stamp=line.token,
        since_s=line.since_ms / MS_PER_S, session_left_s=line.session_left_ms / MS_PER_S,
        ticket=line.state == _core.DLK_ENTRY_TICKET, label=line.label)
