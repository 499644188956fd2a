"""What one of the people does: takes locks, works under them and gives them back, counts, breaks,
looks; and what each of these must come to, whatever befalls the world meanwhile.

What the Python API promises to raise is met here, and counted. Anything else that comes out of a
call is a broken law.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

from dlock import errors
from dlock.aio import Client
from dlock.aio.atomic import AtomicInt64
from dlock.aio.kinds import Reentrant
from dlock.aio.locks import BaseLock
from dlock.control.messages import BreakLock, Recover
from dlock.control.messages_recover import EVICT_THESE
from sim import ways
from sim.diary import Diary, Hold
from sim.laws_belief import LOOSE
from sim.scene import LawBroken

if TYPE_CHECKING:
    from dlock._session import Session, Steps
    from sim.people import People

T = TypeVar("T")

ANSWER_S: Final = 5.0  # what a call that waits for nobody may wait for an answer
SUSPENDED_S: Final = 20.0  # how long one waits for a suspended hold to come back
DEPTH: Final = 2  # locks inside of locks
FAST: Final = 0.998  # a server's clock may go that much faster, and end a wait that much sooner
ROUNDING_S: Final = 0.005


class Person:
    """One of the people of a process, with a client that others there may share."""

    def __init__(self, people: People, diary: Diary, client: Client, rng: Random) -> None:
        self.people = people
        self.ways = people.ways
        self.diary = diary
        self.client = client
        self.rng = rng
        self.company: list[Person] = []  # all who live there with the same client
        self._lease_s = people.ways.lease_s
        self._objects: dict[str, BaseLock] = {}
        self._numbers = {
            ways.NUMBER: client.atomic(ways.NUMBER),
            ways.KEPT_NUMBER: client.atomic(
                ways.KEPT_NUMBER, ways.BASES[ways.KEPT_NUMBER],
                on_recover=ways.BASES[ways.KEPT_NUMBER]),
        }

    async def live(self) -> None:
        """Deed after deed, until the world heals or the client is closed."""
        try:
            while not self.people.world.healing:
                await self._deed()
                await self._pause(self.ways.think_s)
        except errors.ClientClosed:
            self.diary.seen["closed under its users"] += 1

    async def _deed(self) -> None:
        chance = self.rng.random()
        share = self.ways
        try:
            if chance < share.break_share:
                await self._break()
            elif self.rng.random() < share.count_share:
                await self._count()
            elif self.rng.random() < share.cancel_share:
                await self._change_mind()
            elif len(share.locks) > 1 and self.rng.random() < 0.1:
                await self._take_several()
            elif len(share.locks) > 1 and self.rng.random() < 0.05:
                await self._take_at_once()
            elif self.rng.random() < 0.03:
                await self._ask_around()
            elif self.people.laws.dead_sessions and self.rng.random() < 0.05:
                await self._bury()
            elif len(self.company) > 1 and self.rng.random() < 0.05:
                self._try_a_neighbours()
            else:
                await self._take(0)
        except errors.ConnectionLost:
            self.diary.seen["ConnectionLost"] += 1
        except errors.Deadlock:
            self.diary.seen["Deadlock"] += 1
        except errors.LockLost as loss:
            self.diary.seen[type(loss).__name__] += 1
        except errors.LeaseTooLong:
            if self._lease_s * 1000 <= self.client._connection.session.max_lease_ms:
                raise
            self.diary.seen["LeaseTooLong"] += 1
            self._lease_s /= 2

    async def _pause(self, mean_s: float) -> None:
        await asyncio.sleep(min(self.rng.expovariate(1 / mean_s), 20 * mean_s))

    async def _call(self, what: str, limit_s: float | None, call: Awaitable[T]) -> T:
        """A call that ends within so long, or (None) when others let it."""
        number = self.diary.begins(what, None if limit_s is None else int(limit_s * 1e9))
        try:
            return await call
        finally:
            self.diary.ends(number)

    # ---- Taking ----------------------------------------------------------------------------------

    def _lock(self, name: str) -> BaseLock:
        """Now and then a new object, mostly the one from before."""
        lock = self._objects.get(name)
        if lock is None or self.rng.random() < 0.3:
            leased = self.rng.random() < (0.9 if name == ways.LEASED else self.ways.lease_share)
            lease_s = max(0.02, self._lease_s * self.rng.uniform(0.3, 1)) if leased else None
            lock = ways.made(self.client, name, self.rng, lease_s, renew=self.rng.random() < 0.7,
                             reentrant=self.rng.random() < 0.2)
            self._objects[name] = lock
        return lock

    async def _acquire(self, lock: BaseLock, *, forever: bool) -> Hold | None:
        """One acquisition; None: taken, and the time is over."""
        chance = self.rng.random()
        what = f"acquire of {lock!r}"
        if forever and chance < self.ways.patient_share:
            granted = await self._in_its_time(what, None, lock.acquire())
        elif chance > 0.9:
            granted = await self._in_its_time(what, 0, lock.acquire(blocking=False))
        else:
            wait_s = self.rng.uniform(0, self.ways.wait_s)
            granted = await self._in_its_time(what, wait_s, lock.acquire(timeout=wait_s))
        return self._took(lock) if granted else None

    async def _in_its_time(
        self, what: str, wait_s: float | None, call: Awaitable[bool]
    ) -> bool:
        """An acquisition that may wait so long (None: for ever): it gives up then, and not
        before."""
        begun_s = asyncio.get_running_loop().time()
        limit_s = None if wait_s is None else wait_s + 2 * ANSWER_S
        try:
            granted = await self._call(what, limit_s, call)
        except errors.ConnectionLost:
            self._expect_patience(what, "ConnectionLost", begun_s, wait_s)
            raise
        if not granted:
            self._expect_patience(what, "not granted in time", begun_s, wait_s)
            self.diary.seen["not granted in time"] += 1
        return granted

    def _expect_patience(
        self, what: str, outcome: str, begun_s: float, wait_s: float | None
    ) -> None:
        waited_s = asyncio.get_running_loop().time() - begun_s
        if wait_s is None or waited_s < wait_s * FAST - ROUNDING_S:
            raise LawBroken(f"{self.diary.node.name}: {what}: {outcome} after {waited_s:.3f} s, "
                            f"and it may wait {'for ever' if wait_s is None else wait_s}")

    def _took(self, lock: BaseLock) -> Hold:
        if self.client.closed:
            raise errors.ClientClosed("in the moment in which it was granted")
        hold = self.diary.took(lock)
        self.people.world.say(self.diary.node.name, f"took {hold}")
        return hold

    async def _take(self, depth: int) -> None:
        """Takes one, works under it, perhaps takes another inside, and gives it back."""
        lock = self._lock(self.rng.choice(self.ways.locks))
        if lock._held:  # by this task, from outside
            if isinstance(lock, Reentrant):
                await self._enter_again(lock)
            return
        hold = await self._acquire(lock, forever=True)
        if hold is None:
            return
        try:
            await self._work(lock, hold)
            if depth < DEPTH and self.rng.random() < self.ways.nested_share:
                await self._take(depth + 1)
        finally:
            if self.client.closed:
                pass
            elif self.rng.random() < 0.1 and not isinstance(lock, Reentrant):
                await asyncio.get_running_loop().create_task(self.give_back(lock))
            else:
                await self.give_back(lock)

    async def _enter_again(self, lock: BaseLock) -> None:
        """Its own re-entrant lock: the token stays, and so does the hold when it leaves again."""
        token = lock.token
        await self._call(f"second acquire of {lock!r}", ANSWER_S, lock.acquire())
        self.diary.seen["entered again"] += 1
        await self._pause(self.ways.work_s)
        await self._call(f"inner release of {lock!r}", ANSWER_S, lock.release())
        if not lock._held or lock.token != token:
            raise LawBroken(f"{lock!r} was entered again, and is token {token} no more")

    def _try_a_neighbours(self) -> None:
        """A re-entrant lock that another task holds is that task's."""
        for one in self.company:
            for lock in one._objects.values():
                if one is not self and lock._held and isinstance(lock, Reentrant):
                    self._expect_not_mine(lock)

    def _expect_not_mine(self, lock: BaseLock) -> None:
        """Not this task's to release."""
        try:
            lock.release().close()
        except errors.NotHeld:
            self.diary.seen["held by a neighbour"] += 1
        else:
            raise LawBroken(f"{self.diary.node.name}: {lock!r} is released by a task that does not "
                            f"hold it")

    async def _take_several(self) -> None:
        """All or none."""
        names = self.rng.sample(self.ways.locks, self.rng.randint(2, min(3, len(self.ways.locks))))
        locks = [ways.made(self.client, name, self.rng) for name in names]
        multi = self.client.multi(locks)
        wait_s = self.rng.uniform(0, self.ways.wait_s)
        what = f"acquire of {' and '.join(names)}"
        if not await self._in_its_time(what, wait_s, multi.acquire(timeout=wait_s)):
            return
        holds = [self._took(one) for one in locks]
        self.diary.seen["several at once"] += 1
        await self._work(locks[0], holds[0])
        for one in locks:
            await self.give_back(one)

    async def _take_at_once(self) -> None:
        """Asks for several, each in a task of its own, and keeps what it gets of them."""
        names = self.rng.sample(self.ways.locks, min(3, len(self.ways.locks)))
        locks = [ways.made(self.client, name, self.rng) for name in names]
        outcomes = await asyncio.gather(
            *(self._acquire(one, forever=False) for one in locks), return_exceptions=True)
        self.diary.seen["asked for at once"] += 1
        await self._pause(self.ways.work_s)
        for one in locks:
            if one._held and not self.client.closed:
                await self.give_back(one)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _change_mind(self) -> None:
        """Asks, and takes it back in the middle; or the moment after it was granted."""
        lock = ways.made(self.client, self.rng.choice(self.ways.locks), self.rng)
        asking = asyncio.get_running_loop().create_task(
            self._call(f"acquire of {lock!r}, to be cancelled", None, lock.acquire()))
        await self._pause(self.rng.choice((0.0001, 0.005, self.ways.work_s)))
        asking.cancel()
        crosses = self.people.laws.crosses_a_grant(self.diary, lock)
        await asyncio.wait((asking,))
        if asking.cancelled():
            self.diary.seen["cancelled"] += 1
            self.diary.seen["cancels that crossed a grant"] += crosses
            if lock._held:
                raise LawBroken(f"{lock!r} was not acquired, and is held")
        elif asking.result():
            self._took(lock)
            await self.give_back(lock)

    # ---- Working ---------------------------------------------------------------------------------

    async def _work(self, lock: BaseLock, hold: Hold) -> None:
        """As long as it may: the hold is looked at before everything that is done under it."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + min(self.rng.expovariate(1 / self.ways.work_s),
                                  10 * self.ways.work_s)
        patience_s = 0.0
        while loop.time() < end_s and not self.people.world.healing and patience_s < SUSPENDED_S:
            token, left_ms = hold.look()
            if hold.lost or token != hold.token:
                return
            if left_ms:
                self._write(lock, hold)
                if hold.leased and self.rng.random() < 0.3:
                    await self._extend(lock)
                patience_s = 0.0
                await self._pause(max(self.ways.work_s / 4, 0.0005))
            else:
                self._expect(not lock.held and lock.remaining == 0, hold, "is suspended, and held")
                patience_s += 0.05
                await asyncio.sleep(0.05)

    def _write(self, lock: BaseLock, hold: Hold) -> None:
        """Under an exclusive hold that has just been found good nobody is late."""
        try:
            lock.ensure_held()
        except errors.LockLost:
            self._expect(not hold.look()[1], hold, "is held, and ensure_held says that it is lost")
            return
        if hold.exclusive and hold.key[0] != LOOSE:
            try:
                with self.people.storage[hold.key[0].decode()].admit(lock):
                    self.diary.seen["writes"] += 1
            except errors.StaleToken as late:
                raise LawBroken(f"{hold} was held, and its write came too late: {late}") from None

    async def _extend(self, lock: BaseLock) -> None:
        await self._call(f"extend of {lock!r}", 2 * ANSWER_S, lock.extend())
        self.diary.seen["extended"] += 1

    def _expect(self, holds: bool, hold: Hold, what: str) -> None:
        if not holds:
            raise LawBroken(f"{hold} {what}")

    # ---- Giving back -----------------------------------------------------------------------------

    async def give_back(self, lock: BaseLock) -> None:
        """Releases what this task has of it. Errors of a hold that is lost are met here."""
        before = list(lock._held)
        held: Hold | None = None
        newest = 0
        told_lost = False
        try:
            try:
                posted = lock.release()
            finally:
                for handle in before:
                    if handle not in lock._held:
                        held = self.diary.holds[handle.serial]
                        newest = self.people.laws.newest_against(held)
                        told_lost = held.lost
                        self.diary.gives_back(held)
            await self._call(f"release of {lock!r}", 2 * ANSWER_S, posted)
        except errors.LockLost as loss:
            self.diary.seen["told by release"] += 1
            self.people.world.say(self.diary.node.name, f"release: {loss}")
            return
        if held is None:
            return
        self._expect(not told_lost, held, "was told to be lost, and its release says nothing")
        self._expect(newest <= held.token, held, "was released as if nobody had had it in between")

    # ---- Other deeds -----------------------------------------------------------------------------

    async def _count(self) -> None:
        """Adds to a number, or looks at it."""
        name = self.rng.choice(tuple(self._numbers))
        number = self._numbers[name]
        amount = self.rng.choice((0, 1, 1, 3))
        laws = self.people.laws.numbers
        addition = laws.begins(name, self.diary.node.name, amount)
        try:
            value = await self._call(f"use of {number!r}", None, _use(number, amount, self.rng))
        except errors.OutcomeUnknown:
            self.diary.seen["OutcomeUnknown"] += 1
            self._expect_change(amount, number)
        except errors.ObjectLost:
            self.diary.seen["ObjectLost"] += 1
            laws.never(addition)
            if name != ways.NUMBER:
                raise LawBroken(f"{number!r} is said to be lost, and it is known what it shall "
                                f"be") from None
        else:
            self.diary.seen["counted"] += 1
            if number._epoch == self.client._connection.session.epoch:  # or it may be of either
                laws.found(addition, number._epoch, value)

    def _expect_change(self, amount: int, number: AtomicInt64) -> None:
        if not amount:
            raise LawBroken(f"the outcome of a look at {number!r} is said to be unknown")

    async def _break(self) -> None:
        """An operator asks for a hold, or takes it away where that is known to be unsafe."""
        name = self.rng.choice(self.ways.locks).encode()
        now = name == LOOSE and self.rng.random() < 0.5
        self.people.laws.breaks(name)

        def ask(_session: Session) -> Steps[int]:
            (reply,) = yield [BreakLock(name, 0, now)]
            return len(reply.tokens)

        loop = asyncio.get_running_loop()
        connection = self.client._connection
        count = await self._call(
            "break", 2 * ANSWER_S, connection.run(ask, loop.time() + ANSWER_S))
        self.people.world.say(self.diary.node.name, f"breaks {count} holds of {name!r}")
        self.diary.seen["holds broken"] += count

    async def _bury(self) -> None:
        """An operator who knows that clients are dead says so to a primary that waits for them."""
        dead = tuple(self.people.laws.dead_sessions)

        def ask(_session: Session) -> Steps[int]:
            (reply,) = yield [Recover(EVICT_THESE, dead)]
            return int(reply.evicted)

        loop = asyncio.get_running_loop()
        connection = self.client._connection
        count = await self._call(
            "evict", 2 * ANSWER_S, connection.run(ask, loop.time() + ANSWER_S))
        self.diary.seen["evicted by an operator"] += count

    async def _ask_around(self) -> None:
        """What operators look at."""
        lock = self._lock(self.rng.choice(self.ways.locks))
        asks: list[Callable[[], Awaitable[object]]] = [lock.locked, lock.holder, self.client.stats]
        await self._call("a question", 3 * ANSWER_S, self.rng.choice(asks)())


async def _use(number: AtomicInt64, amount: int, rng: Random) -> int:
    """What the number was before."""
    if not amount:
        return await number.get()
    if amount == 1 and rng.random() < 0.3:
        return await number.update(lambda value: value + 1) - 1
    return await number.fetch_add(amount)

