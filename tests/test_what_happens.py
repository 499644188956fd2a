"""What happens when things go wrong, as docs/what-happens.md says it: one test a line there.

Every test uses the Python API over a real server, and asks the question that matters: could two
have believed in one lock at a time? Both ends of each belief are taken from CLOCK_BOOTTIME, which
all processes of a machine share, so nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from far_process import FarProcess, Raised, clock_shim
from lock_tools import until

import dlock
from dlock._core import now_ns
from dlock.errors import LockLost

TTL_S = 3.0
Far = Callable[..., FarProcess]


class Primary:
    """`dlock serve` in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.address_file = folder / "address"
        self.address = str(self.address_file)
        self._environment = {**os.environ, **(environment or {})}
        self._folder = folder
        self.start()

    def start(self) -> None:
        program = shutil.which("dlock", path=sysconfig.get_path("scripts")) or "dlock"
        self.process = subprocess.Popen(
            [program, "serve", "--listen", "127.0.0.1:0", "--session-ttl", str(TTL_S),
             "--state-dir", str(self._folder / "state"), "--address-file", self.address],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=self._environment)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    started = Primary(tmp_path)
    yield started
    started.kill()


@pytest.fixture
def far(primary: Primary) -> Iterator[Far]:
    """Starts a program that holds and asks for locks."""
    started: list[FarProcess] = []

    def start(environment: dict[str, str] | None = None) -> FarProcess:
        started.append(FarProcess(primary.address, environment))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def client(primary: Primary) -> Iterator[dlock.Client]:
    with dlock.connect(primary.address, timeout=20) as connected:
        yield connected


# When the hold of `lock` in the other program may be believed in at the latest.
BELIEVED_UNTIL = "now_ns() + int(lock.remaining * 1e9)"


def held(process: FarProcess, how: str = "lock.acquire()") -> int:
    """Has the other program take the lock; until when it believes in that, if it hears no more."""
    process.let("lock", "client.lock('it')")
    assert process.ask(how) is True
    return int(process.ask(BELIEVED_UNTIL))


# ---- The one who holds ---------------------------------------------------------------------------


def test_a_holder_that_dies_frees_its_lock_when_its_session_ends(
    client: dlock.Client, far: Far
) -> None:
    holder = far()
    until_ns = held(holder)
    token = holder.ask("lock.token")
    holder.signal(signal.SIGKILL)
    with client.lock("it") as lock:
        assert now_ns() >= until_ns
        assert lock.token > token


def test_a_lease_outlives_its_holder(client: dlock.Client, far: Far) -> None:
    holder = far()
    until_ns = held(holder, "lock.acquire(lease=8)")
    holder.signal(signal.SIGKILL)
    lock = client.lock("it")
    assert not lock.acquire(timeout=TTL_S + 1)  # its session is over by now, its lease is not
    with lock:
        assert now_ns() >= until_ns


def test_a_holder_that_ends_frees_its_locks_at_once(client: dlock.Client, far: Far) -> None:
    holder = far()
    held(holder, "lock.acquire(lease=3000)")
    holder.ask("client.close()")
    assert client.lock("it").acquire(timeout=20)


def test_a_paused_holder_knows_when_it_goes_on(client: dlock.Client, far: Far) -> None:
    holder = far()
    until_ns = held(holder)
    holder.signal(signal.SIGSTOP)
    with client.lock("it"):
        assert now_ns() >= until_ns
        holder.signal(signal.SIGCONT)
        assert holder.ask("lock.held") is False
        with pytest.raises(Raised) as caught:
            holder.ask("lock.release()")
        assert caught.value.kind == "LockLost"


def test_a_late_writer_is_refused_by_its_token(
    client: dlock.Client, far: Far, tmp_path: Path
) -> None:
    database = sqlite3.connect(tmp_path / "data")
    database.execute("CREATE TABLE fence (name TEXT PRIMARY KEY, token INTEGER)")

    def write(token: int) -> bool:
        """Storage that refuses a token lower than it has seen."""
        with database:
            return database.execute(
                "INSERT INTO fence VALUES ('it', ?) ON CONFLICT (name) DO UPDATE "
                "SET token = excluded.token WHERE excluded.token >= token", (token,)).rowcount == 1

    holder = far()
    held(holder)
    late = holder.ask("lock.token")  # it looked, it was held; now it is paused before it writes
    holder.signal(signal.SIGSTOP)
    with client.lock("it") as lock:
        assert write(lock.token)
        holder.signal(signal.SIGCONT)
        assert not write(late)
        assert write(lock.token)


def test_a_lease_that_is_too_short(client: dlock.Client, far: Far) -> None:
    lock = client.lock("it", renew=False)
    assert lock.acquire(lease=0.2)
    while lock.remaining:
        time.sleep(0.02)
    assert not lock.held
    with pytest.raises(LockLost):
        lock.ensure_held()
    other = far()
    held(other)
    with pytest.raises(LockLost):
        lock.release()


def test_a_lease_renews_itself_while_the_process_lives(client: dlock.Client, far: Far) -> None:
    lock = client.lock("it")
    other = far()
    other.let("lock", "client.lock('it')")
    assert lock.acquire(lease=6)
    for _ in range(2):
        until(lambda: lock.remaining < 5)
        until(lambda: lock.remaining > 5)
        assert other.ask("lock.acquire(blocking=False)") is False
    lock.release()
    assert other.ask("lock.acquire(timeout=20)") is True


# ---- The one who waits ---------------------------------------------------------------------------


def test_a_waiter_that_dies_leaves_the_queue(client: dlock.Client, far: Far) -> None:
    waiter, behind = far(), far()
    with client.lock("it"):
        for number, process in enumerate((waiter, behind), 1):
            process.let("lock", "client.lock('it')")
            process.tell("=lock.acquire()")
            while len(client.admin.show("it").waiters) < number:
                time.sleep(0.01)
        waiter.signal(signal.SIGKILL)
    assert behind.result() is True


# ---- The server, the network, the clock ----------------------------------------------------------


@pytest.mark.parametrize("step_s", [86_400, -86_400])
def test_a_clock_that_steps(tmp_path: Path, step_s: int) -> None:
    library, steps = clock_shim(tmp_path)
    shimmed = {"LD_PRELOAD": str(library), "CLOCK_STEPS": str(steps)}
    primary = Primary(tmp_path, shimmed)
    try:
        holder = FarProcess(primary.address, shimmed)
        other = FarProcess(primary.address, shimmed)
        try:
            until_ns = held(holder, "lock.acquire(lease=5, timeout=20)")
            assert abs(holder.ask("__import__('time').time()") - time.time()) < 3600
            steps.write_text(str(step_s))
            assert abs(holder.ask("__import__('time').time()") - time.time()) > 3600
            assert holder.ask("lock.held") is True
            other.let("lock", "client.lock('it')")
            assert other.ask("lock.acquire(timeout=0.2)") is False
            holder.signal(signal.SIGKILL)
            assert other.ask("lock.acquire(timeout=60)") is True
            assert now_ns() >= until_ns
        finally:
            holder.close()
            other.close()
    finally:
        primary.kill()
