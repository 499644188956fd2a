"""A program that uses locks of every kind and numbers, and records what it sees; what
tests/test_linear_real.py starts, stops, cuts off and kills.

Arguments: the address, a seed, the file of its history, its name, "sync" or "aio". It works until
its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
import time
from typing import Any

import dlock
import dlock.aio
from dlock import linear
from dlock.errors import DlockError, ObjectLost

SLOTS = 2
ACTORS = 3
SHORT_S = 0.004
LOOK_S = 0.003
TURN_S = 0.002  # between two turns, so that a name is not always taken


def lock_of(client: Any, chance: random.Random) -> Any:
    """A lock object, as `client.lock(...)` and its sisters give it."""
    options = {"lease": chance.choice([None, None, 0.3, 1.5]), "renew": chance.random() < 0.5}
    rw = client.rwlock("rw")
    return chance.choice([
        lambda: client.lock("a", **options),
        lambda: client.lock("r", reentrant=True),
        rw.read, rw.read, rw.write,
        lambda: client.fair_lock("f", **options),
        lambda: client.fair_lock("f", shared=True, **options),
        lambda: client.semaphore("s", SLOTS, **options),
    ])()


def asked(chance: random.Random) -> dict[str, Any]:
    return chance.choice([{"blocking": False}, {"timeout": 0.02}, {"timeout": 0.5}, {"timeout": 3}])


def how_long(chance: random.Random) -> float:
    return chance.random() * SHORT_S * chance.choice([0, 1, 1, 1, 1, 1, 1, 1, 10, 200])


class Numbers:
    """Values that nobody else writes, so that an unknown exchange is recognised."""

    def __init__(self, chance: random.Random) -> None:
        self._next = chance.randrange(2**20, 2**40)

    def another(self) -> int:
        self._next += 1
        return self._next


# ---- Threads -------------------------------------------------------------------------------------


def believe(lock: Any, chance: random.Random) -> None:
    until = time.monotonic() + how_long(chance)
    while lock.held and time.monotonic() < until:
        time.sleep(LOOK_S)


def turn(client: dlock.Client, recorder: linear.Recorder, chance: random.Random) -> None:
    lock = recorder.watch(lock_of(client, chance))
    if chance.random() < 0.1:
        lock.see_line()
    if not lock.acquire(**asked(chance)):
        return
    try:
        believe(lock, chance)
        if lock.name == "r" and chance.random() < 0.5:
            with lock:
                believe(lock, chance)
    finally:
        lock.release()


def count(numbers: list[Any], values: Numbers, chance: random.Random) -> None:
    counter, cell = numbers
    with contextlib.suppress(ObjectLost):
        if chance.random() < 0.5:
            counter.next()
        else:
            cell.compare_exchange(cell.get(), values.another())


def work(
    client: dlock.Client, recorder: linear.Recorder, seed: str, ended: threading.Event
) -> None:
    chance = random.Random(seed)
    values = Numbers(chance)
    numbers = [recorder.watch(client.atomic(name)) for name in ("n", "m")]
    while not ended.wait(chance.random() * TURN_S):
        with contextlib.suppress(DlockError):
            turn(client, recorder, chance)
        with contextlib.suppress(DlockError):
            count(numbers, values, chance)


def die(problem: threading.ExceptHookArgs) -> None:
    """A thread must not end by itself: what nobody expected ends the program, and the test."""
    sys.__excepthook__(problem.exc_type, problem.exc_value or problem.exc_type(),
                       problem.exc_traceback)
    os._exit(3)


def work_in_threads(address: str, recorder: linear.Recorder, seed: str) -> None:
    client = dlock.connect(address, timeout=60, wait="block")
    threading.excepthook = die
    ended = threading.Event()
    threads = [threading.Thread(target=work, args=(client, recorder, f"{seed} {number}", ended))
               for number in range(ACTORS)]
    for thread in threads:
        thread.start()
    print("working", flush=True)
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    client.close()


# ---- Tasks ---------------------------------------------------------------------------------------


async def aio_believe(lock: Any, chance: random.Random) -> None:
    until = time.monotonic() + how_long(chance)
    while lock.held and time.monotonic() < until:
        await asyncio.sleep(LOOK_S)


async def aio_turn(
    client: dlock.aio.Client, recorder: linear.Recorder, chance: random.Random
) -> None:
    lock = recorder.watch(lock_of(client, chance))
    if chance.random() < 0.1:
        await lock.see_line()
    if lock.name != "r" and chance.random() < 0.2:
        acquiring = asyncio.ensure_future(lock.acquire(**asked(chance)))
        await asyncio.sleep(chance.random() * 0.05)
        acquiring.cancel()  # in the midst, or too late
        try:
            got = await acquiring
        except asyncio.CancelledError:
            return
    else:  # what is re-entrant belongs to the task that acquires it
        got = await lock.acquire(**asked(chance))
    if got:
        try:
            await aio_believe(lock, chance)
        finally:
            await lock.release()


async def aio_count(numbers: list[Any], values: Numbers, chance: random.Random) -> None:
    counter, cell = numbers
    with contextlib.suppress(ObjectLost):
        if chance.random() < 0.5:
            await counter.next()
        else:
            await cell.compare_exchange(await cell.get(), values.another())


async def aio_work(
    client: dlock.aio.Client, recorder: linear.Recorder, seed: str, ended: asyncio.Event
) -> None:
    chance = random.Random(seed)
    values = Numbers(chance)
    numbers = [recorder.watch(client.atomic(name)) for name in ("n", "m")]
    while not ended.is_set():
        await asyncio.sleep(chance.random() * TURN_S)
        with contextlib.suppress(DlockError):
            await aio_turn(client, recorder, chance)
        with contextlib.suppress(DlockError):
            await aio_count(numbers, values, chance)


async def work_in_tasks(address: str, recorder: linear.Recorder, seed: str) -> None:
    async with dlock.aio.connect(address, timeout=60) as client:
        ended = asyncio.Event()
        tasks = [asyncio.ensure_future(aio_work(client, recorder, f"{seed} {number}", ended))
                 for number in range(ACTORS)]
        print("working", flush=True)
        told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await asyncio.wait([told, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            os._exit(3)
        ended.set()
        await asyncio.gather(*tasks)


def main(address: str, seed: str, path: str, process: str, flavour: str) -> None:
    recorder = linear.Recorder(path, process)
    if flavour == "aio":
        asyncio.run(work_in_tasks(address, recorder, seed))
    else:
        work_in_threads(address, recorder, seed)
    recorder.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
