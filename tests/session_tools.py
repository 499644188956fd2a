"""What the tests of sessions share: a session opened by hand, and a driver of its generators."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from dlock._calls import AGAIN, Outcome, judge_acquire, judge_release, look
from dlock._core import lib
from dlock._handle import Handle, Key
from dlock._session import Session, Steps
from dlock.client import Client
from dlock.control.link import ControlLink
from dlock.control.messages import ClientInit
from dlock.server import Server
from dlock.types import DlockStatus

T = TypeVar("T")

TIMEOUT_S = 20.0
ATOMIC, RW, FAIR, SEMAPHORE = range(4)


def until(condition: Callable[[], bool], seconds: float = TIMEOUT_S) -> None:
    """Waits for what must come true; how soon is not asserted."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def key(name: str, kind: int = ATOMIC, size: int = 1) -> Key:
    return name.encode(), kind, size


def ended(handle: Handle, call: Any) -> int:
    """Makes a call and waits for its end; the core comes back from a wait now and then."""
    status: int = lib.dlk_client_call(handle.client, call)
    while status == lib.DLK_STATUS_PENDING:
        status = lib.dlk_client_wait(handle.client, call)
    return status


class ByHand:
    """A session and its control link. `exchanges`: what has been asked, an item a round trip."""

    def __init__(self, server: Server) -> None:
        self.link = ControlLink.connect(server.host, server.port, TIMEOUT_S)
        self.exchanges: list[list[Any]] = []
        self.session = Session(lib.DLK_WAIT_BLOCK)
        welcome = self.link.request(ClientInit(1, 1, {}), TIMEOUT_S)
        self.session.welcome(welcome)
        assert self.session.attach(self.link.peer, welcome, TIMEOUT_S) == DlockStatus.SUCCESS

    def drive(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                assert isinstance(step, list)
                self.exchanges.append(step)
                step = steps.send(self.link.exchange(step, TIMEOUT_S))
        except StopIteration as end:
            result: T = end.value
            return result

    def take(self, wanted: Key, actor: int = 0) -> Handle:
        handle = self.session.names.take(wanted, actor)
        while handle is None:
            (problem,) = self.drive(self.session.resolve([wanted]))
            if problem:
                raise problem
            handle = self.session.names.take(wanted, actor)
        return handle

    def lock(self, handle: Handle) -> int:
        """Tries only."""
        handle.acquire.wait_ms = 0
        return ended(handle, handle.acquire)

    def unlock(self, handle: Handle) -> int:
        return ended(handle, handle.release)

    def close(self) -> None:
        self.session.end()
        self.link.close()


# ---- A client of the Python API, without lock objects --------------------------------------------


def acquire(client: Client, wanted: Key, actor: int = 0, seconds: float = TIMEOUT_S) -> Handle:
    """Gets a lock in the way in which lock objects do, over whatever happens to links."""
    until_s = time.monotonic() + seconds
    handle = client._take(wanted, actor, until_s)
    while True:
        status = ended(handle, handle.acquire)
        outcome = judge_acquire(status, wanted[0], 0)
        if outcome is Outcome.DONE:
            return handle
        assert outcome in AGAIN, outcome
        handle.abandon()
        client._await(outcome, handle.name, until_s)
        handle = client._take(wanted, actor, until_s)


def release(handle: Handle) -> Outcome:
    """Gives it back; what became of that."""
    status = ended(handle, handle.release)
    outcome = judge_release(status, handle.name.key[0])
    if outcome is Outcome.DONE:
        handle.name.table.give_back(handle)
    else:
        handle.abandon()
    return outcome


def confirmed(handle: Handle) -> bool:
    """Is it held, by this client's clock?"""
    return look(handle).left_ms > 0
