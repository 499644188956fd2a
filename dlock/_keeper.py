"""The heartbeat thread of this process: one for all clients, the mirror's and the Python API's. It
runs in C while anybody needs it; what it does is in docs/client.md.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import Final

from dlock._core import lib


class _Keeper:
    """What there is once a process."""

    def __init__(self) -> None:
        # Re-entrant: a client that is garbage-collected meanwhile lets go in the same thread.
        self.lock = threading.RLock()
        self.users: set[object] = set()
        self.thread: threading.Thread | None = None
        self.registered = False


_keeper: Final = _Keeper()


def keep(user: object) -> None:
    """The thread runs from now on until this user, and every other one, lets it go."""
    with _keeper.lock:
        if not _keeper.registered:
            _keeper.registered = True
            os.register_at_fork(after_in_child=_after_fork_in_child)
            atexit.register(_stop)
        _keeper.users.add(user)
        if _keeper.thread is None:
            # Daemon: a program that forgets its clients still ends.
            thread = threading.Thread(target=lib.dlk_keeper_run, name="dlock-keeper", daemon=True)
            thread.start()
            _keeper.thread = thread


def let_go(user: object) -> None:
    """This user needs it no longer; the last one ends it."""
    with _keeper.lock:
        _keeper.users.discard(user)
        thread = None if _keeper.users else _keeper.thread
        if thread is not None:
            _keeper.thread = None
            lib.dlk_keeper_stop()  # ends one run, the present or the next
            thread.join()


def _stop() -> None:
    """At exit."""
    with _keeper.lock:
        thread, _keeper.thread = _keeper.thread, None
    if thread is not None:
        lib.dlk_keeper_stop()
        thread.join()


def _after_fork_in_child() -> None:
    _keeper.lock = threading.RLock()
    _keeper.users.clear()
    _keeper.thread = None
