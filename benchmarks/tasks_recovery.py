"""Tasks of a worker whose primary dies: clients of the Python API that come back by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.task import WrongAnswerError, say, wait_for_go
from benchmarks.tasks_api import LOCKS_A_MULTI
from dlock._core import DLK_COUNTER_BITS

LOOK_S: Final = 0.005


def recovery_holders(host: str, port: int, wait: str, clients: int, locks: int, ttl: float,
                     limit: float, name: str) -> dict[str, Any]:
    """So many clients that hold so many locks between them. On the word go, the primary is dead;
    when was the last hold confirmed by the new one, and how many were lost?

    A hold that no new primary has confirmed is good for `ttl` seconds from the last answer of the
    dead one, at most; one that is good for longer has been confirmed."""
    import dlock

    told: list[object] = []
    opened = [dlock.connect(f"{host}:{port}", wait=wait, timeout=limit, on_lost=told.append)
              for _ in range(clients)]
    shares = [range(number, locks, clients) for number in range(clients)]
    held = [[client.lock(f"{name}/{one}") for one in share]
            for client, share in zip(opened, shares, strict=True)]
    for client, some in zip(opened, held, strict=True):
        for first in range(0, len(some), LOCKS_A_MULTI):
            client.multi(some[first:first + LOCKS_A_MULTI]).acquire()
    tokens = [one.token for some in held for one in some]
    wait_for_go("ready")
    clock, cpu_s = time.monotonic, time.process_time()
    former_s = clock() + ttl
    deadline = clock() + limit
    for one in (one for some in held for one in some):
        while clock() + one.remaining <= former_s and not told and clock() < deadline:
            time.sleep(LOOK_S)
    confirmed_s, cpu_s = clock(), time.process_time() - cpu_s
    wait_for_go("done")
    everything = [one for some in held for one in some]
    lost = sum(not one.held or one.token != token
               for one, token in zip(everything, tokens, strict=True))
    for client in opened:
        client.close()
    return {"confirmed_s": confirmed_s, "cpu_s": cpu_s, "lost": max(lost, len(told))}


def failover_client(host: str, port: int, wait: str, name: str) -> dict[str, Any]:
    """One client that takes and gives back one lock, over and over; when was it first granted by
    another primary than the one that it began with? A hold that is lost meanwhile is an error."""
    import dlock

    with dlock.connect(f"{host}:{port}", wait=wait) as client:
        lock = client.lock(name)
        with lock:
            epoch = lock.token >> DLK_COUNTER_BITS
        wait_for_go("ready")
        say("warm")
        while True:
            with lock:
                granted_s = time.monotonic()
                now_epoch = lock.token >> DLK_COUNTER_BITS
            if now_epoch != epoch:
                break
        if now_epoch < epoch:
            raise WrongAnswerError(f"a token of epoch {now_epoch} after one of {epoch}")
        wait_for_go("done")
    return {"granted_s": granted_s}


TASKS: Final[tuple[Callable[..., dict[str, Any]], ...]] = (recovery_holders, failover_client)
