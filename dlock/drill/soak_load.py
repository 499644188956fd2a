"""One client process of a long run: steady, paced load of one kind until standard input ends.

Started by `dlock/drill/soak.py` as `python -m dlock.drill.soak_load {"kind": ..., ...}`. It says
"working" on standard output once its tables are full and the load begins, and writes a line of JSON
a second into its file: what it has done so far. Whatever dlock reports as an error of its own is
counted; anything else ends the process with a traceback.

A leak can be planted in it, to see that it is found.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import dlock
from dlock.errors import DlockError

ACTORS: Final = 3  # threads or tasks of a process
COMMON: Final = 6  # names of each kind that all processes share
FRESH: Final = 0.2  # of all turns: a name that is used once
WARM_NAMES: Final = 5000  # a client remembers up to 4096 names and keeps 1024: full at once
CONNECT_S: Final = 60.0
WAIT_S: Final = 5.0
HOLD_S: Final = 0.002  # at most
TELL_S: Final = 1.0
LEASE_S: Final = 2.0
SLOTS: Final = 2
PLANTED_BYTES: Final = 512 << 10
PLANTS: Final = ("memory", "descriptors", "threads", "sessions")


@dataclass(frozen=True)
class Order:
    """What a process is told. `rate`: turns a second; `file`: where it tells; `plant`: which leaks
    it is to have, one leaked thing of each every `plant_every` turns once the file
    `plant_from` is there: when all processes work."""

    kind: str
    address: str
    name: str
    file: str
    rate: float
    seed: int
    plant: tuple[str, ...] = ()
    plant_every: int = 5
    plant_from: str = ""

    def as_argument(self) -> str:
        """For the command line of the process."""
        return json.dumps(asdict(self))


class Tally:
    """What was done so far, told once a second; and the planted leak, if there is one."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.ended = threading.Event()
        self.counts: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        self._mutex = threading.Lock()
        self._file = open(order.file, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._leaked: list[Any] = []
        self._fresh = 0

    def count(self, what: str) -> None:
        """One more of these; every so many turns something leaks, if it is to."""
        with self._mutex:
            self.counts[what] += 1
            leaks = self.order.plant and self.counts.total() % self.order.plant_every == 0
        if leaks and os.path.exists(self.order.plant_from):
            self._leak()

    def refused(self, problem: DlockError) -> None:
        """An error of dlock: counted by its name, and the first of each name is kept as it was."""
        name = type(problem).__name__
        with self._mutex:
            self.said.setdefault(name, str(problem))
        self.count(name)

    def fresh(self) -> str:
        """A name that nobody has used before."""
        with self._mutex:
            self._fresh += 1
            return f"once/{self.order.name}/{os.getpid()}/{self._fresh}"

    def tell(self) -> None:
        """A line: seconds of the monotonic clock, all counts, and what errors said."""
        with self._mutex:
            line = {"t_s": time.monotonic(), "counts": dict(self.counts), "said": dict(self.said)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def tell_until_ended(self) -> None:
        """A line a second, the last one at the end."""
        while not self.ended.wait(TELL_S):
            self.tell()

    def close(self) -> None:
        """The last line."""
        self.tell()
        self._file.close()

    def _leak(self) -> None:
        for plant in self.order.plant:
            if plant == "memory":
                self._leaked.append(bytearray(os.urandom(PLANTED_BYTES)))
            elif plant == "descriptors":
                self._leaked.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            elif plant == "threads":
                threading.Thread(target=self.ended.wait, daemon=True).start()
            else:  # sessions that nobody uses and nobody ends: the leak is the primary's
                with suppress(DlockError):
                    self._leaked.append(dlock.connect(self.order.address, wait="block"))


def say(word: str) -> None:
    """To whoever started this process."""
    print(word, flush=True)


def pause_s(order: Order, chance: random.Random, actors: int = ACTORS) -> float:
    """Until an actor's next turn."""
    return chance.expovariate(order.rate / actors)


def a_name(kind: str, chance: random.Random, tally: Tally) -> str:
    """Mostly one that others use as well."""
    if chance.random() < FRESH:
        return f"{kind}/{tally.fresh()}"
    return f"{kind}/{chance.randrange(COMMON)}"


def a_lock(client: Any, chance: random.Random, tally: Tally) -> tuple[str, Any]:
    """A lock object of any kind, of a client of either API, and what it is called in the counts."""
    leased = {"lease": LEASE_S, "renew": chance.random() < 0.5}
    makes: list[tuple[str, Callable[[], Any]]] = [
        ("lock", lambda: client.lock(a_name("a", chance, tally))),
        ("lock with lease", lambda: client.lock(a_name("a", chance, tally), **leased)),
        ("reentrant", lambda: client.lock(a_name("a", chance, tally), reentrant=True)),
        ("read", lambda: client.rwlock(a_name("rw", chance, tally)).read()),
        ("write", lambda: client.rwlock(a_name("rw", chance, tally)).write()),
        ("fair", lambda: client.fair_lock(a_name("f", chance, tally), **leased)),
        ("fair shared", lambda: client.fair_lock(a_name("f", chance, tally), shared=True)),
        ("semaphore", lambda: client.semaphore(a_name("s", chance, tally), SLOTS)),
        ("multi", lambda: client.multi(
            [client.lock(f"a/{one}") for one in chance.sample(range(COMMON), 2)])),
    ]
    what, make = chance.choice(makes)
    return what, make()


# ---- Threads -------------------------------------------------------------------------------------


def threads(tally: Tally) -> None:
    """The Python API, from several threads of one client."""
    order, failed = tally.order, []
    client = dlock.connect(order.address, timeout=CONNECT_S, wait="block", name=order.name)

    def work(number: int) -> None:
        chance = random.Random(f"{order.seed} {order.name} {number}")
        try:
            while not tally.ended.wait(pause_s(order, chance)):
                try:
                    tally.count(thread_turn(client, chance, tally))
                except DlockError as problem:
                    tally.refused(problem)
        except BaseException as problem:
            failed.append(problem)
            raise

    for _ in range(WARM_NAMES):
        with client.lock(tally.fresh()):
            pass
    say("working")
    working = [threading.Thread(target=work, args=(number,)) for number in range(ACTORS)]
    for one in working:
        one.start()
    tally.tell_until_ended()
    for one in working:
        one.join()
    client.close()
    if failed:
        raise SystemExit(1)


def thread_turn(client: dlock.Client, chance: random.Random, tally: Tally) -> str:
    """One operation and what it is called."""
    what = chance.random()
    if what < 0.1:
        number = client.atomic(f"n/{chance.randrange(COMMON)}")
        return "number" if number.add(1) is not None else ""
    if what < 0.15:
        client.lock(f"a/{chance.randrange(COMMON)}").holder()
        return "who holds it"
    if what < 0.25:
        lock = client.lock(f"a/{chance.randrange(COMMON)}")
        future = lock.acquire_future(timeout=WAIT_S)
        if chance.random() < 0.3 and future.cancel():
            return "future, cancelled"
        if future.result():
            lock.release()
        return "future"
    name, lock = a_lock(client, chance, tally)
    if not lock.acquire(timeout=chance.choice([0, 0.01, WAIT_S])):
        return "refused"
    time.sleep(chance.random() * HOLD_S)
    lock.release()
    return name


# ---- Tasks ---------------------------------------------------------------------------------------


async def tasks(tally: Tally) -> None:
    """The Python API for asyncio, from several tasks of one client."""
    import dlock.aio

    order = tally.order
    client = await dlock.aio.connect(order.address, timeout=CONNECT_S, name=order.name)

    async def work(number: int) -> None:
        chance = random.Random(f"{order.seed} {order.name} {number}")
        while not tally.ended.is_set():
            await asyncio.sleep(pause_s(order, chance))
            try:
                tally.count(await task_turn(client, chance, tally))
            except DlockError as problem:
                tally.refused(problem)

    async def tell() -> None:
        while not tally.ended.is_set():
            await asyncio.sleep(TELL_S)
            tally.tell()

    for _ in range(WARM_NAMES):
        async with client.lock(tally.fresh()):
            pass
    say("working")
    await asyncio.gather(tell(), *(work(number) for number in range(ACTORS)))
    await client.close()


async def task_turn(client: Any, chance: random.Random, tally: Tally) -> str:
    """One operation and what it is called."""
    if chance.random() < 0.1:
        await client.atomic(f"n/{chance.randrange(COMMON)}").add(1)
        return "number"
    name, lock = a_lock(client, chance, tally)
    waiting = lock.acquire(timeout=chance.choice([0, 0.01, WAIT_S]))
    # Some versions of Python run it in another task, which a reentrant lock would then belong to.
    if chance.random() < 0.1 and name != "reentrant":
        try:
            taken = await asyncio.wait_for(waiting, chance.random() * HOLD_S)
        except asyncio.TimeoutError:
            return "cancelled"
    else:
        taken = await waiting
    if not taken:
        return "refused"
    await asyncio.sleep(chance.random() * HOLD_S)
    await lock.release()
    return name


# ---- Sessions that come and go -------------------------------------------------------------------


def churn(tally: Tally) -> None:
    """Clients that come, take something and leave; of either API. Each turn is a session."""
    order = tally.order
    chance = random.Random(f"{order.seed} {order.name}")
    telling = threading.Thread(target=tally.tell_until_ended)
    telling.start()
    with dlock.connect(order.address, timeout=CONNECT_S, wait="block") as client:
        for _ in range(WARM_NAMES):
            client.lock(tally.fresh())
    say("working")
    try:
        while not tally.ended.wait(pause_s(order, chance, 1)):
            try:
                if chance.random() < 0.5:
                    session(tally, chance)
                else:
                    asyncio.run(aio_session(tally, chance))
                tally.count("session")
            except DlockError as problem:
                tally.refused(problem)
            # A closed client of asyncio keeps two descriptors until it is collected as garbage.
            gc.collect()
    finally:
        tally.ended.set()
        telling.join()


def session(tally: Tally, chance: random.Random) -> None:
    """A client that may leave something held: its end gives it back."""
    with dlock.connect(tally.order.address, timeout=CONNECT_S, wait="block") as client:
        for _ in range(chance.randrange(1, 4)):
            _, lock = a_lock(client, chance, tally)
            if lock.acquire(timeout=0.1) and chance.random() < 0.7:
                lock.release()
        client.atomic(f"n/{chance.randrange(COMMON)}").add(1)


async def aio_session(tally: Tally, chance: random.Random) -> None:
    """The same, in an event loop of its own."""
    import dlock.aio

    async with dlock.aio.connect(tally.order.address, timeout=CONNECT_S) as client:
        for _ in range(chance.randrange(1, 4)):
            _, lock = a_lock(client, chance, tally)
            if await lock.acquire(timeout=0.1) and chance.random() < 0.7:
                await lock.release()


def victim(tally: Tally) -> None:
    """Takes a few locks and waits to be killed: the primary is to miss it, and end its session."""
    client = dlock.connect(tally.order.address, timeout=CONNECT_S, wait="block")
    held = [client.lock(f"a/{tally.fresh()}") for _ in range(3)]
    for lock in held:
        lock.acquire()
    say("holding")
    tally.ended.wait()


# ---- The process ---------------------------------------------------------------------------------


def mirror(tally: Tally) -> None:
    """The mirror of DLock's calls; not imported by those who do not use it."""
    from dlock.drill.soak_mirror import MirrorLoad

    MirrorLoad(tally).run()


KINDS: Final[dict[str, Callable[[Tally], Any]]] = {
    "threads": threads,
    "tasks": lambda tally: asyncio.run(tasks(tally)),
    "mirror": mirror,
    "churn": churn,
    "victim": victim,
}


def main(argument: str) -> int:
    """Runs until standard input ends."""
    order = Order(**json.loads(argument))
    Path(order.file).parent.mkdir(parents=True, exist_ok=True)
    tally = Tally(order)

    def read() -> None:
        sys.stdin.read()
        tally.ended.set()

    threading.Thread(target=read, daemon=True).start()
    KINDS[order.kind](tally)
    tally.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
