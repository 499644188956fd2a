"""The state directory: what is on disk when, who may have it, how long a start must wait."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlock.control import state_dir as module
from dlock.control.state_dir import (
    State,
    StateDirError,
    StateDirLostError,
    decode_state,
    encode_state,
    open_state_dir,
    settle_ms,
)


def on_disk(path: Path) -> State:
    return decode_state((path / "state").read_bytes())


def test_each_start_has_a_higher_epoch(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    for epoch in (1, 2, 3):
        state = open_state_dir(path, incarnation=epoch * 10)
        assert on_disk(path) == State(epoch, epoch * 10)
        assert state.settle_ms == 0
        state.close()
    assert open_state_dir(path, 5, epoch_above=41).state.epoch == 42
    assert (path.stat().st_mode & 0o777, (path / "state").stat().st_mode & 0o777) == (
        0o700, 0o600)


def test_promises_are_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    state = open_state_dir(tmp_path, 7)
    state.sessions_open(10_000)
    assert on_disk(tmp_path) == State(1, 7, 10_000, 0, True)
    state.lease_promised(8192)
    state.lease_promised(1024)
    assert on_disk(tmp_path) == State(1, 7, 10_000, 8192, True)
    state.epoch_taken(2)
    assert on_disk(tmp_path).epoch == 2
    state.settled()
    assert on_disk(tmp_path) == State(2, 7)


def test_the_wait_covers_what_was_promised(tmp_path: Path) -> None:
    first = open_state_dir(tmp_path, 1)
    first.sessions_open(10_000)
    first.close()
    second = open_state_dir(tmp_path, 2)
    # 10 s, a quarter, and 0.1 s and 0.2 % of that.
    assert second.settle_ms == settle_ms(10_000, 0) == 12_500 + 100 + 25
    second.lease_promised(65_536)
    assert settle_ms(10_000, 65_536) == 68_036 + 100 + 137
    second.close()
    third = open_state_dir(tmp_path, 3)
    assert third.settle_ms == settle_ms(10_000, 65_536), "the second died before it had settled"
    third.settled()
    third.close()
    assert open_state_dir(tmp_path, 4).settle_ms == 0


def test_a_promise_of_the_past_survives_a_shorter_one(tmp_path: Path) -> None:
    first = open_state_dir(tmp_path, 1)
    first.sessions_open(60_000)
    first.close()
    second = open_state_dir(tmp_path, 2)
    second.sessions_open(1_000)
    assert on_disk(tmp_path).session_ttl_ms == 60_000


def test_the_order_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write, fsync of the file, rename, fsync of the directory: nothing less survives a crash."""
    state = open_state_dir(tmp_path, 1)
    calls: list[str] = []

    def traced(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            what = ""
            if name == "fsync":
                what = " directory" if os.path.isdir(f"/proc/self/fd/{arguments[0]}") else " file"
            calls.append(name + what)
            return real(*arguments, **named)

        monkeypatch.setattr(module.os, name, call)

    for name in ("write", "fsync", "rename"):
        traced(name)
    state.lease_promised(1024)
    assert calls == ["write", "fsync file", "rename", "fsync directory"]


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    state = open_state_dir(tmp_path, 1)
    state.lease_promised(1024)
    before = (tmp_path / "state").read_bytes()

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, step, fail)
        with pytest.raises(StateDirError, match="No space left"):
            state.lease_promised(4096)
    assert (tmp_path / "state").read_bytes() == before
    assert state.state.longest_lease_ms == 1024
    state.lease_promised(4096)
    assert on_disk(tmp_path).longest_lease_ms == 4096


def test_a_half_written_successor_is_ignored(tmp_path: Path) -> None:
    open_state_dir(tmp_path, 1).close()
    (tmp_path / "state.new").write_bytes(b"half a li")
    assert open_state_dir(tmp_path, 2).state.epoch == 2


GOOD = encode_state(State(5, 6, 7, 8, True))


@pytest.mark.parametrize("content", [
    b"", b"\n", b"garbage", GOOD[:-5], GOOD[1:], GOOD.replace(b'"epoch": 5', b'"epoch": 9'),
    b"x" * 5000, b"\xff\xfe" + GOOD,
])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(StateDirError, match=r"damaged.*\n?.*remove the file"):
        open_state_dir(tmp_path, 1)
    assert (tmp_path / "state").read_bytes() == content
    (tmp_path / "state").unlink()
    open_state_dir(tmp_path, 1)  # the lock was given back


@pytest.mark.parametrize("fields", [
    '{"format": 2}', "[]", '{"format": 1}',
    '{"format": 1, "epoch": true, "incarnation": 0, "longest_lease_ms": 0, "session_ttl_ms": 0, '
    '"sessions_open": false}',
    '{"format": 1, "epoch": 1048576, "incarnation": 0, "longest_lease_ms": 0, "session_ttl_ms": 0,'
    ' "sessions_open": false}',
    '{"format": 1, "epoch": 1, "incarnation": 0, "longest_lease_ms": 0, "session_ttl_ms": 0, '
    '"sessions_open": 0}',
])
def test_fields_are_checked(fields: str) -> None:
    checksum = module.zlib.crc32(fields.encode())
    with pytest.raises(ValueError, match=r"."):
        decode_state(f"{checksum:08x} {fields}\n".encode())
    assert decode_state(GOOD) == State(5, 6, 7, 8, True)


def test_two_primaries_cannot_share_it(tmp_path: Path) -> None:
    first = open_state_dir(tmp_path, 1)
    other = "import sys; from pathlib import Path; from dlock.control.state_dir import *\n" \
            "try: open_state_dir(Path(sys.argv[1]), 2)\n" \
            "except StateDirError as problem: print(problem)"
    run = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True,
                         text=True, timeout=60, check=True)
    assert re.search(rf"in use by another primary \(process {os.getpid()}\)", run.stdout)
    with pytest.raises(StateDirError, match="in use"):
        open_state_dir(tmp_path, 2)
    first.close()
    assert open_state_dir(tmp_path, 2).state.epoch == 2


def test_a_primary_notices_that_it_was_replaced(tmp_path: Path) -> None:
    first = open_state_dir(tmp_path / "a", 1)
    first.confirm()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    second = open_state_dir(tmp_path / "b", 2)
    shutil.copy(tmp_path / "b" / "state", tmp_path / "a" / "state")
    with pytest.raises(StateDirLostError, match="holds epoch 2, this one has 1"):
        first.confirm()
    with pytest.raises(StateDirLostError):
        first.lease_promised(1024)
    assert on_disk(tmp_path / "a") == second.state, "a later state is never overwritten"
    (tmp_path / "a" / "state").unlink()
    with pytest.raises(StateDirLostError, match="cannot be confirmed"):
        first.confirm()


def test_the_same_epoch_with_another_incarnation_is_not_ours(tmp_path: Path) -> None:
    first = open_state_dir(tmp_path, 1)
    (tmp_path / "state").write_bytes(encode_state(State(1, 2)))
    with pytest.raises(StateDirLostError):
        first.confirm()


def test_epochs_end(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(encode_state(State(module.EPOCH_MAX, 1)))
    with pytest.raises(StateDirError, match="used up all"):
        open_state_dir(tmp_path, 2)


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateDirError, match="cannot be used"):
        open_state_dir(tmp_path / "file", 1)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "state").mkdir()
    with pytest.raises(StateDirError, match="cannot be read"):
        open_state_dir(tmp_path / "d", 1)
