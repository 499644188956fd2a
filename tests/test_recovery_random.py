"""Any history of clients, crashes, take-overs and time: no two clients ever believe in holds that
exclude each other, every recovery ends, and no hold is lost without its client being told."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from recovery_service import KINDS, LEASE_MS, Person, Service
from registry_world import TTL_MS

from dlock import _core
from dlock.control import messages as m
from dlock.control.messages_recover import EVICT_THESE
from dlock.control.roster import believed_ms

PEOPLE = 4
WHO = st.integers(0, PEOPLE - 1)
NAMES = st.sampled_from(list(KINDS))
STEPS = st.integers(1, 6)


class AnyHistory(RuleBasedStateMachine):
    """Commands and events run behind as far as they like, and are lost with their primary."""

    def __init__(self) -> None:
        super().__init__()
        self.service = Service()
        self.people = [Person(self.service, number) for number in range(PEOPLE)]
        self.service.people = list(self.people)

    @initialize(inside=st.lists(WHO, max_size=PEOPLE, unique=True))
    def begin(self, inside: list[int]) -> None:
        for who in inside:
            self._enter(self.people[who])
            for name in KINDS:
                self.people[who].get(name)

    def _enter(self, person: Person) -> None:
        """As far as it gets without time passing."""
        for _ in range(40):
            person.step()
            self.service.primary.run()
            if person.inside or person.dead:
                return

    # ---- Clients ---------------------------------------------------------------------------------

    @rule(who=WHO, steps=STEPS)
    def step(self, who: int, steps: int) -> None:
        for _ in range(steps):
            self.people[who].step()
            self.service.primary.plane_step()
            self.service.primary.event_step()

    @rule(who=WHO)
    def enter(self, who: int) -> None:
        self._enter(self.people[who])

    @rule()
    def all_enter(self) -> None:
        for person in self.people:
            self._enter(person)

    @rule(who=WHO)
    def break_link(self, who: int) -> None:
        self.people[who].hang_up()

    @rule(who=WHO, name=NAMES, mode=st.integers(0, 1), leased=st.booleans(), heard=st.booleans())
    def lock(self, who: int, name: bytes, mode: int, leased: bool, heard: bool) -> None:
        person = self.people[who]
        if name not in person.locks:
            person.get(name)
        person.lock(name, mode, leased=leased, heard=heard)

    @rule(who=WHO, name=NAMES)
    def unlock(self, who: int, name: bytes) -> None:
        self.people[who].unlock(name)

    @rule(who=WHO, name=NAMES)
    def verify(self, who: int, name: bytes) -> None:
        self.people[who].verify(name)

    @rule(who=WHO)
    def heartbeat(self, who: int) -> None:
        self.people[who].ask(m.Heartbeat())

    @rule(who=WHO)
    def leave(self, who: int) -> None:
        self.people[who].leave()

    @rule(who=WHO)
    def leave_unheard(self, who: int) -> None:
        self.people[who].leave_unheard()

    @rule(who=WHO)
    def die(self, who: int) -> None:
        """Another one takes its place in the program; this one never comes back."""
        self.people[who].hang_up()
        self.people[who].dead = True
        self.people[who] = Person(self.service, self.people[who].number + PEOPLE)
        self.service.people = [*self.service.people, self.people[who]]

    # ---- Servers ---------------------------------------------------------------------------------

    @rule(commands=st.integers(0, 6), events=st.integers(0, 6))
    def move(self, commands: int, events: int) -> None:
        for primary in self.service.primaries():
            for _ in range(commands):
                primary.plane_step()
            for _ in range(events):
                primary.event_step()

    @rule(seconds=st.sampled_from([0.1, 1, 2.4, 5, 9.9, 10, 13, 21]))
    def time(self, seconds: float) -> None:
        self.service.later(seconds)

    @rule()
    def crash(self) -> None:
        self.service.crash()

    @rule()
    def take_over(self) -> None:
        if self.service.primary.ready:
            self.service.take_over()

    @rule()
    def evict_the_dead(self) -> None:
        dead = [one.session.client_id for one in self.service.people
                if one.dead and one.session is not None]
        self.service.primary.send(10_000, m.Recover(EVICT_THESE, tuple(dead[-100:])))

    # ---- What must hold --------------------------------------------------------------------------

    @invariant()
    def nobody_believes_beside_another(self) -> None:
        self.service.check()

    def teardown(self) -> None:
        self.service.primary.run()
        self.service.later(believed_ms(TTL_MS, 2 * LEASE_MS) / 1000)
        self.service.primary.run()
        self.service.later(1)
        self.service.primary.run()
        stats = self.service.primary.stats()
        if not self.service.primary.ready:  # one that came in the last moment is waited for
            assert stats["recovery_absent"], stats
        for person in self.people:
            self._enter(person)
        self.service.later(0)
        self.service.primary.run()
        assert self.service.primary.ready
        self.service.check()
        for person in self.people:
            self._enter(person)
            assert person.inside
            for name in list(person.holds):
                told = person.verify(name)
                assert told in (_core.DLK_RESULT_EXTENDED, _core.DLK_RESULT_NOT_HELD,
                                _core.DLK_RESULT_NO_LOCK, None)
        self.service.check()
        sessions = self.service.primary.registry._sessions
        assert set(self.service.primary.disk) == {
            *sessions._clients, *(one.id for one in sessions._leaving.values())}


AnyHistory.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None)
TestAnyHistory = AnyHistory.TestCase
