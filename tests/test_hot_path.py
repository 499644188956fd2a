"""What `with client.lock(name):` costs beyond its two C calls, counted: time on a busy machine says
nothing. docs/benchmarks.md has the time."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from lock_tools import Service, fresh_name, serving

import dlock
from dlock import locks
from dlock._core import lib

LIBRARY = str(Path(dlock.__file__).parent) + os.sep

# Measured on a 3 GHz core with Python 3.11: 1.7 microseconds for about 250 bytecodes in 8 frames.
BYTECODES_MAX = 260
FRAMES_MAX = 8


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


def test_a_pair_is_two_c_calls_and_few_bytecodes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = service.client()
    name = fresh_name()
    calls: list[object] = []
    counted = {"call": 0, "opcode": 0}

    def count_call(session: Any, call: Any) -> int:
        calls.append(call)
        status: int = lib.dlk_client_call(session, call)
        while status == lib.DLK_STATUS_PENDING:
            status = lib.dlk_client_wait(session, call)
        return status

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event in counted:
            counted[event] += 1
        return trace

    def pair() -> None:
        with client.lock(name):
            pass

    pair()
    monkeypatch.setattr(locks, "_call", count_call)
    gc.collect()  # else it may come in the midst, and what it drops would be counted
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        pair()
    finally:
        sys.settrace(before)
    assert len(calls) == 2
    assert counted["call"] <= FRAMES_MAX, counted
    assert counted["opcode"] <= BYTECODES_MAX, counted


def test_names_used_once_do_not_stay(service: Service) -> None:
    client = service.client()
    for number in range(3000):
        with client.lock(f"once {number}"):
            pass
    assert len(client._names) < 1200
    assert client.stats()["locks"] < 1300
