"""Any history of many owners: no exclusive name ever has two holders, every ask is answered once or
never after it was cancelled, tokens grow, and at the end nothing is left.

A seed is a history; DLOCK_OWNER_SEEDS says how many are played.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from aio_tools import run, until
from failover_tools import PATIENCE_S, Primary
from lock_tools import serving

from dlock import aio
from dlock.admin import Admin
from dlock.aio import FOREVER, Asking, Hold, Owner, keys
from dlock.aio.keys import Key
from dlock.errors import DlockError

SEEDS = int(os.environ.get("DLOCK_OWNER_SEEDS", "12"))
STEPS = 400
OWNERS = 12
KEYS = (
    *(keys.exclusive(f"exclusive {number}") for number in range(4)),
    keys.slots("slots", 3),
    keys.shared("shared"),
)
WAITS = (0, 0, 5, 50, FOREVER)


class Believed:
    """Who holds what, as the owners have been told."""

    def __init__(self) -> None:
        self.holds: dict[Key, list[Hold]] = {key: [] for key in KEYS}
        self.newest: Counter[Key] = Counter()
        self.met: Counter[str] = Counter()

    def got(self, hold: Hold) -> None:
        key, held = hold.key, self.holds[hold.key]
        held[:] = [one for one in held if one.held]
        held.append(hold)
        if key != KEYS[-1] and hold.held:
            assert len(held) <= key.size, f"{key} is held {len(held)} times"
        if key.size == 1 and key != KEYS[-1]:
            assert hold.token > self.newest[key], f"a token of {key} does not grow"
            self.newest[key] = hold.token
        hold.on_lost = self.lost

    def lost(self, hold: Hold) -> None:
        self.met["lost"] += 1
        assert not hold.held

    def release(self, hold: Hold) -> bool:
        with contextlib.suppress(ValueError):
            self.holds[hold.key].remove(hold)
        good = hold.release()
        assert not hold.held
        assert not hold.release()
        return good


class Wish:
    """One ask, and what it is told."""

    def __init__(self, history: History, owner: Owner, key: Key, wait_ms: int) -> None:
        self.history = history
        self.over = False
        self.asking: Asking | None = None
        history.wishes[self] = None
        self.asking = owner.ask(key, self.told, wait_ms)
        assert not self.over, "told before ask has returned"

    def told(self, outcome: Hold | DlockError | None) -> None:
        assert self.asking is not None
        assert not self.over, "told twice, or after it was cancelled"
        self.over = True
        self.history.wishes.pop(self, None)
        believed = self.history.believed
        believed.met[type(outcome).__name__] += 1
        if isinstance(outcome, Hold):
            believed.got(outcome)
            if self.history.chance.random() < 0.2:
                believed.release(outcome)
        else:
            assert outcome is None, outcome

    def cancel(self) -> None:
        assert self.asking is not None
        self.asking.cancel()
        self.over = True
        self.history.wishes.pop(self, None)


class History:
    """One history: a seed decides what happens. `problems`: what callbacks asserted."""

    def __init__(self, seed: int, clients: list[aio.Client]) -> None:
        self.chance = random.Random(seed)
        self.clients = clients
        self.owners = [self._owner() for _ in range(OWNERS)]
        self.believed = Believed()
        self.wishes: dict[Wish, None] = {}
        self.takes: list[asyncio.Task[None]] = []
        self.problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: self.problems.append(context))

    def _owner(self) -> Owner:
        client = self.chance.choice(self.clients)
        return client.owner(f"owner {self.chance.random()}")

    async def step(self) -> None:
        chance = self.chance
        index = chance.randrange(OWNERS)
        owner = self.owners[index]
        what = chance.random()
        if what < 0.45:
            Wish(self, owner, chance.choice(KEYS), chance.choice(WAITS))
        elif what < 0.55 and self.wishes:
            chance.choice(list(self.wishes)).cancel()
            self.believed.met["cancelled"] += 1
        elif what < 0.75 and owner.holds:
            self.believed.release(chance.choice(sorted(owner.holds, key=lambda one: one.token)))
        elif what < 0.8:
            self.takes.append(asyncio.ensure_future(self._take(owner, chance.choice(KEYS))))
        elif what < 0.84 and self.takes:
            self.takes.pop(chance.randrange(len(self.takes))).cancel()
        elif what < 0.86:
            for hold in owner.holds:
                self.believed.release(hold)
            owner.close()
            self.owners[index] = self._owner()
        elif what < 0.88:
            chance.choice(self.clients).let_go_idle(0)
        elif what < 0.97:
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(chance.random() * 0.01)
        assert not self.problems, self.problems

    async def _take(self, owner: Owner, key: Key) -> None:
        with contextlib.suppress(DlockError):  # its owner was closed
            hold = await owner.take(key, 30)
            if hold is not None:
                self.believed.got(hold)
                await asyncio.sleep(0.001)
                self.believed.release(hold)

    async def end(self) -> None:
        """Everybody ends, and nothing may be left."""
        await asyncio.gather(*self.takes, return_exceptions=True)
        for owner in self.owners:
            owner.close()
        assert not self.problems, self.problems


async def empty(address: str) -> None:
    """Until nobody holds or waits for anything."""
    with Admin(address) as admin:
        def nothing() -> bool:
            views = [admin.show(key.descriptor) for key in KEYS]
            return not any(view and (view.holders or view.waiters) for view in views)

        await until(nothing, PATIENCE_S)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_history(seed: int) -> None:
    async def program(address: str) -> None:
        clients = [await aio.connect(address) for _ in range(2)]
        history = History(seed, clients)
        for _ in range(STEPS):
            await history.step()
        await history.end()
        await empty(address)
        assert {"Hold", "NoneType", "cancelled"} <= set(history.believed.met)
        for client in clients:
            await client.close()

    with serving(session_ttl_ms=60_000) as service:
        run(program(service.address), 90)


@pytest.mark.parametrize("seed", range(4))
def test_any_history_with_primaries_that_die(seed: int, tmp_path: Path) -> None:
    async def program(primary: Primary) -> None:
        clients = [await aio.connect(primary.address, timeout=60) for _ in range(2)]
        history = History(seed, clients)
        for step in range(STEPS):
            await history.step()
            if step % 150 == 99:
                await asyncio.sleep(0.2 * history.chance.random())
                primary.restart()
            if history.chance.random() < 0.1:
                await asyncio.sleep(0.01)
        await history.end()
        await until(lambda: all(one._connection.settled for one in clients), PATIENCE_S)
        await empty(primary.place)
        assert not history.believed.met["lost"]
        for client in clients:
            await client.close()

    primary = Primary(tmp_path, ttl_s=60.0)
    try:
        run(program(primary), 120)
    finally:
        primary.kill()
