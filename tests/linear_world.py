"""Long histories of a made-up service: clients that are slow, are killed, lose answers and are seen
in line; and, once in the midst of it, a fault of the service's own.

The service serves one name. Time is in microseconds of nobody's clock; every message takes up to
DELAY. A fault is planted where it matters: while a hold lasts long enough that no message under way
can excuse it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from dlock.linear import history as h
from dlock.linear.history import Operation

DELAY = 100
LONG = 20 * DELAY  # a hold in which a fault can be planted
SLOTS = 3


class Hold:
    """A hold at the service, and what its client makes of it."""

    def __init__(self, key: str, token: int, shared: bool, begin: int) -> None:
        self.key, self.token, self.shared, self.begin = key, token, shared, begin
        self.entries = 1
        self.release_at = 0  # until then its client believes in it; 0: nobody does
        self.ended = False


class Waiter:
    """A request that stands in line; `index`: its operation."""

    def __init__(self, index: int, shared: bool, grant: Callable[[Hold], None]) -> None:
        self.index, self.shared, self.grant = index, shared, grant


class LockWorld:
    """Clients of one lock of this kind, until there are so many operations. `fault`: what is to be
    planted, once; `planted`: when it was."""

    def __init__(self, kind: str, seed: int, count: int, fault: str = "", actors: int = 8) -> None:
        self.kind, self.fault, self._count = kind, fault, count
        self.chance = random.Random(f"{kind} {seed} {fault}")
        self.operations: list[Operation] = []
        self.planted: int | None = None
        self.now = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._names = itertools.count(1)
        self._token = 100
        self._changed = 0  # when there was room or none for the last time
        self.asking = 0
        # What nobody knows the end of could explain a refusal; so then there is nothing of this.
        self.tame = fault == "refused though free"
        self.rests = 200 * DELAY if self.tame else DELAY
        self._stays: set[int] = set()
        self.holders: list[Hold] = []
        self.queue: list[Waiter] = []
        for _ in range(actors):
            self.after(self.delay(), self._actor())

    def run(self) -> list[Operation]:
        """The history."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.operations

    def after(self, time: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + time, next(self._order), event))

    def delay(self) -> int:
        return self.chance.randint(1, DELAY)

    def _due(self, fault: str) -> bool:
        """Is it to be planted now, if this is a place for it? Then it is."""
        if (self.fault != fault or self.planted is not None
                or len(self.operations) < self._count // 2):
            return False
        self.planted = self.now
        return True

    # ---- The service -----------------------------------------------------------------------------

    def _room(self, shared: bool) -> bool:
        if self.kind == h.SEMAPHORE:
            return len(self.holders) < SLOTS
        if shared:
            return all(hold.shared for hold in self.holders)
        return not self.holders

    def _believed(self) -> bool:
        """Does everybody who holds it go on with it for long?"""
        return bool(self.holders) and all(
            hold.release_at > self.now + LONG // 2 for hold in self.holders)

    def request(
        self, index: int, key: str, shared: bool, waits: bool, grant: Callable[[Hold], None],
        refuse: Callable[[], None],
    ) -> None:
        free = self._room(shared) and not self.queue
        alone = self.now - self._changed > 3 * DELAY and self.asking == 1
        if free and alone and self._due("refused though free"):
            refuse()
        elif free or self._breaks_the_rules(shared):
            grant(self._grant(key, shared))
        elif waits:
            self.queue.append(Waiter(index, shared, grant))
            self.after(self.chance.randint(1, 30 * DELAY), lambda: self._give_up(index, refuse))
        elif self._refused_alone(shared) and not self._due("reader refused though only readers"):
            grant(self._grant(key, shared))
        else:
            refuse()

    def _refused_alone(self, shared: bool) -> bool:
        return False

    def _breaks_the_rules(self, shared: bool) -> bool:
        if not self._believed() or self._room(shared):
            return False
        return self._due({
            h.MUTEX: "second holder", h.REENTRANT: "second holder", h.SEMAPHORE: "slot too many",
        }.get(self.kind, "reader beside writer" if shared else "writer among readers")
            if shared or any(hold.shared for hold in self.holders) or self.kind not in (
                h.RW, h.FAIR) else "second writer")

    def _grant(self, key: str, shared: bool) -> Hold:
        self._token += self.chance.randint(1, 3)
        token = self._token
        if self._due("lower token"):
            token -= 50
        elif self._due("same token"):
            token = self._last_token
        self._last_token = token
        self._changed = self.now
        hold = Hold(key, token, shared, self.now)
        self.holders.append(hold)
        return hold

    def _give_up(self, index: int, refuse: Callable[[], None]) -> None:
        for waiter in self.queue:
            if waiter.index == index and index not in self._stays:
                self.queue.remove(waiter)
                refuse()
                self.settle()
                return

    def settle(self) -> None:
        while self.queue:
            at = 0
            if (len(self.queue) > 1 and self._room(self.queue[-1].shared)
                    and self._was_seen(self.queue[0].index) < self._begin(self.queue[-1].index)
                    and self._room(self.queue[0].shared) and self._due("overtaken")):
                at = -1
                self._stays.add(self.queue[0].index)  # else it may have gone before
            if not self._room(self.queue[at].shared):
                return
            waiter = self.queue.pop(at)
            waiter.grant(self._grant("", waiter.shared))

    def _was_seen(self, index: int) -> float:
        return self.operations[index].queued_ns or float("inf")

    def _begin(self, index: int) -> int:
        return self.operations[index].begin_ns

    def end(self, hold: Hold) -> None:
        if hold in self.holders:
            self.holders.remove(hold)
            self._changed = self.now
            self.settle()

    # ---- A client --------------------------------------------------------------------------------

    def _actor(self) -> Callable[[], None]:
        who = f"c{next(self._names)}"
        return lambda: self._turn(who)

    def _turn(self, who: str) -> None:
        if len(self.operations) >= self._count:
            return
        self.asking += 1
        Turn(self, who).begin()

    def next_turn(self, who: str, killed: bool = False) -> None:
        self.asking -= 1
        self.after(self.chance.randint(1, self.rests),
                   self._actor() if killed else lambda: self._turn(who))

    def add(self, action: str, who: str, begin: int, end: int | None, **more: Any) -> int:
        if self.kind == h.SEMAPHORE:
            more["size"] = SLOTS
        self.operations.append(Operation("a", self.kind, action, who, begin, end, **more))
        return len(self.operations) - 1

    def change(self, index: int, **more: Any) -> None:
        self.operations[index] = self.operations[index]._replace(**more)

    def sight(self) -> None:
        """Somebody asks who stands in line."""
        begin, seen = self.now - self.delay(), [waiter.index for waiter in self.queue]
        for index in seen:
            one = self.operations[index]
            if one.end_ns is None or one.end_ns > self.now:
                end = self.now + self.delay()
                self.change(index, queued_ns=min(one.queued_ns or end, end),
                            waiting_ns=max(one.waiting_ns or begin, begin))


class Turn:
    """One client asks for the lock, holds it, gives it back; if nothing comes between."""

    def __init__(self, world: LockWorld, who: str) -> None:
        self._world, self._who, self._chance = world, who, world.chance
        self._key = "" if world.kind == h.REENTRANT else f"{who}.{len(world.operations)}"
        self._shared = world.kind in (h.RW, h.FAIR) and self._chance.random() < 0.6
        self._lost = False  # nobody hears of the answer

    def begin(self) -> None:
        world, waits = self._world, self._chance.random() < 0.7
        self._lost = self._chance.random() < 0.01
        killed = self._lost and self._chance.random() < 0.5 and not world.tame
        self._killed = killed
        self._index = world.add(
            h.ACQUIRE, self._who, world.now, None, outcome=h.UNKNOWN, hold=self._key,
            shared=self._shared, waits=waits)
        if self._chance.random() < 0.2:
            world.after(world.delay() * 3, world.sight)
        world.after(world.delay(), lambda: world.request(
            self._index, self._key, self._shared, waits, self._granted, self._refused))
        if self._lost:
            world.after(40 * DELAY, lambda: world.next_turn(self._who, killed))

    def _refused(self) -> None:
        if self._lost:
            self._forgotten(self._world.delay())
        else:
            quick = self._world.planted == self._world.now
            end = self._world.now + (1 if quick else self._world.delay())
            self._world.change(self._index, outcome=h.REFUSED, end_ns=end)
            self._world.after(end - self._world.now, lambda: self._world.next_turn(self._who))

    def _forgotten(self, time: int) -> None:
        """A client that lives learns that nothing is left of what it asked."""
        if not self._killed:
            self._world.change(self._index, end_ns=self._world.now + time)

    def _granted(self, hold: Hold) -> None:
        world = self._world
        hold.key = self._key
        if self._lost:  # it is given back some time
            later = self._chance.randint(1, 60 * DELAY)
            world.after(later, lambda: world.end(hold))
            self._forgotten(later + world.delay())
            return
        end = world.now + world.delay()
        world.change(self._index, outcome=h.DONE, end_ns=end, token=hold.token)
        long = self._chance.random() < 0.3
        hold.release_at = end + self._chance.randint(1, 3 * LONG if long else DELAY)
        if long:
            self._look(hold, self._chance.randint(1, LONG))
        if (world.kind == h.REENTRANT and hold.release_at > world.now + LONG):
            self._enter_again(hold, end)
        elif long and not hold.shared and self._plant(hold):
            return
        world.after(hold.release_at - world.now, lambda: self._give_back(hold))

    def _look(self, hold: Hold, time: int) -> None:
        """Its client calls it held, now and again."""
        world = self._world

        def look() -> None:
            if world.now < hold.release_at and not hold.ended:
                end = min(world.now + 3, hold.release_at)
                world.add(h.HELD, self._who, world.now, end, hold=self._key, token=hold.token,
                          shared=self._shared)
                self._look(hold, self._chance.randint(1, LONG))

        begin = max(world.operations[self._index].end_ns or 0, world.now) - world.now
        world.after(begin + time, look)

    def _enter_again(self, hold: Hold, end: int) -> None:
        world, world_end = self._world, end + DELAY
        again = {"hold": self._key, "token": hold.token}
        world.add(h.ACQUIRE, self._who, end + 1, end + 2, **again)
        world.add(h.RELEASE, self._who, world_end, world_end + 1, **again)
        if hold.release_at < world_end + LONG:
            hold.release_at = world_end + LONG
        if world._due("free before its last release"):
            world.after(world_end + 1 - world.now, lambda: world.end(hold))
        elif world._due("another owner enters"):
            world.add(h.ACQUIRE, "stranger", end + 2 * DELAY, end + 2 * DELAY + 9, token=hold.token)

    def _plant(self, hold: Hold) -> bool:
        """Whether its client goes on as if it held it; the faults are those of a hold's end."""
        world, half = self._world, (hold.release_at - self._world.now) // 2
        if half < LONG // 2 or not world.queue:
            return False
        if world._due("ended early") or world._due("stale unlock"):
            world.after(half // 2, lambda: world.end(hold))
            world.add(h.HELD, self._who, hold.release_at, hold.release_at + 1, hold=self._key)
            hold.release_at += 2
            return False
        if world._due("confirmed though passed on"):
            world.after(half // 3, lambda: world.end(hold))
            world.add(h.HELD, self._who, hold.release_at + 90 * DELAY, hold.release_at + 91 * DELAY,
                      hold=self._key)
            hold.release_at += 92 * DELAY
            hold.ended = True
            return False
        return False

    def _give_back(self, hold: Hold) -> None:
        world, roll = self._world, self._chance.random()
        if roll < 0.02 and world.kind != h.REENTRANT and not world.tame:  # killed
            later = self._chance.randint(10 * DELAY, 60 * DELAY)
            promised = world.now + later
            if world.queue and world._due("a killed holder's promise is broken"):
                later = 1
            world.add(h.END, self._who, promised, None, hold=self._key, outcome=h.UNKNOWN)
            world.after(later, lambda: world.end(hold))
            world.next_turn(self._who, killed=True)
            return
        sure = roll > 0.05 or world.tame
        arrives = world.delay()
        end = world.now + arrives + world.delay()
        world.add(h.RELEASE, self._who, world.now, end if sure else None, hold=self._key,
                  token=hold.token, shared=self._shared)
        world.after(arrives if sure else 20 * arrives, lambda: world.end(hold))
        world.after(end - world.now, lambda: world.next_turn(self._who))


# ---- Numbers -------------------------------------------------------------------------------------


class NumberWorld:
    """Clients that change one number, which begins anew with each of three primaries."""

    def __init__(self, seed: int, count: int, fault: str = "", actors: int = 8) -> None:
        self.chance = random.Random(f"{seed} {fault}")
        self.fault, self.planted, self._count = fault, None, count
        self._free = [0] * actors
        self.operations: list[Operation] = []

    def _due(self, fault: str, now: int) -> bool:
        due = (self.fault == fault and self.planted is None
               and len(self.operations) > self._count // 2)
        if due:
            self.planted: int | None = now
        return due

    def run(self) -> list[Operation]:
        """The history: who is free next asks; what takes effect does so in the order of time."""
        life, value, now = 1, 0, 0
        self._values = [0]
        while len(self.operations) < self._count:
            now += self.chance.randint(1, DELAY // 4)
            who = min(range(len(self._free)), key=lambda one: self._free[one])
            begin = max(self._free[who], now - self.chance.randint(0, DELAY))
            now = max(now, begin)
            end = now + self.chance.randint(1, DELAY)
            self._free[who] = end + 1
            if len(self.operations) in (self._count // 3, 2 * self._count // 3):
                life += 1
                if not self._due("outlived its primary", now):
                    value = 0
                now += 3 * DELAY  # nothing of the former life is under way
                end = now + 1
                self._free = [end + 1] * len(self._free)
                self._add(h.GONE, f"c{who}", now, end, life=life)
                continue
            value = self._operate(f"c{who}", begin, end, now, life, value)
            self._values.append(value)
        return self.operations

    def _operate(self, who: str, begin: int, end: int, now: int, life: int, value: int) -> int:
        action = self.chance.choice([h.ADD, h.ADD, h.SWAP, h.GET])
        argument = self.chance.choice([1, 1, 1, 2]) if action == h.ADD else value
        lost = action != h.GET and self.chance.random() < 0.01
        if self.fault:  # what is not known could explain it
            lost = lost and action == h.ADD and self.fault == "unknown made twice"
            argument = 100_000 + len(self.operations) if lost else argument
        if action == h.SWAP and self.chance.random() < 0.3:
            argument += 1
        desired = len(self.operations) << 20
        found, made = value, value
        if action == h.ADD:
            made = value + argument
        elif action == h.SWAP and argument == value:
            made = desired
        if lost and self.chance.random() < 0.5:
            made = value  # it never came to the server
        if action == h.ADD and not lost:
            if self._due("lost update", now):
                made = value
            elif self._due("made twice", now):
                made = value + 2 * argument
        elif action == h.ADD and made != value and self._due("unknown made twice", now):
            made = value + 2 * argument
        elif action == h.GET and self._due("old value read", now):
            found = self._values[-40]  # no change since then is under way any more
        elif action == h.SWAP and argument != value and not lost and self._due("swap missed", now):
            found, made = argument, desired
        self._add(action, who, begin, None if lost else end, argument=argument, desired=desired,
                  result=None if lost else found, life=life,
                  outcome=h.UNKNOWN if lost else h.DONE)
        return made

    def _add(self, action: str, who: str, begin: int, end: int | None, **more: Any) -> None:
        self.operations.append(Operation("n", h.CELL, action, who, begin, end, size=0, **more))
