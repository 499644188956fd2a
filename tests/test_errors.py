"""The errors of the Python API: their bases, their words, and that they cross processes."""

from __future__ import annotations

import pickle

import pytest

from dlock import errors

ALL = [
    errors.DlockError("x"),
    errors.ConnectError("x"),
    errors.ConnectionLost("x"),
    errors.ClientClosed("x"),
    errors.Superseded("door"),
    errors.WrongLoop("x"),
    errors.ForkedError(),
    errors.ServerFull("x"),
    errors.LockLost("name", 7),
    errors.Broken(b"\xff", 7),
    errors.Deadlock(("a waits for b",)),
    errors.NotHeld("x"),
    errors.StaleToken("x"),
    errors.KindMismatch("x"),
    errors.LeaseTooLong("x"),
    errors.ObjectLost("x"),
    errors.OutcomeUnknown("x"),
    errors.StoreError(28),
    errors.AlreadyLocked(17, "x"),
    errors.NotLocked(37, "x"),
    errors.OtherOwner(13, "x"),
]


def test_this_list_is_complete() -> None:
    named = {value for value in vars(errors).values() if isinstance(value, type)}
    assert {type(error) for error in ALL} == named


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: errors.DlockError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error) != ""
    assert vars(again) == vars(error)
    assert isinstance(error, errors.DlockError)


def test_they_are_what_python_calls_them() -> None:
    assert issubclass(errors.ConnectionLost, ConnectionError)
    assert issubclass(errors.NotHeld, RuntimeError)  # as threading.Lock.release raises
    assert issubclass(errors.ForkedError, RuntimeError)
    assert issubclass(errors.WrongLoop, RuntimeError)
    assert issubclass(errors.KindMismatch, ValueError)
    assert issubclass(errors.Broken, errors.LockLost)


def test_a_lost_lock_says_which_and_why() -> None:
    lost = errors.LockLost("jobs", 12)
    assert (lost.name, lost.token) == ("jobs", 12)
    assert "jobs" in str(lost)
    assert "operator" in str(errors.Broken("jobs", 12))
    assert "a waits for b" in str(errors.Deadlock(("a waits for b",)))
