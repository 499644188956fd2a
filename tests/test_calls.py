"""What an operation asks and what its answer means: `dlock._calls`, without a server."""

from __future__ import annotations

import math
import pickle
import threading

import pytest

from dlock import _calls, _core
from dlock._calls import FOREVER, Outcome
from dlock._cycle import Cycle, Wait
from dlock.errors import Deadlock, DlockError, ForkedError, LeaseTooLong, ServerFull


@pytest.mark.parametrize(
    ("blocking", "timeout", "wait_ms"),
    [
        (True, -1, FOREVER),
        (True, None, FOREVER),
        (True, 0, 0),
        (True, 2, 2000),
        (True, 0.0001, 1),
        (True, 5_000_000, FOREVER - 1),
        (False, -1, 0),
        (False, None, 0),
    ],
)
def test_a_wait_is_told_in_milliseconds(
    blocking: bool, timeout: float | None, wait_ms: int
) -> None:
    assert _calls.wait_ms_of(blocking, timeout) == wait_ms


@pytest.mark.parametrize(
    ("blocking", "timeout"),
    [(False, 0), (False, 1), (True, -2), (True, -0.5), (True, threading.TIMEOUT_MAX * 2)],
)
def test_errors_of_a_wait_are_those_of_threading(blocking: bool, timeout: float) -> None:
    with pytest.raises((ValueError, OverflowError)) as theirs:
        threading.Lock().acquire(blocking, timeout)
    with pytest.raises(theirs.type) as ours:
        _calls.wait_ms_of(blocking, timeout)
    assert type(ours.value) is theirs.type


def test_a_wait_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        _calls.wait_ms_of(True, math.nan)
    with pytest.raises(TypeError):
        _calls.wait_ms_of(True, "1")  # type: ignore[arg-type]


def test_a_lease_is_rounded_up() -> None:
    assert _calls.lease_ms_of(None) == 0
    assert _calls.lease_ms_of(0.0001) == 1
    assert _calls.lease_ms_of(1.5) == 1500


@pytest.mark.parametrize("lease", [0, -1, math.inf, math.nan])
def test_a_lease_that_is_none_is_refused(lease: float) -> None:
    with pytest.raises(ValueError, match="lease"):
        _calls.lease_ms_of(lease)


def test_a_lease_beyond_every_server_is_refused() -> None:
    with pytest.raises(LeaseTooLong):
        _calls.lease_ms_of(1e9)


def test_names_are_utf8_of_bounded_length() -> None:
    assert _calls.descriptor("käse") == "käse".encode()
    assert _calls.descriptor(b"\xff") == b"\xff"
    assert _calls.shown(b"\xff") == r"b'\xff'"
    assert _calls.shown("ä".encode()) == "'ä'"
    for bad in ("", "x" * 513):
        with pytest.raises(ValueError, match=r"1\.\.512"):
            _calls.descriptor(bad)
    with pytest.raises(TypeError):
        _calls.descriptor(7)  # type: ignore[arg-type]


def test_a_semaphore_has_a_size() -> None:
    assert _calls.semaphore_size(3) == 3
    with pytest.raises(ValueError, match="size"):
        _calls.semaphore_size(0)
    with pytest.raises(TypeError):
        _calls.semaphore_size(True)


@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_signed_numbers_survive_the_word(value: int) -> None:
    word = _calls.to_word(value)
    assert 0 <= word < 2**64
    assert _calls.from_word(word) == value


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_a_number_beyond_64_bits_is_refused(value: int) -> None:
    with pytest.raises(OverflowError):
        _calls.to_word(value)


def every_status() -> list[int]:
    return sorted(
        getattr(_core, name) for name in dir(_core.lib) if name.startswith("DLK_STATUS_")
    )


@pytest.mark.parametrize("status", every_status())
def test_every_status_means_something_or_is_an_error(status: int) -> None:
    for judge in (
        lambda: _calls.judge_acquire(status, b"n", 0),
        lambda: _calls.judge_release(status, b"n"),
        lambda: _calls.judge_extend(status, b"n", 0),
        lambda: _calls.judge_object(status, b"n"),
    ):
        told: object
        try:
            told = judge()
        except DlockError as error:
            told = error
        assert str(told)
        assert isinstance(told, (Outcome, DlockError))


def test_statuses_that_are_errors_say_what_to_do() -> None:
    with pytest.raises(ForkedError):
        _calls.judge_acquire(_core.DLK_STATUS_FORKED, b"n", 0)
    with pytest.raises(ServerFull, match="max_locks"):
        _calls.judge_acquire(_core.DLK_STATUS_SERVER_NO_RESOURCE, b"n", 0)
    with pytest.raises(LeaseTooLong, match="max_lease"):
        _calls.judge_acquire(_core.DLK_STATUS_EINVAL, b"n", 90_000)


def test_a_cycle_is_named_in_words_and_can_be_pickled() -> None:
    cycle = Cycle(
        (
            Wait(b"b", 7, 1, {}),
            Wait(b"a", 9, 2, {"program": "train.py", "pid": 33, "host": "node1"}),
        )
    )
    error = pickle.loads(pickle.dumps(Deadlock(cycle)))
    assert error.cycle == cycle
    for told in ("'b'", "'a'", "train.py", "33", "node1", "client 9"):
        assert told in str(error)


def test_a_cycle_that_nobody_explained_is_told_too() -> None:
    assert "what you hold" in str(Cycle())
    assert str(Deadlock(Cycle()))
