"""What a process asks of its machine, answered by a world: the time, chance, and how long a disk
takes. While a world runs, the attributes of the modules `time`, `os` and `random` are these.

It stands in for what would make two runs of one seed differ, and for nothing else: sockets, files
and locks are the real ones.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from random import Random
from typing import Any, Final

from dlock import _core, _handle, _keeper, _notices, _search, _session
from dlock.aio import _actors, client

EPOCH_S: Final = 1_700_000_000  # where the wall clocks of a world begin


class Killed(BaseException):
    """The process of a simulated node was killed in the middle of a turn; no code of it goes on."""


class Machine:
    """`own_ns` is what the clock of the running node shows; `wall_step_s` by how much the wall
    clocks of the world have been set. `on_disk` is called at each wait for a disk."""

    def __init__(self, seed: int) -> None:
        self.own_ns = 1
        self.wall_step_s = 0.0
        self.on_disk: Callable[[str], None] = _nothing
        self._seed = seed
        self._chance = Random(f"{seed}/urandom")
        self._kept: list[tuple[Any, str, Any]] = []

    def set_clock(self, own_ns: int) -> None:
        """The clock of the node whose turn it is."""
        self.own_ns = own_ns
        _core.set_clock(own_ns)

    def random_bytes(self, count: int) -> bytes:
        """Instead of os.urandom."""
        return self._chance.randbytes(count)

    def install(self) -> None:
        """From now on, until `remove`."""
        random.seed(self._seed)
        _keeper.by_hand()
        _notices.by_hand()
        _notices.deliver()  # to nobody: what other worlds have left
        _search._searches.clear()
        for module, name in ((_session, "_numbers"), (_handle, "_serials"), (_actors, "_numbers")):
            self._replace(module, name, itertools.count(1))
        self._replace(client, "client_info", _client_info)
        self._replace(time, "monotonic", lambda: self.own_ns / 1e9)
        self._replace(time, "monotonic_ns", lambda: self.own_ns)
        self._replace(time, "time", lambda: EPOCH_S + self.wall_step_s + self.own_ns / 1e9)
        self._replace(time, "sleep", _no_sleep)
        self._replace(os, "urandom", self.random_bytes)
        for name in ("fsync", "link", "rename", "unlink", "write"):
            self._replace(os, name, self._disk(name, getattr(os, name)))

    def _disk(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        if name == "fsync":
            return lambda _fd: self.on_disk(name)  # the files lie in memory

        def slow(*arguments: Any, **keywords: Any) -> Any:
            self.on_disk(name)
            return call(*arguments, **keywords)

        return slow

    def _replace(self, module: Any, name: str, value: Any) -> None:
        self._kept.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def remove(self) -> None:
        """The real ones again."""
        for module, name, value in reversed(self._kept):
            setattr(module, name, value)
        self._kept.clear()
        _core.set_clock(0)
        # Clients of processes that were killed have let go of nothing.
        _keeper._keeper.users.clear()
        _notices._notices.listeners.clear()
        _notices._notices.pulses.clear()
        _keeper.by_hand(False)
        _notices.by_hand(False)


def _nothing(_what: str) -> None:
    pass


def _no_sleep(_seconds: float) -> None:
    raise AssertionError("code under simulation wants to sleep: its seam is missing")


def _client_info(name: str | None = None) -> dict[str, str | int]:
    """Who a client says it is: the same in every run, since its length is that of a message."""
    return {"host": "sim", "pid": 1, "user": "sim", "program": name or "sim"}
