"""The doors that `dlock serve` starts beside its primary, watches, and ends with it.

Each is `python -m dlock door ...` of this interpreter, a process of its own: it would share the
interpreter lock with the heartbeats otherwise. This file knows no door, only how processes live.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

PR_SET_PDEATHSIG: Final = 1
EXIT_ORPHAN: Final = 1


def end_with(parent: int) -> None:
    """In the door: the kernel kills this process when its parent ends, however that ends. Ends at
    once if it is too late for that."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHAN)
