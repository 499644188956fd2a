"""The bytes of a state file: what is written is what is read, and nothing else is; and what a start
makes of a file that an earlier version left."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest
from state_dir_children import entry, files, opened

from dlock.control import state_dir as module
from dlock.control.roster import RosterEntry, believed_ms
from dlock.control.state_dir import StateDirError
from dlock.control.state_file import State, decode_state, encode_state

FULL = State(5, 6, 7, "here", (3,), {8: entry(8, 16, ended=True)})


def test_what_is_written_is_what_is_read() -> None:
    assert decode_state(encode_state(FULL)) == FULL
    odd = State(1, 2**64 - 1, roster={1: RosterEntry(1, 0, False, bytes(16), 'n"1\\é 雪 7')})
    assert decode_state(encode_state(odd)) == odd


def with_checksum(body: bytes) -> bytes:
    return b"%08x " % zlib.crc32(body) + body


HEADER = {"format": 2, "epoch": 1, "incarnation": 0, "session_ttl_ms": 0, "machine": "", "late": []}
LINE = [1, 0, 0, "00" * 16, ""]


@pytest.mark.parametrize("header", [
    [], {}, {**HEADER, "format": 1}, {**HEADER, "epoch": True}, {**HEADER, "epoch": 1 << 20},
    {**HEADER, "incarnation": -1}, {**HEADER, "incarnation": 1.0}, {**HEADER, "more": 1},
    {**HEADER, "machine": 1}, {**HEADER, "late": 1}, {**HEADER, "late": [-1]},
    {**HEADER, "late": ["1"]},
])
def test_a_wrong_header_is_refused(header: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_state(with_checksum(json.dumps(header).encode() + b"\n"))


@pytest.mark.parametrize("line", [
    {}, [], LINE[:4], [*LINE, 1], [1 << 31, *LINE[1:]], [True, *LINE[1:]], [1, -1, *LINE[2:]],
    [1, 0, 2, *LINE[3:]], [1, 0, 0, "00", ""], [1, 0, 0, "zz" * 16, ""], [1, 0, 0, 5, ""],
    [*LINE[:4], 5], [*LINE[:4], "x" * 81],
])
def test_a_wrong_line_is_refused(line: object) -> None:
    good = json.dumps(HEADER).encode() + b"\n" + json.dumps(LINE).encode() + b"\n"
    assert decode_state(with_checksum(good)).roster.keys() == {1}
    with pytest.raises(ValueError, match=r"."):
        decode_state(with_checksum(good + json.dumps(line).encode() + b"\n"))


# ---- Format 1 ------------------------------------------------------------------------------------


def format_1(**changes: object) -> bytes:
    fields = {"format": 1, "epoch": 4, "incarnation": 5, "session_ttl_ms": 10_000,
              "longest_lease_ms": 65_536, "sessions_open": True, **changes}
    body = json.dumps(fields, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def test_clients_of_an_earlier_version_are_waited_for(tmp_path: Path) -> None:
    """At every start, until one is ready."""
    (tmp_path / "state").write_bytes(format_1())
    for epoch in (5, 6):
        state = opened(tmp_path)
        assert state.epoch == epoch
        assert state.former is not None
        assert state.former.settle_ms == believed_ms(10_000, 65_536)
        assert (state.former.roster, state.former.stopped) == ((), True)
        state.close()
    state = opened(tmp_path)
    state.forget_former()
    assert files(tmp_path) == {"state-7", "lock-7"}


def test_without_clients_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(format_1(sessions_open=False))
    former = opened(tmp_path).former
    assert former is not None
    assert former.settle_ms == 0


def test_a_running_primary_of_an_earlier_version_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(format_1())
    lock = module._lock(tmp_path / "lock")
    assert lock is not None
    with pytest.raises(StateDirError, match="would not notice that it is replaced"):
        opened(tmp_path, take_over=True)
    os.close(lock)
    opened(tmp_path)


@pytest.mark.parametrize("content", [
    b"", b"garbage", format_1()[1:], format_1(format=3), format_1(epoch=-1), format_1(epoch="4"),
])
def test_a_damaged_file_of_format_1_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(StateDirError, match=r"damaged.*\n?.*remove the file"):
        opened(tmp_path)
