"""A client of the Python API and, below it, the client of the C library that it uses: both can be
measured over one and the same link, so that the difference between them is Python's."""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, Final

import dlock
from benchmarks import native
from benchmarks.processes import Address
from benchmarks.task import expect
from dlock import _core
from dlock._core import lib
from dlock.control.messages import GetLocks, LockSpec
from dlock.types import DlockStatus

TIMEOUT_S: Final = 30.0
SETTLE_CALLS: Final = 10  # at the beginning of a measurement, not counted


class Linked:
    """One client with a lock and a number of its own. `pointer`: its struct dlk_client; `lock_id`:
    a lock that it has got there, with owner 0; `object_id`: of the number."""

    def __init__(self, server: Address, name: str, wait: str, transport: str,
                 device: str | None = None) -> None:
        self.client = dlock.connect(f"{server.host}:{server.port}", wait=wait, timeout=TIMEOUT_S,
                                    transport=transport, device=device)
        if self.client.transport.kind != transport:
            self.client.close()
            raise RuntimeError(f"the client goes over {self.client.transport}")
        session = self.client._session
        self.pointer: Any = session.client
        self.lock = self.client.lock(f"{name}/lock")
        self.number = self.client.atomic(f"{name}/number", 0)
        self.number.get()
        _epoch, self.object_id = session.objects[f"{name}/number".encode()]
        spec = LockSpec(f"{name}/bare".encode(), _core.DLK_KIND_ATOMIC)
        (got,) = session.link.request(GetLocks((spec,)), TIMEOUT_S).results
        expect(got.status, DlockStatus.SUCCESS)
        self.lock_id: int = got.lock_id
        lib.dlk_client_add_lock(self.pointer, got.lock_id, got.slot, _core.DLK_KIND_ATOMIC, 0)

    def in_python(self, seconds: float) -> dict[str, float]:
        """Median µs of each operation, called from Python one after the other."""
        number = self.number
        found = dict(zip(("lock", "unlock"), _medians_us(
            seconds, self.lock.acquire, self.lock.release), strict=True))
        (found["faa"],) = _medians_us(seconds, lambda: number.fetch_add(1))
        value = number.get()

        def swap() -> None:
            nonlocal value
            swapped, value = number.compare_exchange(value, value + 1)
            expect(swapped, True)
            value += 1

        (found["cas"],) = _medians_us(seconds, swap)
        (found["read"],) = _medians_us(seconds, number.get)
        return found

    def close(self) -> None:
        """Leaves."""
        self.client.close()


def _medians_us(seconds: float, *calls: Callable[[], object]) -> list[float]:
    """These in turn, until the time is over."""
    clock = time.perf_counter_ns
    durations = [array("Q") for _ in calls]
    timed = list(zip(calls, durations, strict=True))
    for _ in range(SETTLE_CALLS):
        for call in calls:
            call()
    before = clock()
    end = before + int(seconds * 1e9)
    while before < end:
        for call, took in timed:
            call()
            after = clock()
            took.append(after - before)
            before = after
    return [median(took) / 1000 for took in durations]


@contextlib.contextmanager
def linked(server: Address, count: int, name: str, wait: str, transport: str,
           device: str | None = None) -> Iterator[list[Linked]]:
    """So many clients, which leave in the end."""
    with contextlib.ExitStack() as stack:
        clients = []
        for index in range(count):
            clients.append(Linked(server, f"{name}/{index}", wait, transport, device))
            stack.callback(clients[-1].close)
        yield clients


def in_c(clients: list[Linked], work: str, seconds: float) -> native.Called:
    """One operation of the C library after the other, on each of these; `work` of CALL_WORKS."""
    ids = [one.lock_id if work == "lock" else one.object_id for one in clients]
    values = None if work == "lock" else [one.number.get() for one in clients]
    return native.calls(work, [one.pointer for one in clients], ids, seconds, values=values)
