"""What an owner asks for (dlock/aio/owner.py): a name, what kind of lock it is, and how it is to be
held. A key is made once and used as often as one likes; equal keys are the same lock.
"""

from __future__ import annotations

from typing import NamedTuple

from dlock import _calls
from dlock._handle import Key as Lock


class Key(NamedTuple):
    """Made by the functions of this module. `lock`: descriptor, kind and size; `mode`: alone or
    together with others."""

    lock: Lock
    mode: int

    @property
    def descriptor(self) -> bytes:
        """The name of the lock as the server knows it."""
        return self.lock[0]

    @property
    def size(self) -> int:
        """How many may hold it at once; 1 unless it is one of `slots`."""
        return self.lock[2]


def exclusive(name: str | bytes) -> Key:
    """A lock for one holder at a time: the same as `client.lock(name)`. ValueError: the name is
    empty or too long."""
    return Key((_calls.descriptor(name), _calls.ATOMIC, 1), _calls.EXCLUSIVE)


def shared(name: str | bytes) -> Key:
    """A lock that any number hold together: the same as `client.rwlock(name).read()`."""
    return Key((_calls.descriptor(name), _calls.RW, 1), _calls.SHARED)


def slots(name: str | bytes, size: int) -> Key:
    """One of `size` places: the same as `client.semaphore(name, size)`."""
    lock = _calls.descriptor(name), _calls.SEMAPHORE, _calls.semaphore_size(size)
    return Key(lock, _calls.EXCLUSIVE)
