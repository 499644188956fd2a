"""Names and handles: what a session has got of the server's locks, ready for the next acquisition.

A `Name` is one lock that the session has got: its id and slot at the server. A `Handle` is one
owner of it in the C client's book, with an acquire and a release call that are filled already.
Every acquisition has a handle to itself; afterwards the handle lies idle at its name, and taking it
again is a dict lookup and a pop.

Threads: `take`, `give_back` and `retire` may be called by any thread at any time. The fast path
takes no lock: it relies on dict and list operations that are whole. What changes the set of names
holds the table's own mutex, briefly; asking the server is not done here.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dlock import _core
from dlock._calls import look, shown
from dlock._core import ffi, lib
from dlock.errors import ForkedError

if TYPE_CHECKING:
    from dlock._session import Session

# Of handles. One series for the process: an actor may hold locks of several sessions.
_serials: Final = itertools.count(1)

# What names a lock: descriptor, enum dlk_kind, size (1 unless it is a semaphore).
Key = tuple[bytes, int, int]

IDLE_NAMES_MAX: Final = 1024
RELEASE_BATCH: Final[int] = _core.DLK_BATCH_MAX  # names are let go so many at a time
LOOKS_PER_EVICTION: Final = 4 * RELEASE_BATCH
IDLE_HANDLES_MAX: Final = 32  # of one name; a crowd that has gone leaves no more behind
SERIAL_BITS: Final = 32
SERIAL_MASK: Final = (1 << SERIAL_BITS) - 1
# Added to an actor's number where the server shall not know it: the hold belongs to the thread or
# task all the same, but takes no part in the search for deadlocks.
APART: Final = 1 << 32

_PENDING: Final[int] = _core.DLK_STATUS_PENDING
_SUCCESS: Final[int] = _core.DLK_STATUS_SUCCESS
_NOT_GOT: Final[int] = _core.DLK_STATUS_LOCK_NOT_GET
_FORKED: Final[int] = _core.DLK_STATUS_FORKED


class Handle:
    """One owner of one lock. Whoever took it has it alone until it is given back or retired; one
    that is dropped without either gives back what it holds, without waiting.

    `client`: the C client. `acquire`, `release`: its two calls (struct dlk_call *): verb, lock and
    owner are filled, LOCK with an endless wait, no lease, exclusive; who changes that says so in
    `asked`, which is for the caller alone, and None at first. `glance`: a LOOK, filled too, for an
    event loop, where no other thread uses it. `watcher`: told of notices about this
    hold, as `watcher(kind, token)`; whoever sets it takes it away before giving the handle back.
    `broken`: an operator has taken the hold away. `holds`: where its serial is noted while it is
    held; whoever acquires with it says where, and whoever releases strikes it out there.
    """

    __slots__ = ("__weakref__", "acquire", "actor", "alive", "asked", "broken", "calls", "client",
                 "glance", "holds", "name", "release", "serial", "watcher")

    def __init__(self, name: Name, serial: int, actor: int) -> None:
        """Enters the owner into the book."""
        self.alive = False
        self.name = name
        self.serial = serial
        self.actor = actor
        self.asked: object = None
        self.broken = False
        self.holds: set[int] = set()
        self.watcher: Callable[[int, int], None] | None = None
        self.client = name.table.client
        self.calls = ffi.new("struct dlk_call[3]")
        self.acquire: Any = self.calls + 0
        self.release: Any = self.calls + 1
        self.glance: Any = self.calls + 2
        self.acquire.verb = lib.DLK_VERB_LOCK
        self.acquire.wait_ms = lib.DLK_WAIT_FOREVER
        self.release.verb = lib.DLK_VERB_UNLOCK
        self.glance.verb = lib.DLK_VERB_LOOK
        self.acquire.lock_id = self.release.lock_id = self.glance.lock_id = name.lock_id
        name.owners.add(serial)
        self.alive = True
        self._enter()

    @property
    def owner(self) -> int:
        """The number by which book and server know it: the actor, and what makes it unique."""
        actor = self.actor if self.actor < APART else 0
        return actor << SERIAL_BITS | self.serial

    def _enter(self) -> None:
        name = self.name
        self.acquire.owner = self.release.owner = self.glance.owner = owner = self.owner
        status = lib.dlk_client_add_lock(
            self.client, name.lock_id, name.slot, name.key[1], owner)
        if status == _FORKED:
            raise ForkedError
        if status != _SUCCESS:
            raise MemoryError("no memory for one more hold of a dlock client")

    def rebind(self, actor: int) -> None:
        """From now on it is this actor's. Only while it is idle."""
        lib.dlk_client_drop_lock(self.client, self.name.lock_id, self.owner, 1)
        self.actor = actor
        self._enter()

    def drop(self) -> None:
        """Ends it; only while it is idle."""
        if self._end():
            lib.dlk_client_drop_lock(self.client, self.name.lock_id, self.owner, 1)

    def abandon(self) -> None:
        """Ends it, whatever it holds or asks for: that is given back. Never waits."""
        if self._end():
            client, release = self.client, self.release
            lib.dlk_client_cancel(client, self.acquire)
            lib.dlk_client_cancel(client, release)
            # An unlock that is begun and then cancelled is a debt: sent until it is answered.
            if lib.dlk_client_start(client, release) == _PENDING:
                lib.dlk_client_cancel(client, release)
            lib.dlk_client_drop_lock(client, self.name.lock_id, self.owner, 1)

    def _end(self) -> bool:
        """True the first time, while there is a session to tell."""
        was_alive, self.alive = self.alive, False
        self.holds.discard(self.serial)
        self.name.owners.discard(self.serial)
        return was_alive and not self.name.table.ended

    def __del__(self) -> None:
        if not getattr(self, "alive", False) or self.name.table.ended:
            return
        held = look(self).token != 0
        self.abandon()
        if held and not sys.is_finalizing():
            warnings.warn(
                f"lock {shown(self.name.key[0])} was dropped while it was held, and is given back; "
                "release it, or use `with`", ResourceWarning, stacklevel=2, source=self)


class Name:
    """One lock that the session has got. `owners`: the serials of all its handles, `idle` those
    that nobody uses; when these are all, the name is idle. `used`: since somebody looked last;
    `idle_s`: when `let_go_idle` found it so."""

    __slots__ = ("idle", "idle_s", "key", "lock_id", "owners", "slot", "table", "used")

    def __init__(self, table: NameTable, key: Key, lock_id: int, slot: int) -> None:
        self.table = table
        self.key = key
        self.lock_id = lock_id
        self.slot = slot
        self.idle: list[Handle] = []
        self.owners: set[int] = set()
        self.used = False
        self.idle_s: float | None = None


class NameTable:
    """The names of one session. `parting`: names that were let go here and of which the server has
    not confirmed it yet. `handles`: every handle by its serial, for those who bring notices."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.client = session.client
        self.ended = False
        self.parting: dict[Key, int] = {}
        self.handles: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()
        self._names: dict[Key, Name] = {}
        self._hand: deque[Name] = deque()  # the order in which eviction looks
        self._fresh = 0  # of these, the last ones: got since names were last let go
        # Re-entrant: a signal handler, or what is garbage-collected, may come in the midst.
        self._mutex = threading.RLock()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, key: Key) -> bool:
        return key in self._names

    # ---- Handles ---------------------------------------------------------------------------------

    def take(self, key: Key, actor: int) -> Handle | None:
        """A handle for one acquisition by this actor (0: nobody known; see APART). None: the name
        has not been got, or the session has ended: have the present session resolve it, and try
        again."""
        try:
            name = self._names[key]
            handle = name.idle.pop()
        except (KeyError, IndexError):
            return self._take_new(key, actor)
        name.used = True
        if handle.actor != actor and not self._rebind(handle, actor):
            return self._take_new(key, actor)
        return handle

    def _rebind(self, handle: Handle, actor: int) -> bool:
        """False: its name is not in the table any more, so that its lock id may be another's by
        now, and nothing may be begun with it."""
        with self._mutex:
            current = self._names.get(handle.name.key) is handle.name
            if current:
                handle.rebind(actor)
        if not current:
            handle.drop()
        return current

    def _take_new(self, key: Key, actor: int) -> Handle | None:
        if self._pid != os.getpid():
            raise ForkedError
        with self._mutex:
            name = self._names.get(key)
            if name is None:
                return None
            serial = next(_serials) & SERIAL_MASK
            while serial in self.handles:  # after four thousand million of them
                serial = next(_serials) & SERIAL_MASK
            handle = Handle(name, serial, actor)
            self.handles[serial] = handle
            return handle

    @staticmethod
    def give_back(handle: Handle) -> None:
        """Ends the use of a handle that holds nothing and asks for nothing, as the server has
        confirmed."""
        idle = handle.name.idle
        if len(idle) < IDLE_HANDLES_MAX:
            idle.append(handle)
        else:
            handle.drop()

    @staticmethod
    def retire(handle: Handle) -> None:
        """Ends the use of a handle of which it is not known what the server has of it: its owner is
        never used again, what it may hold is given back."""
        handle.abandon()

    def fading(self, actor: int) -> bool:
        """Does this actor hold something that may not be believed any more? The server, which
        learns of it last, takes it back within moments."""
        views = [look(handle) for handle in list(self.handles.values()) if handle.actor == actor]
        return any(view.token and not view.left_ms for view in views)

    # ---- Names -----------------------------------------------------------------------------------

    def enter(self, key: Key, lock_id: int, slot: int, epoch: int) -> None:
        """The primary of this epoch has given the name out. At another one its id may be another
        lock's."""
        with self._mutex:
            known = self._names.get(key)
            if self.ended or epoch != self.session.epoch:
                return
            if known is None or (known.lock_id, known.slot) != (lock_id, slot):
                name = self._names[key] = Name(self, key, lock_id, slot)
                self._hand.append(name)
                self._fresh += 1

    def forget(self, name: Name) -> None:
        """The server does not know the name any more; it is to be resolved again."""
        with self._mutex:
            if self._names.get(name.key) is name:
                del self._names[name.key]

    def known(self) -> dict[int, Name]:
        """All names by their lock ids."""
        with self._mutex:
            return {name.lock_id: name for name in self._names.values()}

    def keep(self, lock_ids: set[int]) -> None:
        """A new primary has these locks of ours, and none of the others: they are to be resolved
        again. From now on nothing is begun with the id of another."""
        with self._mutex:
            self._names = {key: one for key, one in self._names.items() if one.lock_id in lock_ids}
            self.parting = {key: one for key, one in self.parting.items() if one in lock_ids}

    def part(self, batches: int = 1) -> list[tuple[Key, int]]:
        """Lets idle names go, when there are more than IDLE_NAMES_MAX, those first that were not
        used for long. What the server has to be told: (name, lock id), at most so many times
        RELEASE_BATCH."""
        with self._mutex:
            if len(self._names) >= IDLE_NAMES_MAX + RELEASE_BATCH:
                self._evict(batches)
            self._fresh = 0
            return list(itertools.islice(self.parting.items(), batches * RELEASE_BATCH))

    def _evict(self, batches: int) -> None:
        # Not at those that the last exchange brought: whoever asked for them has not come yet.
        looks = min(len(self._hand) - self._fresh, batches * LOOKS_PER_EVICTION)
        room = batches * RELEASE_BATCH - len(self.parting)
        for _ in range(looks):
            if room <= 0 or not self._hand:
                return
            name = self._hand.popleft()
            if self._names.get(name.key) is not name:
                continue
            if name.used or not self._let_go(name):
                name.used = False
                self._hand.append(name)
            else:
                room -= 1

    def _let_go(self, name: Name) -> bool:
        """Takes a name out, if all its handles are idle. A thread that looked the name up before
        finds no handle here any more, and then no name."""
        if len(name.idle) != len(name.owners):
            return False
        handles = []
        while name.idle:
            try:
                handles.append(name.idle.pop())
            except IndexError:
                break
        if len(handles) != len(name.owners):
            name.idle.extend(handles)
            return False
        del self._names[name.key]
        self.parting[name.key] = name.lock_id
        for handle in handles:
            handle.drop()
        return True

    def let_go(self, key: Key) -> bool:
        """Lets a name go, if it is idle: it is in `parting` then. False: it is in use, or was not
        got."""
        with self._mutex:
            name = self._names.get(key)
            return name is not None and self._let_go(name)

    def let_go_idle(self, older_than_s: float) -> int:
        """Lets those names go that were found idle that long ago and were not used since; how
        many. The first look at an idle name only notes the time."""
        with self._mutex:
            now, count = time.monotonic(), 0
            for name in list(self._names.values()):
                if name.used or name.idle_s is None or len(name.idle) != len(name.owners):
                    name.used, name.idle_s = False, now
                elif now - name.idle_s >= older_than_s:
                    count += self._let_go(name)
            return count

    def parted(self, gone: list[tuple[Key, int]]) -> None:
        """The server has confirmed these."""
        with self._mutex:
            for key, lock_id in gone:
                if self.parting.get(key) == lock_id:
                    del self.parting[key]

    # ---- The end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """The session is over: handles that are in use are of no more use, the others go."""
        self.ended = True
        with self._mutex:
            names = list(self._names.values())
            self._names.clear()
            self._hand.clear()
            self.parting.clear()
        for name in names:
            name.idle.clear()  # they refer to their name and it to them
