"""Tasks of a worker with the blocking Python API; the mirror's pair beside it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from benchmarks.task import (
    LEASE_S,
    WARM_UP_SHARE,
    Variant,
    WrongAnswerError,
    in_turn,
    resident_bytes,
    say,
    wait_for_go,
)

# Names that are used before the memory is looked at: more than a client keeps.
SETTLED_NAMES: Final = 4096
LOCKS_A_MULTI: Final = 500
# How long processes do the same before they all do the next thing.
TOGETHER_S: Final = 0.05


@contextlib.contextmanager
def mirror_pair(host: str, port: int, wait: str, name: str) -> Iterator[Callable[[], None]]:
    """dclient.trylock and dclient.unlock of one lock."""
    from dlock import dclient
    from dlock.types import ClientCfg, DlockType, LockDesc, LockOp, LockRequest

    dclient.dclient_lib_init(ClientCfg(primary_port=port, wait_mode=wait))
    status, client_id = dclient.client_init(host)
    if status or client_id is None:
        raise WrongAnswerError(f"client_init: {status!r}")
    _, lock_id = dclient.get_lock(client_id, LockDesc(name.encode(), DlockType.ATOMIC))
    request = LockRequest(lock_id or 0, LockOp.LOCK_EXCLUSIVE, LEASE_S)
    take, give = dclient.trylock, dclient.unlock

    def once() -> None:
        status, _ = take(client_id, request)
        if status:
            raise WrongAnswerError(f"lock: {status!r}")
        status, _ = give(client_id, lock_id)
        if status:
            raise WrongAnswerError(f"unlock: {status!r}")

    try:
        yield once
    finally:
        dclient.client_deinit(client_id)
        dclient.dclient_lib_deinit()


def api_pairs(host: str, port: int, wait: str, seconds: float, name: str) -> dict[str, Any]:
    """The mirror's pair, then `with` of each kind of lock object, in turn, and the mirror's again:
    what two measurements of the same differ by."""
    import dlock

    with (mirror_pair(host, port, wait, f"{name}/mirror") as mirror,
          dlock.connect(f"{host}:{port}", wait=wait) as client):
        kept = client.lock(f"{name}/kept")

        def with_lock() -> None:
            with client.lock(name):
                pass

        def with_kept() -> None:
            with kept:
                pass

        def with_lease() -> None:
            with client.lock(f"{name}/lease", lease=LEASE_S):
                pass

        def with_read() -> None:
            with client.rwlock(f"{name}/rw").read():
                pass

        def with_fair() -> None:
            with client.fair_lock(f"{name}/fair"):
                pass

        def with_semaphore() -> None:
            with client.semaphore(f"{name}/semaphore", 4):
                pass

        return in_turn([
            Variant("mirror", mirror), Variant("lock", with_lock), Variant("kept", with_kept),
            Variant("lease", with_lease), Variant("read", with_read), Variant("fair", with_fair),
            Variant("semaphore", with_semaphore), Variant("mirror again", mirror),
        ], seconds)


def api_nested(host: str, port: int, wait: str, seconds: float, name: str) -> dict[str, Any]:
    """A free lock, taken by a thread that holds nothing, and by one that holds another: then the
    server may look for a cycle of waits, unless it is told not to."""
    import dlock

    with dlock.connect(f"{host}:{port}", wait=wait) as client:
        other = client.lock(f"{name}/other")
        checked, unchecked = client.lock(name), client.lock(name, deadlock=False)

        def with_checked() -> None:
            with checked:
                pass

        def with_unchecked() -> None:
            with unchecked:
                pass

        return in_turn([
            Variant("alone", with_checked), Variant("checked", with_checked, lambda: other),
            Variant("unchecked", with_unchecked, lambda: other),
        ], seconds)


def api_contended(host: str, port: int, wait: str, seconds: float, name: str,
                  own: str) -> dict[str, Any]:
    """A lock that others want as well, taken by a thread that holds another of its own: with the
    check and without, in turns that all processes change at the same time. Pairs a second."""
    import dlock

    with (dlock.connect(f"{host}:{port}", wait=wait) as client, client.lock(own)):
        ways = client.lock(name, deadlock=False), client.lock(name)
        counts = [0, 0]
        clock = time.monotonic  # the same for all processes

        def until(end: float) -> None:
            now = clock()
            while now < end:
                way = int(now / TOGETHER_S) & 1
                with ways[way]:
                    pass
                counts[way] += 1
                now = clock()

        wait_for_go("ready")
        until(clock() + seconds * WARM_UP_SHARE)
        say("warm")
        start = math.ceil(clock() / TOGETHER_S) * TOGETHER_S
        until(start)
        counts[:] = 0, 0
        turns = 2 * max(round(seconds / TOGETHER_S / 2), 1)
        until(start + turns * TOGETHER_S)
        wait_for_go("done")
        return {way: count / (turns / 2 * TOGETHER_S)
                for way, count in zip(("unchecked", "checked"), counts, strict=True)}


class CountedLink:
    """A control link that counts the exchanges on it."""

    def __init__(self, link: Any) -> None:
        self._link = link
        self.exchanges = 0

    def exchange(self, *arguments: Any) -> Any:
        """Counted."""
        self.exchanges += 1
        return self._link.exchange(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


def api_first_use(host: str, port: int, wait: str, seconds: float, name: str) -> dict[str, Any]:
    """A lock whose name is known, one whose name is new each time, and round trips on the control
    plane: a heartbeat, and a bare request for a new name; `apart`: such a request and then a lock
    whose name is known."""
    import dlock
    from benchmarks.processes import Address
    from benchmarks.sessions import TIMEOUT_S, Session
    from dlock.control.messages import Heartbeat

    session = Session(Address(host, port, 0))
    numbers = itertools.count()
    with dlock.connect(f"{host}:{port}", wait=wait) as client:
        link = client._session.link = CountedLink(client._session.link)
        used = 0

        def known() -> None:
            with client.lock(name):
                pass

        def new() -> None:
            nonlocal used
            used += 1
            with client.lock(f"{name}/{used}"):
                pass

        def heartbeat() -> None:
            if session.link.request(Heartbeat(), TIMEOUT_S).status:
                raise WrongAnswerError("heartbeat")

        def get() -> None:
            session.get_locks([f"{name}/bare/{next(numbers)}"], "atomic")

        def apart() -> None:
            get()
            known()

        known()
        link.exchanges = 0
        found = in_turn([Variant("known", known), Variant("new", new),
                         Variant("apart", apart), Variant("heartbeat", heartbeat),
                         Variant("get", get)], seconds)
        found["exchanges_a_name"] = link.exchanges / used
    session.close()
    return found


def api_names(host: str, port: int, wait: str, pid: int, names: int, name: str) -> dict[str, Any]:
    """So many names, each used once; what client and server (`pid`) have in memory before and
    after, the names known in the end."""
    import dlock

    settled = min(SETTLED_NAMES, names // 2)
    wait_for_go("ready")
    with dlock.connect(f"{host}:{port}", wait=wait) as client:

        def use(start: int, end: int) -> float:
            begin = time.perf_counter()
            for number in range(start, end):
                with client.lock(f"{name}/{number}"):
                    pass
            gc.collect()
            return time.perf_counter() - begin

        use(0, settled)
        client_before, server_before = resident_bytes(), resident_bytes(pid)
        say("warm")
        cpu = time.process_time()
        elapsed = use(settled, names)
        cpu = time.process_time() - cpu
        client_after, server_after = resident_bytes(), resident_bytes(pid)
        wait_for_go("done")
        return {
            "names": names - settled, "elapsed_s": elapsed, "cpu_s": cpu,
            "known": len(client._names), "got": client.stats()["locks"],
            "client_bytes": client_after, "client_grown": client_after - client_before,
            "server_bytes": server_after, "server_grown": server_after - server_before,
        }


def api_renewal(host: str, port: int, wait: str, holds: int, lease: float,
                seconds: float) -> dict[str, Any]:
    """Holds with a lease that is renewed: what this process burns for that while it sleeps, and how
    many requests the server has had of it."""
    import dlock

    wait_for_go("ready")
    with dlock.connect(f"{host}:{port}", wait=wait) as client:
        locks = [client.lock(f"renewed/{number}", lease=lease) for number in range(holds)]
        for first in range(0, holds, LOCKS_A_MULTI):
            client.multi(locks[first:first + LOCKS_A_MULTI]).acquire()
        time.sleep(lease / 2)  # Until the renewals have found their pace.
        say("warm")
        requests = client.stats()["REQUESTS"]
        start, cpu = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
        requests = client.stats()["REQUESTS"] - requests
        wait_for_go("done")
        lost = sum(not one.held for one in locks)
        if lost:
            raise WrongAnswerError(f"{lost} of {holds} holds were lost")
        for one in locks:
            one.release()
        return {"elapsed_s": elapsed, "cpu_s": cpu, "requests": requests}


TASKS: Final[tuple[Callable[..., dict[str, Any]], ...]] = (
    api_pairs, api_nested, api_contended, api_first_use, api_names, api_renewal,
)
