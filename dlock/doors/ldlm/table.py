"""The locks of a door as LDLM counts them: names with their size, keys, timers, idle names.

Pure: no sockets, no clock (now is an argument, in seconds of one monotonic clock), nothing is asked
of dlock. What is really held is for `dlock.doors.ldlm.service`; this file says which key holds what
until when, and which refusal a call meets.

A name, with its size, is made by the first call that asks for it. It goes when it has been unlocked
and unused for longer than the collection's least idle time, or at once if dlock has it as another
kind.

A key is over when its timer is, whether or not anybody has looked at the timer yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from dlock.doors.ldlm.problems import NO_SUCH_LOCK, SIZE_MISMATCH, WRONG_KEY, Problem

K = TypeVar("K")


class Held(Generic[K]):
    """One key of a lock. `deadline_s`: when its timer is over; None: it has none. `hold`, `session`
    and `timer` are the service's."""

    __slots__ = ("deadline_s", "entry", "hold", "key", "session", "stored", "timer")

    def __init__(self, entry: Entry[K], key: str, deadline_s: float | None) -> None:
        self.entry = entry
        self.key = key
        self.deadline_s = deadline_s
        self.hold: Any = None
        self.session: Any = None
        self.timer: Any = None
        self.stored = False

    @property
    def name(self) -> str:
        """Of the lock."""
        return self.entry.name

    def over(self, now_s: float) -> bool:
        """Has its timer ended?"""
        return self.deadline_s is not None and self.deadline_s <= now_s


class Entry(Generic[K]):
    """One name: its size, its keys, and how many ask for it now. `lock`: what dlock calls it."""

    __slots__ = ("asking", "keys", "lock", "name", "size", "used_s")

    def __init__(self, name: str, size: int, lock: K, now_s: float) -> None:
        self.name = name
        self.size = size
        self.lock = lock
        self.keys: dict[str, Held[K]] = {}
        self.asking = 0
        self.used_s = now_s

    @property
    def idle(self) -> bool:
        """Neither held nor asked for."""
        return not self.keys and not self.asking

    @property
    def full(self) -> bool:
        """Has it given out as many keys as it has?"""
        return len(self.keys) >= self.size

    def lapsed(self, now_s: float) -> list[Held[K]]:
        """The keys whose timers are over, and that nobody has taken away yet."""
        return [held for held in self.keys.values() if held.over(now_s)]


class Table(Generic[K]):
    """All names of a door. `make` gives what dlock calls a name of this size."""

    def __init__(self, make: Callable[[str, int], K]) -> None:
        self._make = make
        self._entries: dict[str, Entry[K]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def held(self) -> Iterator[Held[K]]:
        """All keys, name by name, in the order in which they were given out."""
        for entry in self._entries.values():
            yield from entry.keys.values()

    def entry(self, name: str, size: int, now_s: float) -> Entry[K] | Problem:
        """The name, made if there is none; its size is that of whoever asked first."""
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = Entry(name, size, self._make(name, size), now_s)
        elif entry.size != size:
            return SIZE_MISMATCH
        entry.used_s = now_s
        return entry

    def give(self, entry: Entry[K], key: str, deadline_s: float | None, now_s: float) -> Held[K]:
        """A key for somebody who has got the lock."""
        assert self._entries.get(entry.name) is entry, "a name that is asked for does not go"
        held = entry.keys[key] = Held(entry, key, deadline_s)
        entry.used_s = now_s
        return held

    def find(self, name: str, key: str, now_s: float) -> Held[K] | Problem:
        """The holder with this key. One whose timer is over is none, though it stays in the table
        until somebody takes it away (`Entry.lapsed`)."""
        entry = self._entries.get(name)
        if entry is None:
            return NO_SUCH_LOCK
        entry.used_s = now_s
        held = entry.keys.get(key)
        if held is None or held.over(now_s):
            return WRONG_KEY
        return held

    def get(self, name: str) -> Entry[K] | None:
        """The name, if there is one."""
        return self._entries.get(name)

    def newest(self, name: str) -> Held[K] | None:
        """The key of this name that was given out last."""
        entry = self._entries.get(name)
        return next(reversed(entry.keys.values()), None) if entry is not None else None

    @staticmethod
    def take(held: Held[K], now_s: float) -> bool:
        """Takes a key away; False: it was gone already."""
        entry = held.entry
        if entry.keys.get(held.key) is not held:
            return False
        del entry.keys[held.key]
        entry.used_s = now_s
        return True

    def forget(self, entry: Entry[K]) -> bool:
        """Drops a name that is idle; False: it is not."""
        if not entry.idle or self._entries.get(entry.name) is not entry:
            return False
        del self._entries[entry.name]
        return True

    def collect(self, min_idle_s: float, now_s: float) -> list[Entry[K]]:
        """Drops the names that nobody has used for longer than this; returns them."""
        gone = [entry for entry in self._entries.values()
                if entry.idle and now_s - entry.used_s > min_idle_s]
        for entry in gone:
            del self._entries[entry.name]
        return gone
