"""Any history of clients, crashes, take-overs and time: no two clients ever believe in holds that
exclude each other, every recovery ends, and no hold is lost without its client being told.

A seed is a history. DLOCK_HISTORIES says how many are played (default 150), DLOCK_SEED which first;
a failure names its seed and tells what happened.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from recovery_service import KINDS, LEASE_MS, Person, Service
from registry_world import TTL_MS

from dlock import _core
from dlock.control import messages as m
from dlock.control.messages_recover import EVICT_THESE
from dlock.control.roster import believed_ms

PEOPLE = 3
MOVES = 40
HISTORIES = int(os.environ.get("DLOCK_HISTORIES", "150"))
FIRST_SEED = int(os.environ.get("DLOCK_SEED", "1"))
TIMES = (0.1, 1, 2.4, 5, 9.9, 10, 13, 21)
ALL_THE_WAY = 6  # steps of a life that bring anybody inside


class History:
    """Commands and events run behind as far as they like, and are lost with their primary."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.told: list[str] = []
        self.service = Service()
        self.people = [Person(self.service, number) for number in range(PEOPLE)]
        self.service.people = list(self.people)
        self.moves: dict[Callable[[], None], int] = {
            self.fail_over: 6, self.want: 6, self.time: 3, self.verify: 3, self.step: 3,
            self.enter: 2, self.move: 2, self.crash: 2, self.unlock: 2, self.heartbeat: 2,
            self.lock_unheard: 1, self.break_link: 1, self.leave: 1, self.leave_unheard: 1,
            self.die: 1, self.evict_the_dead: 1}

    def play(self) -> None:
        for person in self.people:
            self._enter(person)
        for _ in range(MOVES):
            (move,) = self.draw.choices(list(self.moves), list(self.moves.values()))
            self.told.append(move.__name__)
            move()
            self.service.check()
        self.end()

    def _who(self) -> Person:
        return self.draw.choice(self.people)

    def _name(self) -> bytes:
        return self.draw.choice(list(KINDS))

    # ---- Clients ---------------------------------------------------------------------------------

    def _enter(self, person: Person) -> None:
        """As far as it gets without time passing."""
        for _ in range(40):
            person.step()
            self.service.primary.run()
            if person.inside or person.dead:
                break
        for name in KINDS:
            if name not in person.locks:
                person.get(name)

    def step(self) -> None:
        person = self._who()
        for _ in range(self.draw.randint(1, 6)):
            person.step()
            self.service.primary.plane_step()
            self.service.primary.event_step()

    def enter(self) -> None:
        for person in self.draw.sample(self.people, self.draw.randint(1, PEOPLE)):
            self._enter(person)

    def want(self) -> None:
        """Everybody who can tries to get a lock, often the same."""
        leased, name = self.draw.random() < 0.3, self._name()
        for person in self.draw.sample(self.people, PEOPLE):
            if self.draw.random() < 0.3:
                name = self._name()
            person.lock(name, self.draw.randint(0, 1), leased=leased, heard=True)

    def lock_unheard(self) -> None:
        self._who().lock(self._name(), 0, leased=False, heard=False)

    def unlock(self) -> None:
        self._who().unlock(self._name())

    def verify(self) -> None:
        for person in self.people:
            for name in list(person.holds):
                person.verify(name)

    def heartbeat(self) -> None:
        self._who().ask(m.Heartbeat())

    def break_link(self) -> None:
        self._who().hang_up()

    def leave(self) -> None:
        self._who().leave()

    def leave_unheard(self) -> None:
        self._who().leave_unheard()

    def die(self) -> None:
        """This one never comes back; another one takes its place."""
        at = self.draw.randrange(PEOPLE)
        self.people[at].hang_up()
        self.people[at].dead = True
        self.people[at] = Person(self.service, len(self.service.people))
        self.service.people.append(self.people[at])

    # ---- Servers ---------------------------------------------------------------------------------

    def move(self) -> None:
        for primary in self.service.primaries():
            for _ in range(self.draw.randint(0, 6)):
                primary.plane_step()
            for _ in range(self.draw.randint(0, 6)):
                primary.event_step()

    def time(self) -> None:
        self.service.later(self.draw.choice(TIMES))

    def crash(self) -> None:
        self.service.crash()
        self._return()

    def _return(self) -> list[Person]:
        """Each comes back so far; returns those who come all the way."""
        whole = []
        for person in self.people:
            steps = self.draw.choice((0, 1, 2, 3, ALL_THE_WAY, ALL_THE_WAY))
            if steps == ALL_THE_WAY:
                whole.append(person)
            for _ in range(steps):
                person.step()
                self.service.primary.run()
        return whole

    def fail_over(self) -> None:
        """A whole story: a new primary, some come back and go on, others stay away."""
        replaced = self.service.primary.ready and self.draw.random() < 0.3
        if replaced:
            self.service.take_over()
            if self.draw.random() < 0.5:
                self._who().hang_up()
        else:
            self.service.crash()
        whole = self._return()
        for _ in range(self.draw.randint(1, 3)):
            self.service.later(self.draw.choice(TIMES))
            self.service.primary.run()
            self.service.check()
            for person in whole:
                self._enter(person)
                person.ask(m.Heartbeat())
                for name in KINDS:
                    person.verify(name)
            self.want()
            self.service.check()

    def evict_the_dead(self) -> None:
        dead = [one.session.client_id for one in self.service.people
                if one.dead and one.session is not None]
        if dead:
            self.service.primary.send(10_000, m.Recover(EVICT_THESE, tuple(dead[-100:])))

    # ---- The end ---------------------------------------------------------------------------------

    def end(self) -> None:
        """A recovery always ends: who stays away is waited for once, who came and stays away then
        once more."""
        for _ in range(2):
            self.service.primary.run()
            self.service.later(believed_ms(TTL_MS, 2 * LEASE_MS) / 1000)
        self.service.primary.run()
        assert self.service.primary.ready
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


@pytest.mark.parametrize("tens", range(FIRST_SEED, FIRST_SEED + HISTORIES, 10))
def test_any_history(tens: int) -> None:
    for seed in range(tens, min(tens + 10, FIRST_SEED + HISTORIES)):
        history = History(seed)
        try:
            history.play()
        except AssertionError as problem:
            raise AssertionError(f"seed {seed}: {' '.join(history.told)}: {problem}") from problem
