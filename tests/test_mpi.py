"""`dlock.mpi`: alone, with ranks that are threads, and in MPI programs that mpirun starts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from lock_tools import Service, serving, until

import dlock
from dlock import mpi

ROOT = Path(__file__).resolve().parent.parent
RANKS = 4
T = TypeVar("T")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


class ThreadRank:
    """A communicator whose ranks are threads."""

    def __init__(self, rank: int, meeting: threading.Barrier, board: list[Any]) -> None:
        self.rank = rank
        self.size = meeting.parties
        self._meeting = meeting
        self._board = board

    def bcast(self, obj: Any, root: int = 0) -> Any:
        if self.rank == root:
            self._board[0] = obj
        self.barrier()
        told = self._board[0]
        self.barrier()
        return told

    def barrier(self) -> None:
        self._meeting.wait(60)


def at_all_ranks(work: Callable[[ThreadRank], T], ranks: int = RANKS) -> list[T]:
    """What each rank makes of it."""
    meeting, board = threading.Barrier(ranks), [None]

    def at(rank: int) -> T:
        try:
            return work(ThreadRank(rank, meeting, board))
        except threading.BrokenBarrierError:
            raise
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(at, range(ranks)))


# ---- Ranks that are threads ----------------------------------------------------------------------


def test_ranks_agree_on_names_that_nobody_else_has(service: Service) -> None:
    def work(comm: ThreadRank) -> tuple[str, str]:
        with service.client() as client:
            return mpi.Mutex(comm=comm, client=client).name, mpi.Mutex(client=client).name

    names = at_all_ranks(work)
    assert len({together for together, _ in names}) == 1
    assert len({name for both in names for name in both}) == 1 + RANKS


def test_ranks_without_a_client_use_the_address_of_rank_0(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLOCK_ADDRESS", service.address)

    def work(comm: ThreadRank) -> str:
        counter = mpi.Counter(comm=comm)
        counter.next()
        return counter._client.address

    assert set(at_all_ranks(work)) == {service.address}
    dlock.shared(service.address).close()


def test_programs_that_give_the_same_name_share_it(service: Service) -> None:
    one, other = service.client(), service.client()
    first = mpi.Counter(5, client=one, name="between programs")
    second = mpi.Counter(7, client=other, name="between programs")
    assert [first.next(), second.next(), next(first)] == [5, 6, 7]
    first.free()
    assert second.next() == 8
    third = mpi.Counter(0, client=service.client(), name="between programs")
    assert third.next() == 9, "a number with a name is not ended by one program"


def test_a_mutex_that_was_lost_is_not_believed_in(service: Service) -> None:
    client = service.client()
    mutex = mpi.Mutex(recursive=True, client=client)
    mutex.acquire()
    assert mutex.locked()
    service.admin.break_lock(mutex.name, now=True)
    until(lambda: not mutex.locked())
    with pytest.raises(dlock.LockLost):
        mutex.acquire()
    with pytest.raises(dlock.LockLost):
        mutex.release()
    assert mutex.count() == 0
    mutex.free()


def test_free_gives_back(service: Service) -> None:
    client = service.client()
    mutex, semaphore = mpi.Mutex(client=client), mpi.Semaphore(3, client=client)
    mutex.acquire()
    semaphore.acquire()
    semaphore.acquire()
    assert service.holders(mutex.name) == 1
    assert service.holders(semaphore.name) == 2
    mutex.free()
    semaphore.free()
    assert service.holders(mutex.name) == service.holders(semaphore.name) == 0
    with pytest.raises(RuntimeError, match="semaphore already freed"):
        semaphore.acquire()


def test_a_semaphore_takes_back_only_what_it_gave(service: Service) -> None:
    client = service.client()
    semaphore = mpi.Semaphore(2, client=client)
    semaphore.acquire()
    with pytest.raises(ValueError, match="too many times"):
        semaphore.release(2)
    semaphore.release()
    with pytest.raises(ValueError, match="bounded"):
        mpi.Semaphore(bounded=False, client=client)


def test_a_counter_holds_integers(service: Service) -> None:
    client = service.client()
    with pytest.raises(ValueError, match="integers"):
        mpi.Counter(typecode="d", client=client)
    wide = mpi.Counter(2**40, typecode="q", client=client)
    assert [wide.next(-1), wide.next(0)] == [2**40, 2**40 - 1]
    wide.free()


def test_ranks_follow_one_another_as_often_as_wanted(service: Service) -> None:
    order: list[tuple[int, int]] = []

    def work(comm: ThreadRank) -> None:
        with service.client() as client:
            sequence = mpi.Sequential(comm, client=client)
            for number in range(5):
                with sequence:
                    order.append((number, comm.rank))
            comm.barrier()
            sequence.free()

    at_all_ranks(work)
    assert [[rank for number, rank in order if number == this] for this in range(5)] == [
        list(range(RANKS))] * 5


def test_a_rank_that_is_gone_is_not_waited_for(service: Service) -> None:
    arrived: list[int] = []

    def work(comm: ThreadRank) -> None:
        client = service.client()
        sequence = mpi.Sequential(comm, client=client)
        if comm.rank == 0:
            client.close()  # it never begins
            return
        with sequence:
            arrived.append(comm.rank)
        sequence.free()

    at_all_ranks(work, 3)
    assert arrived == [1, 2]


def test_a_primary_for_one_program() -> None:
    def work(comm: ThreadRank) -> tuple[int, str]:
        with mpi.serving(comm, host="127.0.0.1") as client:
            return mpi.Counter(comm=comm, client=client).next(), client.address

    drawn = at_all_ranks(work)
    assert sorted(number for number, _ in drawn) == list(range(RANKS))
    (address,) = {address for _, address in drawn}
    with pytest.raises(dlock.ConnectError):  # it ended with the block
        dlock.connect(address, timeout=0.2)


def test_the_primary_waits_for_the_last_rank() -> None:
    left = threading.Event()

    def work(comm: ThreadRank) -> int:
        with mpi.serving(comm, host="127.0.0.1") as client:
            counter = mpi.Counter(comm=comm, client=client)
            if comm.rank == 0:
                left.set()
                return -1
            left.wait()
            time.sleep(0.3)  # rank 0 has left the block by now, or nearly
            return counter.next()

    assert sorted(at_all_ranks(work, 3)) == [-1, 0, 1]


def test_every_rank_hears_that_there_is_no_primary(service: Service) -> None:
    port = service.server.port  # which is taken

    def work(comm: ThreadRank) -> str:
        with pytest.raises(dlock.ConnectError) as error, \
                mpi.serving(comm, host="127.0.0.1", port=port):
            pass
        return str(error.value)

    assert all(str(port) in text for text in at_all_ranks(work))


# ---- MPI programs --------------------------------------------------------------------------------


def mpirun(ranks: int, *words: str | Path, **environment: str) -> list[str]:
    """What an MPI program of so many ranks prints; skips where there is no MPI."""
    command = shutil.which("mpirun")
    if command is None:
        pytest.skip("no mpirun: apt-get install openmpi-bin")
    pytest.importorskip("mpi4py", reason="no mpi4py: pip install mpi4py")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    flags = ["--oversubscribe"] if "Open" in version.stdout else []  # others do so unasked
    if flags and os.geteuid() == 0:
        flags.append("--allow-run-as-root")
    done = subprocess.run(
        [command, *flags, "-n", str(ranks), sys.executable, "-m", "mpi4py", *map(str, words)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250, check=False,
        env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.hpc
def test_the_example_shares_out_tasks(tmp_path: Path) -> None:
    lines = mpirun(4, ROOT / "examples" / "mpi_counter.py", "--listen", "127.0.0.1",
                   "--tasks", "120", "--folder", tmp_path)
    reports = [re.fullmatch(r"rank (\d) of 4: (\d+) tasks", line) for line in lines[:4]]
    assert all(reports), lines
    assert [int(one[1]) for one in reports if one] == [0, 1, 2, 3]
    assert sum(int(one[2]) for one in reports if one) == 120
    assert lines[4] == f"the sum is {sum(number * number for number in range(120))}"
    assert not list(tmp_path.iterdir())


@pytest.mark.hpc
def test_a_program_that_changes_its_import_prints_the_same(
    service: Service, tmp_path: Path
) -> None:
    said = {}
    for module in ("dlock.mpi", "mpi4py.util.sync"):
        folder = tmp_path / module
        folder.mkdir()
        said[module] = mpirun(
            3, ROOT / "tests" / "mpi_program.py", module, folder, DLOCK_ADDRESS=service.address)
    assert len(said["dlock.mpi"]) == 3
    assert said["dlock.mpi"] == said["mpi4py.util.sync"]
    with contextlib.suppress(ModuleNotFoundError):
        from mpi4py.util import sync  # named here alone, so that a name of theirs is not forgotten

        assert set(sync.__all__) - {"Condition"} <= set(dir(mpi))
