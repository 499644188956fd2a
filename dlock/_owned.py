"""A C client, or whatever else of C is freed with the last reference to it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from dlock._core import ffi, lib


def own(pointer: Any, free: Callable[[Any], None]) -> Any:
    """This pointer, which is freed with its last reference; never in a forked child.

    The garbage collector is not to know of it. It would take it for a part of any cycle of garbage
    that leads to it, and of those it runs all finalizers in an order of its own: a handle's, or a
    coroutine's, would then use what is freed. A part of a cycle it can never be, since it refers to
    nothing.
    """
    owner_pid = os.getpid()

    def free_ours(ours: Any) -> None:
        if os.getpid() == owner_pid:
            free(ours)

    owned = ffi.gc(pointer, free_ours)
    untrack = ctypes.pythonapi.PyObject_GC_UnTrack
    untrack.argtypes, untrack.restype = [ctypes.py_object], None
    untrack(owned)
    return owned


def own_client(pointer: Any) -> Any:
    """This struct dlk_client *, which is freed with its last reference."""
    return own(pointer, lib.dlk_client_free)
