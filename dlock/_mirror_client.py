"""One client of the mirror: its session, its two links, and what it has got.

A client is what DLock calls a client: an id, a control link, the C client with the data link and
the book of holds, the tables of locks and objects got, the counters, and at most one asynchronous
operation. Which calls exist and in what order they check is the business of the callers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final, TypeVar

from dlock import _core, _mirror_data
from dlock._core import lib
from dlock._transport import Transport, Wish
from dlock.control.link import ControlLink, LinkError
from dlock.control.messages import DeclareLease, Message, Request, Welcome
from dlock.types import DebugStats, DlockStatus, State

R = TypeVar("R", bound=Message)

STATUSES: Final = {int(status): status for status in DlockStatus}

# Counter of each status that a client returns; "plain names" of the specification, section 2.
_COUNTERS: Final = {
    int(status): status.name
    for status in DlockStatus
    if status.name in DebugStats.__dataclass_fields__
}
_LOCK_COUNTERS: Final = {**_COUNTERS, int(DlockStatus.EINVAL): "EINVAL_LOCK_OP"}

_ASYNC_TIMEOUT_NS: Final = _core.DLK_ASYNC_TIMEOUT_MS * 1_000_000
_FAIR: Final = _core.DLK_KIND_FAIR
_RW: Final = _core.DLK_KIND_RW


VERSIONS: Final = (_core.DLK_PROTOCOL_VERSION_MIN, _core.DLK_PROTOCOL_VERSION_MAX)


def judge(welcome: Welcome | None) -> DlockStatus:
    """The status that an answer to ClientInit or ClientReinit, or its absence, stands for."""
    if welcome is None:
        return DlockStatus.BAD_RESPONSE
    if welcome.status is DlockStatus.SUCCESS and not (
        VERSIONS[0] <= welcome.version <= VERSIONS[1]
    ):
        return DlockStatus.PROTO_VERSION_NEGOTIATION_FAIL
    return welcome.status


class LockEntry:
    """A lock that a client has got."""

    __slots__ = ("descriptor", "flags", "id", "kind", "read", "seen", "slot")

    def __init__(self, lock_id: int, slot: int, kind: int, descriptor: bytes) -> None:
        self.id = lock_id
        self.slot = slot
        self.kind = kind
        self.descriptor = descriptor
        # A fair lock that is busy gives a ticket to those who only try.
        self.flags: int = lib.DLK_FLAG_TICKET if kind == _FAIR else 0
        self.read = _mirror_data.READERS[kind]


@dataclass(slots=True)
class Running:
    """The asynchronous operation of a client."""

    lock: LockEntry
    call: _mirror_data.Call
    deadline_ns: int  # from then on ETIMEOUT


@dataclass(frozen=True, slots=True)
class Settings:
    """What a ClientCfg comes down to."""

    port: int
    wait_mode: int
    lock_wait_ms: int
    reply_timeout_s: float
    wish: Wish


class MirrorClient:
    """See the file. `lifecycle` is held by whatever remakes or ends the session."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lock_wait_ms = settings.lock_wait_ms
        self.pointer = _mirror_data.new_client(
            settings.wait_mode, round(settings.reply_timeout_s * 1000)
        )
        self.id = 0
        self.link: ControlLink | None = None
        self.transport: Transport | None = None  # over which its data plane was reached last
        self.secret = b""
        self.epoch = 0
        self.incarnation = 0
        self.sealed_epoch = 0  # of the newest primary to which it has reported its locks
        self.reported: set[int] = set()  # by an update_all_locks that is not at its end
        self.max_lease_ms = 0
        self.free_lease_s = 0  # leases up to here need no declaration
        self.locks: dict[int, LockEntry] = {}
        # What a call may use without further checks: `locks`, or nothing while the client is
        # removed or an asynchronous operation runs.
        self.open_locks: dict[int, LockEntry] = self.locks
        self.objects: dict[int, int] = {}  # their keys, by id
        self.open_objects: dict[int, int] = self.objects
        self.removed = False
        self.reinitialising = False
        self.running: Running | None = None
        self.lifecycle = threading.Lock()
        self.naming = threading.Lock()  # held from asking for locks to entering them
        self._async_lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._counts_lock = threading.Lock()

    # ---- counters --------------------------------------------------------------------------------

    def count(self, status: int, times: int = 1) -> None:
        """Counts a status that a life-cycle or object call returns."""
        self._count(_COUNTERS.get(status), times)

    def count_lock(self, status: int, times: int = 1) -> None:
        """Counts a status that a lock call returns."""
        self._count(_LOCK_COUNTERS.get(status), times)

    def _count(self, name: str | None, times: int) -> None:
        if name is not None:
            with self._counts_lock:
                self._counts[name] = self._counts.get(name, 0) + times

    def stats(self) -> DebugStats:
        """A copy of the counters."""
        with self._counts_lock:
            return DebugStats(**self._counts)

    def clear_stats(self) -> None:
        """Sets every counter to 0."""
        with self._counts_lock:
            self._counts.clear()

    # ---- what may be called ----------------------------------------------------------------------

    def gate(self) -> None:
        """Opens or closes the tables that calls look into first."""
        closed = self.removed or self.running is not None
        self.open_locks = {} if closed else self.locks
        self.open_objects = {} if closed else self.objects

    def mark_removed(self) -> None:
        """The server has ended the session: from now on every call says so."""
        self.removed = True
        self.end_async()
        self.gate()
        lib.dlk_client_detach(self.pointer)
        if self.link is not None:
            self.link.close()

    def start_async(self, lock: LockEntry, call: _mirror_data.Call) -> tuple[int, int]:
        """Sends a filled call off, if nothing runs yet (else EASYNC): PENDING, or the status that
        is known at once; and the data plane's result. The call is ours until it is given back."""
        with self._async_lock:
            if self.running is not None:
                return DlockStatus.EASYNC, _core.DLK_RESULT_COUNT
            deadline_ns = lib.dlk_now_ns() + _ASYNC_TIMEOUT_NS
            status = _mirror_data.start(self.pointer, call.pointer)
            result = call.pointer.result
            if status != _mirror_data.PENDING and not call.pointer.sent:
                return status, result
            self.running = Running(lock, call, deadline_ns)
            self.gate()
            return _mirror_data.PENDING, result

    def poll_async(self) -> tuple[LockEntry, int, int, State] | None:
        """How the asynchronous operation stands: its lock, its status (ASYNC_AGAIN while it runs),
        the data plane's result and the state; None: nothing runs."""
        with self._async_lock:
            running = self.running
            if running is None:
                return None
            lock, (pointer, buffer) = running.lock, running.call
            status: int = pointer.status
            if status == _mirror_data.PENDING:
                status = _mirror_data.poll(self.pointer, pointer)
            late = lib.dlk_now_ns() >= running.deadline_ns
            if status == _mirror_data.PENDING:
                if not late:
                    return lock, DlockStatus.ASYNC_AGAIN, pointer.result, self.state_of(lock)
                lib.dlk_client_cancel(self.pointer, pointer)
            if late and status in (_mirror_data.PENDING, DlockStatus.BAD_RESPONSE):
                status = DlockStatus.ETIMEOUT
            ended = lock, status, pointer.result, lock.read(buffer)
            self._clear_async(running)
            return ended

    def end_async(self) -> None:
        """Ends an asynchronous operation, if there is one; nothing of it is left behind."""
        with self._async_lock:
            running = self.running
            if running is not None:
                lib.dlk_client_cancel(self.pointer, running.call.pointer)
                self._clear_async(running)

    def _clear_async(self, running: Running) -> None:
        self.running = None
        self.gate()
        _mirror_data.give_back(running.call)

    # ---- control plane ---------------------------------------------------------------------------

    def ask(self, message: Request[R], timeout_s: float | None = None) -> R | None:
        """Sends a request and waits for its reply; None: no answer, the link is gone."""
        link = self.link
        if link is None:
            return None
        try:
            return link.request(
                message, self.settings.reply_timeout_s if timeout_s is None else timeout_s
            )
        except LinkError:
            return None

    def said(self, status: DlockStatus) -> DlockStatus:
        """What the server said, after drawing the conclusion from it."""
        if status is DlockStatus.CLIENT_REMOVED_BY_SERVER and not self.removed:
            self.mark_removed()
        return status

    def welcome(self, welcome: Welcome, link: ControlLink) -> None:
        """Takes over the session and its control link, and what the server has promised."""
        self.link = link
        self.id = welcome.client_id
        self.secret = welcome.secret
        self.epoch = welcome.epoch
        self.incarnation = welcome.incarnation
        self.max_lease_ms = welcome.max_lease_ms
        self.free_lease_s = min(welcome.declared_lease_ms, welcome.max_lease_ms) // 1000

    def lease_refusal(self, lock: LockEntry, expire_s: int) -> DlockStatus | None:
        """Makes sure that a lease of this length may be asked for; a status if it may not."""
        if lock.kind == _RW or expire_s <= self.free_lease_s:
            return None
        lease_ms = expire_s * 1000
        if lease_ms > self.max_lease_ms:
            return DlockStatus.EINVAL
        declared_ms = min(1 << (lease_ms - 1).bit_length(), self.max_lease_ms)
        reply = self.ask(DeclareLease(declared_ms))
        if reply is None:
            return DlockStatus.BAD_RESPONSE
        if reply.status is not DlockStatus.SUCCESS:
            return self.said(reply.status)
        self.free_lease_s = max(self.free_lease_s, declared_ms // 1000)
        return None

    # ---- tables ----------------------------------------------------------------------------------

    def state_of(self, lock: LockEntry) -> State:
        """The state of a lock as this client last saw it; asks nothing of the server."""
        call = _mirror_data.take_call()
        _mirror_data.pack_call(
            call.buffer, 0, lib.DLK_VERB_LOOK, lock.id, 0, 0, 0, 0, 0, 0, 0, _mirror_data.UNTOUCHED
        )
        _mirror_data.run(self.pointer, call.pointer)
        state = lock.read(call.buffer)
        _mirror_data.give_back(call)
        return state

    def add_lock(self, lock: LockEntry) -> DlockStatus:
        """Enters a lock that the server has given out."""
        status = STATUSES[lib.dlk_client_add_lock(self.pointer, lock.id, lock.slot, lock.kind, 0)]
        if status is DlockStatus.SUCCESS:
            self.locks[lock.id] = lock
        return status

    def drop_lock(self, lock: LockEntry) -> None:
        """Takes a lock out, whatever its state."""
        lib.dlk_client_drop_lock(self.pointer, lock.id, 0, 1)
        self.locks.pop(lock.id, None)

    def set_lock_aside(self, lock: LockEntry) -> DlockStatus:
        """Takes a lock out that is neither held nor queued for, until it is dropped or added again;
        from now on no call finds it."""
        status = STATUSES[lib.dlk_client_set_lock_aside(self.pointer, lock.id, 0)]
        if status is DlockStatus.SUCCESS or not self.knows(lock):
            self.locks.pop(lock.id, None)
        return status

    def knows(self, lock: LockEntry) -> bool:
        """False: it was not reported to the present primary, and the call that heard so was the
        last on it."""
        status: int = lib.dlk_client_may_drop_lock(self.pointer, lock.id, 0)
        return status != DlockStatus.LOCK_NOT_GET

    def add_object(self, object_id: int, slot: int, key: int) -> DlockStatus:
        """Enters an object that the server has given out, and the key with which it is operated on
        over RDMA (0: none)."""
        status = STATUSES[lib.dlk_client_add_object(self.pointer, object_id, slot)]
        if status is DlockStatus.SUCCESS:
            lib.dlk_client_object_key(self.pointer, object_id, key)
            self.objects[object_id] = key
        return status

    def drop_object(self, object_id: int | None) -> None:
        """Takes an object out, if it is there."""
        if object_id is not None and self.objects.pop(object_id, None) is not None:
            lib.dlk_client_drop_object(self.pointer, object_id)

    def forget_objects(self) -> None:
        """A new primary has none of them."""
        for object_id in list(self.objects):
            self.drop_object(object_id)

    def leave(self) -> None:
        """Ends both links; running calls end with BAD_RESPONSE. The C client is freed with the
        last call that uses it."""
        self.end_async()
        self.open_locks = {}
        self.open_objects = {}
        lib.dlk_client_detach(self.pointer)
        if self.link is not None:
            self.link.close()
