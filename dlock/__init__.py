"""dlock: a lock service for programs that run on many nodes of a cluster.

What it raises is in `dlock.errors`; the mirror of DLock's C API is `dlock.dclient` and
`dlock.dserver`.
"""

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
)
from dlock.fence import FenceGuard

__version__ = "0.1.0"

__all__ = [
    "Broken",
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
    "__version__",
]
