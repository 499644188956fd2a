"""dlock: a lock service for programs that run on many nodes of a cluster.

`dlock.connect` is where to begin. What it raises is in `dlock.errors`; the mirror of DLock's C API
is `dlock.dclient` and `dlock.dserver`.
"""

from dlock.atomic import AtomicInt64
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
    ObjectLost,
    OutcomeUnknown,
    ServerFull,
    StaleToken,
    WrongLoop,
)
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
    "WrongLoop",
    "__version__",
    "connect",
    "shared",
]
