"""The Python API for asyncio: the same names as in `dlock`, with `await` where something is asked.

No wait has a thread, a wait that is cancelled leaves nothing behind, and neither does a cancelled
release. `connect` is where to begin:

    async with dlock.aio.connect("host:port") as client:
        async with client.lock("name"):
            ...
"""

from dlock._calls import FOREVER
from dlock.aio import keys
from dlock.aio.atomic import AtomicInt64
from dlock.aio.client import Client, connect
from dlock.aio.kinds import ReadLock, RWLock, Semaphore, WriteLock
from dlock.aio.locks import FairLock, Lock
from dlock.aio.multi import Multi
from dlock.aio.owner import Asking, Hold, Owner

__all__ = [
    "FOREVER",
    "Asking",
    "AtomicInt64",
    "Client",
    "FairLock",
    "Hold",
    "Lock",
    "Multi",
    "Owner",
    "RWLock",
    "ReadLock",
    "Semaphore",
    "WriteLock",
    "connect",
    "keys",
]
