"""What holds for all doors alike when something dies: the primary behind a door, the door itself;
and how doors share a namespace."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cli_tools import dlock
from door_clients import CLIENTS, WAITING, DoorClient, GoneError, LdlmRest, door_for
from door_tools import Door, beside
from failover_tools import PATIENCE_S, until

CONNECTIONS = 4
NAMES = ("a", "b", "c")
ROUNDS_BEFORE, ROUNDS_AFTER = 10, 10  # of each connection, around the kill
LIMIT_S = 120.0


@dataclass
class Believed:
    """A lock that a client knew to have: from the answer that gave it until the request that gave
    it back. `kept`: the answer to that was that it had been ours."""

    name: str
    who: int
    since: float
    until: float
    kept: bool


@dataclass
class Load:
    """One connection that takes and gives back locks, by a seed, until it is told to stop."""

    who: int
    client: DoorClient
    random: Random
    beliefs: list[Believed] = field(default_factory=list)
    rounds: int = 0
    problem: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                self._once(self.random.choice(NAMES))
                self.rounds += 1
        except BaseException as problem:
            self.problem = problem

    def _once(self, name: str) -> None:
        if not self.client.try_lock(name):
            time.sleep(self.random.random() * 0.005)
            return
        since = time.monotonic()
        time.sleep(self.random.random() * 0.02)
        ends = time.monotonic()
        kept = self.client.unlock(name)
        self.beliefs.append(Believed(name, self.who, since, ends, kept))


def overlaps(beliefs: list[Believed]) -> list[tuple[Believed, Believed]]:
    """Pairs of beliefs in one lock at one time."""
    found = []
    for name in NAMES:
        ordered = sorted((one for one in beliefs if one.name == name), key=lambda one: one.since)
        for index, first in enumerate(ordered):
            found += [(first, later) for later in ordered[index + 1:]
                      if later.since < first.until]
    return found


def test_the_judge_sees_what_must_not_be() -> None:
    one = Believed("a", 1, 1.0, 2.0, True)
    assert overlaps([one, Believed("a", 2, 2.0, 3.0, True), Believed("b", 2, 1.5, 3.0, True)]) == []
    two = Believed("a", 2, 1.9, 3.0, True)
    assert overlaps([two, one]) == [(one, two)]


@pytest.fixture(params=list(CLIENTS))
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def connect(kind: str) -> Iterator[Callable[[Door], DoorClient]]:
    """Makes clients, which are closed afterwards."""
    made: list[DoorClient] = []

    def connect(door: Door) -> DoorClient:
        made.append(CLIENTS[kind](door))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def under_load(door: Door, connect: Callable[[Door], DoorClient], seed: int,
               fault: Callable[[], None]) -> list[Load]:
    """What connections saw, around a fault in the middle of their work."""
    loads = [Load(who, connect(door), Random(seed + who)) for who in range(CONNECTIONS)]
    stop = threading.Event()
    threads = [threading.Thread(target=load.run, args=(stop,), daemon=True) for load in loads]
    for thread in threads:
        thread.start()

    def done(more: Callable[[Load], int]) -> bool:
        return all(load.problem is not None or load.rounds >= more(load) for load in loads)

    until(lambda: done(lambda _: ROUNDS_BEFORE), LIMIT_S)
    fault()
    reached = {load.who: load.rounds for load in loads}
    until(lambda: done(lambda load: reached[load.who] + ROUNDS_AFTER), LIMIT_S)
    stop.set()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    return loads


def test_a_primary_that_dies_under_load_is_a_delay(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    """Nobody loses a lock or a connection, and nobody ever has a lock that another one has."""
    with beside(tmp_path) as place:
        door = door_for(kind, place)
        loads = under_load(door, connect, 8, place.primary.restart)
        assert [load.problem for load in loads] == [None] * CONNECTIONS
        beliefs = [one for load in loads for one in load.beliefs]
        assert overlaps(beliefs) == []
        assert all(one.kept for one in beliefs)
        assert "lost_holds" not in door.counters()
        for load in loads:  # everything works afterwards, and nothing was left behind
            assert all(load.client.try_lock(name) and load.client.unlock(name) for name in NAMES)


def test_a_primary_that_dies_twice_while_a_lock_is_held(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    with beside(tmp_path) as place:
        door = door_for(kind, place)
        holder, other = connect(door), connect(door)
        assert holder.try_lock("a")
        for _ in range(2):
            place.primary.restart()
            assert not other.try_lock("a")
        assert holder.unlock("a")
        assert other.try_lock("a")


def test_a_wait_outlives_the_primary(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    if kind not in WAITING:
        pytest.skip("the protocol has no waits")
    with beside(tmp_path) as place, ThreadPoolExecutor(1) as pool:
        door = door_for(kind, place)
        holder, other = connect(door), connect(door)
        assert holder.try_lock("a")
        waiting = pool.submit(other.lock, "a", 50)
        with place.primary.admin() as admin:
            until(lambda: next(admin.locks(f"{door.kind}:a")).waiters == 1)
        place.primary.restart()
        assert holder.unlock("a")
        assert waiting.result(LIMIT_S)
        assert other.unlock("a")


def test_a_wait_ends_in_the_protocols_words_while_there_is_no_primary(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    if kind not in WAITING:
        pytest.skip("the protocol has no waits")
    with beside(tmp_path) as place, ThreadPoolExecutor(1) as pool:
        door = door_for(kind, place)
        holder, other = connect(door), connect(door)
        assert holder.try_lock("a")
        waiting = pool.submit(other.lock, "a", 1)
        place.primary.kill()
        assert waiting.result(LIMIT_S) is False
        place.primary.start()
        assert holder.unlock("a")
        assert other.try_lock("a"), "the wait has left nothing behind"


# ---- The door dies -------------------------------------------------------------------------------

LONG_TTL_S = 600.0  # nothing here may have to wait for the end of a session


def refused(client: DoorClient) -> bool:
    """Has the connection ended, or is what it had unknown?"""
    try:
        return not client.unlock("a")
    except GoneError:
        return True


def test_what_a_killed_door_held_is_free_when_it_is_back(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    with beside(tmp_path, ttl_s=LONG_TTL_S) as place:
        door = door_for(kind, place)
        holder = connect(door)
        assert holder.try_lock("a")
        door.restart()
        other = connect(door)
        assert other.try_lock("a")
        assert refused(holder)
        assert not connect(door).try_lock("a"), "the former holder has given back nothing of it"


def test_a_recovery_does_not_wait_for_a_killed_door_that_is_back(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    with beside(tmp_path, ttl_s=LONG_TTL_S) as place:
        door = door_for(kind, place)
        assert connect(door).try_lock("a")
        door.kill()
        place.primary.restart()
        door.start()
        assert connect(door).try_lock("a")


def test_a_door_that_is_replaced_ends_and_says_why(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    with beside(tmp_path) as place:
        first = door_for(kind, place, name="first")
        holder = connect(first)
        assert holder.try_lock("a")
        second = door_for(kind, place, name="second")
        assert connect(second).try_lock("a")
        assert first.process.wait(PATIENCE_S) == 1
        assert "door ends: " in first.said()
        with pytest.raises(GoneError):
            holder.try_lock("b")
        assert second.process.poll() is None


# ---- Holds that are lost -------------------------------------------------------------------------


def found_out(door: Door, holder: DoorClient, other: DoorClient, count: int = 1) -> None:
    """The hold of "a" was lost: the door says so, to its client by the protocol's means."""
    until(lambda: door.counters().get("lost_holds") == count)
    assert refused(holder)
    until(lambda: other.try_lock("a"))
    assert other.unlock("a")


def test_a_hold_that_an_operator_breaks_is_not_lost_in_silence(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    with beside(tmp_path) as place:
        door = door_for(kind, place)
        holder = connect(door)
        assert holder.try_lock("a")
        with place.primary.admin() as admin:
            assert admin.break_lock(f"{door.kind}:a")
        found_out(door, holder, connect(door))


def test_what_a_door_loses_with_its_session_is_not_lost_in_silence(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    """A door that does not run while a new primary gives it up enters anew, and goes on."""
    with beside(tmp_path) as place:
        door = door_for(kind, place)
        holder, second = connect(door), connect(door)
        assert holder.try_lock("a")
        assert second.try_lock("b")
        door.process.send_signal(signal.SIGSTOP)
        try:
            place.primary.restart()
            with place.primary.admin() as admin:
                until(lambda: admin.recovery().absent)
                admin.evict()
                assert admin.await_ready(PATIENCE_S)
        finally:
            door.process.send_signal(signal.SIGCONT)
        found_out(door, holder, connect(door), 2)
        assert connect(door).try_lock("b")


def test_doors_of_different_namespaces_do_not_meet(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    with beside(tmp_path) as place:
        one = connect(door_for(kind, place, name="one"))
        two = connect(door_for(kind, place, name="two", namespace="two"))
        assert one.try_lock("a")
        assert two.try_lock("a")
        assert one.unlock("a")
        assert two.unlock("a")


# ---- One namespace, several kinds ----------------------------------------------------------------


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, DoorClient]]:
    """A client of each door; all doors have one namespace."""
    with beside(tmp_path_factory.mktemp("common")) as place:
        doors = {kind: door_for(kind, place, namespace="common")
                 for kind in ("glockd", "doubledutch", "ldlm")}
        clients = {kind: make(doors[kind.partition("-")[0]]) for kind, make in CLIENTS.items()}
        yield clients
        for client in clients.values():
            client.close()


@pytest.mark.parametrize("other", list(CLIENTS))
def test_exclusive_locks_in_one_namespace_exclude_each_other(
    common: dict[str, DoorClient], kind: str, other: str
) -> None:
    if kind == other:
        pytest.skip("that is tested with each door")
    name = f"{kind} and {other}"
    holder, waiting = common[kind], common[other]
    assert holder.try_lock(name)
    assert not waiting.try_lock(name)
    assert waiting.try_lock(f"not {name}")
    assert holder.unlock(name)
    assert waiting.try_lock(name)
    assert waiting.unlock(name)
    assert waiting.unlock(f"not {name}")


def test_a_lock_of_another_kind_is_refused_in_each_protocols_words(
    common: dict[str, DoorClient], kind: str
) -> None:
    """Two slots of LDLM's, and a lock for one."""
    ldlm = common["ldlm-rest"]
    assert isinstance(ldlm, LdlmRest)
    name = f"{kind} and slots"
    assert ldlm.slots(name, 2) == ""
    if not kind.startswith("ldlm"):
        assert not common[kind].try_lock(name)
    assert ldlm.slots(name, 3) == "LockSizeMismatch"
    assert ldlm.unlock(name)
    single = f"{kind} alone"
    assert common[kind].try_lock(single)
    assert ldlm.slots(single, 2) == "LockSizeMismatch"
    assert common[kind].unlock(single)


# ---- What an operator sees -----------------------------------------------------------------------


def test_an_operator_sees_the_locks_of_all_doors(
    tmp_path: Path, kind: str, connect: Callable[[Door], DoorClient]
) -> None:
    """With door, client and age; also those whose name does not fit, in words."""
    with beside(tmp_path) as place:
        door = door_for(kind, place, namespace="site")
        client = connect(door)
        long = "long" * 200
        assert client.try_lock("short")
        assert client.try_lock(long)

        def seen() -> list[dict[str, Any]]:
            return dlock("ls", "--json", "site", address=place.primary.place).jsons

        until(lambda: all(one.get("label") for one in seen())
              and any(one.get("text") for one in seen()))
        by_name = {one["name"]: one for one in seen()}
        shown = by_name.pop("site:short")
        (hashed,) = by_name.values()
        assert hashed["name"].startswith("site+long:")
        assert hashed["text"] == f"site:{long}"
        for one in (shown, hashed):
            assert one["role"] == f"door:{door.kind}:site"
            assert one["label"]
            assert one["since_s"] >= 0
