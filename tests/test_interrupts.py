"""KeyboardInterrupt at every bytecode of the lock objects: afterwards the object's word and the
server's agree, nothing is left behind, and the next acquisition works."""

from __future__ import annotations

import dis
import functools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from lock_tools import Service, fresh_name, serving, until

import dlock
from dlock.client import Client
from dlock.locks import BaseLock

LIBRARY = str(Path(dlock.__file__).parent) + os.sep


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as one:
        yield one


@functools.cache
def leaves_a_block(code: CodeType) -> frozenset[int]:
    """Where a `with` block has ended and its __exit__ is about to be called. The interpreter
    delivers no signal there, and no program could do anything about it: any `with mutex` of any
    program would stay locked."""
    found: set[int] = set()
    steps = list(dis.get_instructions(code))
    names = [step.opname for step in steps]
    for start in range(len(steps)):
        calls_exit = names[start : start + 3] in (
            ["LOAD_CONST"] * 3,
            ["LOAD_CONST", "DUP_TOP", "DUP_TOP"],
        )
        if not calls_exit or any(one.argval is not None for one in steps[start : start + 1]):
            continue
        first = start
        while names[first - 1] in ("SWAP", "ROT_TWO", "POP_BLOCK", "NOP"):
            first -= 1
        last = start + 3
        while not names[last].startswith("CALL"):
            last += 1
        found.update(step.offset for step in steps[first : last + 1])
    return frozenset(found)


class Interrupter:
    """Runs something and raises KeyboardInterrupt before the bytecode `at` of the library's
    frames. `seen`: how many there were until then. `caught`: the exception, which keeps every
    frame alive that it went through, as in a program that still handles it."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0
        self.caught: KeyboardInterrupt | None = None

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and frame.f_lasti not in leaves_a_block(frame.f_code):
            self.seen += 1
            if self.seen == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace

    def run(self, action: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            action()
        except KeyboardInterrupt as caught:
            self.caught = caught
        finally:
            sys.settrace(before)


def struck(at: int, action: Callable[[], object], check: Callable[[], object]) -> bool:
    """Interrupts the action at its bytecode `at`, and checks while the exception is still being
    handled. False: it has fewer."""
    interrupter = Interrupter(at)
    interrupter.run(action)
    check()
    interrupted = interrupter.caught is not None
    interrupter.caught = None
    return interrupted


def agree(service: Service, lock: BaseLock) -> None:
    """The object's word and the server's are the same, and releasing what is held works."""
    name = lock.name
    tokens = lock.tokens
    if tokens:
        assert service.tokens(name) == tokens
        while lock._held:
            lock.release()
    until(lambda: service.holders(name) == service.waiters(name) == 0)
    assert not lock.held


def nothing_leaks(lock: BaseLock) -> None:
    """Every handle of the name lies idle, none twice, and no record is left in the book."""
    name = lock._client._names._names[lock._key]
    assert len(set(name.idle)) == len(name.idle) == len(name.owners)
    assert lock._client._session.client is not None


MAKERS: dict[str, Callable[[Client, str], BaseLock]] = {
    "lock": lambda client, name: client.lock(name),
    "leased": lambda client, name: client.lock(name, lease=60),
    "watched": lambda client, name: client.lock(name, on_lost=lambda lock: None),
    "reentrant": lambda client, name: client.lock(name, reentrant=True),
    "fair": lambda client, name: client.fair_lock(name),
    "fair shared": lambda client, name: client.fair_lock(name, shared=True),
    "read": lambda client, name: client.rwlock(name).read(),
    "write": lambda client, name: client.rwlock(name).write(),
    "semaphore": lambda client, name: client.semaphore(name, 2),
}


def every_bytecode(
    service: Service, lock: BaseLock, action: Callable[[], object], again: Callable[[], object]
) -> int:
    """Interrupts the action at each of its bytecodes in turn; how many these were."""
    at = 0
    while True:
        at += 1
        interrupted = struck(at, action, lambda: agree(service, lock))
        again()
        agree(service, lock)
        nothing_leaks(lock)
        if not interrupted:
            return at


@pytest.mark.parametrize("kind", MAKERS)
def test_with_is_interrupted_at_every_bytecode(service: Service, kind: str) -> None:
    name = fresh_name()
    lock = MAKERS[kind](service.client(), name)

    def action() -> None:
        with lock:
            pass

    action()  # the name is got, the handle there
    assert every_bytecode(service, lock, action, action) > 100


@pytest.mark.parametrize("kind", MAKERS)
def test_the_first_use_of_a_name_is_interrupted(service: Service, kind: str) -> None:
    client = service.client()
    for at in range(1, 400, 7):
        lock = MAKERS[kind](client, fresh_name())
        acquire = functools.partial(lock.acquire, timeout=10)
        struck(at, acquire, functools.partial(agree, service, lock))
        with lock:
            pass
        agree(service, lock)


def test_a_refused_try_is_interrupted_at_every_bytecode(service: Service) -> None:
    name = fresh_name()
    lock = service.client().fair_lock(name)

    def action() -> None:
        assert not lock.acquire(blocking=False)

    def again() -> None:
        with lock:
            pass

    def nothing_asked() -> None:
        assert not lock.held
        until(lambda: service.waiters(name) == 0)

    holder = service.client().fair_lock(name)
    at = 0
    interrupted = True
    while interrupted:
        at += 1
        with holder:
            interrupted = struck(at, action, nothing_asked)
        again()
        agree(service, lock)
        nothing_leaks(lock)


def test_a_wait_is_interrupted_at_every_bytecode(service: Service) -> None:
    """The lock is busy: the way goes through the loop that waits in slices."""
    name = fresh_name()
    lock, holder = service.client().lock(name), service.client().lock(name)

    def wait_in_vain() -> None:
        assert not lock.acquire(timeout=0.06)

    def again() -> None:
        with lock:
            pass

    def nothing_asked() -> None:
        assert not lock.held
        until(lambda: service.waiters(name) == 0)

    again()
    at, interrupted = 0, True
    while interrupted:
        at += 3  # each takes as long as the wait
        with holder:
            interrupted = struck(at, wait_in_vain, nothing_asked)
        again()
        agree(service, lock)
        nothing_leaks(lock)


@pytest.mark.parametrize("busy", [False, True])
def test_a_multi_is_interrupted_at_every_bytecode(service: Service, busy: bool) -> None:
    client = service.client()
    locks = [client.lock(fresh_name(), lease=60), client.semaphore(fresh_name(), 1)]
    multi = client.multi(locks)
    other = service.client().semaphore(locks[1].name, 1)

    def action() -> None:
        if busy:
            assert not multi.acquire(blocking=False)
        else:
            with multi:
                pass

    def all_agree() -> None:
        if busy:
            other.release()
        for lock in locks:
            agree(service, lock)

    with multi:
        pass
    at, interrupted = 0, True
    while interrupted:
        at += 1
        if busy:
            other.acquire()
        interrupted = struck(at, action, all_agree)
        with multi:
            assert multi.held
        for lock in locks:
            agree(service, lock)
            nothing_leaks(lock)


def test_real_signals_at_any_moment(service: Service) -> None:
    """Signals of a timer that runs against the library, idle and contended."""
    name = fresh_name()
    lock = service.client().lock(name)
    rival = service.client().lock(name)
    over = threading.Event()

    def compete() -> None:
        while not over.is_set():
            with rival:
                pass

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    chance = random.Random(7)
    former = signal.signal(signal.SIGALRM, interrupt)
    thread = threading.Thread(target=compete)
    try:
        for turn in range(400):
            if turn == 200:
                thread.start()
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00001, 0.0005))
                while True:
                    with lock:
                        pass
            except KeyboardInterrupt:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if lock._held:
                assert lock.tokens <= service.tokens(name)
                lock.release()
            assert lock.acquire(timeout=20)
            lock.release()
            nothing_leaks(lock)
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
        signal.signal(signal.SIGALRM, former)
    agree(service, lock)
