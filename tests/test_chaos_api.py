"""The public API in a storm: threads of several processes take locks of every kind, while they are
stopped, killed and cut off, while an operator breaks locks and the primary is started anew. No two
believe in what excludes each other, tokens only grow, and nothing hangs.

A belief is an interval of CLOCK_BOOTTIME, which all processes of a machine share: from when the
lock was granted to the last moment in which `held` was True. DLOCK_CHAOS_SEED gives the same orders
once more, though not the way in which the machine carries them out.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from beliefs import Belief, faults, read
from mirror_tools import free_port, line_of, run_python
from proxy import Proxy

import dlock
from dlock.errors import DlockError
from dlock.server import Server

STORM_S = 10.0
RESTART_S = 4.0  # in the midst of it the primary is killed
TTL_MS = 1000
WORKERS = 3
SLOTS = 2
END_S = 60.0  # by when all must be had again, on any machine
NAMES = ("a", "rw", "f", "s")
FEW = 5  # beliefs in one of them

SERVES = """
import sys
from pathlib import Path
from dlock.server import Server, ServerConfig

server = Server(ServerConfig(host="127.0.0.1", port=int(sys.argv[1]), data_port=int(sys.argv[2]),
                             state_dir=Path(sys.argv[3]), session_ttl_ms=int(sys.argv[4]),
                             wait_mode="block"))
print("serving", flush=True)
sys.stdin.read()
"""

# Writes a line a belief, before it gives the lock back: name, exclusive, token, from, until.
WORKS = """
import contextlib, os, random, sys, threading, time
import dlock
from dlock.errors import DlockError

address, seed, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
told = os.open(sys.argv[4], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
client = dlock.connect(address, timeout=60, wait="block")
ended = threading.Event()
rw = client.rwlock("rw")
shared = [("a", client.lock("a")), ("rw", rw.read()), ("rw", rw.write()),
          ("f", client.fair_lock("f")), ("f", client.fair_lock("f", shared=True)),
          ("s", client.semaphore("s", slots))]

def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

def own_lock(chance):
    options = {"lease": chance.choice([None, .2, 1.0]), "renew": chance.random() < .5}
    return chance.choice([
        lambda: ("a", client.lock("a", **options)),
        lambda: ("f", client.fair_lock("f", **options)),
        lambda: ("f", client.fair_lock("f", shared=True, **options)),
        lambda: ("rw", client.rwlock("rw").read()),
        lambda: ("rw", client.rwlock("rw").write()),
        lambda: ("s", client.semaphore("s", slots, **options)),
    ])()

def take(lock, chance, asynchronously):
    if asynchronously:
        future = lock.acquire_future(timeout=chance.random())
        time.sleep(chance.random() * .02)
        return not future.cancel() and future.result(60)
    return lock.acquire(timeout=chance.choice([0, .01, .3, 2]))

def believe(name, lock, chance):
    token, start, end = lock.token, now(), 0
    enough = start + int(chance.random() * 30e6 * chance.choice([1, 1, 1, 1, 1, 1, 20, 80]))
    while True:
        moment = now()
        if not lock.held:
            break
        end = moment
        if moment > enough:
            break
        time.sleep(.001)
    if end:
        os.write(told, f"{name} {int(lock.exclusive)} {token} {start} {end}\\n".encode())

def turn(chance):
    own = chance.random() < .6
    name, lock = own_lock(chance) if own else chance.choice(shared)
    if take(lock, chance, own and chance.random() < .3):
        try:
            believe(name, lock, chance)
        finally:
            lock.release()

def work(number):
    chance = random.Random(f"{seed} {number}")
    while not ended.is_set():
        with contextlib.suppress(DlockError):
            turn(chance)

threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
print("working", flush=True)
sys.stdin.read()
ended.set()
for thread in threads:
    thread.join()
client.close()
"""


class Storm:
    """A primary, a network to it, the processes that work through it, and what befalls them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._ports = free_port(), free_port()
        self._started = 0
        self.primary = self._serve()
        self.proxy = Proxy(cast(Server, SimpleNamespace(
            port=self._ports[0], data_port=self._ports[1])))
        self.workers = [self._begin() for _ in range(WORKERS)]
        self.stopped: set[int] = set()

    def _serve(self) -> subprocess.Popen[str]:
        primary = run_python(SERVES, *self._ports, self._folder / "state", TTL_MS)
        assert line_of(primary) == "serving"
        return primary

    def _begin(self) -> subprocess.Popen[str]:
        self._started += 1
        return run_python(WORKS, self.proxy.address, self._chance.randrange(2**32), SLOTS,
                          self._folder / f"beliefs {self._started}")

    def rage(self) -> None:
        """For STORM_S, and on a slow machine until everything was had a few times."""
        begun, restarted = time.monotonic(), False
        befalls = [self.cut, self.cut, self.silence, self.stop, self.stop, self.go_on, self.kill,
                   self.break_lock, self.break_lock]
        with dlock.admin.Admin(f"127.0.0.1:{self._ports[0]}") as self.admin:
            while (passed := time.monotonic() - begun) < STORM_S or (
                    passed < END_S and not self.has_seen_enough()):
                time.sleep(self._chance.random() * 0.3)
                if passed > RESTART_S and not restarted:
                    restarted = True
                    self.primary.kill()
                    self.primary.wait()
                    self.primary = self._serve()
                self._chance.choice(befalls)()

    def has_seen_enough(self) -> bool:
        return all(len(some) > FEW for some in self.beliefs().values())

    def cut(self) -> None:
        self.proxy.cut(*self._chance.choice([(), self.proxy.ports[:1], self.proxy.ports[1:]]))

    def silence(self) -> None:
        self.proxy.silence()
        time.sleep(self._chance.choice([0.1, 0.5, 1.5]))
        self.proxy.mend()

    def stop(self) -> None:
        which = self._chance.randrange(WORKERS)
        self.workers[which].send_signal(signal.SIGSTOP)
        self.stopped.add(which)

    def go_on(self) -> None:
        while self.stopped:
            self.workers[self.stopped.pop()].send_signal(signal.SIGCONT)

    def kill(self) -> None:
        which = self._chance.randrange(WORKERS)
        self.stopped.discard(which)
        self._end(self.workers[which])
        self.workers[which] = self._begin()

    def break_lock(self) -> None:
        with contextlib.suppress(DlockError):  # the primary settles
            self.admin.break_lock(self._chance.choice(NAMES))

    def calm(self) -> None:
        """All come to their end by themselves."""
        self.go_on()
        for worker in self.workers:
            worker.communicate("", timeout=END_S)
            assert worker.returncode == 0

    def beliefs(self) -> dict[str, list[Belief]]:
        return read(self._folder.glob("beliefs *"), NAMES)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def close(self) -> None:
        for process in (*self.workers, self.primary):
            self._end(process)
        self.proxy.close()


def test_the_check_sees_what_it_looks_for() -> None:
    a, b = Belief(1, 5, 7, True), Belief(4, 9, 8, True)
    assert faults([a, b], 0)
    assert not faults([a, b._replace(start=6)], 0)
    assert faults([a, b._replace(start=6, token=7)], 0)
    reads = [one._replace(exclusive=False) for one in (a, b)]
    assert not faults(reads, 0)
    assert faults([*reads, Belief(6, 6, 9, True)], 0)
    assert faults([*reads, Belief(5, 6, 9, False)], 2)
    assert not faults(reads, 2)


def test_a_storm(tmp_path: Path) -> None:
    seed = int(os.environ.get("DLOCK_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"DLOCK_CHAOS_SEED={seed}", file=sys.stderr)  # shown when it fails
    storm = Storm(tmp_path, seed)
    try:
        storm.rage()
        storm.calm()
        with dlock.connect(storm.proxy.address, timeout=END_S) as client:
            for lock in (client.lock("a"), client.rwlock("rw").write(), client.fair_lock("f"),
                         *(client.semaphore("s", SLOTS) for _ in range(SLOTS))):
                assert lock.acquire(timeout=END_S), f"{lock} cannot be had any more"
        beliefs = storm.beliefs()
        for name, some in beliefs.items():
            assert len(some) > FEW, f"hardly anybody got {name}"
            found = faults(some, SLOTS if name == "s" else 0)
            assert not found, f"{name}: {found[:3]}"
    finally:
        storm.close()
