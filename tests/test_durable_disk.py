"""The durable store and its disk: what is written and synced before an answer, what a power cut
leaves, and a disk that is full, broken or read-only.

A primary in a process of its own has tests/durable_disk.c between SQLite and the kernel.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_client import eventually
from dss_tools import Child, opened

from dlock import dss
from dlock.control.durable_store import Store
from dlock.dss import DssHandle

SOURCE = Path(__file__).parent / "durable_disk.c"
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
LOCKS = 20


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "disk.so"
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-std=c11", "-Wall", "-Wextra", "-Werror",
                    "-o", str(made), str(SOURCE), "-ldl"], check=True)
    return made


class Disk:
    """A primary behind the shim."""

    def __init__(self, shim: Path, folder: Path) -> None:
        self.log, self.kept, self.fault = folder / "log", folder / "kept", folder / "fault"
        self.state = folder / "state"
        self.kept.mkdir()
        self.log.touch()
        self.primary = Child(self.state, LD_PRELOAD=str(shim), DISK_LOG=str(self.log),
                             DISK_KEPT=str(self.kept), DISK_FAULT=str(self.fault))
        self.handle = opened(self.primary.address)

    def calls(self) -> list[str]:
        """What was called since the last time."""
        found = self.log.read_text().split()
        os.truncate(self.log, 0)
        return found


@pytest.fixture
def disk(shim: Path, tmp_path: Path) -> Iterator[Disk]:
    one = Disk(shim, tmp_path)
    yield one
    dss.dss_fini(one.handle)
    one.primary.kill()


# ---- What is on the disk before an answer --------------------------------------------------------


def test_an_answer_comes_after_the_sync_of_what_it_says(disk: Disk) -> None:
    """Breaks when `synchronous` is lowered: then no sync stands before the answers."""
    disk.calls()
    for number in range(LOCKS):
        assert dss.dss_lock(disk.handle, f"id {number}", "o") == 0
    for number in range(LOCKS):
        assert dss.dss_lock_refresh(disk.handle, f"id {number}", "o") == 0
        assert dss.dss_unlock(disk.handle, f"id {number}", "o") == 0
    calls = disk.calls()
    assert calls.count("answer") == 3 * LOCKS
    written = synced = False
    for call in calls:
        written |= call == "write"
        if call == "sync":
            written, synced = False, True
        if call == "answer":
            assert synced, "an answer without a sync"
            assert not written, "an answer with something written and not synced"
            synced = False


def test_what_changes_nothing_costs_no_sync(disk: Disk) -> None:
    assert dss.dss_lock(disk.handle, "id", "o") == 0
    assert dss.dss_lock_status(disk.handle, "id")[0] == 0
    disk.calls()
    for _ in range(LOCKS):
        assert dss.dss_lock(disk.handle, "id", "o") == -errno.EEXIST
        assert dss.dss_unlock(disk.handle, "id", "another") == -errno.EACCES
        assert dss.dss_lock_refresh(disk.handle, "other", "o") == -errno.ENOLCK
        assert dss.dss_lock_status(disk.handle, "id")[0] == 0
    assert set(disk.calls()) == {"answer"}


def test_those_who_ask_together_share_a_sync(disk: Disk) -> None:
    threads, turns = 16, 20

    def ask(number: int) -> None:
        for turn in range(turns):
            assert dss.dss_lock(disk.handle, f"{number}/{turn}", "o") == 0

    disk.calls()
    asking = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    calls = disk.calls()
    assert calls.count("answer") == threads * turns
    assert 0 < calls.count("sync") < threads * turns / 2


# ---- A power cut ---------------------------------------------------------------------------------


def after_power_cut(disk: Disk, folder: Path) -> Path:
    """A state directory with nothing in it but what was synced."""
    disk.primary.kill()
    folder.mkdir()
    for file in disk.state.iterdir():
        if not file.name.startswith("durable-"):
            shutil.copy(file, folder)
            continue
        # Its directory entry was made by a rename, of a file that was synced under its old name.
        first = next(iter(sorted(disk.kept.glob("durable-*.new"))))
        kept = disk.kept / file.name
        shutil.copy(kept if kept.exists() else first, folder / file.name)
    return folder


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_loses_nothing_that_was_answered(
    disk: Disk, tmp_path: Path, seed: int
) -> None:
    """Enough calls for the log to be begun anew several times; what was not synced is dropped."""
    chance = random.Random(seed)
    held: dict[str, str] = {}
    for number in range(chance.randrange(350, 600)):
        lock_id = f"id {chance.randrange(60)}"
        if lock_id in held and chance.random() < 0.7:
            assert dss.dss_unlock(disk.handle, lock_id, held.pop(lock_id)) == 0
        elif lock_id not in held:
            held[lock_id] = f"owner {number}"
            assert dss.dss_lock(disk.handle, lock_id, held[lock_id]) == 0
    with Child(after_power_cut(disk, tmp_path / "after")) as later:
        handle = opened(later.address)
        for lock_id in (f"id {number}" for number in range(60)):
            error, owner, _ = dss.dss_lock_status(handle, lock_id)
            assert (error, owner) == ((0, held[lock_id]) if lock_id in held
                                      else (-errno.ENOLCK, None))
        dss.dss_fini(handle)


# ---- A disk that fails ---------------------------------------------------------------------------


def goes_on(handle: DssHandle) -> None:
    """Everything works, and nothing is left of what failed."""
    assert dss.dss_lock_status(handle, "failed")[0] == -errno.ENOLCK
    assert dss.dss_lock(handle, "failed", "o") == 0
    assert dss.dss_unlock(handle, "failed", "o") == 0


@pytest.mark.parametrize(("fault", "told"), [
    ("write 28", errno.ENOSPC),  # certainly not done
    ("write 5 once", errno.EIO),  # not done: something else was written in its place
    ("sync 5 once", errno.EIO),
    ("write 5", errno.ECOMM),  # the log might have it
    ("sync 5", errno.ECOMM),
    ("write 30", errno.ECOMM),
])
def test_a_disk_that_fails_is_told_and_survived(disk: Disk, fault: str, told: int) -> None:
    assert dss.dss_lock(disk.handle, "before", "o") == 0
    disk.fault.write_text(fault)
    assert dss.dss_lock(disk.handle, "failed", "o") == -told
    if disk.fault.exists():
        assert dss.dss_unlock(disk.handle, "before", "o") == -told
        assert dss.dss_lock_status(disk.handle, "before")[:2] == (0, "o")  # asks nothing of it
        assert dss.dss_lock(disk.handle, "before", "x") == -errno.EEXIST
        disk.fault.unlink()
    goes_on(disk.handle)
    assert dss.dss_lock_status(disk.handle, "before")[:2] == (0, "o")
    other = opened(disk.primary.address)
    assert dss.dss_lock_status(other, "before")[:2] == (0, "o")
    dss.dss_fini(other)


def test_one_that_has_no_room_does_not_take_others_with_it(disk: Disk) -> None:
    """While the disk is full, many threads are told so; afterwards all of them go on."""
    disk.fault.write_text("write 28")
    outcomes: list[int] = []

    def ask(number: int) -> None:
        for turn in range(5):
            outcomes.append(dss.dss_lock(disk.handle, f"{number}/{turn}", "o"))

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert outcomes == [-errno.ENOSPC] * 40
    disk.fault.unlink()
    goes_on(disk.handle)


@pytest.mark.parametrize("fault", ["write 28", "sync 5"])
def test_a_store_that_could_not_be_opened_is_tried_again(
    shim: Path, tmp_path: Path, fault: str
) -> None:
    (tmp_path / "state").mkdir()
    with Child(tmp_path / "state") as first:
        assert dss.dss_lock(opened(first.address), "id", "o") == 0
    (tmp_path / "fault").write_text(fault)
    with Child(tmp_path / "state", LD_PRELOAD=str(shim),
               DISK_FAULT=str(tmp_path / "fault")) as second:
        handle = opened(second.address)
        assert dss.dss_lock_status(handle, "id")[0] in (-errno.ENOSPC, -errno.EIO)
        (tmp_path / "fault").unlink()
        assert eventually(lambda: dss.dss_lock_status(handle, "id")[:2] == (0, "o"))
        goes_on(handle)
        dss.dss_fini(handle)


def test_a_damaged_store_is_refused_until_an_operator_accepts_that(tmp_path: Path) -> None:
    with Child(tmp_path) as first:
        handle = opened(first.address)
        for number in range(50):
            assert dss.dss_lock(handle, f"{number}", "o" * 200) == 0
        dss.dss_fini(handle)
    file = tmp_path / "durable-1.db"
    # Into the file, and away with the log: a store that was closed well, and then damaged.
    log = Store(file, 1, 1)
    log.checkpoint("TRUNCATE")
    log.close()
    data = bytearray(file.read_bytes())
    data[4096:12288] = os.urandom(8192)
    file.write_bytes(data)
    with Child(tmp_path) as second:
        handle = opened(second.address)
        assert dss.dss_lock_status(handle, "1") == (-errno.ECOMM, None, None)
        assert dss.dss_lock(handle, "1", "o") == -errno.ECOMM
        dss.dss_fini(handle)
    with Child(tmp_path, accept=True) as third:
        handle = opened(third.address)
        assert dss.dss_lock(handle, "1", "new") == 0
        dss.dss_fini(handle)
    assert (tmp_path / "durable-1.db.damaged").read_bytes() == bytes(data)
    with Child(tmp_path) as fourth:
        handle = opened(fourth.address)
        assert dss.dss_lock_status(handle, "1")[:2] == (0, "new")
        dss.dss_fini(handle)
