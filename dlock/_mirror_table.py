"""The mirror's library state: its configuration and the clients of this process.

Only the functions of this file change it, under one lock, which is never held while anything is
asked of a server. A forked child starts with an empty state; a call that names a client of its
parent raises there.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from dlock import _core, _keeper, _mirror_data
from dlock._mirror_client import MirrorClient, Settings

CLIENTS_MAX: Final = _core.DLK_CLIENTS_PER_PROCESS_MAX

# Clients by id. The fast path looks in here without the lock: a dict is safe to read.
clients: Final[dict[int, MirrorClient]] = {}


class _Library:
    """What there is once a process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.settings: Settings | None = None
        self.starting = 0  # clients that are being initialised and have no id yet
        self.registered = False
        # Of the parent, in a forked child: kept, so that no destructor runs; never used.
        self.inherited: dict[int, MirrorClient] = {}


_library: Final = _Library()


def settings() -> Settings | None:
    """The configuration; None before dclient_lib_init and after dclient_lib_deinit."""
    return _library.settings


def open_library(configuration: Settings) -> bool:
    """False if it is open."""
    with _library.lock:
        if _library.settings is not None:
            return False
        _library.settings = configuration
        if not _library.registered:
            _library.registered = True
            os.register_at_fork(after_in_child=_after_fork_in_child)
        return True


def close_library() -> list[MirrorClient]:
    """Closes it and returns the clients that it had, which nobody finds any more."""
    with _library.lock:
        left = list(clients.values())
        clients.clear()
        _library.settings = None
        return left


def reserve_place() -> bool:
    """Takes a place for a client to be; False: this process has as many as it may."""
    with _library.lock:
        if len(clients) + _library.starting >= CLIENTS_MAX:
            return False
        _library.starting += 1
        return True


def fill_place(client: MirrorClient | None) -> bool:
    """Ends what `reserve_place` began, with a client or without. False: the library was closed."""
    with _library.lock:
        _library.starting -= 1
        if client is None or _library.settings is not client.settings:
            return False
        clients[client.id] = client
        _keeper.keep(_library)
        return True


def take_out(client_id: int) -> MirrorClient | None:
    """Removes a client from the table; None if there is none of that id."""
    with _library.lock:
        return clients.pop(client_id, None)


def stop_keeper() -> None:
    """Ends the heartbeat thread, if nobody else needs it; the next client starts it again."""
    _keeper.let_go(_library)


def find(client_id: int) -> MirrorClient | None:
    """The client of that id, removed ones included; RuntimeError if it is the parent process's."""
    client = clients.get(client_id)
    if client is None and client_id in _library.inherited:
        raise RuntimeError(_mirror_data.FORKED_TEXT)
    return client


def is_open(client_id: object = None) -> bool:
    """Whether dclient_lib_init was called; RuntimeError if the client is the parent process's."""
    if _library.settings is not None:
        return True
    if isinstance(client_id, int) and client_id in _library.inherited:
        raise RuntimeError(_mirror_data.FORKED_TEXT)
    return False


def missing(client_id: object) -> bool:
    """True for None, a missing argument; TypeError for anything else that is no int."""
    if client_id is None:
        return True
    if not isinstance(client_id, int):
        raise TypeError(f"client_id must be an int, not {type(client_id).__name__}")
    return False


def _after_fork_in_child() -> None:
    _library.lock = threading.Lock()
    _library.inherited.update(clients)
    _library.settings = None
    _library.starting = 0
    clients.clear()
