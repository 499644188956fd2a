"""What LDLM says when something is refused: its codes, its texts, and in which order it looks.

Pure. The numbers are those of LDLM's protocol (enum ErrorCode), the names are what its REST gateway
writes in their place.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SIZE_DEFAULT: Final = 1


class Problem(NamedTuple):
    """Why a call was refused; goes out in the `error` field of an answer."""

    code: int
    code_name: str
    message: str


EMPTY_NAME: Final = Problem(0, "Unknown", "lock name cannot be empty")
BAD_LOCK_TIMEOUT: Final = Problem(0, "Unknown", "lock timeout must be greater than 0")
BAD_WAIT_TIMEOUT: Final = Problem(0, "Unknown", "wait timeout must be greater than 0")
NO_SESSION: Final = Problem(0, "Unknown", "session does not exist")
SHUT_DOWN: Final = Problem(0, "Unknown", "lock manager is shutdown")
NO_SUCH_LOCK: Final = Problem(1, "LockDoesNotExist", "a lock by that name does not exist")
WRONG_KEY: Final = Problem(2, "InvalidLockKey", "invalid lock key")
WAIT_OVER: Final = Problem(3, "LockWaitTimeout", "timeout waiting to acquire lock")
# Never said by a server; clients have it.
NOT_LOCKED: Final = Problem(4, "NotLocked", "lock is not locked")
NO_TIMER: Final = Problem(
    5, "LockDoesNotExistOrInvalidKey", "lock does not exist or invalid key")
SIZE_MISMATCH: Final = Problem(6, "LockSizeMismatch", "lock size mismatch")
BAD_SIZE: Final = Problem(7, "InvalidLockSize", "lock size must be greater than 0")


def unknown(message: str) -> Problem:
    """What LDLM has no code for."""
    return Problem(0, "Unknown", message)


class Answer(NamedTuple):
    """What a call comes to: `ok` is `locked` or `unlocked`; a refused TryLock has no error."""

    ok: bool
    name: str
    key: str = ""
    error: Problem | None = None


def timeouts_problem(lock_timeout_s: int | None, wait_timeout_s: int | None) -> Problem | None:
    """What is looked at first; the answer to it has no key. None and 0 mean no timeout."""
    if lock_timeout_s is not None and lock_timeout_s < 0:
        return BAD_LOCK_TIMEOUT
    if wait_timeout_s is not None and wait_timeout_s < 0:
        return BAD_WAIT_TIMEOUT
    return None


def name_problem(name: str, size: int) -> Problem | None:
    """What is looked at next; then the size that the name has already (dlock/doors/ldlm/table.py)
    and whether the lock is free."""
    if not name:
        return EMPTY_NAME
    if size <= 0:
        return BAD_SIZE
    return None
