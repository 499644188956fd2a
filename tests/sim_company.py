"""What the tests of the simulator's laws share: clients, holds and a primary of which a test says
what they are."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from registry_world import World as RegistryWorld

from dlock import _core
from dlock._core import EntryView

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sim.diary import Diary, Hold
from sim.laws_belief import Beliefs, believed
from sim.laws_engine import EngineView, _Seen
from sim.scene import MS_NS, SECOND_NS

ATOMIC, RW, FAIR, SEMAPHORE = (
    _core.DLK_KIND_ATOMIC, _core.DLK_KIND_RW, _core.DLK_KIND_FAIR, _core.DLK_KIND_SEMAPHORE)
EXCLUSIVE, SHARED = _core.DLK_MODE_EXCLUSIVE, _core.DLK_MODE_SHARED
LOCK = (b"lock", ATOMIC, 1)
BOOK = (b"book", RW, 1)
POOL = (b"pool", SEMAPHORE, 2)
EPOCH = 3
FOREVER = 2**64 - 1


def token(counter: int, epoch: int = EPOCH) -> int:
    return epoch << _core.DLK_COUNTER_BITS | counter


class Clock:
    """One that is so much ahead."""

    def __init__(self, ahead_ns: int = 0) -> None:
        self.ahead_ns = ahead_ns

    def true_ns(self, own_ns: int) -> int:
        return own_ns - self.ahead_ns


class Node:
    """A client process; all share one time."""

    time_ns = 1000 * SECOND_NS

    def __init__(self, name: str, ahead_ns: int = 0) -> None:
        self.name = name
        self.paused, self.alive = False, True
        self.clock = Clock(ahead_ns)
        self.settled = True

    def now_ns(self) -> int:
        return Node.time_ns + self.clock.ahead_ns

    @property
    def client(self) -> Any:
        session = SimpleNamespace(id=self.now_ns() % 97)
        return SimpleNamespace(_connection=SimpleNamespace(settled=self.settled, session=session))

    async def connect(self, timeout: float, **options: Any) -> Any:
        raise NotImplementedError


class Told(Hold):
    """A hold of which this says what its client answers."""

    def __init__(
        self, diary: Diary, key: tuple[bytes, int, int], mode: int, number: int, left_ms: int,
        watched: bool = True, leased: bool = False,
    ) -> None:
        self.diary = diary
        self.key, self.mode, self.token, self.serial = key, mode, number, number
        self.leased = leased
        self.until_ns = self.amiss_since = self.amiss_turns = self.taken_ms = 0
        self.suspended = self.lost = self.over = self.was_suspended = False
        self.answer = (number, left_ms)
        watch = SimpleNamespace(lost=SimpleNamespace(is_set=lambda: self.lost))
        self.lock: Any = SimpleNamespace(_watch=watch if watched else None)
        session = SimpleNamespace(id=diary.node.now_ns() % 97)
        table = SimpleNamespace(ended=False, session=session)
        self.handle: Any = SimpleNamespace(
            broken=False, owner=7, name=SimpleNamespace(table=table))

    def look(self) -> tuple[int, int]:
        return self.answer


class Company:
    """Two clients and what they believe."""

    def __init__(self) -> None:
        Node.time_ns = 1000 * SECOND_NS
        self.seen: Counter[str] = Counter()
        self.anna = Diary(Node("anna"), self.seen)
        self.bert = Diary(Node("bert", ahead_ns=17), self.seen)
        self.beliefs = Beliefs(believed)

    def takes(
        self, diary: Diary, key: tuple[bytes, int, int], mode: int, number: int,
        left_ms: int = 500, **options: Any,
    ) -> Told:
        hold = Told(diary, key, mode, number, left_ms, **options)
        diary.holds[hold.serial] = hold
        diary.fresh.append(hold)
        self.beliefs.look(diary)
        return hold

    def now(self, hold: Told, number: int, left_ms: int) -> None:
        """What its client says of it from now on; and its client has a turn."""
        hold.answer = (number, left_ms)
        self.beliefs.look(hold.diary)

    def gives_back(self, hold: Told) -> None:
        hold.diary.gives_back(hold)
        self.beliefs.let_go(hold)


def later(ms: int) -> None:
    Node.time_ns += ms * MS_NS


def entry(state: int, number: int, client_id: int, mode: int = EXCLUSIVE, **more: int) -> EntryView:
    fields = {"owner": 7, "token": number, "end_ns": FOREVER, "since_ns": 0,
              "session_end_ns": Node.time_ns + SECOND_NS, "session": 0, "client_id": client_id,
              "request_id": 1, "entry": 1, "state": state, "mode": mode, "flags": 0, **more}
    return EntryView(**fields)


def held(number: int, client_id: int, **more: int) -> EntryView:
    return entry(_core.DLK_ENTRY_HELD, number, client_id, **more)


def waits(number: int, client_id: int, **more: int) -> EntryView:
    return entry(_core.DLK_ENTRY_QUEUED, number, client_id, **more)


class Server:
    """A primary of which this says what is in its engine, or that has a real one."""

    def __init__(self) -> None:
        self.world = RegistryWorld(epoch=EPOCH)
        self.name = "north"
        self.paused, self.alive = False, True
        self.clock = Clock()
        self.primary = SimpleNamespace(
            epoch=EPOCH, registry=self.world.registry, recovery=None,
            plane=SimpleNamespace(engine=self.world.engine._pointer))
        self.granted: list[int] = []
        self.view = EngineView(self, lambda _key, one: self.granted.append(one.token))

    def now_ns(self) -> int:
        return Node.time_ns

    def shows(self, *entries: EntryView, key: tuple[bytes, int, int] = LOCK) -> None:
        """After a turn."""
        self.view._compare(key, self.view._locks.setdefault(key, _Seen()), list(entries))
        self.view._newest_token = self.view._newest_now


