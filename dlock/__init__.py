"""dlock: a lock service for programs that run on many nodes of a cluster.

`dlock.connect` is where to begin. What it raises is in `dlock.errors`; the mirror of DLock's C API
is `dlock.dclient` and `dlock.dserver`.
"""

from dlock.client import Client, connect, shared
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
    OutcomeUnknown,
    ServerFull,
    StaleToken,
    WrongLoop,
)
from dlock.fence import FenceGuard

__version__ = "0.1.0"

__all__ = [
    "Broken",
    "Client",
    "ClientClosed",
    "ConnectError",
    "ConnectionLost",
    "Deadlock",
    "DlockError",
    "FenceGuard",
    "ForkedError",
    "KindMismatch",
    "LeaseTooLong",
    "LockLost",
    "NotHeld",
    "OutcomeUnknown",
    "ServerFull",
    "StaleToken",
    "WrongLoop",
    "__version__",
    "connect",
    "shared",
]
