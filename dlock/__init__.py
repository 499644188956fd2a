"""dlock: a lock service for programs that run on many nodes of a cluster.

`dlock.connect` is where to begin. What it raises is in `dlock.errors`; the mirror of DLock's C API
is `dlock.dclient` and `dlock.dserver`.

Errors are here at once; the rest is imported when it is first used. A primary that starts after the
death of another one needs nothing of the client, and its clients wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from dlock.errors import (
    Broken,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    Deadlock,
    DlockError,
    ForkedError,
    KindMismatch,
    LeaseTooLong,
    LockLost,
    NotHeld,
    ObjectLost,
    OutcomeUnknown,
    ServerFull,
    StaleToken,
    Superseded,
    WrongLoop,
)

if TYPE_CHECKING:
    from dlock._transport import Transport
    from dlock.atomic import AtomicInt64
    from dlock.client import Client, connect, shared
    from dlock.fence import FenceGuard
    from dlock.locks import FairLock, Lock
    from dlock.multi import Multi
    from dlock.rwlock import RWLock
    from dlock.semaphore import Semaphore

__version__ = "0.1.0"

__all__ = [
    "AtomicInt64",
    "Broken",
    "Client",
    "ClientClosed",
    "ConnectError",
    "ConnectionLost",
    "Deadlock",
    "DlockError",
    "FairLock",
    "FenceGuard",
    "ForkedError",
    "KindMismatch",
    "LeaseTooLong",
    "Lock",
    "LockLost",
    "Multi",
    "NotHeld",
    "ObjectLost",
    "OutcomeUnknown",
    "RWLock",
    "Semaphore",
    "ServerFull",
    "StaleToken",
    "Superseded",
    "Transport",
    "WrongLoop",
    "__version__",
    "connect",
    "shared",
]

# Names by the module that defines them, and modules that are there without being imported.
_NAMES: Final = {
    "AtomicInt64": "atomic", "Client": "client", "FairLock": "locks", "FenceGuard": "fence",
    "Lock": "locks", "Multi": "multi", "RWLock": "rwlock", "Semaphore": "semaphore",
    "Transport": "_transport", "connect": "client", "shared": "client",
}
_MODULES: Final = frozenset({"address", "admin", "aio", "dclient", "dserver", "server", "types"})


if not TYPE_CHECKING:  # which would take any name for a good one

    def __getattr__(name: str) -> Any:
        """The first use of a name; later ones find it among the globals."""
        if name in _MODULES:
            return importlib.import_module(f"dlock.{name}")
        if name not in _NAMES:
            raise AttributeError(f"module 'dlock' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"dlock.{_NAMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_MODULES})
