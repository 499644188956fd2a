"""The heartbeat thread of this process: one for all clients, the mirror's and the Python API's. It
runs in C while anybody needs it; what it does is in docs/client.md. A program that takes its turns
itself, client by client, says so by `by_hand`.
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
        self.by_hand = False
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
        _start()


def let_go(user: object) -> None:
    """This user needs it no longer; the last one ends it."""
    with _keeper.lock:
        _keeper.users.discard(user)
        thread = None if _keeper.users else _take_thread()
        if thread is not None:
            _end(thread)


def by_hand(wanted: bool = True) -> None:
    """From now on no thread is started, and one that runs ends: the program calls
    `dlk_client_keep` for each client, when `dlk_client_keep_at_ns` has come or what is to be
    watched is readable. False: the thread is back."""
    with _keeper.lock:
        _keeper.by_hand = wanted
        thread = _take_thread() if wanted else None
        if thread is not None:
            _end(thread)
        elif _keeper.users:
            _start()


def _start() -> None:
    if _keeper.thread is None and not _keeper.by_hand:
        # Daemon: a program that forgets its clients still ends.
        thread = threading.Thread(target=lib.dlk_keeper_run, name="dlock-keeper", daemon=True)
        thread.start()
        _keeper.thread = thread


def _take_thread() -> threading.Thread | None:
    thread, _keeper.thread = _keeper.thread, None
    return thread


def _end(thread: threading.Thread) -> None:
    lib.dlk_keeper_stop()  # ends one run, the present or the next
    thread.join()


def _stop() -> None:
    """At exit."""
    with _keeper.lock:
        thread = _take_thread()
    if thread is not None:
        _end(thread)


def _after_fork_in_child() -> None:
    _keeper.lock = threading.RLock()
    _keeper.users.clear()
    _keeper.thread = None
