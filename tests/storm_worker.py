"""One client process of a storm of failovers: `storm_worker.py KIND ADDRESS SEED SLOTS TOLD`.

KIND is threads (dlock), tasks (dlock.aio) or mirror (dlock.dclient, HOST:PORT only). It takes locks
of every kind that it knows until its standard input ends. Into the file TOLD it writes a line a
belief, `name exclusive token start end` in ns of CLOCK_BOOTTIME, before it gives the lock back. A
belief that was suspended and then confirmed is one: nobody had the lock in between. A hold that is
not held any more, and of which nobody says within SILENT_S that it is lost, ends the process with
an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dlock
import dlock.aio
from dlock import dclient
from dlock.errors import DlockError
from dlock.types import ClientCfg, DlockStatus, DlockType, LockDesc, LockOp, LockRequest, State

SILENT_S = 60.0  # on any machine
CONNECT_S = 60.0
LOOK_S = 0.001
ACTORS = 3  # threads or tasks of a process
RATE = 0.999  # what is left of a duration when clocks run at different rates

ASK_AGAIN_S = 0.02

S = DlockStatus
DOUBTFUL = (S.BAD_RESPONSE, S.CLIENT_REMOVED_BY_SERVER)  # link or session, to the mirror


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Told:
    """The file of beliefs."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, name: str, exclusive: bool, token: int, start: int, end: int) -> None:
        os.write(self._fd, f"{name} {int(exclusive)} {token} {start} {end}\n".encode())


def how_long_ns(chance: random.Random) -> int:
    """Mostly a moment, now and then longer than any session."""
    return int(chance.random() * 30e6 * chance.choice([1, 1, 1, 1, 1, 1, 20, 100]))


class Belief:
    """Follows one hold; `more` until it is enough, or over."""

    def __init__(
        self, told: Told, name: str, lock: Any, chance: random.Random, waits: bool
    ) -> None:
        """`waits`: a suspended hold is waited for, until it is said what became of it."""
        self._told, self._name, self._lock, self._waits = told, name, lock, waits
        self._token, self._start, self._end = lock.token, now(), 0
        self._enough = self._start + how_long_ns(chance)
        self._lost = lock.lost if waits else None
        self._silent_from = 0

    def more(self) -> bool:
        """Looks once more; False: enough seen."""
        moment = now()
        lost = self._lost is not None and self._lost.is_set()  # before held is looked at
        if self._lock.held:
            if lost:
                raise AssertionError(f"{self._name} is held after it was said to be lost")
            self._end, self._silent_from = moment, 0
            return moment < self._enough
        if not self._waits or lost:
            return False
        self._silent_from = self._silent_from or moment
        if moment > self._silent_from + SILENT_S * 1e9:
            raise AssertionError(f"{self._name} was lost in silence: {self._lock!r}")
        return True

    def write(self) -> None:
        if self._end:
            self._told.write(self._name, self._lock.exclusive, self._token, self._start, self._end)


def some_lock(client: Any, chance: random.Random, slots: int) -> tuple[str, Any, bool]:
    """Name and lock object, and whether its hold is told when it is lost: it is if the session or a
    renewed lease speaks for it."""
    lease = chance.choice([None, None, 0.2, 1.0, 1.0, 3.0])
    renew = chance.random() < 0.6
    options = {"lease": lease, "renew": renew}
    told = lease is None or renew
    choices: list[tuple[str, Callable[[], Any], bool]] = [
        ("a", lambda: client.lock("a", **options), told),
        ("a", lambda: client.lock("a"), True),
        ("f", lambda: client.fair_lock("f", **options), told),
        ("f", lambda: client.fair_lock("f", shared=True, **options), told),
        ("rw", lambda: client.rwlock("rw").read(), True),
        ("rw", lambda: client.rwlock("rw").write(), True),
        ("s", lambda: client.semaphore("s", slots, **options), told),
    ]
    name, make, told = chance.choice(choices)
    return name, make(), told


# ---- Threads -------------------------------------------------------------------------------------


def run_threads(address: str, seed: str, slots: int, told: Told) -> None:
    ended, failed = threading.Event(), []
    client = dlock.connect(address, timeout=CONNECT_S, wait="block")

    def turn(chance: random.Random) -> None:
        name, lock, is_told = some_lock(client, chance, slots)
        if chance.random() < 0.2:
            future = lock.acquire_future(timeout=chance.random())
            time.sleep(chance.random() * 0.02)
            taken = not future.cancel() and future.result(SILENT_S)
        else:
            taken = lock.acquire(timeout=chance.choice([0, 0.01, 0.3, 2, 8]))
        if taken:
            belief = Belief(told, name, lock, chance, is_told)
            try:
                while belief.more():
                    time.sleep(LOOK_S)
                belief.write()
            finally:
                lock.release()

    def work(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        try:
            while not ended.is_set():
                with contextlib.suppress(DlockError):
                    turn(chance)
        except BaseException as problem:
            failed.append(problem)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(ACTORS)]
    for thread in threads:
        thread.start()
    print("working", flush=True)
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    client.close()
    if failed:
        raise SystemExit(1)


# ---- Tasks ---------------------------------------------------------------------------------------


async def run_tasks(address: str, seed: str, slots: int, told: Told) -> None:
    client = await dlock.aio.connect(address, timeout=CONNECT_S)
    ended = asyncio.Event()

    async def turn(chance: random.Random) -> None:
        name, lock, is_told = some_lock(client, chance, slots)
        timeout = chance.choice([0, 0.01, 0.3, 2, 8])
        if chance.random() < 0.2:
            try:
                taken = await asyncio.wait_for(lock.acquire(timeout=timeout), chance.random() * 0.1)
            except asyncio.TimeoutError:
                return
        else:
            taken = await lock.acquire(timeout=timeout)
        if taken:
            belief = Belief(told, name, lock, chance, is_told)
            try:
                while belief.more():
                    await asyncio.sleep(LOOK_S)
                belief.write()
            finally:
                await lock.release()

    async def work(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        while not ended.is_set():
            with contextlib.suppress(DlockError):
                await turn(chance)

    tasks = [asyncio.create_task(work(number)) for number in range(ACTORS)]
    print("working", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    ended.set()
    await asyncio.gather(*tasks)
    await client.close()


# ---- The mirror ----------------------------------------------------------------------------------


class LinkError(Exception):
    """A call said that link or server are in doubt."""


class MirrorWorker:
    """A program of DLock: leases, statuses, and its own re-initialisation."""

    KINDS = (("a", DlockType.ATOMIC), ("f", DlockType.FAIR))

    def __init__(self, address: str, seed: str, told: Told) -> None:
        host, port = address.rsplit(":", 1)
        self._host, self._told, self._chance = host, told, random.Random(seed)
        self._client = 0
        self._locks: dict[str, int] = {}
        self.ended = threading.Event()
        # The order of a program of C: what does not answer within a second is in doubt.
        cfg = ClientCfg(primary_port=int(port), wait_mode="block", lock_wait=2, reply_timeout=1)
        assert dclient.dclient_lib_init(cfg) is S.SUCCESS

    def begin(self) -> None:
        """A new client, which has got its locks."""
        deadline = time.monotonic() + CONNECT_S
        while True:
            status, client = dclient.client_init(self._host)
            if status is S.SUCCESS and client is not None:
                self._client = client
                got = [self._got(name, kind) for name, kind in self.KINDS]
                if all(got):
                    return
                dclient.client_deinit(client)
            assert time.monotonic() < deadline, f"no client in time: {status!r}"
            time.sleep(ASK_AGAIN_S)

    def _got(self, name: str, kind: DlockType) -> bool:
        status, lock_id = dclient.get_lock(self._client, LockDesc(name.encode(), kind))
        self._locks[name] = lock_id or 0
        return status is S.SUCCESS

    def run(self) -> None:
        self.begin()
        print("working", flush=True)
        while not self.ended.is_set():
            try:
                self._turn()
            except LinkError:
                self._come_back()
        dclient.client_deinit(self._client)

    def _come_back(self) -> None:
        """client_reinit, update_all_locks until it is no EAGAIN, client_reinit_done."""
        deadline = time.monotonic() + CONNECT_S
        while time.monotonic() < deadline:
            status = dclient.client_reinit(self._client, self._host)
            if status is S.SUCCESS:
                status = dclient.update_all_locks(self._client)
                while status is S.EAGAIN:
                    status = dclient.update_all_locks(self._client)
            if status is S.SUCCESS:
                status = dclient.client_reinit_done(self._client)
            if status is S.SUCCESS:
                return
            if status is S.CLIENT_REMOVED_BY_SERVER:
                dclient.client_deinit(self._client)
                self.begin()
                return
            time.sleep(ASK_AGAIN_S)
        raise AssertionError(f"the client does not come back: {status!r}")

    def _turn(self) -> None:
        name, lock_id = self._chance.choice(sorted(self._locks.items()))
        lease_s = self._chance.choice([1, 1, 2])
        call = self._chance.choice([dclient.trylock, dclient.lock])
        asked = now()
        status, state = call(
            self._client, LockRequest(lock_id, LockOp.LOCK_EXCLUSIVE, lease_s))
        if status is S.SUCCESS:
            assert state is not None
            self._believe(name, lock_id, state, now(), asked + int(lease_s * 1e9 * RATE))
        elif status is S.LOCK_NOT_GET:  # of a lock that the new primary does not know
            dclient.release_lock(self._client, lock_id)
            if not self._got(name, dict(self.KINDS)[name]):
                raise LinkError
        elif status in DOUBTFUL:
            raise LinkError
        else:  # taken, or a primary that recovers
            time.sleep(self._chance.random() * 0.02)

    def _believe(self, name: str, lock_id: int, state: State, start: int, until: int) -> None:
        """Works under the lease, and extends it now and then; whatever is in doubt is asked with
        lock_extend after the return, which says whether somebody had it in between."""
        token, end = state.token, 0
        enough = start + how_long_ns(self._chance)
        extends = self._chance.random() < 0.5
        try:
            while True:
                moment = now()
                if moment < until:
                    end = moment
                if moment >= min(enough, until):
                    break
                if extends and self._chance.random() < 0.1:
                    until = self._extend(lock_id, token, until)
                time.sleep(LOOK_S)
            status, _ = dclient.unlock(self._client, lock_id)
            while status is S.NOT_READY:
                time.sleep(ASK_AGAIN_S)
                status, _ = dclient.unlock(self._client, lock_id)
            if status in DOUBTFUL:
                raise LinkError
        finally:
            if end:
                self._told.write(name, True, token, start, end)

    def _extend(self, lock_id: int, token: int, until: int) -> int:
        """Until when it is good. After a failure the client comes back first, and asks again; also
        when it can not be good any more: the answer says whether it was lost."""
        deadline = time.monotonic() + CONNECT_S
        while time.monotonic() < deadline:
            asked = now()
            status, state = dclient.lock_extend(
                self._client, LockRequest(lock_id, LockOp.EXTEND_LOCK_EXCLUSIVE, 1))
            if status is S.SUCCESS:
                assert state is not None
                assert state.token == token, "an extension of another hold"
                return max(until, asked + int(1e9 * RATE))
            if status is S.NOT_READY:
                time.sleep(ASK_AGAIN_S)
            elif status in DOUBTFUL:
                self._come_back()
            else:
                return 0  # lost, and said to be
        raise AssertionError("nobody says what became of a hold")


@contextlib.contextmanager
def until_input_ends(event: threading.Event) -> Iterator[None]:
    """Sets the event then."""

    def wait() -> None:
        sys.stdin.read()
        event.set()

    threading.Thread(target=wait, daemon=True).start()
    yield


def main() -> None:
    kind, address, seed, slots, path = sys.argv[1:]
    told = Told(path)
    if kind == "threads":
        run_threads(address, seed, int(slots), told)
    elif kind == "tasks":
        asyncio.run(run_tasks(address, seed, int(slots), told))
    else:
        worker = MirrorWorker(address, seed, told)
        with until_input_ends(worker.ended):
            worker.run()


if __name__ == "__main__":
    main()
