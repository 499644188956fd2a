"""Which name is which 64-bit object: owner, references, leases, and when it goes.

An object goes, cell and name,
- when it is destroyed and nobody has got it; with references it is only marked, and then goes with
  the last of them, or when its lease is over, references or not;
- when the session of its owner has ended (nobody can destroy it any more), nobody has got it and
  its lease is over.
The lease is the latest end that any create or get asked for. Objects are the server's memory: they
do not survive it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from dlock import _core
from dlock._core import Command, Event
from dlock.control.messages import ID_MAX, ObjectCreate, ObjectGet
from dlock.control.registry_effects import Outbox, Slots, carried_out
from dlock.types import DlockStatus

SECOND_NS: Final = 1_000_000_000
ORPHANED: Final = 0  # the owner of an object whose owner's session has ended


@dataclass(slots=True, eq=False)
class Object:
    """One object. `owner`: a client id, or ORPHANED; `users`: what each client that has got it
    calls its set of objects; `cookie`: the command that opened its cell; `key`: with which clients
    operate on it by themselves, over verbs, 0: none."""

    id: int
    slot: int
    descriptor: bytes
    owner: int
    lease_end_ns: int
    cookie: int = 0
    key: int = 0
    marked: bool = False
    failed: bool = False
    timed: bool = False  # it stands in the heap of lease ends
    users: list[dict[int, Object]] = field(default_factory=list)


Got = dict[int, Object]  # a client's objects by id


class ObjectTable:
    """All objects of a server."""

    def __init__(self, max_objects: int, outbox: Outbox) -> None:
        self._slots = Slots(max_objects)
        self._outbox = outbox
        self._by_descriptor: dict[bytes, Object] = {}
        self._by_id: dict[int, Object] = {}
        self._owned: dict[int, set[int]] = {}
        self._ends: list[tuple[int, int]] = []  # heap of (lease end, id); may be out of date
        self._last_id = 0

    @property
    def gauges(self) -> dict[str, int]:
        """For Stats."""
        return {"objects": len(self._by_id)}

    def create(
        self, client_id: int, message: ObjectCreate, now_ns: int
    ) -> DlockStatus | Object:
        """An Object is good once its cookie is done, if it has not `failed` then."""
        if message.lease_s == 0:
            return DlockStatus.EINVAL
        former = self._by_descriptor.get(message.descriptor)
        if former is not None:
            if former.marked:
                return DlockStatus.OBJECT_ALREADY_DESTROYED
            if former.owner == client_id:
                return DlockStatus.OBJECT_ALREADY_CREATED
            return DlockStatus.OBJECT_ALREADY_EXISTED
        slot = self._slots.take() if self._last_id < ID_MAX else None
        if slot is None:
            return DlockStatus.OBJECT_TOO_MANY
        self._last_id += 1
        one = Object(self._last_id, slot, message.descriptor, client_id,
                     now_ns + message.lease_s * SECOND_NS)
        self._by_descriptor[one.descriptor] = self._by_id[one.id] = one
        self._owned.setdefault(client_id, set()).add(one.id)
        one.cookie = self._outbox.command(
            Command(_core.DLK_COMMAND_CELL_OPEN, slot=slot, id=one.id, value=message.value),
            partial(self._opened, one))
        return one

    def _opened(self, one: Object, event: Event) -> None:
        if carried_out(event):
            one.key = event.value
        elif self._by_id.get(one.id) is one:
            one.failed = True
            self._forget(one)
            self._slots.give(one.slot)

    def get(self, got: Got, message: ObjectGet, now_ns: int) -> DlockStatus | Object:
        """As `create`."""
        one = self._by_descriptor.get(message.descriptor)
        if one is None:
            return DlockStatus.OBJECT_NOT_CREATE
        if one.id in got:
            return one
        if one.marked:
            return DlockStatus.OBJECT_ALREADY_DESTROYED
        if message.lease_s:
            one.lease_end_ns = max(one.lease_end_ns, now_ns + message.lease_s * SECOND_NS)
        one.users.append(got)
        got[one.id] = one
        return one

    def release(self, got: Got, object_id: int, now_ns: int) -> DlockStatus:
        """One client gives its reference back."""
        one = got.pop(object_id, None)
        if one is None:
            return DlockStatus.OBJECT_NOT_GET
        one.users = [other for other in one.users if other is not got]
        self._end_if_due(one, now_ns)
        return DlockStatus.SUCCESS

    def destroy(self, client_id: int, object_id: int, now_ns: int) -> DlockStatus:
        """Only the owner may."""
        one = self._by_id.get(object_id)
        if one is None:
            return DlockStatus.OBJECT_NOT_CREATE
        if one.owner != client_id:
            return DlockStatus.OBJECT_INVALID_OWNER
        if one.marked:
            return DlockStatus.OBJECT_ALREADY_DESTROYED
        one.marked = True
        self._end_if_due(one, now_ns)
        return DlockStatus.SUCCESS

    def client_gone(self, client_id: int, got: Got, now_ns: int) -> None:
        """Its references are released; what it created has no owner any more."""
        for object_id in list(got):
            self.release(got, object_id, now_ns)
        for object_id in self._owned.pop(client_id, ()):
            one = self._by_id[object_id]
            one.owner = ORPHANED
            self._end_if_due(one, now_ns)

    def tick(self, now_ns: int) -> None:
        """Ends what is due."""
        while self._ends and self._ends[0][0] <= now_ns:
            one = self._by_id.get(heapq.heappop(self._ends)[1])
            if one is not None:
                one.timed = False
                self._end_if_due(one, now_ns)

    def next_deadline_ns(self) -> int | None:
        """When `tick` is due; None: never. May be early, never late."""
        return self._ends[0][0] if self._ends else None

    def _end_if_due(self, one: Object, now_ns: int) -> None:
        """The rule of the head of this file; sets a timer where only time is missing."""
        over = one.lease_end_ns <= now_ns
        if one.marked:
            due = over or not one.users
        else:
            due = over and not one.users and one.owner == ORPHANED
        if due:
            self._end(one)
        elif not over and not one.timed and (one.marked or one.owner == ORPHANED):
            one.timed = True
            heapq.heappush(self._ends, (one.lease_end_ns, one.id))

    def _end(self, one: Object) -> None:
        self._forget(one)
        self._outbox.command(
            Command(_core.DLK_COMMAND_CELL_CLOSE, slot=one.slot, id=one.id),
            lambda _event: self._slots.give(one.slot))

    def _forget(self, one: Object) -> None:
        del self._by_descriptor[one.descriptor]
        del self._by_id[one.id]
        owned = self._owned.get(one.owner)
        if owned is not None:
            owned.discard(one.id)
            if not owned:
                del self._owned[one.owner]
        for got in one.users:
            got.pop(one.id, None)
        one.users = []

    def check(self) -> None:
        """Asserts what must hold between any two inputs; for tests."""
        assert len(self._by_descriptor) == len(self._by_id) <= self._slots.in_use
        slots = [one.slot for one in self._by_id.values()]
        assert len(set(slots)) == len(slots)
        for object_id, one in self._by_id.items():
            assert one.id == object_id <= self._last_id
            assert self._by_descriptor[one.descriptor] is one
            assert all(got[object_id] is one for got in one.users)
            assert not one.marked or one.users
            assert one.owner == ORPHANED or object_id in self._owned[one.owner]
        assert all(owned and owned <= self._by_id.keys() for owned in self._owned.values())
