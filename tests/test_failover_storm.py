"""Failovers in a storm: clients of every kind, while primaries are killed, also in the middle of a
recovery, stopped and replaced, while links are cut and clients are stopped or never come back.

No two believe in what excludes each other, tokens only grow, a hold that is lost is said to be,
a primary that was replaced stops by itself, and nothing hangs. DLOCK_CHAOS_SEED gives the same
orders once more, though not the way in which the machine carries them out; DLOCK_CHAOS_SECONDS
makes the storm longer.

All primaries have the same two ports, each on an address of its own (127.0.0.11, .12, ...), and
share the state directory. Clients go through two proxies: one leads to the newest primary, the
other to the one before it, so that they meet primaries of the past.
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
from typing import IO, cast

from beliefs import Belief, faults, read
from mirror_tools import free_port, line_of
from proxy import Proxy

import dlock
from dlock.server import Server

STORM_S = float(os.environ.get("DLOCK_CHAOS_SECONDS") or 12)
TTL_S = 1
KINDS = ("threads", "threads", "tasks", "mirror")
SLOTS = 2
NAMES = ("a", "rw", "f", "s")
END_S = 60.0  # by when all must be had again, on any machine
PROXIES = ("127.0.0.2", "127.0.0.3")
WORKER = Path(__file__).with_name("storm_worker.py")
SERVE = [sys.executable, "-c", "import sys; from dlock.cli import main; sys.exit(main())", "serve"]


class Primaries:
    """The primary, those before it, and the way to them."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder, self._chance = folder, chance
        self._ports = free_port(), free_port()
        self._hosts = (f"127.0.0.{number}" for number in range(11, 250))
        self._log = (folder / "log").open("w")
        self.deaths = self.replacements = 0
        self.former: subprocess.Popen[str] | None = None
        self._host = next(self._hosts)
        self.process = self._serve()
        ports = cast(Server, SimpleNamespace(port=self._ports[0], data_port=self._ports[1]))
        self.proxies = [Proxy(ports, host, self._host) for host in PROXIES]

    @property
    def newest(self) -> str:
        """The address that leads to the newest primary."""
        return self.proxies[0].address

    @property
    def all(self) -> str:
        return ",".join(one.address for one in self.proxies)

    def _serve(self) -> subprocess.Popen[str]:
        """Another one; while the one before stands still, and holds the lock of the directory, it
        takes over."""
        flags = () if self.former is None else ("--take-over",)
        primary = subprocess.Popen(
            [*SERVE, "--listen", f"{self._host}:{self._ports[0]}", "--data-port",
             str(self._ports[1]), "--state-dir", str(self._folder / "state"), "--session-ttl",
             str(TTL_S), "--wait", "block", *flags],
            stdout=subprocess.PIPE, stderr=cast(IO[str], self._log), text=True)
        greeting = line_of(primary)
        assert "dlock serves on" in greeting, self.log()
        return primary

    def log(self) -> str:
        return (self._folder / "log").read_text()[-4000:]

    def _new_host(self) -> None:
        """The next primary is another machine; the second proxy leads to the one before."""
        self.proxies[1].target, self._host = self._host, next(self._hosts)
        self.proxies[0].target = self._host

    def kill(self) -> None:
        """kill -9, and another one, which may die in the middle of its recovery."""
        for _ in range(self._chance.choice([1, 1, 1, 2, 3])):
            _end(self.process)
            self.deaths += 1
            time.sleep(self._chance.choice([0, 0, 0.1, 0.6]))
            if self._chance.random() < 0.3:
                self._new_host()
            self.process = self._serve()
            time.sleep(self._chance.random() * self._chance.choice([0.02, 0.2, 0.2, 1.5]))

    def stall(self) -> None:
        """It stands still for a while, and goes on."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(self._chance.choice([0.1, 0.3, 1.2, 2.5]))
        self.process.send_signal(signal.SIGCONT)

    def replace(self) -> None:
        """It stands still; another one takes over; it goes on."""
        self.let_go()
        self.former = self.process
        self.former.send_signal(signal.SIGSTOP)
        time.sleep(self._chance.choice([0, 0.2, 1.5]))
        self._new_host()
        self.process = self._serve()
        self.replacements += 1
        time.sleep(self._chance.random() * 0.5)
        if self._chance.random() < 0.7:
            self.former.send_signal(signal.SIGCONT)

    def let_go(self) -> None:
        """The one before goes on, if it has not yet, and stops by itself."""
        if self.former is not None:
            self.former.send_signal(signal.SIGCONT)
            assert self.former.wait(END_S) == 1, f"it was replaced and serves on\n{self.log()}"
            _close(self.former)
            self.former = None

    def close(self) -> None:
        for process in (self.process, self.former):
            if process is not None:
                _end(process)
        for proxy in self.proxies:
            proxy.close()
        self._log.close()


class Clients:
    """The processes that work, and what befalls them."""

    def __init__(self, folder: Path, chance: random.Random, primaries: Primaries) -> None:
        self._folder, self._chance, self._primaries = folder, chance, primaries
        self._started = 0
        self._stopped: set[int] = set()
        self._processes = [self._begin(kind) for kind in KINDS]
        for process in self._processes:
            assert line_of(process) == "working"

    def _begin(self, kind: str) -> subprocess.Popen[str]:
        self._started += 1
        primaries = self._primaries
        address = primaries.newest if kind == "mirror" else primaries.all
        return subprocess.Popen(
            [sys.executable, str(WORKER), kind, address, str(self._chance.randrange(2**32)),
             str(SLOTS), str(self._folder / f"beliefs {self._started}")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stop(self) -> None:
        which = self._chance.randrange(len(KINDS))
        self._processes[which].send_signal(signal.SIGSTOP)
        self._stopped.add(which)

    def go_on(self) -> None:
        while self._stopped:
            self._processes[self._stopped.pop()].send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """One that never comes back; another one begins."""
        which = self._chance.randrange(len(KINDS))
        self._stopped.discard(which)
        _end(self._processes[which])
        self._processes[which] = self._begin(KINDS[which])

    def calm(self) -> None:
        """All come to their end by themselves, and found nothing wrong."""
        self.go_on()
        for process in self._processes:
            process.communicate("", timeout=2 * END_S)
            assert process.returncode == 0, self._primaries.log()

    def beliefs(self) -> dict[str, list[Belief]]:
        return read(self._folder.glob("beliefs *"), NAMES)

    def close(self) -> None:
        for process in self._processes:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    _close(process)


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def rage(chance: random.Random, primaries: Primaries, clients: Clients) -> None:
    """For STORM_S, and until everything was had, a primary was killed and one replaced."""

    def cut() -> None:
        one = chance.choice(primaries.proxies)
        one.cut(*chance.choice([(), one.ports[:1], one.ports[1:]]))

    def silence() -> None:
        for one in primaries.proxies:
            one.silence()
        time.sleep(chance.choice([0.1, 0.5, 1.5]))
        for one in primaries.proxies:
            one.mend()

    befalls = [primaries.kill, primaries.kill, primaries.replace, primaries.stall, cut, cut,
               silence, clients.stop, clients.stop, clients.go_on, clients.go_on, clients.kill]
    begun = time.monotonic()
    while (time.monotonic() - begun < STORM_S or not primaries.deaths
           or not primaries.replacements or not all(clients.beliefs().values())):
        time.sleep(chance.random() * 0.6)
        chance.choice(befalls)()


def test_a_storm_of_failovers(tmp_path: Path) -> None:
    seed = int(os.environ.get("DLOCK_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"DLOCK_CHAOS_SEED={seed}", file=sys.stderr)  # shown when it fails
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        primaries = Primaries(tmp_path, chance)
        stack.callback(primaries.close)
        clients = Clients(tmp_path, chance, primaries)
        stack.callback(clients.close)
        rage(chance, primaries, clients)
        primaries.let_go()
        clients.calm()
        beliefs = clients.beliefs()
        for name, some in beliefs.items():
            found = faults(some, SLOTS if name == "s" else 0)
            assert not found, f"{name}: {found[:3]}"
        with dlock.connect(primaries.newest, timeout=END_S) as client:
            for lock in (client.lock("a"), client.rwlock("rw").write(), client.fair_lock("f"),
                         *(client.semaphore("s", SLOTS) for _ in range(SLOTS))):
                assert lock.acquire(timeout=END_S), f"{lock} cannot be had any more"
