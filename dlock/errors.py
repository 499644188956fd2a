"""What the Python API raises. A lock that is taken is an answer, not an error; errors are for locks
that were lost, links that are gone, limits that were met, and misuse.

Every error here is a `DlockError`. Where Python has a name for the same thing, it is that too, so
that `except ConnectionError` or `except ValueError` see it. All of them can be pickled.
"""

from __future__ import annotations

import errno
import os


class DlockError(Exception):
    """The base of all errors of dlock."""


# ---- The link to the server ----------------------------------------------------------------------


class ConnectError(DlockError, ConnectionError):
    """No server answered in time. Nothing is held through this connection."""


class ConnectionLost(ConnectError):
    """The link to the server was lost and did not come back in time.

    What was asked may or may not have been done; a lock that was asked for is given back when the
    link returns. Locks that were held are SUSPENDED until then: act as if they were gone.
    """


class ClientClosed(DlockError, RuntimeError):
    """The client was closed. Make a new one with `dlock.connect`."""


class Superseded(DlockError, RuntimeError):
    """Another client has taken this one's role: the session has ended, what it held is lost, and
    the client does not come back. Whoever took the role has what was done under it."""

    def __init__(self, role: str = "") -> None:
        super().__init__(role)
        self.role = role

    def __str__(self) -> str:
        return (f"another client has taken the role {self.role!r} of this one, and with that ended "
                f"its session: what it held is lost. If it was not meant to be replaced, look who "
                f"has the role (`dlock top --once`)")


class WrongLoop(DlockError, RuntimeError):
    """An asyncio client is used in another event loop or thread than the one that connected it."""


class ForkedError(DlockError, RuntimeError):
    """The client belongs to the parent process. After a fork the child connects by itself."""

    def __init__(self, text: str = "this dlock client belongs to the parent process; after a fork "
                                   "the child must call dlock.connect itself") -> None:
        super().__init__(text)


class ServerFull(DlockError):
    """A table of the server is full. Its operator can raise the limit that the text names."""


class StoreError(DlockError, OSError):
    """The primary's durable store did not do what was asked. `errno` says why: ENOSPC, no room on
    its disk; EIO, its disk failed; ENOMEM; ECOMM, nothing durable is served there (no state
    directory, not the last one's, a damaged file), or the outcome is not known. In all cases but
    ECOMM it was certainly not done. The primary's log has the details."""

    def __init__(self, error: int, text: str = "") -> None:
        super().__init__(error, text or _store_text(error))


def _store_text(error: int) -> str:
    if error == errno.ECOMM:
        return "the primary serves nothing durable, or could not say what came of it; see its log"
    return f"the primary's durable store: {os.strerror(error)}"


# ---- Durable locks -------------------------------------------------------------------------------


class AlreadyLocked(DlockError, FileExistsError):
    """Somebody owns this durable lock already, perhaps the caller: it is not reentrant."""


class NotLocked(DlockError, OSError):
    """Nobody owns this durable lock."""


class OtherOwner(DlockError, PermissionError):
    """Another one owns this durable lock."""


# ---- Locks ---------------------------------------------------------------------------------------


class LockLost(DlockError):
    """The server no longer knows the hold, or can no longer be asked: somebody else may have the
    lock. What was done under it since may have met another's work; only the token tells.

    `name`: the lock. `token`: of the hold that was lost; 0: not known.
    """

    _why = "is lost: its lease or session has ended, and somebody else may hold it now"

    def __init__(self, name: str | bytes, token: int = 0) -> None:
        super().__init__(name, token)
        self.name = name
        self.token = token

    def __str__(self) -> str:
        return f"the hold on {self.name!r} (token {self.token}) {self._why}"


class Broken(LockLost):
    """An operator took the lock away (`dlock break`)."""

    _why = "was broken by an operator"


class Deadlock(DlockError):
    """Waiting would never end: those who are in the way wait, directly or not, for what the caller
    holds. Release something and try again. `cycle`: who waits for which lock, as far as known."""

    def __init__(self, cycle: object = None) -> None:
        super().__init__(cycle)
        self.cycle = cycle

    def __str__(self) -> str:
        shown = f": {self.cycle}" if self.cycle else ""
        return f"waiting for this lock would close a cycle of waits{shown}"


class NotHeld(DlockError, RuntimeError):
    """Release or use of a lock that this object does not hold."""


class StaleToken(DlockError):
    """A fencing token that is older than one that was seen already: a late writer."""


class KindMismatch(DlockError, ValueError):
    """A lock of this name exists, and is of another kind or size."""


class LeaseTooLong(DlockError, ValueError):
    """The lease is longer than the server allows."""


# ---- Objects -------------------------------------------------------------------------------------


class ObjectLost(DlockError):
    """The number was in the memory of a server that has ended, and nobody else has it. Raised once
    for each AtomicInt64 that was made before; the next use begins with what the number is now."""


class OutcomeUnknown(DlockError):
    """The answer to a change of an atomic was lost: it was carried out once or not at all, and
    dlock does not repeat it. Read the value to find out."""
