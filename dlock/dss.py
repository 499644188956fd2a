"""The lock calls of phobos' Distributed State Service, under their C names, and with its numbers:
0 or a negative errno. Nothing that C reports by a number is raised here; `dlock.durable` has the
same locks with exceptions and context managers. docs/dss.md has the table of outcomes.

What raises is misuse that C's compiler would have refused (TypeError), and a handle of a parent
process (dlock.ForkedError).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from dlock.address import ENVIRONMENT, PORT_DEFAULT, Address, Endpoint, parse
from dlock.durable import DurableLocks, LockState
from dlock.errors import (
    AlreadyLocked,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    ForkedError,
    NotLocked,
    OtherOwner,
    StoreError,
)

__all__ = [
    "DssHandle", "DurableLocks", "Timeval", "dss_fini", "dss_init", "dss_lock",
    "dss_lock_refresh", "dss_lock_status", "dss_unlock",
]

CONNECT_STRING: Final = "PHOBOS_DSS_connect_string"


class Timeval(NamedTuple):
    """Unix time."""

    tv_sec: int
    tv_usec: int


class DssHandle:
    """What `struct dss_handle` is there. It is made without connecting to anything; `dss_init`
    opens it. Any number of threads may use one."""

    __slots__ = ("_locks", "_pid", "address")

    def __init__(self, address: str | None = None) -> None:
        """`address`: HOST:PORT of the primary; None: see `dss_init`."""
        if address is not None and not isinstance(address, str):
            raise TypeError(f"an address is str or None, not {type(address).__name__}")
        self.address = address
        self._locks: DurableLocks | None = None
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"DssHandle({self._locks or self.address!r})"


# ---- The calls -----------------------------------------------------------------------------------


def dss_init(handle: DssHandle) -> int:
    """Opens a handle. Where the primary is: the handle's address, else DLOCK_ADDRESS, else host=
    and port= of the libpq string in PHOBOS_DSS_connect_string. One that is open is opened anew.

    0; -EINVAL: no address, or one that cannot be read; -ENOTCONN: nobody answers there, at once if
    the connection is refused, after 5 s at most."""
    _check(handle)
    dss_fini(handle)
    try:
        address = _address(handle.address, os.environ)
    except ValueError:
        return -errno.EINVAL
    locks = DurableLocks(address)
    try:
        locks.connect()
    except ConnectError:
        locks.close()
        return -errno.ENOTCONN
    handle._locks, handle._pid = locks, os.getpid()
    return 0


def dss_fini(handle: DssHandle) -> None:
    """Closes a handle; nothing on one that is not open. Locks stay."""
    _check(handle)
    locks, handle._locks = handle._locks, None
    if locks is not None:
        locks.close()


def dss_lock(handle: DssHandle, lock_id: str | bytes | None,
             lock_owner: str | bytes | None) -> int:
    """Takes a lock. 0; -EEXIST: somebody has it, perhaps this owner.

    Like every call: -EINVAL, a text is None, too long, no valid UTF-8, or has U+0000, or the handle
    is not open; -ECOMM, no answer in 10 s, so that the outcome is not known, or nothing durable is
    served there; -ENOSPC, -EIO, -ENOMEM, the primary could not write it down."""
    return _number(handle, DurableLocks.lock, lock_id, lock_owner)


def dss_lock_refresh(handle: DssHandle, lock_id: str | bytes | None,
                     lock_owner: str | bytes | None) -> int:
    """Sets a lock's time to now. 0; -ENOLCK: there is no such lock; -EACCES: another one's."""
    return _number(handle, DurableLocks.refresh, lock_id, lock_owner)


def dss_unlock(handle: DssHandle, lock_id: str | bytes | None,
               lock_owner: str | bytes | None) -> int:
    """Gives a lock back; `lock_owner` None: whoever owns it. 0; -ENOLCK: there is no such lock;
    -EACCES: another one's."""
    if lock_owner is None:
        return _number(handle, DurableLocks.force_unlock, lock_id)
    return _number(handle, DurableLocks.unlock, lock_id, lock_owner)


def dss_lock_status(
    handle: DssHandle, lock_id: str | bytes | None
) -> tuple[int, str | None, Timeval | None]:
    """(0, owner, time of taking or of the last refresh); (-ENOLCK, None, None): there is no such
    lock; every other error likewise."""
    found: list[LockState | None] = []

    def look(locks: DurableLocks, one: str | bytes) -> None:
        found.append(locks.status(one))

    error = _number(handle, look, lock_id)
    if error:
        return error, None, None
    state = found[0]
    if state is None:
        return -errno.ENOLCK, None, None
    return 0, state.owner, Timeval(state.seconds, state.microseconds)


def _check(handle: DssHandle) -> None:
    """TypeError; ForkedError."""
    if not isinstance(handle, DssHandle):
        raise TypeError(f"a handle is a DssHandle, not {type(handle).__name__}")
    if handle._locks is not None and handle._pid != os.getpid():
        raise ForkedError("this DSS handle belongs to the parent process; after a fork the child "
                          "must open its own")


def _number(handle: DssHandle, call: Callable[..., None], *texts: str | bytes | None) -> int:
    """What C says of what came of a call. TypeError; ForkedError."""
    _check(handle)
    for text in texts:
        if text is not None and not isinstance(text, str | bytes):
            raise TypeError(f"a lock id or owner is str, bytes or None, not {type(text).__name__}")
    locks = handle._locks
    if locks is None or None in texts:
        return -errno.EINVAL
    try:
        call(locks, *texts)
    except (ValueError, ClientClosed):  # closed by another thread in this moment
        return -errno.EINVAL
    except (AlreadyLocked, NotLocked, OtherOwner, StoreError) as problem:
        return -(problem.errno or errno.ECOMM)
    except ConnectionLost:
        return -errno.ECOMM
    return 0


# ---- Where the primary is ------------------------------------------------------------------------


def _address(given: str | None, environment: Mapping[str, str]) -> Address:
    """ValueError: there is none, or it cannot be read."""
    if given is None:
        given = environment.get(ENVIRONMENT) or None
    if given is not None:
        return parse(given)
    words = dict(connect_words(environment.get(CONNECT_STRING, "")))
    host, port = words.get("host", ""), words.get("port", "") or str(PORT_DEFAULT)
    if not host or "," in host or "/" in host or any(one.isspace() for one in host):
        raise ValueError("no address of a primary")
    if not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{port!r} is no port")
    return Address((Endpoint(host, int(port)),))


def connect_words(text: str) -> Iterator[tuple[str, str]]:
    """The words of a libpq connection string: `key = value` pairs. A value may stand in single
    quotes; a backslash takes what follows it as it is. ValueError: it is none."""
    rest = text.lstrip()
    while rest:
        end = next((at for at, one in enumerate(rest) if one == "=" or one.isspace()), len(rest))
        key, rest = rest[:end], rest[end:].lstrip()
        if not key or not rest.startswith("="):
            raise ValueError(f"no '=' after {key!r} in the connection string")
        value, rest = _value(rest[1:].lstrip())
        yield key, value
        rest = rest.lstrip()


def _value(text: str) -> tuple[str, str]:
    """The value that this begins with, and what follows it."""
    quoted = text.startswith("'")
    value, at = "", int(quoted)
    while at < len(text):
        one = text[at]
        if one == "\\" and at + 1 < len(text):
            at += 1
            value += text[at]
        elif quoted and one == "'":
            return value, text[at + 1:]
        elif not quoted and one.isspace():
            break
        else:
            value += one
        at += 1
    if quoted:
        raise ValueError("a quote of the connection string is not closed")
    return value, text[at:]
