"""Many handles on few locks, over kills of the primary: is there an order of all calls, each at a
moment between its begin and its end, that one table would have answered so? Seeded."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from control_client import eventually
from dss_tools import Child, opened

from dlock import dss

ECOMM, EEXIST, ENOLCK, EACCES = -errno.ECOMM, -errno.EEXIST, -errno.ENOLCK, -errno.EACCES
NEVER = float("inf")
THREADS = 5
IDS = 3


class Call(NamedTuple):
    """One call on one lock. Of one whose outcome is not known, `end` is NEVER."""

    begin: float
    end: float
    name: str
    owner: str | None
    told: object


def answer(held: str | None, call: Call) -> tuple[object, str | None]:
    """The law, once more: what is told, and who holds it then."""
    if call.name == "status":
        return (ENOLCK, None) if held is None else (0, held), held
    if call.name == "lock":
        return (0, call.owner) if held is None else (EEXIST, held)
    if held is None:
        return ENOLCK, None
    if call.owner not in (None, held):
        return EACCES, held
    return (0, None) if call.name == "unlock" else (0, held)


def explained(calls: Sequence[Call]) -> bool:
    """Wing and Gong's search: worlds are who holds the lock, and which calls that have begun were
    carried out; calls end in the order of time."""
    worlds: set[tuple[str | None, frozenset[int]]] = {(None, frozenset())}
    open_: set[int] = set()
    moments = sorted([(one.begin, 0, at) for at, one in enumerate(calls)]
                     + [(one.end, 1, at) for at, one in enumerate(calls) if one.end < NEVER])
    for _, ends, at in moments:
        if not ends:
            open_.add(at)
            continue
        worlds = {(held, done - {at}) for held, done in carried_on(calls, worlds, open_)
                  if at in done}
        open_.discard(at)
        if not worlds:
            return False
    return True


def carried_on(
    calls: Sequence[Call], worlds: set[tuple[str | None, frozenset[int]]], open_: set[int]
) -> set[tuple[str | None, frozenset[int]]]:
    """These worlds, and all that open calls can make of them."""
    found, looked = set(worlds), list(worlds)
    while looked:
        held, done = looked.pop()
        for at in open_ - done:
            told, then = answer(held, calls[at])
            world = then, done | {at}
            if calls[at].told in (told, ECOMM, (ECOMM, None)) and world not in found:
                found.add(world)
                looked.append(world)
    return found


class Handle(threading.Thread):
    """Asks at random, and writes down what it saw."""

    def __init__(self, address: str, number: int, seed: int) -> None:
        super().__init__()
        self._handle = opened(address)
        assert self._handle._locks is not None
        self._handle._locks._timeout_s = 60  # on a slow machine a restart may take long
        self._chance = random.Random(f"{seed}/{number}")
        self._owner = f"owner {number % 3}"  # some share one
        self.calls: dict[str, list[Call]] = {}
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            lock_id = f"{self._chance.randrange(IDS)}"
            begin = time.monotonic()
            name, owner, told = self._ask(lock_id)
            end = NEVER if told in (ECOMM, (ECOMM, None)) else time.monotonic()
            self.calls.setdefault(lock_id, []).append(Call(begin, end, name, owner, told))
        dss.dss_fini(self._handle)

    def _ask(self, lock_id: str) -> tuple[str, str | None, object]:
        name = self._chance.choice(["lock", "lock", "unlock", "unlock", "refresh", "status"])
        if name == "status":
            return name, None, dss.dss_lock_status(self._handle, lock_id)[:2]
        owner = None if name == "unlock" and self._chance.random() < 0.2 else self._owner
        asked = {"lock": dss.dss_lock, "unlock": dss.dss_unlock,
                 "refresh": dss.dss_lock_refresh}[name]
        return name, owner, asked(self._handle, lock_id, owner)


def histories(handles: Sequence[Handle]) -> dict[str, list[Call]]:
    return {lock_id: [call for one in handles for call in one.calls.get(lock_id, [])]
            for lock_id in map(str, range(IDS))}


@pytest.mark.parametrize("seed", range(3))
def test_a_history_over_kills_has_an_order(tmp_path: Path, seed: int) -> None:
    primary = Child(tmp_path)
    handles = [Handle(primary.address, number, seed) for number in range(THREADS)]

    def count() -> int:
        return sum(len(calls) for one in handles for calls in list(one.calls.values()))

    chance = random.Random(seed)
    try:
        for one in handles:
            one.start()
        for _ in range(3):
            before = count()
            assert eventually(lambda before=before: count() > before + 100)
            time.sleep(chance.random() / 20)
            primary.kill()
            primary = Child(tmp_path, primary.port)
        before = count()
        assert eventually(lambda: count() > before + 100)
    finally:
        for one in handles:
            one.stopping = True
        for one in handles:
            one.join()
        primary.kill()
    for lock_id, calls in histories(handles).items():
        assert len(calls) > 50
        assert explained(calls), f"no order explains lock {lock_id} (seed {seed})"


# ---- The judge can find faults -------------------------------------------------------------------


def test_the_judge_finds_what_cannot_be() -> None:
    lock = Call(0, 1, "lock", "a", 0)
    assert explained([lock, Call(2, 3, "lock", "b", EEXIST), Call(4, 5, "unlock", "a", 0)])
    assert not explained([lock, Call(2, 3, "lock", "b", 0)])  # held twice
    assert not explained([lock, Call(2, 3, "status", None, (ENOLCK, None))])  # lost
    assert not explained([lock, Call(2, 3, "unlock", "a", 0),
                          Call(4, 5, "status", None, (0, "a"))])  # come back
    assert not explained([Call(0, 1, "lock", "a", EEXIST)])  # its own, told as another's
    unknown = Call(0, NEVER, "lock", "a", ECOMM)
    assert explained([unknown, Call(2, 3, "status", None, (ENOLCK, None)),
                      Call(4, 5, "status", None, (0, "a"))])
    assert not explained([unknown, Call(2, 3, "status", None, (0, "a")),
                          Call(4, 5, "status", None, (ENOLCK, None))])
