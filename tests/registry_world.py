"""A registry and a real engine, joined by two queues that a test moves by hand.

What the plane thread does between the rings is done here by `plane_step`, one command or so at a
time, so that a test decides how far commands and events run behind.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

from dlock import _core
from dlock._core import Command, Event, Limits, Request
from dlock._engine import Engine
from dlock.control import messages as m
from dlock.control.loop_views import LentArrays
from dlock.control.registry import Registry
from dlock.control.registry_effects import (
    Answer,
    AnswerStats,
    Claims,
    CloseConnection,
    Effect,
    Look,
)
from dlock.control.registry_recovery import RecoveryPlan
from dlock.control.registry_sessions import RegistryConfig
from dlock.control.roster import RosterEntry, verifier_of

SECOND = 1_000_000_000
TTL_MS = 10_000


def reinit(welcome: m.Welcome, secret: bytes | None = None) -> m.ClientReinit:
    return m.ClientReinit(1, 1, welcome.client_id, secret or welcome.secret, welcome.epoch,
                          welcome.incarnation, 0, {"host": "here"})


@dataclass(frozen=True)
class Former:
    """A client of a former primary."""

    id: int
    lease_ms: int = 0
    ended: bool = False
    seen: tuple[int, int] = (2, 7)

    @property
    def secret(self) -> bytes:
        return b"secret%10d" % self.id

    @property
    def entry(self) -> RosterEntry:
        return RosterEntry(
            self.id, self.lease_ms, self.ended, verifier_of(self.secret), f"host {self.id}")

    def reinit(self, *, early: bool = True, secret: bytes | None = None) -> m.ClientReinit:
        return m.ClientReinit(1, 1, self.id, secret or self.secret, *self.seen, int(early),
                              {"host": "host", "pid": self.id})


@dataclass
class World:
    """`log` holds every effect in order; answers are also filed by (connection, request id)."""

    recovery: RecoveryPlan | None = None
    durable: bool = True
    epoch: int = 3
    incarnation: int = 99
    now_ns: int = 1_000 * SECOND
    max_clients: int = 4
    verbs: bool = False

    def __post_init__(self) -> None:
        source = random.Random(self.epoch)
        config = RegistryConfig(
            random_bytes=source.randbytes, data_port=4711, epoch=self.epoch,
            incarnation=self.incarnation, max_locks=8,
            max_clients=self.max_clients, max_objects=4, session_ttl_ms=TTL_MS,
            recovery=self.recovery, durable=self.durable, verbs=self.verbs)
        self.config = config
        self.registry = Registry(config)
        self.engine = Engine(
            Limits(max_locks=config.max_locks, max_sessions=config.max_sessions, max_entries=256,
                   max_cells=config.max_objects, max_lease_ms=config.max_lease_ms),
            epoch=self.epoch, ready=self.recovery is None)
        if self.recovery is not None:
            ready = Command(_core.DLK_COMMAND_READY, value=_core.DLK_READY_RECOVERING)
            self.engine.command(ready, self.now_ns)
        self.commands: deque[Command] = deque()
        self.events: deque[Event] = deque()
        self.lent = LentArrays()
        self.replies: list[_core.Reply] = []  # of commands
        self.log: list[Effect] = []
        self.answers: dict[tuple[int, int], m.Message] = {}
        self.closed: list[int] = []
        self.next_request = 0

    # ---- Moving things ---------------------------------------------------------------------------

    def take(self, effects: list[Effect]) -> None:
        self.log += effects
        for effect in effects:
            if isinstance(effect, Command):
                self.commands.append(effect)
            elif isinstance(effect, Look | Claims):
                self.commands.append(self.lent.lend(effect))
            elif isinstance(effect, Answer):
                key = (effect.connection, effect.request_id)
                assert key not in self.answers, "answered twice"
                self.answers[key] = effect.message
            elif isinstance(effect, AnswerStats):
                self.answers[effect.connection, effect.request_id] = m.StatsReply(effect.stats)
            elif isinstance(effect, CloseConnection):
                self.closed.append(effect.connection)
                self.take(self.registry.disconnected(effect.connection))
        self.registry.check()
        assert self.engine.check() == 0

    def plane_step(self) -> bool:
        """The engine carries one command out; False: there was none."""
        if not self.commands:
            return False
        replies, events = self.engine.command(self.commands.popleft(), self.now_ns)
        self.replies += replies
        self.events += events
        return True

    def event_step(self) -> bool:
        """The registry takes one event; False: there was none."""
        if not self.events:
            return False
        event = self.events.popleft()
        self.take(self.registry.event(event, self.now_ns, self.lent.take(event)))
        return True

    def run(self) -> None:
        """Until nothing is under way."""
        while self.plane_step() or self.event_step():
            pass

    def later(self, seconds: float) -> None:
        """Time passes for both."""
        self.now_ns += round(seconds * SECOND)
        self.events += self.engine.tick(self.now_ns)[1]
        self.take(self.registry.tick(self.now_ns))

    def status(self, key: tuple[int, int]) -> Any:
        """The status of an answer."""
        answer: Any = self.answers[key]
        return answer.status

    # ---- A client's side -------------------------------------------------------------------------

    def send(self, connection: int, message: m.Request[Any]) -> tuple[int, int]:
        """Sends without waiting; the key of its answer."""
        self.next_request += 1
        self.take(self.registry.request(connection, self.next_request, message, self.now_ns))
        return connection, self.next_request

    def ask(self, connection: int, message: m.Request[m.Reply]) -> m.Reply:
        """Sends, lets everything happen, returns the answer."""
        key = self.send(connection, message)
        self.run()
        answer: Any = self.answers[key]
        assert isinstance(answer, m.BY_MESSAGE[type(message)].reply)  # type: ignore[arg-type]
        return answer

    def init(self, connection: int) -> m.Welcome:
        return self.ask(connection, m.ClientInit(1, 1, {"host": "here"}))

    def get(self, connection: int, name: bytes, kind: int = 0, size: int = 1) -> m.LockResult:
        answer = self.ask(connection, m.GetLocks((m.LockSpec(name, kind, size),)))
        return answer.results[0]

    def release(self, connection: int, lock_id: int) -> Any:
        return self.ask(connection, m.ReleaseLocks((lock_id,))).statuses[0]

    def reinit(
        self, connection: int, welcome: m.Welcome, secret: bytes | None = None
    ) -> m.Welcome:
        return self.ask(connection, reinit(welcome, secret))

    def hold(self, session: int, lock: m.LockResult, lease_ms: int = 0) -> _core.Reply:
        """A hold in the engine, as the data plane would make it."""
        replies, events = self.engine.step([Request(
            op=_core.DLK_OP_LOCK, session=session, lock_id=lock.lock_id, slot=lock.slot,
            owner=1, lease_ms=lease_ms)], self.now_ns)
        self.events += events
        assert replies[0].result == _core.DLK_RESULT_GRANTED
        return replies[0]

    def data(self, request: Request) -> _core.Reply:
        """A request of the data plane that is answered at once."""
        replies, events = self.engine.step([request], self.now_ns)
        self.events += events
        return replies[0]

    def unlock(self, session: int, lock: m.LockResult, hold: _core.Reply) -> None:
        self.events += self.engine.step([Request(
            op=_core.DLK_OP_UNLOCK, session=session, lock_id=lock.lock_id, slot=lock.slot,
            owner=1, entry=hold.entry, token=hold.token)], self.now_ns)[1]

    def of(self, kind: type[Any]) -> list[Any]:
        """Every effect of one kind so far."""
        return [effect for effect in self.log if isinstance(effect, kind)]

    def stats(self) -> dict[str, int]:
        return self.registry.stats(self.now_ns)
