"""The state directory: what is on disk when, who may have it, what a start finds there."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from state_dir_children import TTL_MS, entered, entry, files, ids, on_disk, opened

from dlock.control import state_dir as module
from dlock.control import state_file
from dlock.control.messages_base import EPOCH_MAX
from dlock.control.registry_effects import (
    PersistEnded,
    PersistEpoch,
    PersistLease,
    PersistSession,
    PersistStruck,
)
from dlock.control.roster import RosterEntry
from dlock.control.state_dir import StateDirError, open_state_dir
from dlock.control.state_file import State, encode_state

# ---- Epochs and promises -------------------------------------------------------------------------


def test_each_start_has_a_higher_epoch(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    for epoch in (1, 2, 3):
        state = opened(path, epoch * 10)
        assert (on_disk(path).epoch, on_disk(path).incarnation) == (epoch, epoch * 10)
        assert state.epoch == epoch
        state.close()
    assert opened(path, epoch_above=41).epoch == 42
    assert (path.stat().st_mode & 0o777, (path / "state-42").stat().st_mode & 0o777) == (
        0o700, 0o600)


def test_the_first_start_has_no_former(tmp_path: Path) -> None:
    assert opened(tmp_path).former is None


def test_what_was_applied_is_on_disk_after_the_commit(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.apply(PersistSession(entry(5)))
    state.apply(PersistSession(entry(6)))
    assert ids(tmp_path) == set()
    state.commit()
    assert on_disk(tmp_path).roster == {5: entry(5), 6: entry(6)}
    state.apply(PersistLease(5, 8192))
    state.apply(PersistLease(5, 1024))
    state.apply(PersistEnded(6))
    state.commit()
    assert on_disk(tmp_path).roster == {5: entry(5, 8192), 6: entry(6, ended=True)}
    state.apply(PersistStruck(5))
    state.apply(PersistLease(5, 16_384))
    state.apply(PersistEnded(7))
    state.commit()
    assert on_disk(tmp_path).roster == {6: entry(6, ended=True)}


def test_one_write_does_for_all_of_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = opened(tmp_path)
    calls = traced(monkeypatch, "fsync")
    for one in range(1, 1001):
        state.apply(PersistSession(entry(one)))
    state.commit()
    state.commit()
    assert len(calls) == 2, "the file and the directory, once"
    assert ids(tmp_path) == set(range(1, 1001))


def test_a_line_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite for one session more does not cost what all of them cost."""
    state = opened(tmp_path)
    entered(state, *range(1, 1001))
    encoded: list[RosterEntry] = []
    real = state_file.encode_entry

    def counted(one: RosterEntry) -> bytes:
        encoded.append(one)
        return real(one)

    monkeypatch.setattr(state_file, "encode_entry", counted)
    entered(state, 2000)
    assert encoded == [entry(2000)]
    assert len(ids(tmp_path)) == 1001


def test_a_start_takes_the_roster_over(tmp_path: Path) -> None:
    first = opened(tmp_path)
    entered(first, 5, 6)
    first.apply(PersistEnded(6))
    first.commit()
    first.close()
    second = open_state_dir(tmp_path, 2, 1000)
    assert second.former is not None
    assert second.former.roster == (entry(5), entry(6, ended=True))
    assert (second.former.session_ttl_ms, second.former.stopped) == (TTL_MS, True)
    assert second.former.serves_ms == second.former.settle_ms == 0
    assert on_disk(tmp_path).roster == {5: entry(5), 6: entry(6, ended=True)}
    assert on_disk(tmp_path).session_ttl_ms == TTL_MS


def test_a_start_that_dies_before_it_is_ready_loses_nothing(tmp_path: Path) -> None:
    first = opened(tmp_path)
    entered(first, 5, 6)
    first.close()
    for incarnation in (2, 3, 4):
        again = open_state_dir(tmp_path, incarnation, 1000)
        assert again.former is not None
        assert again.former.roster == (entry(5), entry(6))
        assert again.former.session_ttl_ms == TTL_MS, "the longest that was promised"
        again.close()
    assert len(list(tmp_path.glob("state-*"))) == 4, "nobody was ready"


def test_older_files_go_when_the_recovery_is_over(tmp_path: Path) -> None:
    first = opened(tmp_path)
    entered(first, 5)
    first.close()
    (tmp_path / "state-1.00000000000000ff.new").write_bytes(b"half a li")
    second = open_state_dir(tmp_path, 2, 1000)
    (tmp_path / "state-9.00000000000000ff.new").write_bytes(b"of one that starts now")
    (tmp_path / "notes").write_bytes(b"mine")
    second.apply(PersistStruck(5))
    second.commit()
    second.forget_former()
    assert files(tmp_path) == {"state-2", "lock-2", "state-9.00000000000000ff.new", "notes"}
    assert on_disk(tmp_path).session_ttl_ms == 1000
    second.confirm()


def test_the_running_primary_takes_a_higher_epoch(tmp_path: Path) -> None:
    state = opened(tmp_path)
    entered(state, 5)
    state.apply(PersistEpoch(2))
    state.apply(PersistSession(entry(6)))
    state.commit()
    assert state.epoch == on_disk(tmp_path).epoch == 2
    assert ids(tmp_path) == {5, 6}
    assert files(tmp_path) == {"state-2", "lock-2"}
    with pytest.raises(StateDirError, match="in use"):
        opened(tmp_path)
    state.close()
    assert opened(tmp_path).epoch == 3


# ---- Writing -------------------------------------------------------------------------------------


def traced(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Those calls of the module, as they come."""
    calls: list[str] = []

    def trace(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            what = ""
            if name == "fsync":
                what = " directory" if os.path.isdir(f"/proc/self/fd/{arguments[0]}") else " file"
            calls.append(name + what)
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    for name in names:
        trace(name)
    return calls


def test_the_order_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write, fsync of the file, rename, fsync of the directory: nothing less survives a crash. A
    new file is linked in the place of the rename, so that only one can have the name."""
    state = opened(tmp_path)
    calls = traced(monkeypatch, "write", "fsync", "rename", "link")
    entered(state, 5)
    assert calls == ["write", "fsync file", "rename", "fsync directory"]
    calls.clear()
    state.apply(PersistEpoch(2))
    state.commit()
    assert calls == ["write", "fsync file", "link", "fsync directory"]


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    state = opened(tmp_path)
    entered(state, 5)
    before = (tmp_path / "state-1").read_bytes()

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        state.apply(PersistSession(entry(6)))
        with pytest.raises(StateDirError, match=r"No space left.*must not promise"):
            state.commit()
    assert (tmp_path / "state-1").read_bytes() == before
    assert files(tmp_path) == {"state-1", "lock-1"}


def children(what: str, folder: Path) -> None:
    """state_dir_children, in an interpreter of its own."""
    script = Path(__file__).with_name("state_dir_children.py")
    subprocess.run([sys.executable, str(script), what, str(folder)], check=True, timeout=300)


def test_a_kill_at_any_point_of_a_write_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    children("kills", tmp_path)


WRITER = """
import sys
from pathlib import Path
from dlock.control.registry_effects import PersistSession, PersistStruck
from dlock.control.roster import RosterEntry
from dlock.control.state_dir import open_state_dir
state = open_state_dir(Path(sys.argv[1]), 1, 1000)
print("open", flush=True)
for one in range(1, 1 << 30):
    print(f"try {one}", flush=True)
    state.apply(PersistSession(RosterEntry(one, 0, False, bytes(16), "")))
    if one > 20:
        state.apply(PersistStruck(one - 20))
    state.commit()
    print(f"done {one}", flush=True)
"""


def test_a_process_that_is_killed_at_random_has_what_it_promised(tmp_path: Path) -> None:
    source = random.Random(8)
    last = 0
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], text=True,
                                   stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(source.randrange(1, 200)):
            process.stdout.readline()
        process.kill()
        lines = process.stdout.read().split("\n")
        process.wait()
        process.stdout.close()
        words = [line.split() for line in lines if re.fullmatch(r"(try|done) \d+", line)]
        if words:
            last = max(int(number) for _, number in words)
        done = [int(number) for word, number in words if word == "done"]
        state = opened(tmp_path, 2)
        found = ids(tmp_path)
        if done:
            assert max(done) in found
            assert max(found) in (max(done), last)
            assert len(found) == min(max(found), 20)
        state.close()
        shutil.rmtree(tmp_path)


# ---- Two of them ---------------------------------------------------------------------------------


def test_a_second_primary_is_refused(tmp_path: Path) -> None:
    first = opened(tmp_path)
    other = "import sys; from pathlib import Path; from dlock.control.state_dir import *\n" \
            "try: open_state_dir(Path(sys.argv[1]), 2, 1000)\n" \
            "except StateDirError as problem: print(problem)"
    run = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True,
                         text=True, timeout=60, check=True)
    assert re.search(rf"in use by another primary \(process {os.getpid()}\).*Stop that one first.*"
                     r"--take-over", run.stdout)
    with pytest.raises(StateDirError, match="in use"):
        opened(tmp_path, 2)
    first.confirm()
    first.close()
    assert opened(tmp_path, 2).epoch == 2


def test_of_many_that_start_at_once_one_has_it(tmp_path: Path) -> None:
    children("starts", tmp_path)


def test_of_those_that_take_over_the_highest_has_it(tmp_path: Path) -> None:
    children("takeovers", tmp_path)


def test_a_taken_epoch_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where locks are worth nothing, as between machines: link(2) decides."""
    real = module._lock_an_epoch

    def late(*arguments: Any) -> Any:
        found = real(*arguments)
        (tmp_path / f"state-{found[1]}").write_bytes(encode_state(State(found[1], 77)))
        return found

    monkeypatch.setattr(module, "_lock_an_epoch", late)
    with pytest.raises(StateDirError, match=r"has taken epoch 1 .*Start only one"):
        opened(tmp_path)
    assert on_disk(tmp_path).incarnation == 77


def test_one_that_came_and_went_while_we_looked_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our look at the directory and our lock of an epoch."""
    real = module._lock

    def late(file: Path) -> int | None:
        monkeypatch.setattr(module, "_lock", real)
        other = opened(tmp_path, 7)
        entered(other, 5)
        other.close()
        return real(file)

    monkeypatch.setattr(module, "_lock", late)
    state = opened(tmp_path)
    assert state.epoch == 2
    assert ids(tmp_path) == {5}


# ---- What is refused -----------------------------------------------------------------------------

GOOD = encode_state(State(5, 6, 7, "here", (3,), {8: entry(8, 16, ended=True)}))


@pytest.mark.parametrize("content", [
    b"", b"\n", b"garbage", GOOD[:-5], GOOD[1:], GOOD.replace(b'"epoch": 5', b'"epoch": 9'),
    b"\xff\xfe" + GOOD, GOOD + b"\n", encode_state(State(6, 7)),
])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state-5").write_bytes(content)
    with pytest.raises(StateDirError, match=r"damaged.*\n?.*rename the file to state-5.damaged"):
        opened(tmp_path)
    assert (tmp_path / "state-5").read_bytes() == content
    (tmp_path / "state-5").rename(tmp_path / "state-5.damaged")
    state = opened(tmp_path)  # the lock was given back
    assert state.epoch == 6, "no token is ever given out twice"
    assert state.former is None
    state.forget_former()
    assert "state-5.damaged" in files(tmp_path)


def test_epochs_end(tmp_path: Path) -> None:
    (tmp_path / f"state-{EPOCH_MAX}").write_bytes(
        encode_state(State(EPOCH_MAX, 1)))
    with pytest.raises(StateDirError, match="used up all"):
        opened(tmp_path)


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateDirError, match="cannot be used"):
        opened(tmp_path / "file")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "state-1").mkdir()
    with pytest.raises(StateDirError, match="cannot be read"):
        opened(tmp_path / "d")
