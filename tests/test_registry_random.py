"""Any sequence of requests, breaks, holds and time keeps the registry's invariants."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from registry_world import World, reinit

from dlock import _core
from dlock.control import messages as m
from dlock.types import DlockStatus as S

ATOMIC, RW = 0, 1
CONNECTIONS = st.integers(0, 5)
NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"])


class AnySequence(RuleBasedStateMachine):
    """Random requests, broken connections, holds and time; commands and events run behind as far
    as they like. `World.take` checks the registry's and the engine's invariants at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.generation = dict.fromkeys(range(6), 0)
        self.welcomes: dict[int, m.Welcome] = {}
        self.asked: dict[tuple[int, int], m.Message] = {}
        self.holds: list[tuple[int, m.LockResult, _core.Reply]] = []
        self.highest_lock = 0

    def connection(self, number: int) -> int:
        """A number that is never used twice."""
        while (number + 10 * self.generation[number]) in self.world.closed:
            self.generation[number] += 1
        return number + 10 * self.generation[number]

    def send(self, number: int, message: m.Request[m.Reply]) -> None:
        key = self.world.send(self.connection(number), message)
        self.asked[key] = message

    @rule(number=CONNECTIONS)
    def init(self, number: int) -> None:
        self.send(number, m.ClientInit(1, 1, {}))

    @rule(number=CONNECTIONS, role=st.sampled_from(["one", "two"]), take=st.integers(0, 1))
    def enter_role(self, number: int, role: str, take: int) -> None:
        self.send(number, m.EnterRole(1, 1, role, take, {}))

    @rule(number=CONNECTIONS, actor=st.integers(1, 3), label=st.sampled_from(["", "a", "b"]),
          name=NAMES)
    def describe(self, number: int, actor: int, label: str, name: bytes) -> None:
        self.send(number, m.Describe((m.LabelLine(actor, label),), (m.TextLine(name, b"text"),)))

    @rule(number=CONNECTIONS, which=st.integers(0, 5))
    def reinit(self, number: int, which: int) -> None:
        if which in self.welcomes:
            self.send(number, reinit(self.welcomes[which]))

    @rule(number=CONNECTIONS, what=st.sampled_from(
        [m.ClientDeinit(), m.Heartbeat(), m.ReinitDone(), m.DeclareLease(20_000)]))
    def simple(self, number: int, what: m.Request[m.Status]) -> None:
        self.send(number, what)

    @rule(number=CONNECTIONS, names=st.lists(NAMES, min_size=1, max_size=4),
          kind=st.sampled_from([ATOMIC, ATOMIC, RW]))
    def get(self, number: int, names: list[bytes], kind: int) -> None:
        self.send(number, m.GetLocks(tuple(m.LockSpec(name, kind) for name in names)))

    @rule(number=CONNECTIONS, ids=st.lists(st.integers(1, 12), min_size=1, max_size=4))
    def release(self, number: int, ids: list[int]) -> None:
        self.send(number, m.ReleaseLocks(tuple(ids)))

    @rule(number=CONNECTIONS, name=NAMES, lease_s=st.integers(0, 20), make=st.booleans())
    def object(self, number: int, name: bytes, lease_s: int, make: bool) -> None:
        self.send(number, m.ObjectCreate(name, 1, lease_s) if make else m.ObjectGet(name, lease_s))

    @rule(number=CONNECTIONS, one=st.integers(1, 8), destroy=st.booleans())
    def drop_object(self, number: int, one: int, destroy: bool) -> None:
        self.send(number, m.ObjectDestroy(one) if destroy else m.ObjectRelease(one))

    @rule(number=CONNECTIONS)
    def disconnect(self, number: int) -> None:
        connection = self.connection(number)
        self.world.closed.append(connection)
        self.world.take(self.world.registry.disconnected(connection))

    @rule(commands=st.integers(0, 4), events=st.integers(0, 4))
    def move(self, commands: int, events: int) -> None:
        for _ in range(commands):
            self.world.plane_step()
        for _ in range(events):
            self.world.event_step()

    @rule(seconds=st.sampled_from([0.1, 1, 3, 9.9, 21]))
    def time(self, seconds: float) -> None:
        self.world.later(seconds)

    @rule(which=st.integers(0, 20), session=st.integers(0, 7), leased=st.booleans())
    def hold(self, which: int, session: int, leased: bool) -> None:
        """A hold somewhere in the engine, if it is to be had."""
        request = _core.Request(
            op=_core.DLK_OP_LOCK, session=session, lock_id=which, slot=which % 8, owner=1,
            lease_ms=15_000 if leased else 0)
        replies, events = self.world.engine.step([request], self.world.now_ns)
        self.world.events += events
        if replies and replies[0].result == _core.DLK_RESULT_GRANTED:
            lock = m.LockResult(S.SUCCESS, which, which % 8)
            self.holds.append((session, lock, replies[0]))

    @rule()
    def unlock(self) -> None:
        if self.holds:
            self.world.unlock(*self.holds.pop())

    @invariant()
    def at_most_one_session_has_a_role(self) -> None:
        sessions = self.world.registry._sessions._clients.values()
        roles = [one.role for one in sessions if one.role]
        assert len(roles) == len(set(roles))

    @invariant()
    def ids_only_grow_and_answers_fit(self) -> None:
        for key in [key for key in self.asked if key in self.world.answers]:
            asked, answer = self.asked.pop(key), self.world.answers[key]
            assert isinstance(answer, m.BY_MESSAGE[type(asked)].reply)  # type: ignore[arg-type]
            if isinstance(answer, m.Welcome) and answer.status is S.SUCCESS:
                self.welcomes[key[0] % 10] = answer
            if isinstance(answer, m.LockIds):
                for result in answer.results:
                    self.highest_lock = max(self.highest_lock, result.lock_id)

    def teardown(self) -> None:
        """Everybody leaves: nothing may be left, and every request was answered or cut off."""
        self.world.run()
        self.ids_only_grow_and_answers_fit()
        assert all(connection in self.world.closed for connection, _ in self.asked)
        for seconds in (11, 21, 21):
            self.world.later(seconds)
            self.world.run()
        stats = self.world.stats()
        assert [stats[name] for name in (
            "clients", "sessions_leaving", "locks", "objects", "commands_under_way",
            "labels")] == [0] * 6
        if not self.highest_lock:
            return
        self.world.init(1000)
        assert self.world.get(1000, b"new").lock_id > self.highest_lock


AnySequence.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestAnySequence = AnySequence.TestCase
