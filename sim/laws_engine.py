"""What must hold in the engine of one primary, after each of its turns: its own invariants, tokens
that only grow, the order of queues, and that what a client believes is so.

The engine is looked at, never touched: no thread runs, so its tables are at rest between turns.
"""

from __future__ import annotations

from typing import Any, Final

from dlock import _core
from dlock._core import EntryView, ffi, lib
from dlock._handle import Key
from dlock.control.registry_restoring import Phase
from sim.diary import Hold, token_text
from sim.scene import MS_NS, LawBroken, ServerNode

ROOM: Final = 256  # entries of one lock
CHECK_EVERY: Final = 16  # turns, of the registry's own check
_LAYOUT: Final = _core.layout("dlk_entry_view", EntryView._fields)
_HELD: Final[int] = _core.DLK_ENTRY_HELD
_FOREVER: Final = 2**64 - 1
STATES: Final = {
    _core.DLK_ENTRY_HELD: "held",
    _core.DLK_ENTRY_QUEUED: "waited for",
    _core.DLK_ENTRY_TICKET: "a ticket",
}
_US_NS: Final = 1000

Waiter = tuple[int, int]  # client id, owner


class _Seen:
    """One lock, as it was seen last: `data` as it lay in memory, its holders by token, and the
    stamps of who waits."""

    __slots__ = ("data", "holders", "waiters")

    def __init__(self) -> None:
        self.data = b""
        self.holders: dict[int, EntryView] = {}
        self.waiters: dict[Waiter, int] = {}


class EngineView:
    """The engine of one primary. `granted`: who is told of each new token; `was_ready`: it has been
    seen to be ready; `recovering`: it had to wait for clients first."""

    def __init__(self, node: ServerNode, granted: Any) -> None:
        self.node = node
        self.epoch: int = node.primary.epoch
        self.was_ready = False
        self.recovering = node.primary.recovery is not None
        self._granted = granted
        self._newest_token = 0  # before the turn that is looked at, and after it
        self._newest_now = 0
        self._locks: dict[Key, _Seen] = {}
        self._room = ffi.new("struct dlk_entry_view[]", ROOM)
        self._bytes = memoryview(ffi.buffer(self._room))
        self._turns = 0

    @property
    def registry(self) -> Any:
        """The state machine of its control plane."""
        return self.node.primary.registry

    @property
    def ready(self) -> bool:
        """Does it serve everything?"""
        return self.registry.phase is Phase.READY

    @property
    def entries(self) -> int:
        """Holders, waiters and tickets of all locks."""
        return int(lib.dlk_engine_entries_in_use(self.node.primary.plane.engine))

    def describe(self) -> str:
        """What is in it, for people."""
        return "; ".join(
            f"{key[0].decode()!r}: {STATES[one.state]} by client {one.client_id}, owner "
            f"{one.owner:x}, {token_text(one.token)}"
            for key, seen in self._locks.items()
            for one in (EntryView(*fields) for fields in _LAYOUT.iter_unpack(seen.data)))

    def has_given(self, key: Key, client_id: int, known: set[int]) -> bool:
        """Does it have a hold of this client whose token is none of these?"""
        seen = self._locks.get(key)
        return seen is not None and any(
            one.client_id == client_id and token not in known
            for token, one in seen.holders.items())

    # ---- Looking ---------------------------------------------------------------------------------

    def look(self) -> list[Key]:
        """After a turn of this primary; which locks have changed."""
        engine = self.node.primary.plane.engine
        broken = lib.dlk_engine_check(engine)
        if broken:
            raise LawBroken(f"{self.node.name}: dlk_engine_check says {broken}")
        self._turns += 1
        if self._turns % CHECK_EVERY == 0:
            self.registry.check()
        changed: list[Key] = []
        gone = dict.fromkeys(self._locks)
        for slot, lock in self.registry._locks._by_slot.items():
            key = (lock.descriptor, lock.kind, lock.size)
            gone.pop(key, None)
            count = lib.dlk_engine_view(engine, slot, self._room, ROOM)
            if count > ROOM:
                raise LawBroken(f"{self.node.name}: lock {key[0]!r} has {count} entries")
            seen = self._locks.get(key)
            if seen is None:
                seen = self._locks[key] = _Seen()
            data = bytes(self._bytes[: count * _LAYOUT.size])
            if data != seen.data:
                seen.data = data
                self._compare(key, seen, [EntryView(*one) for one in _LAYOUT.iter_unpack(data)])
                changed.append(key)
        for key in gone:
            if self._locks.pop(key).holders:
                changed.append(key)
        self._newest_token = self._newest_now
        return changed

    def _compare(self, key: Key, seen: _Seen, entries: list[EntryView]) -> None:
        holders = {one.token: one for one in entries if one.state == _HELD}
        waiters: dict[Waiter, int] = {}
        stamp = 0
        for one in entries:
            if one.state == _HELD:
                continue
            if one.token <= stamp:
                raise LawBroken(f"{self._of(key)}: stamp {token_text(one.token)} stands behind "
                                f"{token_text(stamp)}")
            stamp = one.token
            waiters[one.client_id, one.owner] = stamp
        new = [one for token, one in holders.items() if token not in seen.holders]
        if new:
            still = min((stamp for who, stamp in waiters.items()
                         if seen.waiters.get(who) == stamp), default=_FOREVER)
            for one in new:
                self._taken(key, seen, one, still)
            self._newest_now = max(self._newest_now, *(one.token for one in new))
        seen.holders, seen.waiters = holders, waiters

    def _taken(self, key: Key, seen: _Seen, one: EntryView, still: int) -> None:
        """A hold that was not there before. `still`: the oldest stamp of those who waited before
        and wait on."""
        self._granted(key, one)
        if one.token >> _core.DLK_COUNTER_BITS < self.epoch:
            return  # it was claimed
        if one.token <= self._newest_token:
            raise LawBroken(f"{self._of(key)}: token {token_text(one.token)} was granted after "
                            f"{token_text(self._newest_token)}")
        came = seen.waiters.get((one.client_id, one.owner), _FOREVER)
        if still < came:
            raise LawBroken(
                f"{self._of(key)}: token {token_text(one.token)} was granted to client "
                f"{one.client_id}, and stamp {token_text(still)} waits since before")

    def _of(self, key: Key) -> str:
        return f"{self.node.name}, lock {key[0].decode()!r}"

    # ---- What clients believe --------------------------------------------------------------------

    def check_believed(self, hold: Hold) -> None:
        """A hold that its client believes in. At a primary that is ready it is there, and for
        longer than its client believes; no primary has granted anything beside it."""
        seen = self._locks.get(hold.key)
        holder = seen.holders.get(hold.token) if seen is not None else None
        if holder is None:
            self._check_absent(hold, seen)
            return
        session = hold.handle.name.table.session
        if (holder.client_id, holder.owner, holder.mode) != (
                session.id, hold.handle.owner, hold.mode):
            raise LawBroken(f"{hold} is believed; {self.node.name} says that it is of client "
                            f"{holder.client_id}, owner {holder.owner:x}, mode {holder.mode}")
        if self.ready and not holder.flags & _core.DLK_ENTRY_CLAIMED:
            end_ns = holder.end_ns if holder.end_ns != _FOREVER else holder.session_end_ns
            left_ns = (self.node.clock.true_ns(end_ns)
                       - hold.diary.node.clock.true_ns(hold.until_ns))
            if left_ns < -_US_NS:
                raise LawBroken(f"{hold} is believed for {-left_ns / MS_NS:.3f} ms longer than it "
                                f"is held at {self.node.name}")

    def _check_absent(self, hold: Hold, seen: _Seen | None) -> None:
        if self.ready:
            raise LawBroken(f"{hold} is believed, and {self.node.name}, which is ready, does not "
                            f"have it")
        for holder in seen.holders.values() if seen is not None else ():
            granted = holder.token >> _core.DLK_COUNTER_BITS >= self.epoch
            if granted and hold.excludes_mode(holder.mode):
                raise LawBroken(f"{hold} is believed, and {self.node.name} has granted token "
                                f"{token_text(holder.token)} to client {holder.client_id}")
